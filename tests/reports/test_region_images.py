"""Boxes and names over pictures: what is drawn where."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from hf_captioners.reports.region_images import draw_best, draw_regions, save_regions

WHITE = (255, 255, 255)


def changed(page: Image.Image) -> np.ndarray:
    return (np.asarray(page) != 255).any(-1)


def test_a_box_without_a_label_is_its_edge():
    picture = Image.new("RGB", (200, 160), WHITE)
    drawn = changed(draw_regions(picture, [(20, 30, 120, 90)], [""]))
    rows, columns = np.nonzero(drawn)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (30, 90, 20, 120)
    assert not drawn[40:80, 30:110].any() and drawn[30, 20:121].all() and drawn[30:91, 120].all()
    assert not changed(picture).any()


def test_labels_do_not_cover_each_other():
    """Three boxes at one place: their fields take more room than one does."""
    picture, box = Image.new("RGB", (300, 300), WHITE), (40, 60, 260, 260)
    bare = changed(draw_regions(picture, [box], [""])).sum()
    fields = [changed(draw_regions(picture, [box] * count, ["brown dog"] * count)).sum() - bare for count in (1, 2, 3)]
    assert fields[1] > 1.8 * fields[0] and fields[2] > 2.6 * fields[0]


@pytest.mark.parametrize("box", [(-50, -50, 20, 20), (180, 140, 400, 400), (50, 150, 60, 159), (10, 10, 10, 10)])
def test_boxes_at_the_edge(box):
    page = draw_regions(Image.new("RGB", (200, 160), WHITE), [box], ["a very long name that does not fit in here"])
    assert page.size == (200, 160) and changed(page).any()


def test_kinds_share_a_colour():
    picture = Image.new("RGB", (200, 100), WHITE)
    boxes = [(5, 5, 60, 60), (120, 20, 190, 90)]
    page = np.asarray(draw_regions(picture, boxes, ["", ""], kinds=["dog", "dog"]))
    assert (page[5, 30] == page[20, 150]).all()
    page = np.asarray(draw_regions(picture, boxes, ["", ""], kinds=["dog", "cat"]))
    assert (page[5, 30] != page[20, 150]).any()


def test_the_surest_are_drawn():
    records = [
        {"refined_box": [10 * row, 20, 10 * row + 5, 60], "object": "x", "attribute": "", "score": row / 10}
        for row in range(10)
    ]
    drawn = changed(draw_best(Image.new("L", (200, 100), 255), records, count=2))
    assert drawn[30, 90] and drawn[30, 80] and not drawn[30, :80].any()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_modes(mode):
    assert draw_regions(Image.new(mode, (60, 40)), [(1, 1, 30, 30)], ["x"]).mode == "RGB"


def test_saving(tmp_path):
    page = Image.new("RGB", (30, 20), WHITE)
    for name, kind in (("a.png", "PNG"), ("deep/b.jpg", "JPEG"), ("c.JPEG", "JPEG")):
        save_regions(page, tmp_path / name)
        with Image.open(tmp_path / name) as image:
            assert image.format == kind and image.size == (30, 20)
    with pytest.raises(ValueError, match=r"written as \.png or \.jpg"):
        save_regions(page, tmp_path / "d.gif")


def test_counts():
    with pytest.raises(ValueError, match="1 boxes have 2 labels"):
        draw_regions(Image.new("RGB", (30, 20)), [(1, 1, 2, 2)], ["a", "b"])
