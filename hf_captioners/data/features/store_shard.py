"""A shard of a feature store: one safetensors file, of which features are copied out of a memory map.

safetensors checks the file when it is opened, and afterwards gives what lies beside features. Features themselves are
read from a map of our own: its `get_tensor` makes a copy, and what is handed out must be one that nobody else has, so
that each read would be two (benchmarks/bench_feature_store.py).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from .store_index import FeatureError

_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_LENGTH = 8  # bytes in front of a safetensors file that say how long its header is


def tensor_name(position: int, extra: str = "") -> str:
    """The name of an image's features in their shard, or of what belongs to them."""
    return f"{position}.{extra}" if extra else str(position)


class Shard:
    """An open shard.

    Args:
        path (`Path`): the file.

    Attributes:
        ids (`str`, *optional*): the ids of its images, as JSON; shards of version 1 have none.

    Raises:
        SafetensorError, OSError: it is damaged, or not there.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = safe_open(path, framework="pt")  # compares all places in it with its size
        self.ids: str | None = (self._file.metadata() or {}).get("ids")
        self._bytes = np.memmap(path, np.uint8, mode="r")
        self._begin = _LENGTH + int.from_bytes(self._bytes[:_LENGTH].tobytes(), "little")
        self._places: dict[str, Any] = json.loads(self._bytes[_LENGTH : self._begin].tobytes())

    def features(self, position: int, image_id: int | str) -> Tensor:
        """The features of the image at a position, a copy; the errors name the image.

        Raises:
            FeatureError: there are none, or of another kind than a store has.
        """
        place = self._places.get(tensor_name(position))
        if place is None or place["dtype"] not in _DTYPES:
            raise FeatureError(f"{self._path}: damaged, it has no features of image {image_id!r}")
        dtype, shape = _DTYPES[place["dtype"]], place["shape"]
        if not math.prod(shape):
            return torch.zeros(shape, dtype=dtype)
        start, end = place["data_offsets"]
        content = np.array(self._bytes[self._begin + start : self._begin + end])
        return torch.from_numpy(content).view(dtype).view(shape)

    def extra(self, position: int, image_id: int | str, name: str) -> Tensor:
        """A copy of what lies beside the features of the image at a position; the errors name the image.

        Raises:
            FeatureError: there is nothing of this name.
            SafetensorError: it is damaged.
        """
        if tensor_name(position, name) not in self._places:
            raise FeatureError(f"{self._path}: has no {name!r} beside the features of image {image_id!r}")
        tensor: Tensor = self._file.get_tensor(tensor_name(position, name))
        return tensor.clone()
