"""The pictures of a Parquet file, a few rows at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ..data.archive import ArchiveError
from ..data.remote_files import opened_file
from ..modeling.captioner_image_limits import too_many

_ROWS = 16  # at a time


class TableImage:
    """A picture in a table: the bytes themselves, or `{"bytes", "path"}` as `datasets` writes pictures.

    Args:
        value: pyarrow's scalar.
    """

    def __init__(self, value: Any) -> None:
        self._value = value
        self.size = 0  # as far as is known before it is read

    def read(self, max_bytes: int) -> bytes:
        """The picture's bytes.

        Raises:
            ArchiveError: there are none, or more than `max_bytes`.
        """
        value = self._value.as_py()
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise ArchiveError(f"expected the bytes of a picture, found {type(content).__name__}")
        if len(content) > max_bytes:
            raise ArchiveError(str(too_many(len(content), max_bytes, "bytes")))
        return content


def images_of_table(file: str | os.PathLike[str], column: str) -> Iterator[tuple[str, TableImage | None, str]]:
    """List the pictures of a Parquet file.

    Args:
        file (`str` or `os.PathLike`): the file, or its address on another machine.
        column (`str`): of the pictures.

    Yields:
        `tuple[str, TableImage | None, str]`: name, `photos.parquet/0`; picture; and why there is none.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with opened_file(file, "Parquet file") as (stream, _), ParquetFile(stream) as table:
            names = table.schema_arrow.names
            if column not in names:
                raise ArchiveError(f"{file}: no column {column!r}; it has {', '.join(map(repr, names))}")
            for batch in table.iter_batches(batch_size=_ROWS, columns=[column]):
                for value in batch.column(0):
                    yield f"{file}/{number}", TableImage(value), ""
                    number += 1
    except (ArchiveError, ArrowException, OSError) as error:
        yield f"{file}/{number}" if number else str(file), None, f"cannot be read as Parquet: {error}"
