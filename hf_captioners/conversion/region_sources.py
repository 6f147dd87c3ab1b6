"""Region features that other projects keep in LMDB databases and pickles, opened without running what is in them.

Layouts, each of one record an image:

- LMDB databases from image id to a pickled dict with `features` and `boxes`, as arrays or in base64 with `num_boxes`
  (ViLBERT and its kin, mmf with `bbox`), or to the bytes of an `.npz` or `.npy` (ImageCaptioning.pytorch). Keys of the
  database itself, `keys` and `__...__`, are passed over;
- pickled lists of dicts with `image_id` and `features`, as X-modaler keeps its data, and pickled dicts from image id to
  such a dict or to the array.

All other layouts are those of `data.features.regions`. A pickle is read as a whole, a database image by image.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..data.bad_rows import BadRows
from ..data.captions.records import id_of
from ..data.features.region_files import NAMES, ArraySource, open_arrays, read_numpy
from ..data.features.region_tsv import decode_array
from ..data.features.regions import RegionFeatures
from ..data.features.store import FeatureError, ImageId
from ..data.lmdb_file import LmdbError, LmdbFile, is_lmdb
from .pickle_limits import show
from .pickled_arrays import ARRAYS, MAX_BYTES, PickledArray
from .safe_load import CheckpointError, load_plain_pickle, unpickle_plain

_IMAGE_ID = ("image_id", "img_id")
_WIDTH, _HEIGHT = ("image_w", "image_width", "img_w"), ("image_h", "image_height", "img_h")


def open_region_features(path: Any, **options: Any) -> RegionFeatures:
    """Open region features of any layout.

    Args:
        path (`str`, `os.PathLike` or a list of them): the features.
        options: of [`RegionFeatures`].

    Returns:
        [`RegionFeatures`]

    Raises:
        ValueError, OSError, ImportError: see [`RegionFeatures`].

    Example:

    ```python
    >>> import pickle, tempfile
    >>> import numpy as np
    >>> from hf_captioners.conversion.region_sources import open_region_features
    >>> path = f"{tempfile.mkdtemp()}/regions.pkl"
    >>> with open(path, "wb") as file:
    ...     pickle.dump([{"image_id": "42", "features": np.ones((36, 2048), dtype=np.float32)}], file)
    >>> with open_region_features(path) as regions:
    ...     regions.ids, regions[42].shape
    ([42], (36, 2048))

    ```
    """
    return RegionFeatures(path, open_source=open_source, **options)


def open_source(path: Path, part: str, bad_rows: BadRows) -> ArraySource:
    """Open a path as boxes or features of images: a pickle, an LMDB database, or as [`open_arrays`] does."""
    if is_lmdb(path):
        return ArrayLmdb(path, part, bad_rows)
    if path.suffix in (".pkl", ".pickle"):
        return ArrayPickle(path, part, bad_rows)
    return open_arrays(path, part, bad_rows)


class ArrayPickle:
    """Boxes or features of a pickled list or dict.

    Args:
        path (`Path`): the pickle.
        part (`str`): `"features"` or `"boxes"`.
        bad_rows ([`BadRows`]): gets records without an id, or with one that another record has.

    Attributes:
        ids (`list[int | str]`): image ids in the order of the file.
        sizes (`dict[int | str, tuple[int, int]]`): image id -> width and height in pixels, where records have them.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: it is no pickle of plain values and arrays.
        FeatureError: a record is bad, or there are none.
    """

    def __init__(self, path: Path, part: str, bad_rows: BadRows) -> None:
        self._path, self._part = path, part
        self._records: dict[ImageId, tuple[str, Any]] = {}
        for place, image_id, record in _records(path):
            where = f"{path}: {place}"
            try:
                known = id_of(image_id, "image_id")
                if known in self._records:
                    raise ValueError(f"image_id {known!r} is already that of {self._records[known][0]}")
            except ValueError as error:
                bad_rows.add(FeatureError(f"{where}: {error}"))
                continue
            self._records[known] = place, record
        if not self._records:
            raise FeatureError(f"{path}: no regions in it; expected a list of dicts with 'image_id' and 'features'")
        self.ids = list(self._records)
        self.sizes = {
            image_id: size for image_id, (_, record) in self._records.items() if (size := _size_of(record)) is not None
        }

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the array of an image, for messages, and the array; FeatureError if it is damaged."""
        place, record = self._records[image_id]
        return f"{self._path}: {place}", _array_of(record, self._part, f"{self._path}: {place}")

    def close(self) -> None:
        """Forget what was read."""
        self._records = {}


def _records(path: Path) -> Iterable[tuple[str, Any, Any]]:
    """Places, image ids and records of a pickle."""
    content = load_plain_pickle(path, MAX_BYTES, ARRAYS, encoding="latin-1")
    if isinstance(content, dict):
        return [(f"key {show(key)}", _text(key), record) for key, record in content.items()]
    if not isinstance(content, list):
        raise CheckpointError(f"{path}: holds {show(content)}; expected a list of dicts with 'image_id' and 'features'")
    found = []
    for index, record in enumerate(content):
        image_id = _first(record, _IMAGE_ID) if isinstance(record, dict) else None
        found.append((f"[{index}]", _text(image_id), record))
    return found


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class ArrayLmdb:
    """Boxes or features of an LMDB database.

    Args:
        path (`Path`): the folder with `data.mdb`, or that file.
        part (`str`): `"features"` or `"boxes"`.
        bad_rows ([`BadRows`]): gets pages that are damaged or behind the end of the file, and keys that are no ids.

    Attributes:
        ids (`list[int | str]`): image ids in the order of the keys.
        sizes: empty; records are read image by image.

    Raises:
        OSError: there is no such file.
        LmdbError: it is no database, or damaged.
        FeatureError: a key is bad, or there are none.
    """

    sizes: Mapping[ImageId, tuple[int, int]] = {}

    def __init__(self, path: Path, part: str, bad_rows: BadRows) -> None:
        self._path, self._part = path, part
        self._file = LmdbFile(path, bad_rows)
        self._keys: dict[ImageId, bytes] = {}
        try:
            self._index(bad_rows)
        except BaseException:
            self._file.close()
            raise
        self.ids = list(self._keys)

    def _index(self, bad_rows: BadRows) -> None:
        for key in self._file.keys:
            if key == b"keys" or key.startswith(b"__"):
                continue
            try:
                image_id = id_of(key.decode("utf-8"), "image id")
                if image_id in self._keys:
                    raise ValueError(f"is of image {image_id!r}, as {self._keys[image_id]!r} is")
            except ValueError as error:  # UnicodeDecodeError is one
                bad_rows.add(FeatureError(f"{self._path}: key {show(key)}: {error}"))
                continue
            self._keys[image_id] = key
        if not self._keys:
            raise FeatureError(f"{self._path}: no regions in it; expected keys that are ids of images")

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the array of an image, for messages, and the array; FeatureError if it is damaged."""
        key = self._keys[image_id]
        where = f"{self._path}: key {show(key)}"
        try:
            content = self._file[key]
            if content.startswith(b"\x80") or not content.startswith((b"\x93NUMPY", b"PK")):
                return where, _array_of(unpickle_plain(content, where, ARRAYS, "latin-1"), self._part, where)
        except (LmdbError, CheckpointError) as error:
            raise FeatureError(str(error)) from error
        return where, read_numpy(io.BytesIO(content), len(content), self._part, where)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _first(record: Any, names: Iterable[str]) -> Any:
    """The first of some fields that a record has."""
    return next((record[name] for name in names if name in record), None)


def _size_of(record: Any) -> tuple[int, int] | None:
    """Width and height of a record's image."""
    if not isinstance(record, dict):
        return None
    width, height = _first(record, _WIDTH), _first(record, _HEIGHT)
    return (width, height) if type(width) is int and type(height) is int and min(width, height) > 0 else None


def _array_of(record: Any, part: str, where: str) -> np.ndarray:
    """The boxes or the features of a record.

    Raises:
        FeatureError: it has none, or they are damaged.
    """
    value = record
    if isinstance(record, dict):
        name = next((name for name in NAMES[part] if name in record), None)
        if name is None:
            raise FeatureError(f"{where}: has {show(list(record))}, expected {' or '.join(map(repr, NAMES[part]))}")
        value, where = record[name], f"{where}: {name}"
    try:
        if isinstance(value, PickledArray):
            return value.tensor().numpy()
        if isinstance(value, str | bytes) and isinstance(record, dict):
            return _from_base64(value, record.get("num_boxes"), part)
    except (ValueError, AttributeError) as error:  # AttributeError: an array without state
        raise FeatureError(f"{where}: {error}") from error
    raise FeatureError(f"{where}: is {show(value)}, expected an array, or base64 with num_boxes")


def _from_base64(text: str | bytes, num_boxes: Any, part: str) -> np.ndarray:
    """An array in base64 of float32; ValueError if it is none."""
    if type(num_boxes) is not int and not (isinstance(num_boxes, str) and num_boxes.isdecimal()):
        raise ValueError(f"num_boxes is {show(num_boxes)}, expected a whole number")
    return decode_array(text, int(num_boxes), part)
