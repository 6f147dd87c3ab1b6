"""The contract of a family: all that inference, evaluation and the trainers ask of a captioner of any architecture.

A family holds no model, only what it needs of one to prepare and decode: its special tokens, its prompt. Its methods
take the model itself, not what DistributedDataParallel makes of it, with adapters of peft around it or without.

Captions are of one layout for all: `sequences` have a start token, words, the end token and padding; `labels` the same
without the start token and with -100 for padding. A prompt is no part of either; `max_length` counts the start token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from transformers import PreTrainedModel
from typing_extensions import Self

from ..modeling.processing_captioner import image_columns, prepare_rows

CAPTIONS = {"labels", "decoder_input_ids", "columns", "rows"}  # of a batch, beside the images


class SpecialTokens(NamedTuple):
    """Ids around the words of a caption.

    Args:
        eos_token_id (`int` or `list[int]`): what ends a caption.
        pad_token_id (`int`): what stands behind the end.
        start_token_id (`int`, *optional*): what stands before the first word.
    """

    eos_token_id: Any = None
    pad_token_id: Any = None
    start_token_id: Any = None

    @property
    def ends(self) -> list[int]:
        """All tokens that end a caption."""
        return self.eos_token_id if isinstance(self.eos_token_id, list) else [self.eos_token_id]

    @property
    def end(self) -> int:
        """The one end token that is taught."""
        return self.ends[0]


class CaptionFamily:
    """Way in which captioners of one kind are used.

    Args:
        tokens ([`SpecialTokens`], *optional*): of the model; images can be prepared without.
        prompt (`str`, *optional*): what the model is asked; by default the family's `default_prompt`.
        known_ids (`int`, *optional*): words that the model has vectors of, to refuse a prompt with others.
        image_token_id (`int`, *optional*): the one that stands for images, which may be beyond.

    Attributes:
        models (`tuple[str, ...]`): names of the classes that are of this family, their subclasses included.
        title (`str`): the family in words, for messages.
        takes_prompt (`bool`): whether there can be a prompt.
        default_prompt (`str`, *optional*): the prompt of a model that was given none.
        keeps_features (`bool`): whether `run_backbone` gives `image_features`, a row per image, that can be kept.
    """

    models: ClassVar[tuple[str, ...]] = ()
    title: ClassVar[str] = ""
    takes_prompt: ClassVar[bool] = False
    default_prompt: ClassVar[str | None] = None
    keeps_features: ClassVar[bool] = True

    def __init__(
        self,
        tokens: SpecialTokens | None = None,
        prompt: str | None = None,
        known_ids: int | None = None,
        image_token_id: int | None = None,
    ) -> None:
        self.tokens = SpecialTokens() if tokens is None else tokens
        self.prompt = self.default_prompt if prompt is None else prompt
        self.known_ids, self.image_token_id = known_ids, image_token_id

    @classmethod
    def fits(cls, model: Any) -> bool:
        """Tell whether a model is of this family, without loading the classes of others."""
        return any(base.__name__ in cls.models for base in type(model).__mro__)

    @classmethod
    def of(cls, model: Any, prompt: str | None = None) -> Self:
        """The family of a model.

        Args:
            model (`PreTrainedModel`): the model.
            prompt (`str`, *optional*): what it is asked; by default `model.config.captioning_prompt`, if that is set.

        Raises:
            ValueError: special tokens that the model does not say; a prompt that it does not take.
        """
        prompt = vars(model.config).get("captioning_prompt") if prompt is None else prompt
        cls.check_prompt(model, prompt)
        vectors = model.get_input_embeddings() if cls.takes_prompt else None
        known = getattr(vectors, "num_embeddings", None)
        return cls(cls.special_tokens(model), prompt, known, getattr(model.config, "image_token_id", None))

    @classmethod
    def check_prompt(cls, model: Any, prompt: str | None) -> None:
        """Raise a `ValueError` if a model is given a prompt that it does not take; `None` is that of the family."""
        if prompt is not None and not cls.takes_prompt:
            raise ValueError(f"prompt {prompt!r}: a {type(model).__name__} is asked nothing; leave it out.")

    @classmethod
    def check_processor(cls, processor: Any, source: Any) -> None:
        """Raise a `ValueError` if a processor, of a folder or Hub name, lacks what the family needs."""

    @classmethod
    def special_tokens(cls, model: Any) -> SpecialTokens:
        """Ids around the words of the model's captions.

        Raises:
            ValueError: naming what `generation_config` does not say.
        """
        config = model.generation_config
        for name in ("eos_token_id", "pad_token_id"):
            if vars(config)[name] is None:
                raise ValueError(f"model.generation_config.{name} is None; set it to the tokenizer's {name}.")
        start = vars(config).get("decoder_start_token_id")
        return SpecialTokens(config.eos_token_id, config.pad_token_id, config.bos_token_id if start is None else start)

    # -- images ------------------------------------------------------------------------------------------------------

    def image_columns(self, processor: Any) -> Mapping[str, str]:
        """Columns of a row that make an image, and the arguments of the processor that take them."""
        return image_columns(processor)

    def prepare_rows(self, processor: Any, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        """Inputs of rows with images, of the model's image and, where it has one, of its prompt.

        Args:
            processor (`ProcessorMixin`): the captioner's.
            rows (`Sequence[Mapping]`): see [`CaptionerProcessor.prepare_rows`].
            kwargs: further arguments of the processor.

        Returns:
            `BatchFeature`

        Raises:
            ValueError, ImageError: see there; a prompt with words that the model does not know.
        """
        inputs = prepare_rows(processor, rows, **kwargs)
        self.check_ids(processor, inputs)
        return inputs

    def check_ids(self, processor: Any, inputs: Mapping[str, Any]) -> None:
        """Raise a `ValueError` if the prompt among inputs has words that the model has no vectors of."""
        if self.known_ids is None or "input_ids" not in inputs:
            return
        ids = set(torch.as_tensor(inputs["input_ids"]).flatten().tolist()) - {self.image_token_id}
        if ids and max(ids) >= self.known_ids:
            word = processor.tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"prompt {self.prompt!r:.80}: {word!r} has the id {max(ids)}, and the model knows {self.known_ids} "
                "words, counted from 0; it needs its own tokenizer, or vectors for more (resize_token_embeddings)."
            )

    def training_batch(
        self, processor: Any, rows: Sequence[Mapping[str, Any]], captions: Sequence[str], **extras: Any
    ) -> dict[str, Any]:
        """Inputs of rows, and `labels` of captions: words and end token, then -100; no prompt, no prefix.

        Args:
            processor (`ProcessorMixin`): the captioner's.
            rows (`Sequence[Mapping]`): B images.
            captions (`Sequence[str]`): N of them, those of an image side by side.
            extras: of [`CaptionerProcessor.training_extras`].

        Returns:
            `dict[str, Any]`
        """
        return dict(self.prepare_rows(processor, rows, text_target=list(captions), **extras))

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the inputs that make an image, and of those that only the loss reads."""
        return ("pixel_values",), ()

    def image_inputs(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a batch that makes its images.

        Args:
            model (`PreTrainedModel`): the model.
            batch (`Mapping[str, Any]`): of a collator.

        Returns:
            `dict[str, Any]`: arguments of `run_backbone` and `encode`.

        Raises:
            ValueError: the batch has something that the model does not read.
        """
        images, others = self.input_names(model)
        unknown = sorted(batch.keys() - {*images, *others, *CAPTIONS})
        if unknown:
            raise ValueError(
                f"a {type(model).__name__} does not read {', '.join(unknown)} of a batch; an image of it is made of "
                f"{', '.join(images)}."
            )
        return {name: batch[name] for name in images if name in batch}

    def count_images(self, image_inputs: Mapping[str, Any]) -> int:
        """Number of images that inputs are of."""
        return len(next(iter(image_inputs.values())))

    def first_images(self, batch: Mapping[str, Any], number: int, size: int) -> dict[str, Any]:
        """The first `number` of the `size` images of a batch, with all their rows."""
        return _first_rows(batch, number, size)

    # -- what learns -------------------------------------------------------------------------------------------------

    def backbone(self, model: Any) -> PreTrainedModel | None:
        """The vision tower, if the model has one."""
        return model.backbone

    def freeze_backbone(self, model: Any, trainable: str) -> None:
        """Choose what of the backbone learns: `"none"`, `"all"` or an expression, searched in parameter names."""
        raise NotImplementedError(f"{type(self).__name__} must define freeze_backbone.")

    def check_length(self, model: Any, name: str, length: int) -> None:
        """Raise a `ValueError` if captions of `length` tokens, start token included, are too long for the model."""

    def check_candidates(self, model: Any, args: Any) -> None:
        """Refuse options of candidates that the model's way of writing does not have.

        Args:
            model (`PreTrainedModel`): the model.
            args ([`RewardTrainingConfig`]): options.

        Raises:
            ValueError: naming the option.
        """

    def evaluation_options(self, args: Any) -> dict[str, Any]:
        """Options of `generate` for the captions that evaluation is of.

        Args:
            args ([`CaptionerTrainingArguments`]): options of the trainer.

        Returns:
            `dict[str, Any]`
        """
        return {"max_length": args.generation_max_length, "num_beams": args.generation_num_beams}

    def vocab_size(self, model: Any) -> int:
        """Words that the model knows."""
        return int(model.get_output_embeddings().weight.shape[0])

    # -- encoding, writing, scoring ----------------------------------------------------------------------------------

    def run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        """Image inputs with what a backbone that does not learn makes of them, so that it runs once.

        Args:
            model (`PreTrainedModel`): the model.
            image_inputs (`dict[str, Any]`): of a batch.

        Returns:
            `dict[str, Any]`: arguments for `encode`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define run_backbone.")

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> Any:
        """Encoder outputs for any number of captions of the images, with gradient where something learns."""
        raise NotImplementedError(f"{type(self).__name__} must define encode.")

    def start_length(self, encoder_outputs: Any) -> int:
        """Tokens that stand before the first word while `generate` writes: the start token, or a prompt."""
        return 1

    def generate(self, model: Any, encoder_outputs: Any, **options: Any) -> torch.Tensor:
        """Write captions of encoded images, which stay as they are.

        Args:
            model (`PreTrainedModel`): the model.
            encoder_outputs: of `encode`, B images.
            options: of `generate`.

        Returns:
            `torch.LongTensor` of shape `(B * num_return_sequences, T)`: start token first, without a prompt.
        """
        raise NotImplementedError(f"{type(self).__name__} must define generate.")

    def caption(self, model: Any, image_inputs: Mapping[str, Any], **options: Any) -> torch.Tensor:
        """Encode images and write their captions; see `generate`."""
        return self.generate(model, self.encode(model, dict(image_inputs)), **options)

    def decode(self, processor: Any, sequences: torch.Tensor) -> list[str]:
        """Captions as clean text.

        Args:
            processor (`ProcessorMixin`): the captioner's.
            sequences (`torch.LongTensor` of shape `(N, T)`): of `generate`.

        Returns:
            `list[str]`: without special tokens, prompt and spaces at the ends.
        """
        return [text.strip() for text in processor.batch_decode(sequences, skip_special_tokens=True)]

    def log_probs(
        self, model: Any, sequences: torch.Tensor, encoder_outputs: Any, **scoring_inputs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities of the tokens of captions, with gradient, and the entropies they were drawn from.

        Args:
            model (`PreTrainedModel`): the model.
            sequences (`torch.LongTensor` of shape `(N, T)`): captions, start token first; N is a multiple of B.
            encoder_outputs: of `encode`, B images.
            scoring_inputs: see [`Candidates`].

        Returns:
            `tuple[torch.Tensor, torch.Tensor]`: both `(N, T - 1)`, in nats, 0 after the end token.
        """
        raise NotImplementedError(f"{type(self).__name__} must define log_probs.")

    def caption_loss(
        self, model: Any, batch: Mapping[str, Any], num_items: torch.Tensor | int | None, smoothing: float | None
    ) -> torch.Tensor | None:
        """The cross-entropy of a batch's captions; `None` where the model's own `forward` has it.

        Args:
            model (`PreTrainedModel`): the model.
            batch (`Mapping[str, Any]`): of `training_batch`.
            num_items (`int` or `torch.Tensor`, *optional*): divisor of the sum; by default the number of targets.
            smoothing (`float`, *optional*): mass of other words; by default the model's own.

        Returns:
            `torch.Tensor` of shape `()`, *optional*
        """
        return None


def _first_rows(values: Any, number: int, size: int) -> Any:
    if isinstance(values, Mapping):
        return {name: _first_rows(value, number, size) for name, value in values.items()}
    return values[: len(values) // size * number]
