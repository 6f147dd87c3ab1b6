"""Captioning with trained models, beyond one call of `generate`."""

from .caption_batches import CaptionBatches

__all__ = ["CaptionBatches"]
