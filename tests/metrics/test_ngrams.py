"""Trees of n-grams against dictionaries."""

from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from hf_captioners.metrics import ngrams
from hf_captioners.metrics.ngrams import Words, count_ngrams, find, pack, read_words, spans, unpack


def captions_of_groups(seed: int) -> tuple[list[str], list[int]]:
    chance = random.Random(seed)
    groups = sorted(chance.choices(range(5), k=12))  # some groups may have no captions
    return [" ".join(chance.choices("abcd", k=chance.randint(0, 7))) for _ in groups], groups


class TestReadWords:
    def test_numbers(self) -> None:
        words = read_words(["b c", "", "d b d"], {"a": 0, "b": 1})
        assert words.word.tolist() == [1, 2, 3, 1, 3]
        assert words.length.tolist() == [2, 0, 3]
        assert words.new == {"c": 2, "d": 3}

    def test_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        captions, _ = captions_of_groups(0)
        whole = read_words(captions, {"z": 0})
        monkeypatch.setattr(ngrams, "CAPTIONS_AT_ONCE", 5)
        pieces = read_words(captions, {"z": 0})
        assert pieces.new == whole.new
        np.testing.assert_array_equal(pieces.word, whole.word)
        np.testing.assert_array_equal(pieces.length, whole.length)

    def test_a_word_that_stands_for_the_end(self) -> None:
        end = "\uffff"
        words = read_words(["a", f"{end} b", f"{end * 2}x", end], {})
        assert words.word.tolist() == [0, 1, 2, 3, 1]
        assert words.length.tolist() == [1, 2, 1, 1]
        assert words.new == {"a": 0, end: 1, "b": 2, f"{end * 2}x": 3}

    def test_nothing(self) -> None:
        words = read_words([], {})
        assert words.word.dtype == words.length.dtype == np.int64
        assert len(words.word) == len(words.length) == 0


@pytest.mark.parametrize("seed", range(5))
def test_count_ngrams(seed: int) -> None:
    captions, groups = captions_of_groups(seed)
    words = read_words(captions, {})
    text = {number: word for word, number in words.new.items()}
    below = [(group,) for group in range(5)]  # n-grams by node; a group stands in front
    for order, level in enumerate(count_ngrams(words, np.array(groups), 5, n=3), start=1):
        nodes = [(*below[parent], text[word]) for parent, word in zip(level.parent, level.word, strict=True)]
        assert len(set(nodes)) == len(nodes)
        assert level.group.tolist() == [node[0] for node in nodes]
        counts = {(nodes[n], c): k for n, c, k in zip(level.node, level.caption, level.count, strict=True)}
        expected = Counter(
            ((group, *caption.split()[i : i + order]), number)
            for number, (group, caption) in enumerate(zip(groups, captions, strict=True))
            for i in range(len(caption.split()) - order + 1)
        )
        assert counts == expected
        assert np.all(np.diff(pack(level.parent, level.word)) > 0)
        assert np.all(np.diff(level.node) >= 0)
        below = nodes


def test_captions_shorter_than_the_order() -> None:
    levels = list(count_ngrams(read_words(["a", ""], {}), np.array([0, 1]), 2, n=3))
    assert [len(level.word) for level in levels] == [1, 0, 0]


def test_find() -> None:
    keys = np.concatenate([[-1], pack(np.array([0, 0, 2]), np.array([1, 5, 0]))])
    found = find(keys, np.array([2, 0, 0, 0, -1, 2, 9]), np.array([0, 5, 1, 2, 1, 1, 0]))
    assert found.tolist() == [3, 2, 1, -1, -1, -1, -1]
    assert find(keys, np.array([], np.int64), np.array([], np.int64)).tolist() == []


def test_pack_and_unpack() -> None:
    parent, word = np.array([0, 3, 2**31 - 1]), np.array([2**32 - 1, 0, 7])
    assert [part.tolist() for part in unpack(pack(parent, word))] == [parent.tolist(), word.tolist()]


def test_spans() -> None:
    assert spans(np.array([5, 0, 9]), np.array([2, 0, 3])).tolist() == [5, 6, 9, 10, 11]


def test_numbers_that_do_not_fit_into_one_integer() -> None:
    """32 bits of words, 17 of groups and 15 of positions are one more than an integer has."""
    chance = np.random.default_rng(0)
    group = np.sort(chance.integers(0, 2**17, 2**14))
    group[-1] = 2**17 - 1
    word = 2**32 - 1 - chance.integers(0, 3, 2 * len(group))
    levels = list(count_ngrams(Words(word, np.full(len(group), 2), {}), group, 2**17, n=2))
    below = [(owner,) for owner in range(2**17)]  # n-grams by node; a group stands in front
    for order, level in enumerate(levels, start=1):
        expected = Counter(
            (caption, owner, *word[2 * caption + first : 2 * caption + first + order].tolist())
            for caption, owner in enumerate(group.tolist())
            for first in range(3 - order)
        )
        parents = zip(level.parent.tolist(), level.word.tolist(), strict=True)
        below = [(*below[parent], last) for parent, last in parents]
        rows = zip(level.node.tolist(), level.caption.tolist(), level.count.tolist(), strict=True)
        assert {(caption, *below[node]): count for node, caption, count in rows} == expected
        assert np.all(np.diff(level.node) >= 0)
