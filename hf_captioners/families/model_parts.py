"""Parts of models as families use them: what learns, what has adapters, a vision tower whose answer is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.utils import is_peft_available


@contextmanager
def answering(module: Any, answer: Callable[..., Any]) -> Iterator[None]:
    """Let a module give what is known already in the place of its forward pass, for the time of a block.

    Args:
        module (`nn.Module`): a vision tower that a model calls itself.
        answer (`Callable`): called with its arguments.
    """
    patched = vars(module).get("forward")  # accelerate puts one there
    module.forward = answer
    try:
        yield
    finally:
        if patched is None:
            del module.forward
        else:
            module.forward = patched


def behind_start(start: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
    """Ids (N, P + T - 2) that a model reads to score captions (N, T) behind B starts (B, P)."""
    return torch.cat([repeated(start, len(sequences)), sequences[:, 1:-1]], dim=1)


def learns(module: nn.Module | None) -> bool:
    """Tell whether anything in a module has a gradient."""
    return module is not None and any(parameter.requires_grad for parameter in module.parameters())


def repeated(values: torch.Tensor, captions: int) -> torch.Tensor:
    """Rows (B, …) of images for captions (N, …) of them, which stand side by side."""
    times = captions // len(values)
    return values if times == 1 else values.repeat_interleave(times, dim=0)


def without_adapters(model: Any) -> Any:
    """The model that peft has put adapters into, or the model itself."""
    if not is_peft_available():
        return model
    from peft import PeftModel

    return model.get_base_model() if isinstance(model, PeftModel) else model
