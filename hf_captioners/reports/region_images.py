"""Pictures with the regions of a detector drawn over them: boxes, and above each its attribute and object.

Colours go round by object name, so that objects of one kind have the same. Large boxes are drawn first, and a label
moves where it covers no other one, if there is such a place near its box.
"""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from PIL import Image, ImageDraw, ImageFont

from ..data.files import write_whole
from ..data.printable import printable

Color: TypeAlias = tuple[int, int, int]
Box: TypeAlias = tuple[float, float, float, float]

BEST = 12
_HUES = 12
_MAX_CHARACTERS = 40
_INK = (255, 255, 255)


def draw_regions(
    image: Image.Image,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    kinds: Sequence[str] | None = None,
    font: str | Path | None = None,
) -> Image.Image:
    """Draw boxes with labels over a picture.

    Args:
        image (`PIL.Image.Image`): the picture; it is not changed.
        boxes (`Sequence` of x1, y1, x2, y2): in its pixels.
        labels (`Sequence[str]`): a text for each box; an empty one draws the box alone.
        kinds (`Sequence[str]`, *optional*): names that share a colour; by default the labels.
        font (`str` or `Path`, *optional*): a TrueType file, for letters that PIL's built-in font lacks.

    Returns:
        `PIL.Image.Image`: RGB, as large as the picture.

    Raises:
        ValueError: there are not as many labels or kinds as boxes.
        OSError: `font` cannot be read.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_captioners.reports.region_images import draw_regions
    >>> draw_regions(Image.new("RGB", (200, 100)), [(20, 30, 90, 80)], ["brown dog 0.9"]).size
    (200, 100)

    ```
    """
    kinds = labels if kinds is None else kinds
    if not len(boxes) == len(labels) == len(kinds):
        raise ValueError(f"{len(boxes)} boxes have {len(labels)} labels and {len(kinds)} kinds; expected as many")
    page = image.convert("RGB") if image.mode != "RGB" else image.copy()
    pen = ImageDraw.Draw(page, "RGBA")
    size = max(11, min(28, round(min(page.size) / 26)))
    letters = ImageFont.load_default(size) if font is None else ImageFont.truetype(str(font), size)
    line = max(2, round(min(page.size) / 220))
    rows = sorted(range(len(boxes)), key=lambda row: -_area(boxes[row]))
    for row in rows:
        pen.rectangle(_inside(boxes[row], page.size), outline=_color(kinds[row]), width=line)
    taken: list[Box] = []
    for row in rows:
        if labels[row]:
            _write_label(pen, page.size, boxes[row], labels[row], _color(kinds[row]), letters, taken)
    return page


def draw_best(
    image: Image.Image, records: Sequence[Mapping[str, Any]], count: int = BEST, font: str | Path | None = None
) -> Image.Image:
    """Draw the regions of a detector that are named most surely, with attribute, object and its probability.

    Args:
        image (`PIL.Image.Image`): the picture.
        records (`Sequence[Mapping]`): of each region `refined_box`, `object`, `score` and `attribute`.
        count (`int`, defaults to 12): how many.
        font: as in [`draw_regions`].

    Returns:
        `PIL.Image.Image`: as of [`draw_regions`].
    """
    best = sorted(records, key=lambda record: -record["score"])[:count]
    labels = [f"{record['attribute']} {record['object']} {record['score']:.2f}".strip() for record in best]
    boxes = [record["refined_box"] for record in best]
    return draw_regions(image, boxes, labels, kinds=[record["object"] for record in best], font=font)


def save_regions(page: Image.Image, path: str | Path) -> None:
    """Write a drawn picture, whole or not at all; the suffix (`.png`, `.jpg`) says how.

    Args:
        page (`PIL.Image.Image`): the picture.
        path (`str` or `Path`): the file; folders above it are made.

    Raises:
        ValueError: the suffix is another.
    """
    path, kind = Path(path), check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: page.save(temporary, kind, **({"quality": 92} if kind == "JPEG" else {})))


def check_suffix(path: str | Path) -> str:
    """PIL's name of the format that a file's suffix asks for; ValueError for another than `.png` and `.jpg`."""
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: a picture of regions is written as .png or .jpg")
    return kind


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _inside(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A box cut to the pixels of a picture, at least a pixel large."""
    width, height = size
    x1, y1 = min(max(box[0], 0), width - 1), min(max(box[1], 0), height - 1)
    return x1, y1, max(x1, min(box[2], width - 1)), max(y1, min(box[3], height - 1))


def _color(kind: str) -> Color:
    """A strong colour that white letters can be read on, always the same for a name."""
    hue = zlib.crc32(kind.encode("utf-8", "replace")) % _HUES / _HUES
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.9, 0.62)
    return round(255 * red), round(255 * green), round(255 * blue)


def _write_label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Sequence[float],
    label: str,
    color: Color,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Box],
) -> None:
    text = printable(label)[:_MAX_CHARACTERS]
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    width, height = right - left + 6, bottom - top + 6
    field = _place(_inside(box, size), (width, height), size, taken)
    pen.rectangle(field, fill=(*color, 225))
    pen.text((field[0] + 3 - left, field[1] + 3 - top), text, font=font, fill=_INK)
    taken.append(field)


def _place(box: Box, extent: tuple[float, float], size: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Place of a label: above the box, in it or below, the first place that covers no other label."""
    width, height = extent
    x1, y1, x2, y2 = box
    places = [(x1, y1 - height), (x1, y1), (x1, y2 - height), (x1, y2), (x2 - width, y1 - height), (x2 - width, y1)]
    places += [(x1, y1 + step * height) for step in range(1, max(1, int((y2 - y1) // height)))]
    fields = []
    for x, y in places:
        left = min(max(x, 0), max(size[0] - 1 - width, 0))
        upper = min(max(y, 0), max(size[1] - 1 - height, 0))
        fields.append((left, upper, left + width, upper + height))
    return next((field for field in fields if not any(_touch(field, other) for other in taken)), fields[0])


def _touch(field: Box, other: Box) -> bool:
    return field[0] < other[2] and other[0] < field[2] and field[1] < other[3] and other[1] < field[3]
