"""Reading and checking an annotation file in Karpathy's layout, and finding its pictures.

Apart from `karpathy.py` because `datasets` replaces `open`, `pathlib.Path` and `os.path` in every module that defines a
builder by versions of its own, for remote files; here they are Python's.
"""

import functools
import json
import ntpath
import os
import reprlib
from pathlib import Path
from typing import Any

from ..bad_rows import BadRows
from ..files import regular_file, sha256_of
from ..limits import read_bytes

SPLITS = ("train", "restval", "val", "test")
_NAMED_IN_ERRORS = 5

Row = dict[str, Any]


class EmptySplitError(ValueError):
    """A split of which a file has no image; the message names those that it has."""


def source_paths(
    annotations: str | os.PathLike[str], image_root: str | os.PathLike[str] | None
) -> tuple[str, str | None]:
    """The annotation file and the image folder as absolute paths; FileNotFoundError where one does not exist."""
    file = Path(annotations).absolute()
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such annotation file")
    regular_file(file, "annotation file")
    if image_root is None:
        return str(file), None
    root = Path(image_root).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"image_root={root}: no such folder")
    return str(file), str(root)


def source_stamp(annotations: str, image_root: str | None) -> list[tuple[str, str]]:
    """Stamp that differs after the file, or a folder of pictures (two levels), was changed: its content, and times.

    Sizes and times of a file do not tell: an editor may keep both. Hashing 150 MB takes a fraction of a second.
    """
    stamp = [(annotations, sha256_of(regular_file(annotations, "annotation file")))]
    if image_root is not None:
        with os.scandir(image_root) as entries:
            folders = sorted(entry.path for entry in entries if entry.is_dir())
        stamp += [(folder, str(Path(folder).stat().st_mtime_ns)) for folder in (image_root, *folders)]
    return stamp


def _read_json(path: str) -> Any:
    """Parse a JSON file, plain or gzipped (told by its first bytes, not by its name), with or without a BOM."""
    content = read_bytes(path, "annotation file")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error


def _text(container: Row, field: str) -> str:
    value = container.get(field)
    if not isinstance(value, str):
        raise ValueError(f"field {field!r} is {reprlib.repr(value)}, expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"field {field!r} is {reprlib.repr(value)}, which is not Unicode text") from error
    return value


def _integer(container: Row, field: str) -> int | None:
    """The integer at `field`, `None` where the field is absent or null."""
    value = container.get(field)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)  # 42.0 is what pandas makes of a column of numbers with a gap
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not -(2**63) <= value < 2**63):
        raise ValueError(f"field {field!r} is {reprlib.repr(value)}, expected an integer of 64 bits")
    return value


def _relative_path(container: Row, field: str) -> str:
    """A path below the image root, as POSIX text; the annotation file of someone else never reaches outside of it."""
    path = _text(container, field).replace("\\", "/")
    outside = path.startswith("/") or ".." in path.split("/") or ntpath.splitdrive(path)[0]
    if outside or "://" in path or "::" in path or "\0" in path:  # `datasets` takes "://" and "::" for remote files
        raise ValueError(f"field {field!r} is {path!r}, expected a path inside the image root")
    return path.strip("/")


def _captions(entry: Row) -> tuple[list[str], list[int | None]]:
    sentences = entry.get("sentences")
    if not isinstance(sentences, list) or not sentences:
        raise ValueError(f"field 'sentences' is {reprlib.repr(sentences)}, expected a list with at least one sentence")
    captions, ids = [], []
    for index, sentence in enumerate(sentences):
        if not isinstance(sentence, dict):
            raise ValueError(f"field 'sentences[{index}]' is {reprlib.repr(sentence)}, expected an object with 'raw'")
        try:
            captions.append(_text(sentence, "raw"))
            ids.append(_integer(sentence, "sentid"))
        except ValueError as error:
            raise ValueError(f"sentences[{index}]: {error}") from error
    return captions, ids


def _parse_image(entry: object) -> tuple[str, Row]:
    """One entry of `images` as its folder below the image root and its row (without the picture)."""
    if not isinstance(entry, dict):
        raise ValueError(f"is {reprlib.repr(entry)}, expected an object")
    filename = _relative_path(entry, "filename")
    if not filename:
        raise ValueError("field 'filename' is empty, expected the name of the image file")
    folder = _relative_path(entry, "filepath") if entry.get("filepath") is not None else ""
    split = _text(entry, "split")
    if split not in SPLITS:
        raise ValueError(f"field 'split' is {split!r}, expected one of {', '.join(SPLITS)}")
    cocoid, imgid = _integer(entry, "cocoid"), _integer(entry, "imgid")
    image_id = imgid if cocoid is None else cocoid
    if image_id is None:
        raise ValueError("fields 'cocoid' and 'imgid' are both missing, expected an integer in one of them")
    captions, sentence_ids = _captions(entry)
    row = {
        "image_id": image_id,
        "file_name": f"{folder}/{filename}" if folder else filename,
        "split": split,
        "captions": captions,
        "sentence_ids": sentence_ids,
    }
    return folder, row


def _where(index: int, entry: object) -> str:
    """`images[3] (imgid 17, 'x.jpg')`: an entry of the file, for error messages."""
    if not isinstance(entry, dict):
        return f"images[{index}]"
    return f"images[{index}] (imgid {entry.get('imgid')!r}, filename {entry.get('filename')!r})"


def read_rows(path: str, bad_rows: BadRows | None = None) -> list[tuple[str, Row]]:
    """All images of an annotation file in file order, checked: `(folder, row)` pairs; `bad_rows` gets the others."""
    bad_rows = bad_rows or BadRows()
    content = _read_json(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"{path}: no list 'images' at the top level; expected the layout of dataset_coco.json")
    rows: list[tuple[str, Row]] = []
    first_with_id: dict[int, int] = {}
    for index, entry in enumerate(images):
        try:
            folder, row = _parse_image(entry)
        except ValueError as error:
            bad_rows.add(ValueError(f"{path}: {_where(index, entry)}: {error}"))
            continue
        first = first_with_id.setdefault(row["image_id"], index)
        if first == index:
            rows.append((folder, row))
            continue
        bad_rows.add(
            ValueError(
                f"{path}: {_where(index, entry)}: image id {row['image_id']} is already that of "
                f"{_where(first, images[first])}; ids must be unique"
            )
        )
    return rows


def _files_of(folder: Path) -> frozenset[str]:
    """Names of the files in a folder: listing once is much cheaper than asking for each of 100,000 files."""
    try:
        with os.scandir(folder) as entries:
            return frozenset(entry.name for entry in entries if entry.is_file())
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()


def find_images(rows: list[tuple[str, Row]], image_root: str, source: str, bad_rows: BadRows) -> list[Row]:
    """Rows with their `image` path; those without a file are bad rows, all of them an error."""
    files_of = functools.cache(_files_of)  # for this call only: folders change between calls
    has_folder = functools.cache(lambda folder: Path(image_root, folder).is_dir())
    present_rows: list[Row] = []
    absent: list[Row] = []
    for folder, row in rows:
        name = row["file_name"] if has_folder(folder) else row["file_name"].removeprefix(f"{folder}/")
        path = Path(image_root, name)
        present = path.name in files_of(path.parent)
        (present_rows if present else absent).append({"image": str(path), **row})
    if absent:
        names = ", ".join(row["image"] for row in absent[:_NAMED_IN_ERRORS])
        more = f" and {len(absent) - _NAMED_IN_ERRORS} more" if len(absent) > _NAMED_IN_ERRORS else ""
        problem = f"{source}: {len(absent)} of {len(rows)} image files are missing: {names}{more}"
        if not bad_rows.skips or not present_rows:
            raise FileNotFoundError(
                f"{problem}. A picture is looked for at image_root/filepath/filename if the folder "
                "image_root/filepath exists, else at image_root/filename; on_bad_row skip leaves out a few missing ones"
            )
        for row in absent:
            bad_rows.add(FileNotFoundError(f"{source}: image {row['image_id']!r}: {row['image']} is missing"))
    return present_rows
