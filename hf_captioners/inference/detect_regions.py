"""Running the bottom-up detector over pictures, into a feature store or the files of other projects."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ..data.captions.records import id_of
from ..data.features.region_outputs import NpzFolder, RegionArrays, TsvFile
from ..data.features.store import (
    DEFAULT_SHARD_BYTES,
    FeatureError,
    FeatureStore,
    FeatureSummary,
    FeatureWriter,
    ImageId,
)
from ..data.progress import progress
from ..modeling.captioner_detector import load_detector, with_box_features
from ..modeling.captioner_image_io import open_image
from ..modeling.captioner_image_source import ImageSource
from ..modeling.modeling_bottom_up import BottomUpForRegionFeatures
from .device import choose_device
from .digests import settings_sha256, weights_sha256

logger = logging.getLogger(__name__)

FORMATS = ("store", "npz", "tsv")

# fields of the configuration that decide which regions an image has, and in which digits
_SETTINGS = ("max_proposals", "score_threshold", "res5_dtype", "fold_norms", "selection")


@dataclass(frozen=True)
class Regions:
    """The regions of a picture.

    Args:
        arrays ([`RegionArrays`]): features, boxes, objects, attributes and the picture's size.
        refined_boxes (`np.ndarray` of shape `(N, 4)`): the boxes moved to their objects.
        objects (`list[str]`), attribute_names (`list[str]`): names; empty ones where the detector has no attributes.
    """

    arrays: RegionArrays
    refined_boxes: np.ndarray
    objects: list[str]
    attribute_names: list[str]

    def __len__(self) -> int:
        return len(self.objects)

    def records(self) -> list[dict[str, Any]]:
        """Dict of plain values per region: `box`, `refined_box`, `object`, `score`, `attribute`, its score."""
        arrays = self.arrays
        return [
            {
                "object": self.objects[row],
                "score": round(float(arrays.scores[row]), 4),
                "attribute": self.attribute_names[row],
                "attribute_score": round(float(arrays.attribute_scores[row]), 4),
                "box": [round(float(value), 2) for value in arrays.boxes[row]],
                "refined_box": [round(float(value), 2) for value in self.refined_boxes[row]],
            }
            for row in range(len(self))
        ]


class RegionDetector:
    """A detector with its image processor: a picture in, its regions out.

    Args:
        model ([`BottomUpForRegionFeatures`]): the detector. It is put into evaluation mode.
        image_processor ([`BottomUpImageProcessor`]): what prepares a picture for it.
        name (`str`, *optional*): what to call it in the metadata of a store; its model type by default.
        min_regions (`int`, *optional*), max_regions (`int`, *optional*): of each picture; by default the detector's.

    Example:

    ```python
    >>> from hf_captioners.inference.detect_regions import RegionDetector
    >>> detector = RegionDetector.from_pretrained("bottom-up", max_regions=36)  # doctest: +SKIP
    >>> detector("photo.jpg").records()[0]  # doctest: +SKIP
    {'object': 'dog', 'score': 0.93, 'attribute': 'brown', ...}

    ```
    """

    def __init__(
        self,
        model: BottomUpForRegionFeatures,
        image_processor: Any,
        name: str | None = None,
        min_regions: int | None = None,
        max_regions: int | None = None,
    ) -> None:
        self.model = model.eval()
        self.image_processor = image_processor
        self.limits = model.limits(min_regions, max_regions)
        self._name = name or model.config.model_type

    @classmethod
    def from_pretrained(
        cls,
        folder: str | os.PathLike[str],
        device: str | torch.device = "auto",
        trust_remote_code: bool = False,
        min_regions: int | None = None,
        max_regions: int | None = None,
        **changes: Any,
    ) -> RegionDetector:
        """Load a saved detector and its image processor.

        Args:
            folder (`str` or `os.PathLike`): folder of `save_pretrained`, or a name on the Hub.
            device (`str` or `torch.device`, defaults to `"auto"`): where to run; `"auto"` takes a GPU if there is one.
            trust_remote_code (`bool`, defaults to `False`): whether code that comes with the folder may run.
            min_regions (`int`, *optional*), max_regions (`int`, *optional*): of each picture; by default the
                detector's.
            changes: fields of [`BottomUpConfig`] that are to differ, as `max_proposals` or `res5_dtype`.

        Raises:
            ValueError: there is no such detector or device, or a field has no such value.
        """
        target = choose_device(device)
        model, image_processor = load_detector(folder, trust_remote_code, **changes)
        name = Path(folder).resolve().name if Path(folder).is_dir() else str(folder)
        return cls(model.to(target), image_processor, name, min_regions, max_regions)

    def __call__(self, source: ImageSource) -> Regions:
        """The regions of a picture: a path, URL, bytes, PIL image, ...; ValueError if it has none."""
        return self.detect(self.image_processor(open_image(source), return_tensors="pt"))

    @torch.inference_mode()
    def detect(self, inputs: Any) -> Regions:
        """The regions of a picture that the image processor prepared."""
        least, most = self.limits
        tensors = {name: value.to(self.model.device) for name, value in inputs.items()}
        output = self.model(**tensors, min_regions=least, max_regions=most)
        parts = {name: value[0].float().cpu().numpy() for name, value in output.items()}
        labels, attributes = output.labels[0].tolist(), output.attributes[0].tolist()
        height, width = output.original_sizes[0].tolist()
        names = self.model.config.id2attribute
        return Regions(
            RegionArrays(
                parts["region_features"],
                parts["boxes"],
                np.array(labels, dtype=np.int64),
                parts["scores"],
                np.array(attributes, dtype=np.int64),
                parts["attribute_scores"],
                height,
                width,
            ),
            parts["refined_boxes"],
            [self.model.config.id2label[label] for label in labels],
            [names[attribute] if attribute >= 0 else "" for attribute in attributes],
        )

    def metadata(self) -> dict[str, Any]:
        """Origin of the regions: the detector's name, digests of weights and preprocessing, and its settings."""
        return {
            "detector": self._name,
            "detector_sha256": weights_sha256(self.model),
            "image_processor_sha256": settings_sha256(self.image_processor),
            "min_regions": self.limits[0],
            "max_regions": self.limits[1],
            **{name: getattr(self.model.config, name) for name in _SETTINGS},
        }


def images_by_id(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[ImageId, str]]:
    """Give every picture file an id: its name without suffix, as an integer if that is all digits.

    Args:
        paths (`Iterable[str or os.PathLike]`): the files.

    Returns:
        `list[tuple[int | str, str]]`: ids and paths, in the order of the paths.

    Raises:
        ValueError: two files have the same id; both are named.
    """
    images: dict[ImageId, str] = {}
    for path in map(str, paths):
        image_id = id_of(Path(path).stem, path)
        if images.setdefault(image_id, path) != path:
            raise ValueError(f"{images[image_id]} and {path} would both be image {image_id!r}; give them other names")
    return list(images.items())


class _Outputs(Protocol):
    """Destination of regions: a store, or the files of other projects."""

    def __contains__(self, image_id: object) -> bool: ...
    def __len__(self) -> int: ...
    def add(self, image_id: ImageId, regions: RegionArrays) -> None: ...


class _Store:
    """A feature store of regions, with their boxes and the pictures' sizes beside them."""

    def __init__(self, writer: FeatureWriter, append_boxes: bool) -> None:
        self._writer = writer
        self._append_boxes = append_boxes

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._writer

    def __len__(self) -> int:
        return len(self._writer)

    def add(self, image_id: ImageId, regions: RegionArrays) -> None:
        rows, features = np.arange(len(regions.boxes)), regions.features
        if self._append_boxes:  # as SATIC's use_box: the largest region first
            features, rows = with_box_features(features, regions.boxes, regions.width, regions.height)
        names = ("boxes", "labels", "scores", "attributes", "attribute_scores")
        extras = {name: torch.from_numpy(getattr(regions, name)[rows]) for name in names}
        size = torch.tensor([regions.height, regions.width])
        self._writer.add(image_id, features, {**extras, "image_size": size})


def write_detected_regions(
    detector: RegionDetector,
    images: Sequence[tuple[ImageId, ImageSource]],
    out: str | os.PathLike[str],
    *,
    layout: str = "store",
    append_boxes: bool = False,
    dtype: torch.dtype = torch.float16,
    shard_bytes: int = DEFAULT_SHARD_BYTES,
    num_workers: int = 0,
    show: Callable[[ImageId, Image.Image, Regions], None] | None = None,
) -> FeatureSummary:
    """Detect the regions of pictures and store them, with a progress bar on a terminal's stderr.

    Images that `out` already has are skipped, so that the same call continues an interrupted run; images that failed
    are tried again.

    Args:
        detector ([`RegionDetector`]): the detector.
        images (`Sequence[tuple[int | str, ImageSource]]`): ids, each only once, and what `open_image` opens.
        out (`str` or `os.PathLike`): a folder, or with `"tsv"` a file.
        layout (`str`, defaults to `"store"`): a feature store, or `"npz"` or `"tsv"`, see `region_outputs`.
        append_boxes (`bool`, defaults to `False`): in a store, append to each region its box and share of the area, and
            sort by that, as SATIC's option `use_box` does.
        dtype (`torch.dtype`, defaults to `torch.float16`), shard_bytes (`int`, defaults to 500,000,000): of a store.
        num_workers (`int`, defaults to 0): processes that read and prepare pictures beside the detector.
        show (`Callable`, *optional*): gets every picture with its regions.

    Returns:
        [`FeatureSummary`]: with the images that have no regions; each is also a warning in the log.

    Raises:
        FeatureError: `out` has regions that were made otherwise.
        ValueError: `layout` or a combination of options has no such value.
    """
    if layout not in FORMATS:
        raise ValueError(f"layout={layout!r}, expected one of {', '.join(FORMATS)}")
    if append_boxes and layout != "store":
        raise ValueError(f"append_boxes is for a store; the layout {layout!r} has the boxes beside the features")
    errors: dict[ImageId, str] = {}
    with contextlib.ExitStack() as stack:
        metadata = {**detector.metadata(), **({"append_boxes": True} if append_boxes else {})}
        outputs: _Outputs
        writer: FeatureWriter | None = None
        if layout == "store":
            writer = stack.enter_context(FeatureWriter(out, dtype=dtype, shard_bytes=shard_bytes, metadata=metadata))
            outputs = _Store(writer, append_boxes)
        else:
            files: NpzFolder | TsvFile = (NpzFolder if layout == "npz" else TsvFile)(Path(out), metadata)
            stack.enter_context(files)
            outputs = files
        todo = [image for image in images if image[0] not in outputs]
        for image_id, reason in _detect_all(detector, todo, len(images), outputs, num_workers, show):
            errors[image_id] = reason
            logger.warning("image %r has no regions: %s", image_id, reason)
            if writer is not None:
                writer.record_error(image_id, reason)
        count = len(outputs)
    num_bytes = FeatureStore(out).num_bytes if layout == "store" else files.num_bytes
    return FeatureSummary(str(out), count, len(todo) - len(errors), num_bytes, errors)


class _Prepared(Dataset[tuple[int, Any]]):
    """Pictures as the image processor prepares them; the reason instead where one cannot be used."""

    def __init__(self, images: Sequence[tuple[ImageId, ImageSource]], image_processor: Any) -> None:
        self._images = images
        self._image_processor = image_processor

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            image = open_image(self._images[index][1])
            return index, dict(self._image_processor(image, return_tensors="pt"))
        except (ValueError, OSError) as error:
            return index, str(error)


def _detect_all(
    detector: RegionDetector,
    todo: Sequence[tuple[ImageId, ImageSource]],
    total: int,
    outputs: _Outputs,
    num_workers: int,
    show: Callable[[ImageId, Image.Image, Regions], None] | None,
) -> Iterator[tuple[ImageId, str]]:
    """Add the regions of all pictures; yields the ids of those that have none, and why."""
    prepared = _Prepared(todo, detector.image_processor)
    loader = DataLoader(prepared, batch_size=None, num_workers=num_workers)
    with progress(total=total, initial=total - len(todo), desc="regions", unit="image") as bar:
        for index, inputs in loader:
            image_id, source = todo[index]
            try:
                if isinstance(inputs, str):
                    raise FeatureError(inputs)
                regions = detector.detect(inputs)
                outputs.add(image_id, regions.arrays)
                if show is not None:
                    show(image_id, open_image(source), regions)
            except ValueError as error:  # of the picture: too narrow for a region, boxes that do not fit
                yield image_id, str(error)
            bar.update()
