"""Captions of several processes brought together before they are scored.

The corpus scores of BLEU, METEOR and CIDEr are no means over images: scoring each process's share and averaging gives
other numbers. Captions are small, so they are gathered and every process scores them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .inputs import MetricInputError


def gather_rows(image_ids: Sequence[Any] | None, *columns: Sequence[Any]) -> tuple[list[Any], ...]:
    """The rows of all processes, on every process, each image once.

    Samplers that give all processes equally many batches repeat images; what was repeated is dropped.

    Args:
        image_ids (`Sequence`): the names of this process's images.
        columns (`Sequence`): predictions, references, ..., one entry per image.

    Returns:
        `tuple[list, ...]`: the names of all images, then the columns.

    Raises:
        MetricInputError: no `image_ids`, or an image with two different predictions.

    Example:

    ```python
    >>> from hf_captioners.metrics.distributed import gather_rows
    >>> gather_rows([7, 8], ["a dog", "a cat"])  # a single process
    ([7, 8], ['a dog', 'a cat'])

    ```
    """
    if image_ids is None:
        raise MetricInputError("gathering captions of several processes needs image_ids, to find repeated images")
    values_by_image: dict[Any, tuple[Any, ...]] = {}
    for rows in _all_shares(list(zip(image_ids, *columns, strict=True))):
        for name, *values in rows:
            if values_by_image.setdefault(name, tuple(values)) != tuple(values):
                raise MetricInputError(f"image {name}: two processes have different captions for it")
    return [*values_by_image], *([values[i] for values in values_by_image.values()] for i in range(len(columns)))


def _all_shares(rows: list[tuple[Any, ...]]) -> list[list[tuple[Any, ...]]]:
    import torch.distributed

    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [rows]
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, rows)
    return shares
