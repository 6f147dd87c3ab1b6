"""Data written for SCD-Net's authors' code: as its specification says, and as our own readers read it."""

from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import torch

from hf_captioners.cli.main import main
from hf_captioners.conversion.document_frequency import convert_document_frequencies
from hf_captioners.conversion.scdnet_export import TokenRows, export_sentences
from hf_captioners.conversion.scdnet_sentences import read_sentences
from hf_captioners.conversion.scdnet_words import read_words
from hf_captioners.conversion.writing import ConversionError
from hf_captioners.data.features.store import FeatureWriter

WORDS = ["a", "dog", "runs", "cat", "unk"]  # ids 1 to 5
CAPTIONS = {
    1: ("train", ["A dog runs.", "a cat"]), 2: ("restval", ["a dog"]), 3: ("val", ["a zebra"]),
    4: ("test", ["a a a a a a"]),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What is printed for a data set, its folder, and the pickles in it, which are ours."""
    folder = tmp_path_factory.mktemp("export")
    (folder / "vocabulary.txt").write_text("\n".join(WORDS))
    images = [
        {"imgid": number, "filename": f"{number}.jpg", "split": split, "sentences": [{"raw": text} for text in texts]}
        for number, (split, texts) in CAPTIONS.items()
    ]
    (folder / "dataset.json").write_text(json.dumps({"images": images}))
    (folder / "retrieved.jsonl").write_text('{"image_id": 1, "captions": ["a cat", "dog"]}\n')
    (folder / "first.jsonl").write_text('{"image_id": 1, "caption": "a dog"}\n{"image_id": 2, "caption": ""}\n')
    with FeatureWriter(folder / "store", dtype=torch.float16) as writer:
        writer.add(1, torch.arange(6.0).view(3, 2))
    options = {
        "annotations": "dataset.json", "vocabulary": "vocabulary.txt", "retrieved": "retrieved.jsonl",
        "features": "store", "out": "out",
    }  # fmt: skip
    words = [word for name, file in options.items() for word in (f"--{name}", str(folder / file))]
    words += ["--captions", f"first={folder / 'first.jsonl'}", "--length", "5", "--retrieved-length", "6"]
    assert main(["scdnet", "export", *words]) == 0
    return folder / "out", {path.name: pickle.loads(path.read_bytes()) for path in (folder / "out").glob("*.pkl")}


def test_annotations(exported):
    _, pickles = exported
    first, second = pickles["mscoco_caption_anno_train.pkl"]
    assert (first["image_id"], second["image_id"]) == ("1", "2")
    assert first["tokens_ids"].tolist() == [[0, 1, 2, 3, 0], [0, 1, 4, 0, 0]]
    assert first["target_ids"].tolist() == [[1, 2, 3, 0, -1], [1, 4, 0, -1, -1]]
    (unknown,), (long,) = pickles["mscoco_caption_anno_val.pkl"], pickles["mscoco_caption_anno_test.pkl"]
    assert unknown["tokens_ids"].tolist() == [[0, 1, 5, 0, 0]]
    assert long["tokens_ids"].tolist() == [[0, 1, 1, 1, 1]] and long["target_ids"].tolist() == [[1, 1, 1, 1, 0]]
    assert long["tokens_ids"].dtype == np.int64


def test_they_are_read_again(exported, tmp_path, capsys):
    folder, _ = exported
    files = [word for split in ("train", "val") for word in (f"--{split}", f"{folder}/mscoco_caption_anno_{split}.pkl")]
    out = ["--vocabulary", str(folder.parent / "vocabulary.txt"), "--out", str(tmp_path / "again.json")]
    assert main(["scdnet", "annotations", *files, *out]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"train": 2, "val": 1}
    images = json.loads((tmp_path / "again.json").read_text())["images"]
    found = {image["imgid"]: [sentence["raw"] for sentence in image["sentences"]] for image in images}
    assert found == {1: ["a dog runs", "a cat"], 2: ["a dog"], 3: ["a unk"]}


def test_references_and_their_frequencies(exported):
    folder, pickles = exported
    assert pickles["mscoco_train_gts.pkl"] == {"1": [[1, 2, 3, 0], [1, 4, 0]], "2": [[1, 2, 0]]}
    cider = pickles["mscoco_train_cider.pkl"]
    counts = cider["document_frequency"]
    assert cider["ref_len"] == math.log(2) and counts[(1,)] == counts[(1, 2)] == counts[(0,)] == 2
    assert counts[(1, 2, 3, 0)] == counts[(1, 4, 0)] == counts[(2, 0)] == 1 and counts[(9, 9)] == 0
    frequencies = convert_document_frequencies(folder / "mscoco_train_cider.pkl")
    assert frequencies.number_of_images == 2 and frequencies.count("1 2") == 2 and frequencies.count("2 3 0") == 1


def test_sentences(exported):
    folder, pickles = exported
    retrieved = pickles["mscoco_clip_ret_sents.pkl"]["1"]
    assert retrieved["r_tokens_ids"].tolist() == [[0, 1, 4, 0, 0, 0], [0, 2, 0, 0, 0, 0]]
    assert retrieved["r_tokens_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    first = pickles["first.pkl"]
    assert {image: ids.tolist() for image, ids in first.items()} == {"1": [[1, 2, 0, 0, 0]], "2": [[0] * 5]}
    assert first["1"].dtype == np.int64
    words, _ = read_words(WORDS)
    assert dict(read_sentences(folder / "mscoco_clip_ret_sents.pkl", words)) == {1: ["a cat", "dog"]}
    assert dict(read_sentences(folder / "first.pkl", words)) == {1: ["a dog"], 2: [""]}


def test_features(exported):
    folder, _ = exported
    with np.load(folder / "features/1.npz", allow_pickle=False) as file:
        assert file["feat"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] and file["feat"].dtype == np.float32


def test_words_that_the_vocabulary_lacks(tmp_path):
    (tmp_path / "captions.jsonl").write_text('{"image_id": 8, "caption": "a zebra"}\n')
    with pytest.raises(ConversionError, match="image 8: the vocabulary lacks 'zebra'"):
        export_sentences(tmp_path / "captions.jsonl", TokenRows(WORDS[:-1]), tmp_path / "out.pkl")


@pytest.mark.parametrize(
    "words, message",
    [
        (["annotations", "--vocabulary", "v", "--out", "o"], "give --train, --val or --test"),
        (["export", "--annotations", "a", "--vocabulary", "v", "--out", "o", "--captions", "x"], "expected NAME=FILE"),
        (["join", "nowhere", "nowhere", "--out", "o"], "nowhere"),
    ],
)
def test_mistakes(words, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["scdnet", *words]) == 2
    assert message in capfd.readouterr().err
