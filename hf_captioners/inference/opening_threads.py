"""Threads that open images beside a model."""

from __future__ import annotations

import itertools
import os
import sys
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Opened = TypeVar("_Opened")

MOST_WORKERS = 4
_TURN = 1e-4
"""Seconds for which a thread that opens images may keep Python to itself; Python's own are 5e-3."""


def idle_cores(device: torch.device) -> int:
    """Processor cores for other work than a model's: those that its threads leave, at least one, at most 4.

    Args:
        device (`torch.device`): of the model.

    Returns:
        `int`
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores - (torch.get_num_threads() if device.type == "cpu" else 0), 1), MOST_WORKERS)


class _ShortTurns:
    """The model's thread asks for Python between any two operations; let it wait less for those that open images.

    Python has one such time for all threads: the last of several runs to end gives the usual one back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._usual = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._runs == 0:
                self._usual = sys.getswitchinterval()
                sys.setswitchinterval(min(self._usual, _TURN))
            self._runs += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._runs -= 1
            if self._runs == 0:
                sys.setswitchinterval(self._usual)


short_turns = _ShortTurns()


def opened_ahead(
    items: Iterable[_Item],
    batch_size: int,
    open_items: Callable[[list[_Item]], _Opened],
    workers: Callable[[list[_Item]], int],
    most_workers: int = MOST_WORKERS,
) -> Generator[list[tuple[list[_Item], Future[_Opened]]], None, None]:
    """Batches, in a slice for each thread, while those of the next batch are being opened.

    Args:
        items (`Iterable`): what is opened; they are read one batch ahead.
        batch_size (`int`): items of a batch.
        open_items (`Callable`): opens the items of a slice, in a thread.
        workers (`Callable`): number of threads for a batch.
        most_workers (`int`, defaults to 4): the largest of these.

    Yields:
        `list[tuple[list, Future]]`: slices of a batch, and what `open_items` makes of each; emptied, it frees both.
    """
    remaining = iter(items)
    ahead: list[tuple[list[_Item], Future[_Opened]]] = []
    pool = ThreadPoolExecutor(most_workers, thread_name_prefix="open_image")
    try:
        with short_turns:
            while batch := list(itertools.islice(remaining, batch_size)):
                size = -(-batch_size // workers(batch))
                slices = [batch[start : start + size] for start in range(0, len(batch), size)]
                current, ahead = ahead, [(part, pool.submit(open_items, part)) for part in slices]
                if current:
                    yield current
            if ahead:
                yield ahead
    finally:
        pool.shutdown(cancel_futures=True)
