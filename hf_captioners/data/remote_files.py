"""Files of other machines, of buckets, servers and the Hub, through fsspec."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from .files import regular_file

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tell whether it is the address of a file of another machine, as `s3://bucket/a.tar`, and no path.

    Args:
        path (`str` or `os.PathLike`): an address or a path.

    Returns:
        `bool`

    Example:

    ```python
    >>> from hf_captioners.data.remote_files import is_remote
    >>> is_remote("hf://datasets/org/name/a.tar"), is_remote("photos/a.tar")
    (True, False)

    ```
    """
    return isinstance(path, str) and _ADDRESS.match(path) is not None


class RemoteFile:
    """A file of another machine, opened when it is read, for [`open_image`].

    Args:
        address (`str`): such as `hf://datasets/org/name/a.jpg`.
    """

    def __init__(self, address: str) -> None:
        self.address = address

    def seekable(self) -> bool:
        """Tell that it is read once, from its beginning."""
        return False

    def read(self, size: int = -1) -> bytes:
        """Read its first bytes.

        Raises:
            OSError: there is no such file, or the machine cannot be reached.
        """
        with opened_file(self.address, "file") as (file, _):
            return file.read(size)


@contextmanager
def opened_file(path: str | os.PathLike[str], kind: str) -> Iterator[tuple[IO[bytes], int]]:
    """Open a file of this machine or of another one.

    Args:
        path (`str` or `os.PathLike`): a path, or an address of a kind that fsspec knows; it finds accounts and the
            like in the environment.
        kind (`str`): what is expected there, for messages.

    Yields:
        `tuple[IO[bytes], int]`: the file, and its size in bytes.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is no regular file, or the machine cannot be reached.

    Example:

    ```python
    >>> import fsspec
    >>> from hf_captioners.data.remote_files import opened_file
    >>> fsspec.filesystem("memory").pipe("/bucket/note.txt", b"done")
    >>> with opened_file("memory://bucket/note.txt", "note") as (file, size):
    ...     file.read(), size
    (b'done', 4)

    ```
    """
    if not is_remote(path):
        local = regular_file(os.fspath(path), kind)
        with local.open("rb") as stream:
            yield stream, local.stat().st_size
        return
    file, size = _open_remote(str(path), kind)
    with file:
        yield file, size


def _open_remote(address: str, kind: str) -> tuple[Any, int]:
    import fsspec

    try:
        file = fsspec.open(address, "rb").open()
        file.seek(0, os.SEEK_END)
        size = file.tell()
        file.seek(0)
    except FileNotFoundError:
        raise FileNotFoundError(f"{kind} not found: {address}") from None
    except Exception as error:  # of as many kinds as there are file systems
        raise OSError(f"{address}: cannot be read: {type(error).__name__}: {error}") from error
    return file, size
