"""HDF5 files of other projects, read with errors that name the file and what was looked for.

h5py is an extra, `pip install "hf_captioners[h5]"`, and imported when the first file is opened.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np


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
        raise ImportError(f'{path}: HDF5 files are read with h5py: pip install "hf_captioners[h5]"') from error
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
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
        Hdf5Error: there is no such data set, it is a group, or it is damaged.

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
        content = file[name]
        array = content[()] if isinstance(content, h5py.Dataset) else None
    except KeyError as error:
        raise Hdf5Error(f"{where}: no data set of this name, or a link that leads nowhere") from error
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise Hdf5Error(f"{where}: damaged: {error}") from error
    if array is None:
        raise Hdf5Error(f"{where}: is a group, expected a data set")
    return np.asarray(array)
