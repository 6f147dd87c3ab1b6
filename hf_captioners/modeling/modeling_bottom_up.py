"""The bottom-up detector: images in, region features, boxes, objects and attributes out. Inference only.

Anderson et al., arXiv 1707.07998; see `configuration_bottom_up.py` for the conventions in which it exists. Plain
PyTorch, on any device; no training of the detector is offered.

Where this differs from the programs that it follows:

1. Images run through the backbone one by one, without padding: the regions of an image do not depend on its batch, as
   they do in LXMERT's copy, whose anchors lie on the padding.
2. All sorts are stable, so that ties go to the earlier proposal on every machine.
3. Suppression per class leaves out scores that cannot matter (`class_nms`). The result is exactly the same.
4. With `config.fold_norms` stored statistics of normalisation are folded into the convolutions.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import ModelOutput

from .captioner_shipping import registered
from .configuration_bottom_up import STRIDE, BottomUpConfig
from .image_processing_bottom_up import BottomUpImageProcessor  # noqa: F401  # travels with the model
from .ops_bottom_up import clip_boxes, decode_boxes, nms_sorted, roi_align, roi_pool
from .resnet_bottom_up import BottomUpBackbone, FrozenNorm, NormedConv, Stage
from .selection_bottom_up import Selection, select_regions

SMALLEST_SIDE = 3  # pixels from which the stem leaves a cell


@dataclass
class BottomUpOutput(ModelOutput):
    """The regions of a batch of images, padded to the image with most of them.

    Args:
        region_features (`torch.Tensor` of shape `(B, N, feature_size)`):
            Features of the proposals, 0 in padding.
        region_attention_mask (`torch.LongTensor` of shape `(B, N)`):
            1 for regions, 0 for padding.
        boxes (`torch.Tensor` of shape `(B, N, 4)`):
            x1, y1, x2, y2 in pixels of the original images, as the convention exports them: proposals, or refined boxes
            with `frcnn`.
        refined_boxes (`torch.Tensor` of shape `(B, N, 4)`):
            The boxes moved to their object, inside the image; in the same pixels.
        labels (`torch.LongTensor` of shape `(B, N)`), scores (`torch.Tensor` of shape `(B, N)`):
            Objects, keys of `config.id2label`, and their probabilities; -1 and 0 in padding.
        attributes (`torch.LongTensor` of shape `(B, N)`), attribute_scores (`torch.Tensor` of shape `(B, N)`):
            The most probable attribute, a key of `config.id2attribute`, and its probability; -1 and 0 in padding.
        attribute_probs (`torch.Tensor` of shape `(B, N, num_attributes)`):
            Probabilities of all attributes, without "no attribute".
        original_sizes (`torch.LongTensor` of shape `(B, 2)`):
            Height and width of the original images.
        proposals (`tuple[torch.Tensor]`, *optional*):
            With `output_proposals`, the boxes `(R, 4)` of each image that res5 saw, in pixels of `pixel_values`.
    """

    region_features: Tensor | None = None
    region_attention_mask: Tensor | None = None
    boxes: Tensor | None = None
    refined_boxes: Tensor | None = None
    labels: Tensor | None = None
    scores: Tensor | None = None
    attributes: Tensor | None = None
    attribute_scores: Tensor | None = None
    attribute_probs: Tensor | None = None
    original_sizes: Tensor | None = None
    proposals: tuple[Tensor, ...] | None = None


_PADDING = {"labels": -1, "attributes": -1}


@dataclass
class Frame:
    """One image of a batch: its pixels `(1, 3, height, width)`, its original size, and pixels per original pixel."""

    index: int
    pixels: Tensor
    original_size: tuple[int, int]
    scale_y: float
    scale_x: float

    def __str__(self) -> str:
        return "image {} of the batch ({} x {} pixels, resized to {} x {})".format(
            self.index, *self.original_size[::-1], *self.size[::-1]
        )

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[2], self.pixels.shape[3]

    def to_original(self, boxes: Tensor) -> Tensor:
        """Boxes of the resized image in pixels of the original."""
        return boxes / boxes.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])

    def to_resized(self, boxes: Tensor) -> Tensor:
        """Boxes of the original image in pixels of the resized one."""
        return boxes * boxes.new_tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y])


# --- proposals ------------------------------------------------------------------------------------------------------


@dataclass
class Proposals:
    """Boxes `(R, 4)` in pixels of the resized image and their scores `(R)`, best first; and whether all is finite."""

    boxes: Tensor
    scores: Tensor
    finite: Tensor


class ProposalHead(nn.Module):
    """Objectness and box deltas of every anchor of every cell."""

    def __init__(self, config: BottomUpConfig) -> None:
        super().__init__()
        count, hidden = len(config.anchors or ()), config.rpn_channels
        logits = 2 * count if config.objectness == "softmax" else count
        self.conv = nn.Conv2d(config.backbone_channels, hidden, 3, padding=1)
        self.objectness_logits = nn.Conv2d(hidden, logits, 1)
        self.anchor_deltas = nn.Conv2d(hidden, 4 * count, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, A or 2 A, h, w)` and deltas `(B, 4 A, h, w)` of features `(B, C, h, w)`."""
        hidden = self.conv(features).relu_()
        return self.objectness_logits(hidden), self.anchor_deltas(hidden)


class ProposalGenerator(nn.Module):
    """Boxes that may hold an object."""

    def __init__(self, config: BottomUpConfig) -> None:
        super().__init__()
        self.config = config
        self.rpn_head = ProposalHead(config)

    def forward(self, features: Tensor, frame: Frame) -> Proposals:
        """The proposals on the backbone's output `(1, C, h, w)` of an image."""
        config = self.config
        logits, deltas = self.rpn_head(features)
        scores = self._scores(logits.float())  # (h * w * A)
        steps = deltas.float().permute(0, 2, 3, 1).reshape(-1, 4)  # (h * w * A, 4)
        anchors = self.anchors(features.shape[2:], steps)
        boxes = decode_boxes(anchors, steps, (1, 1, 1, 1), config.box_offset, config.decode_minus_one)
        boxes = clip_boxes(boxes, *frame.size, config.box_offset)
        valid = self._valid(boxes, frame)
        ranking = scores.masked_fill(~valid, -torch.inf) if config.filter_first else scores
        order = ranking.sort(descending=True, stable=True).indices[: config.rpn_pre_nms]
        kept = nms_sorted(
            boxes[order],
            valid[order],
            config.rpn_nms_threshold,
            offset=config.nms_offset,
            inclusive=config.nms_inclusive,
            limit=config.max_proposals,
        )
        kept = order[kept]
        return Proposals(boxes[kept], scores[kept], torch.isfinite(logits).all() & torch.isfinite(deltas).all())

    def anchors(self, cells: Sequence[int], like: Tensor) -> Tensor:
        """The anchors `(h * w * A, 4)` of all cells, in the order y, x, anchor."""
        first = like.new_tensor(self.config.anchors)  # (A, 4)
        y, x = (STRIDE * torch.arange(count, device=like.device) for count in cells)
        y, x = torch.meshgrid(y, x, indexing="ij")
        return (torch.stack((x, y, x, y), dim=-1)[:, :, None] + first).reshape(-1, 4)

    def _scores(self, logits: Tensor) -> Tensor:
        """Scores `(h * w * A)` of logits `(1, A or 2 A, h, w)`."""
        if self.config.objectness == "softmax":
            logits = logits.unflatten(1, (2, -1)).softmax(1)[:, 1]  # background's channels come first
        elif self.config.objectness == "sigmoid":
            logits = logits.sigmoid()
        return logits.permute(0, 2, 3, 1).flatten()

    def _valid(self, boxes: Tensor, frame: Frame) -> Tensor:
        config = self.config
        scale = min(frame.scale_y, frame.scale_x) if config.filter_first else 1.0
        sides = boxes[:, 2:] - boxes[:, :2]  # (N, 2)
        valid = (sides + config.box_offset > config.min_proposal_size * scale).all(1)
        return valid & (sides > 0).all(1) if config.drop_empty else valid


# --- regions --------------------------------------------------------------------------------------------------------


class BoxPredictor(nn.Module):
    """Objects, box deltas and attributes of regions."""

    def __init__(self, config: BottomUpConfig) -> None:
        super().__init__()
        self.config = config
        classes, width = len(config.id2label or {}) + 1, config.feature_size
        with_background = config.background == "first"
        self.cls_score = nn.Linear(width, classes)
        self.bbox_pred = nn.Linear(width, 4 * (classes if with_background else classes - 1))
        if config.num_attributes:
            self.cls_embedding = nn.Embedding(classes, config.embedding_size)
            self.fc_attr = nn.Linear(width + config.embedding_size, config.attribute_hidden_size)
            self.attr_score = nn.Linear(config.attribute_hidden_size, config.num_attributes + 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(R, K + 1)` and deltas `(R, K or K + 1, 4)` of features `(R, D)`."""
        return self.cls_score(features), self.bbox_pred(features).unflatten(1, (-1, 4))

    def attribute_logits(self, features: Tensor, classes: Tensor) -> Tensor:
        """Logits `(R, num_attributes + 1)` of features `(R, D)` of regions of `classes` `(R)`, rows of `cls_score`."""
        embedded = self.cls_embedding(classes).to(features.dtype)
        return self.attr_score(self.fc_attr(torch.cat((features, embedded), dim=1)).relu_())

    def without_background(self, values: Tensor) -> Tensor:
        """Columns of `values` `(R, K + 1)` without the one of background or "no attribute"."""
        return values[:, 1:] if self.config.background == "first" else values[:, :-1]


class RegionHeads(nn.Module):
    """res5 on the cut-out regions, and the predictions from its averages."""

    def __init__(self, config: BottomUpConfig) -> None:
        super().__init__()
        self.config = config
        self.res5 = Stage(config, 3)
        self.box_predictor = BoxPredictor(config)

    def pool(self, features: Tensor, boxes: Tensor) -> Iterator[Tensor]:
        """Crops `(r, C, size, size)` of features `(1, C, h, w)`, some of the boxes `(R, 4)` at a time."""
        config = self.config
        cut = roi_pool if config.pooler == "roi_pool" else roi_align
        yield from cut(features[0], boxes, config.pooler_size, 1 / STRIDE, config.regions_per_chunk)

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Features `(R, D)` of the boxes `(R, 4)` on the backbone's output `(1, C, h, w)`."""
        dtype = getattr(torch, self.config.res5_dtype) if self.config.res5_dtype else features.dtype
        res5 = self.res5.prepare(self.config.fold_norms, dtype)
        # (r, D, size, size), averaged in the model's own precision
        averages = [res5(crops.to(dtype)).mean((2, 3), dtype=torch.float32) for crops in self.pool(features, boxes)]
        return torch.cat(averages).to(features.dtype)


# --- the model ------------------------------------------------------------------------------------------------------


class BottomUpForRegionFeatures(PreTrainedModel):
    """The bottom-up detector.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_captioners import BottomUpConfig, BottomUpForRegionFeatures, BottomUpImageProcessor
    >>> config = BottomUpConfig(depths=[1, 1, 1, 1], stem_channels=4, res2_channels=8, bottleneck_width=4, num_labels=5)
    >>> model = BottomUpForRegionFeatures(config).eval()
    >>> processor = BottomUpImageProcessor(size={"shortest_edge": 96, "longest_edge": 160})
    >>> outputs = model(**processor(Image.new("RGB", (320, 240)), return_tensors="pt"))
    >>> outputs.region_features.shape[2], outputs.boxes.shape[2]
    (64, 4)

    ```
    """

    config: BottomUpConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    _no_split_modules = ["Bottleneck"]

    def __init__(self, config: BottomUpConfig) -> None:
        super().__init__(config)
        self.backbone = BottomUpBackbone(config)
        self.proposal_generator = ProposalGenerator(config)
        self.roi_heads = RegionHeads(config)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Random weights that keep features, scores and boxes in the range of trained ones."""
        if isinstance(module, NormedConv):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, (nn.Conv2d, nn.Linear, nn.Embedding)):
            init.normal_(module.weight, std=0.01)
        elif isinstance(module, FrozenNorm):
            init.constant_(module.weight, module.start)
            init.ones_(module.running_var)
            init.zeros_(module.bias)
            init.zeros_(module.running_mean)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            init.zeros_(module.bias)

    @torch.no_grad()
    def forward(
        self,
        pixel_values: Tensor,
        image_sizes: Tensor | None = None,
        original_sizes: Tensor | None = None,
        scales: Tensor | None = None,
        boxes: Sequence[Tensor] | Tensor | None = None,
        min_regions: int | None = None,
        max_regions: int | None = None,
        output_proposals: bool = False,
    ) -> BottomUpOutput:
        """Find and describe the regions of images, as [`BottomUpImageProcessor`] prepares them.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`):
                Images in the order blue, green, red, padded on the right and below.
            image_sizes (`torch.LongTensor` of shape `(B, 2)`, *optional*):
                Height and width of each without padding; by default nothing is padded.
            original_sizes (`torch.LongTensor` of shape `(B, 2)`, *optional*):
                Height and width before resizing; by default `image_sizes`.
            scales (`torch.Tensor` of shape `(B, 2)`, *optional*):
                The factors of height and width, in float32. By default the quotients of the sizes, which
                differ a little from the exact factor of preset `caffe`.
            boxes (`Sequence[torch.Tensor]` of shapes `(R, 4)`, *optional*):
                Describe these boxes of each image, in pixels of the original, instead of looking for some.
            min_regions (`int`, *optional*), max_regions (`int`, *optional*):
                Regions of an image; by default the configuration's. A `max_regions` below its minimum lowers that.
            output_proposals (`bool`, defaults to `False`):
                Also return the boxes that res5 saw.

        Returns:
            [`BottomUpOutput`]

        Raises:
            ValueError: an argument of a wrong shape or type; an image with a side of less than 3 pixels; an image in
                which no proposal is left; weights or pixels that make NaN or infinity.
        """
        limits = self.limits(min_regions, max_regions)
        frames = frames_of(pixel_values, image_sizes, original_sizes, scales)
        boxes_of_images = _checked_boxes(boxes, frames)
        described = [self._describe(*image, limits) for image in zip(frames, boxes_of_images, strict=True)]
        regions, proposals = zip(*described, strict=True)
        device = pixel_values.device
        lengths = torch.tensor([len(image["boxes"]) for image in regions], device=device)
        batch = {
            name: nn.utils.rnn.pad_sequence([image[name] for image in regions], True, _PADDING.get(name, 0))
            for name in regions[0]
        }
        return BottomUpOutput(
            **batch,
            region_attention_mask=(torch.arange(batch["boxes"].shape[1], device=device) < lengths[:, None]).long(),
            original_sizes=torch.tensor([frame.original_size for frame in frames], device=device),
            proposals=proposals if output_proposals else None,
        )

    def save_pretrained(self, save_directory: str | Path, *args: Any, ship_code: bool = False, **kwargs: Any) -> None:
        """Save as in transformers; with `ship_code=True` the folder also carries the code that runs it.

        Args:
            save_directory (`str` or `Path`): the folder.
            ship_code (`bool`, defaults to `False`): whether to add the code, for `trust_remote_code=True`.
            args, kwargs: see `PreTrainedModel.save_pretrained`.
        """
        if not ship_code:
            return super().save_pretrained(save_directory, *args, **kwargs)
        try:
            with registered({type(self.config): "AutoConfig", type(self): "AutoModel"}):
                return super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            vars(self.config).pop("auto_map", None)

    def limits(self, min_regions: int | None = None, max_regions: int | None = None) -> tuple[int, int]:
        """The least and the most regions of an image, where these are asked for; see [`forward`]."""
        most = self.config.max_regions if max_regions is None else max_regions
        least = min(self.config.min_regions, most) if min_regions is None else min_regions
        if not 1 <= least <= most:
            raise ValueError(f"min_regions={least} must be at least 1 and at most max_regions={most}.")
        return least, most

    def _describe(
        self, frame: Frame, boxes: Tensor | None, limits: tuple[int, int]
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The regions of one image, by the names of the output, and the boxes that res5 saw."""
        features = self.backbone(frame.pixels)  # (1, C, h, w)
        if boxes is None:
            proposed = self.proposal_generator(features, frame)
            proposals, finite = proposed.boxes, proposed.finite
            if not len(proposals):
                _check_finite(finite & torch.isfinite(features).all(), frame)
                raise ValueError(f"{frame}: no proposal is left; the image is too small or too narrow")
        else:
            proposals, finite = frame.to_resized(boxes), torch.isfinite(features).all()
        pooled = self.roi_heads(features, proposals)  # (R, D)
        logits, deltas = self.roi_heads.box_predictor(pooled)
        _check_finite(finite & torch.isfinite(logits).all() & torch.isfinite(deltas).all(), frame)
        compared = frame.to_original(proposals) if self._compares_originals else proposals
        probs = logits.float().softmax(1)  # (R, K + 1)
        refined = self._refine(compared, deltas.float(), probs, frame)
        objects = self.roi_heads.box_predictor.without_background(probs)
        if boxes is None:
            chosen = select_regions(objects, compared, refined, self.config, *limits)
        else:
            scores, labels = objects.max(1)
            chosen = Selection(torch.arange(len(boxes), device=labels.device), labels, scores)
        exported = refined if boxes is None and self.config.selection == "max_nms" else compared
        places = {"boxes": exported[chosen.rows], "refined_boxes": refined[chosen.rows]}
        if not self._compares_originals:
            places = {name: frame.to_original(value) for name, value in places.items()}
        if boxes is not None:
            places["boxes"] = boxes
        return {**places, **self._contents(chosen, pooled[chosen.rows], probs[chosen.rows])}, proposals

    @property
    def _compares_originals(self) -> bool:
        """Tell whether regions are compared in pixels of the original image; otherwise in those of the resized one."""
        return self.config.selection == "class_nms"

    def _refine(self, boxes: Tensor, deltas: Tensor, probs: Tensor, frame: Frame) -> Tensor:
        """Boxes `(R, 4)` moved by the deltas `(R, K or K + 1, 4)` of their best class, inside the image."""
        config = self.config
        best = self.roi_heads.box_predictor.without_background(probs).argmax(1)
        column = best + 1 if config.background == "first" else best
        deltas = deltas[torch.arange(len(boxes), device=boxes.device), column]  # (R, 4)
        height, width = map(float, frame.size)
        if self._compares_originals:
            height, width = height / frame.scale_y, width / frame.scale_x
        refined = decode_boxes(boxes, deltas, config.bbox_weights, config.box_offset, config.decode_minus_one)
        return clip_boxes(refined, height, width, config.box_offset)

    def _contents(self, chosen: Selection, features: Tensor, probs: Tensor) -> dict[str, Tensor]:
        """Features `(N, D)`, objects and attributes of the chosen regions, by the names of the output."""
        config = self.config
        contents = {"region_features": features, "labels": chosen.labels, "scores": chosen.scores}
        if not config.num_attributes:
            nothing = features.new_zeros(len(features), 0, dtype=torch.float32)
            attributes, scores = torch.full_like(chosen.labels, -1), torch.zeros_like(chosen.scores)
            return {**contents, "attributes": attributes, "attribute_scores": scores, "attribute_probs": nothing}
        classes = probs.argmax(1)  # background may be the best
        if config.selection == "vinvl":
            classes = chosen.labels + int(config.background == "first")
        predictor = self.roi_heads.box_predictor
        logits = predictor.attribute_logits(features, classes).float()
        if config.none_in_softmax:
            attribute_probs = predictor.without_background(logits.softmax(1))
        else:
            attribute_probs = predictor.without_background(logits).softmax(1)
        attribute_probs = attribute_probs * (attribute_probs > config.attribute_threshold)
        scores, attributes = attribute_probs.max(1)
        return {
            **contents,
            "attributes": attributes,
            "attribute_scores": scores,
            "attribute_probs": attribute_probs,
        }


# --- inputs ---------------------------------------------------------------------------------------------------------


def _check_finite(finite: Tensor, frame: Frame) -> None:
    if not finite:
        raise ValueError(f"{frame}: the detector computes NaN or infinity; its weights or pixel_values are damaged")


def frames_of(
    pixel_values: Tensor, image_sizes: Tensor | None, original_sizes: Tensor | None, scales: Tensor | None
) -> list[Frame]:
    """The images of a batch, each without its padding."""
    if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not pixel_values.is_floating_point():
        raise ValueError(
            f"pixel_values must be floating point of shape (B, 3, height, width), not {pixel_values.dtype} of shape "
            f"{tuple(pixel_values.shape)}"
        )
    count, _, *padded = pixel_values.shape
    sizes = [padded] * count if image_sizes is None else _pairs("image_sizes", image_sizes, count)
    originals = sizes if original_sizes is None else _pairs("original_sizes", original_sizes, count)
    factors = [[new / old for new, old in zip(*pair, strict=True)] for pair in zip(sizes, originals, strict=True)]
    if scales is not None:
        if scales.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                f"scales must be float32 or float64, not {scales.dtype}: give another precision to pixel_values alone"
            )
        factors = _pairs("scales", scales, count)
    frames = []
    for index, ((height, width), original, (y, x)) in enumerate(zip(sizes, originals, factors, strict=True)):
        if not (SMALLEST_SIDE <= height <= padded[0] and SMALLEST_SIDE <= width <= padded[1]):
            raise ValueError(
                f"image_sizes[{index}] is {height} x {width}, expected {SMALLEST_SIDE} pixels or more and at most the "
                f"{padded[0]} x {padded[1]} of pixel_values"
            )
        frames.append(Frame(index, pixel_values[index : index + 1, :, :height, :width], tuple(original), y, x))
    return frames


def _pairs(name: str, values: Tensor, count: int) -> list[Any]:
    if values.shape != (count, 2):
        raise ValueError(f"{name} must be ({count}, 2), height and width of each image, not {tuple(values.shape)}")
    pairs = values.tolist()
    if not all(0 < value < float("inf") for pair in pairs for value in pair):
        raise ValueError(f"{name} must be positive, not {pairs}")
    return pairs


def _checked_boxes(boxes: Sequence[Tensor] | Tensor | None, frames: Sequence[Frame]) -> list[Tensor | None]:
    """The boxes of every image on its device, or `None` for all."""
    if boxes is None:
        return [None] * len(frames)
    if len(boxes) != len(frames):
        raise ValueError(f"boxes are of {len(boxes)} images, but pixel_values of {len(frames)}")
    checked: list[Tensor | None] = []
    for frame, rows in zip(frames, boxes, strict=True):
        rows = rows.to(frame.pixels.device, torch.float32)
        if rows.ndim != 2 or rows.shape[1] != 4 or not len(rows):
            raise ValueError(f"boxes[{frame.index}] must be (R, 4) with R of 1 or more, not {tuple(rows.shape)}")
        if not bool((rows[:, :2] <= rows[:, 2:]).all() & torch.isfinite(rows).all()):
            raise ValueError(f"boxes[{frame.index}] has boxes that are not x1 <= x2, y1 <= y2 in finite numbers")
        checked.append(rows)
    return checked
