"""Evaluation of a captioner that is being trained: its loss, and its captions with their scores."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from ..families import CaptionFamily, without_adapters
from ..inference.captioning import Captioner
from ..inference.decoding_settings import decoding_settings
from ..metrics.suite import CaptionMetrics, Evaluation
from .arguments import CaptionerTrainingArguments
from .collator import ImageCollator
from .loading import closed, with_own_chance
from .moving_average import AveragingTrainer
from .watch.running_metrics import RunningMetrics

logger = logging.getLogger(__name__)

CaptionScorer = Callable[[list[str], list[list[str]]], dict[str, float]]


class DefaultMetrics:
    """The metrics of `caption_metrics`, which keep the signature of their last evaluation."""

    def __init__(self, names: list[str]) -> None:
        self.metrics = CaptionMetrics(names)
        self.evaluation: Evaluation | None = None

    def __call__(self, captions: list[str], references: list[list[str]]) -> dict[str, float]:
        self.evaluation = self.metrics(captions, references)
        return self.evaluation.corpus


class EvaluatingTrainer(AveragingTrainer):
    """Evaluation of [`CaptionerTrainer`], which says what its attributes are."""

    args: CaptionerTrainingArguments
    model: Any
    eval_dataset: Any
    family: CaptionFamily
    processing_class: Any
    compute_caption_metrics: CaptionScorer
    _metrics: dict[str, RunningMetrics]

    @property
    def signature(self) -> str | None:
        """Signature of the last evaluation by generation, where the metrics are those of `caption_metrics`."""
        scorer = self.compute_caption_metrics
        evaluation = scorer.evaluation if isinstance(scorer, DefaultMetrics) else None
        if evaluation is None:
            return None
        model = self.accelerator.unwrap_model(self.model)
        settings = decoding_settings(without_adapters(model), **self.family.evaluation_options(self.args))
        return evaluation.of_captions(settings).signature_text

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """All evaluation pictures: `dataloader_drop_last` is for training."""
        with self._dropping_nothing():
            return with_own_chance(super().get_eval_dataloader(closed(eval_dataset)))

    def get_test_dataloader(self, test_dataset: Any) -> DataLoader:
        """As [`get_eval_dataloader`]."""
        with self._dropping_nothing():
            return with_own_chance(super().get_test_dataloader(closed(test_dataset)))

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
                captions = self.generate_captions(dataloader.dataset)
                self._log_captions(captions, dataloader.dataset)
                metrics |= self.score_captions(captions, dataloader.dataset)
        named = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **named})

    def check_best_metric(self) -> None:
        """Check, by a batch of evaluation pictures, that evaluation will have what `metric_for_best_model` names.

        Their references are scored in the place of captions. Nothing is logged, and the training goes on as if this had
        not been; reward functions are called for these pictures. The numbers of one's own
        `compute_caption_metrics` are not known before, and not checked.

        Raises:
            ValueError: evaluation will not have it; the message has the names.
        """
        wanted, datasets = (self.args.metric_for_best_model or "loss").removeprefix("eval_"), self.eval_dataset
        own = self.args.eval_with_generation and not isinstance(self.compute_caption_metrics, DefaultMetrics)
        if self.args.eval_strategy == "no" and not self.args.eval_on_start:
            return  # nothing reads it
        if datasets is None or wanted == "loss" or own or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return
        names = []
        for name, dataset in datasets.items() if isinstance(datasets, dict) else [("", datasets)]:
            prefix = f"{name}_" if name else ""
            names += [prefix + metric for metric in self._metrics_of_a_batch(dataset)]
        if wanted not in names:
            raise ValueError(
                f"metric_for_best_model={self.args.metric_for_best_model!r}: evaluation has {', '.join(sorted(names))}."
            )

    def _metrics_of_a_batch(self, dataset: Any) -> list[str]:
        """Names of what an evaluation of the first rows gives."""
        rows, training = list(islice(iter(dataset), self.args.eval_batch_size)), self.model.training
        device = self.args.device
        self.model.eval()
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self._evaluating():
            self.prediction_step(self.model, self.data_collator(rows), prediction_loss_only=True)
            metrics = self._metrics["eval"].pop(self.accelerator)
            if self.args.eval_with_generation:
                metrics |= self.score_captions([row["captions"][0] for row in rows], rows)
        self.model.train(training)
        return list(metrics)

    def own_rows(self, inputs: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """An evaluation batch without the rows that accelerate repeats so that all processes have as many.

        Args:
            inputs (`dict[str, Any]`): of the collator: tensors with a whole number of rows per picture, and `columns`.

        Returns:
            `tuple[dict[str, Any], bool]`: the batch, and whether it counts. If all its pictures are repeated, the first
            is kept, since all processes must run the model equally often, and does not count.
        """
        model = without_adapters(self.accelerator.unwrap_model(self.model))
        size = self.family.count_images(self.family.image_inputs(model, inputs))
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return inputs, True
        own = min(state.remainder - size * self.accelerator.process_index, size)
        return self.family.first_images(inputs, max(own, 1), size), own > 0

    def _log_captions(self, captions: list[str], dataset: Any) -> None:
        for index, caption in enumerate(captions[: self.args.num_logged_captions]):
            logger.info("generated: %s | reference: %s", caption, dataset[index]["captions"][0])

    def score_captions(self, captions: list[str], dataset: Any) -> dict[str, float]:
        """Score generated captions of a data set's pictures, by name.

        Args:
            captions (`list[str]`): of the rows, in their order.
            dataset (`Dataset`): rows with `captions`.

        Returns:
            `dict[str, float]`
        """
        references = [list(dataset[index]["captions"]) for index in range(len(captions))]
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
            options = self.family.evaluation_options(self.args)
        captioner = Captioner(model, self.processing_class, options, self.family)
        captions: list[str] = []
        with self._evaluating():
            for batch in self.get_eval_dataloader(dataset):
                images = self._prepare_inputs(self.family.image_inputs(without_adapters(model), batch))
                written = captioner.caption_inputs(images, self.family.count_images(images))
                own = [caption for (caption,) in written]
                captions.extend(self.accelerator.gather_for_metrics(own, use_gather_object=True))
        model.train(was_training)
        return captions
