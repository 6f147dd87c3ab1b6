"""The common part of the trainers: data, optimizer, schedule, what learns, and evaluation by generation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.data_loader import DataLoaderAdapter
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import has_length

from ..data.rows import undecoded
from ..hub.card import write_card
from ..inference.captioning import Captioner
from ..metrics.suite import CaptionMetrics
from ..modeling.captioner_base import CaptionerPreTrainedModel
from .arguments import CaptionerTrainingArguments
from .callbacks import EpochCallback, GradientClampCallback
from .checks import check_hub_rights, warn_of_few_images
from .collator import ImageCollator
from .moving_average import AveragingTrainer
from .policy import policy_of, without_adapters
from .rows import ROWS, NamedRows, check_captions, check_feature_size
from .schedules import SCHEDULES, RectifiedAdam, radam_options
from .summary import card_facts
from .watch.finite import FiniteCallback
from .watch.running_metrics import RunningMetrics

logger = logging.getLogger(__name__)

CaptionScorer = Callable[[list[str], list[list[str]]], dict[str, float]]


class CaptionerTrainer(AveragingTrainer):
    """A `Trainer` of captioners; [`XETrainer`], [`SCSTTrainer`] and [`DiCOTrainer`] add what is learned.

    Args:
        model ([`CaptionerPreTrainedModel`] or `VisionEncoderDecoderModel`): the captioner.
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

    Raises:
        ValueError: no `processing_class`; a backbone to train that the model has not, or that has adapters; features
            of another width than the model's; captions to generate that are longer than the model's longest.
    """

    model: Any
    args: CaptionerTrainingArguments
    train_dataset: Any
    eval_dataset: Any
    processing_class: Any

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
        self.policy = policy_of(model)
        if args.eval_with_generation:
            self.policy.check_length(model, "generation_max_length", args.generation_max_length)
        _check_adapters(model, peft_config, args.train_backbone)
        self.policy.freeze_backbone(model, args.train_backbone)
        for dataset in (train_dataset, *(eval_dataset.values() if isinstance(eval_dataset, dict) else [eval_dataset])):
            check_feature_size(without_adapters(model), dataset)
        if peft_config is not None:
            model = _with_adapters(model, peft_config)
        elif train_dataset is not None and not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                f"no parameter of this {type(model).__name__} learns: all of them have requires_grad=False."
            )
        if args.process_index == 0:
            check_hub_rights(args)
        super().__init__(
            model=model,
            args=args,
            train_dataset=_closed(train_dataset),
            eval_dataset=_closed(eval_dataset),
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        self.compute_caption_metrics = compute_caption_metrics or _DefaultMetrics(args.caption_metrics)
        self.card_fields: dict[str, Any] = {}
        self._metrics = {"train": RunningMetrics(), "eval": RunningMetrics()}
        if isinstance(data_collator, ImageCollator):
            self.add_callback(EpochCallback(data_collator))
        self._finite = FiniteCallback(gradients=self.accelerator.scaler is None)
        self.add_callback(self._finite)
        if args.max_grad_value is not None:
            self.add_callback(GradientClampCallback(args.max_grad_value))
        if args.moving_average_decay is not None:
            self.keep_average(args.moving_average_decay)

    @property
    def signature(self) -> str | None:
        """Signature of the last evaluation by generation, where the metrics are those of `caption_metrics`."""
        scorer = self.compute_caption_metrics
        return scorer.signature if isinstance(scorer, _DefaultMetrics) else None

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
            ValueError: see `check_data`, and [`AveragingTrainer`].
            FloatingPointError: a loss or gradient is no finite number; no parameter has been changed by it.
        """
        self.check_data()
        return super().train(*args, **kwargs)

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
        if not isinstance(self.train_dataset, IterableDataset):  # whose batches accelerate cuts, as tensors
            self.data_collator = NamedRows(collator)
        try:
            return _with_own_chance(super().get_train_dataloader())
        finally:
            self.data_collator = collator

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All evaluation pictures: `dataloader_drop_last` is for training."""
        with self._dropping_nothing():
            return _with_own_chance(super().get_eval_dataloader(_closed(eval_dataset)))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As [`get_eval_dataloader`]."""
        with self._dropping_nothing():
            return _with_own_chance(super().get_test_dataloader(_closed(test_dataset)))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """As in `Trainer`; a loss that is no number is an error that names the rows."""
        rows = inputs.pop(ROWS, [])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._finite.check_loss(loss, rows, self.state, self.args)
        return loss

    @contextmanager
    def _dropping_nothing(self) -> Iterator[None]:
        drop, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = drop

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """The collator chooses nothing at random and leaves no picture out; the model has its average."""
        collator = self.data_collator
        with self.averaged():
            if not isinstance(collator, ImageCollator):
                yield
                return
            was_training, collator.training = collator.training, False
            try:
                yield
            finally:
                collator.training = was_training

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: Any = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Evaluate the loss and, with `eval_with_generation`, the captions of evaluation pictures and what they are
        worth, in time for callbacks such as early stopping to see it.

        Args: see `Trainer.evaluation_loop`.

        Returns:
            `EvalLoopOutput`: with `metrics` such as `eval_loss`, a mean over all words of all pictures whatever the
            batches and processes, and `eval_cider_d` on its own scale of 0 to 10.
        """
        loop = super().evaluation_loop
        with self._evaluating():
            output = loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
            metrics = self._metrics["eval"].pop(self.accelerator)
            if self.args.eval_with_generation:
                metrics |= self.score_captions(self.generate_captions(dataloader.dataset), dataloader.dataset)
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def own_rows(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """An evaluation batch without the rows that accelerate repeats so that all processes have as many.

        Args:
            inputs (`dict[str, Any]`): of the collator: tensors with a whole number of rows per picture, and `columns`.

        Returns:
            `tuple[dict[str, Any], bool]`: the batch, and whether it counts. If all its pictures are repeated, the first
            is kept, since all processes must run the model equally often, and does not count.
        """
        images = self.policy.image_inputs(self.accelerator.unwrap_model(self.model), inputs)
        size = len(next(iter(images.values())))
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return inputs, True
        own = min(state.remainder - size * self.accelerator.process_index, size)
        return _first_images(inputs, max(own, 1), size), own > 0

    def score_captions(self, captions: list[str], dataset: Any) -> dict[str, float]:
        """Score generated captions of a data set's pictures, by name.

        Args:
            captions (`list[str]`): of the rows, in their order.
            dataset (`Dataset`): rows with `captions`.

        Returns:
            `dict[str, float]`
        """
        references = [list(dataset[index]["captions"]) for index in range(len(captions))]
        for caption, reference in list(zip(captions, references, strict=True))[: self.args.num_logged_captions]:
            logger.info("generated: %s | reference: %s", caption, reference[0])
        scores = {"caption_words": sum(len(caption.split()) for caption in captions) / len(captions)}
        return scores | self.compute_caption_metrics(captions, references)

    @torch.inference_mode()
    def generate_captions(self, dataset: Any, options: Mapping[str, Any] | None = None) -> list[str]:
        """The captions of a data set's pictures, in its order, on every process.

        Args:
            dataset (`Dataset`): rows as for training.
            options (`Mapping[str, Any]`, *optional*): of `generate`; by default those of evaluation by generation.

        Returns:
            `list[str]`
        """
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()
        if options is None:
            options = self.policy.evaluation_options(self.args)
        captioner = Captioner(model, self.processing_class, options)
        captions: list[str] = []
        with self._evaluating():
            for batch in self.get_eval_dataloader(dataset):
                images = self._prepare_inputs(self.policy.image_inputs(model, batch))
                written = captioner.caption_inputs(images, len(next(iter(images.values()))))
                own = [caption for (caption,) in written]
                captions.extend(self.accelerator.gather_for_metrics(own, use_gather_object=True))
        model.train(was_training)
        return captions


def _with_own_chance(loader: DataLoader) -> DataLoader:
    """A loader that seeds its workers from a generator of its own.

    By default torch draws the seed from the generator that dropout uses, when workers are started: in every epoch, but
    persistent ones only once, and once more after resuming.
    """
    inner = loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader
    if inner.generator is None:
        inner.generator = torch.Generator()
    return loader


def _first_images(values: Any, number: int, size: int) -> Any:
    """The first `number` of the `size` pictures of a batch, with all their rows."""
    if isinstance(values, dict):
        return {name: _first_images(value, number, size) for name, value in values.items()}
    return values[: len(values) // size * number]


class _DefaultMetrics:
    """The metrics of `caption_metrics`, which keep the signature of their last evaluation."""

    def __init__(self, names: list[str]) -> None:
        self.metrics = CaptionMetrics(names)
        self.signature: str | None = None

    def __call__(self, captions: list[str], references: list[list[str]]) -> dict[str, float]:
        evaluation = self.metrics(captions, references)
        self.signature = evaluation.signature_text
        return evaluation.corpus


def _closed(dataset: Any) -> Any:
    """The rows with closed pictures, which the collator opens."""
    from datasets import Dataset

    return undecoded(dataset) if isinstance(dataset, Dataset) else dataset


def _with_adapters(model: PreTrainedModel, peft_config: Any) -> Any:
    from peft import get_peft_model

    if peft_config.target_modules is None and isinstance(model, CaptionerPreTrainedModel):
        peft_config.target_modules = model.LORA_TARGET_MODULES
    return get_peft_model(model, peft_config)


def _check_adapters(model: Any, peft_config: Any, train_backbone: str) -> None:
    """Refuse models whose adapters would be lost or would not learn, and a backbone that would not be saved."""
    if train_backbone != "none" and (peft_config is not None or without_adapters(model) is not model):
        raise ValueError(
            f"train_backbone={train_backbone!r} and adapters (lora_rank, peft_config) exclude each other: adapters are "
            "saved alone, and the backbone would not be; leave train_backbone out, or train the model itself. Adapters "
            "learn in the backbone too where lora_target_modules names its layers."
        )
    if without_adapters(model) is not model:
        if peft_config is not None:
            raise ValueError("peft_config: the model is a PeftModel and has adapters already; leave peft_config out.")
    elif "peft_config" in vars(model):  # put there by transformers' from_pretrained
        raise ValueError(
            "the model has adapters that from_pretrained put into it, frozen; open its folder with "
            "peft.PeftModel.from_pretrained(base_model, folder, is_trainable=True) to train them on."
        )
