"""Running a model in another mode, and through what accelerate has wrapped around it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..rows import chance


@contextlib.contextmanager
def mode(model: Any, training: bool, seed: str | None = None) -> Iterator[None]:
    """A model in training or evaluation mode for the time of a block.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the model.
        training (`bool`): which mode.
        seed (`str`, *optional*): what chance in the block depends on. Torch's generator is left as it was: a resumed
            run gets its state back only after the candidates of its first step. By default the generator goes on.
    """
    before = model.training
    model.train(training)
    try:
        with torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(chance(seed).getrandbits(63))
            yield
    finally:
        model.train(before)


def call_through(wrapped: Any, base: Any, function: Callable[[], Any]) -> Any:
    """Call a function that uses the model `base` as if it were the forward pass of what is wrapped around it.

    DistributedDataParallel and its like add up gradients only of what goes through their own forward pass; so that is
    called, with the function in the place of the model's.

    Args:
        wrapped (`nn.Module`): what accelerate made of the model.
        base (`nn.Module`): the model itself.
        function (`Callable`): without arguments.

    Returns:
        what the function returns.
    """
    if wrapped is base:
        return function()
    patched = vars(base).get("forward")  # accelerate may have put autocast there

    def restore() -> None:
        if patched is None:
            vars(base).pop("forward", None)
        else:
            base.forward = patched

    def instead(*args: Any, **kwargs: Any) -> Any:
        restore()
        return function()

    base.forward = instead
    try:
        return wrapped()
    finally:
        restore()
