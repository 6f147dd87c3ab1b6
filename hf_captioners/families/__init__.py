"""Families of captioners: one way to prepare, write, decode, teach and score, whatever the architecture.

Inference, evaluation, the trainers and the pipeline call a model through its [`CaptionFamily`] alone. Another family is
a file here, with a class that says what is its own, and its line in `FAMILIES`; see `docs/any_captioner.md`.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel

from .base import CaptionFamily, SpecialTokens
from .blip import BlipFamily
from .blip2 import Blip2Family, InstructBlipFamily
from .captioner import CaptionerFamily, ForeignCodeFamily, WordByWordFamily
from .chat import ChatFamily
from .encoder_decoder import EncoderDecoderFamily
from .florence2 import Florence2Family
from .git import GitFamily
from .kosmos2 import Kosmos2Family
from .model_parts import learns, without_adapters
from .paligemma import PaliGemmaFamily
from .transformers_family import TransformersFamily

FAMILIES: tuple[type[CaptionFamily], ...] = (
    WordByWordFamily,
    CaptionerFamily,
    EncoderDecoderFamily,
    BlipFamily,
    GitFamily,
    Blip2Family,
    InstructBlipFamily,
    Florence2Family,
    PaliGemmaFamily,
    Kosmos2Family,
    ChatFamily,
)
"""The families; the first one that fits a model is its own."""


class NoCaptionerError(ValueError):
    """A model that captions no images, or in a way that is not known here."""


def family_of(model: Any, prompt: str | None = None, to_train: bool = False) -> CaptionFamily:
    """Choose the family of a model.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the captioner, with adapters or without.
        prompt (`str`, *optional*): what it is asked; by default that of its configuration, or of the family.
        to_train (`bool`, defaults to `False`): whether it is to learn, which models with code of their own do not.

    Returns:
        [`CaptionFamily`]

    Raises:
        NoCaptionerError: a model of no family.
        ValueError: a `generation_config` that does not say what ends a caption, or what stands behind the end; a prompt
            for a model that takes none.
    """
    model = without_adapters(model)
    return family_class(model, to_train).of(model, prompt)


def family_class(model: Any, to_train: bool = False) -> type[CaptionFamily]:
    """The class of a model's family; see [`family_of`]."""
    for family in (*FAMILIES, *(() if to_train else (ForeignCodeFamily,))):
        if family.fits(model):
            return family
    raise NoCaptionerError(f"a {type(model).__name__} {_described(model)}; {known_families()}")


def known_families() -> str:
    """The end of a message about a model that is of none of them."""
    titles = ", ".join(dict.fromkeys(family.title for family in FAMILIES if family.title))
    return f"captioners are {titles}; docs/any_captioner.md says how to add a family."


def _described(model: Any) -> str:
    """Tell what a model is that is no captioner here."""
    if not isinstance(model, PreTrainedModel):
        return "is no model of transformers"
    sees = "image" in (model.input_modalities or ()) or model.main_input_name == "pixel_values"
    if not sees:
        return "is a text model, which sees no images" if model.can_generate() else "sees no images"
    if not model.can_generate():
        return "sees images, but writes no text; a vision model is the --backbone of a new captioner"
    return "sees images and writes, but in a way that is not known here"


__all__ = [
    "FAMILIES",
    "CaptionFamily",
    "CaptionerFamily",
    "ForeignCodeFamily",
    "NoCaptionerError",
    "SpecialTokens",
    "TransformersFamily",
    "family_class",
    "family_of",
    "known_families",
    "learns",
    "without_adapters",
]
