"""Loading by a Hub name where the Hub cannot be reached: from what was downloaded before, or not at all, and at once.

huggingface_hub asks five times, with growing pauses, for every file that it has not downloaded, those included that a
model need not have: without a network that is minutes for a model, also for one that is here. Here the Hub is asked
once whether it is there; if not, huggingface_hub works for the while as with `HF_HUB_OFFLINE=1`.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import HTTPError
from huggingface_hub.utils import get_session

from .captioner_adapters import may_be_on_hub

_PATIENCE_S = 5.0
_REMEMBERED_S = 60.0  # how long an answer holds


class HubOutOfReachError(OSError):
    """Something that was not downloaded before, while the Hub cannot be reached. The message is one line."""


@contextmanager
def at_once(source: Any) -> Iterator[None]:
    """Load what may be on the Hub without waiting for a Hub that is out of reach.

    Args:
        source: folder or Hub name that is loaded from; anything else passes.

    Raises:
        HubOutOfReachError: in the place of an `OSError` about what is not on this machine.
    """
    named = isinstance(source, (str, os.PathLike)) and may_be_on_hub(os.fspath(source))
    problem = None if constants.HF_HUB_OFFLINE or not named else _problem(constants.ENDPOINT)
    if problem is None:
        yield
        return
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    except OSError as error:
        raise HubOutOfReachError(f"it is not on this machine, or not whole, and {problem}") from error
    finally:
        constants.HF_HUB_OFFLINE = False


def _problem(endpoint: str) -> str | None:
    """The reason why the Hub cannot be reached, if it cannot, as of not long ago."""
    return _asked(endpoint, int(time.monotonic() / _REMEMBERED_S))


@functools.lru_cache(maxsize=1)
def _asked(endpoint: str, minute: int) -> str | None:
    try:
        get_session().head(endpoint, timeout=_PATIENCE_S)
    except (HTTPError, OSError) as error:
        said = " ".join(str(error).split()) or type(error).__name__
        return f"the Hub ({endpoint}) cannot be reached: {said}"
    return None
