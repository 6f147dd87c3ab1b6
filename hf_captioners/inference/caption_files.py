"""Captions for images of files, folders and archives, of any number, one record per image, in order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from .captioning import CaptionRecord, caption_rows
from .image_archives import image_rows
from .image_files import as_iterable

_Path: TypeAlias = str | os.PathLike[str]


def caption_files(
    model: Any,
    processor: Any,
    paths: _Path | Iterable[_Path],
    batch_size: int = 8,
    num_workers: int | None = None,
    **options: Any,
) -> Iterator[CaptionRecord]:
    """Caption image files and images of archives: [`caption_rows`] of rows with an `image` each.

    Args:
        model (`PreTrainedModel`): a captioner in evaluation mode, on the device and in the dtype to use.
        processor (`ProcessorMixin`): its processor.
        paths (`str`, `os.PathLike` or an iterable of these): files, http(s) URLs, and zip and tar archives, of
            which the images are read one after the other; see [`find_images`] for folders.
        batch_size, num_workers, options: see [`caption_rows`].

    Returns:
        `Iterator[CaptionRecord]`: one record per image, in the order of `paths` and of archives:
        `{"image": path, "caption": text}`, `{"image": path, "captions": [text, …]}` or
        `{"image": path, "error": reason}`.

    Raises:
        ValueError: see [`caption_rows`].

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
    return caption_rows(model, processor, image_rows(as_iterable(paths)), batch_size, num_workers, **options)
