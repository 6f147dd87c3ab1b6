"""Tars in WebDataset's layout with the captions of their pictures added."""

from __future__ import annotations

import io
import logging
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import IO, TypeAlias

from ..data.archive import ArchiveError, Member, archive_suffix, opened_archive
from ..data.files import write_whole
from ..data.image_suffixes import IMAGE_SUFFIXES
from ..data.limits import LimitError
from ..data.remote_files import is_remote

logger = logging.getLogger(__name__)

_SUFFIX = re.compile(r"(\.[\w-]+)+")
_IN_MEMORY = 2**24  # bytes of a member

_Path: TypeAlias = str | os.PathLike[str]


class TarError(ValueError):
    """Archives to which captions cannot be added; the message says which and why."""


class CaptionedTars:
    """Writer of a tar for each archive of pictures: all that is in it, and behind each picture its caption.

    A tar is there whole or not at all. Its members have neither owner nor time, so that the same captions make the same
    file. Several captions of a picture are lines of its member, best first; one without a caption gets none.

    Args:
        folder (`Path`): for the tars; `shards/000.tar.gz` becomes `000.tar` there.
        suffix (`str`, defaults to `".txt"`): of the captions; `a.jpg` gets `a.txt`.

    Raises:
        TarError: the suffix does not begin with a dot, or is that of a picture.

    Example:

    ```python
    >>> import io, tarfile, tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.inference.captioned_tars import CaptionedTars
    >>> folder = Path(tempfile.mkdtemp())
    >>> with tarfile.open(folder / "photos.tar", "w") as archive:
    ...     for name in ("a.jpg", "a.cls", "b.jpg"):
    ...         archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    >>> (folder / "captioned").mkdir()
    >>> tars = CaptionedTars(folder / "captioned")
    >>> path = tars.write(folder / "photos.tar", {f"{folder}/photos.tar/a.jpg": ["a dog"]})
    >>> with tarfile.open(path) as archive:
    ...     archive.getnames(), archive.extractfile("a.txt").read()
    (['a.jpg', 'a.txt', 'a.cls', 'b.jpg'], b'a dog\\n')

    ```
    """

    def __init__(self, folder: Path, suffix: str = ".txt") -> None:
        if not _SUFFIX.fullmatch(suffix) or PurePath(f"a{suffix}").suffix.lower() in IMAGE_SUFFIXES:
            raise TarError(f"expected a suffix of captions such as .txt or .caption.txt, found {suffix!r}")
        self.folder, self.suffix = folder, suffix

    def path_of(self, archive: _Path) -> Path:
        """The tar of an archive."""
        name = os.fspath(archive).partition("?")[0] if is_remote(archive) else os.fspath(archive)
        stem = PurePath(name).name
        return self.folder / f"{stem[: len(stem) - len(archive_suffix(stem))]}.tar"

    def check(self, archives: Iterable[_Path]) -> None:
        """Check, before any work, that each archive can have a tar, and each of its pictures a caption in it.

        The members of archives of other machines are looked at when their tars are written.

        Args:
            archives (`Iterable[str | os.PathLike]`): as [`find_images`] gives them.

        Raises:
            TarError: something that is no archive, two archives of a name, or members that have the captions' names.
        """
        taken: dict[Path, _Path] = {}
        for archive in archives:
            if not archive_suffix(archive):
                raise TarError(f"{archive} is no zip or tar archive; captions are added to these only")
            path = self.path_of(archive)
            other = taken.setdefault(path, archive)
            if os.fspath(other) != os.fspath(archive):
                raise TarError(f"{other} and {archive} would both become {path}; rename one of them")
            if not is_remote(archive):
                if Path(archive).resolve().parent == self.folder.resolve():
                    raise TarError(f"{archive} is in {self.folder} itself; give another folder")
                names = [name for name in _names(archive) if PurePath(name).suffix.lower() in IMAGE_SUFFIXES]
                self._check_names(archive, names, {*_names(archive)})

    def _check_names(self, archive: _Path, images: Iterable[str], members: set[str]) -> None:
        captions: dict[str, str] = {}
        for image in images:
            caption = self._caption_of(image)
            other = captions.setdefault(caption, image)
            if caption in members or other != image:
                found = f"{caption} already" if caption in members else f"{other} and {image}, both of {caption}"
                raise TarError(f"{archive} has {found}; give another suffix of captions, such as .caption.txt")

    def _caption_of(self, image: str) -> str:
        return f"{PurePosixPath(image).with_suffix('')}{self.suffix}"

    def write(self, archive: _Path, captions: Mapping[str, Sequence[str]]) -> Path:
        """Write the tar of an archive.

        Args:
            archive (`str` or `os.PathLike`): the archive.
            captions (`Mapping[str, Sequence[str]]`): of its pictures, by their names, `shards/000.tar/a.jpg`.

        Returns:
            `Path`: the tar.

        Raises:
            TarError: see [`check`].
            OSError: the disk is full, or the like; there is no tar then.
        """
        path = self.path_of(archive)
        write_whole(path, lambda file: self._write(file, archive, captions))
        return path

    def _write(self, file: Path, archive: _Path, captions: Mapping[str, Sequence[str]]) -> None:
        written: set[str] = set()
        with tarfile.open(file, "w", format=tarfile.PAX_FORMAT) as tar:
            for member, content in _whole_members(archive):
                texts = captions.get(f"{archive}/{member.name}")
                caption = self._caption_of(member.name)
                if member.name in written or (texts is not None and caption in written):
                    raise TarError(f"{archive}: a member {member.name!r} beside another of this name, or its caption")
                _add(tar, member.name, content)
                written.add(member.name)
                if texts is not None:
                    text = "".join(f"{' '.join(line.split())}\n" for line in texts)
                    _add(tar, caption, io.BytesIO(text.encode()))
                    written.add(caption)


def _names(archive: _Path) -> Iterator[str]:
    """Names of an archive's members, as far as it can be read."""
    try:
        with opened_archive(archive) as members:
            yield from (member.name for member in members if not (member.problem or member.is_hidden))
    except (ArchiveError, LimitError, OSError):
        return  # the records of a run say so


def _whole_members(archive: _Path) -> Iterator[tuple[Member, IO[bytes]]]:
    """The members of an archive that can be read, with their content."""
    try:
        with opened_archive(archive) as members:
            for member in members:
                if member.problem or member.is_hidden:
                    continue
                with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as content:
                    try:
                        content.writelines(member.content())
                    except ArchiveError as error:
                        logger.warning("%s; it is left out", error)
                        continue
                    content.seek(0)
                    yield member, content
    except (ArchiveError, LimitError) as error:
        logger.warning("%s; the rest is left out", error)


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes]) -> None:
    info = tarfile.TarInfo(name)
    info.size = content.seek(0, os.SEEK_END)
    content.seek(0)
    tar.addfile(info, content)
