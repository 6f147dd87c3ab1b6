"""Ctrl-C in a training: one line that says what is saved and how to go on, on the main process."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ...data.printable import printable


@contextmanager
def telling_interruption(tell: Callable[[], str | None]) -> Iterator[None]:
    """Print a line when Ctrl-C ends a `with` block, whatever the block makes of it.

    A launcher of several processes sends them Ctrl-C once more, and a process whose neighbours have ended already
    fails in its communication: only the first Ctrl-C counts, and an error behind it is none.

    Args:
        tell (`Callable`): gives the line, or `None` for none.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed. From then on the process takes no notice of it.
    """
    pressed: list[int] = []

    def press(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt

    may_handle = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGINT, press) if may_handle else None
    try:
        yield
    except BaseException as error:
        if not pressed and not isinstance(error, KeyboardInterrupt):
            raise
        line = tell()
        if line is not None:
            print(f"\n{printable(line)}", file=sys.stderr, flush=True)  # a progress bar has not ended its line
        raise KeyboardInterrupt from error
    finally:
        if may_handle and not pressed:
            signal.signal(signal.SIGINT, before)
