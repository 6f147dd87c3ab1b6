"""The files of `torch.save`, in the zip format and in the one before it, of every pickle protocol.

torch's own safe loader reads protocol 2 alone, and stops at the first object that is no tensor. Here an unpickler that
imports nothing makes descriptions of tensors, and only the requested ones become tensors, after their sizes have
been compared with the data in the file:

1. The pickle is bounded, scanned before it is read (`pickle_limits`), and may not be compressed.
2. Functions that rebuild tensors are ours (`_REBUILDERS`); everything else that it names is left unread, by name.
3. A storage has as many bytes in the file as its tensors need, and all storages together no more than the file.
4. Tensors are views of the memory-mapped file: nothing is read before it is used.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import sys
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

import torch
from torch import Tensor

from .pickle_limits import scan_pickle, show
from .stand_ins import Named, SealedType, Unread, unread_class

MAX_PICKLE_BYTES = 64 * 1024 * 1024  # names, shapes and options; the weights are elsewhere
MAX_MEMBERS = 1_000_000
MAGIC_NUMBER, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_ALIGNED = 16  # bytes; elsewhere a tensor is copied
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and its extra field
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


class _Unpickler(pickle.Unpickler):
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


@dataclass
class TorchFile:
    """A file of `torch.save`, of which the pickle was read.

    Attributes:
        path (`Path`): the file.
        content (`Any`): plain values, [`SavedTensor`] for tensors, [`Unread`] for objects.
        unread (`list[str]`): the classes of objects that were left unread.
        places (`dict[str, tuple[int, int]]`): key of a storage -> where it begins in the file, and its bytes.
    """

    path: Path
    content: Any
    unread: list[str]
    places: dict[str, tuple[int, int]]
    _mapped: Any = field(default=None, repr=False)

    def tensor(self, saved: SavedTensor) -> Tensor:
        """Make a tensor, a view of the file.

        Args:
            saved ([`SavedTensor`]): from `content`; its [`~SavedTensor.problem`] is empty.

        Returns:
            `Tensor`: on the CPU.

        Raises:
            pickle.UnpicklingError: the file has no such storage, or one of another size.
        """
        storage = saved.storage
        assert storage is not None
        place = self.places.get(storage.key)
        if place is None or place[1] != storage.nbytes:
            raise pickle.UnpicklingError(
                f"storage {storage.key!r} should have {storage.nbytes} bytes, but there are {place[1] if place else 0}"
            )
        begin, count = place
        if not count:
            return torch.empty(saved.shape, dtype=saved.dtype)
        if self._mapped is None:
            size = self.path.stat().st_size
            self._mapped = torch.UntypedStorage.from_file(str(self.path), shared=False, nbytes=size)
        part = self._mapped[begin : begin + count]
        part = part.clone() if begin % _ALIGNED else part
        return torch.empty(0, dtype=saved.dtype).set_(part, saved.offset, saved.shape, saved.stride)


def open_torch_file(path: Path, max_pickle_bytes: int = MAX_PICKLE_BYTES) -> TorchFile:
    """Read the pickle of a file of `torch.save`, and the places of its storages.

    Args:
        path (`Path`): a regular file.
        max_pickle_bytes (`int`, *optional*, defaults to 64 MiB): larger pickles are refused unread.

    Returns:
        [`TorchFile`]

    Raises:
        pickle.UnpicklingError: it is of another kind, damaged, compressed, too large, or needs an object with which
            a file runs commands.
        Exception: whatever else damaged pickles and archives raise.
    """
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _open_zip(path, file, max_pickle_bytes)
        file.seek(0)
        return _open_legacy(path, file, max_pickle_bytes)


def _open_zip(path: Path, file: IO[bytes], max_bytes: int) -> TorchFile:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MAX_MEMBERS:
            raise pickle.UnpicklingError(f"is an archive of {len(members)} members; the limit is {MAX_MEMBERS}")
        pickles = [member for member in members if PurePosixPath(member.filename).name == "data.pkl"]
        if len(pickles) != 1:
            raise pickle.UnpicklingError(f"is a zip archive with {len(pickles)} data.pkl; torch.save writes one")
        root = pickles[0].filename.removesuffix("data.pkl")
        by_name = {member.filename: member for member in members}
        if f"{root}constants.pkl" in by_name:
            raise pickle.UnpicklingError("is a TorchScript archive with code; save the state dict alone")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise pickle.UnpicklingError(
                    f"its member {show(member.filename)} is compressed or encrypted; torch.save writes neither"
                )
        if pickles[0].file_size > max_bytes:
            raise pickle.UnpicklingError(f"its pickle has {pickles[0].file_size} bytes; the limit is {max_bytes}")
        order = by_name.get(f"{root}byteorder")
        if order is not None and order.file_size < 16 and archive.read(order) != sys.byteorder.encode():
            raise pickle.UnpicklingError("was saved on a machine with another order of bytes")
        content = archive.read(pickles[0])
        data = [member for member in members if member.filename.startswith(f"{root}data/")]
        places = {member.filename.removeprefix(f"{root}data/"): _place(file, member) for member in data}
        _check_places(places.values(), path)
    scan_pickle(io.BytesIO(content), len(content), persistent_ids=True)
    unpickler = _Unpickler(content)
    return TorchFile(path, unpickler.load(), _named(unpickler), places)


def _place(file: IO[bytes], member: zipfile.ZipInfo) -> tuple[int, int]:
    """The start of the content of an uncompressed member, and its size in bytes."""
    file.seek(member.header_offset)
    name, extra = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return member.header_offset + _LOCAL_HEADER.size + name + extra, member.file_size


def _check_places(places: Iterable[tuple[int, int]], path: Path) -> None:
    end = 0
    for begin, count in sorted(places):
        if begin < end:
            raise pickle.UnpicklingError("has storages that overlap")
        end = begin + count
    if end > path.stat().st_size:
        raise pickle.UnpicklingError("is cut off: a storage ends behind the end of the file")


def _open_legacy(path: Path, file: IO[bytes], max_bytes: int) -> TorchFile:
    head = io.BytesIO(file.read(max_bytes))
    if _next_plain(head) != MAGIC_NUMBER or _next_plain(head) != LEGACY_VERSION:
        raise pickle.UnpicklingError("does not begin like a file of torch.save")
    system = _next_plain(head)
    if not isinstance(system, dict) or system.get("little_endian") is not (sys.byteorder == "little"):
        raise pickle.UnpicklingError("was saved on a machine with another order of bytes")
    unpickler = _Unpickler(_next_pickle(head, persistent_ids=True))
    content, keys = unpickler.load(), _next_plain(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("has no list of storages behind its pickle")
    places = _legacy_places(file, head.tell(), keys, unpickler.storages)
    _check_places(places.values(), path)
    return TorchFile(path, content, _named(unpickler), places)


def _next_pickle(head: io.BytesIO, persistent_ids: bool = False) -> bytes:
    begin = head.tell()
    scan_pickle(head, head.getbuffer().nbytes, persistent_ids)
    return bytes(head.getbuffer()[begin : head.tell()])


def _next_plain(head: io.BytesIO) -> Any:
    """The value of a pickle without any object."""
    return _Unpickler(_next_pickle(head)).load()


def _legacy_places(
    file: IO[bytes], begin: int, keys: Iterable[str], storages: Mapping[str, Storage]
) -> dict[str, tuple[int, int]]:
    """The places of storages in the older format: each has its number of elements, then the elements."""
    places = {}
    for key in keys:
        if key not in storages:
            raise pickle.UnpicklingError(f"lists the storage {show(key)}, which no tensor has")
        file.seek(begin)
        head = file.read(8)
        count = int.from_bytes(head, "little", signed=True)
        if len(head) < 8 or count != storages[key].numel:
            raise pickle.UnpicklingError(f"is cut off or damaged at the storage {show(key)}")
        places[key] = (begin + 8, storages[key].nbytes)
        begin += 8 + storages[key].nbytes
    return places


def _named(unpickler: _Unpickler) -> list[str]:
    return sorted(name for name in unpickler.classes if not name.startswith(_UNNAMED))
