"""Rows on their way to a trainer: pictures stay closed until the collator, and workers draw no chance of dropout."""

from __future__ import annotations

from typing import Any

import torch
from accelerate.data_loader import DataLoaderAdapter
from torch.utils.data import DataLoader

from ..data.rows import undecoded


def with_own_chance(loader: DataLoader) -> DataLoader:
    """A loader that seeds its workers from a generator of its own.

    By default torch draws the seed from the generator that dropout uses, when workers are started: in every epoch, but
    persistent ones only once, and once more after resuming.

    Args:
        loader (`DataLoader`): of torch or of accelerate; changed in place.

    Returns:
        `DataLoader`: the same.
    """
    inner = loader.base_dataloader if isinstance(loader, DataLoaderAdapter) else loader
    if inner.generator is None:
        inner.generator = torch.Generator()
    return loader


def closed(dataset: Any) -> Any:
    """The rows with closed pictures, which the collator opens.

    Args:
        dataset (`Dataset`): rows of `datasets`; others are left as they are.

    Returns:
        `Dataset`
    """
    from datasets import Dataset

    return undecoded(dataset) if isinstance(dataset, Dataset) else dataset
