"""The common part of self-critical training and DiCO: an optimizer step, its loss, and what is logged of it.

One optimizer step: every micro-batch of pictures is seen once by the frozen backbone; the model writes candidates
without gradient; the reward functions and, if needed, the reference score them. Then the policy's log-probabilities are
computed once with gradient, and the loss of the method is divided by what the whole step holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from ...extras import require
from ...families import family_class, family_of, learns, without_adapters
from ...modeling.captioner_trust import load_pretrained
from ..collator import RewardCollator
from ..rows import ROWS, column_names
from ..watch.collapse import CollapseCallback
from ..watch.completions import log_completions
from ..watch.running_metrics import RunningMetrics
from .config import RewardTrainingConfig
from .forward_pass import call_through, mode
from .functions import RewardFunctions
from .logs import completion_rows, log_rollout
from .reference import ReferenceModel, SyncReferenceCallback
from .rollout import Rollout
from .rollout_trainer import RolloutTrainer

REFERENCE_FOLDER = "reference"


class RewardTrainer(RolloutTrainer):
    """Teach a captioner with rewards; [`SCSTTrainer`] and [`DiCOTrainer`] say how.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a captioner of any family, trained with cross-entropy.
        ref_model (`PreTrainedModel`, *optional*): the model to stay close to; see [`ReferenceModel`] for the default.
        reward_funcs (`Callable`, or list): see [`RewardFunctions`].
        args ([`RewardTrainingConfig`]): options.
        train_dataset, eval_dataset (`Dataset`): rows with `image` (or `image_features`), `captions` and `image_id`;
            other columns go to the reward functions too.
        processing_class ([`CaptionerProcessor`]): the captioner's processor; for a `VisionEncoderDecoderModel` make one
            of its image processor and tokenizer.
        reward_processing_classes, compute_metrics: must be `None`; they are where TRL's trainers have them.
        data_collator (`Callable`, *optional*): by default a [`RewardCollator`].
        callbacks, optimizers: see `Trainer`.
        peft_config (`PeftConfig`, *optional*): train adapters only.
        kwargs: further arguments of [`CaptionerTrainer`] and of `Trainer`.

    Raises:
        ValueError: no `processing_class`; candidates longer than the model's longest caption; see also
            [`ReferenceModel`] and [`RewardFunctions`].
    """

    args: RewardTrainingConfig
    config_class: type[RewardTrainingConfig]
    loss_is_scaled_for_ga = True  # the loss is divided by what the whole optimizer step holds

    def __init__(
        self,
        model: PreTrainedModel,
        ref_model: PreTrainedModel | None = None,
        reward_funcs: Any = None,
        args: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: None = None,
        data_collator: Callable | None = None,
        compute_metrics: None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        peft_config: Any = None,
        **kwargs: Any,
    ) -> None:
        args = self.config_class() if args is None else args
        if args.log_completions:
            require("rich")
        self._check(model, ref_model, reward_funcs, args, processing_class)
        if reward_processing_classes is not None:
            raise ValueError("reward_processing_classes: reward functions are called as they are; prepare in them.")
        if data_collator is None:
            seed = args.seed if args.data_seed is None else args.data_seed
            broken, family = args.skip_broken_images, family_of(model, to_train=True)
            data_collator = RewardCollator(processing_class, broken, seed, args.num_generations, family)
        self.reward_functions = RewardFunctions(reward_funcs, args.reward_weights)
        super().__init__(
            model,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            data_collator,
            peft_config=peft_config,
            compute_metrics=compute_metrics,
            callbacks=callbacks,
            optimizers=optimizers,
            **kwargs,
        )
        base = without_adapters(self.model)
        self.family.check_candidates(base, args)
        self._check_cache(base)
        self.family.check_length(base, "max_completion_length + 1", args.max_completion_length + 1)
        if self.needs_reference():
            self.reference = ReferenceModel(self.model, self.family, ref_model, fresh_adapters=peft_config is not None)
            self.reference.move_to(self.accelerator.device)
        if args.sync_ref_model:
            self._follow_policy()
        if args.collapse_patience:
            self.add_callback(CollapseCallback(patience=args.collapse_patience))
        self._last_step: list[Rollout] = []

    def _check(self, model: Any, ref_model: Any, reward_funcs: Any, args: Any, processing_class: Any) -> None:
        """Say at once what would only fail later, or in silence."""
        name, config = type(self).__name__, self.config_class.__name__
        if not isinstance(args, self.config_class):
            raise TypeError(f"{name}: args must be a {config}, not a {type(args).__name__}.")
        if processing_class is None:
            raise ValueError(f"{name}: give the captioner's processor as processing_class.")
        if reward_funcs is None:
            raise ValueError(f"{name}: give reward_funcs, a function or several.")
        if ref_model is model:
            raise ValueError("ref_model is the model itself and would learn with it; give a copy, or None.")
        family = family_of(model, to_train=True)
        if ref_model is None:
            return
        both = [without_adapters(captioner) for captioner in (model, ref_model)]
        sizes = [family.vocab_size(captioner) for captioner in both]
        if family_class(both[0]) is not family_class(both[1]) or sizes[0] != sizes[1]:
            raise ValueError(
                f"ref_model, a {type(ref_model).__name__} of {sizes[1]} tokens, cannot score the captions of a "
                f"{type(model).__name__} of {sizes[0]} tokens."
            )

    def check_data(self) -> None:
        """Check as [`CaptionerTrainer`] does, and that the rows have the columns that the rewards need.

        Raises:
            ValueError: see there; a column is missing, such as the references of a reward.
        """
        super().check_data()
        columns = column_names(self.train_dataset)
        if columns is not None:
            self.reward_functions.check_columns({*columns, "images", "pixel_values"})

    def _check_cache(self, model: Any) -> None:
        backbone = self.family.backbone(model)
        if self.args.cache_image_features and learns(backbone):  # by adapters; train_backbone is refused before
            raise ValueError("cache_image_features=True keeps what the backbone sees, but adapters in it learn.")
        if self.args.cache_image_features and not self.family.keeps_features:
            raise ValueError(
                f"cache_image_features=True: the features of a {type(model).__name__} differ in number from image to "
                "image and are not kept; leave it out."
            )

    def _follow_policy(self) -> None:
        if self.reference is None or self.reference.model is None:
            raise ValueError("sync_ref_model=True needs a reference model of its own: beta above 0, and no adapters.")
        self.add_callback(SyncReferenceCallback(self.reference.model))

    # -- what a method says ------------------------------------------------------------------------------------------

    def needs_reference(self) -> bool:
        """Tell whether the method looks at the reference model."""
        return self.args.beta > 0

    def finish_step(self, rollouts: list[Rollout]) -> None:
        """Called with all micro-batches of an optimizer step, before the first loss."""

    def items(self, rollout: Rollout) -> torch.Tensor:
        """The divisor of the loss of a micro-batch, shape `()`."""
        raise NotImplementedError

    def loss_sum(self, log_probs: torch.Tensor, rollout: Rollout, metrics: RunningMetrics) -> torch.Tensor:
        """The loss of a micro-batch, summed.

        Args:
            log_probs (`torch.Tensor` of shape `(B * k, T - 1)`): of the candidates' tokens, 0 where none counts.
            rollout ([`Rollout`]): the micro-batch.
            metrics ([`RunningMetrics`]): where to log.

        Returns:
            `torch.Tensor` of shape `()`
        """
        raise NotImplementedError

    # -- one optimizer step ------------------------------------------------------------------------------------------

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of an optimizer step with their candidates and rewards, and what the loss is divided by."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self.model.train()  # an evaluation, or loading the model, has left it in evaluation mode
        names = [batch.pop(ROWS, []) for batch in batches]
        rollouts = [self.roll_out(batch) for batch in batches]
        if not rollouts:
            return [], None
        self.finish_step(rollouts)
        self._last_step = rollouts
        inputs = [{"rollout": rollout, ROWS: rows} for rollout, rows in zip(rollouts, names, strict=True)]
        return inputs, self._count(rollouts)

    def _count(self, rollouts: list[Rollout]) -> torch.Tensor:
        """Count the items of all micro-batches of all processes; their tokens are added to those of the run."""
        items = torch.stack([self.items(rollout) for rollout in rollouts]).sum()
        tokens = torch.stack([rollout.candidates.mask.sum() for rollout in rollouts]).sum()
        both = self.accelerator.reduce(torch.stack([items, tokens]).to(self.accelerator.device), reduction="sum")
        self.state.num_input_tokens_seen += int(both[1])  # where TRL counts them; checkpoints keep it
        return both[0].clamp(min=1)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The loss of a micro-batch, divided by what the optimizer step holds (in evaluation, the micro-batch)."""
        rollout = inputs["rollout"]
        metrics = self._metrics["train" if self.model.training else "eval"]
        log_probs, entropies = self._policy_log_probs(model, rollout)
        own = self._without_dropout(rollout, log_probs.detach())
        log_rollout(metrics, rollout, own, entropies, self.reward_functions.tokenizer)
        loss = self.loss_sum(log_probs, rollout, metrics)
        if num_items_in_batch is None:
            loss = loss / self.items(rollout).clamp(min=1)
        else:  # DistributedDataParallel takes the mean over the processes
            loss = loss * self.accelerator.num_processes / num_items_in_batch
        return (loss, {}) if return_outputs else loss

    def _policy_log_probs(self, model: Any, rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the candidates' tokens with gradient, and entropies, both (B * k, T - 1)."""
        base = self.accelerator.unwrap_model(model)

        def scored() -> tuple[torch.Tensor, torch.Tensor]:
            return self._log_probs(base, rollout.image_inputs, rollout.candidates)

        with mode(base, training=base.training and not self.args.disable_dropout):
            return call_through(model, base, scored)

    def _without_dropout(self, rollout: Rollout, log_probs: torch.Tensor) -> torch.Tensor:
        """The policy's log-probabilities that are compared with the reference's, which has no dropout, in `kl`.

        Called behind the pass with gradient: autocast keeps the casts of the first pass, and those of this one have no
        gradient.
        """
        if rollout.policy_log_probs is not None:
            return rollout.policy_log_probs
        if rollout.reference_log_probs is None or self.args.disable_dropout or not self.model.training:
            return log_probs
        return self.own_log_probs(rollout)

    def own_log_probs(self, rollout: Rollout) -> torch.Tensor:
        """The policy's log-probabilities of its own candidates, without gradient and dropout.

        Args:
            rollout ([`Rollout`]): the micro-batch.

        Returns:
            `torch.Tensor` of shape `(B * k, T - 1)`: 0 where no token counts.
        """
        model = self.accelerator.unwrap_model(self.model)
        with mode(model, training=False), torch.no_grad():
            return self._log_probs(model, rollout.image_inputs, rollout.candidates)[0]

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Candidates, rewards and loss of evaluation pictures."""
        own, counts = self.own_rows(inputs)
        collected = copy.deepcopy(self._metrics["eval"])
        with torch.no_grad():
            rollout = self.roll_out(own)
            self.finish_step([rollout])
            loss = self.compute_loss(model, {"rollout": rollout}).detach()
        self._metrics["eval"].add_mean("loss", loss, self.items(rollout))
        if not counts:
            self._metrics["eval"] = collected
        return loss, None, None

    def score_captions(self, captions: list[str], dataset: Any) -> dict[str, float]:
        """Also what the reward functions give for generated captions, by their names."""
        size, tokenizer, rewards = self.args.eval_batch_size, self.processing_class.tokenizer, []
        end = self.family.tokens.end
        for start in range(0, len(captions), size):
            chunk = captions[start : start + size]
            ids = [[*words, end] for words in tokenizer(chunk, add_special_tokens=False).input_ids]
            batch = self.data_collator([dataset[start + row] for row in range(len(chunk))])
            rewards.append(self._call_rewards(chunk, ids, 1, batch).per_function)
        means = torch.cat(rewards).nanmean(dim=0).tolist()
        return dict(zip(self.reward_functions.names, means, strict=True)) | super().score_captions(captions, dataset)

    # -- logs and files ----------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`, with what was collected since the last training log, and the last step's completions."""
        if "loss" in logs:
            logs = {**logs, **self._metrics["train"].pop(self.accelerator)}
            logs["num_tokens"] = self.state.num_input_tokens_seen
            if self.args.log_completions and self.is_world_process_zero():
                rows = [row for rollout in self._last_step for row in completion_rows(rollout, self.shown(rollout))]
                number = self.args.num_completions_to_print
                log_completions(
                    rows, self.state.global_step, str(self.args.output_dir), 8 if number is None else number
                )
        super().log(logs, start_time)

    def shown(self, rollout: Rollout) -> dict[str, torch.Tensor]:
        """Numbers of the method for each candidate, `(B * k,)`, for the table of completions."""
        return {}

    def checkpoint_parts(self, checkpoint: Path) -> list[tuple[str, ...]]:
        """Save as [`CheckpointingTrainer`] does; a reference that follows the policy is part of the state of a run."""
        own = [(f"{REFERENCE_FOLDER}/{name}",) for name in ("model.safetensors", "config.json")]
        return [*super().checkpoint_parts(checkpoint), *(own if self.args.sync_ref_model else [])]

    def write_more(self, checkpoint: Path) -> None:
        super().write_more(checkpoint)
        if self.args.sync_ref_model and self.reference is not None and self.args.should_save:
            self.reference.model.save_pretrained(checkpoint / REFERENCE_FOLDER)  # type: ignore[union-attr]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.args.sync_ref_model and self.reference is not None:
            own: Any = self.reference.model
            own.load_state_dict(
                load_pretrained(type(own), Path(resume_from_checkpoint) / REFERENCE_FOLDER).state_dict()
            )
