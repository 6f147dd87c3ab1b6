"""Diversity of captions. It needs no references, and shows a model that rewards have led to a single caption.

- `distinct_n`: distinct n-grams of the corpus among all its n-grams (after Li et al., 2016, "A Diversity-Promoting
  Objective Function for Neural Conversation Models"; they divide by the number of words, also for n > 1). It falls
  as the number of captions grows: compare equally large sets.
- `repetition_n`: n-grams that stand earlier in the same caption, among all n-grams (Welleck et al., 2020, "Neural Text
  Generation with Unlikelihood Training", seq-rep-n). It grows where a model stutters: "a dog on a dog on a dog".
- `vocabulary_size`: distinct tokens. `mean_length`: tokens per caption. `unique_captions`: distinct captions among all.

A share of nothing is 0: captions that are too short to have n-grams of an order have `distinct_n` and `repetition_n` 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .ngrams import count_ngrams, read_words
from .scores import Scores
from .tokens import Tokenizer, prepare_pairs, tokenizer_setting


def diversity(
    predictions: Sequence[str],
    *,
    max_n: int = 4,
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
) -> Scores:
    """Score the diversity of captions.

    Args:
        predictions (`Sequence[str]`): a caption per image.
        max_n (`int`, defaults to 4): highest order of n-grams.
        tokenized (`bool`, defaults to `False`): the captions are tokens joined by spaces; otherwise they are tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; `"unicode"`
            for other languages than English.
        image_ids (`Sequence`, *optional*): names of the images for messages.

    Returns:
        [`Scores`]: of the corpus `distinct_n` and `repetition_n` for each order, both between 0 and 1,
        `vocabulary_size`, `mean_length` in tokens and `unique_captions` between 0 and 1. Of each image `repetition_n`
        and `length` in tokens.

    Raises:
        MetricInputError: captions that are not strings, no captions, or `image_ids` that don't fit.
        ValueError: `max_n` below 1.

    Example:

    ```python
    >>> from hf_captioners.metrics.diversity import diversity
    >>> scores = diversity(["a dog and a dog", "a dog"], max_n=2, tokenized=True)
    >>> {name: round(score, 3) for name, score in scores.corpus.items() if not name.startswith("distinct")}
    {'repetition_1': 0.286, 'repetition_2': 0.2, 'vocabulary_size': 3.0, 'mean_length': 3.5, 'unique_captions': 1.0}
    >>> scores.per_image["repetition_2"]
    array([0.25, 0.  ])

    ```
    """
    if max_n < 1:
        raise ValueError(f"max_n is {max_n}, expected an order of n-grams, at least 1")
    number = len(predictions) if isinstance(predictions, Sequence) else 0
    predictions, _ = prepare_pairs(predictions, [[""]] * number, tokenized, image_ids, tokenizer=tokenizer)
    words = read_words(predictions, {})
    distinct, repetition, per_image = {}, {}, {}
    for order, level in enumerate(count_ngrams(words, np.zeros(number, np.int64), 1, max_n), start=1):
        total = np.maximum(words.length - order + 1, 0)  # (captions,)
        repeated = total - np.bincount(level.caption, minlength=number)  # an entry is a distinct n-gram of a caption
        distinct[f"distinct_{order}"] = len(level.word) / max(total.sum(), 1)
        repetition[f"repetition_{order}"] = repeated.sum() / max(total.sum(), 1)
        per_image[f"repetition_{order}"] = repeated / np.maximum(total, 1)
    corpus_statistics = {
        "vocabulary_size": len(words.new),
        "mean_length": words.length.mean(),
        "unique_captions": len({" ".join(caption.split()) for caption in predictions}) / number,
    }
    corpus = {name: float(value) for name, value in {**distinct, **repetition, **corpus_statistics}.items()}
    return Scores(
        corpus,
        {**per_image, "length": words.length.astype(np.float64)},
        settings={"max_n": max_n, **tokenizer_setting(tokenizer, tokenized)},
    )
