"""Checks of the inputs of every metric: captions, references and the names of images."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60


class MetricInputError(ValueError):
    """Captions that cannot be scored. The message names the image."""


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
            raise MetricInputError(f"{name}: expected a list with one entry per image, not {describe(captions)}")
    if len(predictions) != len(references):
        raise MetricInputError(
            f"{len(predictions)} predictions but {len(references)} lists of references; expected one of each per image"
        )
    if not predictions:
        raise MetricInputError("no images to score; expected at least one prediction")
    names = range(len(predictions)) if image_ids is None else image_ids
    check_image_ids(names, len(predictions))
    for name, prediction, image_references in zip(names, predictions, references, strict=True):
        if isinstance(prediction, str) and is_list_of_strings(image_references):
            continue
        if not isinstance(prediction, str):
            raise MetricInputError(f"image {name}: the prediction is {describe(prediction)}, expected a string")
        if isinstance(image_references, (str, bytes)) or not isinstance(image_references, Sequence):
            raise MetricInputError(
                f"image {name}: the references are {describe(image_references)}, expected a list of strings"
            )
        if not image_references:
            raise MetricInputError(f"image {name}: no references; every image needs at least one")
        for position, reference in enumerate(image_references):
            if not isinstance(reference, str):
                raise MetricInputError(
                    f"image {name}: reference {position} is {describe(reference)}, expected a string"
                )


def is_list_of_strings(captions: Any) -> bool:
    """Tell at little cost whether captions are a list of some strings; others may be captions, too.

    Args:
        captions (`Any`): such as the references of an image.

    Returns:
        `bool`
    """
    return type(captions) is list and set(map(type, captions)) == {str}


def check_captions(captions: Sequence[Any]) -> None:
    """Refuse captions that are no list of strings.

    Args:
        captions (`Sequence[str]`): the captions.

    Raises:
        MetricInputError: a caption that is not a string, or one string in place of several.
    """
    if isinstance(captions, (str, bytes)):
        raise MetricInputError(f"captions: expected a list of strings, not one {type(captions).__name__}")
    for position, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise MetricInputError(f"caption {position}: expected a string, not {describe(caption)}")


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
    earlier_names = set()
    for name in image_ids:
        if name in earlier_names:
            raise MetricInputError(f"image {name}: occurs twice; expected one prediction per image")
        earlier_names.add(name)


def describe(value: Any) -> str:
    """A short text of a value and its type, for messages.

    Args:
        value (`Any`): such as a caption that is none.

    Returns:
        `str`

    Example:

    ```python
    >>> from hf_captioners.metrics.inputs import describe
    >>> describe(None)
    'None (NoneType)'

    ```
    """
    text = _SHORT.repr(value)  # plain repr of nested lists that share their parts may take forever
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
