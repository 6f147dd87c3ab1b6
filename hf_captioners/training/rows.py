"""Rows that a trainer reads: their names and captions, what chance of them depends on, and those that teach nothing."""

from __future__ import annotations

import logging
import os
import random
import reprlib
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from ..data.printable import printable
from ..data.rows import FeatureDataset, training_captions
from ..modeling.captioner_base import CaptionerPreTrainedModel
from ..modeling.captioner_vocabulary import has_words, unknown_words
from ..modeling.captioner_words import split_unicode_words
from ..modeling.tokenization_words import MANY_UNKNOWN
from .streaming import batch_place

logger = logging.getLogger(__name__)

ENOUGH_CAPTIONS = 100_000  # to know the share of unknown words
ROWS = "rows"  # of a training batch: the names of its rows, for messages


def row_name(row: Mapping[str, Any]) -> str:
    """Name a row for a person: by its `image_id`, and by its file if that is known.

    Args:
        row (`Mapping`): with `image_id` and `image`, or without.

    Returns:
        `str`

    Example:

    ```python
    >>> from hf_captioners.training.rows import row_name
    >>> row_name({"image_id": 7, "image": "pictures/cat.jpg"})
    'image_id 7 (pictures/cat.jpg)'

    ```
    """
    image_id, file = row.get("image_id"), file_name(row.get("image"))
    if file is None or file == image_id:
        return printable(f"image_id {image_id!r}")
    return printable(file if image_id is None else f"image_id {image_id!r} ({file})")


def file_name(image: Any) -> str | None:
    """The file or address that a picture of a row comes from, if it says so.

    Args:
        image: a path, an address, `{"path": ..., "bytes": ...}`, or an open picture.

    Returns:
        `str` or `None`
    """
    source = image.get("path") if isinstance(image, Mapping) else image
    return os.fspath(source) if isinstance(source, (str, os.PathLike)) else None


def captions_of(row: Mapping[str, Any]) -> list[str]:
    """The captions of a row.

    Args:
        row (`Mapping`): with `captions`.

    Returns:
        `list[str]`

    Raises:
        ValueError: they are no list of texts, one is empty, or one cannot be written in UTF-8.
    """
    captions = row.get("captions")
    if not captions or isinstance(captions, (str, bytes, Mapping)) or not isinstance(captions, Iterable):
        raise ValueError(
            f"{row_name(row)}: 'captions' must be a list of captions, not {printable(reprlib.repr(captions))}."
        )
    for caption in captions:
        if not isinstance(caption, str) or not caption.strip():
            raise ValueError(
                f"{row_name(row)}: a caption must be a text with words, not {printable(reprlib.repr(caption))}."
            )
        try:
            caption.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"{row_name(row)}: the caption {printable(reprlib.repr(caption))} has half of a character "
                f"(a surrogate) at {error.start}, which is no text."
            ) from error
    return list(captions)


def check_captions(dataset: Any) -> None:
    """Check the captions of all rows of a data set that have some, without opening a picture; rewards may need none.

    Args:
        dataset (`Dataset`, `FeatureDataset` or `list`): other data sets are checked when their rows are read.

    Raises:
        ValueError: see [`captions_of`].
    """
    from datasets import Dataset

    rows = dataset.dataset if isinstance(dataset, FeatureDataset) else dataset
    if isinstance(rows, Dataset):
        rows = rows.select_columns([name for name in ("image_id", "captions") if name in rows.column_names])
    elif not isinstance(rows, (list, tuple)):
        return
    for row in rows:
        if "captions" in row:
            captions_of(row)


def column_names(dataset: Any) -> list[str] | None:
    """Names of the columns of a data set.

    Args:
        dataset (`Dataset`, `FeatureDataset` or `list`): rows.

    Returns:
        `list[str]` or `None`: of a list those of its first row; `None` of other data sets.
    """
    from datasets import Dataset

    if isinstance(dataset, FeatureDataset):
        return [*dataset.dataset.column_names, "image_features"]
    if isinstance(dataset, Dataset):
        return list(dataset.column_names)
    return list(dataset[0]) if isinstance(dataset, list) and dataset else None


def check_feature_size(model: Any, dataset: Any) -> None:
    """Check that the features of a data set are as wide as those that a captioner reads.

    Args:
        model (`PreTrainedModel`): the captioner, without adapters.
        dataset (`Dataset`, `FeatureDataset` or `list`): rows; the first one's features are looked at.

    Raises:
        ValueError: they are of another width.
    """
    if isinstance(dataset, FeatureDataset):
        source, width = f"the features of {dataset.store.folder}", dataset.store.feature_size
    else:
        source, width = "image_features of the first row", _first_feature_size(dataset)
    if width is None or not isinstance(model, CaptionerPreTrainedModel) or width == model.config.feature_size:
        return
    name, own = printable(model.config.name_or_path) or "the new captioner", model.config.feature_size
    raise ValueError(
        f"{printable(source)} are {width} wide, but {name}, a {type(model).__name__}, reads {own} (feature_size): "
        "compute them with the model's own backbone, or take another captioner."
    )


def _first_feature_size(dataset: Any) -> int | None:
    """Width of the features of the first row, if it has some; no picture is opened."""
    from datasets import Dataset

    if isinstance(dataset, Dataset):
        dataset = dataset.select_columns([name for name in dataset.column_names if name == "image_features"])
    elif not isinstance(dataset, list):
        return None
    features = dataset[0].get("image_features") if len(dataset) else None
    return None if features is None else torch.as_tensor(features).shape[-1]


def check_vocabulary(tokenizer: Any, dataset: Any, most: float, extended: int | None = None) -> None:
    """Say how many words of training captions are unknown to a captioner, and refuse too many.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the captioner's. One of pieces of words knows all words.
        dataset (`Dataset`, `FeatureDataset` or `list`): the rows. Of many captions some, in equal steps, are read.
        most (`float`): share of unknown words, from 0 to 1, that is accepted.
        extended (`int`, *optional*): how often words must be seen that the captioner has been given, if it has been.

    Raises:
        ValueError: there are more.
    """
    from datasets import Dataset

    if not isinstance(dataset, (Dataset, FeatureDataset, list)) or not has_words(tokenizer):
        return
    captions = training_captions(dataset)
    unknown = unknown_words(tokenizer, captions[:: 1 + len(captions) // ENOUGH_CAPTIONS])
    if not unknown.words:
        return
    named = ", ".join(repr(word) for word, _ in unknown.words.most_common(5))
    said = f"{unknown.share:.1%} of the words of the training captions are unknown to the captioner, such as {named}"
    if unknown.share > most:
        raise ValueError(
            f"{said}; at most {most:.0%} may be (max_unknown_words). {_advice(unknown.words, extended)}, or raise "
            "--max_unknown_words."
        )
    logger.log(logging.WARNING if unknown.share > MANY_UNKNOWN else logging.INFO, "%s", printable(said))


def _advice(words: Counter[str], extended: int | None) -> str:
    """Advice for a captioner that does not know so many words."""
    whole = sum(len(pieces) > 2 for pieces in split_unicode_words(words))
    if 2 * whole > len(words):  # of a script without spaces
        return (
            "These are whole sentences, which the captioner's rule of words cuts at spaces: begin with a new captioner "
            '(--backbone in the place of --model) and --new_captioner \'{"word_rule": "unicode"}\''
        )
    if extended is not None:
        return f"It was given the words that are seen {extended} times or more: lower --extend_min_count"
    return (
        "Give it the words with --extend_vocabulary (in Python extend_vocabulary), build its vocabulary with a lower "
        "min_count"
    )


def chance(name: str) -> random.Random:
    """Random numbers that depend on a name alone, which may have anything in it.

    Args:
        name (`str`): such as seed, epoch and picture.

    Returns:
        `random.Random`
    """
    return random.Random(name.encode("utf-8", "surrogatepass"))


class NamedRows:
    """A collator that also says which rows a batch is made of.

    Args:
        collator (`Callable`): rows to a batch, a dictionary.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, rows: list[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.collator(rows), ROWS: [row_name(row) for row in rows], **batch_place(rows)}
