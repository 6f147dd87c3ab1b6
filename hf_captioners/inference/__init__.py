"""Captioning with trained models, beyond one call of `generate`."""
