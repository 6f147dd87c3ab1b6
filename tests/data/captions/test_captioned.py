"""Any `datasets.Dataset` as captioned pictures."""

import datasets
import pytest
from PIL import Image

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.captions.captioned import Columns, captioned, load_named, split_names


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def table(**columns):
    return datasets.Dataset.from_dict(columns)


PICTURES = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]


def test_one_caption_or_a_list(tmp_path):
    rows = captioned(table(image=["a.jpg", "b.jpg"], text=["a dog", "a cat"], more=[1, 2]))
    assert rows.column_names == ["image", "image_id", "captions", "more"]
    assert rows["captions"][:] == [["a dog"], ["a cat"]] and rows["image_id"][:] == ["a.jpg", "b.jpg"]
    assert captioned(table(image=["a.jpg"], captions=[["a dog", "one dog"]]))["captions"][:] == [["a dog", "one dog"]]
    raw = table(image=["a.jpg"], sentences=[[{"raw": "a dog", "tokens": ["a", "dog"]}]])
    assert captioned(raw)["captions"][:] == [["a dog"]]


def test_several_columns():
    rows = table(photo=["a.jpg"], caption_0=["a dog"], caption_1=["one dog"], image=["other.jpg"])
    found = captioned(rows, Columns("photo", ("caption_1", "caption_0")))
    assert found["captions"][:] == [["one dog", "a dog"]] and found["image_id"][:] == ["a.jpg"]


def test_rows_of_one_picture_are_put_together():
    rows = table(image=PICTURES + PICTURES[:1], caption=["a", "b", "c"], image_id=[7, 8, 7])
    found = captioned(rows.cast_column("image", datasets.Image()))
    assert found["image_id"][:] == [7, 8] and found["captions"][:] == [["a", "c"], ["b"]]
    assert found[1]["image"].getpixel((0, 0)) == (0, 0, 255)


def test_ids_without_names_are_splits_and_rows():
    rows = table(image=PICTURES, caption=["a", "b"]).cast_column("image", datasets.Image())
    assert captioned(rows)["image_id"][:] == ["row/0", "row/1"]


def test_parquet_through_load_dataset(tmp_path):
    rows = table(image=PICTURES, caption=["a", "b"]).cast_column("image", datasets.Image())
    for split in ("train", "validation"):
        rows.to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    assert split_names(tmp_path / "data") == ["train", "validation"]
    found = captioned(load_named(tmp_path / "data", split="validation"))
    assert found["image_id"][:] == ["validation/0", "validation/1"] and found[0]["image"].size == (4, 4)
    with pytest.raises(ValueError, match=r"data: Unknown split \"test\""):
        load_named(tmp_path / "data", split="test")
    with pytest.raises(ValueError, match="nowhere"):
        load_named(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("script/script.py", b"", "[Ss]cripts are no longer supported"),
        ("empty/train.jsonl", b"", ""),
        ("broken/train.tar", b"no archive" * 100, ""),
        ("broken/train.zip", b"no archive" * 100, ""),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_data_sets_that_datasets_cannot_read(file, content, said, streaming, tmp_path):
    path = tmp_path / file
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"^{path.parent}: .*{said}"):
        load_named(path.parent, streaming=streaming)


MISTAKES = {
    "no captions": ({"image": ["a"], "x": [1]}, {}, r"mine: no column of captions .*its columns are 'image', 'x'"),
    "no picture": ({"photo": ["a"], "text": ["a"]}, {}, r"mine: no column 'image'; .* name one by --image_column"),
    "no such captions": ({"image": ["a"]}, {"captions": ("x",)}, r"mine: no column 'x'; .* by --caption_column"),
    "no such ids": ({"image": ["a"], "text": ["a"]}, {"image_id": "x"}, r"no column 'x'; .* by --image_id_column"),
    "null": ({"image": ["a"], "text": [None]}, {}, r"mine: row 0: field 'text' is None, expected a string"),
    "number": ({"image": ["a"], "text": [[3]]}, {}, r"mine: row 0: field 'text'\[0\] is 3, expected a string"),
    "none": ({"image": ["a"], "captions": [[]]}, {}, r"mine: row 0: field 'captions' is \[\], expected at least one"),
    "id": ({"image": ["a"], "text": ["a"], "image_id": [1.5]}, {}, r"mine: row 0: field 'image_id' is 1.5, expected"),
}


def test_bad_rows_are_left_out():
    rows = table(image=list("abcd"), text=["a dog", None, "a cat", "a hen"], image_id=[7.0, 8.0, 0.5, 7.0])
    bad_rows = BadRows("skip")
    found = captioned(rows, source="mine", bad_rows=bad_rows)
    assert found["image_id"][:] == [7] and found["captions"][:] == [["a dog", "a hen"]]
    assert [message.partition(" is ")[0] for message in bad_rows.messages] == [
        "mine: row 1: field 'text'",
        "mine: row 2: field 'image_id'",
    ]
    names = captioned(table(image=["x/a.png", "x/b.png"], text=[None, "a"]), bad_rows=BadRows("skip"))
    assert names["image_id"][:] == ["b.png"]
    with pytest.raises(ValueError, match="mine: none of its 2 rows can be used: mine: row 1: field 'text' is None"):
        captioned(table(image=["a", "b"], text=[None, None]), source="mine", bad_rows=BadRows("skip"))


@pytest.mark.parametrize("name", MISTAKES)
def test_message_names_row_and_field(name):
    columns, options, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        captioned(table(**columns), Columns(**options), "mine")
