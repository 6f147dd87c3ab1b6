"""The encoded bytes of a picture from outside, within limits: paths, URLs, base64 text, bytes, file objects.

`read_source` gives the bytes, `describe_source` the name for messages. Nothing is decoded here. The limits:

- at most `max_bytes` are read, wherever they come from; what a file's size, a `Content-Length` or the length of a text
  announces is compared before anything is read;
- a path must lead to a regular file: folders, FIFOs, sockets and devices are refused, before and after opening;
- a URL has one deadline for connecting, all redirects, headers and body together. It may only lead to http and https;
- no message repeats more than 200 characters of what came from outside, and none of its control characters.
"""

import base64
import binascii
import errno
import os
import re
import stat
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from PIL import Image

from .captioner_image_format import sniff_format
from .captioner_image_limits import ImageError, shorten, too_many
from .captioner_image_url import read_url

EncodedSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Mapping[str, Any]
ImageSource: TypeAlias = EncodedSource | Image.Image

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_DATA_URI = re.compile(r"data:", re.IGNORECASE)
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_URL_SAFE = str.maketrans("-_", "+/")  # the other alphabet of RFC 4648
_SNIFFED = 128  # characters of base64 text, 96 bytes


def describe_source(source: ImageSource) -> str:
    """The name of a source in error messages."""
    if isinstance(source, Mapping):
        return describe_source(source["path"]) if source.get("path") else "<bytes>"
    if isinstance(source, str) and (kind := _inline_kind(source)):
        return f"<{kind} of {len(source)} characters>"
    if isinstance(source, (str, os.PathLike)):
        return shorten(os.fspath(source))
    return f"<{type(source).__name__}>"


def read_source(source: EncodedSource, max_bytes: int, timeout: float) -> bytes:
    """Read the encoded bytes of a picture.

    Args:
        source (`EncodedSource`): see `open_image`.
        max_bytes (`int`): largest size.
        timeout (`float`): seconds that the whole exchange with a server may take.

    Returns:
        `bytes`

    Raises:
        [`ImageError`]: nothing there, not readable, empty, over the limit, too late. The message lacks the name.
        `TypeError`: the source is of none of the types above.
    """
    data = _read(source, max_bytes, timeout)
    if not data:
        raise ImageError("the file is empty")
    if len(data) > max_bytes:
        raise too_many("at least " + str(len(data)), max_bytes, "bytes")
    return data


def _read(source: EncodedSource, max_bytes: int, timeout: float) -> bytes:
    """Read the bytes; return more than `max_bytes` of them only if the caller held them already."""
    if isinstance(source, Mapping):
        inner = source.get("bytes") if source.get("bytes") is not None else source.get("path")
        if inner is None:
            keys = shorten(str(sorted(map(str, source))))
            raise ImageError(f"a dict with neither 'bytes' nor 'path' (its keys: {keys})")
        return _read(inner, max_bytes, timeout)
    if isinstance(source, str):
        return _read_text(source, max_bytes, timeout)
    if isinstance(source, os.PathLike):
        return _read_path(Path(source), max_bytes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    return _read_file_object(source, max_bytes)


def _read_text(text: str, max_bytes: int, timeout: float) -> bytes:
    """Read what a text leads to: a URL, a data: URI, base64 text, or else a path."""
    if scheme := _URL.match(text):
        if scheme[1].lower() not in ("http", "https"):
            raise ImageError(f"the URL scheme {shorten(scheme[1])!r} is not supported; use http or https, or a path")
        return read_url(text, max_bytes, timeout)
    if _inline_kind(text) is None:
        return _read_path(Path(text), max_bytes)
    payload = text.partition(",")[2] if _DATA_URI.match(text) else text
    if len(payload) // 4 * 3 > 2 * max_bytes:  # refused unread; twice, for its line breaks and escapes
        raise too_many(f"about {len(payload) // 4 * 3}", max_bytes, "bytes")
    return _decode_base64(payload)


def _inline_kind(text: str) -> str | None:
    """The kind of a text that is the picture itself, as transformers' image pipelines take it; `None` of others.

    Base64 text is what begins like a picture when it is decoded, while no file is called so.
    """
    if _DATA_URI.match(text):
        return "data: URI"
    head = "".join(text[: 2 * _SNIFFED].split())[:_SNIFFED].translate(_URL_SAFE)
    head = head[: len(head) // 4 * 4]
    if not _BASE64.fullmatch(head) or sniff_format(base64.b64decode(head)) is None:
        return None
    return None if os.path.isfile(text) else "base64 text"  # noqa: PTH113 (Path.is_file raises for long names)


def _decode_base64(payload: str) -> bytes:
    plain = "".join(urllib.parse.unquote(payload).split()).rstrip("=").translate(_URL_SAFE)
    try:
        return base64.b64decode(f"{plain}{'=' * (-len(plain) % 4)}", validate=True)
    except (binascii.Error, ValueError):  # ValueError: characters beyond ASCII
        raise ImageError("its content is not base64") from None


def _read_path(path: Path, max_bytes: int) -> bytes:
    try:
        _checked_size(path.stat(), max_bytes)
        # Not blocking, and looked at once more: what was a file may have become a FIFO.
        with open(path, "rb", opener=_open_without_blocking) as file:
            size = _checked_size(os.fstat(file.fileno()), max_bytes)
            data = file.read(size + 1)  # for more, that much memory would be taken first
            return data if len(data) <= size else data + file.read(max_bytes - size)  # it has grown
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError("neither a path nor base64 text of a picture") from None
        raise ImageError(f"cannot be read ({error.strerror})") from error
    except ImageError:
        raise
    except ValueError as error:
        raise ImageError(f"not a path ({shorten(str(error))})") from error


def _open_without_blocking(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK if os.name == "posix" else flags)


def _checked_size(status: os.stat_result, max_bytes: int) -> int:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("is a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError("is not a regular file")
    if status.st_size > max_bytes:
        raise too_many(status.st_size, max_bytes, "bytes")
    return status.st_size


def _read_file_object(file: BinaryIO, max_bytes: int) -> bytes:
    try:
        if file.seekable():
            file.seek(0)  # like PIL, so that a buffer which was just written can be opened
        data = file.read(max_bytes + 1)
    except AttributeError:
        raise TypeError(
            "an image is a path, an http(s) URL, base64 text, bytes, a binary file object, a PIL image or a dict with "
            f"'path' and 'bytes', not {type(file).__name__}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: closed
        raise ImageError(f"cannot be read ({shorten(str(error))})") from error
    if not isinstance(data, bytes):
        raise TypeError(f"the file object returned {type(data).__name__}, not bytes; open it in binary mode")
    return data
