"""Operations of the bottom-up detector on boxes: decoding, overlap, suppression, pooling. Plain PyTorch, on any device.

Boxes are x1, y1, x2, y2. The conventions of the original programs are arguments:

1. `offset` 1 counts a box's last pixel: its width is x2 - x1 + 1.
2. `inclusive`: an overlap that equals the threshold suppresses. Caffe's and MILVLG's CPU code do that, torchvision not.
3. Scores are sorted stably: of equal ones the earlier box comes first.
4. [`roi_pool`] rounds halves away from zero, as C does, and computes its bins in float32: both decide which cells a bin
   sees.

No loop waits for the device: suppression runs a fixed number of steps, and only sizes of results are read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_LARGEST_GROWTH = math.log(1000 / 16)  # a box grows at most to 62.5 times its width and height
_CLASSES_AT_ONCE = 64


def decode_boxes(
    boxes: Tensor, deltas: Tensor, weights: Sequence[float], offset: int = 0, minus_one: bool = False
) -> Tensor:
    """Move and scale boxes as a network's deltas say.

    Args:
        boxes (`torch.Tensor` of shape `(N, 4)`): the boxes.
        deltas (`torch.Tensor` of shape `(N, 4)`): dx, dy in widths and heights, dw, dh as logarithms.
        weights (`Sequence[float]`): what the deltas are divided by.
        offset (`int`, defaults to 0): see the top of this module.
        minus_one (`bool`, defaults to `False`): subtract 1 from x2 and y2 of the result.

    Returns:
        `torch.Tensor` of shape `(N, 4)`

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.ops_bottom_up import decode_boxes
    >>> decode_boxes(torch.tensor([[0.0, 0.0, 10.0, 20.0]]), torch.tensor([[0.5, 0.0, 0.0, 0.0]]), (1, 1, 1, 1))
    tensor([[ 5.,  0., 15., 20.]])

    ```
    """
    sizes = boxes[:, 2:] - boxes[:, :2] + offset  # (N, 2)
    centres = boxes[:, :2] + 0.5 * sizes
    divisors = deltas.new_tensor(weights)
    shifts = deltas[:, :2] / divisors[:2]
    growths = (deltas[:, 2:] / divisors[2:]).clamp(max=_LARGEST_GROWTH)
    centres = shifts * sizes + centres
    sizes = growths.exp() * sizes
    return torch.cat((centres - 0.5 * sizes, centres + 0.5 * sizes - int(minus_one)), dim=1)


def clip_boxes(boxes: Tensor, height: float, width: float, offset: int = 0) -> Tensor:
    """Cut boxes `(N, 4)` to an image: coordinates from 0 to its size minus `offset`."""
    x, y = boxes[:, 0::2], boxes[:, 1::2]
    x, y = x.clamp(0, max(width - offset, 0)), y.clamp(0, max(height - offset, 0))
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)


def overlaps(boxes: Tensor, others: Tensor, offset: int = 0) -> Tensor:
    """Intersection over union of every box with every other.

    Args:
        boxes (`torch.Tensor` of shape `(N, 4)`), others (`torch.Tensor` of shape `(M, 4)`): the boxes.
        offset (`int`, defaults to 0): see the top of this module.

    Returns:
        `torch.Tensor` of shape `(N, M)`: NaN where both have no area.
    """
    x1 = torch.maximum(boxes[:, None, 0], others[:, 0])  # (N, M)
    y1 = torch.maximum(boxes[:, None, 1], others[:, 1])
    x2 = torch.minimum(boxes[:, None, 2], others[:, 2])
    y2 = torch.minimum(boxes[:, None, 3], others[:, 3])
    shared = (x2 - x1 + offset).clamp_(min=0) * (y2 - y1 + offset).clamp_(min=0)
    return shared / (areas(boxes, offset)[:, None] + areas(others, offset) - shared)


def areas(boxes: Tensor, offset: int = 0) -> Tensor:
    """Areas `(N)` of boxes `(N, 4)`."""
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def suppresses(overlap: Tensor, threshold: float, inclusive: bool) -> Tensor:
    """Tell whether overlaps are large enough to suppress; not for NaN."""
    return overlap >= threshold if inclusive else overlap > threshold


def nms(
    boxes: Tensor,
    scores: Tensor,
    threshold: float,
    *,
    offset: int = 0,
    inclusive: bool = False,
    limit: int | None = None,
) -> Tensor:
    """Non-maximum suppression: the best box stays, boxes that overlap it too much go, and so on.

    Args:
        boxes (`torch.Tensor` of shape `(N, 4)`): the boxes.
        scores (`torch.Tensor` of shape `(N)`): the higher the better.
        threshold (`float`): the overlap that suppresses.
        offset (`int`, defaults to 0), inclusive (`bool`, defaults to `False`): see the top of this module.
        limit (`int`, *optional*): stop when so many boxes stay.

    Returns:
        `torch.LongTensor`: indices of the boxes that stay, in the order of their scores.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.ops_bottom_up import nms
    >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 0, 30, 10]])
    >>> nms(boxes, torch.tensor([0.5, 0.9, 0.1]), 0.7)
    tensor([1, 2])

    ```
    """
    order = scores.sort(descending=True, stable=True).indices
    alive = torch.ones_like(order, dtype=torch.bool)
    return order[nms_sorted(boxes[order], alive, threshold, offset=offset, inclusive=inclusive, limit=limit)]


def nms_sorted(
    boxes: Tensor,
    alive: Tensor,
    threshold: float,
    *,
    offset: int = 0,
    inclusive: bool = False,
    limit: int | None = None,
) -> Tensor:
    """Non-maximum suppression of boxes that are sorted already, some of which do not take part.

    The loop runs over boxes that stay, not over all of them.

    Args:
        boxes (`torch.Tensor` of shape `(N, 4)`): the best one first.
        alive (`torch.BoolTensor` of shape `(N)`): which of them take part.
        threshold, offset, inclusive, limit: as in [`nms`].

    Returns:
        `torch.LongTensor`: positions of the boxes that stay, ascending.
    """
    count = len(boxes)
    steps = count if limit is None else min(limit, count)
    if not steps:
        return torch.zeros(0, dtype=torch.long, device=boxes.device)
    x1, y1, x2, y2 = boxes.t().contiguous()  # (N) each
    area = areas(boxes, offset)  # (N)
    positions = torch.arange(count, device=boxes.device)
    ranks = count - positions  # the first box that is left has the largest
    best = torch.zeros(steps, dtype=torch.long, device=boxes.device)
    real = torch.zeros(steps, dtype=torch.bool, device=boxes.device)
    for step in range(steps):
        index = (ranks * alive).argmax(0, keepdim=True)  # (1)
        best[step : step + 1], real[step : step + 1] = index, alive[index]
        width = torch.minimum(x2, x2[index]) - torch.maximum(x1, x1[index]) + offset  # (N)
        height = torch.minimum(y2, y2[index]) - torch.maximum(y1, y1[index]) + offset
        shared = width.clamp_(min=0) * height.clamp_(min=0)
        overlap = shared / (area[index] + area - shared)
        alive = alive & ~suppresses(overlap, threshold, inclusive) & (positions != index)
    return best[real]


def class_nms(overlapping: Tensor, scores: Tensor, floor: float) -> Tensor:
    """Non-maximum suppression in every class by itself, over boxes that all classes share.

    Boxes that score less than `floor` in a class cannot suppress those that score more, so that leaving them out is
    exact: the result for scores of at least `floor` is that of all boxes.

    Args:
        overlapping (`torch.BoolTensor` of shape `(R, R)`): which boxes overlap too much.
        scores (`torch.Tensor` of shape `(R, K)`): scores of the boxes in every class.
        floor (`float`): the least score that takes part.

    Returns:
        `torch.BoolTensor` of shape `(R, K)`: whether a box takes part and stays.
    """
    stays = torch.zeros_like(scores, dtype=torch.bool)
    takes_part = scores >= floor
    present = takes_part.any(0).nonzero().flatten()
    for classes in present.split(_CLASSES_AT_ONCE) if len(present) else ():
        longest = int(takes_part[:, classes].sum(0).max())
        sorted_scores, order = scores[:, classes].t().sort(descending=True, stable=True)  # (k, R)
        order = order[:, :longest]  # (k, L)
        rivals = overlapping[order[:, :, None], order[:, None, :]]  # (k, L, L)
        alive = sorted_scores[:, :longest] >= floor
        for place in range(longest - 1):
            alive[:, place + 1 :] &= ~(rivals[:, place, place + 1 :] & alive[:, place : place + 1])
        stays[order, classes[:, None]] = alive
    return stays


# --- pooling --------------------------------------------------------------------------------------------------------


def roi_pool(features: Tensor, boxes: Tensor, size: int, scale: float, chunk: int | None = None) -> Iterator[Tensor]:
    """Cut regions out of a feature map by the maximum over bins of whole cells.

    Maxima over windows of 1, 2, 4... cells are computed once; the maximum of a bin is that of the four such windows in
    its corners.

    Args:
        features (`torch.Tensor` of shape `(C, height, width)`): the map of one image; fastest with the channels last in
            memory.
        boxes (`torch.Tensor` of shape `(R, 4)`): the regions, in pixels.
        size (`int`): bins per axis.
        scale (`float`): cells per pixel.
        chunk (`int`, *optional*): regions at a time; by default all.

    Yields:
        `torch.Tensor` of shape `(chunk, C, size, size)`, channels last in memory: 0 in bins outside of the map.
    """
    height, width = features.shape[1:]
    corners = _round_half_away(boxes * scale)  # (R, 4)
    x = _bins(corners[:, 0], corners[:, 2], size, width)  # starts and ends, each (R, size)
    y = _bins(corners[:, 1], corners[:, 3], size, height)
    largest = [1, 1]
    if len(boxes):
        largest = torch.stack(((y[1] - y[0]).max(), (x[1] - x[0]).max())).clamp(min=1).tolist()
    tables = _window_maxima(features.permute(1, 2, 0), largest)  # (levels of y, levels of x, height, width, C)
    rows = tables.flatten(0, 3)
    for part in range(0, len(boxes), chunk or max(len(boxes), 1)):
        places = slice(part, part + (chunk or len(boxes)))
        yield _pool_bins(rows, tables.shape[:4], [edge[places] for edge in y], [edge[places] for edge in x])


def _round_half_away(values: Tensor) -> Tensor:
    """C's round, as integers: torch rounds halves to even."""
    whole = values.trunc()
    return (whole + ((values - whole).abs() >= 0.5) * values.sign()).long()


def _bins(first: Tensor, last: Tensor, count: int, limit: int) -> tuple[Tensor, Tensor]:
    """First cells `(R, count)` of the bins from `first` to `last` `(R)`, and the cells behind their last ones."""
    cells = (last - first + 1).clamp(min=1)
    step = cells.float() / count  # float32, as the original: 57 and 62 cells give other bins than exact numbers
    index = torch.arange(count, device=first.device, dtype=torch.float32)
    starts = (index * step[:, None]).floor().long() + first[:, None]
    ends = ((index + 1) * step[:, None]).ceil().long() + first[:, None]
    return starts.clamp(0, limit), ends.clamp(0, limit)


def _window_maxima(cells: Tensor, largest: Sequence[int]) -> Tensor:
    """Maxima of `cells` `(height, width, C)` over windows of 2^a x 2^b cells that start in every cell, for all a, b."""
    levels = [int(extent).bit_length() for extent in largest]
    tables = cells.new_empty(*levels, *cells.shape)
    tables[0, 0] = cells
    for level in range(1, levels[0]):
        _shifted_maximum(tables[level - 1, 0], tables[level, 0], 0, 2 ** (level - 1))
    for level in range(1, levels[1]):
        _shifted_maximum(tables[:, level - 1], tables[:, level], 2, 2 ** (level - 1))
    return tables


def _shifted_maximum(table: Tensor, out: Tensor, axis: int, shift: int) -> None:
    """Maximum of the table and of itself `shift` cells further on; windows beyond the last cell are never asked for."""
    out.copy_(table)
    rest = table.shape[axis] - shift
    if rest > 0:
        torch.maximum(table.narrow(axis, 0, rest), table.narrow(axis, shift, rest), out=out.narrow(axis, 0, rest))


def _pool_bins(rows: Tensor, shape: Sequence[int], y: Sequence[Tensor], x: Sequence[Tensor]) -> Tensor:
    """Maxima `(r, C, size, size)` of the bins from `y[0]` to `y[1]` and `x[0]` to `x[1]`, each `(r, size)`."""
    (y_level, *tops), (x_level, *lefts) = _two_windows(y[0], y[1], shape[0]), _two_windows(x[0], x[1], shape[1])
    _, levels, height, width = shape
    table = (y_level[:, :, None] * levels + x_level[:, None, :]) * height  # (r, size, size)
    pooled: Tensor | None = None
    for top in tops:
        for left in lefts:
            index = (table + top[:, :, None]) * width + left[:, None, :]
            values = rows.index_select(0, index.flatten())  # (r * size * size, C)
            pooled = values if pooled is None else torch.maximum(pooled, values, out=pooled)
    assert pooled is not None
    empty = (y[1] <= y[0])[:, :, None] | (x[1] <= x[0])[:, None, :]
    pooled.masked_fill_(empty.flatten()[:, None], 0)
    return pooled.view(*empty.shape, -1).permute(0, 3, 1, 2)


def _two_windows(starts: Tensor, ends: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """The level a of the largest window of 2^a cells in every bin, and where its first and last place in it begin."""
    cells = ends - starts
    powers = 2 ** torch.arange(1, levels, device=starts.device)
    level = (cells[..., None] >= powers).sum(-1)
    return level, torch.minimum(starts, ends - 1).clamp(min=0), (ends - 2**level).clamp(min=0)


def roi_align(
    features: Tensor,
    boxes: Tensor,
    size: int,
    scale: float,
    chunk: int | None = None,
    sampling_ratio: int = 0,
    aligned: bool = False,
) -> Iterator[Tensor]:
    """Cut regions out of a feature map by averages of interpolated points.

    Interpolation and average act on both axes independently: two small matrices per region.

    Args:
        features, boxes, size, scale, chunk: as in [`roi_pool`].
        sampling_ratio (`int`, defaults to 0): points per bin and axis; 0 for the size of the bin in cells, rounded up.
        aligned (`bool`, defaults to `False`): cells have their values in their middle, not in their corner.

    Yields:
        `torch.Tensor` of shape `(chunk, C, size, size)`, channels last in memory.
    """
    height, width = features.shape[1:]
    cells = features.permute(1, 2, 0).reshape(height, -1)  # (height, width * C)
    corners = boxes * scale - (0.5 if aligned else 0.0)
    for part in corners.split(chunk or max(len(boxes), 1)):
        y = _sampling_matrix(part[:, 1], part[:, 3], size, height, sampling_ratio, aligned)  # (r, size, height)
        x = _sampling_matrix(part[:, 0], part[:, 2], size, width, sampling_ratio, aligned)
        bands = (y.flatten(0, 1) @ cells).view(len(part), size, width, -1)  # (r, size, width, C)
        yield (x[:, None] @ bands).permute(0, 3, 1, 2)


def _sampling_matrix(first: Tensor, last: Tensor, bins: int, limit: int, sampling_ratio: int, aligned: bool) -> Tensor:
    """Weights `(r, bins, limit)` of the cells of one axis in the averages over the bins from `first` to `last`."""
    extent = last - first if aligned else (last - first).clamp(min=1)
    step = extent / bins  # (r)
    points = step.ceil().clamp(min=0) if sampling_ratio == 0 else torch.full_like(step, sampling_ratio)
    most = int(points.max()) if len(points) else 0
    sample = torch.arange(most, device=first.device)
    bin_starts = first[:, None] + torch.arange(bins, device=first.device) * step[:, None]  # (r, bins)
    offsets = (sample + 0.5) * step[:, None] / points[:, None]  # (r, most)
    position = bin_starts[:, :, None] + offsets[:, None, :]  # (r, bins, most)
    counts = (position >= -1) & (position <= limit) & (sample < points[:, None, None])
    position = position.clamp(0, limit - 1)
    low = position.floor().nan_to_num(0)
    share = (position - low) * counts / points[:, None, None]
    rest = counts / points[:, None, None] - share
    weights = first.new_zeros(len(first), bins, limit)
    weights.scatter_add_(2, low.long(), rest.nan_to_num(0))
    return weights.scatter_add_(2, (low.long() + 1).clamp(max=limit - 1), share.nan_to_num(0))
