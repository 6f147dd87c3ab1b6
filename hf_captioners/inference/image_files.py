"""The pictures of files and folders, and what a folder has besides: counted by suffix, with the reason."""

import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

from ..data.braces import expand_braces
from ..data.image_suffixes import IMAGE_SUFFIXES, OTHER_SUFFIXES, UNREAD_SUFFIXES
from ..data.remote_files import is_remote
from ..modeling.captioner_image_format import SIGNATURE_BYTES, UNREAD_FORMATS, readable_formats, sniff_format
from ..modeling.captioner_image_limits import shorten

_Path: TypeAlias = str | os.PathLike[str]
_URL = re.compile(r"https?://", re.IGNORECASE)
_SHOWN = 8


@dataclass
class LeftOutFiles:
    """Count what [`find_images`] does not take from folders. `str()` gives it in a line.

    Files of `OTHER_SUFFIXES`, as captions beside pictures, and hidden ones are not counted.

    Args:
        pictures (`Counter[tuple[str, str]]`): pictures that cannot be opened, by suffix and reason.
        unknown (`Counter[str]`): files of another suffix, or without, that do not begin like a picture, by suffix.
    """

    images: Counter[tuple[str, str]] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)

    def __len__(self) -> int:
        return self.images.total() + self.unknown.total()

    def __str__(self) -> str:
        reasons: dict[str, list[str]] = {}
        for (suffix, reason), count in self.images.most_common():
            reasons.setdefault(reason, []).append(f"{count} {_shown(suffix)}")
        parts = [f"{_listed(counts)} ({reason})" for reason, counts in reasons.items()]
        if self.unknown:
            counts = [f"{count} {_shown(suffix)}" for suffix, count in self.unknown.most_common()]
            parts.append(f"{_listed(counts)} (not recognised as pictures)")
        return f"left out {len(self)} file{'s' if len(self) != 1 else ''}: {'; '.join(parts)}"


def _shown(suffix: str) -> str:
    return shorten(suffix)[:40] or "without suffix"


def _listed(counts: list[str]) -> str:
    more = [f"files of {len(counts) - _SHOWN} more suffixes"] if len(counts) > _SHOWN else []
    return ", ".join(counts[:_SHOWN] + more)


def find_images(
    paths: _Path | Iterable[_Path], recursive: bool = True, left_out: LeftOutFiles | None = None
) -> Iterator[Path | str]:
    """List the pictures of files and folders.

    What is given by name is always taken, whatever its suffix and whether or not it exists, so that a wrong name shows
    up as a failed picture. In a folder, files with one of the suffixes of `IMAGE_SUFFIXES` (any case) are taken if
    their format can be read at all; of files with another suffix or without, those that begin like a picture. They come
    in the order of their names, before the files of sub-folders; hidden files and folders (`.name`) are skipped. Links
    to folders are followed, and every folder is listed once per path given, so that a loop of links ends. A folder that
    cannot be listed is returned itself, for the same reason as a wrong name. So is an archive that is given by name
    ([`image_rows`] reads its pictures); those in folders are left out. A name with braces stands for several, as
    `shards/{000..012}.tar` (see [`expand_braces`]), unless there is a file of that name.

    Args:
        paths (`str`, `os.PathLike` or an iterable of these):
            Files, folders, archives or http(s) URLs, or addresses of other machines that fsspec knows.
        recursive (`bool`, *optional*, defaults to `True`):
            Whether to go down into sub-folders.
        left_out ([`LeftOutFiles`], *optional*):
            Counts the files that are not taken.

    Returns:
        `Iterator[Path | str]`: paths that begin with the given one; addresses as they were given. It is lazy.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.inference.image_files import LeftOutFiles, find_images

    >>> left_out = LeftOutFiles()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("b.JPG", "a.png", "a.txt", ".hidden.png", "c.psd"):
    ...         Path(folder, name).touch()
    ...     [path.name for path in find_images(folder, left_out=left_out)]
    ['a.png', 'b.JPG']
    >>> print(left_out)
    left out 1 file: 1 .psd (a format that is not read; convert to PNG or JPEG)

    ```
    """
    counted = LeftOutFiles() if left_out is None else left_out
    for path in itertools.chain.from_iterable(map(_expanded, as_iterable(paths))):
        if is_remote(path):
            yield cast(str, path)
        elif os.path.isdir(path):  # noqa: PTH112 (False, not PermissionError, below a folder that may not be entered)
            yield from _walk(Path(path), recursive, counted)
        else:
            yield Path(path)


def _expanded(path: _Path) -> Iterable[_Path]:
    """The names that a pattern with braces stands for; a file that is called so stands for itself."""
    name = os.fspath(path)
    if "{" not in name or (not is_remote(path) and os.path.lexists(name)):
        return [path]
    return expand_braces(name)


def is_url(path: _Path) -> bool:
    """Tell whether it is an http(s) URL."""
    return isinstance(path, str) and _URL.match(path) is not None


def as_iterable(paths: _Path | Iterable[_Path]) -> Iterable[_Path]:
    """Paths as an iterable, where there may be only a path."""
    return [paths] if isinstance(paths, (str, os.PathLike)) else paths


def _walk(root: Path, recursive: bool, left_out: LeftOutFiles) -> Iterator[Path]:
    visited: set[tuple[int, int]] = set()
    stack = [root]
    while stack:
        folder = stack.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in visited:
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as listing:
                entries = sorted((entry for entry in listing if entry.name[0] != "."), key=lambda entry: entry.name)
        except OSError:
            yield folder
            continue
        subfolders = []
        for entry in entries:
            if _is_folder(entry):
                subfolders.append(folder / entry.name)
            elif is_image(entry.name, partial(_first_bytes, folder / entry.name), left_out):
                yield folder / entry.name
        if recursive:
            stack += reversed(subfolders)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_image(name: _Path, first_bytes: Callable[[int], bytes], left_out: LeftOutFiles) -> bool:
    """Tell whether a file of a folder or archive is taken for a picture.

    Args:
        name (`str` or `os.PathLike`): of the file; its suffix decides if it is known.
        first_bytes (`Callable[[int], bytes]`): gives so many of its first bytes, which decide otherwise.
        left_out ([`LeftOutFiles`]): counts it if it is not.

    Returns:
        `bool`
    """
    suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122 (for each of a million files)
    if suffix in OTHER_SUFFIXES:
        return False
    image_format = IMAGE_SUFFIXES.get(suffix)
    if image_format is None and suffix not in UNREAD_SUFFIXES:
        image_format = sniff_format(first_bytes(SIGNATURE_BYTES))
        if image_format is None:
            left_out.unknown[suffix] += 1
            return False
    if image_format in readable_formats():
        return True
    reason = UNREAD_SUFFIXES[suffix] if image_format is None else UNREAD_FORMATS[image_format]
    left_out.images[suffix, reason] += 1
    return False


def _first_bytes(path: Path, count: int) -> bytes:
    """The first bytes of a regular file; none of what is not one, or cannot be read."""
    try:
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                return file.read(count) or b""
    except OSError:
        pass
    return b""
