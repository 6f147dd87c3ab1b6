"""Operations on boxes against torchvision's and MILVLG's results, and against loops that follow the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_captioners.modeling.ops_bottom_up import (
    class_nms,
    clip_boxes,
    decode_boxes,
    nms,
    nms_sorted,
    overlaps,
    roi_align,
    roi_pool,
    suppresses,
)

CAFFE = {"offset": 1, "inclusive": True}


@pytest.fixture(scope="module")
def ops(shared_parity) -> dict[str, torch.Tensor]:
    return load_file(shared_parity / "bottom_up_detector" / "ops" / "ops.safetensors")


def random_boxes(count: int, seed: int = 0, side: float = 60.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * side
    return torch.cat((corner, corner + torch.rand(count, 2, generator=generator) * side), dim=1)


class TestNms:
    @pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
    def test_random_boxes(self, ops, threshold):
        boxes, scores = ops["nms.random.boxes"], ops["nms.random.scores"]
        assert torch.equal(nms(boxes, scores, threshold), ops[f"nms.random.keep_{threshold}"])
        caffe = nms(boxes, scores, threshold, **CAFFE)
        assert torch.equal(caffe.sort().values, ops[f"nms.random.caffe_keep_{threshold}"])

    @pytest.mark.parametrize("name", ["edge", "ties", "empty"])
    def test_edge_cases(self, ops, name):
        boxes, scores = ops[f"nms.{name}.boxes"], ops[f"nms.{name}.scores"]
        assert torch.equal(nms(boxes, scores, 0.5), ops[f"nms.{name}.keep_05"])

    def test_caffes_edge_cases(self, ops):
        kept = nms(ops["nms.caffe_edge.boxes"], ops["nms.caffe_edge.scores"], 0.5, **CAFFE)
        assert torch.equal(kept.sort().values, ops["nms.caffe_edge.keep_05"].sort().values)

    @pytest.mark.parametrize("limit", [1, 7, 1000])
    def test_a_limit_gives_the_first(self, ops, limit):
        boxes, scores = ops["nms.random.boxes"], ops["nms.random.scores"]
        assert torch.equal(nms(boxes, scores, 0.5, limit=limit), ops["nms.random.keep_0.5"][:limit])

    def test_boxes_that_take_no_part_suppress_nothing(self):
        boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
        assert nms_sorted(boxes, torch.tensor([False, True, True]), 0.5).tolist() == [1, 2]
        assert nms_sorted(boxes, torch.tensor([False, False, False]), 0.5).tolist() == []


class TestClassNms:
    def test_torchvisions_batched_nms(self, ops):
        boxes, scores, classes = (ops[f"nms.random.{name}"] for name in ("boxes", "scores", "classes"))
        per_class = torch.full((len(boxes), int(classes.max()) + 1), -1.0)
        per_class[torch.arange(len(boxes)), classes] = scores
        stays = class_nms(suppresses(overlaps(boxes, boxes), 0.5, False), per_class, 0.0).any(1)
        order = scores.sort(descending=True, stable=True).indices
        assert torch.equal(order[stays[order]], ops["nms.random.batched_keep_0.5"])

    @pytest.mark.parametrize("floor", [0.0, 0.05, 0.2, 2.0])
    def test_leaving_out_low_scores_is_exact(self, floor):
        """Against a suppression of all boxes in every class, one by one."""
        boxes = random_boxes(60)
        probs = (4 * torch.randn(60, 150, generator=torch.Generator().manual_seed(1))).softmax(1)
        probs[10:20] = probs[:10]  # ties
        stays = class_nms(suppresses(overlaps(boxes, boxes, 1), 0.3, True), probs, floor)
        for index in range(probs.shape[1]):
            expected = torch.zeros(60, dtype=torch.bool)
            expected[nms(boxes, probs[:, index], 0.3, **CAFFE)] = True
            assert torch.equal(stays[:, index], expected & (probs[:, index] >= floor))


class TestBoxes:
    def test_decoding_a_known_move(self):
        """A box of 10 x 20 at (4, 8): a quarter to the right, a tenth up, half as wide, twice as high."""
        deltas = torch.tensor([[0.25 * 10, -0.1 * 10, math.log(0.5) * 5, math.log(2) * 5]])
        expected = [4 + 5 + 2.5 - 2.5, 8 + 10 - 2 - 20, 4 + 5 + 2.5 + 2.5, 8 + 10 - 2 + 20]
        boxes = torch.tensor([[4.0, 8, 14, 28]])
        torch.testing.assert_close(decode_boxes(boxes, deltas, (10, 10, 5, 5)), torch.tensor([expected]))
        inclusive = torch.tensor([[4.0, 8, 13, 27]])  # the same extent where the last pixel counts
        caffe = decode_boxes(inclusive, deltas, (10, 10, 5, 5), offset=1)
        torch.testing.assert_close(caffe, torch.tensor([expected]))
        less = decode_boxes(inclusive, deltas, (10, 10, 5, 5), offset=1, minus_one=True)
        torch.testing.assert_close(less, torch.tensor([expected]) - torch.tensor([0.0, 0, 1, 1]))

    def test_growth_is_limited(self):
        box = decode_boxes(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[0.0, 0, 50, 50]]), (1, 1, 1, 1))
        torch.testing.assert_close(box[0, 2] - box[0, 0], torch.tensor(62.5))

    def test_clipping(self):
        boxes = torch.tensor([[-5.0, 3, 50, 100]])
        assert clip_boxes(boxes, 30, 40).tolist() == [[0, 3, 40, 30]]
        assert clip_boxes(boxes, 30, 40, 1).tolist() == [[0, 3, 39, 29]]

    def test_overlaps(self):
        boxes = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9], [3, 3, 3, 3]])
        expected = torch.tensor([[100.0, 50, 1], [50, 100, 0], [1, 0, 1]]) / torch.tensor(
            [[100.0, 150, 100], [150, 100, 101], [100, 101, 1]]
        )
        torch.testing.assert_close(overlaps(boxes, boxes, 1), expected)
        assert overlaps(boxes, boxes)[2, 2].isnan()


def pooled_by_definition(features: np.ndarray, box: list[float], size: int, scale: float) -> np.ndarray:
    """RoIPool of a region, with the rounding of C and bins in float32."""

    def c_round(value: float) -> int:
        return int(math.copysign(math.floor(abs(value) + 0.5), value))

    left, top, right, bottom = (c_round(value * scale) for value in box)
    channels, height, width = features.shape
    result = np.zeros((channels, size, size), dtype=features.dtype)
    step_y = np.float32(max(bottom - top + 1, 1)) / np.float32(size)
    step_x = np.float32(max(right - left + 1, 1)) / np.float32(size)
    for row in range(size):
        for column in range(size):
            y1 = min(max(int(np.floor(np.float32(row) * step_y)) + top, 0), height)
            y2 = min(max(int(np.ceil(np.float32(row + 1) * step_y)) + top, 0), height)
            x1 = min(max(int(np.floor(np.float32(column) * step_x)) + left, 0), width)
            x2 = min(max(int(np.ceil(np.float32(column + 1) * step_x)) + left, 0), width)
            if y2 > y1 and x2 > x1:
                result[:, row, column] = features[:, y1:y2, x1:x2].max((1, 2))
    return result


class TestPooling:
    @pytest.mark.parametrize("size", [14, 7, 3])
    @pytest.mark.parametrize("chunk", [None, 4])
    def test_roi_pool_is_torchvisions(self, ops, size, chunk):
        for image, features in enumerate(ops["pool.features"]):
            rows = ops["pool.rois"][:, 0] == image
            pooled = torch.cat(list(roi_pool(features, ops["pool.rois"][rows, 1:], size, 1 / 16, chunk)))
            assert torch.equal(pooled, ops[f"pool.roi_pool_{size}"][rows])

    @pytest.mark.parametrize("cells", [57, 62, 63, 79])
    def test_roi_pool_of_wide_regions(self, cells):
        """57 and 62 cells are where float32 gives other bins than exact numbers."""
        features = torch.randn(2, 3, cells + 2, generator=torch.Generator().manual_seed(0))
        box = [16.0, 0.0, 16.0 * cells, 20.0]
        pooled = torch.cat(list(roi_pool(features, torch.tensor([box]), 14, 1 / 16)))[0]
        assert np.array_equal(pooled.numpy(), pooled_by_definition(features.numpy(), box, 14, 1 / 16))

    def test_halves_are_rounded_away_from_zero(self):
        """168 / 16 = 10.5 cells reaches cell 11, which torch.round would not."""
        features = torch.arange(12.0).view(1, 1, 12)
        pooled = torch.cat(list(roi_pool(features, torch.tensor([[0.0, 0.0, 168.0, 0.0]]), 1, 1 / 16)))
        assert pooled.item() == 11

    def test_no_regions(self):
        assert list(roi_pool(torch.zeros(2, 4, 4), torch.zeros(0, 4), 14, 1 / 16)) == []

    @pytest.mark.parametrize("size", [14, 7, 1])
    @pytest.mark.parametrize("ratio", [0, 2])
    @pytest.mark.parametrize("aligned", [False, True])
    def test_roi_align_is_torchvisions(self, ops, size, ratio, aligned):
        expected = ops[f"pool.roi_align_{size}_s{ratio}_{'aligned' if aligned else 'plain'}"]
        for image, features in enumerate(ops["pool.features"]):
            rows = ops["pool.rois"][:, 0] == image
            crops = roi_align(features, ops["pool.rois"][rows, 1:], size, 1 / 16, 5, ratio, aligned)
            torch.testing.assert_close(torch.cat(list(crops)), expected[rows], atol=1e-6, rtol=0)
