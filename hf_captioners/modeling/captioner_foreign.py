"""Captioners of other people: which classes of transformers can be run as they are, and their processors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)

from .captioner_adapters import base_of
from .captioner_trust import load_pretrained
from .processing_captioner import CaptionerProcessor

FOREIGN_CAPTIONERS = ("BlipForConditionalGeneration", "GitForCausalLM", "VisionEncoderDecoderModel")
"""Classes of transformers that caption a picture without a prompt, with what `load_processor` gives."""

PAIR = "vision-encoder-decoder"  # `model_type` of an image and a text model that transformers has no processor for


class NoCaptionerError(ValueError):
    """A folder or Hub name of a model that captions no pictures."""


def load_processor(model: PreTrainedModel, source: str | os.PathLike[str], trust_remote_code: bool = False) -> Any:
    """The processor that goes with a captioner; with adapters that have none beside them, that of their captioner.

    A `VisionEncoderDecoderModel` gets a [`CaptionerProcessor`] of its folder's image processor and tokenizer:
    transformers has none for it, and `AutoProcessor` gives its tokenizer alone.

    Args:
        model (`PreTrainedModel`): the captioner.
        source (`str` or `os.PathLike`): its folder or Hub name.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.

    Returns:
        `ProcessorMixin`

    Raises:
        ValueError: special tokens of such a model are missing, or the tokenizer's are not the model's.
    """
    source = _with_processor(source)
    if model.config.model_type == PAIR:
        pair = load_pair(source, trust_remote_code)
        check_special_tokens(source, model.generation_config, pair.tokenizer)
        return pair
    return load_pretrained(AutoProcessor, source, trust_remote_code)


def _with_processor(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder that has the processor: that of adapters, or of their captioner."""
    base = base_of(source)
    files = ("processor_config.json", "preprocessor_config.json")
    return source if base is None or any(Path(source, name).is_file() for name in files) else base


def load_captioner_model(source: str | os.PathLike[str], trust_remote_code: bool = False, **options: Any) -> Any:
    """The model of a captioner's folder.

    Args:
        source (`str` or `os.PathLike`): folder or Hub name.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.
        options: passed to `from_pretrained`.

    Returns:
        `PreTrainedModel`

    Raises:
        NoCaptionerError: what is there is none.
    """
    try:
        return load_pretrained(AutoModelForImageTextToText, source, trust_remote_code, **options)
    except ValueError as error:
        if "Unrecognized configuration class" not in str(error):
            raise
        kind = load_pretrained(AutoConfig, source, trust_remote_code).model_type
        raise NoCaptionerError(
            f"{source}: is a {kind}, which is no captioner; a vision model is the --backbone of a new one."
        ) from error


def load_pair(source: str | os.PathLike[str], trust_remote_code: bool = False) -> CaptionerProcessor:
    """A processor of a folder's image processor and tokenizer; see [`load_processor`]."""
    image_processor = load_pretrained(AutoImageProcessor, source, trust_remote_code, backend="pil")
    return CaptionerProcessor(image_processor, load_pretrained(AutoTokenizer, source, trust_remote_code))


def has_pair(source: Any) -> bool:
    """Tell whether `source`, a folder or Hub name, is a model without a processor of transformers: see `load_pair`."""
    if not isinstance(source, (str, os.PathLike)):
        return False
    try:
        settings = PreTrainedConfig.get_config_dict(source)[0]
    except (OSError, ValueError):  # no model, as a folder of adapters; what is wrong with it the loader will say
        return False
    return settings.get("model_type") == PAIR


def check_special_tokens(source: Any, settings: Any, tokenizer: Any) -> None:
    """Refuse a model and a tokenizer that don't say, or not alike, how captions begin, end and are filled.

    Args:
        source: name of the model, for the message.
        settings (`GenerationConfig`): of the model.
        tokenizer (`PreTrainedTokenizerBase`): of the same folder.

    Raises:
        ValueError: naming what is missing or differs.
    """
    start = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
    needed = {
        "generation_config.json: decoder_start_token_id": start,
        "generation_config.json: eos_token_id": settings.eos_token_id,
        "generation_config.json: pad_token_id": settings.pad_token_id,
        "the tokenizer: eos_token": tokenizer.eos_token_id,
        "the tokenizer: pad_token": tokenizer.pad_token_id,
    }
    missing = [what for what, value in needed.items() if value is None]
    if missing:
        raise ValueError(f"{source}: missing in {', '.join(missing)}; set them and save the model again.")
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if tokenizer.eos_token_id not in ends:
        raise ValueError(
            f"{source}: captions end with {settings.eos_token_id} in generation_config.json, but with "
            f"{tokenizer.eos_token_id} in the tokenizer; they must agree."
        )


def check_can_caption(model: PreTrainedModel, source: Any) -> None:
    """Refuse models of transformers that are not known to caption a picture alone, by the name of their class.

    Raises:
        ValueError: such a model.
    """
    name = type(model).__name__
    if type(model).__module__.startswith("transformers.models.") and name not in FOREIGN_CAPTIONERS:
        known = ", ".join(FOREIGN_CAPTIONERS)
        raise ValueError(f"{source}: a {name} is not run here; of the models of transformers these are: {known}.")
