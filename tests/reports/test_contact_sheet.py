"""Contact sheets keep their shape, whatever is put on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from hf_captioners.reports import contact_sheet as module
from hf_captioners.reports.contact_sheet import SheetItem, contact_sheet

RED = Image.new("RGB", (96, 96), (220, 20, 20))


def has_color(page: Image.Image, color: tuple[int, int, int]) -> bool:
    return bool((np.asarray(page) == color).all(-1).any())


def test_grid_and_width() -> None:
    one = contact_sheet([SheetItem(RED, "a red field")], cell_width=200)
    four = contact_sheet([SheetItem(RED, "a red field")] * 4, columns=4, cell_width=200)
    five = contact_sheet([SheetItem(RED, "a red field")] * 5, columns=4, cell_width=200)
    assert four.width == one.width + 3 * (200 + 18) and four.height == one.height
    assert five.width == four.width and five.height > four.height + 190
    assert one.mode == "RGB" and has_color(one, (220, 20, 20))


def test_cards_of_a_row_are_equally_high() -> None:
    items = [SheetItem(RED, "short"), SheetItem(RED, "a long caption " * 12, ["a reference"] * 5)]
    page = np.asarray(contact_sheet(items, columns=2, cell_width=200))
    edge = (page == module._EDGE).all(-1)
    bottoms = [np.flatnonzero(edge[:, x])[-1] for x in (28 + 100, 28 + 218 + 100)]
    assert bottoms[0] == bottoms[1] == page.shape[0] - 28


@pytest.mark.parametrize(
    "text",
    [
        "w" * 5000,
        "word " * 5000,
        "一个男人在海边骑自行车" * 60,
        "собака бежит по траве " * 40,
        "رجل يركب حصانا " * 40,
        "\U0001f600 \ud800 \x00 \x1b[31m \t\n" * 50,
        "",
    ],
    ids=["one word", "many words", "chinese", "russian", "arabic", "odd characters", "empty"],
)
def test_no_text_breaks_the_layout(text: str) -> None:
    fonts = module._fonts(None)
    lines = module._wrap(text, fonts.caption, 200, 5)
    assert len(lines) <= 5 and all(fonts.caption.getlength(line) <= 200 for line in lines)
    page = contact_sheet([SheetItem(RED, text, [text] * 9, right=True)], cell_width=228, title=text)
    assert page.width == 228 + 2 * 28 and page.height < 1100
    pixels = np.asarray(page)
    assert (pixels[:, :20] == module._PAGE).all() and (pixels[:, -20:] == module._PAGE).all()


def test_wrapping_keeps_every_word_that_fits() -> None:
    font = module._fonts(None).caption
    text = "a large red circle above a small blue square"
    lines = module._wrap(text, font, 150, 9)
    assert len(lines) > 1 and " ".join(lines) == text
    assert module._wrap(text, font, 150, 1)[0].endswith("...")


def test_caption_is_larger_and_darker_than_references() -> None:
    fonts = module._fonts(None)
    assert fonts.caption.size > fonts.reference.size and sum(module._INK) < sum(module._GREY)
    without = contact_sheet([SheetItem(RED, "caption")])
    with_reference = contact_sheet([SheetItem(RED, "caption", ["reference"])])
    assert with_reference.height > without.height
    assert not has_color(without, module._GREY) and has_color(with_reference, module._GREY)


@pytest.mark.parametrize(("right", "green", "red"), [(True, True, False), (False, False, True), (None, False, False)])
def test_mark(right: bool | None, green: bool, red: bool) -> None:
    page = contact_sheet([SheetItem(Image.new("RGB", (50, 50), "white"), "caption", right=right)])
    assert (has_color(page, module._GREEN), has_color(page, module._RED)) == (green, red)


def drawn_texts(monkeypatch: pytest.MonkeyPatch, items: list[SheetItem]) -> str:
    texts: list[str] = []
    original = ImageDraw.ImageDraw.text

    def text(self, xy, text, *args, **kwargs):
        texts.append(text)
        return original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", text)
    contact_sheet(items)
    return " ".join(texts)


def test_missing_and_broken_pictures_show_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture at all")
    items = [
        SheetItem(RED, "fine"),
        SheetItem(None, "gone", reason="the tar member was truncated"),
        SheetItem(None, "unknown"),
        SheetItem(tmp_path / "missing.jpg", "lost"),
        SheetItem(tmp_path / "broken.jpg", "broken"),
    ]
    drawn = drawn_texts(monkeypatch, items)
    assert "truncated" in drawn and "no picture" in drawn
    # a path may be cut anywhere to fit its line
    assert "missing.jpg" in drawn.replace(" ", "") and "broken.jpg" in drawn.replace(" ", "")
    assert all(item.caption in drawn for item in items)


def test_references_beyond_five_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = drawn_texts(monkeypatch, [SheetItem(RED, "caption", [f"reference{i}" for i in range(8)])])
    assert "reference4" in drawn and "reference5" not in drawn and "and 3 more" in drawn


@pytest.mark.parametrize("size", [(400, 3), (3, 400), (1, 1), (640, 480)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1"])
def test_any_picture_fits_its_frame(size: tuple[int, int], mode: str) -> None:
    page = contact_sheet([SheetItem(Image.new(mode, size), "caption")], cell_width=200)
    assert page.width == 256 and page.height < 350


def test_pictures_of_a_page_share_one_frame() -> None:
    wide, tall = Image.new("RGB", (200, 100), "red"), Image.new("RGB", (100, 120), "blue")
    assert (
        contact_sheet([SheetItem(wide, "c"), SheetItem(tall, "c")]).height
        == contact_sheet([SheetItem(tall, "c")]).height
    )


def test_written_file_is_the_page(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "sheet.png"
    page = contact_sheet([SheetItem(RED, "caption")], path, title="Title")
    with Image.open(path) as written:
        assert written.format == "PNG" and written.convert("RGB").tobytes() == page.tobytes()
    assert [p.name for p in path.parent.iterdir()] == ["sheet.png"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"old")

    def fail(self, target, **kwargs):
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        contact_sheet([SheetItem(RED, "caption")], path)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["sheet.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": []}, "items is empty"),
        ({"columns": 0}, "columns is 0"),
        ({"cell_width": 50}, "cell_width is 50"),
        ({"path": "sheet.jpg"}, r"must end in \.png"),
    ],
)
def test_wrong_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contact_sheet(**{"items": [SheetItem(RED, "caption")], **arguments})


def test_font_that_is_no_font(tmp_path: Path) -> None:
    (tmp_path / "font.ttf").write_bytes(b"no font")
    with pytest.raises(OSError):
        contact_sheet([SheetItem(RED, "caption")], font=tmp_path / "font.ttf")


def test_default_font_is_scalable() -> None:
    assert isinstance(module._fonts(None).caption, ImageFont.FreeTypeFont)
