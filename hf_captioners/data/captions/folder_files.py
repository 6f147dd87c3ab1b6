"""Reading and checking a folder of captioned pictures: `train/`, `validation/`, `test/`, each with its captions.

The layout is that of `imagefolder` of `datasets`: pictures, and beside them a `metadata.jsonl`,

    {"file_name": "cat.jpg", "captions": ["a cat", "a grey cat"]}

or a `metadata.csv` or `metadata.parquet`. Without these, that of the trainers of diffusion models: a text file
`cat.txt` beside `cat.jpg`, each of its lines a caption. What is decided here:

1. A split is a folder, or a link to one, of that name or of one of its usual others (`val`). A folder without splits
   that has its captions itself is `train` alone; its metadata file may also name pictures of splits
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

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..archive import UNREAD_SUFFIXES, archive_suffix
from ..bad_rows import BadRows
from .folder_images import FolderImages, files_below, listing, unpacked_folder, unread_archives
from .metadata_files import (
    METADATA,
    Records,
    Row,
    merged_rows,
    read_metadata,
    read_sidecars,
    sidecar_names,
    unify_ids,
)
from .records import CaptionFileError

logger = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}


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


def read_folder(folder: str | os.PathLike[str], bad_rows: BadRows | None = None) -> dict[str, list[Row]]:
    """Read all splits of a folder.

    Args:
        folder (`str` or `os.PathLike`): see the top of this module.
        bad_rows ([`BadRows`], *optional*): gets lines that cannot be used, pictures that are not there, and ids that
            another picture has; by default they are errors.

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
        for row in _read_place(place, bad_rows or BadRows()):
            rows.setdefault(row["split"], []).append(row)
    return _with_own_ids(root, rows, bad_rows or BadRows())


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Tell whether a path is a folder, or by its name an archive of one."""
    return Path(path).is_dir() or (archive_suffix(path) != "" and Path(path).is_file())


@dataclass
class _Place:
    """A folder with captions.

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
    metadata: Path | None = field(init=False)  # none where captions are in text files beside the pictures
    own: str = field(init=False)  # its name in front of those in it

    def __post_init__(self) -> None:
        found = [name for name in METADATA if (self.folder / name).is_file()]
        if len(found) > 1:
            raise CaptionFileError(f"{self.shown}: has {' and '.join(found)}, expected one of them")
        if not found and not sidecar_names(files_below(self.folder)):
            raise CaptionFileError(
                f"{self.shown.parent}: the pictures of {_called(self.shown)} have no captions in a "
                f"{' or '.join(METADATA)} in it, and none in text files of their names (cat.txt beside cat.jpg)"
            )
        self.metadata = self.folder / found[0] if found else None
        self.own = "" if self.split is None else _stem(self.shown)

    def records(self, bad_rows: BadRows) -> Records:
        """The captions of its pictures."""
        if self.metadata is None:
            return read_sidecars(self.folder, files_below(self.folder), self.shown, bad_rows)
        return read_metadata(self.metadata, self.shown / self.metadata.name, bad_rows)


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
    if not splits and sidecar_names(files_below(root)):
        return [_Place(root, shown)]
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


# --- rows -----------------------------------------------------------------------------------------------------------


def _read_place(place: _Place, bad_rows: BadRows) -> list[Row]:
    records = place.records(bad_rows)
    rows = merged_rows(records, bad_rows)
    images = FolderImages(place.folder, place.own, place.archives)
    metadata = records.source
    absent: list[str] = []
    for row in rows:
        row["image"], row["file_name"] = images.find(row["file_name"])
        row["split"] = place.split or split_name(row["file_name"].partition("/")[0]) or "train"
        row["image_id"] = row.get("image_id", row["file_name"])
        if row["image"] is None:
            absent.append(row["file_name"])
    if absent:
        problem = f"{metadata}: {len(absent)} of {len(rows)} pictures are missing: {listing(absent)}"
        if not bad_rows.skips or len(absent) == len(rows):
            where = "its text file" if place.metadata is None else place.metadata.name
            raise FileNotFoundError(f"{problem}. A picture is looked for beside {where}{images.places}")
        for name in absent:
            bad_rows.add(FileNotFoundError(f"{metadata}: picture {name} is missing"))
    texts = [] if place.metadata is not None else [where for where, _ in records.located]
    if left := images.left_out([*METADATA, *texts]):
        why = "beside it are not named in it" if place.metadata is not None else "have no text file with captions"
        logger.warning("%s: %d files %s and left out: %s", metadata, len(left), why, listing(left))
    return [row for row in rows if row["image"] is not None]


def _with_own_ids(root: Path, rows: Mapping[str, list[Row]], bad_rows: BadRows) -> dict[str, list[Row]]:
    """Rows whose ids are unique in their split, and all numbers or all names."""
    unify_ids(row for split in rows.values() for row in split)
    kept: dict[str, list[Row]] = {}
    for split, members in rows.items():
        first: dict[Any, Row] = {}
        for row in members:
            other = first.setdefault(row["image_id"], row)
            if other is not row:
                bad_rows.add(
                    CaptionFileError(
                        f"{root}: {split}: {other['file_name']} and {row['file_name']} have the same image_id "
                        f"{row['image_id']!r}; ids must be unique"
                    )
                )
        kept[split] = list(first.values())
    return kept
