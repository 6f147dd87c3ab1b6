"""SPICE: objects, attributes and relations of a caption, compared with those of its references.

Anderson et al., 2016, "SPICE: Semantic Propositional Image Caption Evaluation". The number is that of the authors'
program, which needs Java and Stanford CoreNLP and is optional: `java.py` lists what it needs. Where it cannot
run, there is an error and no number.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..scores import Scores
from ..tokens import Tokenizer, prepare_pairs, tokenizer_setting
from .cache import Pair, SpiceCache
from .java import CategoryScores, SpiceProgram, read_scores

BATCH_SIZE = 1000


def spice(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    java: str | Path = "java",
    jar: str | Path | None = None,
    timeout_s: float = 3600.0,
    cache_dir: str | Path | None = None,
    memory: str = "8g",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
) -> Scores:
    """Score captions with SPICE.

    Args:
        predictions (`Sequence[str]`): a caption per image.
        references (`Sequence[Sequence[str]]`): the references of each image, at least one.
        java (`str` or `Path`, defaults to `"java"`): a Java 8 to 14, by name or path.
        jar (`str` or `Path`, *optional*): `spice-1.0.jar` with its libraries beside it; by default that of an installed
            pycocoevalcap.
        timeout_s (`float`, defaults to 3600): seconds for one run, which scores at most `batch_size` images.
        cache_dir (`str` or `Path`, *optional*): folder in which scores are kept, also for other processes; by default
            none are. Java runs for captions that are not there.
        memory (`str`, defaults to `"8g"`): most that Java may take.
        threads (`int`, *optional*): of the parser, by default one per processor.
        batch_size (`int`, defaults to 1000): images per run; what a run has scored stays in the cache if a later one
            fails.
        tokenized (`bool`, defaults to `False`): the captions are tokens joined by spaces; otherwise they are tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; `"unicode"`
            for other languages than English.
        image_ids (`Sequence`, *optional*): names of the images for messages.

    Returns:
        [`Scores`]: `spice`, between 0 and 1. The corpus has the mean over the images, as the reference tools do.

    Raises:
        SpiceError: SPICE cannot run here, fails, takes too long, or gives no score for an image.
        MetricInputError: captions that cannot be scored, see [`check_pairs`].

    Example:

    ```python
    >>> from hf_captioners.metrics.spice.spice import spice
    >>> java = "/usr/lib/jvm/java-8-openjdk-amd64/bin/java"
    >>> scores = spice(["a dog runs"], [["a brown dog runs"]], java=java, cache_dir="spice")  # doctest: +SKIP
    >>> scores.corpus["spice"]  # doctest: +SKIP

    ```
    """
    pairs = prepare_pairs(predictions, references, tokenized, image_ids, tokenizer=tokenizer)
    program = SpiceProgram(java, jar, memory, timeout_s, threads)
    categories = spice_categories(*pairs, program=program, cache_dir=cache_dir, batch_size=batch_size)
    values = np.array([scores["All"]["f"] for scores in categories])
    return Scores(
        {"spice": float(values.mean())},
        {"spice": values},
        settings={"program": program.digest()[:12], **tokenizer_setting(tokenizer, tokenized)},
    )


def spice_categories(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    program: SpiceProgram | None = None,
    cache_dir: str | Path | None = None,
    batch_size: int = BATCH_SIZE,
) -> list[CategoryScores]:
    """SPICE with its parts: objects, attributes, relations, colours, counts and sizes.

    Args:
        predictions (`Sequence[str]`): a caption per image, tokens joined by spaces.
        references (`Sequence[Sequence[str]]`): the references of each image, tokens joined by spaces, at least one.
        program ([`SpiceProgram`], *optional*): what to run, and how.
        cache_dir (`str` or `Path`, *optional*), batch_size (`int`, defaults to 1000): see [`spice`].

    Returns:
        `list[dict[str, dict[str, float]]]`: for each image `"All"` (SPICE), `"Object"`, `"Attribute"`, `"Relation"`,
        `"Color"`, `"Cardinality"` and `"Size"`, each with F-score `"f"`, precision `"pr"`, recall `"re"` and the counts
        `"tp"`, `"fp"`, `"fn"`. The first three are NaN where a category does not occur in the references.

    Raises:
        SpiceError, MetricInputError: see [`spice`].
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}, expected at least 1")
    predictions, references = prepare_pairs(predictions, references, tokenized=True)
    program = SpiceProgram() if program is None else program
    pairs: list[Pair] = [
        (prediction, tuple(image_references))
        for prediction, image_references in zip(predictions, references, strict=True)
    ]
    cache = None if cache_dir is None else SpiceCache(cache_dir, program.digest())
    scores_of: dict[Pair, CategoryScores] = {}
    if cache is not None:
        cached = cache.find(list(dict.fromkeys(pairs)))
        scores_of = {pair: read_scores(scores, str(cache.path)) for pair, scores in cached.items()}
    new = [pair for pair in dict.fromkeys(pairs) if pair not in scores_of]
    if new:
        program.check()
    for start in range(0, len(new), batch_size):
        batch = new[start : start + batch_size]
        scored = dict(zip(batch, program.score(batch), strict=True))
        if cache is not None:
            cache.add(scored)
        scores_of |= scored
    return [scores_of[pair] for pair in pairs]


def category_means(categories: Sequence[CategoryScores]) -> dict[str, float]:
    """F-scores of a corpus by category.

    Args:
        categories (`Sequence[CategoryScores]`): from [`spice_categories`].

    Returns:
        `dict[str, float]`: category -> mean of `"f"` over the images where it is defined; NaN if it is nowhere.

    Example:

    ```python
    >>> from hf_captioners.metrics.spice.spice import category_means
    >>> category_means([{"Color": {"f": 0.5}}, {"Color": {"f": float("nan")}}, {"Color": {"f": 1.0}}])
    {'Color': 0.75}

    ```
    """
    values: dict[str, list[float]] = {}
    for scores in categories:
        for category, numbers in scores.items():
            values.setdefault(category, []).append(numbers["f"])
    defined = {
        category: [number for number in numbers if not math.isnan(number)] for category, numbers in values.items()
    }
    return {
        category: math.fsum(numbers) / len(numbers) if numbers else math.nan for category, numbers in defined.items()
    }
