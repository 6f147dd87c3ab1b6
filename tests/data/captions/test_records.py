"""Every reader of captions: what is wrong with a record is an error that names the file, the place and the value."""

import json

import datasets
import pytest

from hf_captioners.data.captions.distill import read_teacher_captions
from hf_captioners.data.captions.folder_files import read_folder
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.captions.predictions import read_predictions, read_references


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def karpathy(folder, image_id, captions):
    rows = [(1, ["a"]), (image_id, captions)]
    images = [
        {"filename": f"{n}.jpg", "imgid": i, "split": "train", "sentences": [{"raw": caption} for caption in several]}
        for n, (i, several) in enumerate(rows)
    ]
    (folder / "x").write_text(json.dumps({"images": images}))
    load_karpathy(folder / "x")


def coco(folder, image_id, captions):
    annotations = [{"id": n, "image_id": image_id, "caption": caption} for n, caption in enumerate(captions)]
    images = [{"id": 1}, {"id": image_id}]
    (folder / "x").write_text(
        json.dumps({"images": images, "annotations": [{"id": 9, "image_id": 1, "caption": "a"}, *annotations]})
    )
    read_references(folder / "x")


def metadata(folder, image_id, captions):
    split = folder / "train"
    split.mkdir()
    for name in ("a.png", "b.png"):
        (split / name).touch()
    other = {"file_name": "a.png", "captions": ["a"], "image_id": 1}
    (split / "metadata.jsonl").write_text(
        lines(other, {"file_name": "b.png", "captions": captions, "image_id": image_id})
    )
    read_folder(folder)


def json_lines(read, key):
    def read_lines(folder, image_id, captions):
        value = captions if key == "captions" else captions[0]
        other = {"image_id": 1, key: ["a"] if key == "captions" else "a"}
        (folder / "x").write_text(lines(other, {"image_id": image_id, key: value}))
        read(folder / "x")

    return read_lines


READERS = {
    "karpathy": (karpathy, r"x: images\[1\] .*"),
    "coco": (coco, r"x: (images|annotations)\[1\]: "),
    "metadata": (metadata, r"metadata\.jsonl: 1 of 2 lines cannot be used: line 2: "),
    "references": (json_lines(read_references, "captions"), "x: line 2: "),
    "predictions": (json_lines(read_predictions, "caption"), "x: line 2: "),
    "teacher": (json_lines(read_teacher_captions, "captions"), "x: line 2: "),
}
CAPTIONS = {
    "null": (None, "is None, expected a string"),
    "number": (5, "is 5, expected a string"),
    "surrogate": ("a \ud800", r"is 'a \\ud800', which is not Unicode text"),
}
IDS = {
    "64 bits": (2**63, "is 9223372036854775808, expected an integer of 64 bits"),
    "fraction": (1.5, "is 1.5, expected an integer"),
    "nan": (float("nan"), "is nan, expected an integer"),
    "bool": (True, "is True, expected an integer"),
    "list": ([1], r"is \[1\], expected an integer"),
}


@pytest.mark.parametrize("fault", CAPTIONS)
@pytest.mark.parametrize("reader", READERS)
def test_captions(tmp_path, reader, fault):
    (read, where), (caption, message) = READERS[reader], CAPTIONS[fault]
    with pytest.raises(ValueError, match=f"{where}.*{message}"):
        read(tmp_path, 2, [caption])


@pytest.mark.parametrize("fault", IDS)
@pytest.mark.parametrize("reader", READERS)
def test_image_ids(tmp_path, reader, fault):
    (read, where), (image_id, message) = READERS[reader], IDS[fault]
    with pytest.raises(ValueError, match=f"{where}.*{message}"):
        read(tmp_path, image_id, ["a dog"])


@pytest.mark.parametrize("reader", READERS)
def test_integers_of_pandas(tmp_path, reader):
    READERS[reader][0](tmp_path, 2.0, ["a dog"])
