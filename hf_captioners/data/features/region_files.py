"""Arrays by image id in the files of other projects: a folder with a file per image, or one HDF5 file.

`regions` builds on this; see there for the layouts. Nothing is unpickled.
"""

from __future__ import annotations

import math
import os
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np

from ..captions.records import id_of
from ..files import regular_file
from ..hdf5 import Hdf5Error, names_in, open_hdf5, read_array
from ..limits import check_array
from .store import FeatureError, ImageId

# what numpy and zipfile raise for damaged files
_DAMAGED = (OSError, ValueError, EOFError, KeyError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error)
_NPY = b"\x93NUMPY"
_DAMAGED_TOO = (*_DAMAGED, tokenize.TokenError)


class ArrayFolder:
    """A folder with `<id>.npz` or `<id>.npy` for every image.

    Args:
        path (`Path`): the folder.
        name (`str`): of the array to take from an `.npz` that has several.

    Attributes:
        ids (`list[int | str]`): image ids, numbers in their order and then names in theirs.

    Raises:
        FeatureError: there are no such files, or two of one image.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
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
                head = file.read(len(_NPY))
                file.seek(0)
                if head == _NPY:
                    return str(path), _read_npy(file, path.stat().st_size)
            if not head.startswith(b"PK"):
                raise ValueError("no array of NumPy, and pickles are not read")
            with zipfile.ZipFile(path) as archive:
                return str(path), self._member(archive)
        except _DAMAGED_TOO as error:
            raise FeatureError(f"{path}: not readable: {error}") from error

    def _member(self, archive: zipfile.ZipFile) -> np.ndarray:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if self._name not in members and len(members) != 1:
            raise ValueError(f"it has the arrays {list(members)}, expected {self._name!r} or one array")
        name = self._name if self._name in members else next(iter(members))
        if not members[name].filename.endswith(".npy"):
            raise ValueError(f"{name!r} in it is no array")
        check_array(repr(name), members[name].file_size, members[name].compress_size)
        with archive.open(members[name]) as file:
            return _read_npy(file, members[name].file_size)

    def close(self) -> None:
        """Nothing stays open."""


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
    """An HDF5 file with a data set `<id>` or `<id><ending>` for every image.

    Args:
        path (`Path`): the file.
        ending (`str`): such as `"_features"`. Where some names have it, the others are passed over.

    Attributes:
        ids (`list[int | str]`): image ids, numbers in their order and then names in theirs.

    Raises:
        ImportError: h5py is not installed.
        Hdf5Error: it is no HDF5 file.
        FeatureError: there are no data sets, or two of one image.
    """

    def __init__(self, path: Path, ending: str) -> None:
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


def open_arrays(path: str | os.PathLike[str], name: str, ending: str) -> ArrayFolder | ArrayHdf5:
    """Find the arrays of a folder or an HDF5 file.

    Args:
        path (`str` or `os.PathLike`): the folder or the file.
        name (`str`), ending (`str`): see [`ArrayFolder`] and [`ArrayHdf5`].

    Returns:
        [`ArrayFolder`] or [`ArrayHdf5`]

    Raises:
        FileNotFoundError: there is neither.
        ImportError, ValueError: see [`ArrayFolder`] and [`ArrayHdf5`].
    """
    place = Path(path)
    if place.is_file() and _is_tsv(place):
        raise FeatureError(
            f"{path}: bottom-up features as a TSV, an image a line with its arrays in base64, which is not read; "
            "scripts/make_bu_data.py of ImageCaptioning.pytorch makes folders of .npz and .npy of it"
        )
    return ArrayFolder(place, name) if place.is_dir() else ArrayHdf5(place, ending)


def _is_tsv(path: Path) -> bool:
    """Tell whether a file begins as the lines of Anderson's detector: an id, three sizes and base64, with tabs."""
    with path.open("rb") as file:
        fields = file.read(512).split(b"\t")
    return len(fields) > 4 and all(field.strip().isdigit() for field in fields[:4])


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
