"""Configuration of the bottom-up detector: Faster R-CNN on Visual Genome, whose regions captioners read.

Anderson et al., "Bottom-Up and Top-Down Attention for Image Captioning and Visual Question Answering", 2018
(arXiv 1707.07998), and VinVL (arXiv 2101.00529). The same network exists in three conventions, which give different
regions of the same image; [`PRESETS`] names them:

- `caffe`: the original's arithmetic (boxes whose last pixel counts, regions chosen class by class). The features that
  SATIC and SCD-Net were trained on.
- `frcnn`: detectron2's arithmetic (`unc-nlp/frcnn-vg-finetuned`, `faster_rcnn_from_caffe.pkl`), one suppression over
  all classes, boxes refined.
- `vinvl`: a ResNeXt-152 with more classes, in the arithmetic of maskrcnn-benchmark.

`caffe-36` and `frcnn-36` give 36 regions of every image instead of 10 to 100.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

STRIDE = 16  # pixels of the resized image per cell of the backbone's output


def caffe_anchors(
    sizes: Sequence[float] = (64, 128, 256, 512), ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> list[list[float]]:
    """Make the anchors of Caffe's Faster R-CNN, around the cell at the origin.

    Args:
        sizes (`Sequence[float]`, defaults to 64 to 512): sides of the square anchors, in pixels.
        ratios (`Sequence[float]`, defaults to 1/2, 1, 2): height by width.

    Returns:
        `list[list[float]]`: x1, y1, x2, y2; all sizes of the first ratio, then of the second.

    Example:

    ```python
    >>> from hf_captioners.modeling.configuration_bottom_up import caffe_anchors
    >>> caffe_anchors()[0]
    [-38.0, -16.0, 53.0, 31.0]

    ```
    """
    centre = (STRIDE - 1) / 2
    anchors = []
    for ratio in ratios:
        width = round(math.sqrt(STRIDE**2 / ratio))  # half to even, as the original
        height = round(width * ratio)
        for size in sizes:
            x, y = (width * size / STRIDE - 1) / 2, (height * size / STRIDE - 1) / 2
            anchors.append([centre - x, centre - y, centre + x, centre + y])
    return anchors


def centred_anchors(
    sizes: Sequence[float] = (64, 128, 256, 512), ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> list[list[float]]:
    """Make the anchors of detectron2, around 0: all ratios of the first size, then of the second.

    Args:
        sizes (`Sequence[float]`, defaults to 64 to 512): square roots of the areas, in pixels.
        ratios (`Sequence[float]`, defaults to 1/2, 1, 2): height by width.

    Returns:
        `list[list[float]]`: x1, y1, x2, y2.
    """
    anchors = []
    for size in sizes:
        for ratio in ratios:
            width = math.sqrt(size**2 / ratio)
            height = ratio * width
            anchors.append([-width / 2, -height / 2, width / 2, height / 2])
    return anchors


_CAFFE: dict[str, Any] = {}
_FRCNN: dict[str, Any] = {
    "anchors": centred_anchors(),
    "objectness": "logit",
    "box_offset": 0,
    "nms_offset": 0,
    "nms_inclusive": False,
    "filter_first": False,
    "min_proposal_size": 0.0,
    "bbox_weights": [10.0, 10.0, 5.0, 5.0],
    "background": "last",
    "none_in_softmax": False,
    "selection": "max_nms",
    "nms_thresholds": [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
}
_MAX_DEPTH = 500  # blocks of a stage, bounded before they are made
_VINVL: dict[str, Any] = {
    "depths": [3, 8, 36, 3],
    "num_groups": 32,
    "bottleneck_width": 256,
    "stride_in_1x1": False,
    "stem_pool": "pad1",
    "norm_eps": 0.0,
    "res5_dilated": False,
    "pooler": "roi_align",
    "anchors": caffe_anchors((32, 64, 128, 256, 512)),
    "rpn_channels": 1024,
    "objectness": "sigmoid",
    "nms_offset": 0,
    "nms_inclusive": False,
    "decode_minus_one": True,
    "filter_first": False,
    "drop_empty": False,
    "min_proposal_size": 0.0,
    "bbox_weights": [10.0, 10.0, 5.0, 5.0],
    "selection": "vinvl",
    "num_labels": 1594,
    "num_attributes": 524,
    "attribute_threshold": 0.05,
}
_36 = {"min_regions": 36, "max_regions": 36}

PRESETS: dict[str, dict[str, Any]] = {
    "caffe": _CAFFE,
    "caffe-36": {**_CAFFE, **_36},
    "frcnn": _FRCNN,
    "frcnn-36": {**_FRCNN, **_36},
    "vinvl": _VINVL,
}

_CHOICES = {
    "stem_pool": ("ceil", "pad1"),
    "pooler": ("roi_pool", "roi_align"),
    "objectness": ("softmax", "logit", "sigmoid"),
    "background": ("first", "last"),
    "selection": ("class_nms", "max_nms", "vinvl"),
    "res5_dtype": (None, "float32", "bfloat16", "float16"),
}


@strict
class BottomUpConfig(PreTrainedConfig):
    """Network and conventions of a [`BottomUpForRegionFeatures`]. The defaults are preset `caffe` with a ResNet-101.

    Args:
        depths (`list[int]`, defaults to `[3, 4, 23, 3]`):
            Blocks of res2 to res5; the last one runs on every region.
        stem_channels (`int`, defaults to 64), res2_channels (`int`, defaults to 256):
            Width of the stem's and of res2's output; every further stage doubles the latter.
        bottleneck_width (`int`, defaults to 64), num_groups (`int`, defaults to 1):
            Inner width of res2's blocks, and groups of their 3 x 3 convolutions (32 in a ResNeXt).
        stride_in_1x1 (`bool`, defaults to `True`):
            Whether the first 1 x 1 convolution of a stage has its stride, else its 3 x 3 convolution.
        stem_pool (`str`, defaults to `"ceil"`):
            The stem's maximum pooling: windows that start at pixel 0 (`"ceil"`) or at -1 (`"pad1"`).
        norm_eps (`float`, defaults to 1e-5):
            Added to the stored variances.
        res5_dilated (`bool`, defaults to `True`):
            Whether res5 keeps the size of its input and dilates its 3 x 3 convolutions by 2, else halves it.
        pooler (`str`, defaults to `"roi_pool"`), pooler_size (`int`, defaults to 14):
            How regions are cut out of the backbone's output: `"roi_pool"` or `"roi_align"`, and to how many bins.
        anchors (`list[list[float]]`, *optional*):
            x1, y1, x2, y2 of the anchors of the first cell in the order of the checkpoint's channels. By default
            [`caffe_anchors`]. A converted checkpoint has those of its file.
        rpn_channels (`int`, defaults to 512):
            Hidden width of the proposal network.
        objectness (`str`, defaults to `"softmax"`):
            Score of a proposal: `"softmax"` over two logits an anchor, background's first; the one `"logit"`; its
            `"sigmoid"`.
        box_offset (`int`, defaults to 1), nms_offset (`int`, defaults to 1):
            1 where a box contains its last pixel, so that its width is x2 - x1 + 1: in decoding and clipping, and in
            overlaps.
        nms_inclusive (`bool`, defaults to `True`):
            Whether an overlap that equals the threshold suppresses.
        decode_minus_one (`bool`, defaults to `False`):
            Whether 1 is subtracted from x2 and y2 of a decoded box.
        filter_first (`bool`, defaults to `True`):
            Whether proposals are clipped and small ones dropped before the `rpn_pre_nms` best are taken. Then
            `min_proposal_size` is in pixels of the original image, else of the resized one.
        drop_empty (`bool`, defaults to `True`), min_proposal_size (`float`, defaults to 16):
            Drop proposals without area, and those with a side of at most so many pixels.
        rpn_pre_nms (`int`, defaults to 6000), rpn_nms_threshold (`float`, defaults to 0.7):
            Proposals that enter the suppression, and the overlap that suppresses.
        max_proposals (`int`, defaults to 300):
            Proposals that res5 sees. Fewer cost proportionally less time and give other regions than the paper's.
        bbox_weights (`list[float]`, defaults to `[1, 1, 1, 1]`):
            What the regions' box deltas are divided by.
        background (`str`, defaults to `"first"`):
            Where background, and "no attribute", stand among the logits: `"first"` or `"last"`.
        num_attributes (`int`, defaults to 400):
            Attributes, without "no attribute"; 0 for a detector that has none.
        none_in_softmax (`bool`, defaults to `True`):
            Whether "no attribute" shares in the attributes' softmax.
        id2attribute (`dict[int, str]`, *optional*):
            Their names. `id2label` and `num_labels` (1600 by default) are the same for objects, without background.
        embedding_size (`int`, defaults to 256), attribute_hidden_size (`int`, defaults to 512):
            Widths of the attribute classifier.
        selection (`str`, defaults to `"class_nms"`):
            Which proposals become regions, see `selection_bottom_up.py`: `"class_nms"`, `"max_nms"` or `"vinvl"`.
        score_threshold (`float`, defaults to 0.2):
            Confidence of a region; not looked at by `"max_nms"`, as in the original.
        nms_thresholds (`list[float]`, defaults to `[0.3]`):
            Overlaps that suppress. `"max_nms"` tries one after the other until it has `min_regions`.
        min_regions (`int`, defaults to 10), max_regions (`int`, defaults to 100):
            Regions of an image. There are fewer only where there are fewer proposals, or with `"max_nms"` if even the
            last threshold leaves fewer.
        attribute_threshold (`float`, defaults to 0):
            Attributes of at most this probability count as 0.
        fold_norms (`bool`, defaults to `False`):
            Multiply the stored statistics into the convolutions: a tenth faster, other in the last digits.
        res5_dtype (`str`, *optional*):
            Precision of res5 alone, `"bfloat16"` for twice the speed: boxes stay, features change by 0.2 %.
        regions_per_chunk (`int`, defaults to 50):
            Regions that res5 sees at a time, for less memory.

    Raises:
        StrictDataclassError: (huggingface_hub) a field of the wrong type or fields that contradict each other, by name
            and value.

    Example:

    ```python
    >>> from hf_captioners import BottomUpConfig
    >>> config = BottomUpConfig.from_preset("frcnn-36")
    >>> config.selection, config.min_regions, config.feature_size, config.num_labels
    ('max_nms', 36, 2048, 1600)

    ```
    """

    model_type = "bottom_up"

    depths: list[int] | tuple[int, ...] = (3, 4, 23, 3)
    stem_channels: int = 64
    res2_channels: int = 256
    bottleneck_width: int = 64
    num_groups: int = 1
    stride_in_1x1: bool = True
    stem_pool: str = "ceil"
    norm_eps: float = 1e-5
    res5_dilated: bool = True
    pooler: str = "roi_pool"
    pooler_size: int = 14
    anchors: list[list[float]] | None = None
    rpn_channels: int = 512
    objectness: str = "softmax"
    box_offset: int = 1
    nms_offset: int = 1
    nms_inclusive: bool = True
    decode_minus_one: bool = False
    filter_first: bool = True
    drop_empty: bool = True
    min_proposal_size: float = 16.0
    rpn_pre_nms: int = 6000
    rpn_nms_threshold: float = 0.7
    max_proposals: int = 300
    bbox_weights: list[float] | tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    background: str = "first"
    num_attributes: int = 400
    none_in_softmax: bool = True
    id2attribute: dict[int, str] | dict[str, str] | None = None
    embedding_size: int = 256
    attribute_hidden_size: int = 512
    selection: str = "class_nms"
    score_threshold: float = 0.2
    nms_thresholds: list[float] | tuple[float, ...] = (0.3,)
    min_regions: int = 10
    max_regions: int = 100
    attribute_threshold: float = 0.0
    fold_norms: bool = False
    res5_dtype: str | None = None
    regions_per_chunk: int = 50

    def __post_init__(self, **kwargs: Any) -> None:
        if not __name__.startswith("transformers_modules"):  # see CaptionerConfig
            kwargs.pop("auto_map", None)
        if self.id2label is None:
            kwargs.setdefault("num_labels", 1600)
        for name in ("depths", "bbox_weights", "nms_thresholds"):
            setattr(self, name, list(getattr(self, name)))
        if self.anchors is None:
            self.anchors = caffe_anchors()
        if self.id2attribute is None:
            self.id2attribute = {index: f"ATTRIBUTE_{index}" for index in range(self.num_attributes)}
        self.id2attribute = {int(index): name for index, name in self.id2attribute.items()}
        super().__post_init__(**kwargs)

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> BottomUpConfig:
        """Make the configuration of a convention.

        Args:
            name (`str`): one of [`PRESETS`]: `"caffe"`, `"caffe-36"`, `"frcnn"`, `"frcnn-36"` or `"vinvl"`.
            changes: fields that are to differ from it.

        Raises:
            ValueError: there is no such preset.
        """
        if name not in PRESETS:
            raise ValueError(f"preset {name!r} is not known; expected one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **changes})

    @property
    def feature_size(self) -> int:
        """Width of a region's features."""
        return 8 * self.res2_channels

    @property
    def backbone_channels(self) -> int:
        """Width of the backbone's output, res4."""
        return 4 * self.res2_channels

    def validate_architecture(self) -> None:
        """Check the fields against each other; called after construction."""
        for name, values in _CHOICES.items():
            if getattr(self, name) not in values:
                raise ValueError(f"BottomUpConfig: {name} must be one of {values}, not {getattr(self, name)!r}.")
        if len(self.depths) != 4 or min(self.depths) < 1 or max(self.depths) > _MAX_DEPTH:
            raise ValueError(f"BottomUpConfig: depths must be four numbers of 1 to {_MAX_DEPTH}, not {self.depths}.")
        for name in ("stem_channels", "res2_channels", "bottleneck_width", "num_groups", "pooler_size", "rpn_channels",
                     "rpn_pre_nms", "max_proposals", "embedding_size", "attribute_hidden_size", "min_regions",
                     "regions_per_chunk"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"BottomUpConfig: {name} must be at least 1, not {getattr(self, name)}.")
        if self.bottleneck_width % self.num_groups:
            raise ValueError(
                f"BottomUpConfig: num_groups={self.num_groups} must divide bottleneck_width={self.bottleneck_width}."
            )
        if self.max_regions < self.min_regions:
            raise ValueError(
                f"BottomUpConfig: max_regions={self.max_regions} is less than min_regions={self.min_regions}."
            )
        if not self.anchors or any(len(anchor) != 4 for anchor in self.anchors):
            raise ValueError("BottomUpConfig: anchors must be boxes of four numbers, at least one.")
        if len(self.bbox_weights) != 4 or min(self.bbox_weights) <= 0:
            raise ValueError(f"BottomUpConfig: bbox_weights must be four positive numbers, not {self.bbox_weights}.")
        if not self.nms_thresholds:
            raise ValueError("BottomUpConfig: nms_thresholds must hold at least one number.")
        self._validate_names()

    def _validate_names(self) -> None:
        if len(self.id2attribute or {}) != self.num_attributes:
            raise ValueError(
                f"BottomUpConfig: id2attribute names {len(self.id2attribute or {})} attributes, but "
                f"num_attributes={self.num_attributes}."
            )
        for name, names in (("id2label", self.id2label), ("id2attribute", self.id2attribute)):
            if sorted(names or {}) != list(range(len(names or {}))):
                raise ValueError(f"BottomUpConfig: the keys of {name} must be 0, 1, 2...")
