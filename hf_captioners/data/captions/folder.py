"""A folder of captioned pictures as `datasets.Dataset`s; see `folder_files` for the layout."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ...extras import of_extra
from ..bad_rows import BadRows
from .folder_files import Row, chosen_splits, read_folder
from .records import CaptionFileError

with of_extra():
    import datasets
    import pyarrow


def load_folder(folder: str | os.PathLike[str], bad_rows: BadRows | None = None) -> dict[str, datasets.Dataset]:
    """Load the splits of a folder of captioned pictures.

    Args:
        folder (`str` or `os.PathLike`): a folder with `train/`, and if you like `validation/` and `test/`, each with
            pictures and a `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, or a text file beside each picture.
        bad_rows ([`BadRows`], *optional*): gets lines that cannot be used, pictures that are not there, and ids that
            another picture has; by default they are errors.

    Returns:
        `dict[str, datasets.Dataset]`: split -> rows with `image` (`datasets.Image`), `image_id` (`int` or `str`, by
        default the picture's path in the folder), `file_name`, `split`, `captions` (`list[str]`), and what else the
        metadata file has.

    Raises:
        FileNotFoundError: there is no such folder, or pictures are missing.
        ValueError: captions are missing or cannot be used; the message names file, line and value.

    Example:

    ```python
    >>> import json, tempfile
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> from hf_captioners.data.captions.folder import load_folder
    >>> split = Path(tempfile.mkdtemp(), "train")
    >>> split.mkdir()
    >>> Image.new("RGB", (8, 8)).save(split / "a.png")
    >>> _ = (split / "metadata.jsonl").write_text(json.dumps({"file_name": "a.png", "captions": ["a black square"]}))
    >>> row = load_folder(split.parent)["train"][0]
    >>> row["image_id"], row["captions"]
    ('train/a.png', ['a black square'])

    ```
    """
    return {split: dataset_of_rows(folder, rows) for split, rows in read_folder(folder, bad_rows).items()}


def load_folder_split(
    folder: str | os.PathLike[str], split: str = "all", bad_rows: BadRows | None = None
) -> datasets.Dataset:
    """Load splits of a folder as one data set.

    Args:
        folder (`str` or `os.PathLike`), bad_rows: see [`load_folder`].
        split (`str`, defaults to `"all"`): names of splits joined by `+`, or `"all"`.

    Returns:
        `datasets.Dataset`

    Raises:
        ValueError: there is no such split; otherwise as [`load_folder`].
    """
    return join_splits(folder, load_folder(folder, bad_rows), split)


def join_splits(folder: str | os.PathLike[str], splits: Mapping[str, datasets.Dataset], split: str) -> datasets.Dataset:
    """Join splits of [`load_folder`] to one data set; arguments and errors are those of [`load_folder_split`]."""
    rows = datasets.concatenate_datasets([splits[name] for name in chosen_splits(folder, split, splits)])
    if len(set(rows["image_id"][:])) < len(rows):
        raise CaptionFileError(f"{folder}: pictures of different splits have the same image_id; ids must be unique")
    return rows


def dataset_of_rows(source: str | os.PathLike[str], rows: list[Row]) -> datasets.Dataset:
    """Make a data set of rows.

    Args:
        source (`str` or `os.PathLike`): where they are from, for messages.
        rows (`list[dict]`): with `image_id`, `captions` and others; `image`, where they have it, is a path.

    Returns:
        `datasets.Dataset`: columns that no row has are left out; `image` is a `datasets.Image`.

    Raises:
        CaptionFileError: a column has values of several kinds.
    """
    first = ("image", "image_id", "file_name", "split", "captions")
    present = dict.fromkeys(name for row in rows for name in row)
    others = [name for name in present if name not in first]
    names = [*(name for name in first if name in present), *others]
    try:
        table = datasets.Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
    except (pyarrow.ArrowException, TypeError, OverflowError) as error:
        raise CaptionFileError(
            f"{source}: a column of {', '.join(map(repr, others))} has values of several kinds: {error}"
        ) from error
    return table.cast_column("image", datasets.Image()) if "image" in present else table
