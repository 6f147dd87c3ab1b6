"""Document frequencies: counted, kept in files, and refused where they cannot be."""

from __future__ import annotations

import hashlib
import json
import math
import random
import struct
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.hanging import HANGING_S
from safetensors import safe_open
from safetensors.numpy import save_file

from hf_captioners.metrics.cider import document_frequency as module
from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies, DocumentFrequencyError
from hf_captioners.metrics.inputs import MetricInputError

REFERENCES = [["a dog runs", "a dog", ""], ["two cats", "a é \ud800"], ["the dog runs on the grass"]]


def random_references(seed: int) -> list[list[str]]:
    chance = random.Random(seed)
    words = [f"w{i}" for i in range(12)]
    captions = [" ".join(chance.choices(words, k=chance.randint(0, 9))) for _ in range(60)]
    return [captions[image * 3 : image * 3 + chance.randint(1, 3)] for image in range(20)]


def counted(references: list[list[str]], n: int = 4) -> Counter[tuple[str, ...]]:
    """By dictionaries."""
    frequency: Counter[tuple[str, ...]] = Counter()
    for several in references:
        found = set()
        for words in map(str.split, several):
            found |= {tuple(words[i : i + k]) for k in range(1, n + 1) for i in range(len(words) - k + 1)}
        frequency.update(found)
    return frequency


class TestCounting:
    @pytest.mark.parametrize("n", [1, 2, 4, 6])
    @pytest.mark.parametrize("seed", range(3))
    def test_equals_dictionaries(self, seed: int, n: int) -> None:
        references = random_references(seed)
        expected = counted(references, n)
        frequencies = DocumentFrequencies.from_references(references, tokenized=True, n=n)
        assert len(frequencies) == len(expected)
        assert {ngram: frequencies.count(" ".join(ngram)) for ngram in expected} == expected
        assert frequencies.number_of_images == 20 and frequencies.n == n

    @pytest.mark.parametrize("seed", range(3))
    def test_from_counts_is_the_same(self, seed: int) -> None:
        references = random_references(seed)
        expected = DocumentFrequencies.from_references(references, tokenized=True)
        counts = list(counted(references).items())
        random.Random(0).shuffle(counts)
        frequencies = DocumentFrequencies.from_counts({**dict(counts), ("never", "seen"): 0.0}, 20)
        assert frequencies.content_hash == expected.content_hash
        np.testing.assert_array_equal(frequencies.keys, expected.keys)
        np.testing.assert_array_equal(frequencies.counts, expected.counts)

    def test_ngrams_without_their_beginnings(self) -> None:
        frequencies = DocumentFrequencies.from_counts({("a", "b", "c"): 2, ("b",): 3}, 3)
        assert len(frequencies) == 2
        assert [frequencies.count(ngram) for ngram in ("a b c", "b", "a", "a b", "c", "b c")] == [2, 3, 0, 0, 0, 0]

    def test_unknown_and_empty(self) -> None:
        frequencies = DocumentFrequencies.from_references(REFERENCES, tokenized=True)
        assert [frequencies.count(ngram) for ngram in ("zebra", "dog zebra", "zebra dog", "", "a a")] == [0] * 5
        assert frequencies.count("a é \ud800") == 1
        assert len(DocumentFrequencies.from_references([[""], ["", ""]], tokenized=True)) == 0

    def test_idf(self) -> None:
        frequencies = DocumentFrequencies.from_references(REFERENCES, tokenized=True)
        words = [frequencies.numbers[word] for word in ("a", "two")]
        nodes = frequencies.find(np.zeros(3, np.int64), np.array([*words, 999]))
        assert nodes[2] == -1
        assert frequencies.idf(nodes).tolist() == pytest.approx([math.log(3 / 2), math.log(3), math.log(3)], abs=1e-15)

    def test_the_end_as_a_word(self) -> None:
        frequencies = DocumentFrequencies.from_references(REFERENCES, tokenized=True, eos="</s>")
        assert [frequencies.count(ngram) for ngram in ("</s>", "dog </s>", "grass </s>")] == [3, 1, 1]

    @pytest.mark.parametrize("container", [list, np.array, tuple])
    def test_token_ids(self, container: Any) -> None:
        references = [[container([5, 6, 0, 0]), container([5, 7, 7])], [container([6, 0, 9, 9])]]
        with_end = DocumentFrequencies.from_references(references, token_ids=True, eos=0)
        assert [with_end.count(ngram) for ngram in ("0", "5 6 0", "7 7", "6 0", "9", "0 0")] == [2, 1, 1, 2, 0, 0]
        without = DocumentFrequencies.from_references(references, token_ids=True, eos_token_id=0)
        assert [without.count(ngram) for ngram in ("0", "5 6", "7 7", "6", "9")] == [0, 1, 1, 2, 0]

    def test_raw_captions(self) -> None:
        frequencies = DocumentFrequencies.from_references([["A dog, running."], ["The Dog's"]])
        assert [frequencies.count(ngram) for ngram in ("dog", "dog running", "dog 's", ",", "A")] == [2, 1, 1, 0, 0]

    @pytest.mark.parametrize(
        ("references", "message"),
        [
            ([], "no references"),
            ([["a"], []], "image y: the references are"),
            ([["a"], "b"], "image y: the references are 'b'"),
            ([["a"], [None]], "image y: a reference is None"),
        ],
    )
    def test_refuses_references_by_name(self, references: Any, message: str) -> None:
        with pytest.raises(MetricInputError, match=message):
            DocumentFrequencies.from_references(references, tokenized=True, image_ids=["x", "y"][: len(references)])

    @pytest.mark.parametrize(
        ("counts", "message"),
        [
            ({("a",): 4}, r"\('a',\) occurs in 4 images; .* at most the 3 images"),
            ({("a",): 1.5}, "occurs in 1.5 images"),
            ({("a",): -1}, "occurs in -1 images"),
            ({("a",): math.nan}, "occurs in nan images"),
            ({"a": 1}, "'a' is no n-gram"),
            ({(): 1}, r"\(\) is no n-gram"),
            ({(5,): 1}, "is no n-gram"),
            ({("a",) * 5: 1}, "is no n-gram; expected a tuple of 1 to 4 strings"),
        ],
    )
    def test_refuses_counts(self, counts: Any, message: str) -> None:
        with pytest.raises(DocumentFrequencyError, match=message):
            DocumentFrequencies.from_counts(counts, 3)

    def test_refuses_an_impossible_corpus(self) -> None:
        with pytest.raises(DocumentFrequencyError, match="number_of_images is 0"):
            DocumentFrequencies.from_counts({}, 0)
        with pytest.raises(ValueError, match="token_ids=True needs"):
            DocumentFrequencies.from_references([[[5]]], token_ids=True)


class TestContentHash:
    def test_is_of_the_content(self) -> None:
        same = [several[::-1] for several in REFERENCES[::-1]]
        one, two = (DocumentFrequencies.from_references(r, tokenized=True) for r in (REFERENCES, same))
        assert one.content_hash == two.content_hash
        others = [
            DocumentFrequencies.from_references(REFERENCES, tokenized=True, eos="</s>"),
            DocumentFrequencies.from_references(REFERENCES, tokenized=True, n=5),
            DocumentFrequencies.from_references([*REFERENCES, [""]], tokenized=True),
            DocumentFrequencies.from_references([[*REFERENCES[0], "two"], *REFERENCES[1:]], tokenized=True),
        ]
        assert len({one.content_hash, *(other.content_hash for other in others)}) == 5

    def test_is_the_same_in_other_processes_and_versions(self) -> None:
        """It is a SHA-256 of these bytes, written down here from the definition."""
        keys = [-1, 0, 1, (1 << 32) + 1]  # the root; a = 0 and b = 1 under it; b under node 1
        parts = [b'["a", "b"]', struct.pack("<4q", *keys), struct.pack("<4i", 0, 2, 1, 1)]
        content = b"hf_captioners.document_frequencies.1 2 2\n" + b"".join(b"%d\n" % len(p) + p for p in parts)
        frequencies = DocumentFrequencies.from_references([["a b", "a"], ["a"]], tokenized=True, n=2)
        assert frequencies.content_hash == hashlib.sha256(content).hexdigest()


class TestFiles:
    def test_round_trip(self, tmp_path: Path) -> None:
        frequencies = DocumentFrequencies.from_references(REFERENCES, tokenized=True)
        frequencies.save(tmp_path / "x.safetensors")
        loaded = DocumentFrequencies.load(tmp_path / "x.safetensors")
        assert loaded.content_hash == frequencies.content_hash
        assert (loaded.words, repr(loaded)) == (frequencies.words, repr(frequencies))
        assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
        with safe_open(tmp_path / "x.safetensors", "numpy") as file:
            assert file.metadata()["sha256"] == frequencies.content_hash

    @pytest.mark.parametrize(
        ("options", "name"),
        [
            ({}, "ptb-lowercase-nopunct"),
            ({"tokenizer": "unicode", "eos": "</s>"}, "unicode-lowercase-nopunct"),
            ({"tokenizer": "shlex:split"}, "shlex:split"),
            ({"tokenizer": lambda text: text.split()}, None),
            ({"tokenized": True}, None),
        ],
    )
    def test_keep_the_name_of_the_tokenizer(self, tmp_path: Path, options: Any, name: str | None) -> None:
        frequencies = DocumentFrequencies.from_references([["a dog"], ["a cat"]], **options)
        frequencies.save(tmp_path / "x.safetensors")
        for one in (frequencies, DocumentFrequencies.load(tmp_path / "x.safetensors")):
            assert one.tokenizer == name
            one.check_tokenizer(options.get("tokenizer", "ptb"))
            if name is not None:
                with pytest.raises(ValueError, match=rf"of the tokenizer '{name}' do not fit .* 'builtins:list'"):
                    one.check_tokenizer("builtins:list")
        with safe_open(tmp_path / "x.safetensors", "numpy") as file:
            assert file.metadata().get("tokenizer") == name

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"document frequencies not found: .*nothing"):
            DocumentFrequencies.load(tmp_path / "nothing")

    @pytest.mark.parametrize("damage", ["empty", "truncated", "text", "other", "flipped"])
    def test_damaged(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "x.safetensors"
        DocumentFrequencies.from_references(REFERENCES, tokenized=True).save(path)
        content = path.read_bytes()
        if damage == "other":
            save_file({"a": np.ones(2)}, path)
        else:
            flipped = content[:-1] + bytes([content[-1] ^ 1])
            path.write_bytes({"empty": b"", "truncated": content[:-20], "text": b"{}" * 50, "flipped": flipped}[damage])
        with pytest.raises(DocumentFrequencyError, match=r"x\.safetensors: not a file of document frequencies"):
            DocumentFrequencies.load(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"counts": np.array([0, 9, 1], np.int32)}, "counts from 0 to 9"),
            ({"counts": np.array([0, -1, 1], np.int32)}, "counts from -1 to 1"),
            ({"counts": np.array([1, 1, 1], np.int32)}, "counts from 1 to 1"),
            ({"counts": np.array([0, 1], np.int32)}, "as many integer counts as"),
            ({"counts": np.array([0.0, 1, 1])}, "as many integer counts as"),
            ({"keys": np.array([-1, 1, 0])}, "not -1 and then ascending"),
            ({"keys": np.array([0, 1, 2])}, "not -1 and then ascending"),
            ({"keys": np.array([], np.int64), "counts": np.array([], np.int32)}, "not -1 and then ascending"),
            ({"keys": np.array([-1, 0, 7])}, "a key has the word 7, but there are 2 words"),
            ({"keys": np.array([-1, 0, 5 << 32])}, "1 keys are under no n-gram"),
            ({"keys": np.array([-1, 0, 2 << 32])}, "1 keys are under no n-gram"),  # its own parent
            ({"words": ["b", "a"]}, "not sorted"),
            ({"words": ["a", "a"]}, "not sorted"),
            ({"words": ["a", 3]}, "no list of strings"),
            ({"words": {"a": 1}}, "no list of strings"),
            ({"n": "0"}, "n is 0"),
            ({"n": "1000000000"}, "n is 1000000000, the longest n-grams; expected 1 to 100 words"),
            ({"n": "many"}, "invalid literal"),
            ({"number_of_images": "0"}, "number_of_images is 0"),
            ({"format": "other"}, "its format is 'other'"),
            ({}, "its content hash is"),
        ],
    )
    def test_made_up(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        tensors: dict[str, Any] = {"keys": np.array([-1, 0, 1]), "counts": np.array([0, 1, 2], np.int32)}
        tensors["words"] = ["a", "b"]
        metadata = {"format": "hf_captioners.document_frequencies.1", "n": "4", "number_of_images": "2", "sha256": "0"}
        for name, value in change.items():
            (tensors if name in tensors else metadata)[name] = value
        tensors["words"] = np.frombuffer(json.dumps(tensors["words"]).encode(), np.uint8)
        save_file(tensors, tmp_path / "x.safetensors", metadata)
        with pytest.raises(DocumentFrequencyError, match=rf"x\.safetensors: .*({message})"):
            DocumentFrequencies.load(tmp_path / "x.safetensors")

    def test_a_failed_save_leaves_the_old_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = tmp_path / "x.safetensors"
        frequencies = DocumentFrequencies.from_references(REFERENCES, tokenized=True)
        frequencies.save(path)

        def fail(*args: Any) -> None:
            raise OSError("disk full")

        monkeypatch.setattr(module, "save_file", fail)
        with pytest.raises(OSError, match="disk full"):
            DocumentFrequencies.from_references(REFERENCES[:1], tokenized=True).save(path)
        assert DocumentFrequencies.load(path).content_hash == frequencies.content_hash
        assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


class TestCached:
    def test_counts_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path / "new" / "cache"
        first = DocumentFrequencies.cached(folder, REFERENCES, tokenized=True)
        expected = DocumentFrequencies.from_references(REFERENCES, tokenized=True)
        assert first.content_hash == expected.content_hash
        monkeypatch.setattr(DocumentFrequencies, "from_references", None)
        assert DocumentFrequencies.cached(folder, REFERENCES, tokenized=True).content_hash == expected.content_hash
        assert len(list(folder.iterdir())) == 1

    def test_a_file_for_other_content(self, tmp_path: Path) -> None:
        DocumentFrequencies.cached(tmp_path, REFERENCES, tokenized=True)
        DocumentFrequencies.cached(tmp_path, REFERENCES, tokenized=True, eos="</s>")
        DocumentFrequencies.cached(tmp_path, REFERENCES[:2], tokenized=True)
        DocumentFrequencies.cached(tmp_path, [["a dog runs", "a dog"], ["", "two cats"]], tokenized=True)
        DocumentFrequencies.cached(tmp_path, [[[5, 0]], [[6, 0]]], token_ids=True, eos=0)
        assert len(list(tmp_path.iterdir())) == 5
        again = DocumentFrequencies.cached(tmp_path, [[np.array([5, 0])], [(6, 0)]], token_ids=True, eos=0)
        assert len(list(tmp_path.iterdir())) == 5
        assert again.count("5 0") == 1

    def test_a_damaged_file_is_named(self, tmp_path: Path) -> None:
        DocumentFrequencies.cached(tmp_path, REFERENCES, tokenized=True)
        (path,) = tmp_path.iterdir()
        path.write_bytes(b"damaged")
        with pytest.raises(DocumentFrequencyError, match=path.name):
            DocumentFrequencies.cached(tmp_path, REFERENCES, tokenized=True)

    def test_bad_references(self, tmp_path: Path) -> None:
        with pytest.raises(MetricInputError, match="image 1"):
            DocumentFrequencies.cached(tmp_path, [["a"], []], tokenized=True)
        assert list(tmp_path.iterdir()) == []

    def test_several_at_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Threads in the place of processes; all have counted before the first one writes."""
        expected = DocumentFrequencies.from_references(REFERENCES, tokenized=True)
        everyone = threading.Barrier(4)

        def slow(references: Any, **options: Any) -> DocumentFrequencies:
            everyone.wait(timeout=HANGING_S)
            return expected

        monkeypatch.setattr(DocumentFrequencies, "from_references", slow)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _: DocumentFrequencies.cached(tmp_path, REFERENCES, tokenized=True), range(4)))
        assert {one.content_hash for one in found} == {expected.content_hash}
        (path,) = tmp_path.iterdir()
        assert DocumentFrequencies.load(path).content_hash == expected.content_hash
