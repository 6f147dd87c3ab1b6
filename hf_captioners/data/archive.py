"""Archives, zip and tar: their files one after the other, in memory that does not grow, or unpacked once.

Python's `zipfile` and `tarfile` read them, plain or compressed with gzip, bzip2 or xz; fsspec those of other machines.
`datasets` does no more than that; what is decided here is how much strangers may ask for:

1. The content tells the kind of an archive, not its name.
2. Members come in the order of the archive and are opened on demand. A tar's are forgotten again; of a zip, its
   directory stays in memory. What a member, a header or a directory declares is compared with a limit before it is
   read.
3. Names never lead out of the archive. Links, devices, sparse and encrypted members have a `problem` and no content.
4. A tar that stops without its end mark is cut off or has a damaged header, where `tarfile` would see its end: an
   error, behind the members before it.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import ntpath
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, cast

from huggingface_hub import constants

from .files import regular_file, sha256_of, working_folder
from .limits import FREE_BYTES, LimitError, limit_of
from .progress import progress
from .remote_files import is_remote, opened_file

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
"""Suffixes of archives that are read, in lower case."""

UNREAD_SUFFIXES = (".7z", ".rar", ".tar.zst", ".tar.lz4")
"""Suffixes of archives that are not."""

_Path: TypeAlias = Path | str

MAX_ARCHIVE_BYTES = 2**40
"""Largest sum of the sizes of an archive's files; `HF_CAPTIONERS_MAX_ARCHIVE_BYTES` in the environment sets another."""

MAX_MEMBERS = 2_000_000
"""Most members of an archive."""

MAX_HEADER = 4 * 2**20
"""Most bytes of headers in front of a tar's member, which are read at once."""

MAX_DIRECTORY = 128 * 2**20
"""Largest directory of a zip, which is read at once: about a million pictures."""

_ONLY_FILES = "is a link, a device or a sparse file; only files are read"
_UNIX = 3  # the system that a zip was made on
_CHUNK = 2**20
_PACKED: tuple[tuple[bytes, Any], ...] = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))
# what the readers raise for damaged archives: OSError of gzip and bz2, RuntimeError also for an encrypted one
_DAMAGED = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError),
    *(EOFError, OSError, RuntimeError, ValueError, OverflowError, IndexError),
)


class ArchiveError(ValueError):
    """Not an archive, a damaged one, or a member that is not read; the message names the archive."""


def archive_suffix(name: str | os.PathLike[str]) -> str:
    """The suffix by which a name says that it is an archive which is read, `".tar.gz"` of `"a.tar.gz"`, or nothing."""
    lower = os.fspath(name).lower()
    if is_remote(name):
        lower = lower.partition("?")[0]
    return max((suffix for suffix in ARCHIVE_SUFFIXES if lower.endswith(suffix)), key=len, default="")


class _BoundedReads:
    """A file that gives its reader no more than so many bytes between two calls of `allow`.

    `tarfile` reads headers, and `zipfile` the directory, at once, of whatever size the archive declares.

    Attributes:
        last (`bytes`): what was read last.
    """

    def __init__(self, path: _Path, file: IO[bytes], limit: int) -> None:
        self.path, self.file, self.limit, self.taken, self.last = path, file, limit, 0, b""
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def allow(self) -> None:
        """Count from here on."""
        self.taken = 0

    def read(self, size: int = -1) -> bytes:
        if size < 0:  # `zipfile` does so near the end
            size = min(self.limit - self.taken + 1, 2**20)
        self.taken += size
        if self.taken > self.limit:
            raise LimitError(f"{self.path}: a header of {self.taken} bytes; the limit is {self.limit}")
        self.last = self.file.read(size)
        return self.last


class Member:
    """A file in an archive. It can be read while the archive is open.

    Attributes:
        archive (`Path` or `str`): the archive; an address of another machine.
        name (`str`): path in the archive, with slashes.
        size (`int`): bytes of its content, as the archive declares them.
        problem (`str`): why it is not read; empty if it is.
    """

    def __init__(
        self, stream: _BoundedReads, name: str, size: int, opened: Callable[[], IO[bytes] | None], problem: str
    ) -> None:
        inner = inner_name(name)
        self.archive, self.size = stream.path, size
        self.name = name if inner is None else inner
        self.problem = "leads out of the archive" if inner is None else problem
        self._stream, self._opened, self._head = stream, opened, b""
        self._file: IO[bytes] | None = None

    @property
    def is_hidden(self) -> bool:
        """True if a part of its name begins with a dot, or if it belongs to what macOS adds to a zip."""
        return any((part.startswith(".") and part != "..") or part == "__MACOSX" for part in self.name.split("/"))

    def first_bytes(self, count: int) -> bytes:
        """The first bytes of its content, as many as there are; they stay part of what is read then."""
        if len(self._head) < count:
            self._head += self._read(count - len(self._head))
        return self._head[:count]

    def content(self) -> Iterator[bytes]:
        """Its content in pieces.

        Raises:
            ArchiveError: it has a `problem`, or is damaged.
        """
        piece = self._head or self._read(_CHUNK)
        total = 0
        while piece:
            total += len(piece)
            if total > self.size:
                raise ArchiveError(f"{self.archive}: the member {self.name!r} has more than its {self.size} bytes")
            yield piece
            piece = self._read(_CHUNK)
        self._file, self._head = None, b""

    def read(self, max_bytes: int) -> bytes:
        """Its whole content.

        Args:
            max_bytes (`int`): the limit.

        Raises:
            LimitError: there is more.
            ArchiveError: see [`content`].
        """
        if self.size > max_bytes:
            raise LimitError(f"{self.size} bytes, more than the {max_bytes} allowed")
        return b"".join(self.content())

    def _read(self, count: int) -> bytes:
        if self.problem:
            raise ArchiveError(f"{self.archive}: the member {self.name!r} {self.problem}")
        self._stream.allow()
        with _readable(self.archive):
            if self._file is None:
                self._file = self._opened()
            return b"" if self._file is None else self._file.read(count)


def inner_name(name: str) -> str | None:
    """A path in an archive or folder as its parts joined by slashes; `None` of one that leads out or is none."""
    path = name.replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if not parts or path.startswith("/") or ".." in parts or ntpath.splitdrive(path)[0] or "\0" in path:
        return None
    return "/".join(parts)


@contextmanager
def opened_archive(
    path: str | os.PathLike[str], max_bytes: int | None = None, max_members: int | None = None
) -> Iterator[Iterator[Member]]:
    """Open an archive for reading.

    Args:
        path (`str` or `os.PathLike`): the archive, or its address on another machine (see [`opened_file`]).
        max_bytes (`int`, *optional*): largest sum of the sizes; without it 100 times what is stored, at least 64 MiB
            and at most `MAX_ARCHIVE_BYTES`, or what the environment says.
        max_members (`int`, *optional*, defaults to `MAX_MEMBERS`): most members.

    Yields:
        `Iterator[Member]`: the files, folders left out, in the order of the archive.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it is a folder, a FIFO, a socket or a device.
        ArchiveError: it is no archive, or damaged; also while iterating.
        LimitError: more than a limit; also while iterating.

    Example:

    ```python
    >>> import tempfile, zipfile
    >>> from hf_captioners.data.archive import opened_archive
    >>> with tempfile.NamedTemporaryFile(suffix=".zip") as file:
    ...     with zipfile.ZipFile(file.name, "w") as archive:
    ...         archive.writestr("pictures/a.txt", "a dog")
    ...     with opened_archive(file.name) as members:
    ...         [(member.name, member.read(max_bytes=100)) for member in members]
    [('pictures/a.txt', b'a dog')]

    ```
    """
    name: _Path = str(path) if is_remote(path) else Path(path)
    with opened_file(path, "archive") as (raw, stored):
        allowed = limit_of("archive", MAX_ARCHIVE_BYTES, stored) if max_bytes is None else max_bytes
        hint = " (HF_CAPTIONERS_MAX_ARCHIVE_BYTES sets another limit)" if max_bytes is None else ""
        limits = _Limits(name, allowed, MAX_MEMBERS if max_members is None else max_members, hint)
        with _readable(name):
            start = raw.read(6)
            raw.seek(0)
            reader = _zip_or_tar(name, raw, start)
        with reader:
            yield _zip_members(reader, limits) if isinstance(reader, zipfile.ZipFile) else _tar_members(reader, limits)


def _zip_or_tar(path: _Path, raw: IO[bytes], start: bytes) -> zipfile.ZipFile | tarfile.TarFile:
    if not start.startswith(b"PK"):
        unpack = next((unpack for magic, unpack in _PACKED if start.startswith(magic)), None)
        stream = _BoundedReads(path, raw if unpack is None else unpack(raw), MAX_HEADER)
        try:  # first: a tar that ends with a zip looks like one
            return tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:")
        except tarfile.ReadError:
            raw.seek(0)
            if not zipfile.is_zipfile(raw):
                raise ArchiveError(f"{path}: neither a zip nor a tar archive, or a damaged one") from None
    return zipfile.ZipFile(cast(IO[bytes], _BoundedReads(path, raw, MAX_DIRECTORY)))


class _Limits:
    """Limits of what an archive may have in it, counted member by member."""

    def __init__(self, path: _Path, max_bytes: int, max_members: int, hint: str) -> None:
        self.path, self.max_bytes, self.max_members, self.hint = path, max_bytes, max_members, hint
        self.count = self.total = 0

    def admit(self, size: int) -> None:
        self.count, self.total = self.count + 1, self.total + size
        if self.count > self.max_members or self.total > self.max_bytes:
            raise LimitError(
                f"{self.path}: more than {self.max_members} members or {self.max_bytes} bytes in it{self.hint}"
            )


def _zip_members(archive: zipfile.ZipFile, limits: _Limits) -> Iterator[Member]:
    stream = cast(_BoundedReads, archive.fp)
    for info in archive.infolist():
        limits.admit(info.file_size)
        if not info.is_dir():
            problem = "is encrypted" if info.flag_bits & 1 else _ONLY_FILES if _is_special(info) else ""
            yield Member(stream, info.filename, info.file_size, partial(archive.open, info), problem)


def _is_special(info: zipfile.ZipInfo) -> bool:
    kind = stat.S_IFMT(info.external_attr >> 16)
    return info.create_system == _UNIX and kind not in (0, stat.S_IFREG)


def _tar_members(archive: tarfile.TarFile, limits: _Limits) -> Iterator[Member]:
    stream = cast(_BoundedReads, archive.fileobj)
    while True:
        stream.allow()
        with _readable(limits.path):
            info = archive.next()
        if info is None:
            break
        archive.pax_headers = {}
        archive.members = []  # type: ignore[attr-defined]  # or it would keep all, as there is no option before 3.13
        limits.admit(info.size)
        if not info.isdir():
            problem = "" if info.isreg() and not info.issparse() else _ONLY_FILES
            yield Member(stream, info.name, info.size, partial(archive.extractfile, info), problem)
    with _readable(limits.path):
        _check_end(stream, limits)


def _check_end(stream: _BoundedReads, limits: _Limits) -> None:
    """The end mark of a tar is a block of zeros; behind it is the checksum of a compressed one."""
    if len(stream.last) != tarfile.BLOCKSIZE or any(stream.last):
        raise ArchiveError(f"{limits.path}: is cut off or damaged behind its first {limits.count} members")
    rest = 0
    while piece := stream.file.read(_CHUNK):
        rest += len(piece)
        if rest > FREE_BYTES:
            raise LimitError(f"{limits.path}: has more than {FREE_BYTES} bytes behind its end")


@contextmanager
def _readable(path: _Path) -> Iterator[None]:
    try:
        yield
    except (ArchiveError, LimitError):
        raise
    except Exception as error:
        if not isinstance(error, _DAMAGED) and not is_remote(path):  # of as many kinds as there are file systems
            raise
        raise ArchiveError(f"{path}: cannot be read as an archive: {type(error).__name__}: {error}") from error


def unpacked(path: str | os.PathLike[str], cache_dir: Path | None = None) -> Path:
    """Unpack an archive once, into a folder that is named by the archive's content.

    Files keep their names and nothing else: no owner, no permissions, no links. Hidden ones are left out.

    Args:
        path (`str` or `os.PathLike`): the archive.
        cache_dir (`Path`, *optional*): where such folders are; by default `hf_captioners/archives` in the folder of the
            Hugging Face caches (`HF_HOME`). They may be deleted at any time.

    Returns:
        `Path`: the folder.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the disk is full, or the like.
        ArchiveError: it is damaged, or a member of it leads out, is no file, or is there twice.
        LimitError: more than a limit of [`opened_archive`].
    """
    archive = regular_file(os.fspath(path), "archive")
    cache = Path(constants.HF_HOME, "hf_captioners", "archives") if cache_dir is None else cache_dir
    target = cache / sha256_of(archive)
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with working_folder(cache, ".", ".new") as folder:
        with opened_archive(archive) as members:
            for member in progress(members, unit="file", desc=f"unpacking {archive.name}, once"):
                if member.problem:
                    raise ArchiveError(f"{archive}: the member {member.name!r} {member.problem}")
                if not member.is_hidden:
                    _write(member, folder)
        try:
            folder.rename(target)
        except OSError:  # another process was first
            if not target.is_dir():
                raise
    return target


def _write(member: Member, folder: Path) -> None:
    path = folder / member.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            for piece in member.content():
                file.write(piece)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
            raise ArchiveError(
                f"{member.archive}: the member {member.name!r} is there twice, or its name is none of a file"
            ) from error
        raise OSError(error.errno, error.strerror, str(folder.parent)) from error
