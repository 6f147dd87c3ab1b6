"""Digests of what features depend on, to tell stores of one model from those of another."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn


def weights_sha256(model: nn.Module) -> str:
    """The digest of all weights and buffers of a model, with their names, types and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def settings_sha256(image_processor: Any) -> str:
    """The digest of an image processor's settings."""
    settings = json.dumps(image_processor.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(settings.encode()).hexdigest()
