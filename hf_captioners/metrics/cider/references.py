"""The references of images as CIDEr compares with them: vectors of tf-idf weights, in arrays that are searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..ngrams import WORD_BITS, Level, Words, count_ngrams, find, pack, spans
from .document_frequency import DocumentFrequencies


@dataclass(frozen=True)
class PreparedReferences:
    """The references of images, in a tree of n-grams (see `ngrams`) with a root per image.

    The nodes of an image follow one another, root first, then its 1-grams, its 2-grams, … So images are cut out and put
    together by shifting numbers.

    Attributes:
        keys (`np.ndarray`): int64 of shape (nodes,), ascending. A root's key is just below those of its children.
        roots (`np.ndarray`): int64 of shape (images,), the root of each image.
        first_entry (`np.ndarray`): int64 of shape (nodes + 1,). The entries of a node are the references that have it.
        reference (`np.ndarray`): int32 of shape (entries,), which reference of the image.
        weight (`np.ndarray`): float64 of shape (entries,), tf-idf.
        norm (`np.ndarray`): float64 of shape (references, n), the length of each reference's vector per order.
        bigrams (`np.ndarray`): int64 of shape (references,).
        first_reference (`np.ndarray`): int64 of shape (images + 1,).
        numbers (`Mapping[str, int]`): the scorer's numbers of words; other scorers have others.
    """

    keys: np.ndarray
    roots: np.ndarray
    first_entry: np.ndarray
    reference: np.ndarray
    weight: np.ndarray
    norm: np.ndarray
    bigrams: np.ndarray
    first_reference: np.ndarray
    numbers: Mapping[str, int]

    def find(self, parent: np.ndarray, word: np.ndarray) -> np.ndarray:
        """The nodes of n-grams by those of their beginnings (roots for 1-grams) and last words; -1 where none is."""
        return find(self.keys, parent, word)

    def entries(self, node: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The entries of all nodes.

        Args:
            node (`np.ndarray`): int64, -1 for none.

        Returns:
            `tuple[np.ndarray, np.ndarray]`: positions in `node`, and the entries, one pair for each entry.
        """
        position = np.flatnonzero(node >= 0)
        start = self.first_entry[node[position]]
        number = self.first_entry[node[position] + 1] - start
        return np.repeat(position, number), spans(start, number)

    def image(self, position: int) -> PreparedReferences:
        """One image alone, copied.

        Args:
            position (`int`): of the image, at least 0.

        Returns:
            [`PreparedReferences`]
        """
        a = int(self.roots[position])
        b = int(self.roots[position + 1]) if position + 1 < len(self.roots) else len(self.keys)
        c, d = self.first_reference[position : position + 2].tolist()
        entries = slice(self.first_entry[a], self.first_entry[b])
        return PreparedReferences(
            keys=self.keys[a:b] - (a << WORD_BITS),
            roots=np.zeros(1, np.int64),
            first_entry=self.first_entry[a : b + 1] - self.first_entry[a],
            reference=self.reference[entries].copy(),
            weight=self.weight[entries].copy(),
            norm=self.norm[c:d].copy(),
            bigrams=self.bigrams[c:d].copy(),
            first_reference=np.array([0, d - c]),
            numbers=self.numbers,
        )


def join_references(parts: Sequence[PreparedReferences]) -> PreparedReferences:
    """Images that were prepared by the same scorer, put together.

    Args:
        parts (`Sequence[PreparedReferences]`): at least one.

    Returns:
        [`PreparedReferences`]
    """
    sizes = [len(part.keys) for part in parts]
    nodes = _starts(sizes)
    entries = _starts([len(part.weight) for part in parts])
    references = _starts([len(part.bigrams) for part in parts])
    return PreparedReferences(
        keys=np.concatenate([part.keys for part in parts]) + np.repeat(nodes[:-1] << WORD_BITS, sizes),
        roots=np.concatenate([part.roots + start for part, start in zip(parts, nodes, strict=False)]),
        first_entry=_join_starts([part.first_entry for part in parts], entries),
        reference=np.concatenate([part.reference for part in parts]),
        weight=np.concatenate([part.weight for part in parts]),
        norm=np.concatenate([part.norm for part in parts]),
        bigrams=np.concatenate([part.bigrams for part in parts]),
        first_reference=_join_starts([part.first_reference for part in parts], references),
        numbers=parts[0].numbers,
    )


def prepare_references(
    words: Words,
    references_per_image: np.ndarray,
    frequencies: DocumentFrequencies,
    n: int,
    numbers: Mapping[str, int],
) -> PreparedReferences:
    """The vectors of references.

    Args:
        words ([`Words`]): of all references of all images, one after another, with the numbers of the frequencies.
        references_per_image (`np.ndarray`): int64 of shape (images,), at least 1.
        frequencies ([`DocumentFrequencies`]): for the idf.
        n (`int`): the highest order.
        numbers (`Mapping[str, int]`): word -> number.

    Returns:
        [`PreparedReferences`]
    """
    images = len(references_per_image)
    first_reference = _starts(references_per_image)
    image = np.repeat(np.arange(images), references_per_image)
    levels = list(count_ngrams(words, image, images, n))
    norm = np.zeros((len(image), n))
    weights = []
    node = np.zeros(images, np.int64)
    for order, level in enumerate(levels):
        node = frequencies.find(node[level.parent], level.word)
        weight = level.count * frequencies.idf(node)[level.node]
        norm[:, order] = np.sqrt(np.bincount(level.caption, weight**2, minlength=len(image)))
        weights.append(weight)
    keys, roots, nodes = _image_by_image(levels, images)
    first_entry, places = _entry_places(levels, nodes, len(keys))
    reference = np.empty(first_entry[-1], np.int32)
    all_weights = np.empty(first_entry[-1])
    for level, weight, place in zip(levels, weights, places, strict=True):
        reference[place] = level.caption - first_reference[image[level.caption]]
        all_weights[place] = weight
    bigrams = np.maximum(words.length - 1, 0)
    return PreparedReferences(keys, roots, first_entry, reference, all_weights, norm, bigrams, first_reference, numbers)


def _image_by_image(levels: Sequence[Level], images: int) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Keys and roots of the tree in which the nodes of an image follow one another, and the numbers of each level."""
    per_order = [np.bincount(level.group, minlength=images) for level in levels]
    sizes = np.stack([np.ones(images, np.int64), *per_order], axis=1)  # (images, 1 + n)
    starts = _starts(sizes.ravel())[:-1].reshape(sizes.shape)
    roots = starts[:, 0]
    keys = np.empty(sizes.sum(), np.int64)
    keys[roots] = (roots << WORD_BITS) - 1
    numbers: list[np.ndarray] = []
    below = roots
    for order, level in enumerate(levels):
        number = spans(starts[:, order + 1], sizes[:, order + 1])
        keys[number] = pack(below[level.parent], level.word)
        numbers.append(number)
        below = number
    return keys, roots, numbers


def _entry_places(
    levels: Sequence[Level], numbers: Sequence[np.ndarray], nodes: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The first entry of each node, and the positions of the entries of each level."""
    sizes = np.zeros(nodes, np.int64)
    per_node = [np.bincount(level.node, minlength=len(level.word)) for level in levels]
    for number, size in zip(numbers, per_node, strict=True):
        sizes[number] = size
    first_entry = _starts(sizes)
    return first_entry, [spans(first_entry[number], size) for number, size in zip(numbers, per_node, strict=True)]


def _starts(sizes: np.ndarray | Sequence[int]) -> np.ndarray:
    """The start of each part and the end of the last one, from sizes of parts."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


def _join_starts(parts: Sequence[np.ndarray], shifts: np.ndarray) -> np.ndarray:
    """Join lists of starts into one; `shifts` has the start of each list, and the end."""
    inner = np.concatenate([part[:-1] for part in parts])
    return np.append(inner + np.repeat(shifts[:-1], [len(part) - 1 for part in parts]), shifts[-1])
