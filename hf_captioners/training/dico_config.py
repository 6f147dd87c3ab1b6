"""Options of direct CLIP-based optimisation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .reward.config import RewardTrainingConfig


@dataclass
class DiCOConfig(RewardTrainingConfig):
    r"""Options of [`DiCOTrainer`], beside those of [`RewardTrainingConfig`].

    Parameters:
        learning_rate (`float`, defaults to 1e-6), lr_scheduler_type (`str`, defaults to `"constant"`)
        beta (`float`, defaults to 0.2):
            Scale of the implicit reward, as in DPO. The logged implicit rewards are those of the loss: the policy's
            dropout is in them, unless `disable_dropout`. The logged `kl` compares policy and reference without
            dropout; it costs a forward pass without gradient, which `disable_dropout` spares.
        reward_temperature (`float`, defaults to 1 / 300):
            The losers' weights are the softmax of the reward gaps over this. For rewards of another scale than PAC-S
            choose another one: it should be about the usual gap between two candidates.
        tau (`float`, *optional*):
            Instead, its reciprocal: the paper's code has 300.
        num_iterations (`int`, defaults to 1):
            Optimizer steps with the same candidates. A step that is to be saved must be the last of them.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "Rate of the optimizer."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the rate."})
    beta: float = field(default=0.2, metadata={"help": "Scale of the implicit reward."})
    reward_temperature: float = field(default=1 / 300, metadata={"help": "Of the softmax over the reward gaps."})
    tau: float | None = field(default=None, metadata={"help": "Reciprocal of --reward_temperature, instead of it."})
    num_iterations: int = field(default=1, metadata={"help": "Optimizer steps with the same candidates."})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_at_least_one("num_iterations")
        if self.tau is not None:
            if self.tau <= 0:
                raise ValueError(f"tau must be above 0, not {self.tau}.")
            if self.reward_temperature not in (1 / 300, 1 / self.tau):
                raise ValueError(
                    f"tau={self.tau} and reward_temperature={self.reward_temperature} say two things; give one of them."
                )
            self.reward_temperature, self.tau = 1 / self.tau, None
        if self.reward_temperature <= 0:
            raise ValueError(f"reward_temperature must be above 0, not {self.reward_temperature}.")
        if self.num_generations < 2:
            raise ValueError(f"DiCO needs a winner and a loser, but num_generations={self.num_generations}.")
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, not {self.beta}: without it there is nothing to learn.")
        if self.num_iterations > 1 and self.save_strategy == "steps" and self.save_steps % self.num_iterations:
            raise ValueError(
                f"save_steps={self.save_steps} must be a multiple of num_iterations={self.num_iterations}, or a run "
                "could not be resumed with the candidates that it was at."
            )

    @classmethod
    def reference(cls, output_dir: str | None = None, **changes: Any) -> DiCOConfig:
        """The settings of the paper's training script, for two devices, with what it does by accident.

        The best checkpoint is the one with the best RefPAC-S of captions by beam search, so the reward functions are
        PAC-S and, with weight 0, RefPAC-S: `ClipReward(scorer)` and `ClipReward(scorer, use_references=True)`.

        Args:
            output_dir (`str`, *optional*): where to save.
            changes: options that are to differ.

        Returns:
            [`DiCOConfig`]

        Example:

        ```python
        >>> from hf_captioners import DiCOConfig
        >>> config = DiCOConfig.reference("runs/dico", report_to="none")
        >>> config.beta, round(1 / config.reward_temperature), config.num_generations, config.generate_with_dropout
        (0.2, 300, 5, True)

        ```
        """
        settings: dict[str, Any] = {
            "learning_rate": 1e-6,
            "lr_scheduler_type": "constant",
            "per_device_train_batch_size": 8,
            "max_steps": 250_000,
            "num_generations": 5,
            "candidate_strategy": "beam",
            "max_completion_length": 29,
            "beta": 0.2,
            "reward_temperature": 1 / 300,
            "generate_with_dropout": True,
            "max_grad_norm": 0.0,
            "weight_decay": 0.0,
            "reward_weights": [1.0, 0.0],
            "eval_strategy": "steps",
            "eval_steps": 1770,
            "eval_with_generation": True,
            "generation_num_beams": 5,
            "generation_max_length": 30,
            "save_strategy": "steps",
            "save_steps": 1770,
            "save_total_limit": 2,
            "metric_for_best_model": "ref_pac_s",
            "greater_is_better": True,
            "seed": 42,
        }
        return cls(output_dir=output_dir, **{**settings, **changes})
