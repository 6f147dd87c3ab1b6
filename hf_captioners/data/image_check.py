"""A quick pass over the headers of a data set's pictures, before a training begins that would meet them much later."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image

from ..modeling.captioner_image_format import SIGNATURE_BYTES, UNREAD_FORMATS, readable_formats, sniff_format
from ..modeling.captioner_image_io import open_image
from ..modeling.captioner_image_limits import MAX_BYTES, MAX_PIXELS, limit_of, too_many
from .bad_rows import BadRows
from .files import regular_file
from .printable import printable
from .rows import undecoded

logger = logging.getLogger(__name__)

_THREADS, _SHOWN = 8, 5
_BLOCK = 512  # pictures in memory, where rows hold their bytes
# what PIL's parsers let out of a broken header
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError)


class BrokenImagesError(ValueError):
    """Pictures of a data set that cannot be opened; the message counts them and names the first."""


def check_images(rows: Any, source: str, bad_rows: BadRows | None = None) -> Any:
    """Look at the header of each picture: whether it is there, a picture, and within the limits.

    A JPEG, PNG, GIF or WebP file that does not end as its format says is decoded, as training would, to see whether it
    is cut off; pixels of the others are not decoded, and damage in their middle is not noticed. Pictures behind URLs
    are passed over.

    Args:
        rows (`datasets.Dataset`): with a column `image`.
        source (`str`): where they are from, for the message.
        bad_rows ([`BadRows`], *optional*): gets pictures that are missing or broken; by default they are one error.

    Returns:
        `datasets.Dataset`: the rows, without those whose pictures cannot be opened.

    Raises:
        BrokenImagesError: pictures are missing or broken, all of them or without `bad_rows` that skips them.

    Example:

    ```python
    >>> import datasets
    >>> from hf_captioners.data.image_check import check_images
    >>> check_images(datasets.Dataset.from_dict({"image": ["a.png"]}).cast_column("image", datasets.Image()), "mine")
    Traceback (most recent call last):
        ...
    hf_captioners.data.image_check.BrokenImagesError: mine: 1 of 1 pictures cannot be opened: a.png (no such file)

    ```
    """
    faults = [header.fault for header in read_headers(undecoded(rows)["image"])]
    broken = [fault for fault in faults if fault is not None]
    if not broken:
        logger.info("%s: the headers of %d pictures are fine", source, len(faults))
        return rows
    if bad_rows is None or not bad_rows.skips or len(broken) == len(faults):
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise BrokenImagesError(
            f"{source}: {len(broken)} of {len(faults)} pictures cannot be opened: {', '.join(broken[:_SHOWN])}{more}"
        )
    for fault in broken:
        bad_rows.add(BrokenImagesError(f"{source}: picture {fault}"))
    return rows.select([index for index, fault in enumerate(faults) if fault is None])


class ImageHeader(NamedTuple):
    """The header of a picture.

    Attributes:
        size (`tuple[int, int]`, *optional*): width and height in pixels; `None` where it was not read, as of URLs.
        fault (`str`, *optional*): name of the picture and why it cannot be opened.
    """

    size: tuple[int, int] | None = None
    fault: str | None = None


def read_headers(images: Sequence[Any]) -> Iterator[ImageHeader]:
    """Read the headers of pictures, several at a time.

    Args:
        images (`Sequence`): paths or `{"path": ..., "bytes": ...}`; see [`undecoded`].

    Yields:
        [`ImageHeader`]: of each picture.

    Example:

    ```python
    >>> import io
    >>> from PIL import Image
    >>> from hf_captioners.data.image_check import read_headers
    >>> Image.new("L", (4, 3)).save(file := io.BytesIO(), "PNG")
    >>> list(read_headers([{"path": None, "bytes": file.getvalue()}]))
    [ImageHeader(size=(4, 3), fault=None)]

    ```
    """
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="check_images") as pool:
        for start in range(0, len(images), _BLOCK):
            yield from pool.map(read_header, images[start : start + _BLOCK])


def byte_length(image: Mapping[str, Any]) -> int:
    """The bytes of a picture's file.

    Args:
        image (`Mapping`): `{"path": ..., "bytes": ...}`.

    Returns:
        `int`

    Raises:
        OSError: it is not there.
    """
    return len(image["bytes"]) if image["bytes"] is not None else Path(image["path"]).stat().st_size


def read_header(image: Any) -> ImageHeader:
    """Read the header of a picture; see [`read_headers`]."""
    encoded: Mapping[str, Any] = image if isinstance(image, Mapping) else {"path": image}
    content, path = encoded.get("bytes"), encoded.get("path")
    if isinstance(path, Image.Image) or (content is None and "://" in str(path)):
        return ImageHeader()
    try:
        if content is not None:
            return ImageHeader(_check_file(io.BytesIO(content), len(content), content))
        with regular_file(str(path), "picture").open("rb") as file:
            return ImageHeader(_check_file(file, os.fstat(file.fileno()).st_size, str(path)))
    except FileNotFoundError:
        return ImageHeader(fault=printable(f"{path} (no such file)"))
    except _BROKEN as error:
        return ImageHeader(fault=printable(f"{path or '<bytes>'} ({error})"))


def _check_file(file: IO[bytes], size: int, source: str | bytes) -> tuple[int, int] | None:
    """Width and height of a picture that can be opened."""
    pixels = _check_header(file, size)
    if not _ends_well(file, size):
        open_image(source)
    return pixels


_ENDS = {  # of whole files, by their beginning; files that go on behind it are valid, too, and are decoded
    b"\xff\xd8": b"\xff\xd9",
    b"\x89PNG": b"\0\0\0\0IEND\xaeB`\x82",
    b"GIF8": b";",
}


def _ends_well(file: IO[bytes], size: int) -> bool:
    """Tell whether a file ends as its format says; `False` if it must be decoded to be known whole."""
    file.seek(0)
    start = file.read(12)
    if start[:4] == b"RIFF":  # WebP says how long it is
        return int.from_bytes(start[4:8], "little") + 8 <= size
    end = next((end for beginning, end in _ENDS.items() if start.startswith(beginning)), b"")
    file.seek(max(size - len(end), 0))
    return file.read(len(end)) == end


def _check_header(file: IO[bytes], size: int) -> tuple[int, int] | None:
    if size == 0:
        raise ValueError("the file is empty")
    if size > (limit := limit_of("bytes", MAX_BYTES)):
        raise too_many(size, limit, "bytes")
    kind = sniff_format(file.read(SIGNATURE_BYTES))
    if kind in UNREAD_FORMATS and kind not in readable_formats():
        raise ValueError(f"a picture in {UNREAD_FORMATS[kind]}")
    if kind == "HEIF":
        return None
    file.seek(0)
    try:
        with Image.open(file, formats=[name for name in readable_formats() if name != "HEIF"]) as image:
            width, height = image.size
    except Image.UnidentifiedImageError:
        raise ValueError("not a readable picture") from None
    if width * height > (limit := limit_of("pixels", MAX_PIXELS)):
        raise too_many(f"{width} x {height}", limit, "pixels")
    return width, height
