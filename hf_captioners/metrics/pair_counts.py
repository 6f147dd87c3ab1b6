"""The n-grams of captions and their references, counted once for the metrics that need them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from .ngrams import Level, Words, count_ngrams, read_words, sort_words, spans

PREDICTIONS_AT_ONCE = 8192  # words that no reference has are numbered anew in each piece


class PairCounts:
    """The words of captions and references as numbers, and their n-grams, counted when they are asked for.

    Args:
        predictions (`Sequence[Sequence[str]]`): the captions of each image, as tokens separated by white space.
        references (`Sequence[Sequence[str]]`): the references of each image.
        known (`Mapping[str, int]`, *optional*): word -> number, from 0 without gaps; by default the words of the
            references get their numbers in the order of their code points.

    Attributes:
        images (`int`): number of images.
        words ([`Words`]): of all captions, image by image, predictions before references.
        image (`np.ndarray`): int64 of shape (captions,), ascending.
        predicted (`np.ndarray`): bool of shape (captions,), True for predictions.

    Example:

    ```python
    >>> from hf_captioners.metrics.pair_counts import PairCounts
    >>> counts = PairCounts([["a dog"], ["a cat"]], [["the dog", "a dog"], ["cats"]])
    >>> counts.words.word, counts.predicted  # 0 = a, 1 = cats, 2 = dog, 3 = the, 4 = cat
    (array([0, 2, 3, 2, 0, 2, 0, 4, 1]), array([ True, False, False,  True, False]))
    >>> [len(level.word) for level in counts.levels(2)]
    [6, 3]

    ```
    """

    def __init__(
        self,
        predictions: Sequence[Sequence[str]],
        references: Sequence[Sequence[str]],
        known: Mapping[str, int] | None = None,
    ) -> None:
        self.images = len(references)
        flat = [caption for captions in predictions for caption in captions]
        words = read_words([caption for captions in references for caption in captions], known or {})
        if known is None:
            vocabulary, words = sort_words(words)
            known = {word: number for number, word in enumerate(vocabulary)}
        else:
            known = {**known, **words.new}
        pieces = [
            read_words(flat[start : start + PREDICTIONS_AT_ONCE], known)
            for start in range(0, len(flat), PREDICTIONS_AT_ONCE)
        ]
        sizes = np.array([[len(captions) for captions in side] for side in (predictions, references)], np.int64)
        of_both = sizes.T.ravel()  # predictions, references, predictions, …
        self.image = np.repeat(np.arange(len(of_both)) // 2, of_both)
        self.predicted = np.repeat(np.arange(len(of_both)) % 2 == 0, of_both)
        self.words = _interleave(pieces, words, self.predicted)
        self._levels: list[Level] = []
        self._further = count_ngrams(self.words, self.image, self.images, sys.maxsize)

    def levels(self, n: int) -> list[Level]:
        """The n-grams of each image's captions.

        Args:
            n (`int`): the highest order.

        Returns:
            `list[Level]`: of the 1-grams, the 2-grams, …, with the images as groups.
        """
        while len(self._levels) < n:
            self._levels.append(next(self._further))
        return self._levels[:n]


def _interleave(predictions: Sequence[Words], references: Words, predicted: np.ndarray) -> Words:
    """The words of all captions in their order, of those of both sides."""
    length = np.concatenate([*(piece.length for piece in predictions), references.length])
    word = np.concatenate([*(piece.word for piece in predictions), references.word])
    caption = np.empty(len(length), np.int64)
    caption[predicted] = np.arange(np.count_nonzero(predicted))
    caption[~predicted] = np.arange(np.count_nonzero(predicted), len(length))
    start = np.cumsum(length) - length
    return Words(word[spans(start[caption], length[caption])], length[caption], {})
