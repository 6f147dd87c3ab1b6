"""The fingerprint of data: by a second formula, in any order and layout, and COCO scaled down."""

from __future__ import annotations

import hashlib
import io

import datasets
import pytest
from PIL import Image

from hf_captioners.data.fingerprint import fingerprint, fingerprint_of_rows, fingerprint_of_splits, is_scaled_down


def encoded(width, height):
    file = io.BytesIO()
    Image.new("L", (width, height)).save(file, "PNG")
    return {"path": None, "bytes": file.getvalue()}


def test_by_hand():
    """For each picture, by name: how many captions, then length and bytes of name and captions."""
    text = "1\n5\na.jpg6\ntwo \U0001f415".encode().replace(b"6\n", b"8\n") + b"2\n5\nb.jpg5\na cat7\none cat"
    mark = fingerprint(["x/b.jpg", "a.jpg"], [["a cat", "one cat"], ["two \U0001f415"]])
    assert mark.hash == hashlib.sha256(text).hexdigest()[:12]
    assert (mark.images, mark.captions, mark.mean_size, str(mark)) == (2, 3, None, mark.hash)


def test_what_is_different():
    one = fingerprint(["a", "b"], [["a dog"], ["a cat"]]).hash
    others = [
        fingerprint(["a", "b"], [["a cat"], ["a dog"]]),
        fingerprint(["a", "c"], [["a dog"], ["a cat"]]),
        fingerprint(["a", "b"], [["a dog", "a cat"], []]),
        fingerprint(["a"], [["a dog"]]),
    ]
    assert one not in [mark.hash for mark in others]
    assert len({mark.hash for mark in others}) == 4


def test_rows_and_splits():
    rows = datasets.Dataset.from_list(
        [{"image": encoded(10, 20), "image_id": 3, "file_name": "val/b.png", "captions": ["a cat"]},
         {"image": encoded(30, 40), "image_id": 5, "file_name": "a.png", "captions": ["a dog"]}],
    ).cast_column("image", datasets.Image())  # fmt: skip
    mark = fingerprint_of_rows(rows)
    assert mark.hash == fingerprint(["a.png", "b.png"], [["a dog"], ["a cat"]]).hash
    assert mark.mean_size == (20, 30) and str(mark) == f"{mark.hash}, pictures on average 20 x 30 pixels"
    assert fingerprint_of_splits({"train": rows.select([1]), "val": rows.select([0])}) == mark
    by_id = fingerprint_of_rows(rows.remove_columns(["image", "file_name"]))
    assert by_id.hash == fingerprint([3, 5], [["a cat"], ["a dog"]]).hash


@pytest.mark.parametrize(
    ("names", "sizes", "expected"),
    [
        (["COCO_val2014_000000000042.jpg"], [(224, 224)], True),
        (["000000000042.jpg", "COCO_train2014_000000000001.jpg"], [(256, 340)], True),
        (["000000000042.jpg"], [(640, 480), (427, 640), (500, 375)], False),
        (["000000000042.jpg", "cat.jpg"], [(224, 224)], False),
        (["000000000042.jpg"], [], False),
    ],
)
def test_coco_scaled_down(names, sizes, expected):
    assert is_scaled_down(names, sizes) is expected
