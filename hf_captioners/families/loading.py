"""Captioners of any family, and their processors, loaded by name."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.processing_utils import ProcessorMixin
from transformers.utils import is_bitsandbytes_available

from ..modeling.captioner_adapters import base_of
from ..modeling.captioner_trust import RemoteCodeError, check_settings, load_pretrained
from ..modeling.processing_captioner import CaptionerProcessor
from . import NoCaptionerError, family_class, family_of, known_families
from .folder_parts import missing_part
from .images_alone import load_images_alone, needs_torchvision
from .prompt import ask, prompt_of_adapters

LARGEST_MISSING = 0.01  # share of weights that a folder may lack
PAIR = "vision-encoder-decoder"  # `model_type` of an image and a text model that transformers has no processor for


class WeightSizeError(ValueError):
    """Weights of other sizes than the configuration beside them says; the message names one."""


def load_processor(model: PreTrainedModel, source: str | os.PathLike[str], trust_remote_code: bool = False) -> Any:
    """The processor that goes with a captioner; with adapters that have none beside them, that of their captioner.

    An image processor and a tokenizer side by side, without a processor class, become a [`CaptionerProcessor`]: so are
    the folders of every `VisionEncoderDecoderModel`, of which `AutoProcessor` gives the tokenizer alone.

    Args:
        model (`PreTrainedModel`): the captioner.
        source (`str` or `os.PathLike`): its folder or Hub name.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.

    Returns:
        `ProcessorMixin`

    Raises:
        ValueError: special tokens of such a model are missing, or the tokenizer's are not the model's; a folder without
            image processor or tokenizer, of which transformers would make an empty one.
    """
    source = _with_processor(source)
    if Path(source).is_dir() and (lacking := missing_part(Path(source), of_processor=True)) is not None:
        raise ValueError(f"{source}: {lacking}.")
    if model.config.model_type == PAIR:
        pair = load_pair(source, trust_remote_code)
        check_special_tokens(source, model.generation_config, pair.tokenizer)
        return pair
    try:
        processor = load_pretrained(AutoProcessor, source, trust_remote_code)
    except (ValueError, ImportError):
        if not needs_torchvision(model.config):
            raise
        processor = load_images_alone(model.config, source, trust_remote_code)
    if isinstance(processor, ProcessorMixin) or type(model).__module__.split(".")[0] != "transformers":
        family_class(model).check_processor(processor, source)
        return processor
    return load_pair(source, trust_remote_code)


def _with_processor(source: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """The folder that has the processor: that of adapters, or of their captioner."""
    base = base_of(source)
    files = ("processor_config.json", "preprocessor_config.json")
    return source if base is None or any(Path(source, name).is_file() for name in files) else base


def load_captioner_model(source: str | os.PathLike[str], trust_remote_code: bool = False, **options: Any) -> Any:
    """The model of a captioner's folder; adapters come with the prompt that they were taught with.

    Args:
        source (`str` or `os.PathLike`): folder or Hub name.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.
        options: passed to `from_pretrained`.

    Returns:
        `PreTrainedModel`

    Raises:
        NoCaptionerError: what is there is none.
        WeightSizeError: its weights have other sizes than its configuration says.
    """
    try:
        if base_of(source) is not None:
            model = load_pretrained(AutoModelForImageTextToText, source, trust_remote_code, **options)
        else:
            reporting = {"ignore_mismatched_sizes": True, **options, "output_loading_info": True}
            model, report = load_pretrained(AutoModelForImageTextToText, source, trust_remote_code, **reporting)
            if "ignore_mismatched_sizes" not in options:
                _check_sizes(report["mismatched_keys"], source)
            _check_whole(model, report["missing_keys"], source)
    except (RemoteCodeError, NoCaptionerError, WeightSizeError):
        raise
    except ValueError as error:
        kind = model_type_of(source)
        if kind is not None and kind not in CONFIG_MAPPING:
            unknown = f"is a {kind!r}, a model that transformers {transformers.__version__} does not know"
            raise NoCaptionerError(f"{source}: {unknown}; {known_families()}") from error
        if "Unrecognized configuration class" not in str(error):
            raise
        kind = load_pretrained(AutoConfig, source, trust_remote_code).model_type
        raise NoCaptionerError(f"{source}: is a {kind}, {_told_apart(kind)}; {known_families()}") from error
    if "peft_config" in vars(model):
        ask(model, prompt_of_adapters(source))
    return model


def _check_sizes(mismatched: Collection[tuple[str, torch.Size, torch.Size]], source: Any) -> None:
    """Refuse weights that are not of the sizes which the configuration says."""
    if mismatched:
        name, saved, wanted = min(mismatched)
        raise WeightSizeError(
            f"{source}: {len(mismatched)} weights have other sizes than config.json says, such as {name}: "
            f"{tuple(saved)}, where {tuple(wanted)} is expected"
        )


def _check_whole(model: PreTrainedModel, missing: Collection[str], source: Any) -> None:
    """Refuse one of transformers' captioners that was made of the weights of another model, whose captions are none.

    A pooler, which no caption needs, may be missing; so it is in many folders.
    """
    own, saved = type(model), model.config.architectures or []
    if own.__module__.split(".")[0] != "transformers":
        return
    others = [name for name in saved if name in dir(transformers)]
    if others and own.__name__ not in others:
        raise NoCaptionerError(f"{source}: is a {others[0]}, which writes no captions of images; {known_families()}")
    sizes = {name: one.numel() for name, one in model.named_parameters() if "pooler" not in name}
    made_up = [name for name in sizes if name in missing]
    if sum(sizes[name] for name in made_up) > LARGEST_MISSING * sum(sizes.values()):
        raise NoCaptionerError(
            f"{source}: has no weights for {len(made_up)} parameters of a {own.__name__}, such as {made_up[0]}; is it "
            f"another model? {known_families()}"
        )


def _told_apart(model_type: str) -> str:
    """Tell what models of a type are of which transformers has no class that reads images and writes."""
    writes = (*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)
    if model_type in writes:
        return "a text model, which sees no images"
    return "which is no captioner; a vision model is the --backbone of a new one"


def load_pair(source: str | os.PathLike[str], trust_remote_code: bool = False) -> CaptionerProcessor:
    """A processor of a folder's image processor and tokenizer; see [`load_processor`]."""
    image_processor = load_pretrained(AutoImageProcessor, source, trust_remote_code, backend="pil")
    return CaptionerProcessor(image_processor, load_pretrained(AutoTokenizer, source, trust_remote_code))


def model_type_of(source: Any) -> str | None:
    """The `model_type` of a folder or Hub name; `None` for adapters, for a model, and where there is none."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    try:
        check_settings(source)
        return PreTrainedConfig.get_config_dict(source)[0].get("model_type")
    except (OSError, ValueError):  # what is wrong with it the loader will say
        return None


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
    end = tokenizer.sep_token_id if tokenizer.eos_token_id is None else tokenizer.eos_token_id  # as BERT's have it
    needed = {
        "generation_config.json: decoder_start_token_id": start,
        "generation_config.json: eos_token_id": settings.eos_token_id,
        "generation_config.json: pad_token_id": settings.pad_token_id,
        "the tokenizer: eos_token": end,
        "the tokenizer: pad_token": tokenizer.pad_token_id,
    }
    missing = [what for what, value in needed.items() if value is None]
    if missing:
        raise ValueError(f"{source}: missing in {', '.join(missing)}; set them and save the model again.")
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    if end not in ends:
        raise ValueError(
            f"{source}: captions end with {settings.eos_token_id} in generation_config.json, but with {end} in the "
            "tokenizer; they must agree."
        )


def check_can_caption(model: PreTrainedModel, source: Any) -> None:
    """Refuse models that are of no family, by the name of their class and what they are.

    Raises:
        NoCaptionerError: such a model.
        ValueError: one that does not say how its captions end.
    """
    try:
        family_of(model)
    except NoCaptionerError as error:
        raise NoCaptionerError(f"{source}: {error}") from error


def quantized(load_in_4bit: bool, load_in_8bit: bool, dtype: str = "auto") -> dict[str, Any]:
    """Options of `from_pretrained` that load the linear layers in 4 or 8 bits, through bitsandbytes.

    Args:
        load_in_4bit, load_in_8bit (`bool`): one of them, or none.
        dtype (`str`, defaults to `"auto"`): what 4 bits are computed in; `"auto"` is float32.

    Returns:
        `dict[str, Any]`: empty for none.

    Raises:
        ValueError: both.
        ImportError: bitsandbytes is not installed.
    """
    if load_in_4bit and load_in_8bit:
        raise ValueError("load_in_4bit and load_in_8bit exclude each other; give one of them.")
    if not (load_in_4bit or load_in_8bit):
        return {}
    if not is_bitsandbytes_available():
        raise ImportError("load_in_4bit and load_in_8bit need bitsandbytes: pip install bitsandbytes")
    compute = None if dtype == "auto" else dtype
    config = BitsAndBytesConfig(load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit, bnb_4bit_compute_dtype=compute)
    return {"quantization_config": config}
