"""Contact sheets: pictures with their captions on one page, to see at a glance what a captioner says.

Every item becomes a card: the picture, the caption below it, the references smaller and in grey, and a green tick or a
red cross where it is known whether the caption is right. Text is wrapped and shortened to a bounded number of lines,
so no caption can break the page. A picture that cannot be opened becomes a grey field with the reason.

Letters that the built-in font lacks are drawn as empty boxes; give `font` a TrueType file that has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from ..data.files import write_whole
from ..modeling.captioner_image_io import ImageError, ImageSource, open_image

Font: TypeAlias = ImageFont.FreeTypeFont
Color: TypeAlias = tuple[int, int, int]

_PAGE, _CARD, _EDGE, _FIELD = (243, 243, 240), (255, 255, 255), (222, 222, 217), (232, 232, 229)
_INK, _GREY, _PALE_INK = (26, 28, 33), (118, 121, 128), (140, 143, 148)
_GREEN, _RED = (36, 138, 77), (203, 54, 50)

_PAGE_MARGIN, _GAP, _PADDING, _BETWEEN = 28, 18, 14, 6  # pixels; _BETWEEN: two references
_CAPTION_LINES, _REFERENCE_LINES, _REASON_LINES, _TITLE_LINES = 5, 2, 5, 2
_MAX_REFERENCES = 5
_BOLD = 0.3  # stroke in pixels: the built-in font has no bold face
_NO_CAPTION = "(no caption)"
_MAX_CHARACTERS = 1000  # of one text; far more than its lines hold


@dataclass(frozen=True)
class SheetItem:
    """A card of a contact sheet.

    Args:
        image (`ImageSource` or `None`): anything `open_image` opens: a PIL image, path, URL, bytes, ...; `None` where
            there is no picture.
        caption (`str`): the captioner's.
        references (`Sequence[str]`, *optional*, defaults to none): captions by people; the first five are shown.
        right (`bool`, *optional*): `True` draws a green tick, `False` a red cross, `None` no mark.
        reason (`str`, *optional*): why there is no picture; shown in its place when `image` is `None`.
    """

    image: ImageSource | None
    caption: str
    references: Sequence[str] = ()
    right: bool | None = None
    reason: str | None = None


@dataclass(frozen=True)
class _Fonts:
    title: Font
    caption: Font
    reference: Font


@dataclass(frozen=True)
class _Card:
    """An item ready to be drawn: its picture fitted to the cell, its texts cut into lines."""

    image: Image.Image | None
    caption: list[str]
    references: list[list[str]]
    reason: list[str]
    right: bool | None


def contact_sheet(
    items: Sequence[SheetItem],
    path: str | Path | None = None,
    *,
    columns: int = 4,
    cell_width: int = 280,
    title: str | None = None,
    font: str | Path | None = None,
) -> Image.Image:
    """Draw pictures and captions on one page, and write the page if a path is given.

    Args:
        items (`Sequence[SheetItem]`): what to show, row by row.
        path (`str` or `Path`, *optional*): a `.png` file to write; folders above it are made, and the file appears
            whole or not at all.
        columns (`int`, *optional*, defaults to 4): cards in a row; fewer items make a narrower page.
        cell_width (`int`, *optional*, defaults to 280): the width of a card in pixels, 120 or more.
        title (`str`, *optional*): a headline.
        font (`str` or `Path`, *optional*): a TrueType file, for letters that PIL's built-in font lacks.

    Returns:
        `PIL.Image.Image`: the RGB page. Cards of one row are equally high, pictures of the whole page share one frame.

    Raises:
        ValueError: when there are no items, `columns` is below 1, `cell_width` is below 120, or `path` is no `.png`.
        OSError: when `font` cannot be read or `path` cannot be written.

    Example:

        >>> red = Image.new("RGB", (64, 48), "red")
        >>> contact_sheet([SheetItem(red, "a red field", ["all red"], right=True)], cell_width=200).width
        256
    """
    _check(items, path, columns, cell_width)
    fonts = _fonts(font)
    inner = cell_width - 2 * _PADDING
    frame = (inner, _frame_height(opened_images := [_open(item) for item in items], inner))
    cards = [_card(item, *opened, frame, fonts) for item, opened in zip(items, opened_images, strict=True)]
    columns = min(columns, len(cards))
    rows = [cards[start : start + columns] for start in range(0, len(cards), columns)]
    heights = [max(_card_height(card, frame, fonts) for card in row) for row in rows]
    width = 2 * _PAGE_MARGIN + columns * cell_width + (columns - 1) * _GAP
    headline = _wrap(title or "", fonts.title, width - 2 * _PAGE_MARGIN, _TITLE_LINES)
    top = _PAGE_MARGIN + (len(headline) * _line_height(fonts.title) + _GAP if headline else 0)
    page = Image.new("RGB", (width, top + sum(heights) + (len(rows) - 1) * _GAP + _PAGE_MARGIN), _PAGE)
    pen = ImageDraw.Draw(page)
    _write_lines(pen, (_PAGE_MARGIN, _PAGE_MARGIN), headline, fonts.title, _INK, _BOLD)
    for row, height in zip(rows, heights, strict=True):
        for column, card in enumerate(row):
            _draw_card(page, pen, card, (_PAGE_MARGIN + column * (cell_width + _GAP), top), height, frame, fonts)
        top += height + _GAP
    if path is not None:
        _save_png(page, Path(path))
    return page


def _check(items: Sequence[SheetItem], path: str | Path | None, columns: int, cell_width: int) -> None:
    if not items:
        raise ValueError("items is empty; a contact sheet needs at least one SheetItem")
    if columns < 1:
        raise ValueError(f"columns is {columns}; it must be 1 or more")
    if cell_width < 120:
        raise ValueError(f"cell_width is {cell_width} pixels; it must be 120 or more for text to be readable")
    if path is not None and Path(path).suffix.lower() != ".png":
        raise ValueError(f"path is {str(path)!r}; a contact sheet is written as PNG, so it must end in .png")


# --- text -----------------------------------------------------------------------------------------------------------


def _fonts(path: str | Path | None) -> _Fonts:
    sizes = (26, 17, 13)
    if path is not None:
        return _Fonts(*(ImageFont.truetype(str(path), size) for size in sizes))
    fonts = [ImageFont.load_default(size) for size in sizes]
    if not all(isinstance(font, ImageFont.FreeTypeFont) for font in fonts):
        raise OSError("this Pillow was built without FreeType, which scales the text of a contact sheet")
    return _Fonts(*(font for font in fonts if isinstance(font, ImageFont.FreeTypeFont)))


def _line_height(font: Font) -> int:
    return round(font.size * 1.36)


def _clean(text: str) -> str:
    """Printable text on one line: white space and control characters become blanks, lone surrogates question marks."""
    text = text[: _MAX_CHARACTERS + 1].encode("utf-8", "replace").decode("utf-8")
    return re.sub(r"[\s\x00-\x1f\x7f-\x9f]+", " ", text).strip()


def _wrap(text: str, font: Font, width: int, max_lines: int) -> list[str]:
    """Cut a text into at most `max_lines` lines of `width` pixels; what does not fit ends in an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in _clean(text).split(" "):
        longer = f"{line} {word}" if line else word
        if font.getlength(longer) <= width:
            line = longer
            continue
        if line:
            lines.append(line)
        pieces = _break_word(word, font, width)  # more than one for URLs and for scripts without blanks
        lines += pieces[:-1]
        line = pieces[-1]
        if len(lines) > max_lines:
            break
    if line:
        lines.append(line)
    if len(lines) <= max_lines:
        return lines
    return [*lines[: max_lines - 1], _shorten(lines[max_lines - 1], font, width)]


def _break_word(word: str, font: Font, width: int) -> list[str]:
    pieces = [""]
    for character in word:
        if pieces[-1] and font.getlength(pieces[-1] + character) > width:
            pieces.append("")
        pieces[-1] += character
    return pieces


def _shorten(line: str, font: Font, width: int) -> str:
    while line and font.getlength(line + "...") > width:
        line = line[:-1]
    return line.rstrip(" .,;:") + "..."


def _write_lines(
    pen: ImageDraw.ImageDraw,
    start: tuple[int, int],
    lines: list[str],
    font: Font,
    color: Color,
    stroke: float = 0.0,
) -> int:
    """Write lines below each other and return the y below the last one."""
    x, y = start
    for line in lines:
        pen.text((x, y + _line_height(font) // 2), line, fill=color, font=font, anchor="lm", stroke_width=stroke)
        y += _line_height(font)
    return y


# --- cards ----------------------------------------------------------------------------------------------------------


def _open(item: SheetItem) -> tuple[Image.Image | None, str]:
    """The picture, or `None` and the reason."""
    if item.image is None:
        return None, item.reason or "no picture"
    try:
        return open_image(item.image), ""
    except ImageError as error:
        return None, str(error)


def _frame_height(images: Sequence[tuple[Image.Image | None, str]], width: int) -> int:
    """The height of the frame: that of the highest picture at full width, within limits."""
    ratios = [image.height / image.width for image, _ in images if image is not None]
    return round(width * min(1.25, max([0.55, *ratios])) if ratios else width * 0.75)


def _card(item: SheetItem, image: Image.Image | None, why: str, frame: tuple[int, int], fonts: _Fonts) -> _Card:
    width = frame[0]
    reference_lines = [
        _wrap(text, fonts.reference, width, _REFERENCE_LINES) for text in item.references[:_MAX_REFERENCES]
    ]
    if (omitted := len(item.references) - _MAX_REFERENCES) > 0:
        reference_lines.append([f"and {omitted} more"])
    if image is not None:
        image = ImageOps.contain(image, frame, Image.Resampling.LANCZOS)
    return _Card(
        image=image,
        caption=_wrap(item.caption, fonts.caption, width, _CAPTION_LINES),
        references=[lines for lines in reference_lines if lines],
        reason=_wrap(why, fonts.reference, width - 2 * _PADDING, _REASON_LINES),
        right=item.right,
    )


def _card_height(card: _Card, frame: tuple[int, int], fonts: _Fonts) -> int:
    height = _PADDING + frame[1] + 10 + max(1, len(card.caption)) * _line_height(fonts.caption) + _PADDING
    if card.references:
        height += 9 + sum(len(lines) * _line_height(fonts.reference) + _BETWEEN for lines in card.references)
    return height


def _draw_card(
    page: Image.Image,
    pen: ImageDraw.ImageDraw,
    card: _Card,
    corner: tuple[int, int],
    height: int,
    frame: tuple[int, int],
    fonts: _Fonts,
) -> None:
    (left, top), (inner, frame_height) = corner, frame
    pen.rounded_rectangle((left, top, left + inner + 2 * _PADDING, top + height), 10, fill=_CARD, outline=_EDGE)
    x, y = left + _PADDING, top + _PADDING
    pen.rectangle((x, y, x + inner - 1, y + frame_height - 1), fill=_FIELD)
    if card.image is not None:
        page.paste(card.image, (x + (inner - card.image.width) // 2, y + (frame_height - card.image.height) // 2))
    else:
        text_height = len(card.reason) * _line_height(fonts.reference)
        _write_lines(
            pen, (x + _PADDING, y + (frame_height - text_height) // 2), card.reason, fonts.reference, _PALE_INK
        )
    if card.right is not None:
        badge = _badge(card.right)
        page.paste(badge, (x + inner - badge.width - 7, y + 7), badge)
    text, ink, stroke = (card.caption, _INK, _BOLD) if card.caption else ([_NO_CAPTION], _PALE_INK, 0.0)
    y = _write_lines(pen, (x, y + frame_height + 10), text, fonts.caption, ink, stroke) + 9
    for lines in card.references:
        y = _write_lines(pen, (x, y), lines, fonts.reference, _GREY) + _BETWEEN


def _badge(right: bool, side: int = 26) -> Image.Image:
    """A tick on green or a cross on red, with a white rim; drawn four times as large for smooth edges."""
    big = side * 4
    badge = Image.new("RGBA", (big, big), (255, 255, 255, 0))
    pen = ImageDraw.Draw(badge)
    pen.ellipse((0, 0, big - 1, big - 1), fill=(255, 255, 255, 255))
    pen.ellipse((7, 7, big - 8, big - 8), fill=_GREEN if right else _RED)
    tick = [(0.28, 0.52), (0.44, 0.67), (0.72, 0.36)]
    strokes = [tick] if right else [[(0.34, 0.34), (0.66, 0.66)], [(0.66, 0.34), (0.34, 0.66)]]
    for stroke in strokes:
        pen.line([(x * big, y * big) for x, y in stroke], fill=(255, 255, 255, 255), width=10, joint="curve")
    return badge.resize((side, side), Image.Resampling.LANCZOS)


def _save_png(page: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: page.save(temporary, format="PNG", optimize=True))
