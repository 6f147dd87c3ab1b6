"""Progress of long work on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 5.0
"""Between two lines where stderr is no terminal; work that is shorter than that says nothing."""


class _Lines(tqdm):
    """Progress as lines, one below the other, that nothing is cleared from."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """Function that writes a status: on a line of its own, which the next one or the end of the work closes."""
        lines = 0

        def write(status: str) -> None:
            nonlocal lines
            file.write(f"\n{status}" if lines else status)
            file.flush()
            lines += 1

        return write

    def clear(self, nolock: bool = False) -> None:
        """Leave lines as they are while something else is written."""

    def refresh(self, nolock: bool = False, lock_args: Any = None) -> bool | None:
        """Write a line, but not only because something else was written."""
        return None if nolock else super().refresh(nolock, lock_args)


def progress(rows: Iterable[Any] | None = None, log_every: int | None = None, **options: Any) -> Any:
    """Show how far work has come.

    Args:
        rows (`Iterable`, *optional*): what is worked on; without it, call `update` of what is returned.
        log_every (`int`, *optional*): a line behind every so many rows, on a terminal, too.
        options: of `tqdm`, as `total`, `initial`, `desc` and `unit`.

    Returns:
        `tqdm`: the rows, and a context.
    """
    if log_every is not None:
        at_once = 1e-9  # but not before the first rows
        steps: dict[str, Any] = {"mininterval": 0, "miniters": log_every, "delay": at_once, "ncols": 80}
        steps["maxinterval"] = float("inf")  # or a thread of tqdm's has a line for each row where these take longer
        return _Lines(rows, file=sys.stderr, **steps, **options)
    if sys.stderr.isatty():
        return tqdm(rows, file=sys.stderr, **options)
    seldom: dict[str, Any] = {"mininterval": SECONDS, "miniters": 1, "delay": SECONDS, "ncols": 80}
    return _Lines(rows, file=sys.stderr, **seldom, **options)


@contextmanager
def progress_of(measure: Callable[[], int], **options: Any) -> Iterator[None]:
    """Show how far the work of the block has come, which does not say so itself: a thread measures it every second.

    Args:
        measure (`Callable[[], int]`): how much is done so far. It is called in the thread, and once at the end.
        options: of `tqdm`, as in [`progress`].

    Example:

    ```python
    >>> import time
    >>> from hf_captioners.data.progress import progress_of
    >>> written = []
    >>> with progress_of(lambda: len(written), desc="writing", total=2):
    ...     written += [1, 2]

    ```
    """
    ended = Event()

    def show() -> None:
        with progress(**options) as bar:
            running = True
            while running:
                running = not ended.wait(1.0)
                bar.update(measure() - bar.n)

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
