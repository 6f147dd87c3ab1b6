"""Captioners for ONNX Runtime: two graphs in a folder, and the captioner that runs them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .runtime import ExportedCaptioner
    from .writing import ExportError, ExportReport, export_captioner

_HOME = {
    "ExportError": "writing",
    "ExportReport": "writing",
    "ExportedCaptioner": "runtime",
    "export_captioner": "writing",
}

__all__ = ["ExportError", "ExportReport", "ExportedCaptioner", "export_captioner"]


def __getattr__(name: str) -> Any:
    """Import what exports or runs a captioner, and torch with it, when it is asked for."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
