"""The check of a data set: each thing that is wrong is found, counted and named, and nothing else is."""

from __future__ import annotations

import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from hf_captioners.cli.main import main
from hf_captioners.data.dataset_check import check_dataset
from hf_captioners.data.fingerprint import fingerprint_of_splits

WORDS = [
    "a",
    "dog",
    "runs",
    "over",
    "the",
    "green",
    "grass",
    "while",
    "two",
    "small",
    "cats",
    "sit",
    "on",
    "an",
    "old",
    "wooden",
    "bench",
    "near",
    "some",
    "trees",
    "today",
]


def picture(number, size=(12, 8)):
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return {"path": f"{number}.png", "bytes": file.getvalue()}


def row(number, *captions, image=None):
    texts = list(captions) or [" ".join(WORDS), "a dog sits"]
    return {"image": image or picture(number), "image_id": number, "captions": texts}


def dataset(*rows):
    features = datasets.Features(
        {"image": datasets.Image(), "image_id": datasets.Value("int64"),
         "captions": datasets.List(datasets.Value("string"))}
    )  # fmt: skip
    return datasets.Dataset.from_list(list(rows), features=features)


def found(report):
    return {finding.what: (finding.count, finding.is_problem) for finding in report.findings}


def test_nothing_wrong():
    splits = {"train": dataset(row(0), row(1, image=picture(1, (20, 30)))), "val": dataset(row(2))}
    report = check_dataset("mine", splits)
    assert report.findings == [] and report.problems == []
    assert report.splits == {"train": {"images": 2, "captions": 4}, "val": {"images": 1, "captions": 2}}
    assert report.sizes == {"smallest": [12, 8], "mean": [15, 15], "largest": [20, 30]}
    assert report.captions == {"words": 12.0, "longest": 21, "vocabulary": 22}
    assert report.fingerprint == fingerprint_of_splits(splits)


def test_everything_wrong():
    same = picture(7)
    splits = {
        "train": dataset(
            row(0, " ", "a dog"),
            row(1, "x" * 5001),
            row(2, "a\0b", "two\nlines", "at the end\n"),
            row(3, None),
            row(4, "dog " * 101),
            row(5, image={"path": "5.png", "bytes": b"no picture"}),
            row(6, image={"path": "/nowhere/6.png", "bytes": None}),
            row(7, image=same),
            row(8, image=same),
            row(9),
            row(9, image=picture(90)),
            {**row(10), "captions": []},
        ),
        "restval": dataset(row(11, image=same)),
        "test": dataset(row(0), row(12, image=same)),
    }
    report = check_dataset("mine", splits, ["mine.json: images[3]: is 5"])
    assert found(report) == {
        "rows that cannot be read": (1, True),
        "captions without a word": (2, True),
        "captions of more than 5000 characters": (1, True),
        "captions with a NUL character": (1, True),
        "pictures without a caption": (1, True),
        "image ids in several splits": (1, True),
        "image ids that a split has twice": (1, True),
        "pictures that cannot be opened": (2, True),
        "pictures with the same bytes in several splits": (2, True),  # 0 of train and of test; 7 and 12
        "pictures with the same bytes": (2, False),  # 8 and 11, of what is trained on
        "captions with line breaks in them, which are read as spaces": (1, False),
        "captions of more than 100 words": (1, False),
    }
    examples = {finding.what: finding.examples for finding in report.findings}
    assert examples["image ids in several splits"] == ["0: train and test"]
    assert examples["captions without a word"][0] == "train: image 0: ' '"
    assert "6.png (no such file)" in examples["pictures that cannot be opened"][1]
    assert examples["rows that cannot be read"] == ["mine.json: images[3]: is 5"]


def test_few_words():
    report = check_dataset("mine", {"train": dataset(row(0, "a dog"), row(1, "a cat"))})
    assert found(report) == {"different words in all captions, fewer than 20": (3, True)}


def test_coco_scaled_down():
    rows = dataset(row(42)).add_column("file_name", ["val2014/COCO_val2014_000000000042.jpg"])
    (remark,) = check_dataset("coco", {"val": rows}).findings
    assert remark.what.startswith("pictures of COCO that are scaled down: the originals") and not remark.is_problem
    assert remark.examples == ["their longer side is 12 pixels on average"]


class TestCommand:
    @pytest.fixture
    def files(self, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "images").mkdir()
        entries = []
        for number, split in enumerate(("train", "train", "train", "val")):
            (tmp_path / "images" / f"{number}.png").write_bytes(picture(number)["bytes"])
            sentences = [{"raw": " ".join(WORDS)}, {"raw": "a dog sits"}]
            entries.append({"filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences})
        path = tmp_path / "dataset.json"

        def written(**changes):
            path.write_text(json.dumps({"images": [{**entries[0], **changes}, *entries[1:]]}))
            return str(path), "--image-root", str(tmp_path / "images")

        return written

    def test_table(self, files, capfd):
        assert main(["data", "check", *files()]) == 0
        out = capfd.readouterr().out
        assert "train                 3          6\nval                   1          2\n" in out
        assert "12 x 8 pixels" in out and "problems: none\n" in out and "remarks: none" in out

    def test_problems(self, files, capfd, tmp_path):
        (tmp_path / "images" / "1.png").unlink()
        assert main(["data", "check", *files(sentences=[{"raw": 5}]), "--json"]) == 1
        report = json.loads(capfd.readouterr().out)
        (finding,) = report["findings"]
        assert (finding["what"], finding["count"], finding["is_problem"]) == ("rows that cannot be read", 2, True)
        assert "field 'raw' is 5, expected a string" in finding["examples"][0]
        assert report["splits"] == {"train": {"images": 1, "captions": 2}, "val": {"images": 1, "captions": 2}}

    def test_nothing_to_read(self, tmp_path, capfd):
        assert main(["data", "check", str(tmp_path / "none.json")]) == 2
        assert "none.json" in capfd.readouterr().err
