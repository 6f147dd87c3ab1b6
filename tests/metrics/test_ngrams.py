from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from hf_captioners.metrics.ngrams import ngram_counts, row_groups


def random_captions(seed: int, number: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choice("abcde") for _ in range(rng.randrange(9))) for _ in range(number)]


def counted_one_by_one(captions: list[str], order: int) -> dict[tuple[str, int], int]:
    """(n-gram, caption) -> count, in plain Python."""
    counts: Counter[tuple[str, int]] = Counter()
    for position, caption in enumerate(captions):
        words = caption.split()
        counts.update((" ".join(words[i : i + order]), position) for i in range(len(words) - order + 1))
    return dict(counts)


@pytest.mark.parametrize("captions", [random_captions(0, 1), random_captions(1, 60), ["", "", "a"], ["a " * 300], []])
def test_counts_are_those_of_plain_python(captions: list[str]) -> None:
    table = ngram_counts(captions, max_n=5)
    assert len(table.orders) == 5
    assert table.lengths.tolist() == [len(caption.split()) for caption in captions]
    for order, counts in enumerate(table.orders, start=1):
        texts = table.texts(order)
        assert len(set(texts)) == len(texts)  # an id per n-gram
        rows = zip(counts.ngram.tolist(), counts.caption.tolist(), counts.count.tolist(), strict=True)
        found = {(texts[ngram], caption): count for ngram, caption, count in rows}
        assert found == counted_one_by_one(captions, order)
        assert len(found) == len(counts.ngram)  # no row twice


def test_rows_are_sorted_by_ngram_and_caption() -> None:
    for counts in ngram_counts(random_captions(2, 50)).orders:
        rows = list(zip(counts.ngram.tolist(), counts.caption.tolist(), strict=True))
        assert rows == sorted(rows)
        assert {array.dtype for array in vars(counts).values()} == {np.dtype(np.int64)}


def test_row_groups_are_the_ngrams_of_an_image() -> None:
    captions = random_captions(3, 40)
    image = np.arange(40) // 4
    for order, counts in enumerate(ngram_counts(captions).orders, start=1):
        expected: Counter[tuple[str, int]] = Counter()
        for (text, caption), count in counted_one_by_one(captions, order).items():
            expected[text, caption // 4] += count
        sums = np.add.reduceat(counts.count, row_groups(counts, image))
        assert sorted(sums.tolist()) == sorted(expected.values())


def test_words_that_look_joined_stay_apart() -> None:
    table = ngram_counts(["ab c", "a bc", "1 11", "11 1"], max_n=2)
    assert sorted(table.texts(2)) == ["1 11", "11 1", "a bc", "ab c"]


def test_order_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_n is 0"):
        ngram_counts(["a dog"], max_n=0)
