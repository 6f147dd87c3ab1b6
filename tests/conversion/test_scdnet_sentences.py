"""Sentences of the authors' code, from their pickles."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from hf_captioners.cli.main import main
from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.conversion.scdnet_sentences import convert_sentences

WORDS = ["a", "dog", "runs", "t-shirt", "unk"]  # ids 1 to 5


def retrieved(dtype=np.int64):
    """Two sentences of an image, the second one shorter; the mask says what is real."""
    ids = np.array([[0, 1, 2, 3, 0], [0, 1, 4, 9, 9]], dtype)
    return {"r_tokens_ids": ids % 6, "r_tokens_mask": np.array([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]], dtype)}


def convert(content, tmp_path, protocol=4):
    (tmp_path / "sentences.pkl").write_bytes(pickle.dumps(content, protocol))
    count = convert_sentences(tmp_path / "sentences.pkl", WORDS, tmp_path / "out.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(lines) == count
    return {line["image_id"]: line["captions"] for line in lines}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("dtype", [np.int64, np.int32])
def test_retrieved_sentences(protocol, dtype, tmp_path):
    content = {"42": retrieved(dtype), 7: retrieved(dtype), "a.jpg": retrieved(dtype)}
    expected = ["a dog runs", "a t-shirt"]
    assert convert(content, tmp_path, protocol) == {42: expected, 7: expected, "a.jpg": expected}


def test_captions_of_a_stage_or_a_teacher_end_at_the_first_zero(tmp_path):
    content = {"1": np.array([[1, 2, 3, 0, 0]]), "2": np.array([[5, 0, 2, 0, 0]]), "3": np.array([0, 1, 0])}
    assert convert(content, tmp_path) == {1: ["a dog runs"], 2: ["unk"], 3: [""]}


@pytest.mark.parametrize(
    "content, message",
    [
        ([1, 2], "expected sentences by image id"),
        ({1: [1, 2]}, "image 1: r_tokens_ids is .*expected an array"),
        ({1: {"r_tokens_mask": np.ones((1, 2), np.int64)}}, "image 1: r_tokens_ids is None"),
        ({1: np.array([[1, 6]])}, "image 1: token ids from 1 to 6, but the vocabulary has 6 words"),
        ({1: np.zeros((1, 0), np.int64)}, "image 1: r_tokens_ids of shape"),
        ({1: np.array([[1.0, 2.0]])}, "image 1: r_tokens_ids is torch.float64"),
        ({1: {**retrieved(), "r_tokens_mask": np.ones((1, 2), np.int64)}}, "image 1: r_tokens_ids of shape"),
    ],
)
def test_what_is_none_is_named(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        convert(content, tmp_path)
    assert not (tmp_path / "out.jsonl").exists()


class Evil:
    def __reduce__(self):
        return print, ("run",)


def test_nothing_in_it_runs(tmp_path, capfd):
    with pytest.raises(CheckpointError, match=r"refers to builtins\.print"):
        convert({1: Evil()}, tmp_path)
    assert capfd.readouterr().out == ""


def test_the_command(tmp_path, capfd):
    (tmp_path / "sentences.pkl").write_bytes(pickle.dumps({"1": retrieved()}))
    (tmp_path / "vocabulary.txt").write_text("\n".join(WORDS))
    words = ["retrieval", "convert", str(tmp_path / "sentences.pkl"), "--out", str(tmp_path / "out.jsonl")]
    assert main([*words, "--vocabulary", str(tmp_path / "vocabulary.txt")]) == 0
    assert json.loads(capfd.readouterr().out)["images"] == 1
    assert main([*words, "--vocabulary", str(tmp_path / "none.txt")]) == 2
    assert "vocabulary not found" in capfd.readouterr().err
