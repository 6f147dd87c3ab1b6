"""METEOR 1.5 for English, in Python: the numbers of the published Java program.

Denkowski and Lavie, 2014, "Meteor Universal: Language Specific Translation Evaluation for Any Target Language", with
the settings of the COCO evaluation (task "rank", normalised captions). Words of a caption are matched with those of a
reference by form, stem, synonym and paraphrase ([`MeteorAligner`]). Precision and recall, in which function words count
less, make a mean, which a penalty lowers the more, the more chunks the matches fall into. Of several references the one
with the highest score counts. The score of a corpus is computed from the sums of the statistics, not a mean.

Needs the data tables of pycocoevalcap and snowballstemmer, of the extra `eval`. No Java. Deviations,
both for text that would break the program's lines: (1) a line break counts as a space; (2) "|||" is dropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..scores import Scores
from ..tokens import Tokenizer, prepare_pairs, tokenizer_setting
from .aligner import Match, MeteorAligner, Sentence
from .data import MeteorData

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of matches by form, stem, synonym and paraphrase

NUM_STATISTICS = 23  # of a segment; meteor_statistics says which
_CHUNKS = 20  # the place of the chunks; the matched words of both sides follow


def meteor(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
    data: MeteorData | None = None,
) -> Scores:
    """Score captions with METEOR 1.5.

    Args:
        predictions (`Sequence[str]`): a caption per image.
        references (`Sequence[Sequence[str]]`): the references of each image.
        tokenized (`bool`, defaults to `False`): the captions are PTB tokens joined by spaces already.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; `"unicode"`
            for other languages than English.
        image_ids (`Sequence`, *optional*): names of the images for messages; by default positions.
        data ([`MeteorData`], *optional*): the tables, for those who score often; by default they are loaded, in half a
            second, or about 15 the first time of all.

    Returns:
        [`Scores`]: `meteor`, 0 to 1. The corpus score is not the mean over the images.

    Raises:
        MeteorDataError: the tables or the stemmer are missing; the message says what to install.
        MetricInputError: captions that cannot be scored; the image is named.

    Example:

    ```python
    >>> from hf_captioners.metrics.meteor.meteor import meteor
    >>> scores = meteor(["A man rides a horse.", "A cat."], [["A man riding a brown horse."], ["A cat.", "A kitten."]])
    >>> scores.per_image["meteor"].round(4).tolist(), round(scores.corpus["meteor"], 4)
    ([0.362, 1.0], 0.4191)

    ```
    """
    data = MeteorData.load() if data is None else data
    statistics = meteor_statistics(
        predictions, references, tokenized=tokenized, tokenizer=tokenizer, image_ids=image_ids, data=data
    )
    per_image = np.array([meteor_score(row) for row in statistics.tolist()])
    totals = statistics.sum(axis=0)
    totals[_CHUNKS] = sum(_chunks_that_count(row) for row in statistics.tolist())
    corpus = {"meteor": meteor_score(totals.tolist())}
    return Scores(
        corpus, {"meteor": per_image}, settings={"tables": data.digest, **tokenizer_setting(tokenizer, tokenized)}
    )


def meteor_statistics(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
    data: MeteorData | None = None,
) -> np.ndarray:
    """The statistics that METEOR is computed from, for each image and its best reference.

    Args:
        predictions, references, tokenized, tokenizer, image_ids, data: see [`meteor`].

    Returns:
        `np.ndarray`: float64 of shape (number of images, 23), in the order in which the Java program gives them: words
        and function words of prediction and reference; for each kind of match the matched content words of both and the
        matched function words of both; chunks; matched words of both. Of references with equal scores, the first.

    Raises:
        MeteorDataError, MetricInputError: see [`meteor`].
    """
    hypotheses, lists = prepare_pairs(predictions, references, tokenized, image_ids, tokenizer=tokenizer)
    hypotheses = [_clean(text) for text in hypotheses]
    lists = [[_clean(text) for text in image_references] for image_references in lists]
    data = MeteorData.load() if data is None else data
    aligner = MeteorAligner(data, {*hypotheses, *(text for image_references in lists for text in image_references)})
    rows = np.empty((len(hypotheses), NUM_STATISTICS))
    for row, hypothesis, image_references in zip(rows, hypotheses, lists, strict=True):
        sentence = aligner.sentence(hypothesis)
        candidates = [
            _count(aligner, data.function_words, sentence, aligner.sentence(text)) for text in image_references
        ]
        row[:] = max(candidates, key=meteor_score)
    return rows


def meteor_score(statistics: Sequence[float]) -> float:
    """The score of the statistics of a segment, or of their sums over segments.

    Args:
        statistics (`Sequence[float]`): 23 numbers, see [`meteor_statistics`]. In sums, segments that match their
            reference word by word in one chunk must not add to the chunks.

    Returns:
        `float`: 0 to 1.

    Example:

    ```python
    >>> from hf_captioners.metrics.meteor.meteor import meteor_score
    >>> round(meteor_score([4, 4, 2, 2, 2, 2, 2, 2, *[0] * 12, 2, 4, 4]), 4)  # all four words match, in two chunks
    0.4777

    ```
    """
    words, reference_words, function, reference_function = statistics[:4]
    matched = reference_matched = 0.0
    for kind, weight in enumerate(WEIGHTS):
        content, reference_content, functional, reference_functional = statistics[4 + 4 * kind : 8 + 4 * kind]
        matched += weight * _weigh(content, functional)
        reference_matched += weight * _weigh(reference_content, reference_functional)
    if matched == 0 or reference_matched == 0:
        return 0.0
    precision = matched / _weigh(words - function, function)
    recall = reference_matched / _weigh(reference_words - reference_function, reference_function)
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    fragmentation = _chunks_that_count(statistics) / ((statistics[_CHUNKS + 1] + statistics[_CHUNKS + 2]) / 2)
    return mean * (1 - GAMMA * fragmentation**BETA)


def _weigh(content: float, function: float) -> float:
    return DELTA * content + (1 - DELTA) * function


def _chunks_that_count(statistics: Sequence[float]) -> float:
    """The number of chunks; 0 where every word of both is matched in one chunk, which is no fragmentation."""
    chunks, matched, reference_matched = statistics[_CHUNKS:]
    whole = chunks == 1 and matched == statistics[0] and reference_matched == statistics[1]
    return 0.0 if whole else chunks


def _clean(text: str) -> str:
    """Drop the separator of the Java program, as the COCO evaluation does."""
    return text.replace("|||", "")


def _count(
    aligner: MeteorAligner, function_words: frozenset[str], hypothesis: Sentence, reference: Sentence
) -> list[float]:
    """The statistics of a caption and one reference."""
    hypothesis_words, reference_words = hypothesis.words, reference.words
    matches = aligner.align(hypothesis, reference)
    counts = [0.0] * NUM_STATISTICS
    counts[:2] = len(hypothesis_words), len(reference_words)
    counts[2:4] = (sum(word in function_words for word in words) for words in (hypothesis_words, reference_words))
    for start, length, hypothesis_start, hypothesis_length, kind in matches:
        sides = ((hypothesis_words, hypothesis_start, hypothesis_length), (reference_words, start, length))
        for side, (words, first, size) in enumerate(sides):
            functional = sum(word in function_words for word in words[first : first + size])
            counts[4 + 4 * kind + side] += size - functional
            counts[6 + 4 * kind + side] += functional
            counts[_CHUNKS + 1 + side] += size
    counts[_CHUNKS] = _count_chunks(matches)
    return counts


def _count_chunks(matches: list[Match]) -> int:
    """Runs of matches that are neighbours in both sentences."""
    chunks, end, hypothesis_end = 0, -1, -1
    for start, length, hypothesis_start, hypothesis_length, _ in matches:
        chunks += (start, hypothesis_start) != (end, hypothesis_end)
        end, hypothesis_end = start + length, hypothesis_start + hypothesis_length
    return chunks
