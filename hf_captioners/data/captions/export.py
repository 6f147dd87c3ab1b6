"""Captioned pictures as Parquet with the pictures inside, which `datasets.load_dataset` reads as it is.

A folder of `data/<split>-00000-of-00003.parquet` and a card, whose `configs:` say which files are which split: on a
disk `load_dataset("FOLDER")`, on the Hub `load_dataset("org/name")`. Pictures are the bytes of their files, captions
stay as they are written.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...extras import of_extra
from ..files import check_can_be_made, replace_folder, settle, working_folder
from ..fingerprint import DataFingerprint, fingerprint_of_splits
from ..image_check import byte_length
from ..progress import progress
from ..rows import undecoded

with of_extra():
    import datasets
    import pyarrow.parquet as parquet
    from datasets.table import embed_table_storage

SHARD_BYTES = 500_000_000
"""Bytes of pictures that make a file, about."""

_AT_ONCE = 100  # pictures in memory

_CARD = """\
---
configs:
- config_name: default
  data_files:
{files}
task_categories:
- image-to-text
tags:
- image-captioning
---

# {name}

{images:,} captioned pictures, with {captions:,} captions. Load them with

```python
from datasets import load_dataset

rows = load_dataset("{where}", split="{split}")
```

| split | pictures | captions |
| --- | --- | --- |
{counts}

Each row has {columns}. Fingerprint of the data, by which `hf-captioners` names them in cards of captioners:
`{fingerprint}`.
"""


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        folder (`Path`): where it is.
        splits (`dict[str, int]`): split -> number of its pictures.
        num_bytes (`int`): size of the files.
        fingerprint ([`DataFingerprint`]): of all of them.
    """

    folder: Path
    splits: dict[str, int]
    num_bytes: int
    fingerprint: DataFingerprint


def export_dataset(
    splits: Mapping[str, datasets.Dataset],
    out: str | os.PathLike[str],
    name: str | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Exported:
    """Write captioned pictures as Parquet with a card, whole or not at all.

    Args:
        splits (`Mapping[str, datasets.Dataset]`): split -> rows with `image` and `captions`.
        out (`str` or `os.PathLike`): a new or an empty folder.
        name (`str`, *optional*): for the card, `org/name` on the Hub; by default that of the folder.
        shard_bytes (`int`, defaults to 500,000,000): about so many bytes of pictures make a file.

    Returns:
        [`Exported`]

    Raises:
        ValueError: there is something in the folder, rows have no pictures, or a split no rows.
        OSError: a picture is not there, or the folder cannot be written.

    Example:

    ```python
    >>> import tempfile
    >>> import datasets
    >>> from PIL import Image
    >>> from hf_captioners.data.captions.export import export_dataset
    >>> rows = [{"image": Image.new("RGB", (8, 8)), "image_id": 7, "captions": ["a black square"]}]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export_dataset({"train": datasets.Dataset.from_list(rows)}, f"{folder}/squares")
    ...     datasets.load_dataset(f"{folder}/squares", split="train", cache_dir=folder)[0]["captions"]
    ['a black square']

    ```
    """
    folder = Path(out)
    check_can_be_made(folder.resolve())
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder}: must be a new or an empty folder")
    for split, rows in splits.items():
        if "image" not in rows.column_names:
            raise ValueError(f"{split}: rows without pictures are not exported; name their folder (image_root)")
        if not len(rows):
            raise ValueError(f"{split}: no rows in it, expected at least one")
    mark = fingerprint_of_splits(splits)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(folder.parent, f".{folder.name}.", ".new") as new:
        (new / "data").mkdir()
        with progress(total=sum(map(len, splits.values())), desc="export", unit="picture") as bar:
            files = {split: _write_split(split, rows, new / "data", shard_bytes, bar) for split, rows in splits.items()}
        (new / "README.md").write_text(_card(splits, mark, name or folder.name, name or str(out)), encoding="utf-8")
        settle(new)
        if folder.exists():
            folder.rmdir()
        replace_folder(new, folder)
    num_bytes = sum((folder / "data" / file).stat().st_size for names in files.values() for file in names)
    return Exported(folder, {split: len(rows) for split, rows in splits.items()}, num_bytes, mark)


def _write_split(split: str, rows: datasets.Dataset, folder: Path, shard_bytes: int, bar: Any) -> list[str]:
    """Write the files of a split, some pictures at a time; returns their names."""
    if "split" in rows.column_names:  # the files say it
        rows = rows.remove_columns("split")
    schema = rows.features.arrow_schema  # with pictures that are opened by who loads them
    rows = undecoded(rows)
    ends = _ends(rows, shard_bytes)
    names = []
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        names.append(f"{split}-{number:05d}-of-{len(ends):05d}.parquet")
        with parquet.ParquetWriter(folder / names[-1], schema) as writer:
            for table in rows.select(range(start, end)).with_format("arrow").iter(batch_size=_AT_ONCE):
                writer.write_table(embed_table_storage(table).cast(schema))
                bar.update(len(table))
    return names


def _ends(rows: datasets.Dataset, shard_bytes: int) -> list[int]:
    """Ends of the parts of rows that have about so many bytes of pictures."""
    ends, size = [], 0
    for row, image in enumerate(rows["image"], start=1):
        size += byte_length(image)
        if size >= shard_bytes:
            ends.append(row)
            size = 0
    return ends if ends and ends[-1] == len(rows) else [*ends, len(rows)]


def _card(splits: Mapping[str, datasets.Dataset], mark: DataFingerprint, name: str, where: str) -> str:
    counts = {split: sum(len(texts) for texts in rows["captions"][:]) for split, rows in splits.items()}
    columns = [column for column in next(iter(splits.values())).column_names if column != "split"]
    return _CARD.format(
        files="\n".join(f"  - split: {split}\n    path: data/{split}-*" for split in splits),
        name=name,
        where=where,
        split=next(iter(splits)),
        images=mark.images,
        captions=mark.captions,
        counts="\n".join(f"| {split} | {len(splits[split]):,} | {count:,} |" for split, count in counts.items()),
        columns=_listed([f"`{column}`" for column in columns]),
        fingerprint=mark.hash,
    )


def _listed(words: Sequence[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else words[0]
