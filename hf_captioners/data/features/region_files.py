"""Arrays by image id in the files of other projects: a folder with a file per image, an HDF5 file, or a TSV.

`regions` builds on this; see there for the layouts. Nothing is unpickled; `conversion.region_sources` does that safely.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from ..bad_rows import BadRows
from ..captions.records import id_of
from ..files import regular_file
from ..hdf5 import Hdf5Error, names_in, open_hdf5, read_array
from ..limits import check_array
from ..lmdb_file import is_lmdb
from .region_tsv import ArrayTsv
from .store import FeatureError, ImageId

# what numpy and zipfile raise for damaged files
_DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_NPY = b"\x93NUMPY"
_DAMAGED_TOO = (*_DAMAGED, tokenize.TokenError)
_TSV_HEAD = 4  # numbers in front of the base64

NAMES: Mapping[str, Sequence[str]] = {"features": ("feat", "features"), "boxes": ("boxes", "bbox")}
"""What files call the two parts of region features, in the order in which they are looked for."""


class ArraySource(Protocol):
    """Boxes or features of images.

    Attributes:
        ids (`list[int | str]`): image ids.
        sizes (`Mapping[int | str, tuple[int, int]]`): image id -> width and height in pixels, where it has them.
    """

    ids: list[ImageId]

    @property
    def sizes(self) -> Mapping[ImageId, tuple[int, int]]:
        """The sizes of images, as far as they are known."""

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the array of an image, for messages, and the array; FeatureError if it is damaged."""

    def close(self) -> None:
        """Close what is open."""


class ArrayFolder:
    """A folder with `<id>.npz` or `<id>.npy` for every image.

    Args:
        path (`Path`): the folder.
        part (`str`): `"features"` or `"boxes"`: which array to take from an `.npz` that has several.

    Attributes:
        ids (`list[int | str]`): image ids, numbers in their order and then names in theirs.

    Raises:
        FeatureError: there are no such files, or two of one image.
    """

    sizes: Mapping[ImageId, tuple[int, int]] = {}

    def __init__(self, path: Path, part: str) -> None:
        self._part = part
        with os.scandir(path) as entries:
            names = [entry.name for entry in entries if entry.name.endswith((".npz", ".npy"))]
        # names with a dot in front are what file managers leave
        files = [path / name for name in sorted(names) if not name.startswith(".")]
        self._files = _by_id(path, {file.name: file.stem for file in files})
        self._path = path
        self.ids = _in_order(self._files)

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the array of an image, for messages, and the array; FeatureError if it is damaged."""
        path = self._path / self._files[image_id]
        try:
            with regular_file(path, "file of an array").open("rb") as file:
                return str(path), read_numpy(file, path.stat().st_size, self._part, str(path))
        except OSError as error:
            raise FeatureError(f"{path}: not readable: {error}") from error

    def close(self) -> None:
        """Nothing stays open."""


def read_numpy(file: IO[bytes], size: int, part: str, where: str) -> np.ndarray:
    """Read an array in NumPy's format, or that of a part from an `.npz`; nothing is unpickled.

    Args:
        file (`IO[bytes]`), size (`int`): the content, and its bytes.
        part (`str`): `"features"` or `"boxes"`.
        where (`str`): file, or file and key, for messages.

    Raises:
        FeatureError: it is neither, or damaged.
    """
    try:
        head = file.read(len(_NPY))
        file.seek(0)
        if head == _NPY:
            return _read_npy(file, size)
        if not head.startswith(b"PK"):
            raise ValueError("no array of NumPy, and pickles are not read")
        with zipfile.ZipFile(file) as archive:
            return _member(archive, part)
    except _DAMAGED_TOO as error:
        raise FeatureError(f"{where}: not readable: {error}") from error


def _member(archive: zipfile.ZipFile, part: str) -> np.ndarray:
    members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
    name = next((name for name in NAMES[part] if name in members), next(iter(members), ""))
    if name not in NAMES[part] and len(members) != 1:
        raise ValueError(f"it has the arrays {list(members)}, expected {NAMES[part][0]!r} or one array")
    if not members[name].filename.endswith(".npy"):
        raise ValueError(f"{name!r} in it is no array")
    check_array(repr(name), members[name].file_size, members[name].compress_size)
    with archive.open(members[name]) as file:
        return _read_npy(file, members[name].file_size)


def _read_npy(file: IO[bytes], size: int) -> np.ndarray:
    """Read an array in NumPy's format, of which no more is expected than the file has; nothing is unpickled."""
    start = file.tell()
    version = np.lib.format.read_magic(file)
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(file)
    declared = math.prod(shape) * max(dtype.itemsize, 1)
    if declared > size:
        raise ValueError(f"declares {declared} bytes of an array and has {size}")
    file.seek(start)
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


class ArrayHdf5:
    """An HDF5 file with a data set `<id>`, `<id>_features` or `<id>_boxes` for every image.

    Args:
        path (`Path`): the file.
        part (`str`): `"features"` or `"boxes"`. Where some names end in `_features` or `_boxes`, the others are passed
            over.

    Attributes:
        ids (`list[int | str]`): image ids, numbers in their order and then names in theirs.

    Raises:
        ImportError: h5py is not installed.
        Hdf5Error: it is no HDF5 file.
        FeatureError: there are no data sets, or two of one image.
    """

    sizes: Mapping[ImageId, tuple[int, int]] = {}

    def __init__(self, path: Path, part: str) -> None:
        ending = f"_{part}"
        self._file = open_hdf5(path)
        names = names_in(self._file)
        names = [name for name in names if name.endswith(ending)] or names
        try:
            self._names = _by_id(path, {name: name.removesuffix(ending) for name in names})
        except FeatureError:
            self._file.close()
            raise
        self.ids = _in_order(self._names)

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the array of an image, for messages, and the array; FeatureError if it is damaged."""
        name = self._names[image_id]
        try:
            return f"{self._file.filename}: {name!r}", read_array(self._file, name)
        except Hdf5Error as error:
            raise FeatureError(str(error)) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class JoinedArrays:
    """Several sources as one.

    Args:
        sources (`Mapping[str, ArraySource]`): by their names, for messages.
        bad_rows ([`BadRows`]): gets images that two sources have; the first one's stay.

    Attributes:
        ids (`list[int | str]`), sizes (`dict[int | str, tuple[int, int]]`): as of one source, the first one's first.
    """

    def __init__(self, sources: Mapping[str, ArraySource], bad_rows: BadRows) -> None:
        self._sources = sources
        self._names: dict[ImageId, str] = {}
        self.sizes: dict[ImageId, tuple[int, int]] = {}
        for name, source in sources.items():
            for image_id in source.ids:
                if image_id in self._names:
                    bad_rows.add(FeatureError(f"{name}: image {image_id!r} is already in {self._names[image_id]}"))
                else:
                    self._names[image_id] = name
            self.sizes = {**source.sizes, **self.sizes}
        self.ids = list(self._names)

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the array of an image, for messages, and the array; FeatureError if it is damaged."""
        return self._sources[self._names[image_id]].read(image_id)

    def close(self) -> None:
        """Close all of them."""
        for source in self._sources.values():
            source.close()


def open_arrays(path: str | os.PathLike[str], part: str, bad_rows: BadRows | None = None) -> ArraySource:
    """Find the arrays of a folder, an HDF5 file or a TSV.

    Args:
        path (`str` or `os.PathLike`): the folder or the file.
        part (`str`): `"features"` or `"boxes"`.
        bad_rows ([`BadRows`], *optional*): gets lines of a TSV that cannot be used; by default they are errors.

    Returns:
        `ArraySource`: an [`ArrayFolder`], [`ArrayHdf5`] or [`ArrayTsv`].

    Raises:
        FileNotFoundError: there is neither.
        ImportError, ValueError: see these.
    """
    place = Path(path)
    if is_lmdb(place) or place.suffix in (".pkl", ".pickle"):
        raise FeatureError(
            f"{path}: an LMDB database or a pickle; open_region_features of hf_captioners.conversion.region_sources "
            "reads it"
        )
    if place.is_file() and _is_tsv(place):
        return ArrayTsv(place, part, bad_rows or BadRows())
    return ArrayFolder(place, part) if place.is_dir() else ArrayHdf5(place, part)


def _is_tsv(path: Path) -> bool:
    """Tell whether a file is named or begins as those of Anderson's detector: an id, three numbers and base64."""
    with path.open("rb") as file:
        fields = file.read(512).split(b"\t")
    is_text = len(fields) > _TSV_HEAD and all(field.strip().isdigit() for field in fields[1:_TSV_HEAD])
    return is_text or path.suffix == ".tsv"


def _by_id(path: Path, texts: dict[str, str]) -> dict[ImageId, str]:
    """Image id -> name of a file or a data set, whose part that is the id is given."""
    names: dict[ImageId, str] = {}
    for name, text in texts.items():
        image_id = id_of(text, f"{path}: the id in {name!r}")
        if names.setdefault(image_id, name) != name:
            raise FeatureError(f"{path}: {names[image_id]!r} and {name!r} are both of image {image_id!r}")
    if not names:
        raise FeatureError(f"{path}: no arrays in it; expected one per image, <id>.npz or <id>.npy or <id> in HDF5")
    return names


def _in_order(ids: Iterable[ImageId]) -> list[ImageId]:
    return sorted(ids, key=lambda image_id: (isinstance(image_id, str), image_id))
