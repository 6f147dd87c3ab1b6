"""Threads that open images beside a model."""

from __future__ import annotations

import os
import sys
import threading

import torch

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
