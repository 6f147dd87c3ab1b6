"""The fingerprint of captioned pictures: which pictures with which captions, and how large the pictures are.

Papers fail to reproduce because data differ in ways that nobody wrote down: a few hundred pictures fewer, captions
that were cleaned, COCO scaled down to save space. So trainings and evaluations keep a fingerprint of what they read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from .image_check import read_headers
from .rows import FeatureDataset, undecoded

SIZED = 1000  # pictures whose headers give the mean size
_COCO_NAME = re.compile(r"(COCO_(train|val|test)20\d\d_)?\d{12}\.jpg")
_COCO_SIDE, _SMALLER = (
    640,
    0.9,
)  # the longer side of almost all pictures of COCO; a mean below that share is another size


@dataclass(frozen=True)
class DataFingerprint:
    """The identity of captioned pictures.

    Attributes:
        images (`int`), captions (`int`): their numbers.
        hash (`str`): 12 hexadecimal digits of names and captions; it does not depend on the order of the pictures.
        mean_size (`tuple[int, int]`, *optional*): mean width and height in pixels, of up to 1,000 pictures in equal
            steps; `None` where there are only features.
        scaled_down (`bool`, defaults to `False`): the names are those of COCO's pictures and the sizes are not.
    """

    images: int
    captions: int
    hash: str
    mean_size: tuple[int, int] | None = None
    scaled_down: bool = False

    def __str__(self) -> str:
        size = (
            "" if self.mean_size is None else f", pictures on average {self.mean_size[0]} x {self.mean_size[1]} pixels"
        )
        return f"{self.hash}{size}"


def fingerprint(
    names: Sequence[Any], captions: Sequence[Sequence[str]], images: Sequence[Any] | None = None
) -> DataFingerprint:
    """Compute the fingerprint of captioned pictures.

    Args:
        names (`Sequence`): of the files, of which the last part counts, or ids.
        captions (`Sequence[Sequence[str]]`): of each picture.
        images (`Sequence`, *optional*): the pictures, as [`read_headers`] takes them.

    Returns:
        [`DataFingerprint`]

    Example:

    ```python
    >>> from hf_captioners.data.fingerprint import fingerprint
    >>> one = fingerprint(["val/a.jpg", "b.jpg"], [["a dog"], ["a cat", "one cat"]])
    >>> one.hash == fingerprint(["b.jpg", "a.jpg"], [["a cat", "one cat"], ["a dog"]]).hash
    True
    >>> one.images, one.captions, len(one.hash)
    (2, 3, 12)

    ```
    """
    short = [PurePosixPath(name).name if isinstance(name, str) else str(name) for name in names]
    texts = [[text for text in of_image or () if isinstance(text, str)] for of_image in captions]
    order = sorted(range(len(short)), key=lambda row: (short[row], texts[row]))
    digest = hashlib.sha256()
    for row in order:
        digest.update(b"%d\n" % len(texts[row]))
        for text in (short[row], *texts[row]):
            content = text.encode("utf-8", "surrogatepass")
            digest.update(b"%d\n%b" % (len(content), content))
    some = [] if images is None else [images[row] for row in order[:: max(1, -(-len(order) // SIZED))]]
    sizes = [header.size for header in read_headers(some) if header.size is not None]
    return DataFingerprint(
        len(short), sum(map(len, texts)), digest.hexdigest()[:12], _mean(sizes), is_scaled_down(short, sizes)
    )


def fingerprint_of_rows(rows: Any) -> DataFingerprint:
    """Compute the fingerprint of rows that a trainer reads.

    Args:
        rows (`Dataset` or [`FeatureDataset`]): with `captions`, `image_id`, and `image` and `file_name` if there are.

    Returns:
        [`DataFingerprint`]
    """
    table = rows.dataset if isinstance(rows, FeatureDataset) else rows
    named = "file_name" in table.column_names and all(name is not None for name in table["file_name"][:])
    names = table["file_name" if named else "image_id"][:]
    images = undecoded(table)["image"] if "image" in table.column_names else None
    return fingerprint(names, table["captions"][:], images)


def fingerprint_of_splits(splits: Mapping[str, Any]) -> DataFingerprint:
    """Compute the fingerprint of all splits of a data set together, as [`fingerprint_of_rows`] does of one."""
    from datasets import concatenate_datasets

    wanted = ("image", "image_id", "file_name", "captions")
    return fingerprint_of_rows(
        concatenate_datasets(
            [rows.select_columns([name for name in wanted if name in rows.column_names]) for rows in splits.values()]
        )
    )


def is_scaled_down(names: Iterable[str], sizes: Sequence[tuple[int, int]]) -> bool:
    """Tell whether pictures have the names of COCO's and are smaller than these, whose longer side is 640 pixels.

    Args:
        names (`Iterable[str]`): of the files, without folders.
        sizes (`Sequence[tuple[int, int]]`): width and height of some of them.

    Returns:
        `bool`: false where no size is known.
    """
    if not sizes or not all(map(_COCO_NAME.fullmatch, names)):
        return False
    return sum(max(size) for size in sizes) / len(sizes) < _SMALLER * _COCO_SIDE


SCALED_DOWN = (
    f"pictures of COCO that are scaled down: the originals have a longer side of {_COCO_SIDE} pixels, and papers "
    "report scores on the originals"
)
"""Warning about such pictures."""


def _mean(sizes: Sequence[tuple[int, int]]) -> tuple[int, int] | None:
    if not sizes:
        return None
    width, height = (round(sum(side) / len(sizes)) for side in zip(*sizes, strict=True))
    return width, height
