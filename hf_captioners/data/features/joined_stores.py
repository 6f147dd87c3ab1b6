"""Several feature stores read as one, such as those of a data set's splits, or of files converted one by one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import Tensor

from .store import FeatureError, FeatureStore, ImageId

_Path: TypeAlias = str | os.PathLike[str]

_SOURCES = ("regions", "boxes")  # of metadata: names of files, which may differ


class JoinedStores(FeatureStore):
    """Stores that hold features of different images, made in the same way: `stores[image_id]`, as of one of them.

    Args:
        stores (`Sequence[FeatureStore]`): at least one.

    Attributes:
        ids, feature_size, dtype, metadata, errors, num_bytes, is_checked: as of one store; ids in the order of the
            stores.

    Raises:
        FeatureError: two of them hold the same image, or their features are of another width or precision, or made
            otherwise.
    """

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        first = stores[0]
        self.folder = Path(", ".join(str(store.folder) for store in stores))  # for messages
        self.ids: list[ImageId] = []
        self._store_of: dict[ImageId, FeatureStore] = {}
        for store in stores:
            _check_equal(first, store)
            for image_id in store.ids:
                other = self._store_of.setdefault(image_id, store)
                if other is not store:
                    raise FeatureError(f"{store.folder}: features of image {image_id!r} are in {other.folder}, too")
            self.ids += store.ids
        self.feature_size = next((store.feature_size for store in stores if store.feature_size is not None), None)
        self.dtype, self.metadata = first.dtype, first.metadata
        self.errors = {image_id: error for store in stores for image_id, error in store.errors.items()}
        self.num_bytes = sum(store.num_bytes for store in stores)
        self.is_checked = all(store.is_checked for store in stores)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._store_of

    def _store(self, image_id: ImageId) -> FeatureStore:
        if image_id not in self._store_of:
            raise KeyError(f"no features of image {image_id!r} in {self.folder} ({len(self)} images)")
        return self._store_of[image_id]

    def __getitem__(self, image_id: ImageId) -> Tensor:
        return self._store(image_id)[image_id]

    def extra(self, image_id: ImageId, name: str) -> Tensor:
        """Values stored beside the features of an image; see [`FeatureStore.extra`]."""
        return self._store(image_id).extra(image_id, name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__  # the stores leave out what cannot be pickled


def _check_equal(first: FeatureStore, other: FeatureStore) -> None:
    pairs = {
        "width": (first.feature_size, other.feature_size),
        "dtype": (first.dtype, other.dtype),
        **{
            name: (first.metadata.get(name), other.metadata.get(name))
            for name in sorted(first.metadata.keys() | other.metadata.keys())
            if name not in _SOURCES
        },
    }
    for name, (there, here) in pairs.items():
        if there != here and not (name == "width" and None in (there, here)):
            raise FeatureError(
                f"{other.folder}: features made otherwise than those of {first.folder} ({name}: {there!r} there, "
                f"{here!r} here); give stores that were made alike"
            )


def open_features(folders: _Path | Sequence[_Path]) -> FeatureStore:
    """Open a feature store, or several as one.

    Args:
        folders (`str`, `os.PathLike` or a list of them): folders of stores.

    Returns:
        [`FeatureStore`]: of several folders [`JoinedStores`].

    Raises:
        FeatureError: see [`FeatureStore`] and [`JoinedStores`].

    Example:

    ```python
    >>> import tempfile, torch
    >>> from hf_captioners.data.features.joined_stores import open_features
    >>> from hf_captioners.data.features.store import FeatureWriter
    >>> folder = tempfile.mkdtemp()
    >>> for split, image_id in (("train", 1), ("val", 2)):
    ...     with FeatureWriter(f"{folder}/{split}") as writer:
    ...         writer.add(image_id, torch.ones(36, 8))
    >>> store = open_features([f"{folder}/train", f"{folder}/val"])
    >>> store.ids, store[2].shape
    ([1, 2], torch.Size([36, 8]))

    ```
    """
    if isinstance(folders, (str, os.PathLike)):
        return FeatureStore(folders)
    stores = [FeatureStore(folder) for folder in folders]
    return stores[0] if len(stores) == 1 else JoinedStores(stores)
