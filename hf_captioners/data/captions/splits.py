"""All splits of captioned pictures, in any layout, each as a `datasets.Dataset`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, TypeAlias

from ..bad_rows import BadRows
from .captioned import Columns, captioned, load_named, split_names
from .folder import load_folder
from .folder_files import is_folder
from .layouts import splits_of
from .load import load_captions
from .tar_shards import tar_shards

if TYPE_CHECKING:
    import datasets

_Path: TypeAlias = str | os.PathLike[str]


def load_splits(
    source: _Path, image_root: _Path | None = None, bad_rows: BadRows | None = None
) -> dict[str, datasets.Dataset]:
    """Load all splits of a file of captions, of tars or of a folder.

    Args:
        source (`str` or `os.PathLike`), image_root (`str` or `os.PathLike`, *optional*), bad_rows ([`BadRows`],
            *optional*): as of [`load_captions`].

    Returns:
        `dict[str, datasets.Dataset]`: split -> its rows; a layout without splits is `"train"` alone.

    Raises:
        FileNotFoundError, ValueError: see [`load_captions`].

    Example:

    ```python
    >>> import json, tempfile
    >>> from hf_captioners.data.captions.splits import load_splits
    >>> image = {"filename": "a.jpg", "imgid": 7, "split": "val", "sentences": [{"raw": "A dog .", "sentid": 1}]}
    >>> with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
    ...     json.dump({"images": [image]}, file)
    ...     file.flush()
    ...     load_splits(file.name)["val"]["captions"][:]
    [['A dog .']]

    ```
    """
    if tar_shards(source):
        return {"train": load_captions(source, image_root, bad_rows=bad_rows)}
    if is_folder(source):
        if image_root is not None:
            raise ValueError(f"{source}: is a folder, which has its own pictures; leave image_root={image_root} out")
        return load_folder(source, bad_rows)
    names = splits_of(source)
    if not names:
        return {"train": load_captions(source, image_root, bad_rows=bad_rows)}
    return {name: load_captions(source, image_root, name, bad_rows=bad_rows) for name in names}


def load_named_splits(
    name: _Path, config: str | None = None, columns: Columns | None = None, bad_rows: BadRows | None = None
) -> dict[str, datasets.Dataset]:
    """Load all splits of a data set of the Hub, or of a folder that `datasets` reads.

    Args:
        name (`str` or `os.PathLike`), config (`str`, *optional*): as of [`load_named`].
        columns ([`Columns`], *optional*), bad_rows ([`BadRows`], *optional*): as of [`captioned`].

    Returns:
        `dict[str, datasets.Dataset]`: split -> its rows.

    Raises:
        ValueError: see [`load_named`] and [`captioned`].
    """
    return {
        split: captioned(load_named(name, config, split), columns, os.fspath(name), bad_rows=bad_rows)
        for split in split_names(name, config)
    }
