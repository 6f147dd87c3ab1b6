"""HDF5 files of other projects, read with errors that name the file and what was looked for.

h5py is of the extra `h5` and imported when the first file is opened.

HDF5 can make a file out of others: by links into them, by data sets whose bytes lie in them, by data sets put together
of theirs. Followed, a file of features would bring any file of the machine into a store, so all of these are refused,
by name and before another file is opened. A data set that declares much more than is stored of it is refused unread
(`limits.check_array`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import explained
from .files import regular_file
from .limits import LimitError, check_array

MOST_LINKS = 16  # soft links behind each other; HDF5's own limit


class Hdf5Error(ValueError):
    """A file that is no HDF5 file or is damaged, or something in it that is not what it should be."""


def open_hdf5(path: str | os.PathLike[str]) -> Any:
    """Open a file for reading.

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        `h5py.File`: use it as a context manager, or close it.

    Raises:
        ImportError: h5py is not installed.
        FileNotFoundError: there is no such file.
        Hdf5Error: it is a folder, no HDF5 file, or cut off.
    """
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"{path}: HDF5 files are read with h5py: {explained(error)}") from error
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    if not Path(path).is_dir():
        regular_file(os.fspath(path), "HDF5 file")
    try:
        return h5py.File(path, "r")
    except (OSError, RuntimeError) as error:
        raise Hdf5Error(f"{path}: not a readable HDF5 file: {error}") from error


def names_in(file: Any) -> list[str]:
    """The names at the top level of a file.

    Args:
        file (`h5py.File`): from [`open_hdf5`].

    Returns:
        `list[str]`: in alphabetical order, as HDF5 keeps them.

    Raises:
        Hdf5Error: the file is damaged.
    """
    try:
        return list(file)
    except (OSError, RuntimeError, ValueError) as error:
        raise Hdf5Error(f"{file.filename}: damaged, its content cannot be listed: {error}") from error


def read_array(file: Any, name: str) -> np.ndarray:
    """A data set as an array in memory.

    Args:
        file (`h5py.File`): from [`open_hdf5`].
        name (`str`): of the data set.

    Returns:
        `np.ndarray`

    Raises:
        Hdf5Error: there is no such data set, it is a group, it is damaged, or its content lies in another file.

    Example:

    ```python
    >>> import tempfile
    >>> import h5py, numpy as np
    >>> from hf_captioners.data.hdf5 import open_hdf5, read_array
    >>> with tempfile.NamedTemporaryFile() as path:
    ...     with h5py.File(path.name, "w") as file:
    ...         file["42"] = np.ones((3, 2), dtype=np.float32)
    ...     with open_hdf5(path.name) as file:
    ...         read_array(file, "42").shape
    (3, 2)

    ```
    """
    import h5py

    where = f"{file.filename}: {name!r}"
    try:
        content = _follow(file, name)
        array = _content(content) if isinstance(content, h5py.Dataset) else None
    except (Hdf5Error, LimitError) as error:
        raise Hdf5Error(f"{where}: {error}") from error
    except KeyError as error:
        raise Hdf5Error(f"{where}: no data set of this name, or a link that leads nowhere") from error
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise Hdf5Error(f"{where}: damaged: {error}") from error
    if array is None:
        raise Hdf5Error(f"{where}: is a group, expected a data set")
    return np.asarray(array)


def _follow(file: Any, name: str) -> Any:
    """The object of a name, through hard links and through soft links inside the file.

    `file[name]` would follow links into other files too, and so would `name in file`.

    Raises:
        Hdf5Error: a link of another kind, or too many.
        KeyError: it leads nowhere.
    """
    import h5py

    place, steps, soft = file["/"], _steps(name), 0
    while steps:
        step = steps.pop(0)
        if not isinstance(place, h5py.Group) or not place.id.links.exists(step):
            raise KeyError(name)
        kind = place.id.links.get_info(step).type
        if kind == h5py.h5l.TYPE_SOFT:
            target, soft = place.id.links.get_val(step), soft + 1
            if soft > MOST_LINKS:
                raise Hdf5Error(f"more than {MOST_LINKS} soft links behind each other")
            place, steps = file["/"] if target.startswith(b"/") else place, [*_steps(target), *steps]
        elif kind == h5py.h5l.TYPE_HARD:
            place = place[step]
        else:
            what = "an external link, into another file" if kind == h5py.h5l.TYPE_EXTERNAL else "a user-defined link"
            raise Hdf5Error(f"{what}, which is not followed; copy what it leads to into this file")
    return place


def _steps(path: str | bytes) -> list[bytes]:
    parts = (path.encode("utf-8", "surrogateescape") if isinstance(path, str) else path).split(b"/")
    return [part for part in parts if part not in (b"", b".")]


def _content(dataset: Any) -> Any:
    """Content of a data set; its shape is not asked for before, because that of a virtual one opens its sources."""
    import h5py

    created = dataset.id.get_create_plist()
    if created.get_external_count():
        raise Hdf5Error("external storage, its content lies in another file, which is not read; copy it into this one")
    if created.get_layout() == h5py.h5d.VIRTUAL:
        raise Hdf5Error("a virtual data set, put together of others, which is not read; copy it into this file")
    declared, stored = dataset.size or 0, dataset.id.get_storage_size()
    check_array("it", declared * max(dataset.dtype.itemsize, 1), stored)
    return dataset[()]
