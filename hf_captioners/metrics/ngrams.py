"""The n-grams of many captions, counted at once with numpy: what BLEU, CIDEr and the diversity of captions share.

Each word gets a number, and an n-gram gets the number of its first n - 1 words combined with that of its last. One sort
per order then brings equal n-grams together. Ids are exact: nothing is hashed.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class NgramCounts:
    """How often each n-gram of one order occurs in each caption. A row is an n-gram of a caption.

    Rows are sorted by n-gram, then by caption. So if captions of the same image stand side by side, the rows of an
    n-gram in an image do too, and [`row_groups`] finds them.

    Attributes:
        ngram (`np.ndarray`): int64 of shape (rows,), the id of the n-gram, counted from 0 without gaps.
            The same n-gram has the same id in all captions. Ids of different orders are unrelated.
        caption (`np.ndarray`): int64 of shape (rows,), the position of the caption.
        count (`np.ndarray`): int64 of shape (rows,), at least 1.
        first (`np.ndarray`): int64 of shape (distinct n-grams,), where each id first occurs among the tokens of all
            captions; [`NgramTable.texts`] makes words of it.
    """

    ngram: np.ndarray
    caption: np.ndarray
    count: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class NgramTable:
    """The n-grams of a list of captions.

    Attributes:
        orders (`list[NgramCounts]`): of 1-grams, 2-grams, …
        lengths (`np.ndarray`): int64 of shape (captions,), the number of tokens.
        vocabulary (`list[str]`): the distinct tokens.
        token_ids (`np.ndarray`): int64 of shape (tokens,), positions in the vocabulary, one caption after another.
    """

    orders: list[NgramCounts]
    lengths: np.ndarray
    vocabulary: list[str]
    token_ids: np.ndarray

    def texts(self, order: int) -> list[str]:
        """The n-grams of an order as words joined by spaces, by id: `texts(2)[i]` is the 2-gram with the id i."""
        words = self.token_ids[self.orders[order - 1].first[:, None] + np.arange(order)]  # (distinct n-grams, order)
        return [" ".join([self.vocabulary[word] for word in ngram]) for ngram in words.tolist()]


def ngram_counts(captions: Sequence[str], max_n: int = 4) -> NgramTable:
    """Count the n-grams of captions.

    Args:
        captions (`Sequence[str]`): tokens separated by white space. A caption without tokens has no n-grams.
        max_n (`int`, defaults to 4): highest order; every order from 1 is counted.

    Returns:
        `NgramTable`: for each order the rows (n-gram, caption, count), and the length of each caption.

    Example:

    ```python
    >>> from hf_captioners.metrics.ngrams import ngram_counts
    >>> table = ngram_counts(["a dog and a dog", "a dog"], max_n=2)
    >>> table.texts(2)
    ['a dog', 'dog and', 'and a']
    >>> table.orders[1].ngram, table.orders[1].caption, table.orders[1].count
    (array([0, 0, 1, 2]), array([0, 1, 0, 0]), array([2, 1, 1, 1]))

    ```
    """
    if max_n < 1:
        raise ValueError(f"max_n is {max_n}, expected an order of n-grams, at least 1")
    vocabulary: defaultdict[str, int] = defaultdict(itertools.count().__next__)  # a new token gets the next number
    numbers: list[int] = []
    sizes: list[int] = []
    for caption in captions:
        words = caption.split()
        numbers.extend(map(vocabulary.__getitem__, words))
        sizes.append(len(words))
    token_ids = np.array(numbers, dtype=np.int64)
    lengths = np.array(sizes, dtype=np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)  # (tokens,): the caption of each token
    remaining = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(numbers))  # (tokens,): to the caption's end

    orders = []
    ids = np.zeros_like(token_ids)  # (tokens,): id of the n-gram that starts here
    for order in range(1, max_n + 1):
        start = np.flatnonzero(remaining >= order)
        # Below 2^63 as long as (number of tokens)^2 is: three thousand million tokens.
        key = ids[start] * len(vocabulary) + token_ids[start + order - 1]
        by_ngram = np.argsort(key, kind="stable")  # equal n-grams stay in the order of the captions
        start, key = start[by_ngram], key[by_ngram]
        new_ngram = _changes(key)
        ngram = np.cumsum(new_ngram) - 1
        ids[start] = ngram
        rows = np.flatnonzero(new_ngram | _changes(owner[start]))
        count = np.diff(rows, append=len(start))
        orders.append(NgramCounts(ngram[rows], owner[start[rows]], count, start[new_ngram]))
    return NgramTable(orders, lengths, list(vocabulary), token_ids)


def row_groups(counts: NgramCounts, image: np.ndarray) -> np.ndarray:
    """Where the rows of another n-gram or another image begin.

    `np.add.reduceat(values, starts)` and `np.maximum.reduceat(values, starts)` then give a value per n-gram of an
    image, and `np.repeat(value, np.diff(starts, append=len(counts.count)))` gives it back to its rows.

    Args:
        counts (`NgramCounts`): rows of one order.
        image (`np.ndarray`): int64 of shape (captions,), the image of each caption, in ascending order.

    Returns:
        `np.ndarray`: int64 of shape (groups,), the first row of each group; empty without rows.
    """
    return np.flatnonzero(_changes(counts.ngram) | _changes(image[counts.caption]))


def _changes(values: np.ndarray) -> np.ndarray:
    """True where a value differs from the one before, and at the first."""
    changed = np.ones(len(values), dtype=bool)
    changed[1:] = values[1:] != values[:-1]
    return changed
