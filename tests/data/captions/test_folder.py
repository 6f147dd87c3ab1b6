"""Folders of captioned pictures: their layouts, and one message for what cannot be learned from."""

import json
import logging

import datasets
import pytest
from PIL import Image

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.captions.folder import load_folder, load_folder_split
from hf_captioners.data.captions.folder_files import read_folder, split_name
from hf_captioners.data.captions.predictions import read_references
from hf_captioners.data.captions.records import CaptionFileError


def picture(path, colour="red"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path, "PNG")


def make(root, lines, split="train", pictures=("a.png", "b.png"), metadata="metadata.jsonl"):
    """A split with pictures and a metadata file of these lines."""
    folder = root / split
    folder.mkdir(parents=True, exist_ok=True)
    for name in pictures:
        picture(folder / name)
    text = lines if isinstance(lines, str) else "".join(json.dumps(line) + "\n" for line in lines)
    (folder / metadata).write_text(text)
    return root


TWO = [{"file_name": "a.png", "captions": ["a dog", "one dog"]}, {"file_name": "b.png", "captions": ["a cat"]}]


def captions(root, split="train"):
    return {row["file_name"]: row["captions"] for row in read_folder(root)[split]}


class TestLayouts:
    def test_rows(self, tmp_path):
        make(make(tmp_path, TWO), TWO[:1], "validation", ["a.png"])
        splits = load_folder(tmp_path)
        assert list(splits) == ["train", "validation"]
        row = splits["train"][0]
        assert row["image"].getpixel((0, 0)) == (255, 0, 0)
        assert (row["image_id"], row["captions"]) == ("train/a.png", ["a dog", "one dog"])
        assert splits["validation"]["image_id"][:] == ["validation/a.png"]
        assert isinstance(splits["train"].features["image"], datasets.Image)

    @pytest.mark.parametrize("name", ["my [2024] pictures", "a*b?", "{x}", "\u00e4 b", "-x"])
    def test_a_path_is_no_pattern(self, tmp_path, name):
        assert len(read_folder(make(tmp_path / name, TWO))["train"]) == 2

    def test_a_split_that_is_a_link(self, tmp_path):
        make(tmp_path / "elsewhere", TWO, "pictures")
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere" / "pictures")
        assert list(captions(tmp_path / "data")) == ["train/a.png", "train/b.png"]

    def test_other_names_of_splits(self, tmp_path):
        make(make(tmp_path, TWO, "Train"), TWO, "val")
        assert list(read_folder(tmp_path)) == ["train", "validation"]
        make(tmp_path, TWO, "dev")
        with pytest.raises(CaptionFileError, match="dev/ and val/ are both validation"):
            read_folder(tmp_path)
        assert split_name("eval") == "test"

    def test_a_metadata_file_that_names_its_own_folder(self, tmp_path):
        lines = [{**line, "file_name": f"train/{line['file_name']}"} for line in TWO]
        assert list(captions(make(tmp_path, lines))) == ["train/a.png", "train/b.png"]

    def test_one_metadata_file_for_all_splits(self, tmp_path):
        for name in ("train/a.png", "validation/b.png"):
            picture(tmp_path / name)
        lines = [{"file_name": name, "caption": "a dog"} for name in ("train/a.png", "validation/b.png")]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
        assert {split: len(rows) for split, rows in read_folder(tmp_path).items()} == {"train": 1, "validation": 1}

    def test_a_folder_without_splits_is_train(self, tmp_path):
        make(tmp_path, TWO, "data")
        assert list(captions(tmp_path / "data")) == ["a.png", "b.png"]

    @pytest.mark.parametrize("key", ["caption", "text"])
    @pytest.mark.parametrize("value", ["a dog", ["a dog", "one dog"]])
    def test_a_caption_or_a_list(self, tmp_path, key, value):
        root = make(tmp_path, [{"file_name": "a.png", key: value}])
        assert captions(root)["train/a.png"] == ([value] if isinstance(value, str) else value)

    def test_lines_of_one_picture_are_put_together(self, tmp_path):
        lines = [{"image": "a.png", "caption": "a dog"}, {"image": "a.png", "caption": "one dog"}]
        assert captions(make(tmp_path, lines)) == {"train/a.png": ["a dog", "one dog"]}
        make(tmp_path, [TWO[0], TWO[0]])
        with pytest.raises(CaptionFileError, match=r"line 2: picture 'a\.png' is already at line 1"):
            read_folder(tmp_path)

    def test_csv(self, tmp_path):
        text = 'file_name,text,source\na.png,"a dog, running",x\na.png,one dog,x\nb.png,"[""a cat"", ""one cat""]",y\n'
        rows = read_folder(make(tmp_path, text, metadata="metadata.csv"))["train"]
        assert [row["captions"] for row in rows] == [["a dog, running", "one dog"], ["a cat", "one cat"]]
        assert [row["source"] for row in rows] == ["x", "y"]

    def test_csv_with_other_separators(self, tmp_path):
        root = make(tmp_path, "file_name;caption\r\na.png;a dog, running\r\n", metadata="metadata.csv")
        assert captions(root) == {"train/a.png": ["a dog, running"]}

    def test_ids_of_the_metadata_file(self, tmp_path):
        root = make(tmp_path, [{**line, "image_id": number} for line, number in zip(TWO, (7, 8.0), strict=True)])
        assert load_folder(root)["train"]["image_id"][:] == [7, 8]
        make(tmp_path, [{**line, "image_id": 7} for line in TWO])
        with pytest.raises(CaptionFileError, match=r"train/a\.png and train/b\.png have the same image_id 7"):
            read_folder(tmp_path)

    def test_columns_of_ones_own(self, tmp_path):
        root = make(tmp_path, [{**TWO[0], "tags": ["x"]}, TWO[1]])
        assert load_folder(root)["train"]["tags"][:] == [["x"], None]

    def test_splits_joined(self, tmp_path):
        root = make(make(tmp_path, TWO), TWO[:1], "validation", ["a.png"])
        assert load_folder_split(root)["image_id"][:] == ["train/a.png", "train/b.png", "validation/a.png"]
        assert load_folder_split(root, "val")["image_id"][:] == ["validation/a.png"]
        with pytest.raises(CaptionFileError, match="no split 'test' in it, but train, validation"):
            load_folder_split(root, "test")

    def test_references(self, tmp_path):
        root = make(make(tmp_path, TWO), TWO[:1], "validation", ["a.png"])
        references = read_references(root, "validation")
        assert references.captions == {"validation/a.png": ["a dog", "one dog"]}
        assert references.file_names == {"validation/a.png": str(root / "validation" / "a.png")}


class TestLeftOut:
    def test_files_that_no_line_names(self, tmp_path, caplog):
        root = make(tmp_path, TWO[:1], pictures=["a.png", "b.png", "sub/c.heic", ".hidden"])
        with caplog.at_level(logging.WARNING):
            read_folder(root)
        assert "2 files beside it are not named in it and left out: b.png, sub/c.heic" in caplog.text

    def test_pictures_that_are_not_there(self, tmp_path, caplog):
        root = make(tmp_path, TWO, pictures=["a.png"])
        with pytest.raises(FileNotFoundError, match=r"1 of 2 pictures are missing: train/b\.png"):
            read_folder(root)
        assert len(read_folder(root, bad_rows=BadRows("skip"))["train"]) == 1

    def test_archives_that_are_not_read_are_named(self, tmp_path):
        root = make(tmp_path / "one", TWO, pictures=[])
        (root / "train" / "pictures.7z").touch()
        with pytest.raises(
            FileNotFoundError, match=r"2 of 2 pictures are missing: .* unpack pictures\.7z, such archives are not read"
        ):
            read_folder(root)
        (tmp_path / "two").mkdir()
        (tmp_path / "two" / "train.rar").touch()
        with pytest.raises(CaptionFileError, match=r"no train/ .* it has train\.rar; unpack train\.rar"):
            read_folder(tmp_path / "two")

    def test_a_loop_of_links(self, tmp_path):
        root = make(tmp_path, TWO)
        (root / "train" / "loop").symlink_to(root / "train")
        assert len(read_folder(root)["train"]) == 2


FAULTS = {
    "null": ({"captions": None}, "'captions' is None, expected a list"),
    "null among others": ({"captions": ["a dog", None]}, r"'captions'\[1\] is None"),
    "no list": ({"captions": "a dog"}, "'captions' is 'a dog', expected a list"),
    "empty list": ({"captions": []}, "'captions' is \\[\\]"),
    "number": ({"captions": [5]}, r"'captions'\[0\] is 5"),
    "empty": ({"captions": [""]}, r"'captions'\[0\] is '', expected a caption with a word"),
    "punctuation": ({"caption": " . "}, "'caption' is ' . ', expected a caption with a word"),
    "surrogate": ({"caption": "\ud800"}, "not Unicode text"),
    "other column": ({"label": "dog"}, "has 'file_name', 'label', expected 'captions' or 'caption' or 'text'"),
    "outside": ({"file_name": "../x.png", "caption": "a dog"}, "expected a path inside the folder"),
    "absolute": ({"file_name": "/x.png", "caption": "a dog"}, "expected a path inside the folder"),
    "no name": ({"file_name": None, "caption": "a dog"}, "'file_name' is None"),
    "large id": ({"image_id": 2**63, "caption": "a dog"}, "expected an integer of 64 bits"),
}


class TestRefused:
    @pytest.mark.parametrize("name", FAULTS)
    def test_a_line_names_file_line_and_value(self, tmp_path, name):
        fault, message = FAULTS[name]
        root = make(tmp_path, [TWO[0], {"file_name": "b.png", **fault}])
        with pytest.raises(
            CaptionFileError, match=rf"metadata\.jsonl: 1 of 2 lines cannot be used: line 2: .*{message}"
        ):
            load_folder(root)

    def test_one_message_for_all_lines(self, tmp_path):
        root = make(tmp_path, [{"file_name": f"{i}.png", "captions": None} for i in range(7)])
        with pytest.raises(CaptionFileError, match=r"7 of 7 lines .*line 5: .*; and 2 more$") as caught:
            read_folder(root)
        assert "line 6" not in str(caught.value)

    @pytest.mark.parametrize(
        ("lines", "metadata", "message"),
        [
            (
                '{"file_name": "a.png", "captions": ["x"]}\n{"file_name": \n',
                "metadata.jsonl",
                r"metadata\.jsonl: line 2",
            ),
            ("", "metadata.jsonl", "is empty"),
            ("file_name,text\na.png\n", "metadata.csv", r"metadata\.csv: line 2: has not the 2 fields"),
            ('file_name,text\na.png,"x\n', "metadata.csv", r"metadata\.csv: line 2: not CSV"),
            ("file_name,text\na.png,\n", "metadata.csv", "line 2: field 'text' is '', expected a caption with a word"),
            ("file_name,label\na.png,dog\n", "metadata.csv", "line 2: has 'file_name', 'label', expected 'captions'"),
        ],
    )
    def test_a_metadata_file_that_is_none(self, tmp_path, lines, metadata, message):
        with pytest.raises(CaptionFileError, match=message):
            read_folder(make(tmp_path, lines, metadata=metadata))

    def test_folders(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="no such folder"):
            read_folder(tmp_path / "nothing")
        with pytest.raises(CaptionFileError, match=r"no train/ .*it has nothing"):
            read_folder(tmp_path)
        picture(tmp_path / "train" / "a.png")
        with pytest.raises(CaptionFileError, match=r"pictures of train/ have no captions in a metadata\.jsonl"):
            read_folder(tmp_path)
        make(make(tmp_path, TWO), "file_name,text\n", metadata="metadata.csv")
        with pytest.raises(CaptionFileError, match=r"has metadata\.jsonl and metadata\.csv, expected one"):
            read_folder(tmp_path)
