"""Stopping a program at its n-th change of a disk, as a kill does."""

from __future__ import annotations

import builtins
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import peft_model
from transformers import modeling_utils

CHANGES = {os: ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "chmod"), shutil: ("rmtree",)}
WRITERS = {torch: "save", modeling_utils: "safe_save_file", peft_model: "safe_save_file"}
OPENERS = (builtins, io)  # the function of open, and that of pathlib


class Killed(BaseException):
    """The end of the process; nothing catches it."""


class Disk:
    """Counts what changes the disk, and lets nothing happen from the n-th change on: half of it, if it is a write.

    Args:
        last (`int`): changes that happen.
    """

    def __init__(self, last: int) -> None:
        self.last = last
        self.count = 0

    def change(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count > self.last:
            raise Killed
        return function(*args, **kwargs)

    def write(self, function: Callable[..., Any], content: Any, path: Any, *args: Any, **kwargs: Any) -> Any:
        self.count += 1
        if self.count <= self.last:
            return function(content, path, *args, **kwargs)
        if self.count == self.last + 1:
            function(content, path, *args, **kwargs)
            os.truncate(path, Path(path).stat().st_size // 2)
        raise Killed

    def open(self, function: Callable[..., Any], path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wxa"):
            return function(path, mode, *args, **kwargs)
        self.count += 1
        if self.count == self.last + 1:
            function(path, mode, *args, **kwargs).close()  # nothing is written
        if self.count > self.last:
            raise Killed
        return function(path, mode, *args, **kwargs)


@contextmanager
def stopping_after(changes: int) -> Iterator[Disk]:
    """Everything that changes the disk in a `with` block, up to a number of changes; `Killed` leaves the block.

    Args:
        changes (`int`): how many happen.
    """
    disk = Disk(changes)

    def counted(counter: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: counter(function, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module, names in CHANGES.items():
            for name in names:
                patch.setattr(module, name, counted(disk.change, getattr(module, name)))
        for module, name in WRITERS.items():
            patch.setattr(module, name, counted(disk.write, getattr(module, name)))
        for module in OPENERS:
            patch.setattr(module, "open", counted(disk.open, module.open))
        yield disk


def files_of(folder: Path) -> dict[str, int]:
    """Sizes of all files of a folder, by name; but for the state of a trainer, whose log grows."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): -1 if "state" in path.stem else path.stat().st_size for path in files}
