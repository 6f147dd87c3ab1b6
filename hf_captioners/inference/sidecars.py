"""Captions in text files beside the pictures, as the trainers of diffusion models read them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any

from ..data.files import check_can_be_made, system_errors, working_folder
from ..data.image_suffixes import IMAGE_SUFFIXES, UNREAD_SUFFIXES
from ..data.json_lines import NameSet
from ..data.remote_files import is_remote
from .caption_run import Share
from .image_archives import is_archive


@lru_cache(maxsize=256)
def _real_folder(folder: Path) -> Path:
    return folder.resolve()


def real_name(image: str | os.PathLike[str]) -> str:
    """Name of a picture that is the same whatever way leads to its folder."""
    path = Path(image)
    return str(_real_folder(path.parent) / path.name)


class SidecarError(ValueError):
    """Pictures that cannot have files beside them; the message says which and why."""


class Sidecars:
    """Writer of a text file beside each picture; a context manager.

    A file is there whole or not at all. Several captions of a picture are lines of its file, best first.

    Args:
        suffix (`str`, defaults to `".txt"`): of the files; `photos/a.jpg` gets `photos/a.txt`.

    Raises:
        SidecarError: the suffix does not begin with a dot, or is that of a picture.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.inference.sidecars import Sidecars
    >>> folder = Path(tempfile.mkdtemp())
    >>> with Sidecars(".txt") as sidecars:
    ...     sidecars.write({"image": str(folder / "a.jpg"), "caption": "a dog"})
    >>> (folder / "a.txt").read_text()
    'a dog\\n'

    ```
    """

    def __init__(self, suffix: str = ".txt") -> None:
        if PurePath(f"a{suffix}").suffix != suffix or not suffix:
            raise SidecarError(f"expected a suffix such as .txt, found {suffix!r}")
        if suffix.lower() in IMAGE_SUFFIXES or suffix.lower() in UNREAD_SUFFIXES:
            raise SidecarError(f"{suffix} is a suffix of pictures; expected one such as .txt")
        self.suffix = suffix
        self._parent: Path | None = None
        self._folder = Path()  # in the parent, for files that are not finished
        self._closing = contextlib.ExitStack()

    def path_of(self, image: str | os.PathLike[str]) -> Path:
        """The file beside a picture."""
        return Path(image).with_suffix(self.suffix)

    def check(self, images: Iterable[str | os.PathLike[str]], share: Share | None = None) -> int:
        """Check, before any work, that each picture can have a file of its own.

        Args:
            images (`Iterable[str | os.PathLike]`): the pictures, as [`find_images`] gives them.
            share ([`Share`], *optional*): of several processes, this one's.

        Returns:
            `int`: how many of the share have one already.

        Raises:
            SidecarError: a picture of an archive or of a server, a folder that may not be written, or two pictures
                of a folder whose names differ in nothing but their suffixes. One that is named twice is one picture.
        """
        existing, parent, named, taken = 0, None, NameSet(), NameSet()
        for place, image in enumerate(images):
            if is_remote(image) or is_archive(image):
                raise SidecarError(f"{image}: pictures of archives, tables and servers have no file beside them")
            path = self.path_of(image)
            if path.parent != parent:
                parent = path.parent
                try:
                    check_can_be_made(path.absolute())
                except OSError as error:
                    raise SidecarError(str(error)) from error
            if not named.add(real_name(image)):
                continue
            if not taken.add(real_name(path)):
                others = (other for other in sorted(parent.iterdir()) if self.path_of(other) == path)
                other = next(
                    other for other in others if other.name != PurePath(image).name and real_name(other) in named
                )
                raise SidecarError(f"{other} and {image} would both have {path}; rename one of them")
            existing += (share is None or share.has(place)) and path.exists()
        return existing

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the captions of a record; one with an `error` has none.

        Raises:
            OSError: the disk is full, or the like; there is no file then.
        """
        if "error" in record:
            return
        path = self.path_of(record["image"])
        captions = record["captions"] if "captions" in record else [record["caption"]]
        self._enter(path.parent)
        temporary = self._folder / path.name
        with system_errors(path):
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{' '.join(caption.split())}\n" for caption in captions)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)

    def _enter(self, parent: Path) -> None:
        if parent != self._parent:
            self._closing.close()
            self._folder = self._closing.enter_context(working_folder(parent, ".captions.", ".new"))
            self._parent = parent

    def __enter__(self) -> Sidecars:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()
        self._parent = None
