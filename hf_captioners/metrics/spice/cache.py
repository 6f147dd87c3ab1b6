"""SPICE scores on disk, so that a caption that was scored once is not parsed again.

One SQLite file, which any number of processes of one machine may use at the same time. A row's key is the hash of the
SPICE program, the caption and its references; nothing in it depends on names of images or on the order of a corpus.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Pair: TypeAlias = tuple[str, tuple[str, ...]]  # a caption and its references, tokenised

FILE_NAME = "spice.sqlite3"
BUSY_SECONDS = 60.0


class SpiceError(RuntimeError):
    """A failure of SPICE to give a score. The message says why and what to do."""


class SpiceCache:
    """A table of SPICE scores on disk.

    Args:
        folder (`Path`): where the file is or will be. On a local disk: network file systems may not lock files.
        program (`str`): what identifies the SPICE program, such as a hash of it.

    Raises:
        SpiceError: the file cannot be used; it is named.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_captioners.metrics.spice.cache import SpiceCache
    >>> cache = SpiceCache(tempfile.mkdtemp(), "1.0")
    >>> cache.add({("a dog", ("a dog runs",)): {"All": {"f": 0.5}}})
    >>> cache.find([("a dog", ("a dog runs",)), ("a cat", ("a dog runs",))])
    {('a dog', ('a dog runs',)): {'All': {'f': 0.5}}}

    ```
    """

    def __init__(self, folder: str | Path, program: str) -> None:
        self.path = Path(folder) / FILE_NAME
        self.program = program
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpiceError(f"{folder}: cannot be the folder of the SPICE cache: {error}") from error
        with self._open(write=True) as database:
            database.execute("CREATE TABLE IF NOT EXISTS spice (key TEXT PRIMARY KEY, scores TEXT NOT NULL)")

    def find(self, pairs: Sequence[Pair]) -> dict[Pair, Any]:
        """Look up scores.

        Args:
            pairs (`Sequence[Pair]`): captions with their references.

        Returns:
            `dict[Pair, Any]`: the scores of those pairs that the cache has, as they were added.

        Raises:
            SpiceError: the file is damaged.
        """
        scores = {}
        with self._open() as database:
            for pair in pairs:
                row = database.execute("SELECT scores FROM spice WHERE key = ?", (self._key(pair),)).fetchone()
                if row is not None:
                    scores[pair] = self._read(row[0])
        return scores

    def add(self, scores: Mapping[Pair, Any]) -> None:
        """Keep scores, all of them or none; equal ones that another process added in the meantime are replaced.

        Args:
            scores (`Mapping[Pair, Any]`): what JSON can hold, by caption and references.

        Raises:
            SpiceError: the file is damaged, or busy for more than a minute.
        """
        rows = [(self._key(pair), json.dumps(value)) for pair, value in scores.items()]
        with self._open(write=True) as database:
            database.executemany("INSERT OR REPLACE INTO spice VALUES (?, ?)", rows)

    def _key(self, pair: Pair) -> str:
        content = json.dumps([self.program, pair[0], list(pair[1])])
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()

    def _read(self, text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError as error:
            raise SpiceError(f"{self.path}: damaged cache, delete the file: {error}") from error

    @contextlib.contextmanager
    def _open(self, write: bool = False) -> Iterator[sqlite3.Connection]:
        """A connection whose writes within the block are kept as a whole, or not at all after an error."""
        try:
            with contextlib.closing(sqlite3.connect(self.path, BUSY_SECONDS, isolation_level=None)) as database:
                if write:
                    database.execute("BEGIN IMMEDIATE")  # waits here for other writers, not in the middle
                yield database
                if write:
                    database.execute("COMMIT")
        except sqlite3.Error as error:
            advice = "another process holds it" if "locked" in str(error) else "delete it if it is damaged"
            raise SpiceError(f"{self.path}: the SPICE cache cannot be used ({error}); {advice}") from error
