"""The common part of the trainers: data, optimizer, schedule, and what learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import has_length

from ..data.row_stream import RowStream
from ..families import family_of, without_adapters
from ..hub.card import write_card
from ..hub.push import Pushed
from .adapters import check_adapters, with_adapters
from .arguments import CaptionerTrainingArguments
from .callbacks import EpochCallback, GradientClampCallback
from .checks import check_hub_rights, warn_of_few_images
from .collator import ImageCollator
from .evaluation import CaptionScorer, DefaultMetrics, EvaluatingTrainer
from .kept import digest_of_learning, say_kept
from .loading import closed, with_own_chance
from .pushing import push_run
from .rows import ROWS, NamedRows, check_captions, check_feature_size
from .schedules import SCHEDULES, RectifiedAdam, radam_options
from .streaming import STREAM, StreamProgress
from .summary import card_facts
from .watch.finite import FiniteCallback
from .watch.running_metrics import RunningMetrics


class CaptionerTrainer(EvaluatingTrainer):
    """A `Trainer` of captioners; [`XETrainer`], [`SCSTTrainer`] and [`DiCOTrainer`] add what is learned.

    Args:
        model (`PreTrainedModel`): a captioner of any of the `families`.
        args ([`CaptionerTrainingArguments`]): options.
        train_dataset, eval_dataset (`Dataset`): rows with `image` (or `image_features`), `captions` and `image_id`.
        processing_class ([`CaptionerProcessor`]): the captioner's processor.
        data_collator ([`ImageCollator`]): rows to batches.
        compute_caption_metrics (`Callable`, *optional*): with `eval_with_generation`, called with the captions and the
            references of the evaluation pictures; returns numbers by name. By default the metrics of
            `args.caption_metrics`.
        peft_config (`PeftConfig`, *optional*): train adapters only; `target_modules` defaults to the model's
            `LORA_TARGET_MODULES`.
        compute_metrics: must be `None`; it is where `Trainer` has it.
        kwargs: further arguments of `Trainer`.

    Attributes:
        card_fields (`dict[str, Any]`): what else the captioner's card says, fields of [`CardFacts`].
        started_from (`str`): folder or Hub name of the captioner that was given, whose licence the card takes over.

    Raises:
        ValueError: no `processing_class`; a backbone to train that the model has not, or that has adapters; features
            of another width than the model's; captions to generate that are longer than the model's longest.
    """

    model: Any
    args: CaptionerTrainingArguments
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any
    _stream: StreamProgress | None = None  # of training rows that are a stream
    _skips_data = True

    def __init__(
        self,
        model: PreTrainedModel,
        args: CaptionerTrainingArguments,
        train_dataset: Any,
        eval_dataset: Any,
        processing_class: Any,
        data_collator: Callable,
        compute_caption_metrics: CaptionScorer | None = None,
        peft_config: Any = None,
        compute_metrics: None = None,
        **kwargs: Any,
    ) -> None:
        if compute_metrics is not None:
            raise ValueError("compute_metrics: evaluation keeps no predictions; give compute_caption_metrics.")
        self.family = family_of(model, to_train=True)
        if args.eval_with_generation:
            self.family.check_length(without_adapters(model), "generation_max_length", args.generation_max_length)
        check_adapters(model, peft_config, args.train_backbone)
        self.family.freeze_backbone(without_adapters(model), args.train_backbone)
        for dataset in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])):
            check_feature_size(without_adapters(model), dataset)
        if peft_config is not None:
            model = with_adapters(model, peft_config)
        elif train_dataset is not None and not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"no parameter of this {type(model).__name__} learns: all of them have requires_grad=False."
            )
        if args.process_index == 0:
            check_hub_rights(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=closed(train_dataset),
            eval_dataset=closed(eval_dataset),
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        if not torch.accelerator.is_available():  # there is no memory to copy to, and torch would warn at each loader
            self.args.dataloader_pin_memory = False
        if isinstance(self.train_dataset, RowStream):
            if self.train_dataset.seed is None:
                self.train_dataset.seed = args.seed if args.data_seed is None else args.data_seed
            workers = max(args.dataloader_num_workers, 1)
            self._stream = StreamProgress(self.train_dataset, args.process_index, args.world_size, workers)
            self.add_callback(self._stream)
        self.compute_caption_metrics = compute_caption_metrics or DefaultMetrics(args.caption_metrics)
        self.card_fields: dict[str, Any] = {}
        self.started_from = str(without_adapters(model).name_or_path or "")
        self._metrics = {"train": RunningMetrics(), "eval": RunningMetrics()}
        if isinstance(data_collator, ImageCollator):
            self.add_callback(EpochCallback(data_collator))
        self._finite = FiniteCallback(gradients=self.accelerator.scaler is None)
        self.add_callback(self._finite)
        if args.max_grad_value is not None:
            self.add_callback(GradientClampCallback(args.max_grad_value))
        if args.moving_average_decay is not None:
            self.keep_average(args.moving_average_decay)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Write the captioner's card into `args.output_dir`, filled in with its training and scores.

        Args:
            language, license, model_name, finetuned_from: see `Trainer.create_model_card`. Attribute `card_fields` has
                what else is known, fields of [`CardFacts`].
            tags, args, kwargs: as there; a card has the tags of its captioner.
        """
        if not self.is_world_process_zero():
            return
        said: dict[str, Any] = {"name": model_name, "licence": license}
        said |= {"languages": language and [language], "base_models": finetuned_from and [finetuned_from]}
        known = {**self.card_fields, **{name: value for name, value in said.items() if value}}
        write_card(card_facts(self, **known), str(self.args.output_dir))

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Leave the repository to the push, which makes it; before training the Hub is only asked whether it may."""

    def push_to_hub(
        self,
        commit_message: str | None = None,
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        ship_code: bool = False,
        create_pr: bool = False,
        dry_run: str | Path | None = None,
        contact_sheet: bool = False,
        **kwargs: Any,
    ) -> Pushed | None:
        """Save the captioner with its card and push it to the Hub as one commit.

        Args:
            commit_message, token, revision, private, ship_code, create_pr, dry_run, contact_sheet: see
                [`push_captioner`]; by default what `args` says. The repository is `args.hub_model_id`, or the name of
                `args.output_dir`.
            blocking (`bool`, defaults to `True`): it returns when everything is pushed; there is no other way.
            kwargs: of `create_model_card`.

        Returns:
            [`Pushed`], or `None` on processes that do not push.

        Raises:
            HubError: the Hub cannot be reached or refuses; the captioner is saved.
            ValueError: `blocking=False`.
        """
        if not blocking:
            raise ValueError("push_to_hub returns when everything is pushed; leave blocking=False out.")
        options = {"ship_code": ship_code, "create_pr": create_pr, "dry_run": dry_run, "contact_sheet": contact_sheet}
        named = {"commit_message": commit_message, "token": token, "revision": revision, "private": private}
        return push_run(self, kwargs, **named, **options)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        """The optimizer that `optim` names, transformers' or the paper's."""
        if args.optim == "radam":
            return RectifiedAdam, {"lr": args.learning_rate, **radam_options(args.optim_args)}
        return Trainer.get_optimizer_cls_and_kwargs(args, model)

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The schedule that `lr_scheduler_type` names, transformers' or a paper's."""
        if self.lr_scheduler is None and self.args.lr_scheduler_type in SCHEDULES:
            rate = SCHEDULES[self.args.lr_scheduler_type]
            options: dict[str, Any] = {
                "lr": self.args.learning_rate,
                "batches_per_epoch": self._batches_per_epoch(),
                **(self.args.lr_scheduler_kwargs or {}),  # type: ignore[dict-item]
            }
            accumulation = self.args.gradient_accumulation_steps

            def factor(step: int) -> float:
                return rate(step * accumulation, **options) / self.args.learning_rate

            stepped: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = LambdaLR(stepped, factor)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def _batches_per_epoch(self) -> int:
        whole, rest = divmod(len(self.train_dataset), self.args.train_batch_size * self.args.world_size)
        return whole + (rest > 0 and not self.args.dataloader_drop_last)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, after what can be known before the first step has been checked.

        Args: see [`AveragingTrainer`].

        Returns:
            `TrainOutput`

        Raises:
            ValueError: see `check_data`, `check_best_metric`, and [`AveragingTrainer`].
            FloatingPointError: a loss or gradient is no finite number; no parameter has been changed by it.
        """
        self.check_data()
        self.check_best_metric()
        before = self._digest()
        output = self._train(*args, **kwargs)
        if self.is_world_process_zero():
            say_kept(self.state, self.args, None if before is None else self._digest() != before)
        return output

    def _digest(self) -> str | None:
        """The digest of what learns; none where it is spread over processes."""
        in_parts = self.is_fsdp_enabled or self.is_deepspeed_enabled
        return None if in_parts else digest_of_learning(self.model)

    def _train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, of a stream of rows from its own place."""
        if self._stream is None:
            return super().train(*args, **kwargs)
        self._skips_data = not self.args.ignore_data_skip
        self.args.ignore_data_skip = True  # the stream begins at its place, where `Trainer` would read batches
        try:
            return super().train(*args, **kwargs)
        finally:
            self.args.ignore_data_skip = not self._skips_data

    def check_data(self) -> None:
        """Check the data before the first step.

        Raises:
            ValueError: rows without captions, or captions without words; fewer rows than a batch, all of them dropped.
        """
        if self.args.dataloader_drop_last and has_length(self.train_dataset):
            processes = 1 if self.accelerator.split_batches else self.args.world_size
            size = self.args.train_batch_size * processes
            if len(self.train_dataset) < size:
                raise ValueError(
                    f"dataloader_drop_last=True leaves nothing to learn from: {len(self.train_dataset)} training rows "
                    f"are no batch of {size}; give a per_device_train_batch_size that they fill, or leave it out."
                )
        datasets = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        for dataset in (self.train_dataset, *datasets.values()):
            check_captions(dataset)
        if self.args.eval_with_generation:
            for dataset in datasets.values():
                warn_of_few_images(dataset, self.args.caption_metrics)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`; batches say their rows, and starting workers draws no random numbers of dropout."""
        collator = self.data_collator
        if self._stream is not None or not isinstance(self.train_dataset, IterableDataset):  # accelerate cuts theirs
            self.data_collator = NamedRows(collator)
        try:
            if self._stream is not None:
                return with_own_chance(self._stream.loader(self._stream_loader(), self.args.device))
            return with_own_chance(super().get_train_dataloader())
        finally:
            self.data_collator = collator

    def _stream_loader(self) -> DataLoader:
        args = self.args
        return DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            prefetch_factor=args.dataloader_prefetch_factor,
            multiprocessing_context=args.dataloader_multiprocessing_context,
        )

    def _load_optimizer_and_scheduler(self, checkpoint: Any) -> None:
        """Load as `Trainer` does, and the place in the stream of training rows."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._stream is not None and checkpoint is not None and self._skips_data:
            self._stream.load(Path(checkpoint))

    def checkpoint_parts(self, checkpoint: Path) -> list[tuple[str, ...]]:
        """Files that a checkpoint must have, the place in the stream among them."""
        return [*super().checkpoint_parts(checkpoint), *([] if self._stream is None else [(self._stream.file,)])]

    def write_more(self, checkpoint: Path) -> None:
        """Write the place in the stream, too."""
        super().write_more(checkpoint)
        if self._stream is not None:
            self._stream.save(checkpoint)

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """As in `Trainer`; a loss that is no number is an error that names the rows."""
        rows, place = inputs.pop(ROWS, []), inputs.pop(STREAM, None)
        if self._stream is not None and place is not None:
            self._stream.learned(place)
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._finite.check_loss(loss, rows, self.state, self.args)
        return loss
