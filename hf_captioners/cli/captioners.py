"""The captioner of `--model`, or the ensemble of its captioners, loaded with an error that says what is missing."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import UsageError

_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def load_captioners(names: Sequence[str], device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load what `--model` names: a captioner, or several of one kind as an ensemble, and the processor.

    Args:
        names (`Sequence[str]`): folders or Hub names.
        device (`str`): as `--device` takes it.
        dtype (`str`): one of `DTYPES`.
        trust_remote_code (`bool`): whether code that comes with them may run.

    Raises:
        UsageError: no such folder, device or model, or one that brings code which may not run; captioners that differ
            in kind, words, precision or in how pictures are prepared.
    """
    loaded = [_load(name, device, dtype, trust_remote_code) for name in names]
    first, processor = loaded[0]
    if len(loaded) == 1:
        return first, processor
    from ..inference.ensemble import CaptionerEnsemble

    try:
        ensemble = CaptionerEnsemble([model for model, _ in loaded])
    except ValueError as error:
        raise UsageError(f"--model {' '.join(names)}: {error}") from error
    for name, (model, other) in zip(names[1:], loaded[1:], strict=True):
        difference = _difference(processor, other)
        if model.dtype != first.dtype:
            difference = f"is in {model.dtype} and the first one in {first.dtype}; give --dtype"
        if difference is not None:
            raise UsageError(f"--model {' '.join(names)}: not an ensemble: {name} {difference}")
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


def _load(name: str, device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """The captioner of `--model`, ready to caption, and its processor.

    Args:
        name (`str`): a folder or a Hub name.
        device (`str`): as `--device` takes it.
        dtype (`str`): one of `DTYPES`.
        trust_remote_code (`bool`): whether code that comes with it may run.

    Raises:
        UsageError: no such folder, device or model, or one that brings code which may not run.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    from ..inference.device import choose_device
    from ..modeling.captioner_adapters import AdapterError
    from ..modeling.captioner_foreign import NoCaptionerError, check_can_caption, load_captioner_model, load_processor
    from ..modeling.captioner_trust import RemoteCodeError

    logging.disable_progress_bar()
    try:
        target = choose_device(device)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from error
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise UsageError(f"--model {name}: no such folder")
    try:
        model = load_captioner_model(name, trust_remote_code, dtype=dtype)
        check_can_caption(model, name)
        processor = load_processor(model, name, trust_remote_code)
    except (AdapterError, NoCaptionerError, RemoteCodeError) as error:
        raise UsageError(f"--model {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise UsageError(f"--model {name} cannot be loaded: {missing_part(Path(name)) or error}") from error
    return model.to(target).eval(), processor


_PARTS = {  # of a captioner's folder: patterns of file names, and what to do where there is none
    "configuration (config.json)": (
        ("config.json", "adapter_config.json"),
        "give the folder of a captioner, or convert an original checkpoint with `hf-captioners convert`",
    ),
    "weights (model.safetensors)": (
        ("*.safetensors", "*.safetensors.index.json", "pytorch_model*"),
        "copy them from where the captioner was trained or converted",
    ),
    "image processor (preprocessor_config.json or processor_config.json)": (
        ("preprocessor_config.json", "processor_config.json"),
        "save that of its backbone there: AutoImageProcessor.from_pretrained(backbone).save_pretrained(folder)",
    ),
    "tokenizer (tokenizer.json)": (
        ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model"),
        "save its tokenizer there (`hf-captioners convert` has --tokenizer for captioners with that of CLIP or GPT-2)",
    ),
}


def missing_part(folder: Path) -> str | None:
    """The part that a captioner's folder lacks and how to get it.

    Args:
        folder (`Path`): of a captioner, or a Hub name.

    Returns:
        `str` or `None`: `None` if nothing is known to be missing.
    """
    if not folder.is_dir():
        return None if folder.exists() else "there is no such folder, nor can it be had from the Hub"
    for part, (patterns, advice) in _PARTS.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"the folder has no {part}; {advice}"
    return None
