"""A quick pass over the headers of a data set's pictures, before a training begins that would meet them much later."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

from PIL import Image

from ..modeling.captioner_image_format import SIGNATURE_BYTES, UNREAD_FORMATS, readable_formats, sniff_format
from ..modeling.captioner_image_io import open_image
from ..modeling.captioner_image_limits import MAX_BYTES, MAX_PIXELS, limit_of, too_many
from .files import regular_file
from .printable import printable
from .rows import undecoded

logger = logging.getLogger(__name__)

_THREADS, _SHOWN = 8, 5
_WINDOW = 256  # pictures at a time, whose bytes may be in the rows
# what PIL's parsers let out of a broken header
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError)


class BrokenImagesError(ValueError):
    """Pictures of a data set that cannot be opened; the message counts them and names the first."""


def check_images(rows: Any, source: str) -> None:
    """Look at the header of each picture: whether it is there, a picture, and within the limits.

    A JPEG, PNG, GIF or WebP file that does not end as its format says is decoded, as training would, to see whether it
    is cut off; pixels of the others are not decoded, and damage in their middle is not noticed. Pictures behind URLs
    are passed over.

    Args:
        rows (`datasets.Dataset`): with a column `image`.
        source (`str`): where they are from, for the message.

    Raises:
        BrokenImagesError: pictures are missing or broken.

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
    images = undecoded(rows)["image"]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="check_images") as pool:
        windows = (images[start : start + _WINDOW] for start in range(0, len(images), _WINDOW))
        found = (fault for window in windows for fault in pool.map(_fault, window))
        faults = [fault for fault in found if fault is not None]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise BrokenImagesError(
            f"{source}: {len(faults)} of {len(images)} pictures cannot be opened: {', '.join(faults[:_SHOWN])}{more}"
        )
    logger.info("%s: the headers of %d pictures are fine", source, len(images))


def _fault(image: Any) -> str | None:
    """The name of a picture and why it cannot be opened; `None` if its header is fine."""
    encoded = image if isinstance(image, Mapping) else {"path": image, "bytes": None}
    content, path = encoded.get("bytes"), encoded.get("path")
    if isinstance(path, Image.Image) or (content is None and "://" in str(path)):
        return None
    try:
        if content is not None:
            _check_file(io.BytesIO(content), len(content), content)
        else:
            with regular_file(str(path), "picture").open("rb") as file:
                _check_file(file, os.fstat(file.fileno()).st_size, str(path))
    except FileNotFoundError:
        return printable(f"{path} (no such file)")
    except _BROKEN as error:
        return printable(f"{path or '<bytes>'} ({error})")
    return None


def _check_file(file: IO[bytes], size: int, source: str | bytes) -> None:
    _check_header(file, size)
    if not _ends_well(file, size):
        open_image(source)


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


def _check_header(file: IO[bytes], size: int) -> None:
    if size == 0:
        raise ValueError("the file is empty")
    if size > (limit := limit_of("bytes", MAX_BYTES)):
        raise too_many(size, limit, "bytes")
    kind = sniff_format(file.read(SIGNATURE_BYTES))
    if kind in UNREAD_FORMATS and kind not in readable_formats():
        raise ValueError(f"a picture in {UNREAD_FORMATS[kind]}")
    if kind == "HEIF":
        return
    file.seek(0)
    try:
        with Image.open(file, formats=[name for name in readable_formats() if name != "HEIF"]) as image:
            width, height = image.size
    except Image.UnidentifiedImageError:
        raise ValueError("not a readable picture") from None
    if width * height > (limit := limit_of("pixels", MAX_PIXELS)):
        raise too_many(f"{width} x {height}", limit, "pixels")
