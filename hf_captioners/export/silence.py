"""Silence about themselves of the libraries that make graphs: what they say is for those who develop them."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

# torch.onnx of operators that it has no function for, transformers of versions that it has not tried, NNCF of its work
_LOGGERS = ("torch.onnx", "transformers.exporters", "nncf")


@contextmanager
def silence() -> Iterator[None]:
    """Let torch, transformers and NNCF say nothing but errors in the time of a `with` block.

    Steps that torch prints, warnings of interfaces that will change, and log lines below an error are left out.
    """
    loggers = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.simplefilter("ignore", category)
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in loggers.items():
                logger.setLevel(level)
