"""The captioners of the package: their classes and where these are. Light: nothing of it imports torch."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

# model type -> names of config, model and processor; adding a captioner is its files in modeling/ and a line here
CAPTIONERS = {
    "clip_gpt2": ("ClipGpt2Config", "ClipGpt2ForImageCaptioning", "ClipGpt2Processor"),
    "dico": ("DicoCaptionerConfig", "DicoForImageCaptioning", "DicoProcessor"),
    "expansionnet_v2": ("ExpansionNetV2Config", "ExpansionNetV2ForImageCaptioning", "ExpansionNetV2Processor"),
    "satic": ("SaticConfig", "SaticForImageCaptioning", "SaticProcessor"),
    "scdnet": ("ScdnetConfig", "ScdnetForImageCaptioning", "ScdnetProcessor"),
}


def captioner_modules(model_type: str) -> tuple[str, str, str]:
    """Name the modules of the package that config, model and processor of a captioner are in.

    A captioner without a processor file of its own has its class in `processing_captioner`.

    Args:
        model_type (`str`): a key of `CAPTIONERS`.

    Example:

    ```python
    >>> captioner_modules("satic")[1]
    'modeling.modeling_satic'

    ```
    """
    processing = f"modeling.processing_{model_type}"
    if find_spec(f"{__package__}.{processing}") is None:
        processing = "modeling.processing_captioner"
    return f"modeling.configuration_{model_type}", f"modeling.modeling_{model_type}", processing


def captioner_classes(model_type: str) -> list[Any]:
    """Import config, model and processor of a captioner.

    Args:
        model_type (`str`): a key of `CAPTIONERS`.
    """
    places = zip(captioner_modules(model_type), CAPTIONERS[model_type], strict=True)
    return [getattr(import_module(f"{__package__}.{module}"), name) for module, name in places]
