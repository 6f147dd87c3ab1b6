"""The files of `torch.save`, in the zip format and in the one before it, of every pickle protocol.

torch's own safe loader reads protocol 2 alone, and stops at the first object that is no tensor. Here an unpickler that
imports nothing makes descriptions of tensors, and only the requested ones become tensors, after their sizes have
been compared with the data in the file:

1. The pickle is bounded, scanned before it is read (`pickle_limits`), and may not be compressed.
2. It is read by an unpickler that makes descriptions of tensors (`torch_pickle`).
3. A storage has as many bytes in the file as its tensors need, and all storages together no more than the file.
4. Tensors are views of the memory-mapped file: nothing is read before it is used.
"""

from __future__ import annotations

import io
import pickle
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
from .torch_pickle import SavedTensor, Storage, TorchUnpickler

MAX_PICKLE_BYTES = 64 * 1024 * 1024  # names, shapes and options; the weights are elsewhere
MAX_MEMBERS = 1_000_000
MAGIC_NUMBER, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
_ALIGNED = 16  # bytes; elsewhere a tensor is copied
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and its extra field


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
    unpickler = TorchUnpickler(content)
    return TorchFile(path, unpickler.load(), unpickler.unread(), places)


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
    unpickler = TorchUnpickler(_next_pickle(head, persistent_ids=True))
    content, keys = unpickler.load(), _next_plain(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise pickle.UnpicklingError("has no list of storages behind its pickle")
    places = _legacy_places(file, head.tell(), keys, unpickler.storages)
    _check_places(places.values(), path)
    return TorchFile(path, content, unpickler.unread(), places)


def _next_pickle(head: io.BytesIO, persistent_ids: bool = False) -> bytes:
    begin = head.tell()
    scan_pickle(head, head.getbuffer().nbytes, persistent_ids)
    return bytes(head.getbuffer()[begin : head.tell()])


def _next_plain(head: io.BytesIO) -> Any:
    """The value of a pickle without any object."""
    return TorchUnpickler(_next_pickle(head)).load()


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
