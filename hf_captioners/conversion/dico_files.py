"""Weights and configuration of an original DiCO captioner, from a folder, an archive, or two files side by side.

An archive is not unpacked. Its members are listed within limits, names that lead outside are an error, and the contents
of the two files that are needed are copied, counted byte by byte, to names of our own in a temporary folder.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from ..data.files import regular_file, working_folder
from .safe_load import load_json
from .writing import ConversionError

CONFIG = "config.json"
WEIGHTS = ("pytorch_model.bin", "model.safetensors")
SHARDED = tuple(f"{name}.index.json" for name in WEIGHTS)
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
MAX_MEMBERS = 10_000
MAX_BYTES = 16 * 1024**3  # of all members together; the released captioner has about 1 GB
MAX_RATIO, FREE_BYTES = 20, 64 * 1024**2  # weights hardly shrink; small archives may unpack to this much
MAX_HEADER = 4 * 1024**2  # bytes of a tar that are read at once
_CHUNK = 1024 * 1024
# Errors of the readers for damaged archives; RuntimeError for an encrypted one
_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of the disk that members are copied to
_PACKED: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))

_Members = dict[str, Callable[[], IO[bytes] | None]]  # name in the archive -> how to open it


@contextmanager
def opened_files(
    checkpoint: str | Path, original_config: str | Path | Mapping[str, Any] | None = None
) -> Iterator[tuple[Path, Any]]:
    """Find the weights, and read the configuration.

    Args:
        checkpoint (`str` or `Path`): a folder, or one that holds that folder; an archive of one (`.zip`, `.tar`,
            `.tar.gz` and the like; told by its content); or a state dict with `config.json` beside it.
        original_config (`str`, `Path` or `Mapping`, *optional*): the configuration, if it is elsewhere.

    Yields:
        `tuple[Path, Any]`: the file of the weights, which must not be used after the block, and the content of the
        configuration.

    Raises:
        FileNotFoundError: there is no such path.
        ConversionError: one of the two is missing; the weights are in several files; an archive is damaged, too large,
            has names that lead outside, or holds several captioners.

    Example:

    ```python
    >>> import tempfile, zipfile
    >>> from hf_captioners.conversion.dico_files import opened_files
    >>> with tempfile.NamedTemporaryFile(suffix=".zip") as file:
    ...     with zipfile.ZipFile(file.name, "w") as archive:
    ...         archive.writestr("dico/config.json", '{"model_type": "vision-encoder-decoder"}')
    ...         archive.writestr("dico/pytorch_model.bin", b"...")
    ...         archive.writestr("dico/training_args.bin", b"never opened")
    ...     with opened_files(file.name) as (weights, content):
    ...         sorted(path.name for path in weights.parent.iterdir()), content
    (['config.json', 'pytorch_model.bin'], {'model_type': 'vision-encoder-decoder'})

    ```
    """
    path = Path(checkpoint)
    members = None if path.is_dir() else _archive(regular_file(path, "checkpoint"))
    if members is None:
        yield _find(path, str(path), original_config)
        return
    # the weights of a killed conversion are removed by the next one
    with working_folder(Path(tempfile.gettempdir()), "hf_captioners_", mode=0o700) as folder:
        try:
            with members(path) as listed:
                _take(path, listed, folder, needs_config=original_config is None)
        except _DAMAGED as error:
            if isinstance(error, ConversionError) or (isinstance(error, OSError) and error.errno in _FULL):
                raise
            raise ConversionError(f"{path}: cannot be read as an archive: {type(error).__name__}: {error}") from error
        yield _find(folder, str(path), original_config)


def _find(path: Path, where: str, original_config: str | Path | Mapping[str, Any] | None) -> tuple[Path, Any]:
    folder, weights = path.parent, path
    if path.is_dir():
        folder = _folder_with_weights(path, where)
        names = [file.name for file in folder.iterdir() if file.is_file()]
        weights = folder / _weights_of(names, where)
    elif path.name in SHARDED:
        _weights_of([path.name], where)
    if isinstance(original_config, Mapping):
        return weights, original_config
    if original_config is not None:
        return weights, load_json(original_config)
    if not (folder / CONFIG).is_file():
        raise ConversionError(
            f"{where}: there is no {CONFIG} with the weights, which has the sizes; give it as original_config"
        )
    return weights, load_json(folder / CONFIG)


def _folder_with_weights(path: Path, where: str) -> Path:
    """The folder itself, or the one in it that has weights, as an unpacked archive leaves it."""
    places = [
        folder
        for folder in (path, *sorted(path.iterdir()))
        if folder.is_dir() and any((folder / name).is_file() for name in (*WEIGHTS, *SHARDED))
    ]
    if path in places or not places:
        return path
    if len(places) > 1:
        raise ConversionError(
            f"{where}: weights are in {', '.join(folder.name for folder in places)}; give one of these"
        )
    return places[0]


def _weights_of(names: Collection[str], where: str) -> str:
    """The name of the weights among the names in a folder."""
    for name in WEIGHTS:
        if name in names:
            return name
    for name in SHARDED:
        if name in names:
            raise ConversionError(
                f"{where}: the weights are in the several files of {name}; put them into one {WEIGHTS[0]} first"
            )
    raise ConversionError(f"{where}: holds no {' and no '.join(WEIGHTS)}")


def _archive(path: Path) -> Any:
    """The function that lists the members of an archive; `None` for another file."""
    try:
        with _opened_tar(path):  # first: a tar that ends with a zip looks like one
            return _tar_members
    except _DAMAGED as error:
        if isinstance(error, ConversionError):
            raise
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:  # torch.save writes zip archives too
            is_torch = any(PurePosixPath(name).name == "data.pkl" for name in archive.namelist()[:MAX_MEMBERS])
        return None if is_torch else _zip_members
    if path.suffix.lower() in ARCHIVES:
        raise ConversionError(f"{path}: is not a {path.suffix} archive, or a damaged one")
    return None


@contextmanager
def _zip_members(path: Path) -> Iterator[_Members]:
    with zipfile.ZipFile(path) as archive:
        limits = _Limits(path)
        members: _Members = {}
        for info in archive.infolist():
            limits.admit(info.filename, info.file_size)
            if not info.is_dir():
                members[info.filename] = lambda info=info: archive.open(info)
        yield members


@contextmanager
def _opened_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A tar, compressed or not, of which no header is read that is larger than the limit."""
    with path.open("rb") as file:
        start = file.read(6)
        file.seek(0)
        unpack = next((unpack for magic, unpack in _PACKED if start.startswith(magic)), None)
        stream = _BoundedReads(path, file if unpack is None else unpack(file))
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:") as archive:
            yield archive


class _BoundedReads:
    """A file with reads of limited size: tarfile reads a header at once, of whatever size the archive declares."""

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self.file = path, file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER:
            raise ConversionError(f"{self.path}: a header of {size} bytes; the limit is {MAX_HEADER}")
        return self.file.read(size)


@contextmanager
def _tar_members(path: Path) -> Iterator[_Members]:
    with _opened_tar(path) as archive:
        limits = _Limits(path)
        members: _Members = {}
        for info in archive:  # one by one, so that a large member is refused before it is decompressed
            limits.admit(info.name, info.size)
            if not (info.isreg() or info.isdir()) or info.issparse():
                raise ConversionError(
                    f"{path}: the member {info.name!r} is a link, a device or a sparse file; only files are read"
                )
            if info.isreg():
                members[info.name] = lambda info=info: archive.extractfile(info)
        yield members
        with Path(os.devnull).open("wb") as nowhere:  # the checksum of a compressed archive is at its very end
            _copy(path, cast(IO[bytes], archive.fileobj), nowhere)


class _Limits:
    """Limits of the names, the number and the size of the members of an archive."""

    def __init__(self, path: Path) -> None:
        self.path, self.count, self.total = path, 0, 0
        self.allowed = min(MAX_BYTES, max(FREE_BYTES, MAX_RATIO * path.stat().st_size))

    def admit(self, name: str, size: int) -> None:
        self.count, self.total = self.count + 1, self.total + size
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or parts[0] == "" or ":" in parts[0]:
            raise ConversionError(
                f"{self.path}: the member {name!r} leads out of the archive; such archives are refused"
            )
        if self.count > MAX_MEMBERS or self.total > self.allowed:
            raise ConversionError(
                f"{self.path}: more than {MAX_MEMBERS} members or {self.allowed} bytes; give the folder or the weights"
            )


def _take(path: Path, members: _Members, folder: Path, needs_config: bool) -> None:
    """Copy configuration and weights out of the one folder of the archive that has them."""
    all_names = (*WEIGHTS, *SHARDED)
    places = sorted({str(PurePosixPath(name).parent) for name in members if PurePosixPath(name).name in all_names})
    if len(places) != 1:
        problem = f"{' and '.join(WEIGHTS)} are in none" if not places else f"weights are in {', '.join(places)}"
        raise ConversionError(f"{path}: expected weights in one folder of the archive, but {problem}")
    available = {PurePosixPath(name).name: name for name in members if str(PurePosixPath(name).parent) == places[0]}
    weights = _weights_of(available, str(path))
    if needs_config and CONFIG not in available:
        raise ConversionError(f"{path}: there is no {CONFIG} beside {available[weights]}; give it as original_config")
    for name in [weights, *([CONFIG] if needs_config else [])]:
        stream = members[available[name]]()
        if stream is None:
            raise ConversionError(f"{path}: {available[name]} is not a file")
        with stream, (folder / name).open("wb") as file:
            _copy(path, stream, file)


def _copy(path: Path, source: IO[bytes], target: IO[bytes]) -> None:
    total = 0
    while chunk := source.read(_CHUNK):
        total += len(chunk)
        if total > MAX_BYTES:  # the size that the archive declares may be wrong
            raise ConversionError(f"{path}: holds more than {MAX_BYTES} bytes")
        target.write(chunk)
