"""Captioned pictures as a `datasets.Dataset`, whatever the layout of their files; see `layouts` and `folder_files`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

from ...extras import of_extra
from ..bad_rows import BadRows
from .captioned import IMAGE, captioned, load_named
from .cocotalk import load_cocotalk
from .fetched_images import fetch_images
from .folder import dataset_of_rows, load_folder_split
from .folder_files import is_folder
from .karpathy import load_karpathy
from .karpathy_file import find_images
from .layouts import COCOTALK, KARPATHY, PARQUET, URLS, layout_of, read_annotations
from .metadata_files import Row, image_name
from .records import CaptionFileError
from .tar_shards import load_tars, tar_shards

with of_extra():
    import datasets
    import pyarrow
    from pyarrow import parquet

_Path: TypeAlias = str | os.PathLike[str]


def load_captions(
    source: _Path,
    image_root: _Path | None = None,
    split: str | None = None,
    *,
    labels: _Path | None = None,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Load captioned pictures in any layout, which is told by what is in the file.

    Args:
        source (`str` or `os.PathLike`): a file in one of the layouts of `layouts` (Karpathy's and COCO's JSON, JSONL,
            token files of Flickr8k and Flickr30k, CSV, Parquet, also with the pictures inside, URLs); a folder of
            captioned pictures or an archive of one (see `folder_files`); or tars in WebDataset's layout, one or a
            pattern (see `tar_shards`).
        image_root (`str` or `os.PathLike`, *optional*): folder of the pictures of a file; of URLs the folder where the
            pictures are kept once they are fetched. Without it rows have captions only.
        split (`str`, *optional*): names of splits joined by `+`, or `"all"`; of layouts without splits a file with the
            names or ids of pictures. By default `"train+restval"` of Karpathy's layout and of cocotalk, and all
            pictures of the others.
        labels (`str` or `os.PathLike`, *optional*): the label file of a `cocotalk.json`.
        bad_rows ([`BadRows`], *optional*): gets records that cannot be used, pictures that are not there, and images
            that are there twice; by default they are errors.

    Returns:
        `datasets.Dataset`: rows with `image_id` (`int` or `str`; where the layout has none, the name of the picture's
        file), `file_name`, `captions` (`list[str]`), and `image` (`datasets.Image`) if there is an `image_root`.

    Raises:
        FileNotFoundError: there is no such file or folder, or pictures are missing.
        ValueError: the file is in none of the layouts, or something in it cannot be used; the message names file,
            place and value.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.captions.load import load_captions
    >>> path = Path(tempfile.mkdtemp(), "results.token")
    >>> _ = path.write_text("cat.jpg#0\\tA cat .\\ncat.jpg#1\\tOne cat .")
    >>> load_captions(path)[0]
    {'image_id': 'cat.jpg', 'file_name': 'cat.jpg', 'captions': ['A cat .', 'One cat .']}

    ```
    """
    for name, value in (("image_root", image_root), ("labels", labels)):
        if value is not None and has_own_images(source):
            raise ValueError(f"{source}: pictures and captions are both in it; leave {name}={value} out")
    if tars := tar_shards(source):
        if split not in (None, "all"):
            raise ValueError(f"{source}: split={split!r}: tars have no splits; give those of a split")
        return load_tars(tars, bad_rows)
    if is_folder(source):
        return load_folder_split(source, split or "all", bad_rows)
    layout = layout_of(source)
    if (layout == COCOTALK) != (labels is not None):
        raise ValueError(
            f"{source}: a cocotalk.json and a label file (labels) belong together; give both, or neither of them"
        )
    if labels is not None:
        return load_cocotalk(source, labels, (split or "train").replace("train+restval", "train"), bad_rows=bad_rows)
    if layout == KARPATHY:
        return load_karpathy(source, image_root, split or "train+restval", bad_rows=bad_rows)
    if layout == PARQUET and _has_image_column(source):
        rows = load_named("parquet", data_files=os.fspath(source), split=split)
        return captioned(rows, source=os.fspath(source), bad_rows=bad_rows)
    bad_rows = bad_rows or BadRows()
    rows = read_annotations(source, split, bad_rows)
    if image_root is not None:
        rows = _with_urls(rows, image_root) if layout == URLS else _with_images(source, rows, image_root, bad_rows)
    return dataset_of_rows(source, rows)


def has_own_images(source: _Path) -> bool:
    """Tell whether pictures are where the captions are, so that no `image_root` is needed.

    Args:
        source (`str` or `os.PathLike`): as of [`load_captions`].

    Returns:
        `bool`: true of folders, tars, and Parquet files with a column of pictures.

    Raises:
        FileNotFoundError: there is no such file.
    """
    if tar_shards(source) or is_folder(source):
        return True
    return layout_of(source) == PARQUET and _has_image_column(source)


def _has_image_column(source: _Path) -> bool:
    schema = parquet.read_schema(source)
    return IMAGE in schema.names and not pyarrow.types.is_string(schema.field(IMAGE).type)


def _with_images(source: _Path, rows: list[Row], image_root: _Path, bad_rows: BadRows) -> list[Row]:
    root = Path(image_root).absolute()
    if not root.is_dir():
        raise FileNotFoundError(f"image_root={root}: no such folder")
    named: list[tuple[str, Row]] = []
    for row in rows:
        try:
            named.append(("", _with_checked_name(source, row)))
        except CaptionFileError as error:
            bad_rows.add(error)
    return find_images(named, os.fspath(root), os.fspath(source), bad_rows)


def _with_checked_name(source: _Path, row: Row) -> Row:
    if row["file_name"] is None:
        raise CaptionFileError(
            f"{source}: image {row['image_id']!r} has no file name, by which its picture could be found"
        )
    try:
        return {**row, "file_name": image_name(row["file_name"], "field 'file_name'")}
    except ValueError as error:
        raise CaptionFileError(f"{source}: image {row['image_id']!r}: {error}") from error


def _with_urls(rows: list[Row], image_root: _Path) -> list[Row]:
    fetched = fetch_images([row["file_name"] for row in rows], Path(image_root).absolute())
    if not fetched:
        raise FileNotFoundError(f"image_root={image_root}: none of {len(rows)} pictures could be fetched")
    return [{"image": os.fspath(fetched[row["file_name"]]), **row} for row in rows if row["file_name"] in fetched]
