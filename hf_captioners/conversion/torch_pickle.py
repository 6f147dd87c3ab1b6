"""The pickle in a file of `torch.save`: descriptions of its tensors, made by an unpickler that imports nothing.

Functions that rebuild tensors are ours (`_REBUILDERS`); everything else that a pickle names is left unread, by name.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Mapping
from typing import Any

import torch

from .pickle_limits import show
from .stand_ins import Named, SealedType, Unread, unread_class

# How protocol 0 writes the description of a storage
_PERSISTENT = re.compile(
    r"\('storage', <class '(torch(?:\.storage)?)\.(\w+)'>, '(\w+)', '[\w:]*', (\d+)(, None)?\)", re.ASCII
)
_MODULE = re.compile(r"\('module', <class '([\w.]+)\.(\w+)'>, ", re.ASCII)

_DTYPES: Mapping[str, torch.dtype] = {
    name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
_STORAGES: Mapping[str, torch.dtype] = {
    "UntypedStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class StorageType:
    """Stand-in for a class of storages; only its dtype is read."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype


class Storage:
    """The description of a storage in the pickle."""

    __slots__ = ("dtype", "key", "numel")

    def __init__(self, dtype: torch.dtype, key: str, numel: int) -> None:
        self.dtype, self.key, self.numel = dtype, key, numel

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return self.numel * self.dtype.itemsize


class SavedTensor:
    """The description of a tensor in the pickle: a view of a storage, or the reason why it is none.

    Attributes:
        refused (`str`): why it is not an ordinary tensor; empty if it is one.
    """

    __slots__ = ("dtype", "offset", "refused", "shape", "storage", "stride")

    def __init__(
        self, storage: Storage | None, offset: int, shape: Any, stride: Any, dtype: Any = None, refused: str = ""
    ) -> None:
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride
        self.dtype = storage.dtype if dtype is None and storage is not None else dtype
        self.refused = refused

    @property
    def nbytes(self) -> int:
        """Bytes of all its elements."""
        count = self.dtype.itemsize
        for size in self.shape:
            count *= size
        return count

    @property
    def place(self) -> tuple[Any, ...]:
        """A key that is equal for two names of one tensor."""
        return (self.storage and self.storage.key, self.offset, self.shape, self.stride)

    def problem(self) -> str:
        """The problem with its shape and place; empty if there is none."""
        if self.refused:
            return self.refused
        numbers = (self.offset, *self.shape, *self.stride)
        if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
            return f"has the shape {show(self.shape)} and strides {show(self.stride)}, which no tensor has"
        if len(self.shape) != len(self.stride) or len(self.shape) > 64:
            return f"has {len(self.shape)} sizes and {len(self.stride)} strides"
        return self._unstored()

    def _unstored(self) -> str:
        assert self.storage is not None
        # An expanded view claims any shape on top of one number; copying it would allocate what it claims.
        last_element = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        inside = not all(self.shape) or (last_element + 1) * self.dtype.itemsize <= self.storage.nbytes
        if not inside or self.nbytes > self.storage.nbytes:
            return f"claims shape {list(self.shape)} but the file holds less data than that"
        return ""


class _Rebuild:
    """Stand-in for a function of `torch._utils` that makes an ordinary tensor."""

    __slots__ = ()

    def __call__(self, storage: Any, offset: Any, size: Any, stride: Any, *further: Any) -> SavedTensor:
        metadata = further[-1] if further and isinstance(further[-1], dict) else {}
        dtype = next((value for value in further if isinstance(value, torch.dtype)), None)
        if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise pickle.UnpicklingError("rebuilds a tensor from something that is no storage")
        pending = "is a view that is still to be negated or conjugated" if any(metadata.values()) else ""
        return SavedTensor(storage, offset, size, stride, dtype, pending)


class _Odd:
    """Stand-in for a function of `torch._utils` that makes a tensor of another kind."""

    __slots__ = ("kind",)

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, *arguments: Any) -> SavedTensor:
        return SavedTensor(None, 0, (), (), torch.float32, f"is a {self.kind} tensor, expected an ordinary one")


class _Parameter:
    """Stand-in for the functions that make a parameter of a tensor."""

    __slots__ = ()

    def __call__(self, data: Any, *further: Any) -> Any:
        return data


class _FromType:
    """Stand-in for `torch._tensor._rebuild_from_type_v2`, of a tensor with attributes or of a subclass."""

    __slots__ = ()

    def __call__(self, function: Any, new_type: Any, arguments: Any, state: Any) -> Any:
        if isinstance(function, _Rebuild | _Odd | _Parameter):
            return function(*arguments)
        return function(*arguments) if isinstance(function, type) and issubclass(function, Unread) else Unread()


class _Size:
    """Stand-in for `torch.Size`."""

    __slots__ = ()

    def __call__(self, sizes: Any = ()) -> tuple[Any, ...]:
        return tuple(sizes)


class SavedDict(dict[Any, Any], metaclass=SealedType):
    """Stand-in for the dictionaries of `collections`; attributes, as `_metadata` of a state dict, are left out."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        pass


class _DefaultDict:
    """Stand-in for `collections.defaultdict`."""

    __slots__ = ()

    def __call__(self, *factory: Any) -> SavedDict:
        return SavedDict()


_KINDS = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_qtensor": "quantized",
    "_rebuild_meta_tensor_no_storage": "meta",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_wrapper_subclass": "wrapped",
    "_rebuild_device_tensor_from_numpy": "device",
    "_rebuild_device_tensor_from_cpu_tensor": "device",
}
_REBUILDERS: Mapping[str, Any] = {
    **{f"torch._utils._rebuild_tensor{version}": _Rebuild() for version in ("", "_v2", "_v3")},
    **{f"torch._utils._rebuild_parameter{suffix}": _Parameter() for suffix in ("", "_with_state")},
    **{f"torch._utils.{name}": _Odd(kind) for name, kind in _KINDS.items()},
    "torch._tensor._rebuild_from_type_v2": _FromType(),
    "torch.Size": _Size(),
    "torch.Tensor": Named(),
    "torch.nn.parameter.Parameter": Named(),
    "collections.OrderedDict": SavedDict,
    "collections.Counter": SavedDict,
    "collections.defaultdict": _DefaultDict(),
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
    **{f"torch.{name}": StorageType(dtype) for name, dtype in _STORAGES.items()},
    "torch.storage.UntypedStorage": StorageType(torch.uint8),
}
_UNNAMED = ("builtins.", "__builtin__.", "_codecs.", "copyreg.", "copy_reg.", "torch.device", "torch.serialization.")


class TorchUnpickler(pickle.Unpickler):
    """Make plain values, descriptions of tensors, and `Unread` of everything else."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin-1")
        self.classes: dict[str, type[Unread]] = {}
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in _REBUILDERS:
            return _REBUILDERS[full]
        if full not in self.classes:
            self.classes[full] = unread_class(module, name)
        return self.classes[full]

    def persistent_load(self, pid: Any) -> Storage | type[Unread]:
        if isinstance(pid, str) and (match := _MODULE.match(pid)):
            pid = ("module", self.find_class(match[1], match[2]))
        if isinstance(pid, tuple) and pid[:1] == ("module",) and isinstance(pid[1], type):
            return Unread if not issubclass(pid[1], Unread) else pid[1]  # a class, beside its source code
        if isinstance(pid, str) and (match := _PERSISTENT.fullmatch(pid)):
            pid = ("storage", self.find_class(match[1], match[2]), match[3], "cpu", int(match[4]))
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError(f"refers to {show(pid)}, which is no storage")
        _, kind, key, _, numel, *view = pid
        if not isinstance(kind, StorageType) or type(numel) is not int or numel < 0 or view not in ([], [None]):
            raise pickle.UnpicklingError(f"refers to a storage of a kind that is not read: {show(pid)}")
        storage = self.storages.setdefault(str(key), Storage(kind.dtype, str(key), numel))
        if (storage.dtype, storage.numel) != (kind.dtype, numel):
            raise pickle.UnpicklingError(f"describes the storage {show(key)} in two ways")
        return storage

    def unread(self) -> list[str]:
        """The classes of objects that were left unread, those of Python itself left out."""
        return sorted(name for name in self.classes if not name.startswith(_UNNAMED))
