"""BLEU of captions, as the COCO evaluation computes it.

Papineni et al., 2002, "BLEU: a Method for Automatic Evaluation of Machine Translation". The numbers are those of
pycocoevalcap's `Bleu`, which departs from the paper in one thing: 1e-15 is added to every number of matches and to the
length of the caption, 1e-9 to every number of n-grams and to the length of the references. A single caption thus has a
score, a small one, where it has no match:

- an empty caption, or captions that are all empty, score 0, also where a reference is empty too: the brevity penalty
  is 0;
- a caption of fewer than n tokens has a precision of 1e-15 / 1e-9 = 1e-6 at the order n;
- a caption whose references are all empty has no brevity penalty and no match;
- of two references as close in length, the shorter one counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from .ngrams import Level, changes, spans
from .pair_counts import PairCounts
from .scores import Scores
from .tokens import Tokenizer, prepare_pairs, tokenizer_setting

EffectiveLength = Literal["closest", "shortest", "average"]

TINY, SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class BleuCounts:
    """The counts that BLEU is computed from, for a number of captions or summed over them.

    Attributes:
        matches (`np.ndarray`): float64 of shape (captions, max_n), n-grams that the references have, clipped.
        totals (`np.ndarray`): float64 of shape (captions, max_n), n-grams.
        length (`np.ndarray`): float64 of shape (captions,), tokens.
        reference_length (`np.ndarray`): float64 of shape (captions,), effective length of the references.
    """

    matches: np.ndarray
    totals: np.ndarray
    length: np.ndarray
    reference_length: np.ndarray


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    max_n: int = 4,
    effective_length: EffectiveLength = "closest",
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
    counts: PairCounts | None = None,
) -> Scores:
    """BLEU-1 to BLEU-`max_n`.

    Args:
        predictions (`Sequence[str]`): a caption per image.
        references (`Sequence[Sequence[str]]`): the references of each image, at least one.
        max_n (`int`, defaults to 4): highest order of n-grams.
        effective_length (`str`, defaults to `"closest"`): the length of the references that a caption should reach, in
            tokens: that of the reference `"closest"` in length, of the `"shortest"`, or their `"average"`.
        tokenized (`bool`, defaults to `False`): the captions are tokens joined by spaces; otherwise they are tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; `"unicode"`
            for other languages than English.
        image_ids (`Sequence`, *optional*): names of the images for messages.
        counts ([`PairCounts`], *optional*): of the tokens, where other metrics have had them counted.

    Returns:
        [`Scores`]: `bleu_1`, `bleu_2`, … between 0 and 1. The corpus has the BLEU of the summed counts, which isn't the
        mean over the images.

    Raises:
        MetricInputError: captions that cannot be scored, see [`check_pairs`].
        ValueError: an unknown `effective_length`, or `max_n` below 1.

    Example:

    ```python
    >>> from hf_captioners.metrics.bleu import bleu
    >>> scores = bleu(["a dog runs"], [["a dog runs fast", "the dog runs"]], max_n=2, tokenized=True)
    >>> {name: round(score, 6) for name, score in scores.corpus.items()}
    {'bleu_1': 1.0, 'bleu_2': 1.0}

    ```
    """
    predictions, references = prepare_pairs(predictions, references, tokenized, image_ids, tokenizer=tokenizer)
    if counts is None:
        counts = PairCounts([[prediction] for prediction in predictions], references)
    matches = count_matches(counts, max_n, effective_length)
    summed = BleuCounts(*(values.sum(axis=0, keepdims=True) for values in vars(matches).values()))
    names = [f"bleu_{order}" for order in range(1, max_n + 1)]
    corpus, per_image = bleu_from_counts(summed)[0].tolist(), bleu_from_counts(matches).T.copy()
    return Scores(
        dict(zip(names, corpus, strict=True)),
        dict(zip(names, per_image, strict=True)),
        settings={"max_n": max_n, "effective_length": effective_length, **tokenizer_setting(tokenizer, tokenized)},
    )


def bleu_from_counts(counts: BleuCounts) -> np.ndarray:
    """BLEU of each row of counts.

    Args:
        counts ([`BleuCounts`]): of captions.

    Returns:
        `np.ndarray`: float64 of shape (captions, max_n), BLEU-1, BLEU-2, …
    """
    precisions = (counts.matches + TINY) / (counts.totals + SMALL)
    roots = 1.0 / np.arange(1, precisions.shape[1] + 1)
    ratio = (counts.length + TINY) / (counts.reference_length + SMALL)
    penalty = np.exp(np.minimum(1.0 - 1.0 / ratio, 0.0))  # (captions,): 1 for captions that are long enough
    return np.cumprod(precisions, axis=1) ** roots * penalty[:, None]


def count_matches(counts: PairCounts, max_n: int = 4, effective_length: EffectiveLength = "closest") -> BleuCounts:
    """Count the n-grams that the captions of each image share with its references.

    Args:
        counts ([`PairCounts`]): of tokenised captions and references, at least one of these for each image.
        max_n (`int`, defaults to 4), effective_length (`str`, defaults to `"closest"`): see [`bleu`].

    Returns:
        [`BleuCounts`]: a row per caption, image by image.

    Raises:
        ValueError: see [`bleu`].
    """
    if effective_length not in get_args(EffectiveLength):
        raise ValueError(f"effective_length is {effective_length!r}, expected one of {get_args(EffectiveLength)}")
    if max_n < 1:
        raise ValueError(f"max_n is {max_n}, expected an order of n-grams, at least 1")
    predicted = counts.predicted
    length = counts.words.length[predicted]
    matches = np.stack([_clipped(level, predicted) for level in counts.levels(max_n)], axis=1)
    totals = np.maximum(length[:, None].astype(np.float64) - np.arange(max_n), 0.0)
    reference_length = _effective_length(counts, effective_length)
    return BleuCounts(matches, totals, length.astype(np.float64), reference_length)


def _clipped(level: Level, predicted: np.ndarray) -> np.ndarray:
    """Matches of one order, (predictions,): an n-gram counts as often as one of the references has it, at most."""
    of_prediction = predicted[level.caption]  # (entries,)
    limit = np.zeros(len(level.word), np.int64)  # (nodes,): the n-grams of each image
    if len(limit):
        limit = np.maximum.reduceat(np.where(of_prediction, 0, level.count), np.flatnonzero(changes(level.node)))
    clipped = np.minimum(level.count, limit[level.node])[of_prediction]
    return np.bincount(level.caption[of_prediction], weights=clipped, minlength=len(predicted))[predicted]


def _effective_length(counts: PairCounts, effective_length: EffectiveLength) -> np.ndarray:
    """The length that each caption should reach, float64 of shape (predictions,)."""
    length = counts.words.length[~counts.predicted]  # (references,)
    image = counts.image[counts.predicted]  # (predictions,)
    number = np.bincount(counts.image[~counts.predicted], minlength=counts.images)  # (images,)
    first = np.cumsum(number) - number
    if effective_length == "shortest":
        return np.minimum.reduceat(length, first)[image].astype(np.float64)
    if effective_length == "average":
        return np.add.reduceat(length, first)[image] / number[image]
    reference = length[spans(first[image], number[image])]  # (pairs,) of a prediction and a reference
    difference = np.abs(reference - np.repeat(counts.words.length[counts.predicted], number[image]))
    step = length.max() + 1
    first_pair = np.cumsum(number[image]) - number[image]
    return (np.minimum.reduceat(difference * step + reference, first_pair) % step).astype(np.float64)
