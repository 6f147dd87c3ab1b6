"""Captions of named pictures: metadata files in JSONL, CSV and Parquet, and text files beside the pictures.

A record names a picture (`file_name`, `image` or `filename`) and has its captions: `captions` is a list; `caption` and
`text` are a caption or a list of them. A text file has the name of its picture and `.txt`; each of its lines is a
caption.
"""

from __future__ import annotations

import csv
import io
import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ...extras import of_extra
from ..archive import inner_name
from ..bad_rows import BadRows
from ..files import regular_file
from ..image_suffixes import IMAGE_SUFFIXES
from .records import CaptionFileError, Located, has_word, id_of, read_content, read_text
from .records import captions_of as checked_captions

Row = dict[str, Any]

METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
SIDECAR = ".txt"
PARQUET_MAGIC = b"PAR1"

_Path: TypeAlias = str | os.PathLike[str]
_FILE_NAME, _CAPTIONS = ("file_name", "image", "filename"), ("captions", "caption", "text")
_SHOWN = 5  # lines in a message


@dataclass(frozen=True)
class Records:
    """Records of captioned pictures.

    Attributes:
        source (`str`): the file, for messages.
        located (`list[tuple[str, Any]]`): records and their places.
        are_text (`bool`, defaults to `False`): whether all values are text, as in CSV, so that a list is JSON.
        unit (`str`, defaults to `"lines"`): what a record is called.
    """

    source: str
    located: list[Located]
    are_text: bool = False
    unit: str = "lines"


# --- files ----------------------------------------------------------------------------------------------------------


def read_metadata(path: Path, shown: _Path | None = None, bad_rows: BadRows | None = None) -> Records:
    """The records of a metadata file.

    Args:
        path (`Path`): JSONL, JSON, CSV or Parquet, by its suffix.
        shown (`str` or `os.PathLike`, *optional*): name of the file in messages.
        bad_rows ([`BadRows`], *optional*): gets lines of a table with too few or too many fields, and broken lines of
            JSONL; by default the first is an error.

    Returns:
        [`Records`]

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: it cannot be read.
    """
    source = os.fspath(path if shown is None else shown)
    if path.suffix == ".csv":
        return Records(source, list(csv_records(source, read_text(path), bad_rows)), are_text=True)
    if path.suffix == ".parquet":
        return Records(source, parquet_records(path), unit="rows")
    content = read_content(path, bad_rows)
    return Records(source, content if isinstance(content, list) else [("line 1", content)])


def csv_records(path: _Path, text: str, bad_rows: BadRows | None = None) -> Iterator[Located]:
    """The records of a table of text whose first line has the names; between them a comma, semicolon, tab or bar.

    Args:
        path (`str` or `os.PathLike`): for messages.
        text (`str`): the table.
        bad_rows ([`BadRows`], *optional*): gets lines that have not as many fields as the first one.

    Raises:
        CaptionFileError: a line has not as many fields as the first one, or is no CSV.
    """
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t|", key=header.count), strict=True)
    try:
        for record in reader:
            where = f"line {reader.line_num}"
            if None in record or None in record.values():
                wrong = f"{path}: {where}: has not the {len(reader.fieldnames or ())} fields of the first line"
                (bad_rows or BadRows()).add(CaptionFileError(wrong))
            else:
                yield where, record
    except csv.Error as error:  # the record begins behind the last line that was read
        raise CaptionFileError(f"{path}: line {reader.line_num + 1}: not CSV: {error}") from error


def parquet_records(path: _Path) -> list[Located]:
    """The rows of a Parquet file.

    Args:
        path (`str` or `os.PathLike`): the file.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: it is no Parquet file, or a damaged one.
        ImportError: pyarrow is not installed.
    """
    with of_extra():
        import pyarrow
        from pyarrow import parquet
    try:
        rows = parquet.read_table(regular_file(os.fspath(path), "Parquet file")).to_pylist()
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise CaptionFileError(f"{path}: cannot be read as Parquet: {error}") from error
    return [(f"row {number}", row) for number, row in enumerate(rows)]


# --- text files beside pictures -------------------------------------------------------------------------------------


def sidecar_names(names: Iterable[str]) -> dict[str, list[str]]:
    """Text files that have the name of a picture beside them.

    Args:
        names (`Iterable[str]`): of all files, with slashes.

    Returns:
        `dict[str, list[str]]`: text file -> pictures of its name, sorted.

    Example:

    ```python
    >>> from hf_captioners.data.captions.metadata_files import sidecar_names
    >>> sidecar_names(["a/cat.txt", "a/cat.JPG", "cat.png", "README.txt"])
    {'a/cat.txt': ['a/cat.JPG']}

    ```
    """
    images: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for name in sorted(names):
        path = PurePosixPath(name)
        if path.suffix.lower() == SIDECAR:
            texts[name] = os.fspath(path.with_suffix(""))
        elif path.suffix.lower() in IMAGE_SUFFIXES:
            images.setdefault(os.fspath(path.with_suffix("")), []).append(name)
    return {name: images[stem] for name, stem in texts.items() if stem in images}


def read_sidecars(folder: Path, names: Iterable[str], shown: _Path, bad_rows: BadRows | None = None) -> Records:
    """The captions of the text files beside pictures.

    Args:
        folder (`Path`): where the files are.
        names (`Iterable[str]`): of all files in it.
        shown (`str` or `os.PathLike`): name of the folder in messages.
        bad_rows ([`BadRows`], *optional*): gets text files that cannot be used; by default the first is an error.

    Returns:
        [`Records`]: in the order of the names.

    Raises:
        CaptionFileError: a text file cannot be read, or belongs to several pictures.
    """
    located: list[Located] = []
    for name, images in sidecar_names(names).items():
        try:
            if len(images) > 1:
                raise CaptionFileError(f"{shown}: {name} belongs to {' and '.join(images)}, expected one picture")
            captions = caption_lines(read_text(folder / name))
        except CaptionFileError as error:
            (bad_rows or BadRows()).add(error)
        else:
            located.append((name, {"file_name": images[0], "captions": captions}))
    return Records(os.fspath(shown), located, unit="text files")


def caption_lines(text: str) -> list[str]:
    """The captions of a text file: its lines, but for empty ones."""
    return [line.strip() for line in text.replace("\r", "\n").split("\n") if line.strip()]


# --- rows -----------------------------------------------------------------------------------------------------------


def merged_rows(records: Records, bad_rows: BadRows | None = None) -> list[Row]:
    """Rows of records; those of one picture with a caption each are one row.

    Args:
        records ([`Records`]): see the top of this module.
        bad_rows ([`BadRows`], *optional*): gets those that cannot be used; by default they are one error.

    Returns:
        `list[dict]`: with `file_name` (`str`, with slashes, inside the folder), `captions` (`list[str]`), `image_id`
        where the record has one, and its other fields.

    Raises:
        CaptionFileError: records cannot be used (some are named), or there are none.
    """
    rows: dict[str, Row] = {}
    first: dict[str, tuple[str, bool]] = {}
    problems: list[str] = []
    for where, record in records.located:
        try:
            name, captions, is_list = _parse(record, records.are_text)
            if name not in rows:
                rows[name] = {**_others(record), "file_name": name, "captions": captions}
                first[name] = where, is_list
            elif is_list or first[name][1]:
                raise ValueError(f"picture {name!r} is already at {first[name][0]}; expected every picture once")
            else:
                rows[name]["captions"] += captions
        except ValueError as error:
            problems.append(f"{where}: {error}")
    if bad_rows is not None and bad_rows.skips:
        for problem in problems:
            bad_rows.add(CaptionFileError(f"{records.source}: {problem}"))
    elif problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CaptionFileError(
            f"{records.source}: {len(problems)} of {len(records.located)} {records.unit} cannot be used: "
            f"{'; '.join(problems[:_SHOWN])}{more}"
        )
    if not rows:
        raise CaptionFileError(f"{records.source}: no captions in it, expected at least one")
    return list(rows.values())


def _parse(record: Any, is_text: bool) -> tuple[str, list[str], bool]:
    """The name of the picture, its captions, and whether they are a list; ValueError says what is wrong."""
    if not isinstance(record, dict):
        raise ValueError(f"is {reprlib.repr(record)}, expected an object with 'file_name' and 'captions'")
    name, key = _only(record, _FILE_NAME), _only(record, _CAPTIONS)
    captions = record[key]
    if is_text and isinstance(captions, str) and captions.lstrip().startswith("["):
        try:
            captions = json.loads(captions)
        except ValueError as error:
            raise ValueError(f"field {key!r} is {reprlib.repr(captions)}, which is no JSON list: {error}") from error
    is_list = isinstance(captions, list)
    if isinstance(captions, str) and (is_text or key != "captions"):
        captions = [captions]
    checked = checked_captions(captions, f"field {key!r}")
    for index, caption in enumerate(checked):
        if not has_word(caption):
            where = f"field {key!r}[{index}]" if is_list else f"field {key!r}"
            raise ValueError(f"{where} is {reprlib.repr(caption)}, expected a caption with a word in it")
    return image_name(record[name], f"field {name!r}"), checked, is_list


def _only(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    present = [name for name in names if name in record]
    if not present:
        raise ValueError(f"has {', '.join(map(repr, record)) or 'nothing'}, expected {' or '.join(map(repr, names))}")
    return present[0]


def image_name(value: Any, what: str) -> str:
    """A path inside a folder, with slashes; the metadata file of someone else never reaches outside of it.

    Args:
        value: of a file.
        what (`str`): its place, for the message.

    Returns:
        `str`

    Raises:
        ValueError: another value.
    """
    if not isinstance(value, str) or not value.strip("/"):
        raise ValueError(f"{what} is {reprlib.repr(value)}, expected the name of a picture")
    name = inner_name(value)
    if name is None or "://" in value or "::" in value:  # `datasets` takes "://" and "::" for remote files
        raise ValueError(f"{what} is {reprlib.repr(value)}, expected a path inside the folder")
    return name


def _others(record: Mapping[str, Any]) -> Row:
    """Other fields of a record, for rewards and for captioners with inputs of their own; the id checked."""
    known = (*_FILE_NAME, *_CAPTIONS, "image_id", "split")
    others = {name: value for name, value in record.items() if name not in known}
    if record.get("image_id") not in (None, ""):
        others["image_id"] = id_of(record["image_id"], "field 'image_id'")
    return others


def unify_ids(rows: Iterable[Row]) -> None:
    """Make all ids text, in place, where some are numbers and some are names."""
    everything = list(rows)
    if len({type(row["image_id"]) for row in everything}) > 1:
        for row in everything:
            row["image_id"] = str(row["image_id"])
