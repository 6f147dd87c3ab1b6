"""The n-grams of many captions, counted at once with numpy, for BLEU, CIDEr and the diversity of captions.

N-grams form a tree in one sorted array. A node is an n-gram; its parent is the same n-gram without its last word; above
the 1-grams stand roots. A node's key is its parent's number and its last word in one integer, and numbers are positions
in the sorted array of keys. So counting is a sort per order, looking up an n-gram is a binary search per word, for many
n-grams at once, and nothing is hashed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WORD_BITS = 32
CAPTIONS_AT_ONCE = 16_384  # words are split and looked up in pieces, so that millions of captions fit in memory


@dataclass(frozen=True)
class Words:
    """Captions as numbers.

    Attributes:
        word (`np.ndarray`): int64 of shape (words,), of all captions, one after another.
        length (`np.ndarray`): int64 of shape (captions,), the number of words.
        new (`dict[str, int]`): word -> number of those that were not known; they follow the known ones.
    """

    word: np.ndarray
    length: np.ndarray
    new: dict[str, int]


@dataclass(frozen=True)
class Level:
    """The n-grams of one order in groups of captions. A node is an n-gram of a group, an entry one of its captions.

    Attributes:
        parent (`np.ndarray`): int64 of shape (nodes,), the node of the order below, or the group.
        word (`np.ndarray`): int64 of shape (nodes,), the last word. Nodes are sorted by parent, then by word.
        group (`np.ndarray`): int64 of shape (nodes,), ascending.
        node (`np.ndarray`): int64 of shape (entries,), ascending.
        caption (`np.ndarray`): int64 of shape (entries,), ascending within a node.
        count (`np.ndarray`): int64 of shape (entries,), how often the caption has the n-gram, at least 1.
    """

    parent: np.ndarray
    word: np.ndarray
    group: np.ndarray
    node: np.ndarray
    caption: np.ndarray
    count: np.ndarray


def read_words(captions: Sequence[str], known: Mapping[str, int]) -> Words:
    """Give every word its number.

    Args:
        captions (`Sequence[str]`): tokens separated by white space.
        known (`Mapping[str, int]`): word -> number, from 0 without gaps.

    Returns:
        [`Words`]

    Example:

    ```python
    >>> from hf_captioners.metrics.ngrams import read_words
    >>> read_words(["a dog", "the dog"], {"a": 0, "cat": 1})
    Words(word=array([0, 2, 3, 2]), length=array([2, 2]), new={'dog': 2, 'the': 3})

    ```
    """
    numbers = _Numbers(known)
    pieces, lengths = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for start in range(0, len(captions), CAPTIONS_AT_ONCE):
        piece = captions[start : start + CAPTIONS_AT_ONCE]
        tokens = numbers.join(piece).split()  # one text is split faster than thousands
        number = np.fromiter(map(numbers.__getitem__, tokens), np.int64, len(tokens))
        is_end = number < 0
        pieces.append(number[~is_end])
        lengths.append(np.diff(np.flatnonzero(is_end), prepend=-1) - 1)
    return Words(np.concatenate(pieces), np.concatenate(lengths), numbers.new)


class _Numbers(dict[str, int]):
    """The numbers of the words that were met, and -1 of a word that stands for the end of a caption."""

    def __init__(self, known: Mapping[str, int]) -> None:
        self.known = known
        self.new: dict[str, int] = {}
        self.end = "\uffff"  # no character
        self[self.end] = -1

    def join(self, captions: Sequence[str]) -> str:
        """One text of captions, each with the end behind it."""
        while (text := f" {self.end} ".join([*captions, ""])).count(self.end) > len(captions):
            del self[self.end]
            self.end += "\uffff"
            self[self.end] = -1
        return text

    def __missing__(self, word: str) -> int:
        number = self.known.get(word)
        if number is None:
            number = self.new.setdefault(word, len(self.known) + len(self.new))
        self[word] = number
        return number


def sort_words(words: Words) -> tuple[list[str], Words]:
    """Number words in the order of their code points.

    Args:
        words ([`Words`]): all of them new.

    Returns:
        `tuple[list[str], Words]`: the words, each once, and the captions with their positions as numbers.
    """
    vocabulary = sorted(words.new)
    sorted_number = np.empty(len(vocabulary), np.int64)
    sorted_number[[words.new[word] for word in vocabulary]] = np.arange(len(vocabulary))
    return vocabulary, Words(sorted_number[words.word], words.length, {})


def count_ngrams(words: Words, group: np.ndarray, groups: int, n: int) -> Iterator[Level]:
    """Count the n-grams of groups of captions, such as the references of an image.

    Args:
        words ([`Words`]): of the captions.
        group (`np.ndarray`): int64 of shape (captions,), the group of each caption, ascending.
        groups (`int`): their number.
        n (`int`): the highest order.

    Yields:
        [`Level`] of the 1-grams, the 2-grams, …

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_captioners.metrics.ngrams import count_ngrams, read_words
    >>> unigrams, bigrams = count_ngrams(read_words(["a dog a dog", "a cat"], {}), np.array([0, 0]), 1, n=2)
    >>> bigrams.parent, bigrams.word  # 0 = a, 1 = dog, 2 = cat
    (array([0, 0, 1]), array([1, 2, 0]))
    >>> bigrams.node, bigrams.caption, bigrams.count
    (array([0, 1, 2]), array([0, 1, 0]), array([2, 1, 1]))

    ```
    """
    owner = np.repeat(np.arange(len(words.length)), words.length)  # (words,): the caption
    remaining = np.repeat(np.cumsum(words.length), words.length) - np.arange(len(owner))  # words up to its end
    node = group[owner]  # (words,): of the n-gram of the order below that starts here
    group_of_node = np.arange(groups)
    for order in range(n):
        start = np.flatnonzero(remaining > order)
        key, bits, start = _sorted(node[start], words.word[start + order], start)
        is_new = changes(key)
        number = np.cumsum(is_new) - 1
        node[start] = number
        entry = np.flatnonzero(is_new | changes(owner[start]))
        parent, word = unpack(key[is_new], bits)
        group_of_node = group_of_node[parent]
        count = np.diff(entry, append=len(start))
        yield Level(parent, word, group_of_node, number[entry], owner[start[entry]], count)


def number_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys that there are, each once and ascending, and the number of each key among them.

    Args:
        keys (`np.ndarray`): int64 of shape (n,), of nodes.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: int64 of shape (different keys,) and (n,).
    """
    ordered, bits, position = _sorted(*unpack(keys), np.arange(len(keys)))
    is_new = changes(ordered)
    number = np.empty(len(keys), np.int64)
    number[position] = np.cumsum(is_new) - 1
    return pack(*unpack(ordered[is_new], bits)), number


def _sorted(parent: np.ndarray, word: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """Keys in ascending order, equal ones in that of their starts, the bits of a word in these keys, and the starts."""
    bits = [int(part.max(initial=0)).bit_length() for part in (word, start)]
    if int(parent.max(initial=0)).bit_length() + sum(bits) > 63:
        key = pack(parent, word)
        by_key = np.argsort(key, kind="stable")
        return key[by_key], WORD_BITS, start[by_key]
    # all three in one integer: sorting numbers is several times as fast as sorting their positions
    packed = parent << bits[0]
    packed |= word
    packed <<= bits[1]
    packed |= start
    packed.sort()
    start = packed & ((1 << bits[1]) - 1)
    packed >>= bits[1]
    return packed, bits[0], start


def build_tree(ngrams: Sequence[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """The tree over n-grams and their beginnings, under the one root 0, whose key is -1.

    Args:
        ngrams (`Sequence[np.ndarray]`): int64 of shape (n-grams, length), numbers of words, for the lengths 1, 2, …

    Returns:
        `tuple[np.ndarray, list[np.ndarray]]`: keys, int64 of shape (nodes,), shorter n-grams first, and the nodes of
        the n-grams of each length, int64 of shape (n-grams,).

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_captioners.metrics.ngrams import build_tree, unpack
    >>> keys, nodes = build_tree([np.array([[3]]), np.array([[5, 3], [5, 4]])])
    >>> unpack(keys[1:])  # the parents and last words of: 3; 5; 5 3; 5 4
    (array([0, 0, 2, 2]), array([3, 5, 3, 4]))
    >>> nodes
    [array([1]), array([3, 4])]

    ```
    """
    keys = [np.array([-1])]
    nodes = [np.zeros(len(of_length), np.int64) for of_length in ngrams]
    below = 1
    for order in range(len(ngrams)):
        lengths = range(order, len(ngrams))  # n-grams that are at least this long
        key = [pack(nodes[length], ngrams[length][:, order]) for length in lengths]
        keys_of_order, number = number_keys(np.concatenate(key))
        ends = np.cumsum([len(part) for part in key])
        for length, numbers in zip(lengths, np.split(number + below, ends[:-1]), strict=True):
            nodes[length] = numbers
        below += len(keys_of_order)
        keys.append(keys_of_order)
    return np.concatenate(keys), nodes


def find(keys: np.ndarray, parent: np.ndarray, word: np.ndarray) -> np.ndarray:
    """Look up nodes by parent and word.

    Args:
        keys (`np.ndarray`): int64 of shape (nodes,), ascending, at least one. A root's key is no n-gram's.
        parent (`np.ndarray`): int64 of shape (queries,), -1 where the parent itself is unknown.
        word (`np.ndarray`): int64 of shape (queries,).

    Returns:
        `np.ndarray`: int64 of shape (queries,), the node, or -1 where there is none.
    """
    node = np.full(len(parent), -1)
    rows = np.flatnonzero(parent >= 0)
    # a search for sorted keys reads neighbouring memory: ten times as fast
    key, bits, rows = _sorted(parent[rows], word[rows], rows)
    queries = pack(*unpack(key, bits))
    at = np.minimum(np.searchsorted(keys, queries), len(keys) - 1)
    is_node = keys[at] == queries
    node[rows[is_node]] = at[is_node]
    return node


def pack(parent: np.ndarray, word: np.ndarray) -> np.ndarray:
    """The keys of nodes."""
    return (parent << WORD_BITS) | word


def unpack(keys: np.ndarray, bits: int = WORD_BITS) -> tuple[np.ndarray, np.ndarray]:
    """Parents and words of keys, in which a word has that many bits."""
    return keys >> bits, keys & ((1 << bits) - 1)


def changes(values: np.ndarray) -> np.ndarray:
    """Mark the values that differ from the value before them, and the first value, as True."""
    changed = np.ones(len(values), dtype=bool)
    changed[1:] = values[1:] != values[:-1]
    return changed


def spans(start: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The positions start, start + 1, …, of each span, one span after another."""
    return np.repeat(start - np.cumsum(length) + length, length) + np.arange(length.sum())
