"""A teacher's captions in the place of the references: every layout, what is missing, and nothing else changed."""

from __future__ import annotations

import json
import logging
import re

import datasets
import pytest
import torch
from PIL import Image

from hf_captioners.data.captions.distill import distill_captions, read_teacher_captions
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.features.store import FeatureStore, FeatureWriter
from hf_captioners.data.rows import attach_features

TAUGHT = {30: ["a dog runs", "a dog"], 10: ["a cat"], 20: ["two dogs", "two dogs"]}


def lines(*entries):
    return "".join(f"{json.dumps(entry)}\n" for entry in entries)


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        path = tmp_path / "teacher"
        path.write_text(text if isinstance(text, str) else json.dumps(text))
        return path

    return write_file


@pytest.fixture
def rows(tmp_path):
    """Three images with pictures, as `load_karpathy` gives them."""
    images = []
    for number in (10, 20, 30):
        Image.new("RGB", (4, 3), (number, 0, 0)).save(tmp_path / f"{number}.png")
        sentences = [{"raw": f"Reference {i} of {number} .", "sentid": 10 * number + i} for i in range(3)]
        images.append({"filename": f"{number}.png", "imgid": number, "split": "train", "sentences": sentences})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    return load_karpathy(tmp_path / "dataset.json", tmp_path, cache_dir=tmp_path / "cache")


LAYOUTS = {
    "caption verb": lines(*({"image_id": key, "captions": several} for key, several in TAUGHT.items())),
    "caption verb of pictures": lines(
        *({"image_id": key, "image": f"{key}.jpg", "captions": several} for key, several in TAUGHT.items())
    ),
    "SATIC's JSON": [{"image_id": key, "caption": several} for key, several in TAUGHT.items()],
    "ids as text": [{"image_id": f"{key:012d}", "caption": several} for key, several in TAUGHT.items()],
    "an object": {str(key): several for key, several in TAUGHT.items()},
}


class TestRows:
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, rows, write, layout):
        assert distill_captions(rows, write(LAYOUTS[layout]))["captions"][:] == [TAUGHT[10], TAUGHT[20], TAUGHT[30]]

    def test_one_caption_each(self, rows, write):
        path = write([{"image_id": key, "caption": several[0]} for key, several in TAUGHT.items()])
        assert distill_captions(rows, path)["captions"][:] == [["a cat"], ["two dogs"], ["a dog runs"]]

    def test_nothing_else_changes(self, rows, write):
        taught = distill_captions(rows, write(LAYOUTS["caption verb"]))
        assert taught.column_names == ["image", "image_id", "file_name", "split", "captions"]  # no sentence_ids
        assert taught.features == {name: rows.features[name] for name in taught.column_names}
        for row, other in zip(taught, rows, strict=True):
            assert row["image"].tobytes() == other["image"].tobytes()
            assert {**row, "image": 0, "captions": 0} == {
                **{name: other[name] for name in row},
                "image": 0,
                "captions": 0,
            }
        assert "Reference" in rows[0]["captions"][0]  # what was given is as it was

    def test_the_fingerprint_is_that_of_the_captions(self, rows, write):
        one = distill_captions(rows, write(LAYOUTS["caption verb"]))._fingerprint
        assert distill_captions(rows, write(LAYOUTS["SATIC's JSON"]))._fingerprint == one
        assert distill_captions(rows, write([{"image_id": key, "caption": "a"} for key in TAUGHT]))._fingerprint != one

    def test_a_selection_of_rows(self, rows, write):
        some = rows.select([2, 0])
        assert distill_captions(some, write(LAYOUTS["caption verb"]))["captions"][:] == [TAUGHT[30], TAUGHT[10]]

    def test_ids_that_are_text(self, write):
        rows = datasets.Dataset.from_dict({"image_id": ["0010", "b.jpg"], "captions": [["x"], ["y"]]})
        taught = distill_captions(rows, write({"10": ["a cat"], "b.jpg": "a dog"}))
        assert taught.to_list() == [
            {"image_id": "0010", "captions": ["a cat"]},
            {"image_id": "b.jpg", "captions": ["a dog"]},
        ]

    def test_features_are_attached_afterwards(self, rows, write, tmp_path):
        with FeatureWriter(tmp_path / "features") as writer:
            for key in (10, 20, 30):
                writer.add(key, torch.full((2, 3), float(key)))
        taught = distill_captions(rows, write(LAYOUTS["caption verb"]))
        row = attach_features(taught, FeatureStore(tmp_path / "features"))[1]
        assert (row["captions"], row["image_features"][0, 0]) == (TAUGHT[20], 20)


class TestMissing:
    def test_names_five(self, write):
        rows = datasets.Dataset.from_dict({"image_id": range(9), "captions": [["own"]] * 9})
        path = write({"3": ["a"], "8": ["b"], "99": ["of another split"]})
        message = r"teacher: no captions of the teacher for 7 of 9 images: 0, 1, 2, 4, 5 and 2 more; caption the split"
        with pytest.raises(ValueError, match=message):
            distill_captions(rows, path)

    def test_keep(self, rows, write, caplog):
        path = write({"20": ["two dogs"]})
        taught = distill_captions(rows, path, missing="keep")
        assert taught["captions"][:] == [rows[0]["captions"], ["two dogs"], rows[2]["captions"]]
        assert "no captions of the teacher for 2 of 3 images: 10, 30; they keep their own" in caplog.text

    def test_keep_needs_one_image(self, rows, write):
        with pytest.raises(ValueError, match="no captions of the teacher for 3 of 3 images"):
            distill_captions(rows, write({"99": ["a"]}), missing="keep")

    def test_failed_pictures_are_missing(self, rows, write):
        failed = {"image_id": 20, "image": "20.png", "error": "20.png: not an image"}
        path = write(lines({"image_id": 10, "captions": ["a"]}, failed, {"image_id": 30, "captions": ["b"]}))
        with pytest.raises(ValueError, match="for 1 of 3 images: 20"):
            distill_captions(rows, path)
        assert distill_captions(rows, path, missing="keep")["captions"][1] == rows[1]["captions"]


class TestEmptyCaptions:
    def test_are_left_out(self, write, caplog):
        path = write({"1": ["", "a", "  "], "2": ["b"], "3": ["c", ""]})
        assert read_teacher_captions(path) == {1: ["a"], 2: ["b"], 3: ["c"]}
        assert "teacher: 3 empty captions are left out, of images 1, 3" in caplog.text

    def test_an_image_with_no_others_is_missing(self, rows, write):
        path = write({"10": ["a"], "20": ["", " "], "30": ["b"]})
        with pytest.raises(ValueError, match="for 1 of 3 images: 20"):
            distill_captions(rows, path)

    def test_no_warning_without_them(self, write, caplog):
        caplog.set_level(logging.INFO)
        read_teacher_captions(write({"1": ["a"]}))
        assert caplog.text == ""


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (
                lines({"image_id": 1, "captions": []}, {}),
                "line 1: field 'captions' is [], expected a list with at least",
            ),
            (
                lines({"image_id": 1, "captions": ["a"]}, {"image": "a.jpg", "captions": ["a"]}),
                "line 2: no 'image_id' in",
            ),
            ([{"image_id": 1, "captions": "a dog"}], "[0]: field 'captions' is 'a dog', expected a list"),
            ([{"image_id": 1, "captions": ["a", None]}], "[0]: field 'captions'[1] is None, expected a string"),
            ([{"image_id": 1, "caption": 3}], "[0]: field 'caption' is 3"),
            ([{"image_id": 1, "text": "a"}], "[0]: image 1: no field 'captions' among image_id, text"),
            ([{"image_id": 1.5, "caption": "a"}], "[0]: field 'image_id' is 1.5"),
            ([{"image_id": 1, "caption": "a"}, {"image_id": "01", "caption": "b"}], "[1]: image 1 is already at [0]"),
            ([["a"]], "[0]: no 'image_id' in ['a']"),
            ({"1": 2}, "key '1': the value is 2"),
            ("", "is empty"),
            ("[", "not JSON"),
        ],
    )
    def test_files(self, write, content, message):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            read_teacher_captions(write(content))
        assert "teacher: " in str(error.value)

    def test_no_file(self, rows, tmp_path):
        with pytest.raises(FileNotFoundError):
            distill_captions(rows, tmp_path / "none.jsonl")

    def test_data_sets(self, rows, write):
        path = write(LAYOUTS["caption verb"])
        with pytest.raises(ValueError, match='missing=\'drop\', expected "error" or "keep"'):
            distill_captions(rows, path, missing="drop")
        with pytest.raises(TypeError, match=r"IterableDataset cannot be replaced, .* without streaming"):
            distill_captions(rows.to_iterable_dataset(), path)
        with pytest.raises(ValueError, match="no column 'captions' among image_id, text"):
            distill_captions(datasets.Dataset.from_dict({"image_id": [1], "text": ["a"]}), path)


def test_captions_that_the_caption_verb_has_written(tiny_captioner_dir, rows, tmp_path, capfd, monkeypatch):
    """From the verb to the rows: all five beams of every training picture, best first."""
    from hf_captioners.cli.main import main

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    command = ["caption", "--model", tiny_captioner_dir, "--annotations", tmp_path / "dataset.json"]
    command += ["--image-root", tmp_path, "--num-beams", 5, "--num-return-sequences", 5, "--device", "cpu"]
    assert main(list(map(str, command))) == 0
    text = capfd.readouterr().out
    (tmp_path / "teacher.jsonl").write_text(text)
    taught = distill_captions(rows, tmp_path / "teacher.jsonl")
    for row, line in zip(taught, text.splitlines(), strict=True):
        record = json.loads(line)
        assert (row["image_id"], row["captions"]) == (record["image_id"], record["captions"])
        assert len(row["captions"]) == 5
