"""The layouts of files of captions, told by what is in them, never by their names, and one reader for all of them.

| layout | content |
| --- | --- |
| `karpathy` | JSON, `images` with `sentences` and splits: `dataset_coco.json` (`karpathy_file`) |
| `coco` | JSON, `images` and `annotations`: `captions_train2017.json` |
| `cocotalk` | JSON, `images` and `ix_to_word`, beside a label file (`cocotalk`) |
| `records` | JSONL or a JSON list: `{"file_name": "a.jpg", "captions": ["…"]}` |
| `by id` | JSON, an object from image id to captions |
| `tokens`, `bars`, `urls` | token files and Kaggle's table of Flickr30k, URLs with captions (`caption_tables`) |
| `csv`, `parquet` | tables with a column of file names and one of captions (`metadata_files`) |

Karpathy's layout and cocotalk have splits. Of the others a split is a file with the names or ids of its pictures, a
line each, as `Flickr_8k.trainImages.txt` or `karpathy_val_image_ids.txt`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

from ..bad_rows import BadRows
from ..files import regular_file
from . import caption_tables, records
from .karpathy_file import SPLITS, read_rows
from .metadata_files import PARQUET_MAGIC, Records, Row, csv_records, merged_rows, parquet_records, unify_ids
from .records import CaptionFileError, id_of, read_text

KARPATHY, COCO, COCOTALK, RECORDS, BY_ID = "karpathy", "coco", "cocotalk", "records", "by id"
TOKENS, BARS, URLS, CSV, PARQUET = "tokens", "bars", "urls", "csv", "parquet"
EXPECTED = (
    "Karpathy's JSON, COCO's annotations, JSON or JSONL of captions, a token file of Flickr8k or Flickr30k, a CSV or "
    "Parquet table with a column of file names and one of captions, or lines of a caption, a tab and a URL"
)
"""The layouts, for messages."""

_Path: TypeAlias = str | os.PathLike[str]
_FIRST_IMAGE = re.compile(r'"images"\s*:\s*\[\s*(?={)')
_CSV_NAMES = {"file_name", "image", "filename"}, {"captions", "caption", "text"}
_SHOWN = 5


def layout_of(path: _Path) -> str:
    """Tell the layout of a file of captions by what is in it.

    Args:
        path (`str` or `os.PathLike`): the file, plain or gzipped.

    Returns:
        `str`: one of the names at the top of this module.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: it cannot be read, or is none of them; the message names them.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.captions.layouts import layout_of
    >>> path = Path(tempfile.mkdtemp(), "Flickr8k.token.txt")
    >>> _ = path.write_text("cat.jpg#0\\tA cat .")
    >>> layout_of(path)
    'tokens'

    ```
    """
    return _recognised(path, BadRows("skip", log=False))[0]  # who reads the rows hears of those that cannot be used


def _recognised(path: _Path, bad_rows: BadRows) -> tuple[str, Any]:
    """The layout of a file, and its text, or what is in its JSON as far as that was parsed."""
    if not Path(path).is_dir():  # `read_text` says it better
        with regular_file(os.fspath(path), "file of captions").open("rb") as file:
            if file.read(len(PARQUET_MAGIC)) == PARQUET_MAGIC:
                return PARQUET, None
    text = read_text(path)
    line = next((line for line in text.split("\n", 100) if line.strip()), "")
    if caption_tables.is_token_line(line):
        return TOKENS, text
    if caption_tables.is_bar_header(line):
        return BARS, text
    if caption_tables.is_url_line(line):
        return URLS, text
    is_json = line.lstrip()[:1] in ("{", "[")
    if not is_json and _is_csv_header(line):  # all of a JSON file may be one line, with any words in it
        return CSV, text
    if line and not is_json:
        raise CaptionFileError(
            f"{path}: begins with {line[:60]!r}, which is no layout of captions; expected {EXPECTED}"
        )
    return _recognised_json(path, text, bad_rows)


def _is_csv_header(line: str) -> bool:
    names = set(re.split(r"[,;\t|]", line.strip().lower().replace('"', "")))
    return all(names & wanted for wanted in _CSV_NAMES)


def _recognised_json(path: _Path, text: str, bad_rows: BadRows) -> tuple[str, Any]:
    if _begins_like_karpathy(text):
        return KARPATHY, None  # 150 MB, which its reader parses
    content = records.parse_content(path, text, bad_rows)
    if isinstance(content, list):
        return RECORDS, content
    if isinstance(content.get("ix_to_word"), dict) and isinstance(content.get("images"), list):
        return COCOTALK, None
    return (_annotated_layout(content) or BY_ID), content


def _annotated_layout(content: Mapping[str, Any]) -> str | None:
    for layout, name in ((COCO, "annotations"), (KARPATHY, "images")):
        values = content.get(name)
        if isinstance(values, list) and not _are_captions(values):
            return layout
    return None


def is_annotated(content: Mapping[str, Any]) -> bool:
    """Tell whether the object of a JSON file is of COCO's or Karpathy's layout, whose captions are of people."""
    return _annotated_layout(content) is not None


def _begins_like_karpathy(text: str) -> bool:
    """Tell whether the first image of a JSON file has sentences; only then is all of it that layout."""
    match = _FIRST_IMAGE.search(text, 0, 2**16)
    if match is None:
        return False
    try:
        image, _ = json.JSONDecoder().raw_decode(text, match.end())
    except (ValueError, RecursionError):
        return False
    return isinstance(image, dict) and {"sentences", "split", "filename"} <= image.keys()


def _are_captions(values: Sequence[Any]) -> bool:
    """An image whose id is "images" has a list of strings."""
    return bool(values) and all(isinstance(value, str) for value in values)


# --- rows -----------------------------------------------------------------------------------------------------------


def read_annotations(path: _Path, split: str | None = None, bad_rows: BadRows | None = None) -> list[Row]:
    """The captions of the pictures of a file, in any layout but `cocotalk`.

    Args:
        path (`str` or `os.PathLike`): the file, plain or gzipped.
        split (`str`, *optional*): of Karpathy's layout names of splits joined by `+`; of the others a file with names
            or ids of pictures. By default, and with `"all"`, everything.
        bad_rows ([`BadRows`], *optional*): gets records that cannot be used, and images that are there twice; by
            default they are errors.

    Returns:
        `list[dict]`: with `image_id` (`int` or `str`; of layouts without ids the file name), `file_name` (`str`, or
        `None` where the file has none), `captions` (`list[str]`, at least one), and what else a table has.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: it is in none of the layouts, a caption or an id cannot be used, an image is there twice, or
            there is no such split; the message names file, place and value.
    """
    name, bad_rows = os.fspath(path), bad_rows or BadRows()
    layout, content = _recognised(path, bad_rows)
    if layout == KARPATHY:
        return _karpathy(name, split, bad_rows)
    if layout == COCOTALK:
        raise CaptionFileError(f"{name}: is a cocotalk.json, whose captions are in a label file (labels)")
    return _in_split(name, _rows(name, layout, content, bad_rows), split)


def _rows(name: str, layout: str, content: Any, bad_rows: BadRows) -> list[Row]:
    if layout == URLS:
        return caption_tables.url_rows(name, content, bad_rows)
    if layout in (TOKENS, BARS, CSV, PARQUET):
        rows = merged_rows(_table(name, layout, content, bad_rows), bad_rows)
        for row in rows:
            row.setdefault("image_id", id_of(row["file_name"], "field 'file_name'"))
        unify_ids(rows)
        return _with_own_ids(name, rows, bad_rows)
    if layout == RECORDS:
        entries = records.parse_records(name, content, records.reference, bad_rows)
    elif layout == COCO:
        entries = records.coco(name, content, bad_rows)
    else:
        places = ((f"key {key!r}", (key, value)) for key, value in content.items())
        entries = records.parse_records(name, places, records.keyed_reference, bad_rows)
    return [{"image_id": image_id, "file_name": file, "captions": captions} for image_id, file, captions in entries]


def _table(name: str, layout: str, content: Any, bad_rows: BadRows) -> Records:
    if layout == TOKENS:
        return caption_tables.token_records(name, content, bad_rows)
    if layout == BARS:
        return caption_tables.bar_records(name, content, bad_rows)
    if layout == CSV:
        return Records(name, list(csv_records(name, content, bad_rows)), are_text=True)
    return Records(name, parquet_records(name), unit="rows")


def _with_own_ids(name: str, rows: list[Row], bad_rows: BadRows) -> list[Row]:
    """Rows whose ids are unique."""
    first: dict[Any, Row] = {}
    for row in rows:
        other = first.setdefault(row["image_id"], row)
        if other is not row:
            bad_rows.add(
                CaptionFileError(
                    f"{name}: {other['file_name']} and {row['file_name']} have the same image_id {row['image_id']!r}; "
                    "ids must be unique"
                )
            )
    return list(first.values())


# --- splits ---------------------------------------------------------------------------------------------------------


def splits_of(path: _Path) -> list[str]:
    """The names of the splits of a file of captions.

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        `list[str]`: in the order of their use, train first; empty for layouts without splits.

    Raises:
        FileNotFoundError, CaptionFileError: as [`read_annotations`].
    """
    if layout_of(path) != KARPATHY:
        return []
    # who reads the rows hears of those that cannot be used
    occurring = {row["split"] for row in _karpathy_rows(os.fspath(path), BadRows("skip", log=False))}
    return [split for split in SPLITS if split in occurring]


def _karpathy_rows(name: str, bad_rows: BadRows | None = None) -> list[Row]:
    try:
        return [row for _, row in read_rows(name, bad_rows)]
    except ValueError as error:
        raise CaptionFileError(str(error)) from error


def _karpathy(name: str, split: str | None, bad_rows: BadRows | None) -> list[Row]:
    wanted = SPLITS if split is None or split == "all" else tuple(part.strip() for part in split.split("+"))
    for part in wanted:
        if part not in SPLITS:
            raise CaptionFileError(
                f"{name}: split={split!r}: {part!r} is not a split; expected names of {', '.join(SPLITS)} joined by '+'"
            )
    rows = _karpathy_rows(name, bad_rows)
    chosen = [row for row in rows if row["split"] in wanted]
    if not chosen:
        occurring = ", ".join(part for part in SPLITS if any(row["split"] == part for row in rows))
        raise CaptionFileError(
            f"{name}: no image of split {'+'.join(wanted)}; its splits are: {occurring or 'none, it has no images'}"
        )
    return chosen


def _in_split(name: str, rows: list[Row], split: str | None) -> list[Row]:
    """The rows that a file of names or ids lists, in their own order."""
    if split is None or split == "all":
        return rows
    if not Path(split).is_file():
        raise CaptionFileError(
            f"{name}: split={split!r}: only files in Karpathy's layout and folders have splits; leave it out, or give "
            "a file with the names or ids of pictures, a line each"
        )
    places = {called: index for index, row in reversed(list(enumerate(rows))) for called in _names(row)}
    places |= {row["image_id"]: index for index, row in enumerate(rows)}
    listed = list(dict.fromkeys(line.strip() for line in read_text(split).split("\n") if line.strip()))
    found = {line: places.get(id_of(line, f"{split}: a line")) for line in listed}
    absent = [line for line, index in found.items() if index is None]
    if absent or not listed:
        more = f" and {len(absent) - _SHOWN} more" if len(absent) > _SHOWN else ""
        raise CaptionFileError(
            f"{split}: {len(absent)} of {len(listed)} pictures are not in {name}: {', '.join(absent[:_SHOWN])}{more}"
            if listed
            else f"{split}: is empty, expected names or ids of pictures of {name}"
        )
    chosen = set(found.values())
    return [row for index, row in enumerate(rows) if index in chosen]


def _names(row: Row) -> Iterator[Any]:
    """The names by which a list may call a picture: with folder or suffix, or without."""
    if row["file_name"] is not None:
        path = PurePosixPath(row["file_name"])
        yield from (id_of(called, "file_name") for called in (path.stem, path.name, row["file_name"]) if called)
