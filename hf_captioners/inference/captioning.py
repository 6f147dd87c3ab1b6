"""Captions for images of any number: one loop for files, rows of data sets and cached features.

Images are opened and prepared in a few threads ahead of the model, in chunks of one batch; at no time are more than
two batches of decoded images held. An image that cannot be captioned gets a record with the reason, and the others are
not affected.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeAlias, TypedDict

import torch

from ..families import CaptionFamily, family_of
from ..modeling.captioner_image_io import ImageError
from ..modeling.captioner_image_source import describe_source
from ..modeling.processing_captioner import move_images, open_row, prepare_images
from .image_files import is_url
from .opening_threads import MOST_WORKERS, idle_cores, opened_ahead

_Row: TypeAlias = Mapping[str, Any]


class CaptionRecord(TypedDict, total=False):
    """Result for an image: its `image_id` or its file, and `caption`, or `captions`, or `error`.

    Attributes:
        image_id (`int` or `str`): of a row that has one.
        image (`str`): the file or address, as it was given, of a row that has one.
        caption (`str`): the caption.
        captions (`list[str]`): with `num_return_sequences`, best first.
        error (`str`): why there is none.
    """

    image_id: Any
    image: str
    caption: str
    captions: list[str]
    error: str


def caption_rows(
    model: Any,
    processor: Any,
    rows: Iterable[_Row],
    batch_size: int = 8,
    num_workers: int | None = None,
    **options: Any,
) -> Iterator[CaptionRecord]:
    """Caption the images of rows.

    An image that cannot be opened, or that the processor or the model refuses, gets a record with `error`; if that
    happened within a batch, its images are captioned again one by one. Other exceptions end the iteration, as they
    are not an image's fault: being out of memory, a lost device, and whatever the model raises before it has written
    its first caption (such as a wrong dtype, or generation options that it does not have).

    Args:
        model (`PreTrainedModel`): a captioner in evaluation mode, on the device and in the dtype to use.
        processor (`ProcessorMixin`): its processor.
        rows (`Iterable[Mapping]`): with `image` or `image_features` and what else the captioner looks at, see
            [`CaptionerProcessor.prepare_rows`]; such as a [`FeatureDataset`]. They are read as the captions are asked
            for, up to two batches ahead. An `image` of `{"path", "error"}` gets a record with that `error`.
        batch_size (`int`, defaults to 8): images at a time. Captions do not depend on it.
        num_workers (`int`, *optional*): threads that open images; by default 4 for URLs, and for others one for each
            processor core that the model leaves idle, at least one, at most 4. Captions do not depend on it.
        options: of `generate`; those that are `None` are the model's. With `num_return_sequences` a record has several
            captions.

    Returns:
        `Iterator[CaptionRecord]`: one record per row, in their order.

    Raises:
        ValueError: `batch_size` or `num_workers` below 1, or a model in training mode.

    Example:

    ```python
    >>> from hf_captioners.data.captions.karpathy import load_karpathy
    >>> from hf_captioners.data.features.store import FeatureStore
    >>> from hf_captioners.data.rows import attach_features
    >>> from hf_captioners.inference.captioning import caption_rows
    >>> rows = attach_features(load_karpathy("dataset.json"), FeatureStore("features"))  # doctest: +SKIP
    >>> next(caption_rows(model, processor, rows, num_beams=5))  # doctest: +SKIP
    {'image_id': 42, 'caption': 'a cat sitting on a chair'}

    ```
    """
    if batch_size < 1 or (num_workers is not None and num_workers < 1):
        raise ValueError(f"batch_size={batch_size} and num_workers={num_workers} must be 1 or more")
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes captions; call model.eval() first")
    options = {name: value for name, value in options.items() if value is not None}
    return _records(Captioner(model, processor, options), rows, batch_size, num_workers)


class Captioner:
    """A model with its processor and generation options: rows or model inputs to captions.

    Args:
        model (`PreTrainedModel`): a captioner.
        processor (`ProcessorMixin`): its processor.
        options (`Mapping[str, Any]`): of `generate`.
        family ([`CaptionFamily`], *optional*): how the model is called; by default the one that it is of.

    Attributes:
        has_worked (`bool`): whether the model has written a caption yet.
        fault (`Exception`, *optional*): what the model raised before it had.
    """

    def __init__(
        self, model: Any, processor: Any, options: Mapping[str, Any], family: CaptionFamily | None = None
    ) -> None:
        self.model = model
        self.family = family_of(model) if family is None else family
        self.processor = processor
        self.options = options
        self.has_worked = False
        self.fault: Exception | None = None

    def caption_rows(self, rows: Sequence[_Row]) -> list[list[str]]:
        """The captions of each row, whose images are open.

        Raises:
            ImageError: the processor refuses an image.
        """
        move_images(rows, self.model.device)
        try:
            inputs = self.family.prepare_rows(self.processor, rows)
        except ValueError as error:
            raise ImageError(str(error)) from error
        return self.caption_inputs(inputs.to(self.model.device, dtype=self.model.dtype), len(rows))

    @torch.inference_mode()
    def caption_inputs(self, inputs: Mapping[str, Any], number: int) -> list[list[str]]:
        """The captions of each of a number of images that are model inputs."""
        ids = self.family.caption(self.model, inputs, **{"num_return_sequences": 1, **self.options})
        self.has_worked = True
        captions = self.family.decode(self.processor, ids)
        per_image = len(captions) // number
        return [captions[start : start + per_image] for start in range(0, len(captions), per_image)]


def _records(
    captioner: Captioner, rows: Iterable[_Row], batch_size: int, num_workers: int | None
) -> Iterator[CaptionRecord]:
    plural = "num_return_sequences" in captioner.options
    usual = idle_cores(captioner.model.device)

    def workers(batch: Sequence[_Row]) -> int:
        return num_workers or (MOST_WORKERS if any(map(_is_far, batch)) else usual)

    batches = opened_ahead(rows, batch_size, partial(_opened, captioner), workers, num_workers or MOST_WORKERS)
    with closing(batches):
        for slices in batches:
            names = [name_of(row) for part, _ in slices for row in part]
            outcomes = _caption_slices(captioner, slices)
            if captioner.fault is not None and not captioner.has_worked:
                raise captioner.fault
            captioner.fault = None
            yield from (_record(name, outcome, plural) for name, outcome in zip(names, outcomes, strict=True))


def name_of(row: _Row) -> CaptionRecord:
    """Identity of a row: its `image_id`, and its file or address."""
    name: CaptionRecord = {}
    if "image_id" in row:
        name["image_id"] = row["image_id"]
    image = row.get("image")
    path = image.get("path") if isinstance(image, Mapping) else image
    if isinstance(path, (str, os.PathLike)) and "image_features" not in row:
        name["image"] = os.fspath(path)
    return name


def _record(name: CaptionRecord, outcome: list[str] | ImageError, plural: bool) -> CaptionRecord:
    if isinstance(outcome, list):
        return {**name, "captions": outcome} if plural else {**name, "caption": outcome[0]}
    message = " ".join(str(outcome).split())
    shown = describe_source(name["image"]) if "image" in name else f"image {name.get('image_id')!r}"
    return {**name, "error": message if message.startswith(f"{shown}: ") else f"{shown}: {message}"}


def _opened(captioner: Captioner, rows: Sequence[_Row]) -> list[_Row | ImageError]:
    """Rows with their images open and prepared, or why they are not."""
    opened: list[_Row | ImageError] = []
    for row in rows:
        try:
            if isinstance(row.get("image"), Mapping) and row["image"].get("error"):
                raise ImageError(row["image"]["error"])
            opened.append(open_row(captioner.processor, row))
        except ImageError as error:
            opened.append(_without_traceback(error))
    images = [row for row in opened if not isinstance(row, ImageError)]
    prepare_images(captioner.processor, images, captioner.model.device)
    return opened


def _is_far(row: _Row) -> bool:
    """Tell whether the image of a row comes from a server, for which a thread waits."""
    image = row.get("image")
    return isinstance(image, str) and is_url(image)


def _caption_slices(captioner: Captioner, slices: list[Any]) -> list[list[str] | ImageError]:
    """The captions of each row of a batch, or why it has none. Empties the batch, to free the images."""
    opened: list[_Row | ImageError] = [row for _, rows in slices for row in rows.result()]
    slices.clear()
    captions = iter(_caption_opened(captioner, [row for row in opened if not isinstance(row, ImageError)]))
    return [row if isinstance(row, ImageError) else next(captions) for row in opened]


def _caption_opened(captioner: Captioner, rows: list[_Row]) -> list[list[str] | ImageError]:
    """Captions of a batch; if it fails, of its rows one by one, so that only rows at fault have an error."""
    if not rows:
        return []
    try:
        return list(captioner.caption_rows(rows))
    except (torch.OutOfMemoryError, torch.AcceleratorError, NotImplementedError):
        raise  # RuntimeErrors that no image has caused
    except (ValueError, RuntimeError) as error:
        if len(rows) == 1:
            if not isinstance(error, ImageError) and not captioner.has_worked:
                captioner.fault = error
            return [_without_traceback(error)]
    return [outcome for row in rows for outcome in _caption_opened(captioner, [row])]


def _without_traceback(error: Exception) -> ImageError:
    """The message alone: the frames of a traceback hold on to the images."""
    return ImageError(str(error))
