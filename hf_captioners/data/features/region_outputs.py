"""Region features of a detector in the layouts that other people's code reads.

- [`NpzFolder`]: `<id>.npz` per image, with `feat` and `boxes` (what SATIC's loader and `--regions` read), and objects,
  attributes and the image's size;
- [`TsvFile`]: one line per image with its arrays in base64, as Anderson et al. published them (`region_tsv`).

Both go on where an interrupted run ended, if the regions are made as before: a JSON file beside them says how. The
third way to keep them is a feature store (`store.py`).
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from ..files import write_whole
from .region_tsv import image_id_of, split_line
from .store import FeatureError, ImageId

_ABOUT = "detector.json"


@dataclass(frozen=True)
class RegionArrays:
    """The regions of an image.

    Args:
        features (`np.ndarray` of shape `(N, feature_size)`), boxes (`np.ndarray` of shape `(N, 4)`): float32; x1, y1,
            x2, y2 in pixels.
        labels, attributes (`np.ndarray` of shape `(N)`): ids of objects and attributes.
        scores, attribute_scores (`np.ndarray` of shape `(N)`): their probabilities.
        height, width (`int`): size of the image.
    """

    features: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    attributes: np.ndarray
    attribute_scores: np.ndarray
    height: int
    width: int


class NpzFolder:
    """Writer of `<id>.npz` per image. Use it as a context manager.

    Args:
        folder (`str` or `Path`): the folder, made if need be.
        metadata (`dict[str, Any]`): how the regions are made, JSON values.

    Raises:
        FeatureError: the folder holds regions that were made otherwise.
    """

    def __init__(self, folder: str | Path, metadata: dict[str, Any]) -> None:
        self.folder = Path(folder)
        self._metadata = metadata

    def __enter__(self) -> NpzFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        _agree(self.folder / _ABOUT, self._metadata)
        return self

    def __exit__(self, *exception: object) -> None:
        """Every file is whole already."""

    def __contains__(self, image_id: object) -> bool:
        return _names_a_file(image_id) and self._path(image_id).exists()

    def __len__(self) -> int:
        return sum(1 for _ in self.folder.glob("*.npz"))

    @property
    def num_bytes(self) -> int:
        """Size of the files."""
        return sum(path.stat().st_size for path in self.folder.glob("*.npz"))

    def add(self, image_id: ImageId, regions: RegionArrays) -> None:
        """Write the file of an image."""
        arrays = {
            "feat": regions.features,
            "boxes": regions.boxes,
            "num_boxes": np.int64(len(regions.boxes)),
            "image_h": np.int64(regions.height),
            "image_w": np.int64(regions.width),
            "objects_id": regions.labels,
            "objects_conf": regions.scores,
            "attrs_id": regions.attributes,
            "attrs_conf": regions.attribute_scores,
        }
        write_whole(self._path(image_id), lambda temporary: _save_npz(temporary, arrays))

    def _path(self, image_id: object) -> Path:
        if not _names_a_file(image_id):
            raise FeatureError(
                f"image id {image_id!r} is no name of a file; expected one without slashes or a leading dot"
            )
        return self.folder / f"{image_id}.npz"


def _names_a_file(image_id: object) -> bool:
    name = str(image_id)
    return not (set("/\\\0") & set(name) or name.startswith("."))


def _save_npz(path: Path, arrays: dict[str, Any]) -> None:
    with path.open("wb") as file:  # numpy would append its suffix to a name
        np.savez_compressed(file, **arrays)


class TsvFile:
    """Writer of one line per image. Use it as a context manager.

    Args:
        path (`str` or `Path`): the file; lines are appended, and a last one that was cut off is dropped.
        metadata (`dict[str, Any]`): how the regions are made, JSON values; in `<path>.json`.

    Raises:
        FeatureError: the file holds regions that were made otherwise, or other lines.
    """

    def __init__(self, path: str | Path, metadata: dict[str, Any]) -> None:
        self.path = Path(path)
        self._metadata = metadata
        self._done: set[ImageId] = set()
        self._file: BinaryIO | None = None

    def __enter__(self) -> TsvFile:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        _agree(self.path.with_name(f"{self.path.name}.json"), self._metadata)
        if self.path.exists():
            self._done, end = _lines_of(self.path)
            with self.path.open("rb+") as file:
                file.truncate(end)
        self._file = self.path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._done

    def __len__(self) -> int:
        return len(self._done)

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size

    def add(self, image_id: ImageId, regions: RegionArrays) -> None:
        """Append the line of an image."""
        assert self._file is not None
        if any(character in str(image_id) for character in "\t\r\n"):
            raise FeatureError(f"image id {image_id!r} has a tab or line break, which separates values in a TSV")
        values = [image_id, regions.width, regions.height, len(regions.boxes)]
        arrays = [base64.b64encode(array.astype("<f4").tobytes()) for array in (regions.boxes, regions.features)]
        line = b"\t".join([*(str(value).encode() for value in values), *arrays])
        self._file.write(line + b"\n")
        self._file.flush()
        self._done.add(image_id)


def _lines_of(path: Path) -> tuple[set[ImageId], int]:
    """The ids of the whole lines of a TSV, and where the last of them ends."""
    done: set[ImageId] = set()
    end = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            where = f"{path}: line {number}"
            done.add(image_id_of(split_line(line, where), where))
            end += len(line)
    return done, end


def _agree(path: Path, metadata: dict[str, Any]) -> None:
    """Write how the regions are made, or compare it with what is written."""
    wanted = json.loads(json.dumps(metadata))
    if not path.exists():
        text = json.dumps(wanted, ensure_ascii=False, indent=1)
        write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FeatureError(f"{path}: not JSON: {error}") from error
    keys = wanted.keys() | there.keys() if isinstance(there, dict) else ()
    different = [key for key in sorted(keys) if wanted.get(key) != there.get(key)]
    if different or not isinstance(there, dict):
        raise FeatureError(f"{path}: its regions were made otherwise ({', '.join(different)}); choose another place")
