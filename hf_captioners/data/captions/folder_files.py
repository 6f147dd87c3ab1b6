"""Reading and checking a folder of captioned pictures: `train/`, `validation/`, `test/`, each with a metadata file.

The layout is that of `imagefolder` of `datasets`: pictures, and beside them a `metadata.jsonl`,

    {"file_name": "cat.jpg", "captions": ["a cat", "a grey cat"]}

or a `metadata.csv`. What is decided here:

1. A split is a folder, or a link to one, of that name or of one of its usual others (`val`). A folder without splits
   whose metadata file lies in it is `train` alone; its metadata file may also name pictures of splits
   (`train/cat.jpg`). A split, or all of it, may be an archive (`train.zip`), and pictures may lie in archives beside
   the metadata file (`folder_images`).
2. `captions` is a list; `caption` and `text` are a caption or a list of them. Lines of one picture with a caption each
   are put together; two lists of one picture are an error. `image` and `filename` are read like `file_name`.
3. The `image_id` of a row is that of the metadata file, or else the picture's path in the folder, `train/cat.jpg`: the
   same today and tomorrow, so that features can be kept by it.
4. The whole folder is checked before a row is used. One error names the file, the first lines that cannot be used and
   what is in them: no caption, a caption that is no text or has no word, a name that leads out of the folder.
"""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..archive import UNREAD_SUFFIXES, archive_suffix, inner_name
from .folder_images import FolderImages, listing, unpacked_folder, unread_archives
from .records import CaptionFileError, Located, has_word, id_of, read_content, read_text
from .records import captions_of as checked_captions

logger = logging.getLogger(__name__)

Row = dict[str, Any]

METADATA = ("metadata.jsonl", "metadata.csv")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_FILE_NAME, _CAPTIONS = ("file_name", "image", "filename"), ("captions", "caption", "text")
_SHOWN = 5  # lines in a message


def split_name(name: str) -> str | None:
    """The split that a folder's name stands for: `validation` of `val`; `None` of other names."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def chosen_splits(folder: str | os.PathLike[str], split: str, splits: Mapping[str, Any]) -> list[str]:
    """The names of splits in `val+test` that a folder has; ValueError if it lacks one."""
    if split == "all":
        return list(splits)
    names = [split_name(part.strip()) or part.strip() for part in split.split("+")]
    for name in names:
        if name not in splits:
            raise CaptionFileError(f"{folder}: no split {name!r} in it, but {', '.join(splits)}")
    return list(dict.fromkeys(names))


def read_folder(folder: str | os.PathLike[str], missing: str = "error") -> dict[str, list[Row]]:
    """Read all splits of a folder.

    Args:
        folder (`str` or `os.PathLike`): see the top of this module.
        missing (`str`, defaults to `"error"`): `"drop"` leaves out pictures that are not there, with a warning.

    Returns:
        `dict[str, list[dict]]`: split -> its rows in the order of the metadata file, with `image` (`str`, a path),
        `image_id`, `file_name` (in the folder), `split`, `captions`, and whatever else the metadata file has.

    Raises:
        FileNotFoundError: there is no such folder, or pictures are missing.
        CaptionFileError: a split has no captions, or lines of its metadata file cannot be used.
    """
    root = Path(folder)
    if not is_folder(root):
        raise FileNotFoundError(f"{root}: no such folder")
    rows: dict[str, list[Row]] = {}
    for place in _places(root if root.is_dir() else unpacked_folder(root, keep=split_name), root):
        for row in _read_place(place, missing):
            rows.setdefault(row["split"], []).append(row)
    _check_ids(root, rows)
    return rows


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a folder, or by its name an archive of one."""
    return Path(path).is_dir() or (archive_suffix(path) != "" and Path(path).is_file())


@dataclass
class _Place:
    """A folder with a metadata file.

    Attributes:
        folder (`Path`): where its files are.
        shown (`Path`): what the user calls it, which is another if it was unpacked.
        split (`str`, *optional*): the split that it stands for.
        archives (`list[Path]`): archives beside it that may have its pictures.
    """

    folder: Path
    shown: Path
    split: str | None = None
    archives: list[Path] = field(default_factory=list)
    metadata: Path = field(init=False)
    own: str = field(init=False)  # its name in front of those in it

    def __post_init__(self) -> None:
        metadata_files = [self.folder / name for name in METADATA if (self.folder / name).is_file()]
        if len(metadata_files) > 1:
            raise CaptionFileError(f"{self.shown}: has {' and '.join(METADATA)}, expected one of them")
        if not metadata_files:
            raise CaptionFileError(
                f"{self.shown.parent}: the pictures of {_called(self.shown)} have no captions in a "
                f"{' or '.join(METADATA)} in it"
            )
        self.metadata = metadata_files[0]
        self.own = "" if self.split is None else _stem(self.shown)


def _stem(path: Path) -> str:
    """The name of a folder, or of an archive without its suffix."""
    return path.name if path.is_dir() else path.name[: -len(archive_suffix(path)) or None]


def _called(path: Path) -> str:
    return path.name if archive_suffix(path) else f"{path.name}/"


def _places(root: Path, shown: Path) -> list[_Place]:
    """The splits of a folder; the folder itself where its own metadata file describes all."""
    if any((root / name).is_file() for name in METADATA):
        return [_Place(root, shown)]
    names = sorted(path.name for path in root.iterdir())
    splits = _splits(root, shown, names)
    archives = [name for name in names if archive_suffix(name) and (root / name).is_file()]
    if not splits and len(archives) == 1:
        return _places(unpacked_folder(root / archives[0], keep=split_name), shown / archives[0])
    if not splits:
        unread = [name for name in names if name.lower().endswith(UNREAD_SUFFIXES)]
        raise CaptionFileError(
            f"{shown}: no train/ with pictures and a {METADATA[0]} in it, and no {METADATA[0]} of its own; it has "
            f"{listing(names) or 'nothing'}{unread_archives(unread)}"
        )
    others = [root / name for name in archives if name not in splits.values()]
    return [
        _Place(
            root / splits[split] if (root / splits[split]).is_dir() else unpacked_folder(root / splits[split]),
            shown / splits[split],
            split,
            others,
        )
        for split in SPLIT_NAMES
        if split in splits
    ]


def _splits(root: Path, shown: Path, names: list[str]) -> dict[str, str]:
    """Split -> the name of its folder or archive. An archive beside the folder that was made of it is left alone."""
    splits: dict[str, str] = {}
    for is_taken in (lambda path: path.is_dir(), lambda path: path.is_file() and archive_suffix(path)):
        names_of: dict[str, str] = {}
        for name in names:
            split = split_name(_stem(root / name))
            if split is not None and split not in splits and is_taken(root / name):
                if split in names_of:
                    both = f"{_called(Path(names_of[split]))} and {_called(Path(name))}"
                    raise CaptionFileError(f"{shown}: {both} are both {split}, expected one")
                names_of[split] = name
        splits |= names_of
    return splits


# --- metadata files -------------------------------------------------------------------------------------------------


def _records(path: Path) -> list[Located]:
    """The records of a metadata file, each with its place."""
    if path.suffix == ".csv":
        return list(_csv_records(path))
    content = read_content(path)
    return content if isinstance(content, list) else [("line 1", content)]


def _csv_records(path: Path) -> Iterator[Located]:
    text = read_text(path)
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=header.count), strict=True)
    try:
        for record in reader:
            where = f"line {reader.line_num}"
            if None in record or None in record.values():
                raise CaptionFileError(
                    f"{path}: {where}: has not the {len(reader.fieldnames or ())} fields of the first line"
                )
            yield where, record
    except csv.Error as error:  # the record begins behind the last line that was read
        raise CaptionFileError(f"{path}: line {reader.line_num + 1}: not CSV: {error}") from error


def _parse(record: Any, is_csv: bool) -> tuple[str, list[str], bool]:
    """The name of the picture, its captions, and whether they are a list; ValueError says what is wrong."""
    if not isinstance(record, dict):
        raise ValueError(f"is {reprlib.repr(record)}, expected an object with 'file_name' and 'captions'")
    name, key = _only(record, _FILE_NAME), _only(record, _CAPTIONS)
    captions = record[key]
    if is_csv and isinstance(captions, str) and captions.lstrip().startswith("["):
        try:
            captions = json.loads(captions)
        except ValueError as error:
            raise ValueError(f"field {key!r} is {reprlib.repr(captions)}, which is no JSON list: {error}") from error
    is_list = isinstance(captions, list)
    if isinstance(captions, str) and (is_csv or key != "captions"):
        captions = [captions]
    checked = checked_captions(captions, f"field {key!r}")
    for index, caption in enumerate(checked):
        if not has_word(caption):
            where = f"field {key!r}[{index}]" if is_list else f"field {key!r}"
            raise ValueError(f"{where} is {reprlib.repr(caption)}, expected a caption with a word in it")
    return _inner_name(record[name], name), checked, is_list


def _only(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    present = [name for name in names if name in record]
    if not present:
        raise ValueError(f"has {', '.join(map(repr, record)) or 'nothing'}, expected {' or '.join(map(repr, names))}")
    return present[0]


def _inner_name(value: Any, key: str) -> str:
    """A path inside the folder, with slashes; the metadata file of someone else never reaches outside of it."""
    if not isinstance(value, str) or not value.strip("/"):
        raise ValueError(f"field {key!r} is {reprlib.repr(value)}, expected the name of a picture")
    name = inner_name(value)
    if name is None or "://" in value or "::" in value:  # `datasets` takes "://" and "::" for remote files
        raise ValueError(f"field {key!r} is {reprlib.repr(value)}, expected a path inside the folder")
    return name


# --- rows -----------------------------------------------------------------------------------------------------------


def _read_place(place: _Place, missing: str) -> list[Row]:
    rows = _merged(place)
    images = FolderImages(place.folder, place.own, place.archives)
    metadata = place.shown / place.metadata.name
    absent: list[str] = []
    for row in rows:
        row["image"], row["file_name"] = images.find(row["file_name"])
        row["split"] = place.split or split_name(row["file_name"].partition("/")[0]) or "train"
        row["image_id"] = row.get("image_id", row["file_name"])
        if row["image"] is None:
            absent.append(row["file_name"])
    if absent:
        problem = f"{metadata}: {len(absent)} of {len(rows)} pictures are missing: {listing(absent)}"
        if missing == "error" or len(absent) == len(rows):
            raise FileNotFoundError(f"{problem}. A picture is looked for beside {metadata.name}{images.places}")
        logger.warning("%s; they are left out", problem)
    if left := images.left_out(METADATA):
        logger.warning(
            "%s: %d files beside it are not named in it and left out: %s", metadata, len(left), listing(left)
        )
    return [row for row in rows if row["image"] is not None]


def _merged(place: _Place) -> list[Row]:
    """The rows of a metadata file, `file_name` as it is there; lines of one picture with a caption each are one row."""
    records = _records(place.metadata)
    metadata = place.shown / place.metadata.name
    rows: dict[str, Row] = {}
    first: dict[str, tuple[str, bool]] = {}
    problems: list[str] = []
    for where, record in records:
        try:
            name, captions, is_list = _parse(record, place.metadata.suffix == ".csv")
            if name not in rows:
                rows[name] = {**_others(record), "file_name": name, "captions": captions}
                first[name] = where, is_list
            elif is_list or first[name][1]:
                raise ValueError(f"picture {name!r} is already at {first[name][0]}; expected every picture once")
            else:
                rows[name]["captions"] += captions
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CaptionFileError(
            f"{metadata}: {len(problems)} of {len(records)} lines cannot be used: {'; '.join(problems[:_SHOWN])}{more}"
        )
    if not rows:
        raise CaptionFileError(f"{metadata}: no captions in it, expected at least one")
    return list(rows.values())


def _others(record: Mapping[str, Any]) -> Row:
    """Other fields of a record, for rewards and for captioners with inputs of their own; the id checked."""
    known = (*_FILE_NAME, *_CAPTIONS, "image_id", "split")
    others = {name: value for name, value in record.items() if name not in known}
    if record.get("image_id") not in (None, ""):
        others["image_id"] = id_of(record["image_id"], "field 'image_id'")
    return others


def _check_ids(root: Path, rows: Mapping[str, Iterable[Row]]) -> None:
    """Ids are unique in a split, and all of them are numbers or all are names."""
    everything = [row for split in rows.values() for row in split]
    if len({type(row["image_id"]) for row in everything}) > 1:
        for row in everything:
            row["image_id"] = str(row["image_id"])
    for split, members in rows.items():
        first: dict[Any, Row] = {}
        for row in members:
            other = first.setdefault(row["image_id"], row)
            if other is not row:
                raise CaptionFileError(
                    f"{root}: {split}: {other['file_name']} and {row['file_name']} have the same image_id "
                    f"{row['image_id']!r}; ids must be unique"
                )
