"""Direct CLIP-based optimisation (Moratelli, Caffagni et al., 2024, arXiv 2408.14547).

Where this differs from the authors' code: candidates are written without dropout and without recording gradients
(`generate_with_dropout=True` brings dropout back), sums and rewards are in float32, gradients may be clipped. See
[`DiCOConfig.reference`] for their settings.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import PreTrainedModel
from transformers.trainer_utils import has_length

from .dico_config import DiCOConfig
from .reward.losses import dico_loss
from .reward.rollout import Rollout
from .reward.trainer import RewardTrainer
from .watch.running_metrics import RunningMetrics


class DiCOTrainer(RewardTrainer):
    """Make the candidate that the reward likes best more likely than the others, compared with a reference model.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a captioner of any family, trained with cross-entropy.
        ref_model (`PreTrainedModel`, *optional*): see [`ReferenceModel`] for the default.
        reward_funcs (`Callable` or list): as [`ClipReward`].
        args ([`DiCOConfig`]): options.
        kwargs: see [`RewardTrainer`].

    Raises:
        ValueError: no rewards; see also [`RewardTrainer`].

    Example:

    ```python
    >>> from hf_captioners import DiCOConfig, DiCOTrainer
    >>> from hf_captioners.metrics import PacScorer
    >>> from hf_captioners.rewards import ClipReward
    >>> reward = ClipReward(PacScorer("pac_s"))  # doctest: +SKIP
    >>> trainer = DiCOTrainer(model, reward_funcs=reward, args=DiCOConfig(output_dir="run"),
    ...                       train_dataset=rows, processing_class=processor)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    args: DiCOConfig
    config_class = DiCOConfig

    def __init__(self, model: PreTrainedModel, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self._step: tuple[int, list, Any] = (-1, [], None)  # first optimizer step, micro-batches, number of pictures

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """As in [`RewardTrainer`]; with `num_iterations` above 1 the same candidates several times."""
        repeated = self.state.global_step % self.args.num_iterations
        first = self.state.global_step - repeated
        if repeated and self._step[0] == first:
            for _ in range(num_batches):  # the sampler repeats the pictures
                next(epoch_iterator, None)
            return self._step[1], self._step[2]
        self._step = (first, *super().get_batch_samples(epoch_iterator, num_batches, device))
        return self._step[1], self._step[2]

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler | None:
        sampler: Any = super()._get_train_sampler(train_dataset)
        if self.args.num_iterations == 1:
            return sampler
        if isinstance(sampler, RandomSampler):  # what accelerate makes of one that it sees: the same order when resumed
            sampler = SeedableRandomSampler(sampler.data_source, data_seed=self.args.data_seed)
        return RepeatedSteps(sampler, self._step_size(), self.args.num_iterations)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; `num_iterations` above 1 needs steps that can be repeated."""
        if self.args.num_iterations > 1 and not (
            has_length(self.train_dataset) and len(self.train_dataset) >= self._step_size()
        ):
            raise ValueError(
                f"num_iterations={self.args.num_iterations} repeats whole optimizer steps of {self._step_size()} "
                "pictures; give a train_dataset with a length, and at least as many rows."
            )
        return super().get_train_dataloader()

    def _step_size(self) -> int:
        """Pictures of an optimizer step, on all processes."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.accelerator.num_processes

    def items(self, rollout: Rollout) -> torch.Tensor:
        return torch.tensor(len(rollout.rewards), device=rollout.rewards.device)

    def loss_sum(self, log_probs: torch.Tensor, rollout: Rollout, metrics: RunningMetrics) -> torch.Tensor:
        assert rollout.reference_log_probs is not None  # beta is above 0
        both = (log_probs, rollout.reference_log_probs)
        policy, reference = (values.sum(dim=1).view_as(rollout.rewards) for values in both)
        out = dico_loss(policy, reference, rollout.rewards, self.args.beta, self.args.reward_temperature, rollout.valid)
        rollout.weights = torch.where(out.winners, 1.0, -out.gammas)
        pairs, gammas = out.is_pair, out.gammas[out.is_pair]
        metrics.add("rewards/chosen", out.chosen_rewards[pairs])
        metrics.add("rewards/rejected", out.rejected_rewards[pairs])
        metrics.add("rewards/margins", (out.chosen_rewards - out.rejected_rewards)[pairs])
        metrics.add("rewards/accuracies", (out.chosen_rewards > out.rejected_rewards)[pairs].float())
        metrics.add("logps/chosen", policy[out.winners])
        metrics.add("logps/rejected", (gammas * policy[pairs]).sum(dim=1))
        metrics.add("reward_gap", rollout.rewards[out.winners] - (gammas * rollout.rewards[pairs]).sum(dim=1))
        metrics.add("gamma_max", gammas.amax(dim=1) if len(gammas) else gammas)
        return out.per_image.sum()

    def shown(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        assert rollout.weights is not None  # the loss has been computed
        return {"weight": rollout.weights.flatten()}


class RepeatedSteps(Sampler):
    """The indices of another sampler, those of an optimizer step several times; an incomplete last step is left out.

    Args:
        sampler (`Sampler`): with a length.
        size (`int`): pictures of an optimizer step, on all processes.
        times (`int`): how often.

    Example:

    ```python
    >>> from hf_captioners.training.dico_trainer import RepeatedSteps
    >>> list(RepeatedSteps([3, 1, 4, 1, 5], size=2, times=2))
    [3, 1, 3, 1, 4, 1, 4, 1]

    ```
    """

    def __init__(self, sampler: Any, size: int, times: int) -> None:
        self.sampler = sampler
        self.size = size
        self.times = times

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; called before each, also by a resumed run."""
        if isinstance(self.sampler, SeedableRandomSampler):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.sampler) // self.size * self.size * self.times

    def __iter__(self) -> Iterator[int]:
        step: list[int] = []
        for index in self.sampler:
            step.append(index)
            if len(step) == self.size:
                yield from step * self.times
                step = []
