"""Limits of what a small file may become: text that is unpacked, arrays that are declared.

A file says how much it holds, and a file of a few megabytes can say gigabytes. What is unpacked or declared is compared
with what is stored before it is read: up to `FREE_BYTES` always pass, beyond them `MAX_RATIO` times the stored bytes,
which JSON and features never reach, and nothing larger than the limit. The environment sets another limit, which then
holds alone.
"""

from __future__ import annotations

import gzip
import os
import zlib

from .files import regular_file

MAX_TEXT_BYTES = 2**30
"""Largest JSON, JSONL or CSV file, unpacked; `HF_CAPTIONERS_MAX_TEXT_BYTES` in the environment sets another."""

MAX_ARRAY_BYTES = 2**30
"""Largest array of an `.npz`, `.npy` or HDF5 file; `HF_CAPTIONERS_MAX_ARRAY_BYTES` sets another."""

MAX_RATIO, FREE_BYTES = 100, 64 * 2**20

_CHUNK = 2**20


class LimitError(ValueError):
    """More than the limit; the message names file, limit and how to raise it."""


def limit_of(quantity: str, default: int, stored: int) -> int:
    """Find the most bytes that may come out of so many.

    Args:
        quantity (`str`): `"text"` or `"array"`.
        default (`int`): the largest, where the environment sets no other.
        stored (`int`): bytes in the file.

    Returns:
        `int`

    Raises:
        ValueError: the environment variable is not a positive integer.

    Example:

    ```python
    >>> from hf_captioners.data.limits import MAX_TEXT_BYTES, limit_of
    >>> limit_of("text", MAX_TEXT_BYTES, stored=2_000_000) == 200_000_000
    True

    ```
    """
    variable = _variable(quantity)
    text = os.environ.get(variable, "")
    if not text:
        return min(default, max(FREE_BYTES, MAX_RATIO * stored))
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ValueError(f"{variable}={text[:40]!r} must be a positive integer")
    return int(text)


def check_array(where: str, declared: int, stored: int) -> None:
    """Refuse an array that is much larger than what is stored of it.

    Args:
        where (`str`): file and array, for the message.
        declared (`int`), stored (`int`): bytes.

    Raises:
        LimitError: it is.
    """
    limit = limit_of("array", MAX_ARRAY_BYTES, stored)
    if declared > limit:
        raise LimitError(
            f"{where}: declares {declared} bytes and stores {stored}; the limit for that is {limit} "
            f"({_variable('array')} sets another)"
        )


def read_bytes(path: str | os.PathLike[str], kind: str) -> bytes:
    """Read a file of text, plain or gzipped (told by its first bytes).

    Args:
        path (`str` or `os.PathLike`): the file.
        kind (`str`): what is expected there, for messages.

    Returns:
        `bytes`: unpacked.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a FIFO, a socket or a device.
        LimitError: it is larger than the limit, or unpacks to more.
        ValueError: it is a damaged gzip file.
    """
    file = regular_file(os.fspath(path), kind)
    size = file.stat().st_size
    limit = limit_of("text", MAX_TEXT_BYTES, size)
    if size > limit:
        raise _too_much(path, f"{size} bytes", limit)
    with file.open("rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        stream.seek(0)
        if not packed:
            return stream.read(limit)
        try:
            with gzip.GzipFile(fileobj=stream) as unpacked:
                content = bytearray()
                while chunk := unpacked.read(_CHUNK):
                    content += chunk
                    if len(content) > limit:
                        raise _too_much(path, f"a gzip file of {size} bytes, unpacks to more", limit)
                return bytes(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a readable gzip file: {error}") from error


def _too_much(path: str | os.PathLike[str], what: str, limit: int) -> LimitError:
    return LimitError(f"{path}: {what}; the limit for it is {limit} bytes ({_variable('text')} sets another)")


def _variable(quantity: str) -> str:
    return f"HF_CAPTIONERS_MAX_{quantity.upper()}_BYTES"
