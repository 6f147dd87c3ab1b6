"""A file of JSON lines that grows record by record, and that a killed process leaves readable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from .files import regular_file
from .printable import printable_json

_CHUNK = 2**20
_NEW_NAMES = 2**16  # that are kept apart until they are sorted in


class NameSet:
    """Names that are only asked for and added, eight bytes each: a million of them take 8 MB.

    Two of a million names are taken for one with a probability of 3e-8.

    Args:
        names (`Iterable[int | str]`): the names; a number and its text are two.

    Example:

    ```python
    >>> from hf_captioners.data.json_lines import NameSet
    >>> names = NameSet(["a.jpg", 7])
    >>> "a.jpg" in names, "7" in names, len(names)
    (True, False, 2)
    >>> names.add("b.jpg"), names.add("b.jpg")
    (True, False)

    ```
    """

    def __init__(self, names: Iterable[int | str] = ()) -> None:
        self._digests = np.unique(np.fromiter(map(_digest, names), dtype=np.uint64))
        self._new: set[int] = set()

    def __len__(self) -> int:
        return len(self._digests) + len(self._new)

    def __contains__(self, name: int | str) -> bool:
        return self._has(_digest(name))

    def add(self, name: int | str) -> bool:
        """Add a name.

        Returns:
            `bool`: whether it was not there before.
        """
        digest = _digest(name)
        if self._has(digest):
            return False
        self._new.add(digest)
        if len(self._new) == _NEW_NAMES:
            new = np.fromiter(self._new, dtype=np.uint64)
            self._digests, self._new = np.union1d(self._digests, new), set()
        return True

    def _has(self, digest: int) -> bool:
        if digest in self._new:
            return True
        place = int(np.searchsorted(self._digests, np.uint64(digest)))
        return place < len(self._digests) and int(self._digests[place]) == digest


def _digest(name: int | str) -> int:
    text = f"{type(name).__name__} {name}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


class JsonLines:
    """Writer that appends records to a file, a line each.

    A line is written at once. One that a killed process has left without its end is cut off when the file is opened
    again, and so is one for which the disk had no space.

    Args:
        path (`Path`): the file, made if need be.

    Raises:
        OSError: it cannot be written, or is no regular file.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.json_lines import JsonLines, read_json_lines
    >>> path = Path(tempfile.mkdtemp(), "captions.jsonl")
    >>> with JsonLines(path) as lines:
    ...     lines.append({"image": "a.jpg", "caption": "a dog"})
    >>> with path.open("a") as file:
    ...     _ = file.write('{"image": "b.j')  # and the process was killed
    >>> with JsonLines(path) as lines:
    ...     lines.append({"image": "b.jpg", "caption": "a cat"})
    >>> [record["caption"] for record in read_json_lines(path)]
    ['a dog', 'a cat']

    ```
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists():
            regular_file(path, "file of JSON lines")
        self._file = path.open("r+b" if path.exists() else "x+b", buffering=0)
        self._end = _end_of_lines(self._file)
        self._file.truncate(self._end)

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record.

        Raises:
            OSError: the disk is full, or the like; the file is as it was before.
        """
        line = f"{printable_json(record)}\n".encode()
        try:
            self._file.seek(self._end)
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
        except OSError as error:
            self._file.truncate(self._end)
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._end += len(line)

    def close(self) -> None:
        """Bring everything to the disk."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            finally:
                self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _end_of_lines(file: IO[bytes]) -> int:
    """Bytes up to the end of the last whole line."""
    end = os.fstat(file.fileno()).st_size
    while end > 0:
        start = max(end - _CHUNK, 0)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read a file of JSON lines, as [`JsonLines`] writes it.

    Args:
        path (`Path`): the file; a last line without its end is not read.

    Yields:
        `dict`: a record.

    Raises:
        OSError: there is no such file, or it is no regular file.
        ValueError: a line is not a JSON object; the message has its number.
    """
    with regular_file(path, "file of JSON lines").open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON: {error}") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number}: expected an object, found {type(record).__name__}")
            yield record
