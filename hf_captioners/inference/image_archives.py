"""The pictures of files, folders and archives as rows to caption; those of archives are read one after the other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias, TypeGuard

from ..data.archive import ArchiveError, Member, archive_suffix, opened_archive
from ..data.limits import LimitError
from ..data.remote_files import RemoteFile, is_remote
from ..modeling.captioner_image_limits import MAX_BYTES, limit_of, too_many
from .image_files import LeftOutFiles, is_image, is_url
from .image_tables import TableImage, images_of_table

_Path: TypeAlias = str | os.PathLike[str]


class _Image(NamedTuple):
    """A picture of an archive: its name, itself, or why it cannot be read."""

    name: str
    member: Member | TableImage | None
    error: str = ""


def image_rows(
    paths: Iterable[_Path], wanted: Callable[[str], bool] | None = None, image_column: str = "image"
) -> Iterator[dict[str, Any]]:
    """Rows of pictures, for [`caption_rows`]: files are closed, pictures of archives are read, no more than asked for.

    Args:
        paths (`Iterable[str | os.PathLike]`): files, http(s) URLs, and archives (see `ARCHIVE_SUFFIXES`), of which the
            pictures are taken that a folder would be searched for; such as [`find_images`] gives them. Parquet files
            with a column of pictures are archives, too. All may be on other machines (see [`opened_file`]).
        wanted (`Callable[[str], bool]`, *optional*): says of a picture in an archive by its name whether it is to be
            read; the others come without `bytes`.
        image_column (`str`, defaults to `"image"`): of Parquet files: bytes, or `{"bytes", "path"}` as `datasets`
            writes pictures.

    Returns:
        `Iterator[dict]`: rows with `image`: the path, or `{"path", "bytes"}` of a member, called `photos.zip/a.jpg` or
        `photos.parquet/0`, or `{"path", "error"}` of a member or archive that cannot be read.

    Example:

    ```python
    >>> import tempfile, zipfile
    >>> from pathlib import Path
    >>> from hf_captioners.inference.image_archives import image_rows
    >>> path = Path(tempfile.mkdtemp(), "photos.zip")
    >>> with zipfile.ZipFile(path, "w") as archive:
    ...     archive.writestr("a.jpg", b"...")
    ...     archive.writestr("a.txt", "a cat")
    >>> [(Path(row["image"]["path"]).name, row["image"]["bytes"]) for row in image_rows([path])]
    [('a.jpg', b'...')]

    ```
    """
    for path in paths:
        if not is_archive(path):
            yield {"image": {"path": path, "bytes": RemoteFile(path)} if _is_in_bucket(path) else path}
            continue
        for image in _images_of(path, LeftOutFiles(), image_column):
            read = wanted is None or wanted(image.name)
            yield {"image": {"path": image.name, **(_content(image) if read else {})}}


def image_names(paths: Iterable[_Path], left_out: LeftOutFiles, image_column: str = "image") -> Iterator[_Path]:
    """The names of the rows that [`image_rows`] gives for the same paths.

    Args:
        paths (`Iterable[str | os.PathLike]`): as there.
        left_out ([`LeftOutFiles`]): counts the files of archives that are not taken.
        image_column (`str`, defaults to `"image"`): as there.

    Returns:
        `Iterator[str | os.PathLike]`
    """
    for path in paths:
        if is_archive(path):
            yield from (image.name for image in _images_of(path, left_out, image_column))
        else:
            yield path


def is_archive(path: _Path) -> bool:
    """Tell whether the pictures of a path are in a file: an archive or a table."""
    return archive_suffix(path) != "" or _is_parquet(path)


def _is_in_bucket(path: _Path) -> TypeGuard[str]:
    """Tell whether it is the address of a file that is read through fsspec."""
    return is_remote(path) and not is_url(path)


def _is_parquet(path: _Path) -> bool:
    name = os.fspath(path).lower()
    return (name.partition("?")[0] if is_remote(path) else name).endswith(".parquet")


def _images_of(archive: _Path, left_out: LeftOutFiles, image_column: str) -> Iterator[_Image]:
    """The pictures of an archive; behind those in front of it, what is the matter with it."""
    if _is_parquet(archive):
        yield from (_Image(*image) for image in images_of_table(archive, image_column))
        return
    try:
        with opened_archive(archive) as members:
            for member in members:
                name = f"{archive}/{member.name}"
                first_bytes = _no_bytes if member.problem else member.first_bytes
                try:
                    if not member.is_hidden and is_image(member.name, first_bytes, left_out):
                        yield _Image(name, None if member.problem else member, member.problem)
                except ArchiveError as error:
                    yield _Image(name, None, str(error))
    except (ArchiveError, LimitError, OSError) as error:
        yield _Image(str(archive), None, str(error))


def _no_bytes(count: int) -> bytes:
    return b""


def _content(image: _Image) -> dict[str, Any]:
    if image.member is None:
        return {"error": image.error}
    max_bytes = limit_of("bytes", MAX_BYTES)
    if image.member.size > max_bytes:
        return {"error": str(too_many(image.member.size, max_bytes, "bytes"))}
    try:
        return {"bytes": image.member.read(max_bytes)}
    except ArchiveError as error:
        return {"error": str(error)}
