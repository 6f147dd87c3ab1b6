"""A bottom-up detector with weights set by hand: it finds the small shapes of the drawn world and names their colours.

Everything follows from the picture in closed form, up to the scores in whole numbers. The stem keeps how much darker
than `PALE` a pixel is in blue, green and red; all blocks pass that on, so that a cell (y, x) of res4 sees the darkest
of the nine pixels 16 y + {0, 2, 4}, 16 x + {0, 2, 4}. Objectness is the sum of the cells around, weighted by `KERNEL`;
there is one anchor, of three cells, and no delta moves it. A region's colour is the one whose darkness is nearest to
its average.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hf_captioners import BottomUpConfig, BottomUpForRegionFeatures, BottomUpImageProcessor
from hf_captioners.data.drawn.scene import COLORS

SIDE = 224
PALE = 200
ANCHOR = [-22.0, -22.0, 23.0, 23.0]  # about the pixels 2 of the cells -1 to 1, and rounded to these cells
KERNEL = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
SHARE = 0.85  # of a region that its shape covers
SHARPNESS = 40.0 / PALE**2
NAMES = list(COLORS)


def darkness(pixels: np.ndarray) -> np.ndarray:
    """Darkness of values of 0 to 255, compared with `PALE`."""
    return np.maximum(PALE - pixels, 0)


def cells(picture: np.ndarray) -> np.ndarray:
    """Darkness (height, width, 3) of the cells of an RGB picture."""
    seen = darkness(picture[:, :, ::-1].astype(np.float64))  # blue, green, red
    count = SIDE // 16
    grid = np.zeros((count, count, 3))
    for y in range(count):
        for x in range(count):
            grid[y, x] = seen[16 * y : 16 * y + 5 : 2, 16 * x : 16 * x + 5 : 2].max((0, 1))
    return grid


def objectness(picture: np.ndarray) -> np.ndarray:
    """The score (height, width) of the box at every cell."""
    grid = np.pad(cells(picture).sum(2), 1)
    count = SIDE // 16
    return np.array([[(KERNEL * grid[y : y + 3, x : x + 3]).sum() for x in range(count)] for y in range(count)])


def build(**changes: object) -> tuple[BottomUpForRegionFeatures, BottomUpImageProcessor]:
    """The detector and its image processor."""
    config = BottomUpConfig(
        **{
            "depths": [1, 1, 1, 1],
            "stem_channels": 4,
            "res2_channels": 4,
            "bottleneck_width": 4,
            "norm_eps": 0.0,
            "anchors": [ANCHOR],
            "rpn_channels": 1,
            "rpn_nms_threshold": 0.05,
            "max_proposals": 12,
            "objectness": "logit",
            "box_offset": 0,
            "nms_offset": 0,
            "num_attributes": 2,
            "id2label": dict(enumerate(NAMES)),
            "id2attribute": {0: "pale", 1: "dark"},
            "embedding_size": 1,
            "attribute_hidden_size": 1,
            "score_threshold": 0.5,
            "min_regions": 1,
            "max_regions": 10,
            **changes,
        }
    )
    model = BottomUpForRegionFeatures(config).eval()
    processor = BottomUpImageProcessor(size={"shortest_edge": SIDE, "longest_edge": SIDE}, image_mean=[100.0] * 3)
    with torch.no_grad():
        _set_backbone(model)
        _set_heads(model)
    return model, processor


def _set_backbone(model: BottomUpForRegionFeatures) -> None:
    for name, value in model.state_dict().items():
        value.fill_(1.0 if name.endswith("running_var") else 0.0)
    for name, module in model.named_modules():
        if name.endswith("norm"):
            module.weight.fill_(1.0)
        if name.endswith("shortcut"):
            module.weight[:, :, 0, 0] = torch.eye(*module.weight.shape[:2])
    stem = model.backbone.stem.conv1
    for channel in range(3):
        stem.weight[channel, channel, 3, 3] = -1.0  # of a pixel, of which 100 was subtracted
        stem.norm.bias[channel] = PALE - 100.0


def _set_heads(model: BottomUpForRegionFeatures) -> None:
    head: nn.Module = model.proposal_generator.rpn_head
    head.conv.weight[0, :3] = torch.from_numpy(KERNEL)
    head.objectness_logits.weight.fill_(1.0)
    predictor = model.roi_heads.box_predictor
    for index, colour in enumerate(COLORS.values()):
        centre = torch.from_numpy(SHARE * darkness(np.array(colour[::-1], dtype=np.float64))).float()
        predictor.cls_score.weight[1 + index, :3] = 2 * SHARPNESS * centre
        predictor.cls_score.bias[1 + index] = -SHARPNESS * centre.square().sum()
    predictor.fc_attr.weight[0, :3] = 1 / PALE
    predictor.attr_score.bias[1] = 1.0  # "pale", unless it is darker than that
    predictor.attr_score.weight[2] = 1.0
