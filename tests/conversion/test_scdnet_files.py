"""Annotations of SCD-Net's authors' code."""

import pickle

import numpy as np
import pytest

from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.conversion.scdnet_files import convert_annotations
from hf_captioners.data.captions.karpathy import load_karpathy

WORDS = ["a", "dog", "runs", "cat", "unk"]  # ids 1 to 5


def written(folder, name, content):
    (folder / name).write_bytes(pickle.dumps(content))
    return folder / name


@pytest.mark.parametrize("kind", [np.int64, np.uint32])
def test_annotations(tmp_path, kind):
    tokens = np.array([[0, 1, 2, 3, 0], [0, 1, 4, 0, 0]], dtype=kind)
    targets = np.array([[1, 2, 3, 0, -1], [1, 4, 0, -1, -1]])
    train = written(tmp_path, "train.pkl", [{"image_id": "42", "tokens_ids": tokens, "target_ids": targets}])
    val = written(tmp_path, "val.pkl", [{"image_id": "7"}, {"image_id": "9", "tokens_ids": tokens[:1]}])
    counts = convert_annotations({"train": train, "val": val}, WORDS, tmp_path / "dataset.json")
    assert counts == {"train": 1, "val": 1}
    rows = load_karpathy(tmp_path / "dataset.json", split="all", cache_dir=tmp_path / "cache")
    found = dict(zip(rows["image_id"], rows["captions"], strict=True))
    assert found == {42: ["a dog runs", "a cat"], 9: ["a dog runs"]}


@pytest.mark.parametrize(
    "content, message",
    [
        ({1: 2}, "expected a list of annotations"),
        ([{"tokens_ids": np.array([[0, 1]])}], "annotation 0: .*'image_id'"),
        ([{"image_id": 1, "tokens_ids": [1, 2]}], "annotation 0: tokens_ids is .*expected an array"),
        ([{"image_id": 1, "tokens_ids": np.array([[0, 9]])}], "annotation 0: token ids from 9 to 9"),
    ],
)
def test_annotations_that_are_none(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        convert_annotations({"train": written(tmp_path, "x.pkl", content)}, WORDS, tmp_path / "dataset.json")
    assert not (tmp_path / "dataset.json").exists()
