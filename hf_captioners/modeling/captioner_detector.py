"""A detector beside a captioner of regions: pictures in, the features that the captioner reads out.

SATIC, SCD-Net and CLIP-GPT2 with VinVL's features read regions of a bottom-up detector (Anderson et al., 2018). With a
detector their processors take pictures, too.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from .captioner_image_limits import ImageError
from .captioner_trust import load_pretrained
from .configuration_captioner import is_captioner_config

DETECTORS = ("bottom_up",)
"""Model types that find regions."""

_SLACK = 1.0  # pixels that a box may stick out: detectors round, and some count pixels from 1
_BOX_FEATURES = 5


class DetectorError(ValueError):
    """A detector that cannot be loaded, or whose features are not those of a captioner."""


def box_features(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Positions of boxes in their picture, independent of its size.

    Args:
        boxes (`np.ndarray` of shape `[num_regions, 4]`): x1, y1, x2, y2 in pixels.
        width (`int`), height (`int`): size of the picture in pixels.

    Returns:
        `np.ndarray` of shape `[num_regions, 5]`: x1/width, y1/height, x2/width, y2/height and the share of the area.

    Raises:
        ValueError: the shape is another, or a box is inside out, more than a pixel outside of the picture, or in
            other units than pixels.

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_captioners.modeling.captioner_detector import box_features
    >>> box_features(np.array([[0.0, 0.0, 320.0, 240.0]]), width=640, height=480).tolist()
    [[0.0, 0.0, 0.5, 0.5, 0.25]]

    ```
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "fiu":
        raise ValueError(f"is {boxes.dtype} of shape {list(boxes.shape)}, expected numbers of shape [num_regions, 4]")
    boxes = boxes if boxes.dtype == np.float64 else boxes.astype(np.float32)
    x1, y1, x2, y2 = boxes.T
    inside = (x1 >= -_SLACK) & (y1 >= -_SLACK) & (x2 <= width + _SLACK) & (y2 <= height + _SLACK)
    good = inside & (x1 <= x2) & (y1 <= y2)  # not for NaN
    if not good.all():
        index = int(good.argmin())
        raise ValueError(
            f"box {index} is {boxes[index].tolist()}, expected x1, y1, x2, y2 inside a picture of {width} x {height} "
            "pixels"
        )
    if len(boxes) and boxes.max() <= 1 < min(width, height):
        raise ValueError(f"no coordinate is above 1, expected pixels of a picture of {width} x {height}")
    share = (x2 - x1) * (y2 - y1) / (width * height)
    return np.stack([x1 / width, y1 / height, x2 / width, y2 / height, share], axis=1)


def with_box_features(
    features: np.ndarray, boxes: np.ndarray, width: int, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features with the boxes behind them, the largest region first, as SATIC's option `use_box` has them.

    Args:
        features (`np.ndarray` of shape `[num_regions, D]`): of the regions.
        boxes, width, height: see [`box_features`].

    Returns:
        `tuple[np.ndarray, np.ndarray]`: features `[num_regions, D + 5]`, and the rows that they were before.
    """
    geometry = box_features(boxes, width, height)
    rows = np.argsort(-geometry[:, 4], kind="stable")
    return np.concatenate([features, geometry.astype(np.float32)], axis=1)[rows], rows


def load_detector(source: str | os.PathLike[str], trust_remote_code: bool = False, **changes: Any) -> tuple[Any, Any]:
    """Load a detector and its image processor.

    Args:
        source (`str` or `os.PathLike`): folder of `save_pretrained`, or a name on the Hub.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.
        changes: fields of its configuration that are to differ, as `max_proposals`; they are checked, too.

    Returns:
        `tuple[PreTrainedModel, BaseImageProcessor]`

    Raises:
        DetectorError: there is no such detector, or a field has no such value.
    """
    try:
        config = load_pretrained(AutoConfig, source, trust_remote_code)
        if config.model_type not in DETECTORS:
            raise ValueError(f"it is of the type {config.model_type}, expected {' or '.join(DETECTORS)}")
        config = type(config)(**{**config.to_dict(), **changes})
        model = load_pretrained(AutoModel, source, trust_remote_code, config=config)
        image_processor = load_pretrained(AutoImageProcessor, source, trust_remote_code)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise DetectorError(f"{source}: no detector could be loaded: {error}") from error
    return model, image_processor


class CaptionerDetector:
    """A detector and its image processor, loaded when the first picture comes.

    Args:
        source (`str`, `os.PathLike` or `tuple`): folder or Hub name of a detector; or the model with its image
            processor.
        feature_size (`int`, *optional*): width of the features that a captioner reads: the detector's (the default), or
            5 more, and then the boxes are behind them, see [`with_box_features`].
        device (`str` or `torch.device`, defaults to `"cpu"`): where it runs.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.
        min_regions (`int`, *optional*), max_regions (`int`, *optional*): of a picture; by default the detector's.

    Example:

    ```python
    >>> from hf_captioners.modeling.captioner_detector import CaptionerDetector
    >>> detector = CaptionerDetector("bottom-up", max_regions=36)  # doctest: +SKIP
    >>> detector(image).shape  # doctest: +SKIP
    torch.Size([36, 2048])

    ```
    """

    def __init__(
        self,
        source: str | os.PathLike[str] | tuple[Any, Any],
        feature_size: int | None = None,
        device: str | torch.device = "cpu",
        trust_remote_code: bool = False,
        min_regions: int | None = None,
        max_regions: int | None = None,
    ) -> None:
        self.source, self.feature_size = source, feature_size
        self.device, self.trust_remote_code = device, trust_remote_code
        self.min_regions, self.max_regions = min_regions, max_regions
        self._loaded: tuple[Any, Any] | None = None
        self._lock = threading.Lock()  # pictures are opened in threads
        if isinstance(source, tuple):
            self._loaded = (source[0].eval(), source[1])

    def __deepcopy__(self, memo: Any) -> CaptionerDetector:
        """The detector itself, which nothing changes: processors are copied when they are saved."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without the lock, which a worker process makes for itself."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _lock=threading.Lock())

    def load(self) -> tuple[Any, Any]:
        """The model, in evaluation mode, and its image processor.

        Raises:
            DetectorError: there is no such detector.
        """
        with self._lock:
            if self._loaded is None:
                model, image_processor = load_detector(self.source, self.trust_remote_code)  # type: ignore[arg-type]
                self._loaded = model.to(self.device).eval(), image_processor
            return self._loaded

    def check(self) -> None:
        """Refuse a captioner that reads features of another width.

        Raises:
            DetectorError: it is neither the detector's nor that with the boxes' five numbers behind.
        """
        model, _ = self.load()
        width, feature_size = model.config.feature_size, self.feature_size
        if feature_size not in (None, width, width + _BOX_FEATURES):
            raise DetectorError(
                f"the detector {self._name()} gives features of width {width} ({width + _BOX_FEATURES} with boxes), "
                f"and the captioner reads {feature_size}."
            )

    def _name(self) -> str:
        return type(self.source[0]).__name__ if isinstance(self.source, tuple) else str(self.source)

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """Features `(regions, feature_size)` of the regions of a picture, on the CPU; see `regions`."""
        return self.regions(image)[0]

    @torch.no_grad()
    def regions(self, image: Image.Image) -> tuple[torch.Tensor, np.ndarray]:
        """Regions of a picture.

        Args:
            image (`PIL.Image.Image`): open, at its own size.

        Returns:
            `tuple[torch.FloatTensor, np.ndarray]`: features `(regions, feature_size)` on the CPU, and boxes
            `(regions, 4)`: x1, y1, x2, y2 in pixels of the picture, in the same order.

        Raises:
            DetectorError: see [`check`].
            ImageError: the picture has no regions, as one that is too narrow.
        """
        self.check()
        model, image_processor = self.load()
        inputs = image_processor(image, return_tensors="pt").to(model.device)
        try:
            output = model(**inputs, min_regions=self.min_regions, max_regions=self.max_regions)
        except ValueError as error:
            raise ImageError(f"no regions: {error}") from error
        features, boxes = output.region_features[0].float().cpu(), output.boxes[0].float().cpu().numpy()
        if self.feature_size in (None, features.shape[1]):
            return features, boxes
        longer, rows = with_box_features(features.numpy(), boxes, *image.size)
        return torch.from_numpy(longer), boxes[rows]


def own_detector(config: Any, folder: str | os.PathLike[str]) -> tuple[str | None, bool]:
    """The detector that a captioner's configuration names by a path that begins at the captioner's folder.

    Args:
        config (`CaptionerConfig`): of the captioner.
        folder (`str` or `os.PathLike`): the captioner's; a name of the Hub has none.

    Returns:
        `tuple[str | None, bool]`: the detector's folder, and whether it is inside the captioner's.
    """
    named = config.detector if is_captioner_config(config) else None
    if named is None or Path(named).is_absolute() or not Path(folder, named).is_dir():
        return None, False
    detector = Path(folder, named).resolve()
    return str(detector), detector.is_relative_to(Path(folder).resolve())


def use_detector(
    model: Any, processor: Any, detector: CaptionerDetector | str | None = None, trust_remote_code: bool = False
) -> None:
    """Let a captioner of regions take pictures, through a detector.

    Args:
        model (`CaptionerPreTrainedModel`): the captioner, on its device.
        processor (`CaptionerProcessor`): its processor, which gets the detector.
        detector ([`CaptionerDetector`] or `str`, *optional*): the detector, or its folder or Hub name; by default that
            of `config.detector`, a path in which may begin at the captioner's folder. Without one nothing changes.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.

    Raises:
        DetectorError: the captioner has a backbone, which sees pictures itself; there is no such detector, or its
            features have another width. That of the configuration is loaded when the first picture comes.
    """
    ours = is_captioner_config(model.config)
    named: str | None = model.config.detector if ours else None
    source = named if detector is None else detector
    if source is None or (detector is None and processor.detector is not None):
        return
    if not ours or not model.config.features_only:
        raise DetectorError(
            f"a detector is for captioners that read regions; this {type(model).__name__} sees pictures itself."
        )
    if isinstance(source, CaptionerDetector):
        processor.detector = source
        source.feature_size = model.config.feature_size
    else:
        if detector is None:
            source = own_detector(model.config, model.name_or_path)[0] or source
        processor.detector = CaptionerDetector(source, model.config.feature_size, model.device, trust_remote_code)
    if detector is not None:
        processor.detector.check()
