"""Image features on disk: computed once, read row by row from memory-mapped files for as many epochs as needed.

A store is a folder of `features-00000.safetensors`, ... and an `index.json` that says which shard holds which image,
of which width and precision the features are, what they were made with, and each shard's SHA-256. Shards are written
to a temporary name, synced and renamed, the index after each of them, so that a run that was killed goes on where its
last finished shard ends. It replaces the single HDF5 file of the original captioners (one `<id>_features` dataset per
image), which a killed run leaves unreadable and which forked DataLoader workers cannot share.

A folder has one writer at a time. A shard holds its images' ids, which are compared with the index when it is opened.
The checksums are compared once: when a store is opened whose shards have changed in size or time since they were
written or last checked here, which `verified.json` notes, or on demand (`FeatureStore(folder, verify=True)`). That
features are finite is checked when they are written, not with each read; `checked` in the index says so, which stores
of earlier releases lack. Stores of version 1, without checksums and ids, are read as before and go on as version 2.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ...modeling.captioner_layers import LARGEST_FEATURE
from ..files import locked, sha256_of, write_whole
from .store_index import (
    DTYPES,
    FORMAT,
    INDEX_NAME,
    SHARD_NAME,
    VERSION,
    FeatureError,
    ImageId,
    check_shards,
    read_index,
    read_stamps,
    stamp_of,
    verify_shards,
    write_stamps,
)
from .store_shard import Shard, tensor_name

__all__ = [
    "DEFAULT_SHARD_BYTES",
    "DTYPES",
    "FeatureError",
    "FeatureStore",
    "FeatureSummary",
    "FeatureWriter",
    "ImageId",
]

DEFAULT_SHARD_BYTES = 500_000_000


@dataclass(frozen=True)
class FeatureSummary:
    """Summary of a run that has written features into a store.

    Attributes:
        folder (`str`): The store.
        count (`int`): Images with features in it, those of earlier runs included.
        added (`int`): Of these, images of this run.
        num_bytes (`int`): Size of its shards.
        errors (`dict[int | str, str]`): Images of this run without features, and why.
    """

    folder: str
    count: int
    added: int
    num_bytes: int
    errors: dict[ImageId, str]


class FeatureWriter:
    """Writer of image features into a folder, to be read by [`FeatureStore`].

    Use it as a context manager; a second one of the same folder is refused. Opening a folder that an earlier run has
    left, finished or not, continues it: what is in `writer` needs no computing. Features in memory (less than a shard)
    are written even when the block is left by an exception; only then the folder stays marked as incomplete.

    Args:
        out_dir (`str` or `os.PathLike`): The folder, made if need be.
        dtype (`torch.dtype`, defaults to `torch.float16`): `float16`, `bfloat16` or `float32`, as they are stored.
        shard_bytes (`int`, defaults to 500,000,000): Features of about so many bytes make a file.
        metadata (`dict`, *optional*):
            What the features were made with, JSON values. A folder is only continued with equal metadata.

    Raises:
        FeatureError: The folder holds features of another dtype or with other metadata, is damaged, or is being written
            by another process.
        ValueError: `dtype` or `shard_bytes` have no such value.

    Example:

    ```python
    >>> import tempfile, torch
    >>> from hf_captioners.data.features.store import FeatureStore, FeatureWriter
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with FeatureWriter(folder) as writer:
    ...         writer.add(42, torch.ones(49, 1280))
    ...     FeatureStore(folder)[42].shape
    torch.Size([49, 1280])

    ```
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        *,
        dtype: torch.dtype = torch.float16,
        shard_bytes: int = DEFAULT_SHARD_BYTES,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        if dtype not in DTYPES.values():
            raise ValueError(f"dtype={dtype}, expected one of {', '.join(map(str, DTYPES.values()))}")
        if shard_bytes < 1:
            raise ValueError(f"shard_bytes={shard_bytes}, expected a positive number of bytes")
        self.folder = Path(out_dir)
        self.dtype = dtype
        self.shard_bytes = shard_bytes
        self._dtype_name = str(dtype).removeprefix("torch.")
        self._metadata = json.loads(json.dumps(metadata or {}))  # as it will be read back: tuples become lists
        self._shards: list[dict[str, Any]] = []
        self._pending: dict[ImageId, dict[str, Tensor]] = {}  # features under "", and what belongs to them
        self._pending_bytes = 0
        self._done: set[ImageId] = set()
        self._errors: dict[ImageId, str] = {}
        self._complete = False
        self._checked = True  # all images of the store, with `add`
        self.feature_size: int | None = None
        self._lock = contextlib.ExitStack()
        self._written: set[str] = set()
        self._stamps: dict[str, Any] = {}

    def __enter__(self) -> "FeatureWriter":
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.enter_context(locked(self.folder))
        except BlockingIOError as error:
            raise FeatureError(f"{self.folder}: another process is writing features into it; wait for it") from error
        try:
            return self._open()
        except BaseException:
            self._lock.close()
            raise

    def _open(self) -> "FeatureWriter":
        if (self.folder / INDEX_NAME).exists():
            self._resume(read_index(self.folder))
            return self
        stray = next((path for path in self.folder.iterdir() if SHARD_NAME.fullmatch(path.name)), None)
        if stray is not None:
            raise FeatureError(f"{stray}: features without an {INDEX_NAME} would be overwritten; choose another folder")
        self._write_index(complete=False)  # states the settings before the first shard does
        return self

    def _resume(self, index: dict[str, Any]) -> None:
        now, before = {**self._metadata, "dtype": self._dtype_name}, {**index["metadata"], "dtype": index["dtype"]}
        different = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        if different:
            changes = "; ".join(f"{key}: {before.get(key)!r} there, {now.get(key)!r} now" for key in different)
            raise FeatureError(f"{self.folder}: holds features made otherwise ({changes}); choose another folder")
        check_shards(self.folder, index)
        self._stamps = read_stamps(self.folder)
        self._shards = index["shards"]
        self._done = {image_id for shard in self._shards for image_id in shard["ids"]}
        self._errors = {row["image_id"]: row["error"] for row in index["errors"]}
        self._complete = index["complete"]
        self._checked = index.get("checked") is True
        self.feature_size = index["feature_size"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._flush()
            self._write_index(complete=self._complete if error else True)
            stamps = {shard["file"]: stamp_of(self.folder / shard["file"]) for shard in self._shards}
            write_stamps(self.folder, {name: stamp for name, stamp in stamps.items() if self._is_known(name, stamp)})

    def _is_known(self, name: str, stamp: list[int]) -> bool:
        """Tell whether a shard was written here just now, or is one that was checked before."""
        return name in self._written or self._stamps.get(name) == stamp

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._done

    def __len__(self) -> int:
        return len(self._done)

    @property
    def errors(self) -> dict[ImageId, str]:
        """Error messages by image id, those of earlier runs included."""
        return dict(self._errors)

    def add(self, image_id: ImageId, features: Tensor | np.ndarray, extras: Mapping[str, Tensor] | None = None) -> None:
        """Store the features of an image.

        Args:
            image_id (`int` or `str`): Its id, new to the folder.
            features (`torch.Tensor` or `numpy.ndarray` of shape `[num_tokens, feature_size]`):
                At least one token, finite numbers of at most 1e12, of the same width for all images; on any device.
            extras (`Mapping[str, torch.Tensor]`, *optional*):
                What belongs to them, such as the regions' boxes, in its own precision; for [`FeatureStore.extra`].

        Raises:
            FeatureError: The features or the id are not like that; nothing is stored then.
        """
        image_id = _checked_id(image_id)
        if image_id in self._done:
            raise FeatureError(f"image {image_id!r}: its features are already in {self.folder}")
        rows = torch.as_tensor(features)
        if rows.ndim != 2 or rows.numel() == 0 or not rows.is_floating_point():
            raise FeatureError(
                f"image {image_id!r}: features are {rows.dtype} of shape {list(rows.shape)}, expected floating point "
                "of shape [num_tokens, feature_size] with at least one token"
            )
        if self.feature_size is not None and rows.shape[1] != self.feature_size:
            raise FeatureError(
                f"image {image_id!r}: features are {rows.shape[1]} wide, those in {self.folder} {self.feature_size}"
            )
        stored = rows.detach().to("cpu", self.dtype, copy=True).contiguous()
        peak = float(stored.abs().max())  # several times faster than torch.isfinite
        if not math.isfinite(peak):
            overflow = ", too large for it" if bool(torch.isfinite(rows).all()) else ""
            raise FeatureError(f"image {image_id!r}: features in {self._dtype_name} have NaN or infinity{overflow}")
        if peak > LARGEST_FEATURE:
            raise FeatureError(f"image {image_id!r}: features have {peak:.3g}, expected at most {LARGEST_FEATURE:.3g}")
        self.feature_size = rows.shape[1]
        beside = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in (extras or {}).items()}
        self._pending[image_id] = {"": stored, **beside}
        self._pending_bytes += stored.nbytes + sum(value.nbytes for value in beside.values())
        self._done.add(image_id)
        self._errors.pop(image_id, None)
        if self._pending_bytes >= self.shard_bytes:
            self._flush()

    def record_error(self, image_id: ImageId, message: str) -> None:
        """Note in the index why an image has no features. It is not done: a later run may try again."""
        self._errors[_checked_id(image_id)] = message

    def _flush(self) -> None:
        if not self._pending:
            return
        tensors = {
            tensor_name(position, name): value
            for position, parts in enumerate(self._pending.values())
            for name, value in parts.items()
        }
        path = self.folder / f"features-{len(self._shards):05d}.safetensors"
        ids = list(self._pending)
        checksum: list[str] = []

        def save(temporary: Path) -> None:
            save_file(tensors, temporary, {"ids": json.dumps(ids)})
            checksum.append(sha256_of(temporary))

        write_whole(path, save)
        self._shards.append({"file": path.name, "bytes": path.stat().st_size, "sha256": checksum[0], "ids": ids})
        self._written.add(path.name)
        self._pending, self._pending_bytes = {}, 0
        self._write_index(complete=False)

    def _write_index(self, *, complete: bool) -> None:
        self._complete = complete
        index = {
            "format": FORMAT,
            "version": VERSION,
            "complete": complete,
            "checked": self._checked,
            "count": sum(len(shard["ids"]) for shard in self._shards),
            "feature_size": self.feature_size,
            "dtype": self._dtype_name,
            "metadata": self._metadata,
            "errors": [{"image_id": image_id, "error": message} for image_id, message in self._errors.items()],
            "shards": self._shards,
        }
        text = json.dumps(index, ensure_ascii=False)
        write_whole(self.folder / INDEX_NAME, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _checked_id(image_id: object) -> ImageId:
    if isinstance(image_id, str):
        return image_id
    if isinstance(image_id, int | np.integer) and not isinstance(image_id, bool):
        return int(image_id)
    raise FeatureError(f"image id {image_id!r} is a {type(image_id).__name__}, expected int or str")


class FeatureStore:
    """Features that a [`FeatureWriter`] wrote: `store[image_id]` is a `[num_tokens, feature_size]` tensor.

    Shards are memory-mapped on first use, by each process for itself: a store may be pickled and forked, and so be used
    in DataLoader workers. What it returns is a copy, so that changing a tensor in place never reaches a later epoch.

    Args:
        folder (`str` or `os.PathLike`): The folder.
        verify (`bool`, *optional*): Compare the checksums of all shards, or of none. By default of those that have
            changed in size or time since they were last compared; see the top of this module.

    Attributes:
        ids (`list[int | str]`): All image ids, in the order of writing.
        feature_size (`int` or `None`): Width of the features; `None` if there are none.
        dtype (`torch.dtype`): Their precision.
        metadata (`dict`): What the writer was given.
        errors (`dict[int | str, str]`): Images without features, and why.
        num_bytes (`int`): Size of the shards.
        is_checked (`bool`): Whether all features are known to be numbers that can be computed with, because they were
            checked when they were written and are as they were written: with stores of this version, if checksums are
            compared. Others are checked whenever they are used.

    Raises:
        FeatureError: The folder is not a store, is incomplete (its writing was interrupted) or damaged.
        KeyError: On access, there are no features of this image.
    """

    def __init__(self, folder: str | os.PathLike[str], verify: bool | None = None) -> None:
        self.folder = Path(folder)
        index = read_index(self.folder)
        if not index["complete"]:
            raise FeatureError(f"{self.folder}: writing these features was interrupted; run it again to finish it")
        check_shards(self.folder, index)
        if verify is not False:
            verify_shards(self.folder, index, everything=verify is True)
        self.ids: list[ImageId] = [image_id for shard in index["shards"] for image_id in shard["ids"]]
        self.feature_size: int | None = index["feature_size"]
        self.dtype = DTYPES[index["dtype"]]
        self.metadata: dict[str, Any] = index["metadata"]
        self.errors: dict[ImageId, str] = {row["image_id"]: row["error"] for row in index["errors"]}
        self.num_bytes = sum(shard["bytes"] for shard in index["shards"])
        has_checksums = all("sha256" in shard for shard in index["shards"])
        self.is_checked = verify is not False and has_checksums and index.get("checked") is True
        self._files = [shard["file"] for shard in index["shards"]]
        self._places = {
            image_id: (number, position)
            for number, shard in enumerate(index["shards"])
            for position, image_id in enumerate(shard["ids"])
        }
        self._ids_of = {number: shard["ids"] for number, shard in enumerate(index["shards"]) if "sha256" in shard}
        self._open: dict[int, Shard] = {}
        self._open_in = os.getpid()

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def __getitem__(self, image_id: ImageId) -> Tensor:
        features = self._read(image_id)
        if features.ndim != 2 or features.shape[1] != self.feature_size or features.dtype != self.dtype:
            number, _ = self._places[image_id]
            raise FeatureError(
                f"{self.folder / self._files[number]}: damaged, features of image {image_id!r} are {features.dtype} of "
                f"shape {list(features.shape)}"
            )
        return features

    def extra(self, image_id: ImageId, name: str) -> Tensor:
        """Values stored beside the features of an image, such as its regions' `"boxes"`; FeatureError if none."""
        return self._read(image_id, name)

    def _read(self, image_id: ImageId, extra: str = "") -> Tensor:
        try:
            number, position = self._places[image_id]
        except KeyError:
            raise KeyError(f"no features of image {image_id!r} in {self.folder} ({len(self)} images)") from None
        path = self.folder / self._files[number]
        try:
            shard = self._shard(number, path)
            return shard.extra(position, image_id, extra) if extra else shard.features(position, image_id)
        except (SafetensorError, OSError) as error:
            raise FeatureError(f"{path}: damaged, cannot read the features of image {image_id!r}: {error}") from error

    def _shard(self, number: int, path: Path) -> Shard:
        if self._open_in != os.getpid():
            self._open, self._open_in = {}, os.getpid()
        if number not in self._open:
            shard = Shard(path)
            if number in self._ids_of and shard.ids != json.dumps(self._ids_of[number]):
                # the shard says itself whose features it has: an index that says something else is wrong
                raise FeatureError(f"{path}: damaged, it has the features of other images than {INDEX_NAME} says")
            self._open[number] = shard
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}  # a mapped file cannot be pickled
