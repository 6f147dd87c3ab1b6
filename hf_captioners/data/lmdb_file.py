"""LMDB databases, read without the library: each page with a read of its own, within the file.

The library maps the file and believes what its pages say: of a database that was cut off it reads behind the end, which
kills the process, and a page of a stranger may send it anywhere. Features are written once and read by key, for which
the format (version 1 of LMDB 0.9, 64 bits, little-endian; comments of `mdb.c`) needs few lines: two meta pages, of
which the newer one counts; a tree of branch and leaf pages; values in leaves or, if they are long, in overflow pages.

Databases inside the database and several values of a key are refused by name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from .bad_rows import BadRows
from .files import regular_file

DATA = "data.mdb"
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_META = struct.Struct("<IIQQ")  # magic, version, address, size of the map; behind the head of a page
_TREE = struct.Struct("<IHHQQQQQ")  # page size, flags, depth, pages of three kinds, entries, root
_HEAD = struct.Struct("<QHHHH")  # of a page: number, -, flags, end of its pointers, begin of its nodes
_NODE = struct.Struct("<HHHH")  # size or page in two halves, flags or the page's third part, size of the key
_BRANCH, _LEAF = 0x01, 0x02
_BIG, _NESTED = 0x01, 0x02 | 0x04
_NONE = 2**64 - 1
_SMALLEST_PAGE, _LARGEST_PAGE = 256, 2**16


class LmdbError(ValueError):
    """A file that is no LMDB database, is cut off or damaged. The message names it and the page or the key."""


def is_lmdb(path: Path) -> bool:
    """Tell whether a path is an LMDB database, a folder with `data.mdb` or that file under any name."""
    place = path / DATA if path.is_dir() else path
    if not place.is_file():
        return False
    with place.open("rb") as file:
        head = file.read(_HEAD.size + 4)
    return head[_HEAD.size :] == struct.pack("<I", _MAGIC)


class LmdbFile:
    """Keys and values of a database: `file[key]`. Use it as a context manager, or call `close`.

    Args:
        path (`Path`): the folder, or the file.
        bad_rows ([`BadRows`], *optional*): gets pages that are not in the file or damaged; by default they are errors.

    Attributes:
        keys (`list[bytes]`): all keys, in their order.

    Raises:
        OSError: there is no such file.
        LmdbError: it is no database, or damaged.
        KeyError: on access, there is no such key.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from hf_captioners.data.lmdb_file import LmdbFile
    >>> with LmdbFile(Path("coco-regions.lmdb")) as file:  # doctest: +SKIP
    ...     len(file[b"42"])
    294912

    ```
    """

    def __init__(self, path: Path, bad_rows: BadRows | None = None) -> None:
        self.path = regular_file(path / DATA if path.is_dir() else path, "LMDB database")
        self._file = self.path.open("rb")
        try:
            self._size = os.fstat(self._file.fileno()).st_size
            self._page_size, root = self._newest_root()
            self._places = {} if root == _NONE else dict(self._walk(root, bad_rows or BadRows()))
        except BaseException:
            self._file.close()
            raise
        self.keys = list(self._places)

    def __enter__(self) -> LmdbFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __getitem__(self, key: bytes) -> bytes:
        start, size = self._places[key]
        if start + size > self._size:
            raise LmdbError(f"{self.path}: key {key!r}: cut off, its value is behind the end of the file")
        self._file.seek(start)
        return self._file.read(size)

    def _newest_root(self) -> tuple[int, int]:
        """Size of a page, and the root of the tree after the last transaction."""
        first = self._meta(0)
        if first is None:
            raise LmdbError(f"{self.path}: no LMDB database of version {_VERSION}, or cut off")
        page_size = first[1]
        if not (_SMALLEST_PAGE <= page_size <= _LARGEST_PAGE and page_size & (page_size - 1) == 0):
            raise LmdbError(f"{self.path}: damaged, it says that a page has {page_size} bytes")
        metas = [meta for meta in (first, self._meta(page_size)) if meta is not None]
        return page_size, max(metas)[2]

    def _meta(self, start: int) -> tuple[int, int, int] | None:
        """Number of the transaction, size of a page and root that a meta page names; `None` if it is none."""
        content = self._read(start, _HEAD.size + _META.size + 2 * _TREE.size + 16)
        if content is None:
            return None
        magic, version, _, _ = _META.unpack_from(content, _HEAD.size)
        if (magic, version) != (_MAGIC, _VERSION):
            return None
        free = _TREE.unpack_from(content, _HEAD.size + _META.size)
        main = _TREE.unpack_from(content, _HEAD.size + _META.size + _TREE.size)
        _, transaction = struct.unpack_from("<QQ", content, _HEAD.size + _META.size + 2 * _TREE.size)
        return transaction, free[0], main[-1]

    def _read(self, start: int, size: int) -> bytes | None:
        """Bytes of the file, `None` if it ends before."""
        if start + size > self._size:
            return None
        self._file.seek(start)
        return self._file.read(size)

    def _walk(self, root: int, bad_rows: BadRows) -> Iterator[tuple[bytes, tuple[int, int]]]:
        """Keys, and where their values are, leaf by leaf."""
        todo, seen = [root], set()
        while todo:
            number = todo.pop()
            try:
                if number in seen:
                    raise LmdbError(f"{self.path}: damaged, page {number} is in its tree twice")
                seen.add(number)
                page = self._read(number * self._page_size, self._page_size)
                if page is None:
                    raise LmdbError(f"{self.path}: cut off, page {number} of its tree is behind the end of the file")
                entries, children = self._page(number, page)
            except LmdbError as error:
                bad_rows.add(error)
                continue
            yield from entries
            todo += reversed(children)

    def _page(self, number: int, page: bytes) -> tuple[list[tuple[bytes, tuple[int, int]]], list[int]]:
        """The entries of a leaf, or the pages below a branch."""
        _, _, flags, lower, _ = _HEAD.unpack_from(page)
        kind = flags & ~0x10  # a mark of pages that were being written
        entries: list[tuple[bytes, tuple[int, int]]] = []
        children: list[int] = []
        try:
            if kind not in (_BRANCH, _LEAF) or not _HEAD.size <= lower <= len(page):
                raise ValueError(f"flags {flags:#x}, expected a branch or a leaf")
            for (place,) in struct.iter_unpack("<H", page[_HEAD.size : lower]):
                low, high, node_flags, key_size = _NODE.unpack_from(page, place)
                start = place + _NODE.size
                if start + key_size > len(page):
                    raise ValueError(f"a key at byte {place} is longer than the page")
                if kind == _BRANCH:
                    children.append(low | high << 16 | node_flags << 32)
                    continue
                key = page[start : start + key_size]
                entries.append((key, self._value(number, page, key, start + key_size, node_flags, low | high << 16)))
        except (ValueError, struct.error) as error:
            raise LmdbError(f"{self.path}: damaged, page {number}: {error}") from error
        return entries, children

    def _value(self, number: int, page: bytes, key: bytes, start: int, flags: int, size: int) -> tuple[int, int]:
        """The place of the value of a key in the file, and its size."""
        if flags & _NESTED:
            raise ValueError(f"key {key!r} has several values, or a database inside this one, which is not read")
        if flags & _BIG:
            (overflow,) = struct.unpack_from("<Q", page, start)
            return overflow * self._page_size + _HEAD.size, size
        if start + size > len(page):
            raise ValueError(f"the value of key {key!r} is longer than the page")
        return number * self._page_size + start, size
