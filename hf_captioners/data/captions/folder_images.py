"""The pictures of a folder of captioned pictures: files in it, or members of archives in it and beside it.

Archives are looked into where pictures are missing, and unpacked into the cache for that. A picture `cat.jpg` of a
split `train` may be called `cat.jpg` or `train/cat.jpg` in an archive, with the name of its only folder in front or
without; the metadata file may say the archive's name, too (`pictures/cat.jpg` of `pictures.zip`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ..archive import UNREAD_SUFFIXES, archive_suffix, unpacked
from .records import CaptionFileError

_SHOWN = 5


def listing(names: list[str]) -> str:
    """The first of names, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def unread_archives(names: list[str]) -> str:
    """The end of a message about archives that are not read; empty if there are none."""
    return f"; unpack {listing(names)}, such archives are not read" if names else ""


def unpacked_folder(archive: Path, keep: Callable[[str], object] = lambda name: None) -> Path:
    """Unpack an archive of a folder; of one that holds a single folder, that folder.

    Args:
        archive (`Path`): zip or tar.
        keep (`Callable[[str], object]`, *optional*): tells of the name of a single folder that it is to stay a part of
            the names.

    Returns:
        `Path`
    """
    return _single_folder(unpacked(archive), keep)


def _single_folder(folder: Path, keep: Callable[[str], object] = lambda name: None) -> Path:
    entries = list(folder.iterdir())
    if len(entries) == 1 and entries[0].is_dir() and not keep(entries[0].name):
        return _single_folder(entries[0], keep)
    return folder


class FolderImages:
    """The pictures that a metadata file may name, and which of them it has named.

    Args:
        folder (`Path`): where the metadata file is.
        own (`str`): the folder's name in that of all splits, such as `"train"`; empty for the folder of all splits.
        archives (`Iterable[Path]`): archives elsewhere that may have its pictures.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.captions.folder_images import FolderImages
    >>> folder = Path(tempfile.mkdtemp(), "train")
    >>> folder.mkdir()
    >>> for name in ("cat.jpg", "dog.jpg"):
    ...     (folder / name).touch()
    >>> images = FolderImages(folder, "train", [])
    >>> images.find("cat.jpg")[1], images.find("cow.jpg"), images.left_out(())
    ('train/cat.jpg', (None, 'train/cow.jpg'), ['dog.jpg'])

    ```
    """

    def __init__(self, folder: Path, own: str, archives: Iterable[Path]) -> None:
        self.folder, self.own = folder.absolute(), own
        self._files = set(files_below(folder))
        inside = sorted(name for name in self._files if archive_suffix(name))
        self._archives = {**{name: folder / name for name in inside}, **{path.name: path for path in archives}}
        self._used: set[str] = set()
        self._members: dict[str, dict[Path, str]] | None = None  # name -> files of that name and what they are called

    def find(self, name: str) -> tuple[str | None, str]:
        """Find a picture.

        Args:
            name (`str`): as the metadata file has it, with slashes.

        Returns:
            `tuple[str | None, str]`: its path, `None` if it is not there; its name in the folder of all splits.

        Raises:
            CaptionFileError: several archives have it.
            ArchiveError, LimitError: an archive cannot be unpacked.
        """
        inner = name
        if self.own and name not in self._files and name.startswith(f"{self.own}/"):
            inner = name.removeprefix(f"{self.own}/")  # the metadata file names its own folder, too
        whole = f"{self.own}/{inner}" if self.own else inner
        if inner in self._files:
            self._used.add(inner)
            return str(self.folder / inner), whole
        return self._find_member(dict.fromkeys((inner, whole))), whole

    def _find_member(self, names: Iterable[str]) -> str | None:
        if self._members is None:
            self._members = {}
            for called, archive in self._archives.items():
                self._list(called, unpacked(archive), self._members)
        for name in names:
            archives = self._members.get(name, {})
            if len(archives) > 1:
                raise CaptionFileError(f"picture {name!r} is in {' and '.join(archives.values())}, expected it once")
            for path, called in archives.items():
                self._used.add(called)
                return str(path)
        return None

    @staticmethod
    def _list(called: str, folder: Path, members: dict[str, dict[Path, str]]) -> None:
        """Add the files of an archive by all names that they may have."""
        inner = _single_folder(folder)
        parent, _, stem = called[: -len(archive_suffix(called))].rpartition("/")
        for name in files_below(inner):
            path = inner / name
            raw = path.relative_to(folder).as_posix()
            names = [part for plain in (raw, name) for part in (plain, f"{stem}/{plain}")]
            for possible in dict.fromkeys(names + [f"{parent}/{image}" for image in names if parent]):
                members.setdefault(possible, {})[path] = f"{called}/{raw}"

    @property
    def places(self) -> str:
        """Names of the archives that were looked into, and of those that are not read, for a message."""
        unread = sorted(name for name in self._files if name.lower().endswith(UNREAD_SUFFIXES))
        places = f" and in {listing(list(self._archives))}" if self._archives else ""
        return f"{places}{unread_archives(unread)}"

    def left_out(self, known: Iterable[str]) -> list[str]:
        """The files that were not found by a name, and are not among the known ones.

        Args:
            known (`Iterable[str]`): such as the metadata file.

        Returns:
            `list[str]`: names in the folder; members of archives that were unpacked with the archive in front.
        """
        if self._members is None:
            return sorted(self._files - self._used - set(known))
        members = {member for files in self._members.values() for member in files.values()}
        return sorted(((self._files - set(self._archives)) | members) - self._used - set(known))


def files_below(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, with slashes, but for hidden ones; links are followed."""
    visited: set[tuple[int, int]] = set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        status = Path(parent).stat()
        if (status.st_dev, status.st_ino) in visited:  # a loop of links
            folders.clear()
            continue
        visited.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = Path(parent).relative_to(folder).as_posix()
        prefix = "" if inner == "." else f"{inner}/"
        yield from (f"{prefix}{name}" for name in files if not name.startswith("."))
