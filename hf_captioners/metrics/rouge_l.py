"""ROUGE-L of captions, as the COCO evaluation computes it.

Lin, 2004, "ROUGE: A Package for Automatic Evaluation of Summaries", section 3.1: how much of a caption and of a
reference is a common subsequence of words. The numbers are those of pycocoevalcap's `Rouge`:

- the highest precision and the highest recall over the references count, even if they come from different ones;
- beta is 1.2, so recall weighs more than precision;
- tokens are what stands between single spaces, so an empty caption is one empty token: it scores 0 against a reference
  with words and 1 against an empty one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .scores import Scores
from .tokens import Tokenizer, prepare_pairs, tokenizer_setting


def rouge_l(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    beta: float = 1.2,
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
) -> Scores:
    """ROUGE-L, the F-score of the longest common subsequence.

    Args:
        predictions (`Sequence[str]`): a caption per image.
        references (`Sequence[Sequence[str]]`): the references of each image, at least one.
        beta (`float`, defaults to 1.2): how many times recall weighs as much as precision, at least 0.
        tokenized (`bool`, defaults to `False`): the captions are tokens joined by single spaces; otherwise they are
            tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; `"unicode"`
            for other languages than English.
        image_ids (`Sequence`, *optional*): names of the images for messages.

    Returns:
        [`Scores`]: `rouge_l` between 0 and 1. The corpus has the mean over the images.

    Raises:
        MetricInputError: captions that cannot be scored, see [`check_pairs`].
        ValueError: `beta` is negative or not finite.

    Example:

    ```python
    >>> from hf_captioners.metrics.rouge_l import rouge_l
    >>> scores = rouge_l(["a dog runs"], [["a brown dog runs", "dogs run"]], beta=1.0, tokenized=True)
    >>> round(scores.corpus["rouge_l"], 6)  # precision 3/3, recall 3/4
    0.857143

    ```
    """
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta is {beta}, expected a finite number of at least 0")
    predictions, references = prepare_pairs(predictions, references, tokenized, image_ids, tokenizer=tokenizer)
    scores = np.array([_score(*pair, beta) for pair in zip(predictions, references, strict=True)])
    return Scores(
        {"rouge_l": float(scores.mean())},
        {"rouge_l": scores},
        settings={"beta": float(beta), **tokenizer_setting(tokenizer, tokenized)},
    )


def _score(prediction: str, references: Sequence[str], beta: float) -> float:
    """The F-score of one caption."""
    tokens = prediction.split(" ")
    places: dict[str, int] = {}  # token -> bits of the positions where the prediction has it
    for position, token in enumerate(tokens):
        places[token] = places.get(token, 0) | 1 << position
    precision = recall = 0.0
    for reference in references:
        reference_tokens = reference.split(" ")
        common = _common_length(places, len(tokens), reference_tokens)
        precision = max(precision, common / len(tokens))
        recall = max(recall, common / len(reference_tokens))
    if precision == 0.0:  # and so recall
        return 0.0
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision)


def _common_length(places: Mapping[str, int], length: int, tokens: Sequence[str]) -> int:
    """Length of the longest common subsequence, a whole row of the usual table at a time.

    A bit of `row` is 0 where the table's row grows by one (Hyyrö, 2004, "Bit-parallel LCS-length computation
    revisited"). Bits beyond `length` are carries, which are masked out.
    """
    row = full = (1 << length) - 1
    for token in tokens:
        matched = row & places.get(token, 0)
        row = (row + matched) | (row - matched)
    return length - (row & full).bit_count()
