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
from .data import MeteorData
from .matches import Sentences
from .segments import CHUNKS, best_statistics, chunks_that_count, meteor_scores


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
    per_image = meteor_scores(statistics)
    totals = statistics.sum(axis=0)
    totals[CHUNKS] = chunks_that_count(statistics).sum()
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
    texts = [text for image_references in lists for text in image_references]
    sentences = Sentences(data, [*hypotheses, *texts])
    return best_statistics(
        sentences,
        np.array([sentences.number[text] for text in hypotheses], np.int64),
        np.array([sentences.number[text] for text in texts], np.int64),
        np.array([len(image_references) for image_references in lists], np.int64),
    )


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
    return float(meteor_scores(np.array([statistics], np.float64))[0])


def _clean(text: str) -> str:
    """Drop the separator of the Java program, as the COCO evaluation does."""
    return text.replace("|||", "")
