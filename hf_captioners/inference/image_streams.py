"""The images of a streaming data set of `datasets` as rows to caption, of the Hub or of a folder that it reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..data.remote_files import RemoteFile, is_remote
from ..data.rows import undecoded
from .caption_run import Share
from .image_files import is_url

if TYPE_CHECKING:
    from datasets import IterableDataset

_IMAGES = (Mapping, str, bytes, Image.Image)


class ImageStream:
    """Images of a streaming data set; their names are their `image_id`.

    Args:
        dataset (`datasets.IterableDataset`): the rows. Images stay closed until they are captioned.
        image_column (`str`, defaults to `"image"`): of images, or of paths and addresses of images.
        id_column (`str`, *optional*): of the names, text or whole numbers; without it a column `image_id`, if there is
            one, and otherwise `"3/17"` is the 18th row of the fourth of the data set's files, counted from 0.
        share ([`Share`], *optional*): of several processes, this one's. They share the files, or the rows where there
            are fewer files than processes.

    Raises:
        ValueError: the data set has no such column.

    Example:

    ```python
    >>> import datasets
    >>> from hf_captioners.inference.image_streams import ImageStream
    >>> rows = datasets.Dataset.from_dict({"image": ["a.jpg", "b.jpg", "c.jpg"]}).to_iterable_dataset(num_shards=2)
    >>> stream = ImageStream(rows)
    >>> [row for source in stream.sources(lambda name: name != "0/0") for row in source]
    [{'image_id': '0/0'}, {'image_id': '0/1', 'image': 'b.jpg'}, {'image_id': '1/0', 'image': 'c.jpg'}]

    ```
    """

    def __init__(
        self,
        dataset: IterableDataset,
        image_column: str = "image",
        id_column: str | None = None,
        share: Share | None = None,
    ) -> None:
        names = dataset.column_names
        if names is not None and id_column is None and "image_id" in names:
            id_column = "image_id"
        self.columns = [image_column] if id_column is None else [image_column, id_column]
        if names is not None:
            _check_columns(self.columns, names)
            dataset = undecoded(dataset.select_columns(self.columns))
        self.image_column, self.id_column, self.share = image_column, id_column, share or Share()
        self.dataset = dataset

    @property
    def count(self) -> int | None:
        """Number of rows, where the data set's description has it."""
        splits = self.dataset.info.splits or {}
        info = splits.get(str(self.dataset.split)) if self.dataset.split is not None else None
        return None if info is None else info.num_examples or None

    def sources(self, wanted: Callable[[Any], bool]) -> Iterator[Iterator[dict[str, Any]]]:
        """The rows of each part that a process takes as a whole: of a file, or a row.

        Rows without an `id_column` that need not be captioned come without their image, and are not read again where a
        run has gone on to the next file.

        Args:
            wanted (`Callable[[int | str], bool]`): says of an image by its name whether it has to be captioned.

        Yields:
            `Iterator[dict]`: rows with `image_id` and `image`.
        """
        number = self.dataset.num_shards
        for shard in range(number):
            if number >= self.share.number:
                yield self._rows(shard, wanted)
            else:
                yield from (iter([row]) for row in self._rows(shard, wanted))

    def _rows(self, shard: int, wanted: Callable[[Any], bool]) -> Iterator[dict[str, Any]]:
        place = 0
        if self.id_column is None:
            while not wanted(f"{shard}/{place}"):
                yield {"image_id": f"{shard}/{place}"}
                place += 1
            following = shard + self.share.number
            if following < self.dataset.num_shards and not wanted(f"{following}/0"):
                return
        rows = self.dataset.shard(self.dataset.num_shards, shard)
        for row in rows.skip(place) if place else rows:
            _check_columns(self.columns, row)
            yield {"image_id": self._name(row, f"{shard}/{place}"), "image": _image(row[self.image_column])}
            place += 1

    def _name(self, row: Mapping[str, Any], place: str) -> Any:
        if self.id_column is None:
            return place
        name = row[self.id_column]
        if name is None:
            raise ValueError(f"row {place}: the column {self.id_column!r} is empty there; leave it to be numbered")
        return name if isinstance(name, (int, str)) else str(name)


def _check_columns(wanted: list[str], names: Any) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise ValueError(f"no column {missing[0]!r}; it has {', '.join(map(repr, names))}")


def _image(value: Any) -> Any:
    """An image as `open_image` takes it, or why it is none; one of another machine is read when it is opened."""
    if value is None or not isinstance(value, _IMAGES):
        return {"error": "no image" if value is None else f"expected an image, found {type(value).__name__}"}
    path = value.get("path") if isinstance(value, Mapping) else value
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return value
    if isinstance(path, str) and is_remote(path) and not is_url(path):
        return {"path": path, "bytes": RemoteFile(path)}
    return value
