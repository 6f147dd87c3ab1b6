"""Processor of SATIC."""

from __future__ import annotations

from .processing_captioner import CaptionerProcessor


class SaticProcessor(CaptionerProcessor):
    """[`CaptionerImageProcessor`] and a word tokenizer; see [`CaptionerProcessor`]."""
