"""What every metric takes and returns, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class MetricInputError(ValueError):
    """Captions that cannot be scored. The message names the image."""


@dataclass(frozen=True)
class Scores:
    """What a metric gives.

    Attributes:
        corpus (`dict[str, float]`): name -> score of the whole corpus. Not always the mean over the images.
        per_image (`dict[str, np.ndarray]`): name -> float64 of shape (number of images,), in the order of the captions.
    """

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]


def check_pairs(predictions: Sequence[Any], references: Sequence[Any], image_ids: Sequence[Any] | None = None) -> None:
    """Refuse captions that would give a wrong number.

    Args:
        predictions (`Sequence[str]`): a caption per image; an empty one is a caption.
        references (`Sequence[Sequence[str]]`): the references of each image, at least one.
        image_ids (`Sequence`, *optional*): names of the images, without repetition, for messages; by default positions.

    Raises:
        MetricInputError: no images, lengths that differ, an image without references, a caption that is not a string,
            the same image twice.

    Example:

    ```python
    >>> from hf_captioners.metrics.inputs import check_pairs
    >>> check_pairs(["a dog"], [[]])
    Traceback (most recent call last):
        ...
    hf_captioners.metrics.inputs.MetricInputError: image 0: no references; every image needs at least one

    ```
    """
    for name, captions in (("predictions", predictions), ("references", references)):
        if isinstance(captions, (str, bytes)) or not isinstance(captions, Sequence):
            raise MetricInputError(f"{name}: expected a list with one entry per image, not {_shown(captions)}")
    if len(predictions) != len(references):
        raise MetricInputError(
            f"{len(predictions)} predictions but {len(references)} lists of references; expected one of each per image"
        )
    if not predictions:
        raise MetricInputError("no images to score; expected at least one prediction")
    names = range(len(predictions)) if image_ids is None else image_ids
    check_image_ids(names, len(predictions))
    for name, prediction, several in zip(names, predictions, references, strict=True):
        if not isinstance(prediction, str):
            raise MetricInputError(f"image {name}: the prediction is {_shown(prediction)}, expected a string")
        if isinstance(several, (str, bytes)) or not isinstance(several, Sequence):
            raise MetricInputError(f"image {name}: the references are {_shown(several)}, expected a list of strings")
        if not several:
            raise MetricInputError(f"image {name}: no references; every image needs at least one")
        for position, reference in enumerate(several):
            if not isinstance(reference, str):
                raise MetricInputError(f"image {name}: reference {position} is {_shown(reference)}, expected a string")


def check_image_ids(image_ids: Sequence[Any], number: int) -> None:
    """Refuse names of images that are not one per image, each once.

    Args:
        image_ids (`Sequence`): the names.
        number (`int`): of images.

    Raises:
        MetricInputError: another number of names, or the same name twice.
    """
    if len(image_ids) != number:
        raise MetricInputError(f"{len(image_ids)} image_ids for {number} images; expected one per image")
    if isinstance(image_ids, range):
        return
    seen = set()
    for name in image_ids:
        if name in seen:
            raise MetricInputError(f"image {name}: occurs twice; expected one prediction per image")
        seen.add(name)


def prepare_pairs(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenized: bool = False,
    image_ids: Sequence[Any] | None = None,
    in_sequence: bool = False,
) -> tuple[list[str], list[list[str]]]:
    """The captions checked and as tokens joined by spaces, the form in which the reference tools score them.

    Args:
        predictions (`Sequence[str]`), references (`Sequence[Sequence[str]]`), image_ids: see [`check_pairs`].
        tokenized (`bool`, defaults to `False`): they are tokens joined by spaces already.
        in_sequence (`bool`, defaults to `False`): see [`~hf_captioners.metrics.ptb_tokenize`].

    Returns:
        `tuple[list[str], list[list[str]]]`: predictions and references.

    Raises:
        MetricInputError: see [`check_pairs`].
    """
    check_pairs(predictions, references, image_ids)
    if tokenized:
        return list(predictions), [list(several) for several in references]
    from .ptb.tokenizer import ptb_tokenize

    flat = iter(ptb_tokenize([one for several in references for one in several], in_sequence=in_sequence))
    tokens = [list(itertools.islice(flat, len(several))) for several in references]
    return ptb_tokenize(predictions, in_sequence=in_sequence), tokens


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
