"""Cross-entropy training of any captioner, on `transformers.Trainer`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ..data.printable import printable
from ..data.rows import training_captions
from ..families import CaptionerFamily, family_of, without_adapters
from ..modeling.captioner_base import CaptionerPreTrainedModel
from ..modeling.captioner_vocabulary import extend_vocabulary
from .collator import CaptionCollator
from .reward.forward_pass import call_through
from .rows import check_vocabulary
from .trainer import CaptionerTrainer
from .xe_config import XEConfig

logger = logging.getLogger(__name__)


class XETrainer(CaptionerTrainer):
    """Teach a captioner the captions of its pictures, word by word.

    The loss is the model's own and is divided by the number of words of the whole optimizer step, so that accumulating
    gradients over n batches equals one batch of n times the size.

    Args:
        model (`PreTrainedModel`): a captioner of any of the `families`.
        args ([`XEConfig`]): options.
        train_dataset, eval_dataset (`Dataset`): rows with `image` (or `image_features`), `captions` and `image_id`.
        processing_class ([`CaptionerProcessor`]): the captioner's processor.
        data_collator (`Callable`, *optional*): by default a [`CaptionCollator`].
        kwargs: further arguments of [`CaptionerTrainer`] and of `Trainer`, as `peft_config`.

    Raises:
        ValueError: see [`CaptionerTrainer`]; `args.extend_vocabulary` for a model with adapters or
            without a vocabulary of words.

    Example:

    ```python
    >>> from hf_captioners import XEConfig, XETrainer
    >>> trainer = XETrainer(model, XEConfig(output_dir="run"), train, processing_class=processor)  # doctest: +SKIP
    >>> trainer.train()  # doctest: +SKIP

    ```
    """

    args: XEConfig

    def __init__(
        self,
        model: CaptionerPreTrainedModel,
        args: XEConfig,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        data_collator: Callable | None = None,
        **kwargs: Any,
    ) -> None:
        if processing_class is None:
            raise ValueError("XETrainer: give the captioner's processor as processing_class.")
        if args.extend_vocabulary:
            _extend_vocabulary(model, args, train_dataset, processing_class, kwargs.get("peft_config"))
        family = family_of(model, to_train=True)
        if data_collator is None:
            data_collator = CaptionCollator(
                processing_class,
                captions_per_image=args.captions_per_image,
                eval_captions_per_image=args.eval_captions_per_image,
                seed=args.seed if args.data_seed is None else args.data_seed,
                skip_broken=args.skip_broken_images,
                vocab_size=family.vocab_size(without_adapters(model)),
                family=family,
            )
        super().__init__(model, args, train_dataset, eval_dataset, processing_class, data_collator, **kwargs)
        self.label_smoother = None  # the model's own loss smooths
        self.model_accepts_loss_kwargs = True  # whoever computes the loss divides it by num_items_in_batch

    def check_data(self) -> None:
        """Train as [`CaptionerTrainer`] does; and count the words of the training captions that are unknown.

        Raises:
            ValueError: see [`CaptionerTrainer`]; more than `args.max_unknown_words`.
        """
        super().check_data()
        args, tokenizer = self.args, self.processing_class.tokenizer
        extended = args.extend_min_count if args.extend_vocabulary else None
        check_vocabulary(tokenizer, self.train_dataset, args.max_unknown_words, extended)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The model's loss, or its family's, with `label_smoothing_factor`."""
        if not isinstance(self.family, CaptionerFamily):
            return self._family_loss(model, inputs, return_outputs, num_items_in_batch)
        if "skip_logits" in getattr(without_adapters(self.model), "loss_inputs", ()):
            inputs = {**inputs, "skip_logits": True}
        if self.args.label_smoothing_factor is not None:
            inputs = {**inputs, "smoothing": self.args.label_smoothing_factor}
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def _family_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool, num_items: torch.Tensor | int | None
    ) -> Any:
        """The loss of a captioner of transformers, through what accelerate has wrapped around it."""
        base = self.accelerator.unwrap_model(model)
        number = inputs.pop("num_items_in_batch", num_items)

        def loss_of_batch() -> Any:
            with self.accelerator.autocast():
                return self.family.caption_loss(base, inputs, number, self.args.label_smoothing_factor)

        loss = call_through(model, base, loss_of_batch)
        if num_items is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DistributedDataParallel takes the mean over the processes
        return (loss, {}) if return_outputs else loss

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """The loss of evaluation pictures, which counts by their words."""
        own, counts = self.own_rows(inputs)
        own = self._prepare_inputs(own)
        words = (own["labels"] != -100).sum()
        divisor = {"num_items_in_batch": words} if self.model_accepts_loss_kwargs else {}
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, {**own, **divisor}).detach()
        self._metrics["eval"].add_mean("loss", loss, words * counts)
        return loss, None, None


def _extend_vocabulary(model: Any, args: XEConfig, rows: Any, processor: Any, peft_config: Any) -> None:
    """Give a captioner the words of its training captions."""
    if peft_config is not None or not isinstance(model, CaptionerPreTrainedModel):
        raise ValueError(
            f"extend_vocabulary is for a captioner of this package without adapters, not for a {type(model).__name__}"
            f"{' with new adapters' if peft_config is not None else ''}: adapters do not hold new words. Extend the "
            "captioner first (hf_captioners.extend_vocabulary), save it, and train adapters of that."
        )
    words = extend_vocabulary(model, processor, training_captions(rows), args.extend_min_count)
    named = ", ".join(repr(word) for word in words[:5])
    logger.info("extend_vocabulary: %d new words%s", len(words), printable(f", such as {named}" if words else ""))
