"""Related items of pairs of sentences, held against a search through all of them."""

import numpy as np

from hf_captioners.metrics.meteor import relation as module
from hf_captioners.metrics.meteor.relation import Items, Relation


def test_finds_what_a_search_through_all_finds(monkeypatch):
    monkeypatch.setattr(module, "_CELLS_AT_ONCE", 50)  # so that pairs are split, too
    rng = np.random.default_rng(0)
    for number in (1, 5, 60):
        rows = np.array(sorted(rng.integers(0, number, (40, 2)).tolist()))  # some twice
        relation = Relation(*rows.T, number)
        length = rng.integers(0, 9, 12)
        items = Items(rng.integers(0, number, length.sum()), np.append(0, np.cumsum(length)))
        left, right = rng.integers(0, 12, (2, 30))
        expected = [
            (pair, a, b, row)
            for pair, (one, other) in enumerate(zip(left, right, strict=True))
            for a in range(items.first[one], items.first[one + 1])
            for b in range(items.first[other], items.first[other + 1])
            for row in range(len(rows))
            if rows[row].tolist() == [items.item[a], items.item[b]]
        ]
        assert list(zip(*(column.tolist() for column in relation.join(items, left, right)), strict=True)) == expected


def test_nothing_is_related_to_nothing():
    nothing = np.empty(0, np.int64)
    items = Items(nothing, np.zeros(2, np.int64))
    joined = Relation(nothing, nothing, 0).join(items, np.array([0]), np.array([0]))
    assert [len(column) for column in joined] == [0] * 4
