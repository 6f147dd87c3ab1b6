"""The tree over the n-grams of document frequencies: two arrays, made of counts and checked when read."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from ..ngrams import WORD_BITS, build_tree, unpack

MAX_N = 100  # words of an n-gram; what a file declares is bounded before it is counted up to


class DocumentFrequencyError(ValueError):
    """Impossible document frequencies: a damaged file, wrong counts. The message names the file or n-gram."""


def prefix_tree(words: Sequence[np.ndarray], counts: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """The tree over n-grams, from numbers of words (n-grams, length) and counts (n-grams,) per length."""
    keys, nodes = build_tree(words)
    tree_counts = np.zeros(len(keys), np.int64)
    for node, count in zip(nodes, counts, strict=True):
        tree_counts[node] = count
    return keys, tree_counts


def check_n(n: int) -> None:
    """Refuse an order of n-grams that the tree does not have room for, by a DocumentFrequencyError."""
    if not 1 <= n <= MAX_N:
        raise DocumentFrequencyError(f"n is {n}, the longest n-grams; expected 1 to {MAX_N} words")


def check_tree(words: Sequence[str], keys: np.ndarray, counts: np.ndarray, number_of_images: int, n: int) -> None:
    """Refuse what is no tree over n-grams, by a DocumentFrequencyError.

    Args:
        words (`Sequence[str]`): sorted.
        keys (`np.ndarray`): int64 of shape (n-grams,): parent and last word of each, ascending; -1 at the root.
        counts (`np.ndarray`): of shape (n-grams,): images.
        number_of_images (`int`): of the corpus.
        n (`int`): the highest order of n-grams.
    """
    check_n(n)
    if not 1 <= number_of_images <= np.iinfo(np.int32).max:
        raise DocumentFrequencyError(f"number_of_images is {number_of_images}; expected 1 to 2^31 - 1")
    if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
        raise DocumentFrequencyError("the words are no list of strings")
    if any(a >= b for a, b in itertools.pairwise(words)):
        raise DocumentFrequencyError("the words are not sorted, each once")
    if keys.dtype != np.int64 or keys.ndim != 1 or counts.dtype.kind != "i" or counts.shape != keys.shape:
        raise DocumentFrequencyError("expected as many integer counts as 64-bit keys")
    if not len(keys) or keys[0] != -1 or np.any(keys[1:] <= keys[:-1]):
        raise DocumentFrequencyError("the keys are not -1 and then ascending")
    _, word = unpack(keys[1:])
    if len(word) and word.max() >= len(words):
        raise DocumentFrequencyError(f"a key has the word {word.max()}, but there are {len(words)} words")
    end = 1
    for _ in range(n):  # the end of the children of all nodes before `end`
        end = int(np.searchsorted(keys, end << WORD_BITS))
    if end != len(keys):
        raise DocumentFrequencyError(f"{len(keys) - end} keys are under no n-gram of up to {n} words")
    if counts[0] != 0 or counts.min() < 0 or counts.max() > number_of_images:
        raise DocumentFrequencyError(f"counts from {counts.min()} to {counts.max()}; expected 0 to {number_of_images}")
