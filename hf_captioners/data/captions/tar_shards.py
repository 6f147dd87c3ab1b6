"""Tars in WebDataset's layout, one after the other: a picture and its captions side by side under one name.

`a.jpg` and `a.txt` (captions, a line each), or `a.jpg` and `a.json` with a bare list of captions, as DiCO's code reads
them, or with an object that has `caption` or `captions`, as img2dataset writes it. What is decided here:

1. The name of a sample is that of its files up to the first dot. Its files follow each other in the tar; further ones
   of it (`a.cls`) are passed over. Where there are several of captions, a list wins, then the text.
2. The id of a picture is the number of COCO's names (`177828__COCO_train2014_000000379613` is 379613), so that the
   samples of one picture are one, whatever tar they are in; of other names it is the name.
3. A picture without captions, captions without a picture, an empty member, and one whose name leads out of the tar are
   errors that name tar and member, or are left out. A tar that is cut off or damaged is left out from there on, then.
"""

from __future__ import annotations

import glob
import json
import os
import re
import reprlib
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ...extras import of_extra
from ...modeling.captioner_image_limits import MAX_BYTES, limit_of
from ..archive import ArchiveError, Member, archive_suffix, opened_archive
from ..bad_rows import BadRows
from ..braces import expand_braces
from ..image_suffixes import IMAGE_SUFFIXES
from ..limits import LimitError
from ..remote_files import is_remote
from ..row_stream import BUFFER_SIZE, RowStream
from .captioned import captioned, captioned_stream
from .folder_files import split_name
from .metadata_files import METADATA, caption_lines
from .records import CaptionFileError, captions_of, id_of

with of_extra():
    import datasets

_Path: TypeAlias = str | os.PathLike[str]
_COCO = re.compile(r"COCO_[A-Za-z0-9]+_(\d{12})$")
_TEXTS = (".json", ".txt")
_VERSION = 2  # of the rows, so that older caches are not read
_LOOKED_AT = 20  # members that tell what a tar is
_FAULT = "fault"  # column: why a sample cannot be used, and then it is nothing else

FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "image_id": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
        "file_name": datasets.Value("string"),
        "shard": datasets.Value("string"),
        _FAULT: datasets.Value("string"),
    }
)


def tar_shards(source: _Path) -> list[str]:
    """The tars in WebDataset's layout that a name stands for.

    Args:
        source (`str` or `os.PathLike`): a tar, or a pattern of several: `shards/{000000..000113}.tar`, `shards/*.tar`.

    Returns:
        `list[str]`: in their order; empty if it is something else, such as the archive of a folder.

    Raises:
        FileNotFoundError: a tar of a pattern with braces is not there, or none fits one with `*`.
    """
    name = os.fspath(source)
    if not archive_suffix(name).startswith((".t",)):
        return []
    tars = [tar for one in expand_braces(name) for tar in (sorted(glob.glob(one)) if "*" in one else [one])]  # noqa: PTH207
    absent = [tar for tar in tars if not is_remote(tar) and not Path(tar).exists()]
    if absent or not tars:
        if len(tars) == 1:
            return []  # the message is that of a file
        raise FileNotFoundError(f"{name}: {len(absent)} of {len(tars)} tars are missing: {', '.join(absent[:5])}")
    return tars if len(tars) > 1 or is_webdataset(tars[0]) else []


def is_webdataset(tar: _Path) -> bool:
    """Tell whether the first files of a tar are of this layout, not those of a folder of captioned pictures."""
    names: list[PurePosixPath] = []
    try:
        with opened_archive(tar) as members:
            for member in members:
                names.append(PurePosixPath(member.name))
                if len(names) == _LOOKED_AT:
                    break
    except (ArchiveError, OSError):
        return False
    if any(path.name in METADATA or split_name(path.parts[0]) is not None for path in names):
        return False
    suffixes: dict[str, set[str]] = {}
    for path in names:
        key, suffix = _key(path)
        suffixes.setdefault(key, set()).add(suffix)
    return any(own & set(_TEXTS) and own & IMAGE_SUFFIXES.keys() for own in suffixes.values())


def _key(path: PurePosixPath) -> tuple[str, str]:
    """The name of a sample, and the last suffix of the file in lower case."""
    return os.fspath(path.with_name(path.name.partition(".")[0] or path.name)), path.suffix.lower()


def tar_rows(
    tars: Sequence[tuple[str, int, int]], skips: bool = False, version: int = _VERSION
) -> Iterator[dict[str, Any]]:
    """Read the samples of tars.

    Args:
        tars (`Sequence[tuple[str, int, int]]`): names, sizes and times, as [`stamps`] gives them; only the names count.
        skips (`bool`, defaults to `False`): give a row with `fault` in the place of an error.
        version (`int`): of the rows.

    Yields:
        `dict`: `image` (`{"path", "bytes"}`), `image_id` (`str`), `captions`, `file_name`, `shard` and `fault`; either
        that is `None` or the sample is.

    Raises:
        CaptionFileError, ArchiveError, LimitError: a tar is damaged, or a sample cannot be used; the message names tar
            and member.
    """
    for tar, _, _ in tars:
        try:
            for row in _samples(tar):
                if isinstance(row, dict):
                    yield {**row, "shard": tar, _FAULT: None}
                elif skips:
                    yield _fault_row(tar, row)
                else:
                    raise row
        except (ArchiveError, LimitError) as error:  # of the tar, behind these samples
            if not skips:
                raise
            yield _fault_row(tar, error)


def _fault_row(tar: str, error: ValueError) -> dict[str, Any]:
    return {**dict.fromkeys(FEATURES), "captions": [], "shard": tar, _FAULT: str(error)}


def _samples(tar: str) -> Iterator[dict[str, Any] | ValueError]:
    """The samples of a tar, or what is wrong with one."""
    sample = _Sample(tar, "")
    with opened_archive(tar) as members:
        for member in members:
            if member.problem:
                yield ArchiveError(f"{tar}: the member {member.name!r} {member.problem}")
                continue
            if member.is_hidden:
                continue
            key, suffix = _key(PurePosixPath(member.name))
            if key != sample.key:
                yield from sample.rows()
                sample = _Sample(tar, key)
            sample.add(member, suffix)
    yield from sample.rows()


class _Sample:
    """The files of one name.

    Args:
        tar (`str`), key (`str`): where they are.
    """

    def __init__(self, tar: str, key: str) -> None:
        self.tar, self.key = tar, key
        self.image: tuple[str, bytes] | None = None
        self.captions: dict[str, list[str]] = {}
        self.text = ""  # name of a file of captions
        self.fault: ValueError | None = None

    def add(self, member: Member, suffix: str) -> None:
        """Read a file of it; the first fault is that of the sample."""
        if self.fault is None and (suffix in _TEXTS or suffix in IMAGE_SUFFIXES):
            try:
                self._read(member, suffix)
            except ArchiveError:
                raise  # of the tar
            except ValueError as error:  # LimitError, UnicodeDecodeError, and what is no JSON, too
                self.fault = CaptionFileError(f"{self.tar}: the member {member.name!r}{error}")

    def _read(self, member: Member, suffix: str) -> None:
        """Read a file of it; a ValueError says what is wrong with it, to follow its name."""
        if member.size == 0:
            raise ValueError(f" is empty, expected {'captions' if suffix in _TEXTS else 'a picture'}")
        try:
            content = member.read(limit_of("bytes", MAX_BYTES))
        except LimitError as error:
            raise ValueError(f" has {error}") from error
        if suffix in IMAGE_SUFFIXES:
            if self.image is not None:
                raise ValueError(f" has the name of {self.image[0]!r}, expected one picture of a name")
            self.image = member.name, content
            return
        self.text = member.name
        try:
            found = _listed(content) if suffix == ".json" else caption_lines(content.decode("utf-8-sig"))
            if found is not None:
                self.captions[suffix] = captions_of(found, "its content")
        except (ValueError, RecursionError) as error:
            raise ValueError(f": {error}") from error

    def rows(self) -> Iterator[dict[str, Any] | ValueError]:
        """Its row, once it is whole, or what is wrong with it; none of files that are neither picture nor captions."""
        captions = next((self.captions[suffix] for suffix in _TEXTS if suffix in self.captions), None)
        if self.fault is not None:
            yield self.fault
        elif self.image is None:
            if self.text:
                yield CaptionFileError(f"{self.tar}: the member {self.text!r} has no picture of its name beside it")
        elif captions is None:
            yield CaptionFileError(
                f"{self.tar}: the member {self.image[0]!r} has no captions beside it, in {self.key}.txt or "
                f"{self.key}.json"
            )
        else:
            name, content = self.image
            number = _COCO.search(self.key)
            image_id = int(number[1]) if number else id_of(self.key, "its name")
            image = {"path": f"{self.tar}/{name}", "bytes": content}
            yield {"image": image, "image_id": str(image_id), "captions": captions, "file_name": name}


def _listed(content: bytes) -> list[Any] | None:
    """The captions of a JSON file; `None` of an object without some."""
    value = json.loads(content)
    if isinstance(value, dict):
        value = value.get("captions", value.get("caption"))
        return [value] if isinstance(value, str) else value if isinstance(value, list) else None
    if not isinstance(value, list):
        raise ValueError(f"is {reprlib.repr(value)}, expected a list of captions")
    return value


def stamps(tars: Sequence[str]) -> list[tuple[str, int, int]]:
    """Names, sizes and times of tars, by which a cache of their rows knows that one was changed."""
    found = []
    for tar in tars:
        status = None if is_remote(tar) else Path(tar).stat()
        name = tar if status is None else os.fspath(Path(tar).absolute())
        found.append((name, 0, 0) if status is None else (name, status.st_size, status.st_mtime_ns))
    return found


def stream_tars(
    tars: Sequence[str],
    source: str = "the tars",
    *,
    buffer_size: int = BUFFER_SIZE,
    check_images: bool = False,
    bad_rows: BadRows | None = None,
) -> RowStream:
    """Read tars as they go, without a copy.

    Args:
        tars (`Sequence[str]`): their names, see [`tar_shards`].
        source (`str`): name of all of them, for messages.
        buffer_size, check_images, bad_rows: as of [`captioned_stream`].

    Returns:
        [`RowStream`]: rows with `image`, `image_id`, `captions` and `file_name`, a file a tar. Samples of one picture
        that follow each other are one.
    """
    skips = bad_rows is not None and bad_rows.skips
    features = datasets.Features({**FEATURES, "image": datasets.Image(decode=False)})
    rows = datasets.IterableDataset.from_generator(
        tar_rows, features, gen_kwargs={"tars": stamps(tars), "skips": skips, "version": _VERSION}
    ).remove_columns("shard")
    return captioned_stream(
        rows,
        source=source,
        buffer_size=buffer_size,
        fault_column=_FAULT,
        check_images=check_images,
        bad_rows=bad_rows,
    )


def load_tars(tars: Sequence[str], bad_rows: BadRows | None = None) -> datasets.Dataset:
    """Load tars as a data set; the pictures are copied into the cache of `datasets`, once.

    Args:
        tars (`Sequence[str]`): their names, see [`tar_shards`].
        bad_rows ([`BadRows`], *optional*): gets samples that cannot be used, those with the name of one in another tar
            among them, and the rest of a damaged tar; by default they are errors.

    Returns:
        `datasets.Dataset`: rows with `image`, `image_id`, `captions` and `file_name`, one of each picture.

    Raises:
        CaptionFileError, ArchiveError, LimitError: see [`tar_rows`]; two samples have the same name; none can be used.
    """
    bad_rows = bad_rows or BadRows()
    source = tars[0] if len(tars) == 1 else f"{tars[0]} … {tars[-1]}"
    gen_kwargs = {"tars": stamps(tars), "skips": bad_rows.skips, "version": _VERSION}
    try:
        rows = datasets.Dataset.from_generator(tar_rows, FEATURES, gen_kwargs=gen_kwargs, writer_batch_size=100)
    except datasets.exceptions.DatasetGenerationError as error:
        if isinstance(error.__cause__, (ValueError, OSError)):
            raise error.__cause__ from None
        raise
    good = _good_samples(rows, bad_rows)
    if not good:
        found = bad_rows.messages[-1] if bad_rows.count else "they are empty"
        raise CaptionFileError(f"{source}: no samples that can be used, expected at least one: {found}")
    rows = rows if len(good) == len(rows) else rows.select(good)
    return captioned(rows.remove_columns(["shard", _FAULT]), source=source, bad_rows=bad_rows)


def _good_samples(rows: datasets.Dataset, bad_rows: BadRows) -> list[int]:
    """Numbers of the samples without a fault, and with a name that no other tar has before."""
    good: list[int] = []
    first: dict[str, str] = {}
    columns = (rows[name][:] for name in ("file_name", "shard", _FAULT))
    for number, (name, shard, fault) in enumerate(zip(*columns, strict=True)):
        if fault is not None:
            bad_rows.add(CaptionFileError(fault))
        elif first.setdefault(name, shard) != shard:
            bad_rows.add(
                CaptionFileError(f"the sample {name!r} is in {first[name]} and in {shard}; names must be unique")
            )
        else:
            good.append(number)
    return good
