"""The common part of self-critical training and DiCO: candidates, rewards, reference, and what is logged of them.

One optimizer step: every micro-batch of pictures is seen once by the frozen backbone; the model writes candidates
without gradient; the reward functions and, if needed, the reference score them. Then the policy's log-probabilities are
computed once with gradient, and the loss of the method is divided by what the whole step holds.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, TrainerCallback

from ...data.opened_images import OpenedImages
from ...extras import require
from ...modeling.captioner_trust import load_pretrained
from ..collator import RewardCollator
from ..policy import policy_of, without_adapters
from ..rows import ROWS, column_names
from ..trainer import CaptionerTrainer
from ..watch.collapse import CollapseCallback
from ..watch.completions import log_completions
from ..watch.running_metrics import RunningMetrics
from .candidates import Candidates
from .config import RewardTrainingConfig
from .forward_pass import call_through, mode
from .functions import RewardFunctions, Rewards
from .logs import completion_rows, log_rollout
from .reference import ReferenceModel, SyncReferenceCallback
from .rollout import Rollout

REFERENCE_FOLDER = "reference"


class RewardTrainer(CaptionerTrainer):
    """Teach a captioner with rewards; [`SCSTTrainer`] and [`DiCOTrainer`] say how.

    Args:
        model ([`CaptionerPreTrainedModel`], `VisionEncoderDecoderModel` or `PeftModel`): the captioner, trained with
            cross-entropy.
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
            data_collator = RewardCollator(processing_class, args.skip_broken_images, seed, args.num_generations)
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
        self.policy.check_candidates(base, args)
        self._check_cache(base)
        self.policy.check_length(base, "max_completion_length + 1", args.max_completion_length + 1)
        self.reference: ReferenceModel | None = None
        if self.needs_reference():
            self.reference = ReferenceModel(self.model, self.policy, ref_model, fresh_adapters=peft_config is not None)
            self.reference.move_to(self.accelerator.device)
        if args.sync_ref_model:
            self._follow_policy()
        if args.collapse_patience:
            self.add_callback(CollapseCallback(patience=args.collapse_patience))
        self._last_step: list[Rollout] = []
        self._features: dict[bytes, torch.Tensor] = {}  # a picture's digest -> what the backbone made of it

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
        policy = policy_of(model)
        if ref_model is None:
            return
        sizes = [
            without_adapters(captioner).get_output_embeddings().weight.shape[0] for captioner in (model, ref_model)
        ]
        if type(policy_of(ref_model)) is not type(policy) or sizes[0] != sizes[1]:
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
        backbone = self.policy.backbone(model)
        learns = backbone is not None and any(one.requires_grad for one in backbone.parameters())
        if self.args.cache_image_features and learns:  # by adapters; train_backbone is refused before
            raise ValueError("cache_image_features=True keeps what the backbone sees, but adapters in it learn.")

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

    def _log_probs(
        self, model: Any, image_inputs: dict[str, Any], candidates: Candidates
    ) -> tuple[torch.Tensor, torch.Tensor]:
        with self.accelerator.autocast():
            encoder_outputs = self.policy.encode(model, image_inputs)
            log_probs, entropies = self.policy.log_probs(
                model, candidates.sequences, encoder_outputs, **candidates.scoring_inputs
            )
        return log_probs.masked_fill(~candidates.mask, 0.0), entropies.masked_fill(~candidates.mask, 0.0)

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
        for start in range(0, len(captions), size):
            chunk = captions[start : start + size]
            ids = [[*words, tokenizer.eos_token_id] for words in tokenizer(chunk, add_special_tokens=False).input_ids]
            batch = self.data_collator([dataset[start + row] for row in range(len(chunk))])
            rewards.append(self._call_rewards(chunk, ids, 1, batch).per_function)
        means = torch.cat(rewards).nanmean(dim=0).tolist()
        return dict(zip(self.reward_functions.names, means, strict=True)) | super().score_captions(captions, dataset)

    # -- candidates and rewards --------------------------------------------------------------------------------------

    @torch.no_grad()
    def roll_out(self, batch: dict[str, Any]) -> Rollout:
        """Let the model write candidates for a batch of pictures, and reward them.

        Args:
            batch (`dict[str, Any]`): of the collator.

        Returns:
            [`Rollout`]
        """
        model = self.accelerator.unwrap_model(self.model)
        batch = self._prepare_inputs(batch)
        columns = batch["columns"]
        pixels = self.policy.image_inputs(model, batch)
        with self.accelerator.autocast():
            image_inputs = self._run_backbone(model, pixels)
            candidates, greedy = self._write(model, image_inputs, columns)
        rewards = self._reward(candidates, batch)
        valid = ~rewards.total.isnan()  # no reward function applies
        if self.args.mask_truncated_completions:
            valid &= candidates.finished
        if self.args.deduplicate_candidates:
            valid &= candidates.firsts.flatten()
        rollout = Rollout(
            image_inputs=image_inputs,
            columns=columns,
            candidates=candidates,
            rewards=rewards.total.nan_to_num(0.0).view(-1, candidates.k),
            function_rewards=rewards,
            valid=valid.view(-1, candidates.k),
            reference_log_probs=self._reference_log_probs(model, pixels, image_inputs, candidates),
        )
        if greedy is not None:
            total = self._reward(greedy, batch).total
            rollout.greedy_rewards = total.nan_to_num(0.0).view(-1, greedy.k) if greedy.k > 1 else total.nan_to_num(0.0)
            rollout.valid &= ~total.isnan().view(-1, greedy.k)
        return rollout

    def _run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        """Image inputs as they are encoded, from the cache where it is switched on."""
        if not self.args.cache_image_features or "pixel_values" not in image_inputs:
            return self.policy.run_backbone(model, image_inputs)
        pixels = image_inputs["pixel_values"]
        content = pixels.cpu().flatten(1).view(torch.uint8).numpy()  # an image_id may be another picture's elsewhere
        keys = [hashlib.blake2b(image, digest_size=16).digest() for image in content]
        new = {key: row for row, key in enumerate(keys) if key not in self._features}
        for key, row in new.items():  # alone: its last bit depends on how many others are run with it
            self._features[key] = self._features_of(model, pixels[row : row + 1])
        features = torch.stack([self._features[key] for key in keys]).to(pixels.device)
        others = {name: value for name, value in image_inputs.items() if name != "pixel_values"}
        return {"image_features": features, **others}

    def _features_of(self, model: Any, pixels: torch.Tensor) -> torch.Tensor:
        """Features of one image (1, 3, height, width), in the computer's memory."""
        return self.policy.run_backbone(model, {"pixel_values": pixels})["image_features"][0].cpu()

    def _write(
        self, model: Any, image_inputs: dict[str, Any], columns: dict[str, list[Any]]
    ) -> tuple[Candidates, Candidates | None]:
        """Candidates and, where the method compares with them, greedy captions."""
        step = self.state.global_step if self.model.training else "eval"
        names = [f"{self.args.seed} {step} {name}" for name in self._names(columns)]
        dropout = self.args.generate_with_dropout and self.model.training
        with mode(model, training=dropout, seed=" ".join([f"{self.args.seed} {step}", *names])):
            encoder_outputs = self.policy.encode(model, image_inputs)
            write = partial(self.policy.write, model, encoder_outputs, self.processing_class, self.args, names)
            candidates = write()
            if not self.needs_greedy():
                return candidates, None
            return candidates, write(greedy=True) if candidates.greedy is None else candidates.greedy

    def _names(self, columns: dict[str, list[Any]]) -> list[Any]:
        """Names that tell the pictures of a batch apart, so that chance does not depend on where they stand."""
        for name in ("image_id", "captions"):
            if name in columns:
                return columns[name]
        if self.args.candidate_strategy == "sample":
            raise ValueError(f"rows need an image_id to draw captions by; these have only {sorted(columns)}.")
        return []

    def needs_greedy(self) -> bool:
        """Tell whether the method looks at greedy captions."""
        return False

    def _reward(self, captions: Candidates, batch: dict[str, Any]) -> Rewards:
        """Rewards of captions, on their device."""
        result = self._call_rewards(captions.texts, captions.ids, captions.k, batch)
        return dataclasses.replace(result, total=result.total.to(captions.sequences.device))

    def _call_rewards(self, texts: list[str], ids: list[list[int]], k: int, batch: dict[str, Any]) -> Rewards:
        """Rewards of k captions of each picture of a batch."""
        columns: dict[str, Any] = {
            name: [value for value in values for _ in range(k)] for name, values in batch["columns"].items()
        }
        if "pixel_values" in batch:
            columns["pixel_values"] = [image for image in batch["pixel_values"] for _ in range(k)]
        return self.reward_functions(texts, ids, trainer_state=self.state, **self._with_images(columns))

    def _with_images(self, columns: dict[str, Any]) -> dict[str, Any]:
        """The columns with `images`, which are open to who looks at them, as is `image` where we have closed it."""
        if "image" not in columns:
            return columns
        images = OpenedImages(columns["image"], self.processing_class.image_processor)
        closed = any(isinstance(image, dict) for image in columns["image"])
        return {"images": images, **columns, **({"image": images} if closed else {})}

    def _reference_log_probs(
        self, model: Any, pixels: dict[str, Any], image_inputs: dict[str, Any], candidates: Candidates
    ) -> torch.Tensor | None:
        """Log-probabilities of the reference, which runs its own backbone if that is another one."""
        if self.reference is None:
            return None
        with self.reference.in_use(model) as reference:
            if not self.reference.shares_backbone(model):
                image_inputs = self.policy.run_backbone(reference, pixels)
            return self._log_probs(reference, image_inputs, candidates)[0]

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
