"""A captioner, or an ensemble of several, loaded by name with an error that says what is missing."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers.utils import logging

from ..export.manifest import is_exported, split_name
from ..families import NoCaptionerError
from ..families.folder_parts import missing_part
from ..families.loading import WeightSizeError, check_can_caption, load_captioner_model, load_processor, quantized
from ..families.prompt import ask
from ..modeling.captioner_adapters import AdapterError
from ..modeling.captioner_hub import HubOutOfReachError
from ..modeling.captioner_trust import RemoteCodeError
from .device import choose_device
from .ensemble import CaptionerEnsemble

STARTER = "starter"  # folder of the repository, with a captioner to start from
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


class CaptionerLoadError(ValueError):
    """A captioner that cannot be loaded, or several that are no ensemble; the message says which and why."""


def load_captioners(
    names: Sequence[str],
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    prompt: str | None = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
) -> tuple[Any, Any]:
    """Load a captioner, or several of one kind as an ensemble, and the processor.

    Args:
        names (`Sequence[str]`): folders or Hub names, or that of an exported captioner, such as
            `"runs/mine/onnx"` or `"me/mine/onnx"`.
        device (`str`, defaults to `"auto"`): see [`choose_device`].
        dtype (`str`, defaults to `"auto"`): such as `"bfloat16"`; `"auto"` is that of the weights.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with them may run.
        prompt (`str`, *optional*): what the captioner is asked, where its family takes a prompt.
        load_in_4bit, load_in_8bit (`bool`, defaults to `False`): whether its linear layers are quantised, by
            bitsandbytes.

    Returns:
        `tuple[PreTrainedModel, ProcessorMixin]`: the captioner on the device, in evaluation mode, and its processor.

    Raises:
        ValueError: there is no such device here; a prompt for a captioner that is asked nothing.
        ImportError: bitsandbytes is needed, and not installed.
        CaptionerLoadError: no such folder or model, or one that brings code which may not run; captioners that
            differ in kind, words, precision or in how images are prepared.
    """
    options = quantized(load_in_4bit, load_in_8bit, dtype)
    loaded = [_load(name, device, dtype, trust_remote_code, options) for name in names]
    for model, _ in loaded:
        ask(model, prompt)
    first, processor = loaded[0]
    if len(loaded) == 1:
        return first, processor
    exported = [name for name in names if is_exported(name)]
    if exported:
        raise CaptionerLoadError(f"{exported[0]}: an exported captioner captions alone, in no ensemble")
    try:
        ensemble = CaptionerEnsemble([model for model, _ in loaded])
    except ValueError as error:
        raise CaptionerLoadError(f"{' '.join(names)}: {error}") from error
    for name, (model, other) in zip(names[1:], loaded[1:], strict=True):
        difference = _difference(processor, other)
        if model.dtype != first.dtype:
            difference = f"is in {model.dtype} and the first one in {first.dtype}; give dtype (--dtype)"
        if difference is not None:
            raise CaptionerLoadError(f"{' '.join(names)}: not an ensemble: {name} {difference}")
    return ensemble, processor


def _difference(first: Any, other: Any) -> str | None:
    """Describe in what two processors differ that must be the same in an ensemble; `None` if in nothing."""
    ours, theirs = first.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    if ours != theirs:
        word, _ = min(ours.items() ^ theirs.items())
        ids = theirs.get(word, "none"), ours.get(word, "none")
        return f"has another vocabulary: the id of {word!r} is {ids[0]}, and {ids[1]} in the first one"
    ours, theirs = first.image_processor.to_dict(), other.image_processor.to_dict()
    for setting in sorted(ours.keys() | theirs.keys()):
        if ours.get(setting) != theirs.get(setting):
            values = f"{setting} {theirs.get(setting)} instead of {ours.get(setting)}"
            return f"prepares pictures in another way than the first one: {values}"
    return None


def _load(name: str, device: str, dtype: str, trust_remote_code: bool, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """A captioner, ready to caption, and its processor; see [`load_captioners`]."""
    logging.disable_progress_bar()
    target = choose_device(device)
    if is_exported(name):
        return _load_exported(name, target, dtype, trust_remote_code, bool(options))
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        hint = "; it is in the repository of hf_captioners" if name == STARTER else ""
        raise CaptionerLoadError(f"{name}: no such folder{hint}")
    try:
        placed = {**options, "device_map": {"": target}} if options else {}  # what is quantised cannot be moved
        model = load_captioner_model(name, trust_remote_code, dtype=dtype, **placed)
        check_can_caption(model, name)
        processor = load_processor(model, name, trust_remote_code)
    except (AdapterError, NoCaptionerError, RemoteCodeError, WeightSizeError) as error:
        raise CaptionerLoadError(str(error)) from error
    except HubOutOfReachError as error:
        raise CaptionerLoadError(f"{name}: {error}") from error
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise CaptionerLoadError(f"{name} cannot be loaded: {missing_part(Path(name)) or error}") from error
    except (TypeError, AttributeError, KeyError, IndexError) as error:  # values of a kind that a loader did not expect
        reason = missing_part(Path(name)) or f"a setting in its files is of a wrong kind or missing: {error!r:.300}"
        raise CaptionerLoadError(f"{name} cannot be loaded: {reason}") from error
    return (model if options else model.to(target)).eval(), processor


def _load_exported(
    name: str, device: torch.device, dtype: str, trust_remote_code: bool, in_bits: bool
) -> tuple[Any, Any]:
    """An exported captioner; a GPU is used if ONNX Runtime has one, too."""
    from ..export.runtime import ExportedCaptioner

    try:
        if in_bits or dtype not in ("auto", "float32"):
            raise ValueError("its precision is that of the export (`hf-captioners export --int8`, for OpenVINO --bf16)")
        model = ExportedCaptioner.from_pretrained(name, device="cpu" if device.type == "cpu" else None)
        return model, load_processor(model, split_name(name)[0], trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        raise CaptionerLoadError(f"{name} cannot be loaded: {error}") from error
