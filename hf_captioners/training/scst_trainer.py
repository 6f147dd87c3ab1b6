"""Self-critical sequence training: REINFORCE with a baseline of the model's own captions (Rennie et al., 2017)."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

from ..families import family_of
from ..rewards.cider import default_reward
from .reward.losses import advantages, loss_items, self_critical_loss
from .reward.rollout import Rollout
from .reward.trainer import RewardTrainer
from .scst_config import SCSTConfig
from .watch.running_metrics import RunningMetrics


class SCSTTrainer(RewardTrainer):
    """Raise the rewards of a captioner's captions by policy gradient.

    The loss is - sum of A log p over the candidates, divided by their number in the optimizer step, where A is how much
    better a candidate is than its baseline; see [`SCSTConfig`] for the variants of ExpansionNet v2 and SATIC.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a captioner of any family, trained with cross-entropy.
        ref_model (`PreTrainedModel`, *optional*): with `beta` above 0; see [`ReferenceModel`] for the default.
        reward_funcs (`Callable` or list, *optional*): by default CIDEr-D, see [`default_reward`].
        args ([`SCSTConfig`]): options.
        train_dataset, eval_dataset, processing_class, kwargs: see [`RewardTrainer`].

    Raises:
        ValueError: see [`RewardTrainer`]; no rewards and no captions to count document frequencies in.

    Example:

    ```python
    >>> from hf_captioners import SCSTConfig, SCSTTrainer
    >>> args = SCSTConfig(output_dir="run", candidate_strategy="sample", baseline="leave_one_out")  # doctest: +SKIP
    >>> trainer = SCSTTrainer(model, args=args, train_dataset=rows, processing_class=processor)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    args: SCSTConfig
    config_class = SCSTConfig

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        *further: Any,
        **kwargs: Any,
    ) -> None:
        family = family_of(model, to_train=True)
        if reward_funcs is None:
            eos = family.tokens.eos_token_id
            reward_funcs = default_reward(train_dataset, eos if isinstance(eos, int) else None)
        super().__init__(model, ref_model, reward_funcs, args, train_dataset, *further, **kwargs)

    def needs_greedy(self) -> bool:
        return self.args.baseline == "greedy"

    def finish_step(self, rollouts: list[Rollout]) -> None:
        """Advantages; their deviation is that of the whole optimizer step."""
        for rollout in rollouts:
            rewards = rollout.rewards
            if rollout.reference_log_probs is not None:
                written = rollout.candidates.log_probs
                own = rollout.policy_log_probs = self.own_log_probs(rollout) if written is None else written
                kl = (own - rollout.reference_log_probs).sum(dim=1).view_as(rewards)
                rewards = rewards - self.args.beta * kl
            rollout.advantages = advantages(rewards, self.args.baseline, rollout.greedy_rewards, rollout.valid)
        if self.args.normalize_advantages and self.model.training:  # an evaluation must not depend on its batches
            deviation = self._gathered(torch.cat([_advantages(rollout).flatten() for rollout in rollouts])).std(
                correction=0
            )
            for rollout in rollouts:
                rollout.advantages = _advantages(rollout) / (deviation + 1e-8)

    def _gathered(self, values: torch.Tensor) -> torch.Tensor:
        """The numbers of all processes, of which each may have as many as it likes."""
        padded = self.accelerator.pad_across_processes(values, pad_index=torch.nan)
        every = self.accelerator.gather(padded)
        return every[~every.isnan()]

    def items(self, rollout: Rollout) -> torch.Tensor:
        return loss_items(rollout.candidates.mask, self.args.normalization)

    def loss_sum(self, log_probs: torch.Tensor, rollout: Rollout, metrics: RunningMetrics) -> torch.Tensor:
        gains = _advantages(rollout)
        metrics.add_deviation("advantage_std", gains[rollout.valid])
        if rollout.greedy_rewards is not None:
            metrics.add("baseline", rollout.greedy_rewards)
        return self_critical_loss(log_probs, rollout.candidates.mask, gains.flatten(), self.args.normalization)

    def shown(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        return {"advantage": _advantages(rollout).flatten()}


def _advantages(rollout: Rollout) -> torch.Tensor:
    """The advantages (B, k), which `finish_step` has computed."""
    assert rollout.advantages is not None
    return rollout.advantages
