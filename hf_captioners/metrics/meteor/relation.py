"""Related items of two sentences, for many pairs of sentences at once.

All items of one sentence are held against all of the other. Nearly none are related, so a table of bytes by a hash of
both items sorts out most at one memory access each, and the rest are searched for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..ngrams import spans

_BITS = 20  # of the hash: a table of 1 MB, which stays in the processor's cache
_CELLS_AT_ONCE = 1 << 19
_LEFT, _RIGHT = 0x9E3779B1, 0x85EBCA77  # odd numbers whose multiples are spread well


@dataclass(frozen=True)
class Items:
    """Words or phrases of sentences.

    Attributes:
        item (`np.ndarray`): int64 of shape (items,), their numbers, sentence by sentence.
        first (`np.ndarray`): int64 of shape (sentences + 1,), the first item of each sentence.
    """

    item: np.ndarray
    first: np.ndarray


class Related(NamedTuple):
    """Related items of pairs of sentences, each of shape (found,), ordered by pair, then by left item.

    Attributes:
        pair (`np.ndarray`): the pair.
        left, right (`np.ndarray`): positions in `Items.item`.
        row (`np.ndarray`): the row of the relation.
    """

    pair: np.ndarray
    left: np.ndarray
    right: np.ndarray
    row: np.ndarray


class Relation:
    """A relation between items: a table of pairs, in which a pair may occur several times.

    Args:
        left, right (`np.ndarray`): int64 of shape (rows,), numbers of items, ordered by left, then by right.
        number (`int`): of different items.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_captioners.metrics.meteor.relation import Items, Relation
    >>> relation = Relation(np.array([0, 0, 2]), np.array([1, 1, 0]), 3)
    >>> sentences = Items(np.array([0, 2, 1, 0]), np.array([0, 2, 4]))  # 0 2; 1 0
    >>> relation.join(sentences, np.array([0]), np.array([1]))
    Related(pair=array([0, 0, 0]), left=array([0, 0, 1]), right=array([2, 2, 3]), row=array([0, 1, 2]))

    ```
    """

    def __init__(self, left: np.ndarray, right: np.ndarray, number: int) -> None:
        self._number = number
        self._keys = left * number + right
        items = np.arange(number, dtype=np.uint32)
        self._left_hash = (items * np.uint32(_LEFT)) >> np.uint32(32 - _BITS)
        self._right_hash = (items * np.uint32(_RIGHT)) >> np.uint32(32 - _BITS)
        self._possible = np.zeros(1 << _BITS, bool)
        self._possible[self._left_hash[left] ^ self._right_hash[right]] = True

    def join(self, items: Items, left: np.ndarray, right: np.ndarray) -> Related:
        """Find the related items of pairs of sentences.

        Args:
            items ([`Items`]): of all sentences.
            left, right (`np.ndarray`): int64 of shape (pairs,), the sentences of each pair.

        Returns:
            [`Related`]
        """
        left_number = items.first[left + 1] - items.first[left]
        left_item = spans(items.first[left], left_number)  # (lines,): an item on the left and a sentence on the right
        pair = np.repeat(np.arange(len(left)), left_number)
        begin = items.first[right][pair]
        width = items.first[right + 1][pair] - begin
        left_hash, right_hash = self._left_hash[items.item[left_item]], self._right_hash[items.item]
        cells = np.cumsum(width)
        parts = [np.empty((2, 0), np.int64)]
        start = 0
        while start < len(width):
            done = int(cells[start - 1]) if start else 0
            end = max(start + 1, int(np.searchsorted(cells, done + _CELLS_AT_ONCE, side="right")))
            line = np.repeat(np.arange(start, end), width[start:end])
            right_item = spans(begin[start:end], width[start:end])
            hits = np.flatnonzero(self._possible[left_hash[line] ^ right_hash[right_item]])
            parts.append(np.stack([line[hits], right_item[hits]]))
            start = end
        line, right_item = np.concatenate(parts, axis=1)
        keys = items.item[left_item[line]] * self._number + items.item[right_item]
        first_row = np.searchsorted(self._keys, keys)
        number = np.searchsorted(self._keys, keys, side="right") - first_row
        found = np.repeat(np.arange(len(line)), number)
        return Related(pair[line[found]], left_item[line[found]], right_item[found], spans(first_row, number))
