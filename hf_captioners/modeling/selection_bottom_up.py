"""Selection of the proposals of the bottom-up detector that become regions, and their order.

The three programs choose differently, and captioners see the difference: SCD-Net reads the first 50 rows only.

- `class_nms` (Caffe, MILVLG): suppression in every class, over proposals in pixels of the original image. A region's
  confidence is its highest score in a class that it survives. All regions of `score_threshold` stay, in the proposals'
  order; where they are fewer than `min_regions` or more than `max_regions`, the most confident ones, best first.
- `max_nms` (detectron2, LXMERT): one suppression of the refined boxes of each proposal's best class, at growing
  thresholds until `min_regions` survive. Best first. If no threshold leaves enough, the last one's regions stay.
- `vinvl`: as `class_nms`, over clipped proposals in pixels of the resized image, always best first; labelled by the
  class that gave the confidence. Proposals that survive in no class leave.

Equal scores: the earlier proposal comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .configuration_bottom_up import BottomUpConfig
from .ops_bottom_up import class_nms, overlaps, suppresses

_LOWER = (1.0, 1 / 4, 1 / 16, 1 / 64, 0.0)  # parts of score_threshold that are tried where too few regions reach it


@dataclass
class Selection:
    """The proposals that become regions.

    Attributes:
        rows (`torch.LongTensor` of shape `(N)`): their indices, in the regions' order.
        labels (`torch.LongTensor` of shape `(N)`): classes, without background.
        scores (`torch.Tensor` of shape `(N)`): probabilities of these.
    """

    rows: Tensor
    labels: Tensor
    scores: Tensor


def select_regions(
    probs: Tensor, boxes: Tensor, refined: Tensor, config: BottomUpConfig, min_regions: int, max_regions: int
) -> Selection:
    """Choose the regions of one image by `config.selection`.

    Args:
        probs (`torch.Tensor` of shape `(R, K)`): probabilities of the classes without background.
        boxes (`torch.Tensor` of shape `(R, 4)`): the proposals, in the pixels that the rule wants.
        refined (`torch.Tensor` of shape `(R, 4)`): the boxes of each proposal's best class.
        config ([`BottomUpConfig`]): the rule and its thresholds.
        min_regions, max_regions (`int`): how many.

    Returns:
        [`Selection`]
    """
    if config.selection == "max_nms":
        return _select_by_one_nms(probs, refined, config, min_regions, max_regions)
    confidences, labels = _class_confidences(probs, boxes, config, min_regions)
    count = int((confidences >= config.score_threshold).sum())
    best_first = confidences.sort(descending=True, stable=True).indices
    if config.selection == "vinvl":
        rows = best_first[: max(min_regions, min(count, max_regions))]
        rows = rows[confidences[rows] > 0]
        return Selection(rows, labels[rows], confidences[rows])
    if min_regions <= count <= max_regions:
        rows = (confidences >= config.score_threshold).nonzero().flatten()
    else:
        rows = best_first[: min_regions if count < min_regions else max_regions]
    scores, labels = probs[rows].max(1)
    return Selection(rows, labels, scores)


def _class_confidences(probs: Tensor, boxes: Tensor, config: BottomUpConfig, min_regions: int) -> tuple[Tensor, Tensor]:
    """Every proposal's highest score in a class that it survives, and that class.

    Exact for all that reach `score_threshold`, and for the `min_regions` best; of the others some are 0.
    """
    overlapping = suppresses(overlaps(boxes, boxes, config.nms_offset), config.nms_thresholds[0], config.nms_inclusive)
    for part in _LOWER:
        floor = config.score_threshold * part
        stays = class_nms(overlapping, probs, floor)
        confidences, labels = (probs * stays).max(1)
        if int((confidences >= floor).sum()) >= min_regions:
            break
    return confidences, labels


def _select_by_one_nms(
    probs: Tensor, refined: Tensor, config: BottomUpConfig, min_regions: int, max_regions: int
) -> Selection:
    scores, labels = probs.max(1)
    overlap = overlaps(refined, refined, config.nms_offset)
    best_first = scores.sort(descending=True, stable=True).indices
    for threshold in config.nms_thresholds:
        stays = class_nms(suppresses(overlap, threshold, config.nms_inclusive), scores[:, None], 0.0)[:, 0]
        rows = best_first[stays[best_first]][:max_regions]
        if len(rows) >= min_regions:
            break
    return Selection(rows, labels[rows], scores[rows])
