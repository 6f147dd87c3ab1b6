"""Reading and checking a folder of captioned pictures: `train/`, `validation/`, `test/`, each with a metadata file.

The layout is that of `imagefolder` of `datasets`: pictures, and beside them a `metadata.jsonl`,

    {"file_name": "cat.jpg", "captions": ["a cat", "a grey cat"]}

or a `metadata.csv`. What is decided here:

1. A split is a folder, or a link to one, of that name or of one of its usual others (`val`). A folder without splits
   whose metadata file lies in it is `train` alone; its metadata file may also name pictures of splits
   (`train/cat.jpg`). Archives are not read, and named where pictures are missing.
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
import ntpath
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .records import CaptionFileError, Located, has_word, id_of, read_content, read_text
from .records import captions_of as checked_captions

logger = logging.getLogger(__name__)

Row = dict[str, Any]

ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
METADATA = ("metadata.jsonl", "metadata.csv")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_FILE_NAME, _CAPTIONS = ("file_name", "image", "filename"), ("captions", "caption", "text")
_SHOWN = 5


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
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    rows: dict[str, list[Row]] = {}
    for place in _places(root):
        for row in _read_place(place, missing):
            rows.setdefault(row["split"], []).append(row)
    _check_ids(root, rows)
    return rows


@dataclass
class _Place:
    """A folder with a metadata file: where it is, the split it stands for, and its name in front of those in it."""

    folder: Path
    root: Path
    split: str | None
    metadata: Path = field(init=False)

    def __post_init__(self) -> None:
        metadata_files = [self.folder / name for name in METADATA if (self.folder / name).is_file()]
        if len(metadata_files) > 1:
            raise CaptionFileError(f"{self.folder}: has {' and '.join(METADATA)}, expected one of them")
        if not metadata_files:
            name = self.folder.name
            raise CaptionFileError(
                f"{self.root}: the pictures of {name}/ have no captions in a {' or '.join(METADATA)} in it"
            )
        self.metadata = metadata_files[0]


def _places(root: Path) -> list[_Place]:
    """The splits of a folder; the folder itself where its own metadata file describes all."""
    if any((root / name).is_file() for name in METADATA):
        return [_Place(root, root, None)]
    folders: dict[str, Path] = {}
    for path in sorted(root.iterdir()):
        split = split_name(path.name)
        if split is None or not path.is_dir():
            continue
        if split in folders:
            raise CaptionFileError(f"{root}: {folders[split].name}/ and {path.name}/ are both {split}, expected one")
        folders[split] = path
    archives = sorted(path.name for path in root.iterdir() if path.name.lower().endswith(ARCHIVES))
    if not folders and archives:
        raise CaptionFileError(f"{root}: no train/ in it, but {_listing(archives)}; unpack it, archives are not read")
    if not folders:
        raise CaptionFileError(
            f"{root}: no train/ with pictures and a {METADATA[0]} in it, and no {METADATA[0]} of its own; it has "
            f"{_listing(sorted(path.name for path in root.iterdir())) or 'nothing'}"
        )
    return [_Place(folders[split], root, split) for split in SPLIT_NAMES if split in folders]


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
    name = value.replace("\\", "/")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    outside = name.startswith("/") or ".." in parts or ntpath.splitdrive(name)[0]
    if outside or "://" in name or "::" in name or "\0" in name:  # `datasets` takes "://" and "::" for remote files
        raise ValueError(f"field {key!r} is {reprlib.repr(value)}, expected a path inside the folder")
    return "/".join(parts)


# --- rows -----------------------------------------------------------------------------------------------------------


def _read_place(place: _Place, missing: str) -> list[Row]:
    rows = _merged(place)
    images = _ImageFiles(place)
    absent: list[str] = []
    for row in rows:
        row["image"], row["file_name"] = images.find(row["file_name"])
        row["split"] = place.split or split_name(row["file_name"].partition("/")[0]) or "train"
        row["image_id"] = row.get("image_id", row["file_name"])
        if row["image"] is None:
            absent.append(row["file_name"])
    if absent:
        problem = f"{place.metadata}: {len(absent)} of {len(rows)} pictures are missing: {_listing(absent)}"
        if missing == "error" or len(absent) == len(rows):
            archives = sorted(name for name in images.files if name.lower().endswith(ARCHIVES))
            hint = f"; unpack {_listing(archives)}, archives are not read" if archives else ""
            raise FileNotFoundError(f"{problem}. A picture is looked for beside {place.metadata.name}{hint}")
        logger.warning("%s; they are left out", problem)
    images.tell_left_out()
    return [row for row in rows if row["image"] is not None]


def _merged(place: _Place) -> list[Row]:
    """The rows of a metadata file, `file_name` as it is there; lines of one picture with a caption each are one row."""
    records = _records(place.metadata)
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
            f"{place.metadata}: {len(problems)} of {len(records)} lines cannot be used: "
            f"{'; '.join(problems[:_SHOWN])}{more}"
        )
    if not rows:
        raise CaptionFileError(f"{place.metadata}: no captions in it, expected at least one")
    return list(rows.values())


def _others(record: Mapping[str, Any]) -> Row:
    """Other fields of a record, for rewards and for captioners with inputs of their own; the id checked."""
    known = (*_FILE_NAME, *_CAPTIONS, "image_id", "split")
    others = {name: value for name, value in record.items() if name not in known}
    if record.get("image_id") not in (None, ""):
        others["image_id"] = id_of(record["image_id"], "field 'image_id'")
    return others


class _ImageFiles:
    """The files of a place: which picture a name means, and which files no line names."""

    def __init__(self, place: _Place) -> None:
        self.place = place
        self.files = set(_files_below(place.folder))
        self.used: set[str] = set()

    def find(self, name: str) -> tuple[str | None, str]:
        """The path of a picture, `None` if it is not there, and its name in the folder of all splits."""
        own = self.place.folder.name
        inner = name
        if name not in self.files and self.place.split and name.startswith(f"{own}/"):
            inner = name.removeprefix(f"{own}/")  # the metadata file names its own folder, too
        prefix = f"{own}/" if self.place.split else ""
        if inner not in self.files:
            return None, f"{prefix}{inner}"
        self.used.add(inner)
        return str(self.place.folder.absolute() / inner), f"{prefix}{inner}"

    def tell_left_out(self) -> None:
        """Warn of files that no line of the metadata file names."""
        left = sorted(self.files - self.used - set(METADATA))
        if left:
            logger.warning(
                "%s: %d files beside it are not named in it and left out: %s",
                self.place.metadata,
                len(left),
                _listing(left),
            )


def _files_below(folder: Path) -> Iterator[str]:
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


def _listing(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
