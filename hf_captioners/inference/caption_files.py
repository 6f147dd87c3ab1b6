"""Captions for the picture files of folders, of any number, one record per file, in order.

Pictures are opened in a few threads ahead of the model, in chunks of one batch; at no time are more than two batches of
decoded pictures held. A file that cannot be captioned gets a record with the reason, and the others are not affected.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypedDict

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from ..modeling.captioner_image_io import ImageError
from ..modeling.captioner_image_source import describe_source
from ..modeling.image_processing_captioner import open_resized
from .image_files import as_iterable

_Path: TypeAlias = str | os.PathLike[str]


class _ImageRecord(TypedDict):
    image: str


class CaptionRecord(_ImageRecord, total=False):
    """What became of one picture: `image`, its path as it was given, and `caption`, or `captions`, or `error`."""

    caption: str
    captions: list[str]
    error: str


def caption_files(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    paths: _Path | Iterable[_Path],
    batch_size: int = 8,
    num_beams: int | None = None,
    max_new_tokens: int | None = None,
    num_workers: int = 4,
    num_return_sequences: int | None = None,
) -> Iterator[CaptionRecord]:
    """
    Captions picture files.

    A picture that cannot be opened, or that the processor or the model refuses, gets a record with `error`; if that
    happened within a batch, its pictures are captioned again one by one. Other exceptions end the iteration, as they
    are not a picture's fault: being out of memory, a lost device, and whatever the model raises before it has written
    its first caption (such as a wrong dtype, or generation options that it does not have).

    Args:
        model (`PreTrainedModel`):
            A captioner in evaluation mode, on the device and in the dtype to use.
        processor (`ProcessorMixin`):
            Its processor.
        paths (`str`, `os.PathLike` or an iterable of these):
            Files or http(s) URLs; see [`find_images`] for folders. An iterable is read as the captions are asked for,
            up to two batches ahead.
        batch_size (`int`, *optional*, defaults to 8):
            Pictures per batch. Captions do not depend on it.
        num_beams (`int`, *optional*):
            Width of the beam search; by default that of the model's generation config.
        max_new_tokens (`int`, *optional*):
            Longest caption, in tokens; by default that of the model's generation config.
        num_workers (`int`, *optional*, defaults to 4):
            Threads that open pictures.
        num_return_sequences (`int`, *optional*):
            Captions per picture, best first, as `captions` instead of `caption`.

    Returns:
        `Iterator[CaptionRecord]`: one record per path, in the order of `paths`: `{"image": path, "caption": text}`,
        `{"image": path, "captions": [text, …]}` or `{"image": path, "error": reason}`.

    Raises:
        `ValueError`: `batch_size` or `num_workers` below 1, or a model in training mode.

    Example:

    ```python
    >>> import hf_captioners
    >>> from transformers import AutoModelForImageTextToText, AutoProcessor
    >>> from hf_captioners.inference.caption_files import caption_files
    >>> from hf_captioners.inference.image_files import find_images

    >>> model = AutoModelForImageTextToText.from_pretrained("captioner")  # doctest: +SKIP
    >>> processor = AutoProcessor.from_pretrained("captioner")  # doctest: +SKIP
    >>> for record in caption_files(model, processor, find_images("photos")):  # doctest: +SKIP
    ...     print(record)
    {'image': 'photos/cat.jpg', 'caption': 'a cat sitting on a chair'}
    {'image': 'photos/cut.jpg', 'error': 'photos/cut.jpg: broken or truncated picture (...)'}

    ```
    """
    if batch_size < 1 or num_workers < 1:
        raise ValueError(f"batch_size={batch_size} and num_workers={num_workers} must be 1 or more")
    if model.training:
        raise ValueError("the model is in training mode, where dropout changes captions; call model.eval() first")
    given = {
        "num_beams": num_beams,
        "max_new_tokens": max_new_tokens,
        "num_return_sequences": num_return_sequences,
    }
    options = {name: value for name, value in given.items() if value is not None}
    return _records(_Captioner(model, processor, options), as_iterable(paths), batch_size, num_workers)


class _Captioner:
    """
    A model with its processor and generation options: decoded pictures in, captions out.

    Attributes:
        has_worked (`bool`): whether it has written a caption yet.
        fault (`Exception`, *optional*): what the model raised before it had.
    """

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, options: dict[str, int]) -> None:
        self.model: Any = model  # PreTrainedModel is not typed as having `generate`
        self.processor = processor
        self.options = options
        self.has_worked = False
        self.fault: Exception | None = None

    def __call__(self, images: list[Image.Image]) -> list[list[str]]:
        """The captions of each picture. Raises `ImageError` if the processor refuses a picture."""
        try:
            inputs = self.processor(images=images, return_tensors="pt")
        except ValueError as error:
            raise ImageError(str(error)) from error
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, **{"num_return_sequences": 1, **self.options})
        self.has_worked = True
        captions = self.processor.batch_decode(ids, skip_special_tokens=True)  # which ours do anyway
        each = len(captions) // len(images)
        return [captions[start : start + each] for start in range(0, len(captions), each)]


def _records(
    captioner: _Captioner, paths: Iterable[_Path], batch_size: int, num_workers: int
) -> Iterator[CaptionRecord]:
    pool = ThreadPoolExecutor(num_workers, thread_name_prefix="open_image")
    try:
        opener = functools.partial(open_resized, image_processor=captioner.processor.image_processor)
        for chunk in _open_ahead(pool, opener, paths, batch_size):
            names = [name for name, _ in chunk]
            outcomes = _caption_chunk(captioner, chunk)
            if captioner.fault is not None and not captioner.has_worked:
                raise captioner.fault
            captioner.fault = None
            several = "num_return_sequences" in captioner.options
            yield from (_record(name, outcome, several) for name, outcome in zip(names, outcomes, strict=True))
    finally:
        pool.shutdown(cancel_futures=True)


def _record(name: str, outcome: list[str] | ImageError, several: bool) -> CaptionRecord:
    if isinstance(outcome, list):
        return {"image": name, "captions": outcome} if several else {"image": name, "caption": outcome[0]}
    message = " ".join(str(outcome).split())
    shown = describe_source(name)
    return {"image": name, "error": message if message.startswith(f"{shown}: ") else f"{shown}: {message}"}


def _open_ahead(
    pool: ThreadPoolExecutor, opener: Callable[[_Path], Image.Image], paths: Iterable[_Path], batch_size: int
) -> Iterator[list[tuple[str, "Future[Image.Image]"]]]:
    """Yields chunks of paths with their pictures, while those of the next chunk are being opened."""
    remaining = iter(paths)
    ahead: list[tuple[str, Future[Image.Image]]] = []
    while chunk := list(itertools.islice(remaining, batch_size)):
        current, ahead = ahead, [(os.fspath(path), pool.submit(opener, path)) for path in chunk]
        if current:
            yield current
    if ahead:
        yield ahead


def _caption_chunk(
    captioner: _Captioner, chunk: list[tuple[str, "Future[Image.Image]"]]
) -> list[list[str] | ImageError]:
    """The captions of each picture of a chunk, or why it has none. Empties the chunk, to free the pictures."""
    opened: list[Image.Image | ImageError] = []
    for _, future in chunk:
        try:
            opened.append(future.result())
        except ImageError as error:
            opened.append(_without_traceback(error))
    chunk.clear()
    captions = iter(_caption_images(captioner, [image for image in opened if isinstance(image, Image.Image)]))
    return [next(captions) if isinstance(image, Image.Image) else image for image in opened]


def _caption_images(captioner: _Captioner, images: list[Image.Image]) -> list[list[str] | ImageError]:
    """Captions a batch; if it fails, its pictures one by one, so that only the guilty ones have an error."""
    if not images:
        return []
    try:
        return list(captioner(images))
    except (torch.OutOfMemoryError, torch.AcceleratorError, NotImplementedError):
        raise  # RuntimeErrors that no picture is guilty of
    except (ValueError, RuntimeError) as error:
        if len(images) == 1:
            if not isinstance(error, ImageError) and not captioner.has_worked:
                captioner.fault = error
            return [_without_traceback(error)]
    return [outcome for image in images for outcome in _caption_images(captioner, [image])]


def _without_traceback(error: Exception) -> ImageError:
    """The message alone: the frames of a traceback hold on to the pictures."""
    return ImageError(str(error))
