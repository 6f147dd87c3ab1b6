"""Captioners for others: the card that says what one is, what it learned from and how well, and the way to the Hub."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .access import HubError
    from .push import Pushed, push_captioner

_HOME = {"HubError": "access", "Pushed": "push", "push_captioner": "push"}

__all__ = ["HubError", "Pushed", "push_captioner"]


def __getattr__(name: str) -> Any:
    """Import what pushes a captioner, and torch with it, when it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
