"""The pictures of a data set by their ids, as a mapping that reads a picture when somebody looks at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .rows import undecoded

if TYPE_CHECKING:
    import datasets


class RowImage(Mapping[str, Any]):
    """The picture of a row, `{"path": ..., "bytes": ...}`, read from the data set each time.

    Args:
        rows (`datasets.Dataset`): with a column `image` that is not decoded.
        index (`int`): of the row.
    """

    def __init__(self, rows: datasets.Dataset, index: int) -> None:
        self._rows, self._index = rows, index

    def __getitem__(self, name: str) -> Any:
        return self._rows[self._index]["image"][name]

    def __iter__(self) -> Iterator[str]:
        return iter(("path", "bytes"))

    def __len__(self) -> int:
        return 2


class RowImages(Mapping[Any, RowImage]):
    """The pictures of rows by `image_id`.

    Args:
        rows (`datasets.Dataset`): with `image_id` and `image`.

    Example:

    ```python
    >>> import datasets
    >>> from hf_captioners.data.row_images import RowImages
    >>> rows = datasets.Dataset.from_dict({"image_id": [7], "image": ["cat.jpg"]})
    >>> dict(RowImages(rows.cast_column("image", datasets.Image()))[7])
    {'path': 'cat.jpg', 'bytes': None}

    ```
    """

    def __init__(self, rows: datasets.Dataset) -> None:
        closed = undecoded(rows).select_columns(["image"])
        self._images = {image_id: RowImage(closed, index) for index, image_id in enumerate(rows["image_id"][:])}

    def __getitem__(self, image_id: Any) -> RowImage:
        return self._images[image_id]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._images)

    def __len__(self) -> int:
        return len(self._images)
