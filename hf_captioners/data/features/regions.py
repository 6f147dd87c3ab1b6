"""Region features of a detector from the files of other projects, one image at a time, into the feature store.

Bottom-up features (Anderson et al., "Bottom-Up and Top-Down Attention for Image Captioning and Visual Question
Answering", 2018) are 10 to 100 vectors an image, one for each region. They come in these layouts:

- a folder with a file per image: `<id>.npz` with the array `feat`, or with one array of any name, or `<id>.npy`
  (`cocobu_att/42.npz` of SATIC and ImageCaptioning.pytorch);
- an HDF5 file with a data set per image, `<id>` or `<id>_features` (as in `coco_detections.hdf5` of the M2
  Transformer);
- a TSV with an image per line, as they were published (`region_tsv`);
- LMDB databases and pickled lists, which `conversion.region_sources` opens.

Boxes, x1, y1, x2, y2 in pixels, come in the same layouts, `<id>.npy` or `<id>_boxes`, or beside the features. What is
decided here:

1. An id of digits is an integer, with or without zeros in front; other names are ids as they are.
2. With boxes, a region's vector is followed by x1/width, y1/height, x2/width, y2/height and the box's share of the
   picture's area, and regions are sorted by this share, the largest first, as SATIC's option `use_box` does. Boxes
   that do not fit into the picture are an error, since they belong to another size of it.
3. `l2_norm` divides a region's vector by its length before that (SATIC's `norm_att_feat`). A region of zeros, where the
   original gets NaN, is an error.
4. More than 100 regions are an error, unless `max_regions` allows them: grids of features are no regions.
5. Nothing is unpickled here.
"""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from ...modeling.captioner_detector import box_features
from ..bad_rows import BadRows
from ..captions.records import id_of, read_content
from ..progress import progress
from .region_files import ArraySource, JoinedArrays, open_arrays
from .store import DEFAULT_SHARD_BYTES, FeatureError, FeatureStore, FeatureSummary, FeatureWriter, ImageId

logger = logging.getLogger(__name__)

_Path: TypeAlias = str | os.PathLike[str]
_Paths: TypeAlias = _Path | Sequence[_Path]

MAX_REGIONS = 100
"""Most regions of an image, as bottom-up attention has them."""


class RegionFeatures:
    """The region features of folders or files: `regions[image_id]` is an array `[num_regions, feature_size]`.

    Files are read at the moment of access. Use it as a context manager, or call `close`.

    Args:
        path (`str`, `os.PathLike` or a list of them): the features; see the top of this module for the layouts.
        boxes (`str`, `os.PathLike` or a list of them, *optional*): the boxes, to append them and to sort regions by
            area. The same file may hold both.
        image_sizes (`Mapping[int | str, tuple[int, int]]`, *optional*): image id -> width and height in pixels, such
            as [`read_image_sizes`] reads them; needed with `boxes` of files that do not hold them, and only with them.
        l2_norm (`bool`, defaults to `False`): divide every vector by its length.
        max_regions (`int`, defaults to 100): more regions of an image are an error.
        bad_rows ([`BadRows`], *optional*): gets lines of a TSV, and the like, that cannot be used, and images that are
            there twice; by default they are errors.
        open_source (`Callable`, defaults to [`open_arrays`]): opens a path as an `ArraySource`.

    Attributes:
        ids (`list[int | str]`): image ids, in the order of a TSV; numbers in their order and then names in theirs.

    Raises:
        FileNotFoundError: there is no such folder or file.
        ImportError: it is an HDF5 file, and h5py is not installed.
        ValueError: nothing in it is named by an id, two are of one image, no image has boxes or a size, or `boxes` and
            `image_sizes` do not come together.
        FeatureError: on access, what is there is damaged or no region features; the message names the file.

    Example:

    ```python
    >>> import tempfile
    >>> import numpy as np
    >>> from hf_captioners.data.features.regions import RegionFeatures
    >>> folder = tempfile.mkdtemp()
    >>> np.savez_compressed(f"{folder}/42.npz", feat=np.ones((36, 2048), dtype=np.float32))
    >>> with RegionFeatures(folder) as regions:
    ...     regions.ids, regions[42].shape
    ([42], (36, 2048))

    ```
    """

    def __init__(
        self,
        path: _Paths,
        *,
        boxes: _Paths | None = None,
        image_sizes: Mapping[ImageId, tuple[int, int]] | None = None,
        l2_norm: bool = False,
        max_regions: int = MAX_REGIONS,
        bad_rows: BadRows | None = None,
        open_source: Callable[[Path, str, BadRows], ArraySource] = open_arrays,
    ) -> None:
        if boxes is None and image_sizes is not None:
            raise ValueError("boxes are in pixels: give boxes and image_sizes together, or neither")
        self._paths = _listed(path)
        self._boxes_paths = [] if boxes is None else _listed(boxes)
        self._l2_norm, self._max_regions = l2_norm, max_regions
        bad = bad_rows or BadRows()
        self._features = _open(self._paths, "features", bad, open_source)
        self._boxes = _open(self._boxes_paths, "boxes", bad, open_source) if self._boxes_paths else None
        self._sizes = image_sizes or ({} if self._boxes is None else self._boxes.sizes)
        self._with_boxes = frozenset(() if self._boxes is None else self._boxes.ids)
        self.ids = self._features.ids
        if self._boxes is not None:
            self._check_partners(self._with_boxes, f"{_shown(self._boxes_paths)}: no boxes")
            if image_sizes is None and not self._sizes:
                self.close()
                raise ValueError("boxes are in pixels: give boxes and image_sizes together, or neither")
            self._check_partners(self._sizes, "image_sizes: no size")

    def _check_partners(self, partners: Container[ImageId], problem: str) -> None:
        if not any(image_id in partners for image_id in self.ids):
            self.close()
            raise FeatureError(f"{problem} of any image of {_shown(self._paths)}, such as {self.ids[0]!r}")

    def __enter__(self) -> RegionFeatures:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open, which HDF5 files are."""
        self._features.close()
        if self._boxes is not None:
            self._boxes.close()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, image_id: ImageId) -> np.ndarray:
        return self.read(image_id)[1]

    def read(self, image_id: ImageId) -> tuple[str, np.ndarray]:
        """Place of the features of an image, for messages, and the features; FeatureError if they are damaged."""
        where, features = self._features.read(image_id)
        if features.ndim != 2 or features.dtype.kind != "f":
            raise FeatureError(
                f"{where}: is {features.dtype} of shape {list(features.shape)}, expected floating point of shape "
                "[num_regions, feature_size]"
            )
        if not 1 <= len(features) <= self._max_regions:
            raise FeatureError(
                f"{where}: has {len(features)} regions, expected 1 to {self._max_regions} (max_regions sets another)"
            )
        features = _at_least_float32(features)
        if self._l2_norm:
            features = _unit_rows(features, where)
        return where, features if self._boxes is None else self._append_boxes(features, image_id)

    def _append_boxes(self, features: np.ndarray, image_id: ImageId) -> np.ndarray:
        geometry = self._geometry(image_id)
        if len(geometry) != len(features):
            raise FeatureError(
                f"{_shown(self._boxes_paths)}: image {image_id!r} has {len(geometry)} boxes for {len(features)} regions"
            )
        largest_first = np.argsort(-geometry[:, 4], kind="stable")
        return np.concatenate([features, geometry.astype(features.dtype)], axis=1)[largest_first]

    def _geometry(self, image_id: ImageId) -> np.ndarray:
        if self._boxes is None or image_id not in self._with_boxes:
            raise FeatureError(f"{_shown(self._boxes_paths)}: no boxes of image {image_id!r}")
        if image_id not in self._sizes:
            raise FeatureError(f"image_sizes: no size of image {image_id!r}")
        where, boxes = self._boxes.read(image_id)
        try:
            return box_features(boxes, *self._sizes[image_id])
        except ValueError as error:
            raise FeatureError(f"{where}: {error}") from error

    def metadata(self) -> dict[str, Any]:
        """Settings that tell stores of one source from others: names of folder or file, without their paths."""
        names, boxes = ([path.resolve().name for path in paths] for paths in (self._paths, self._boxes_paths))
        return {"regions": _one_or_all(names), "boxes": _one_or_all(boxes), "l2_norm": self._l2_norm}


def _listed(paths: _Paths) -> list[Path]:
    return [Path(paths)] if isinstance(paths, (str, os.PathLike)) else [Path(path) for path in paths]


def _shown(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))


def _one_or_all(names: list[str]) -> str | list[str] | None:
    return names if len(names) > 1 else next(iter(names), None)


def _open(
    paths: Sequence[Path], part: str, bad_rows: BadRows, open_source: Callable[[Path, str, BadRows], ArraySource]
) -> ArraySource:
    """Open the sources of a part; all are closed again if one cannot be opened."""
    sources: dict[str, ArraySource] = {}
    try:
        for path in paths:
            sources[str(path)] = open_source(path, part, bad_rows)
        return JoinedArrays(sources, bad_rows) if len(sources) > 1 else next(iter(sources.values()))
    except BaseException:
        for source in sources.values():
            source.close()
        raise


def _at_least_float32(array: np.ndarray) -> np.ndarray:
    """Convert to float32 or float64 of this machine, in which products of coordinates do not overflow."""
    wide = np.promote_types(array.dtype, np.float32).itemsize > 4
    return array.astype(np.float64 if wide else np.float32, copy=False)


def _unit_rows(features: np.ndarray, where: str) -> np.ndarray:
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not lengths.all():
        raise FeatureError(f"{where}: region {int(lengths.argmin())} is all zeros and has no direction")
    return features / lengths


def read_image_sizes(path: _Path) -> dict[ImageId, tuple[int, int]]:
    """Read the sizes of pictures from `cocotalk.json` or from annotations of COCO.

    Args:
        path (`str` or `os.PathLike`): JSON with `images`, each with `id`, `width` and `height`; plain or gzipped.

    Returns:
        `dict[int | str, tuple[int, int]]`: image id -> width and height in pixels. Images without them are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has no such images, or a size that is not two positive integers.
    """
    content = read_content(path)
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise ValueError(f"{path}: no list 'images' in it; expected cocotalk.json or annotations of COCO")
    sizes: dict[ImageId, tuple[int, int]] = {}
    for index, image in enumerate(images):
        if not isinstance(image, dict):
            raise ValueError(f"{path}: images[{index}] is {reprlib.repr(image)}, expected an object")
        width, height = image.get("width"), image.get("height")
        if width is None and height is None:
            continue
        if type(width) is not int or type(height) is not int or min(width, height) < 1:
            raise ValueError(f"{path}: images[{index}]: width and height are {width!r} and {height!r}, expected pixels")
        sizes[_image_id(path, index, image)] = (width, height)
    if not sizes:
        raise ValueError(f"{path}: no image of it has 'width' and 'height'")
    return sizes


def _image_id(path: _Path, index: int, image: Mapping[str, Any]) -> ImageId:
    try:
        return id_of(image.get("id"), "field 'id'")
    except ValueError as error:
        raise ValueError(f"{path}: images[{index}]: {error}") from error


# --- into the store -------------------------------------------------------------------------------------------------


def write_region_features(
    regions: RegionFeatures,
    out_dir: _Path,
    *,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    bad_rows: BadRows | None = None,
) -> FeatureSummary:
    """Copy region features into a store, one image at a time, with a progress bar on a terminal's stderr.

    Images that `out_dir` already has are skipped, so that the same call continues an interrupted run; images that
    failed are tried again.

    Args:
        regions ([`RegionFeatures`]): what to copy.
        out_dir (`str` or `os.PathLike`): folder of the store.
        dtype (`torch.dtype`, defaults to `torch.float16`): precision in the store, see [`FeatureWriter`].
        shard_bytes (`int`, defaults to 500,000,000): size of the files.
        bad_rows ([`BadRows`], *optional*): that of `regions`, to count what was left out there, too.

    Returns:
        [`FeatureSummary`]: with the images that have no features; each is also a warning in the log and an entry of
        `errors` in the store's index. They stop nothing.

    Raises:
        FeatureError: `out_dir` has features of another source or dtype.

    Example:

    ```python
    >>> from hf_captioners.data.features.regions import RegionFeatures, write_region_features
    >>> with RegionFeatures("cocobu_att") as regions:  # doctest: +SKIP
    ...     write_region_features(regions, "coco-regions").count
    123287

    ```
    """
    errors: dict[ImageId, str] = {}
    with FeatureWriter(out_dir, dtype=dtype, shard_bytes=shard_bytes, metadata=regions.metadata()) as writer:
        todo = [image_id for image_id in regions.ids if image_id not in writer]
        done = len(regions) - len(todo)
        for image_id in progress(todo, total=len(regions), initial=done, desc="regions", unit="image"):
            try:
                _copy(regions, writer, image_id)
            except FeatureError as error:
                errors[image_id] = str(error)
                logger.warning("image %r has no features: %s", image_id, error)
                writer.record_error(image_id, str(error))
    if bad_rows is not None:
        bad_rows.conclude(str(out_dir))
    store = FeatureStore(out_dir)
    return FeatureSummary(str(store.folder), len(store), len(todo) - len(errors), store.num_bytes, errors)


def _copy(regions: RegionFeatures, writer: FeatureWriter, image_id: ImageId) -> None:
    where, features = regions.read(image_id)
    try:
        writer.add(image_id, features)
    except FeatureError as error:
        raise FeatureError(f"{where}: {error}") from error
