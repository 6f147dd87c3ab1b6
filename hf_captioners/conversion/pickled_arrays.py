"""Checkpoints that are pickled dicts of NumPy arrays, as in detectron2's model zoo, read without NumPy's pickling.

`{"model": {name: array}, "__author__": ...}`: the pickle names NumPy's classes; the stand-ins below take their place,
and arrays are made of the bytes afterwards, once their shapes are known to fit.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .pickle_limits import show
from .safe_load import MAX_SHARED_BYTES, CheckpointError, load_plain_pickle
from .stand_ins import Named
from .state_names import find_state, unwrapped_names

MAX_BYTES = 4 * 2**30
_NUMBERS = {"f2", "f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8"}


class _NumberType:
    """Stand-in for a NumPy dtype."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code, self.order = code if isinstance(code, str) else "", "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _NumberTypes:
    """Stand-in for `numpy.dtype`."""

    __slots__ = ()

    def __call__(self, code: Any, *flags: Any) -> _NumberType:
        return _NumberType(code)


class PickledArray:
    """Stand-in for a NumPy array: its shape, the type of its numbers, whether columns come first, and its bytes."""

    __slots__ = ("columns_first", "content", "kind", "shape")

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.kind, self.columns_first, self.content = state

    @property
    def nbytes(self) -> int:
        """Bytes of its content."""
        return len(self.content) if isinstance(self.content, bytes | bytearray) else 0

    def tensor(self) -> Tensor:
        """The array; ValueError if bytes and shape do not fit."""
        kind, shape, content = self.kind, self.shape, self.content
        if not isinstance(kind, _NumberType) or kind.code not in _NUMBERS or kind.order != "<":
            raise ValueError("its numbers are of another type than little-endian floats and integers")
        if not isinstance(shape, tuple) or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError("its shape is not a tuple of integers")
        dtype = np.dtype(f"<{kind.code}")
        if not isinstance(content, bytes | bytearray) or len(content) != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"it has not as many bytes as its shape {list(shape)} needs")
        flat = np.frombuffer(content, dtype)
        return torch.from_numpy(flat.reshape(shape, order="F" if self.columns_first else "C").copy())


class _Reconstruct:
    """Stand-in for `numpy.core.multiarray._reconstruct`."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> PickledArray:
        return PickledArray()


class _FromBuffer:
    """Stand-in for `numpy.core.numeric._frombuffer`, with which protocol 5 writes arrays."""

    __slots__ = ()

    def __call__(self, content: Any, kind: Any, shape: Any, order: Any) -> PickledArray:
        array = PickledArray()
        array.__setstate__((1, shape, kind, order == "F", content))
        return array


class _Encode:
    """Stand-in for `_codecs.encode`, with which protocol 2 writes bytes."""

    __slots__ = ()

    def __call__(self, text: Any, encoding: Any = "latin1") -> bytes:
        if not isinstance(text, str):
            raise pickle.UnpicklingError("encodes something that is no text")
        return text.encode("latin-1")


ARRAYS: Mapping[str, Any] = MappingProxyType(
    {
        "numpy.core.multiarray._reconstruct": _Reconstruct(),
        "numpy._core.multiarray._reconstruct": _Reconstruct(),
        "numpy.core.numeric._frombuffer": _FromBuffer(),
        "numpy._core.numeric._frombuffer": _FromBuffer(),
        "numpy.ndarray": Named(),
        "numpy.dtype": _NumberTypes(),
        "_codecs.encode": _Encode(),
    }
)
"""Stand-ins with which `load_plain_pickle` reads arrays."""


def load_pickled_arrays(path: str | Path) -> dict[str, Tensor]:
    """Load a pickled dict of arrays without running code from it.

    Args:
        path (`str` or `Path`): the pickle, of any protocol: a dict of arrays, or one that has it under one of
            [`~hf_captioners.conversion.state_names.STATE_KEYS`].

    Returns:
        `dict[str, Tensor]`: name -> tensor, in the file's order, without the prefixes of wrappers.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a pickle, refers to anything else than NumPy arrays, or holds no dict of them.
    """
    content = load_plain_pickle(path, MAX_BYTES, ARRAYS, encoding="latin-1")
    state = find_state(content, lambda value: isinstance(value, PickledArray))[0] if isinstance(content, dict) else {}
    if not state:
        raise CheckpointError(f"{path}: holds no dict of arrays, at the top level or under 'model' or the like")
    tensors = {}
    limit, total = Path(path).stat().st_size + MAX_SHARED_BYTES, 0
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, PickledArray):
            raise CheckpointError(f"{path}: {show(name)} is a {type(value).__name__}, expected only named arrays")
        try:
            total += value.nbytes
            if total > limit:
                raise CheckpointError(
                    f"{path}: its arrays share what is in the file; the limit is {limit} bytes of copies"
                )
            tensors[name] = value.tensor()
        except (ValueError, AttributeError) as error:  # AttributeError: an array without state
            raise CheckpointError(f"{path}: {name}: {error}") from error
    try:
        return {new: tensors[name] for name, new in unwrapped_names(tensors).items()}
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
