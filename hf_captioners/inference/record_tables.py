"""Records of a captioning run as Parquet files, which `datasets`, Ray, Spark and pandas read."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.files import write_whole

if TYPE_CHECKING:
    import pyarrow

ROWS_PER_FILE = 100_000
"""Rows of a Parquet file, at most."""

_ROWS = 1000  # at a time
_NAME = "captions-{:05d}.parquet"


def write_tables(
    folder: Path, read: Callable[[], Iterable[Mapping[str, Any]]], rows_per_file: int | None = None
) -> list[Path]:
    """Write records into the Parquet files of a folder, each of them whole.

    Args:
        folder (`Path`): exists; its `captions-00000.parquet`, `captions-00001.parquet`, … are replaced.
        read (`Callable[[], Iterable[Mapping]]`): gives the records from the first one on; it is called twice.
        rows_per_file (`int`, *optional*, defaults to `ROWS_PER_FILE`): rows of a file, at most.

    Returns:
        `list[Path]`: the files. They have the columns `image`, `image_id`, `caption`, `captions` and `error`; a cell
        is empty where the record has no such field; `image_id` is a column of text unless all are numbers.

    Raises:
        ImportError: pyarrow is not installed.
        OSError: the disk is full, or the like.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from pyarrow.parquet import read_table
    >>> from hf_captioners.inference.record_tables import write_tables
    >>> records = [{"image": "a.jpg", "caption": "a dog"}, {"image": "b.jpg", "error": "b.jpg: not found"}]
    >>> files = write_tables(Path(tempfile.mkdtemp()), lambda: records)
    >>> read_table(files[0])["caption"].to_pylist()
    ['a dog', None]

    ```
    """
    size = ROWS_PER_FILE if rows_per_file is None else rows_per_file
    schema = _schema(all(isinstance(record.get("image_id", 0), int) for record in read()))
    records = iter(read())
    files: list[Path] = []
    while (first := next(records, None)) is not None or not files:
        chunk = itertools.islice(itertools.chain([] if first is None else [first], records), size)
        files.append(folder / _NAME.format(len(files)))
        write_whole(files[-1], lambda file, chunk=chunk: _write(file, chunk, schema))
    for file in set(folder.glob("captions-*.parquet")) - set(files):  # of a run with more records
        file.unlink()
    return files


def _schema(ids_are_numbers: bool) -> pyarrow.Schema:
    import pyarrow

    text = pyarrow.string()
    ids = pyarrow.int64() if ids_are_numbers else text
    captions = pyarrow.list_(text)
    types = {"image": text, "image_id": ids, "caption": text, "captions": captions, "error": text}
    return pyarrow.schema(list(types.items()))


def _write(file: Path, records: Iterator[Mapping[str, Any]], schema: pyarrow.Schema) -> None:
    from pyarrow import Table
    from pyarrow.parquet import ParquetWriter

    ids_are_text = str(schema.field("image_id").type) == "string"
    with ParquetWriter(file, schema) as writer:
        while chunk := list(itertools.islice(records, _ROWS)):
            rows = [{name: record.get(name) for name in schema.names} for record in chunk]
            for row in rows:
                if ids_are_text and row["image_id"] is not None:
                    row["image_id"] = str(row["image_id"])
            writer.write_table(Table.from_pylist(rows, schema=schema))
