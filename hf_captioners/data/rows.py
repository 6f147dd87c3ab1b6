"""Rows of captioned images: their captions, their images left closed, and features attached to them."""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Sequence, Sized
from typing import TYPE_CHECKING, Any, cast

import torch

from ..modeling.processing_captioner import CheckedRow
from .bad_rows import BadRows
from .captions.records import has_word
from .features.store import FeatureStore
from .row_stream import RowStream

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

MAX_CAPTION = 5_000
"""Most characters of a caption; what is longer is no caption."""

_NAMED_IN_ERRORS = 5


class FeatureDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of a `datasets.Dataset` with their `image_features`, read from a store at the moment of access.

    Made by [`attach_features`]; for `transformers.Trainer`, a `DataLoader` or a loop. Tens of gigabytes of features
    stay where they are instead of being copied into Arrow.

    Args:
        dataset (`datasets.Dataset`): The rows.
        store ([`FeatureStore`]): Features of every row's `image_id`.
    """

    def __init__(self, dataset: datasets.Dataset, store: FeatureStore) -> None:
        self.dataset = dataset
        self.store = store

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._with_features(self.dataset[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The rows of a batch, fetched at once: `DataLoader` prefers this to single rows."""
        columns = self.dataset[list(indices)]
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [self._with_features(row) for row in rows]

    def _with_features(self, row: dict[str, Any]) -> dict[str, Any]:
        row = {**row, "image_features": self.store[row["image_id"]]}
        return CheckedRow(row) if self.store.is_checked else row


def undecoded(dataset: datasets.Dataset) -> datasets.Dataset:
    """Leave the pictures of a dataset closed: they are opened later, within limits of bytes and pixels.

    Args:
        dataset (`datasets.Dataset`): Rows, with columns of pictures or without.

    Returns:
        `datasets.Dataset`: the same rows, a picture being `{"path": ..., "bytes": ...}`.
    """
    from datasets import Image

    for name, feature in dataset.features.items():
        if isinstance(feature, Image) and feature.decode:
            dataset = dataset.cast_column(name, Image(decode=False))
    return dataset


def attach_features(
    dataset: datasets.Dataset,
    store: FeatureStore,
    *,
    bad_rows: BadRows | None = None,
    keep_images: bool = False,
) -> FeatureDataset:
    """Give the rows of a dataset `image_features` in place of `image`.

    Args:
        dataset (`datasets.Dataset`): Rows with `image_id`. An `image` column is left out, unless `keep_images`.
        store ([`FeatureStore`]): The features.
        keep_images (`bool`, defaults to `False`):
            Keep the `image` column, undecoded, for rewards that look at pictures; the captioner looks at features.
        bad_rows ([`BadRows`], *optional*): gets images without features; by default they are one error.

    Returns:
        [`FeatureDataset`]: rows with `image_features`, a tensor of shape `[num_tokens, feature_size]` in the store's
        dtype.

    Raises:
        TypeError: The dataset is a streaming one; its rows cannot be looked up.
        ValueError: Images have no features.
    """
    if not isinstance(cast(object, dataset), Sized):
        raise TypeError(f"features cannot be attached to a {type(dataset).__name__}: load it without streaming")
    if "image" in dataset.column_names:
        dataset = undecoded(dataset) if keep_images else dataset.remove_columns("image")
    ids = list(dataset["image_id"])
    absent = [image_id for image_id in ids if image_id not in store]
    if absent:
        problem = (
            f"{store.folder}: {len(absent)} of {len(ids)} images have no features: {_some(list(map(repr, absent)))}"
        )
        if bad_rows is None or not bad_rows.skips or len(absent) == len(ids):
            raise ValueError(f"{problem}; compute them, or leave out a few (on_bad_row skip)")
        for image_id in absent:
            bad_rows.add(ValueError(f"{store.folder}: image {image_id!r} has no features"))
        dataset = dataset.select([index for index, image_id in enumerate(ids) if image_id in store])
    return FeatureDataset(dataset, store)


def check_captions(rows: Any, source: str, bad_rows: BadRows | None = None) -> Any:
    """Refuse, before they are learned from, captions that say nothing or are none.

    Args:
        rows (`Dataset` or `list[dict]`): with `captions` and `image_id`.
        source (`str`): where they are from, for the message.
        bad_rows ([`BadRows`], *optional*): gets rows with such captions; by default they are one error.

    Returns:
        `Dataset` or `list[dict]`: the rows, without these.

    Raises:
        ValueError: rows without a caption, or captions that are no text, without a word, of more than `MAX_CAPTION`
            characters, or with a NUL character; some are named. Line breaks, which COCO's captions have, are logged.

    Example:

    ```python
    >>> from hf_captioners.data.rows import check_captions
    >>> check_captions([{"image_id": 7, "captions": ["a dog", " . "]}], "dogs.json")
    Traceback (most recent call last):
        ...
    ValueError: dogs.json: 1 of 1 pictures have captions without a word: image 7: ' . '; mend them or leave them out

    ```
    """
    table = rows.dataset if isinstance(rows, FeatureDataset) else rows
    captions_of_rows = [row["captions"] for row in table] if isinstance(table, list) else table["captions"][:]
    ids = [row["image_id"] for row in table] if isinstance(table, list) else table["image_id"][:]
    faults: dict[str, list[str]] = {}
    good: list[int] = []
    broken = 0
    for row, (image_id, captions) in enumerate(zip(ids, captions_of_rows, strict=True)):
        found = ((caption_fault(caption), caption) for caption in captions or [None])
        fault, caption = next((pair for pair in found if pair[0] is not None), (None, None))
        if fault is None:
            good.append(row)
            broken += any("\n" in text.strip() for text in captions)
        else:
            shown = reprlib.repr(caption if captions else captions)
            faults.setdefault(fault, []).append(f"image {image_id!r}: {shown}")
    if faults and not (bad_rows is not None and bad_rows.skips and good):
        said = (
            f"{len(named)} of {len(ids)} pictures have captions {fault}: {_some(named)}"
            for fault, named in faults.items()
        )
        raise ValueError(f"{source}: {'; '.join(said)}; mend them or leave them out")
    for problem, named in faults.items():
        for image in named:
            cast(BadRows, bad_rows).add(ValueError(f"{source}: a caption {problem}: {image}"))
    if broken:
        logger.warning(
            "%s: %d of %d pictures have captions with line breaks in them, read as spaces", source, broken, len(ids)
        )
    if not faults:
        return rows
    return [table[row] for row in good] if isinstance(table, list) else table.select(good)


def caption_fault(caption: Any) -> str | None:
    """The reason why a caption cannot be learned from; `None` if it can.

    Args:
        caption: a caption, or what stands in its place.

    Returns:
        `str` or `None`: to follow the word "caption".

    Example:

    ```python
    >>> from hf_captioners.data.rows import caption_fault
    >>> [caption_fault(caption) for caption in ("a dog", " . ", None, "a dog" * 5000)]
    [None, 'without a word', 'without a word', 'of more than 5000 characters']

    ```
    """
    if not isinstance(caption, str) or not has_word(caption):
        return "without a word"
    if len(caption) > MAX_CAPTION:
        return f"of more than {MAX_CAPTION} characters"
    return "with a NUL character" if "\0" in caption else None


def _some(named: Sequence[str]) -> str:
    more = f" and {len(named) - _NAMED_IN_ERRORS} more" if len(named) > _NAMED_IN_ERRORS else ""
    return f"{', '.join(named[:_NAMED_IN_ERRORS])}{more}"


def captions_by_image(rows: Any) -> list[list[str]]:
    """The captions of each row, without opening a picture.

    Args:
        rows (`Dataset`, `RowStream` or `list[dict]`): as [`load_rows`] returns them, or alike; of a stream one pass is
            read.

    Returns:
        `list[list[str]]`
    """
    dataset = rows.dataset if isinstance(rows, FeatureDataset) else rows
    if isinstance(dataset, RowStream):
        return [list(row["captions"]) for row in dataset.passage()]
    if isinstance(dataset, list):
        return [list(row["captions"]) for row in dataset]
    return [list(captions) for captions in dataset["captions"]]


def training_captions(rows: Any) -> list[str]:
    """All captions of the rows, for a vocabulary.

    Args:
        rows (`Dataset` or `list[dict]`): as [`load_rows`] returns them.

    Returns:
        `list[str]`
    """
    return [caption for captions in captions_by_image(rows) for caption in captions]
