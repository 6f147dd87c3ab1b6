"""Vocabularies in the original's and in plain formats, and their special tokens."""

from __future__ import annotations

import json
import os
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.conversion.vocabulary import read_vocabulary
from hf_captioners.conversion.writing import ConversionError

WORDS = ["\n", "&", "EOS", "PAD", "SOS", "UNK", "a", "dog"]
SPECIAL = {"PAD": 3, "SOS": 4, "EOS": 2, "UNK": 5}
OTHER = ["<pad>", "<s>", "</s>", "<unk>", "a"]
RELEASED = {"PAD": 78, "SOS": 79, "EOS": 77, "UNK": 80}


def original(words: list[str] = WORDS, **changes: Any) -> dict[str, Any]:
    """The layout of the authors' `demo_coco_tokens.pickle`."""
    ids = {word: index for index, word in enumerate(words)}
    return {"word2idx_dict": ids, "idx2word_list": words, "sos_str": "SOS", "eos_str": "EOS", **changes}


def write(tmp_path: Path, name: str, content: Any) -> Path:
    path = tmp_path / name
    path.write_bytes(json.dumps(content).encode() if path.suffix == ".json" else pickle.dumps(content))
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.pickle", original()),
        ("v.pkl", original()),
        ("v.json", WORDS),
        ("v.json", {"vocab": WORDS}),
        ("v.json", original()),
        ("v.pickle", WORDS),
    ],
)
def test_formats(tmp_path: Path, name: str, content: Any) -> None:
    for source in (write(tmp_path, name, content), str(write(tmp_path, name, content)), content):
        vocabulary = read_vocabulary(source)
        assert vocabulary.words == WORDS
        assert vocabulary.special == SPECIAL
        assert vocabulary.special_tokens["EOS"] == (2, "EOS")


def test_special_ids_come_from_the_argument_then_the_file_then_the_names(tmp_path: Path) -> None:
    ids = {"PAD": 0, "SOS": 1, "EOS": 2, "UNK": 3}
    assert read_vocabulary(OTHER, ids).special == ids
    path = write(tmp_path, "v.json", {"vocab": OTHER, "special": ids})
    assert read_vocabulary(path).special == ids
    assert read_vocabulary(path, {**ids, "UNK": 4}).special["UNK"] == 4
    assert read_vocabulary(WORDS, {"UNK": 6}).special == {**SPECIAL, "UNK": 6}  # the others by name


def test_the_original_pickle_may_name_start_and_end_otherwise() -> None:
    words = ["<s>", "</s>", "PAD", "UNK"]
    assert read_vocabulary(original(words, sos_str="<s>", eos_str="</s>")).special == {
        "PAD": 2,
        "SOS": 0,
        "EOS": 1,
        "UNK": 3,
    }


def test_default_ids_only_when_no_name_is_found_and_they_fit() -> None:
    long = [f"w{index}" for index in range(90)]
    assert read_vocabulary(long, default_special=RELEASED).special == RELEASED
    assert read_vocabulary([*long, "PAD", "SOS", "EOS", "UNK"], default_special=RELEASED).special["PAD"] == 90
    for words in (OTHER, [*long, "PAD"]):
        with pytest.raises(ConversionError, match=r"no word is called .*'SOS'.*give the ids of .*SOS.* as special"):
            read_vocabulary(words, default_special=RELEASED)


@pytest.mark.parametrize(
    ("special", "message"),
    [
        ({"PAD": 3, "BOS": 4}, "special names 'BOS'; expected only PAD, SOS, EOS, UNK"),
        ({"PAD": 8}, "PAD=8 must be an id from 0 to 7"),
        ({"PAD": -1}, "PAD=-1 must be an id"),
        ({"PAD": "3"}, "PAD='3' must be an id"),
        ({"PAD": True}, "PAD=True must be an id"),
        ({"PAD": 2}, "share an id"),
        ([3, 4, 2, 5], "special must map PAD, SOS, EOS and UNK to ids"),
    ],
)
def test_wrong_special_ids(special: Any, message: str) -> None:
    with pytest.raises(ConversionError, match=message):
        read_vocabulary(WORDS, special)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a list of words"),
        (5, "expected a list of words, found int"),
        ("words", "expected a list of words, found str"),
        (["a", 1], "word 1 is 1, expected a string"),
        (["a", "b", "a"], "word 'a' has the ids 0 and 2"),
        ({"words": WORDS}, r"found 'words'; expected 'vocab', or 'idx2word_list' and 'word2idx_dict'"),
        ({"idx2word_list": WORDS}, "word2idx_dict a dict"),
        (original(word2idx_dict={"a": 0}), "has 8 words and word2idx_dict 1"),
        (original(idx2word_list=WORDS[::-1]), r"idx2word_list\[0\] is 'dog', but word2idx_dict gives it 7"),
        (original(idx2word_list=[[], *WORDS[1:]]), r"idx2word_list\[0\] is \[\]"),
    ],
)
def test_wrong_vocabularies_name_the_file(tmp_path: Path, content: Any, message: str) -> None:
    for name in ("v.json", "v.pickle"):
        with pytest.raises(ConversionError, match=rf"v\.(json|pickle): .*{message}"):
            read_vocabulary(write(tmp_path, name, content))


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    with pytest.raises(CheckpointError, match=r"v\.pickle: refers to (posix|nt)\.system"):
        read_vocabulary(write(tmp_path, "v.pickle", original(sos_str=Evil())))
    assert not (tmp_path / "ran").exists()


def test_ids_of_numpy_in_a_defaultdict(tmp_path: Path) -> None:
    content = original()
    content["word2idx_dict"] = defaultdict(int, {word: np.int64(id_) for word, id_ in content["word2idx_dict"].items()})
    assert read_vocabulary(write(tmp_path, "v.pickle", content)).words == list(WORDS)


def test_missing_file(tmp_path: Path) -> None:
    for name in ("v.json", "v.pickle"):
        with pytest.raises(FileNotFoundError, match="not found"):
            read_vocabulary(tmp_path / name)
