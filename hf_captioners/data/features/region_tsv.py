"""Region features as lines of base64: the TSV files that Anderson et al. published with bottom-up attention.

A line is an image, its fields separated by tabs, without a header: `image_id`, `image_w`, `image_h`, `num_boxes`, and
in base64 of little-endian float32 `boxes` (`num_boxes` x 4: x1, y1, x2, y2 in pixels) and `features` (`num_boxes` x
width). https://github.com/peteanderson80/bottom-up-attention
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..bad_rows import BadRows
from ..captions.records import id_of
from ..files import regular_file
from ..progress import progress
from .store import FeatureError, ImageId

FIELDS = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")


def split_line(line: bytes, where: str) -> list[bytes]:
    """The fields of a line; FeatureError if it has not six."""
    fields = line.rstrip(b"\r\n").split(b"\t")
    if len(fields) != len(FIELDS):
        raise FeatureError(f"{where} has {len(fields)} fields, expected {len(FIELDS)}: {', '.join(FIELDS)}")
    return fields


def image_id_of(fields: list[bytes], where: str) -> ImageId:
    """The id of a line's image; FeatureError for none."""
    try:
        return id_of(fields[0].decode("utf-8", "replace"), f"{where}: image_id")
    except ValueError as error:
        raise FeatureError(str(error)) from error


def _number(fields: list[bytes], name: str, where: str) -> int:
    text = fields[FIELDS.index(name)].strip()
    if not text.isdigit() or len(text) > 9:
        raise FeatureError(f"{where}: {name} is {text[:40]!r}, expected a whole number")
    return int(text)


def _size(fields: list[bytes], where: str) -> tuple[int, int]:
    return _number(fields, "image_w", where), _number(fields, "image_h", where)


def _array(fields: list[bytes], name: str, where: str) -> np.ndarray:
    """`boxes` or `features`, `(num_boxes, width)`."""
    try:
        return decode_array(fields[FIELDS.index(name)], _number(fields, "num_boxes", where), name)
    except ValueError as error:
        raise error if isinstance(error, FeatureError) else FeatureError(f"{where}: {name}: {error}") from error


def decode_array(text: str | bytes, num_boxes: int, part: str) -> np.ndarray:
    """Decode boxes or features from base64 of float32.

    Args:
        text (`str` or `bytes`): the base64.
        num_boxes (`int`): rows of the array.
        part (`str`): `"boxes"`, four numbers a row, or `"features"`.

    Returns:
        `np.ndarray` of shape `(num_boxes, width)`

    Raises:
        ValueError: it is no base64, or not of so many rows.

    Example:

    ```python
    >>> import base64
    >>> import numpy as np
    >>> from hf_captioners.data.features.region_tsv import decode_array
    >>> decode_array(base64.b64encode(np.ones((36, 2048), "<f4").tobytes()), 36, "features").shape
    (36, 2048)

    ```
    """
    try:
        content = base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise ValueError(f"no base64: {error}") from error
    width = 4 if part == "boxes" else len(content) // (4 * max(num_boxes, 1))
    if num_boxes < 0 or len(content) != num_boxes * width * 4:
        raise ValueError(f"{len(content)} bytes are no float32 numbers of {num_boxes} boxes (num_boxes)")
    return np.frombuffer(content, "<f4").reshape(num_boxes, width).copy()  # of a buffer, it could not be written


class ArrayTsv:
    """Boxes or features of a TSV, line by line from the file; in memory is where each line begins.

    Args:
        path (`Path`): the file.
        part (`str`): `"features"` or `"boxes"`.
        bad_rows ([`BadRows`]): gets lines that are cut off, have no id, or one that another line has.

    Attributes:
        ids (`list[int | str]`): image ids in the order of the file.
        sizes (`dict[int | str, tuple[int, int]]`): image id -> width and height in pixels.

    Raises:
        FeatureError: a line is bad, or there are none.
    """

    def __init__(self, path: Path, part: str, bad_rows: BadRows) -> None:
        self._path, self._part = path, part
        self._places: dict[ImageId, tuple[int, int]] = {}  # number and first byte of the line
        self.sizes: dict[ImageId, tuple[int, int]] = {}
        self._file: BinaryIO = regular_file(path, "file of regions").open("rb")
        try:
            self._index(bad_rows)
        except BaseException:
            self._file.close()
            raise
        self.ids = list(self._places)

    def _index(self, bad_rows: BadRows) -> None:
        end = 0
        with progress(total=self._path.stat().st_size, desc=f"reading {self._path.name}", unit="B",
                      unit_scale=True) as bar:  # fmt: skip
            for number, line in enumerate(self._file, start=1):
                start, end = end, end + len(line)
                bar.update(len(line))
                where = f"{self._path}: line {number}"
                try:
                    fields = split_line(line, where)
                    image_id, size = image_id_of(fields, where), _size(fields, where)
                    if image_id in self._places:
                        first = self._places[image_id][0]
                        raise FeatureError(f"{where}: image_id {image_id!r} is already that of line {first}")
                except FeatureError as error:
                    bad_rows.add(error)
                    continue
                self._places[image_id], self.sizes[image_id] = (number, start), size
        if not self._places:
            raise FeatureError(f"{self._path}: no regions in it; expected lines of {', '.join(FIELDS)}")

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the array of an image, for messages, and the array; FeatureError if it is damaged."""
        number, start = self._places[image_id]
        where = f"{self._path}: line {number}"
        self._file.seek(start)
        fields = split_line(self._file.readline(), where)
        return f"{where}: {self._part}", _array(fields, self._part, where)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_tsv(path: str | Path) -> Iterator[tuple[ImageId, np.ndarray, np.ndarray, tuple[int, int]]]:
    """Read the lines of a TSV, of [`TsvFile`] or as published.

    Args:
        path (`str` or `Path`): the file.

    Yields:
        `tuple`: the image's id, its boxes `(N, 4)`, its features `(N, feature_size)`, and its height and width.

    Raises:
        FeatureError: a line is not like that.
    """
    with regular_file(path, "file of regions").open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}: line {number}"
            fields = split_line(line, where)
            width, height = _size(fields, where)
            boxes, features = (_array(fields, name, where) for name in ("boxes", "features"))
            yield image_id_of(fields, where), boxes, features, (height, width)
