"""Processor of ExpansionNet v2."""

from __future__ import annotations

from .processing_captioner import CaptionerProcessor


class ExpansionNetV2Processor(CaptionerProcessor):
    """[`CaptionerImageProcessor`] and a word tokenizer; see [`CaptionerProcessor`]."""
