"""Any `datasets.Dataset` as captioned pictures: rows with `image`, `image_id` and `captions`.

1. Captions are a column of texts or of lists of texts, or several columns (`caption_0`, `caption_1`, …); entries that
   are objects with `raw`, as `sentences` of Karpathy's data sets, are their `raw`.
2. Rows of one picture with a caption each become one row, where a column of ids says that it is one picture.
3. Without such a column the id of a picture is the name of its file, if all have one and no two the same, and else
   `train/17`, split and row.
"""

from __future__ import annotations

import hashlib
import os
import reprlib
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any

from ...extras import of_extra
from ...modeling.captioner_hub import at_once
from ..bad_rows import BadRows
from ..image_check import read_header
from ..row_stream import BUFFER_SIZE, RowStream
from ..rows import caption_fault
from .records import CaptionFileError, ImageId, caption_of, id_of

with of_extra():
    import datasets
    import pyarrow
    import pyarrow.compute

IMAGE, IMAGE_ID, CAPTIONS = "image", "image_id", "captions"
CAPTION_COLUMNS = ("captions", "caption", "text", "sentences_raw", "sentences")
"""Names of columns of captions, the first that a data set has."""


@dataclass(frozen=True)
class Columns:
    """Names of the columns of a data set.

    Attributes:
        image (`str`, defaults to `"image"`): pictures, or their paths or URLs.
        captions (`tuple[str, ...]`, *optional*): by default the first of `CAPTION_COLUMNS` that there is.
        image_id (`str`, *optional*): by default `image_id`, if there is one.
    """

    image: str = IMAGE
    captions: tuple[str, ...] = ()
    image_id: str | None = None

    def found(self, names: Sequence[str], source: str, needs_images: bool = True) -> Columns:
        """The columns that a data set has.

        Args:
            names (`Sequence[str]`): of its columns.
            source (`str`): its name, for messages.
            needs_images (`bool`, defaults to `True`): whether it must have pictures.

        Returns:
            [`Columns`]: with `captions`, and with `image_id` if there is one.

        Raises:
            CaptionFileError: it lacks one; the message has its columns.
        """
        captions = self.captions or tuple(name for name in CAPTION_COLUMNS if name in names)[:1]
        has = f"its columns are {', '.join(map(repr, names))}"
        if not captions:
            expected = ", ".join(CAPTION_COLUMNS)
            raise CaptionFileError(f"{source}: no column of captions ({expected}); {has}; name one by --caption_column")
        options = {"--caption_column": captions, "--image_id_column": filter(None, [self.image_id])}
        if needs_images:
            options["--image_column"] = (self.image,)
        for option, wanted in options.items():
            for name in wanted:
                if name not in names:
                    raise CaptionFileError(f"{source}: no column {name!r}; {has}; name one by {option}")
        return Columns(self.image, captions, self.image_id or (IMAGE_ID if IMAGE_ID in names else None))


def captions_in(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """The captions of a row, from one column or several; ValueError names the field that has something else."""
    captions: list[str] = []
    for name in names:
        value = row[name]
        for index, one in enumerate(value if isinstance(value, (list, tuple)) else [value]):
            raw = one.get("raw") if isinstance(one, Mapping) else one
            captions.append(caption_of(raw, f"field {name!r}[{index}]" if value is not one else f"field {name!r}"))
    if not captions:
        raise ValueError(f"field {names[0]!r} is {reprlib.repr(row[names[0]])}, expected at least one caption")
    return captions


def captioned(
    dataset: datasets.Dataset,
    columns: Columns | None = None,
    source: str = "the data set",
    *,
    needs_images: bool = True,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Give a data set the columns of captioned pictures.

    Args:
        dataset (`datasets.Dataset`): one row a picture, or one row a caption.
        columns ([`Columns`], *optional*): names of its columns.
        source (`str`): its name, for messages.
        needs_images (`bool`, defaults to `True`): whether it must have pictures.
        bad_rows ([`BadRows`], *optional*): gets rows whose captions or id cannot be used; by default they are errors.

    Returns:
        `datasets.Dataset`: rows with `image` (`datasets.Image`), `image_id`, `captions` (`list[str]`) and the data
        set's other columns; of several rows of one picture, those of the first.

    Raises:
        ValueError: a column is not there; a caption or an id cannot be used, or those of no row can. The message names
            row and field.

    Example:

    ```python
    >>> import datasets
    >>> from hf_captioners.data.captions.captioned import Columns, captioned
    >>> rows = datasets.Dataset.from_dict({"photo": ["a.jpg", "a.jpg"], "text": ["a dog", "one dog"], "number": [7, 7]})
    >>> rows = captioned(rows, Columns(image="photo", image_id="number"))
    >>> rows["image_id"][:], rows["captions"][:]
    ([7], [['a dog', 'one dog']])

    ```
    """
    found = (columns or Columns()).found(dataset.column_names, source, needs_images)
    rows = _usable_rows(dataset, found, source, bad_rows or BadRows())
    as_text = len({type(image_id) for _, image_id, _ in rows}) > 1
    first: dict[ImageId, int] = {}
    merged: dict[ImageId, list[str]] = {}
    for index, own_id, captions in rows:
        image_id = str(own_id) if as_text else own_id
        first.setdefault(image_id, index)
        merged.setdefault(image_id, []).extend(captions)
    if len(merged) < len(dataset):
        dataset = dataset.select(list(first.values()))
    return _with_columns(dataset, found, list(merged), list(merged.values()))


def _usable_rows(
    dataset: datasets.Dataset, columns: Columns, source: str, bad_rows: BadRows
) -> list[tuple[int, ImageId, list[str]]]:
    """Number, id and captions of each row that can be used."""
    values = {name: dataset[name][:] for name in columns.captions}
    names = _names(dataset, columns) if columns.image_id is None else dataset[columns.image_id][:]
    where = "row" if dataset.split is None else f"{dataset.split} row"
    rows = []
    for number, value in enumerate(names):
        try:
            captions = captions_in({name: values[name][number] for name in values}, columns.captions)
            rows.append((number, id_of(value, f"field {columns.image_id!r}"), captions))
        except ValueError as error:
            bad_rows.add(CaptionFileError(f"{source}: {where} {number}: {error}"))
    if not rows and len(dataset):
        raise CaptionFileError(f"{source}: none of its {len(dataset)} rows can be used: {bad_rows.messages[-1]}")
    return rows


def _names(dataset: datasets.Dataset, columns: Columns) -> Sequence[str]:
    """Ids of the pictures of a data set without a column of them."""
    names = _file_names(dataset, columns.image) if columns.image in dataset.column_names else []
    if names and None not in names and len(set(names)) == len(names):
        return [name for name in names if name is not None]
    return [f"{dataset.split or 'row'}/{number}" for number in range(len(dataset))]


def _file_names(dataset: datasets.Dataset, image: str) -> list[str | None]:
    """The last part of the names of the pictures' files; no picture is read."""
    closed = dataset.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    paths = pyarrow.compute.struct_field(closed.with_format("arrow")[:][image], "path").to_pylist()
    return [None if path is None else PurePath(path).name for path in paths]


def _with_columns(
    dataset: datasets.Dataset, columns: Columns, ids: list[ImageId], captions: list[list[str]]
) -> datasets.Dataset:
    taken = {*columns.captions, columns.image_id, IMAGE_ID, CAPTIONS} | ({IMAGE} - {columns.image})
    dataset = dataset.remove_columns([name for name in dataset.column_names if name in taken])
    if columns.image in dataset.column_names:
        if columns.image != IMAGE:
            dataset = dataset.rename_column(columns.image, IMAGE)
        dataset = dataset.cast_column(IMAGE, datasets.Image())
    others = [name for name in dataset.column_names if name != IMAGE]
    kind = datasets.Value("int64" if ids and isinstance(ids[0], int) else "string")
    dataset = dataset.add_column(IMAGE_ID, ids, feature=kind)
    dataset = dataset.add_column(CAPTIONS, captions, feature=datasets.List(datasets.Value("string")))
    images = [IMAGE] if IMAGE in dataset.column_names else []
    return dataset.select_columns([*images, IMAGE_ID, CAPTIONS, *others])


def captioned_stream(
    dataset: datasets.IterableDataset,
    columns: Columns | None = None,
    source: str = "the data set",
    *,
    seed: int | None = None,
    buffer_size: int = BUFFER_SIZE,
    fault_column: str | None = None,
    check_images: bool = False,
    bad_rows: BadRows | None = None,
) -> RowStream:
    """Make an endless stream of captioned pictures of a streaming data set.

    Rows of one picture with a caption each become one, where a column of ids says that it is one picture and they
    follow each other. Without such a column the id of a picture is the name of its file, or else a digest of its bytes.

    Args:
        dataset (`datasets.IterableDataset`): not shuffled; from `load_dataset(..., streaming=True)`.
        columns ([`Columns`], *optional*), source (`str`): as of [`captioned`].
        seed (`int`, *optional*), buffer_size (`int`, defaults to 1000): of the order, see [`RowStream`].
        fault_column (`str`, *optional*): column that says why a row cannot be used.
        check_images (`bool`, defaults to `False`): look at the header of each picture; one that is broken cannot be
            used, as [`check_images`] finds before a training that does not stream.
        bad_rows ([`BadRows`], *optional*): gets rows that cannot be used; by default they are errors.

    Returns:
        [`RowStream`]

    Raises:
        ValueError: a column is not there; while iterating, a row cannot be used. The message names row and field.
    """
    dataset = _closed(dataset)
    names = dataset.column_names or list(next(iter(dataset), {}))
    found = (columns or Columns()).found(names, source)
    convert = partial(_stream_row, columns=found, source=source, fault_column=fault_column, check_images=check_images)
    return RowStream(
        dataset, convert, source, seed=seed, buffer_size=buffer_size, image_id=found.image_id, bad_rows=bad_rows
    )


def _closed(dataset: datasets.IterableDataset) -> datasets.IterableDataset:
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image) and feature.decode:
            dataset = dataset.cast_column(name, datasets.Image(decode=False))
    return dataset


def kept_rows(dataset: datasets.IterableDataset) -> datasets.Dataset:
    """Read all rows of a streaming data set into memory, pictures encoded: few ones, to evaluate on.

    Args:
        dataset (`datasets.IterableDataset`): the rows.

    Returns:
        `datasets.Dataset`
    """
    rows = list(_closed(dataset))
    kept = datasets.Dataset.from_list(rows, split=dataset.split)
    for name, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Image):
            kept = kept.cast_column(name, datasets.Image())
    return kept


def _stream_row(
    row: Mapping[str, Any],
    place: str,
    columns: Columns,
    source: str,
    fault_column: str | None,
    check_images: bool,
) -> dict[str, Any]:
    if fault_column is not None and row[fault_column] is not None:
        raise CaptionFileError(row[fault_column])
    image = row[columns.image]
    try:
        captions = captions_in(row, columns.captions)
        _check_captions(captions)
        number = None if columns.image_id is None else id_of(row[columns.image_id], f"field {columns.image_id!r}")
        if image is None:
            raise ValueError(f"field {columns.image!r} is None, expected a picture")
        if check_images and (fault := read_header(image).fault) is not None:
            raise ValueError(f"field {columns.image!r}: picture {fault}")
    except ValueError as error:
        raise CaptionFileError(f"{source}: {place}: {error}") from error
    taken = {*columns.captions, columns.image, columns.image_id, IMAGE, IMAGE_ID, CAPTIONS, fault_column}
    others = {name: value for name, value in row.items() if name not in taken}
    return {IMAGE: image, IMAGE_ID: _name_of(image) if number is None else number, CAPTIONS: captions, **others}


def _check_captions(captions: Sequence[str]) -> None:
    """Refuse captions that teach nothing, as [`check_captions`] does where all rows are known."""
    for caption in captions:
        if (fault := caption_fault(caption)) is not None:
            raise ValueError(f"a caption {fault}: {reprlib.repr(caption)}")


def _name_of(image: Any) -> str:
    """The name of a picture's file, or a digest of its bytes."""
    path, content = (image.get("path"), image.get("bytes")) if isinstance(image, Mapping) else (image, None)
    if isinstance(path, str):
        return path if content is None else PurePath(path).name
    return hashlib.sha256(content if isinstance(content, bytes) else repr(image).encode()).hexdigest()[:16]


def load_named(
    name: str | os.PathLike[str],
    config: str | None = None,
    split: str | None = None,
    *,
    data_files: str | None = None,
    streaming: bool = False,
) -> Any:
    """Load a split of a data set of the Hub, or of a folder that `datasets` reads, such as one of Parquet files.

    Args:
        name (`str` or `os.PathLike`): `org/name` or a folder.
        config (`str`, *optional*): its configuration, where it has several.
        split (`str`, *optional*, defaults to `"train"`): names of splits joined by `+`, or a slice (`train[:10%]`).
        data_files (`str`, *optional*): the files of a data set that is called `"parquet"` or alike.
        streaming (`bool`, defaults to `False`): read it as it goes, without a copy on the disk.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`

    Raises:
        ValueError: there is no such data set, configuration or split, or it cannot be read.

    Example:

    ```python
    >>> from hf_captioners.data.captions.captioned import load_named
    >>> load_named("org/name", split="test")  # doctest: +SKIP
    ```
    """
    # a builder of datasets, such as "parquet", is no name of the Hub
    with _reading(name), at_once(name if data_files is None else None):
        return datasets.load_dataset(
            os.fspath(name), config, data_files=data_files, split=split or "train", streaming=streaming
        )


def split_names(name: str | os.PathLike[str], config: str | None = None) -> list[str]:
    """The names of the splits of a data set; arguments and errors are those of [`load_named`]."""
    with _reading(name), at_once(name):
        return list(datasets.get_dataset_split_names(os.fspath(name), config))


# what `datasets` raises about scripts of data sets, empty files and damaged archives has no class of its own
_FAULTS = (
    *(OSError, ValueError, RuntimeError, StopIteration, tarfile.TarError, zipfile.BadZipFile),
    *(datasets.exceptions.DatasetsError, pyarrow.ArrowException),
)


@contextmanager
def _reading(name: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except _FAULTS as error:
        raise ValueError(f"{name}: {error or f'it has nothing to read ({type(error).__name__})'}") from error
