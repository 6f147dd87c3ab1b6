"""The bottom-up detector against the numbers of the programs that it follows (shared/parity/bottom_up_detector).

case_a is LXMERT's copy of detectron2 ("frcnn"), case_b MILVLG's Caffe arithmetic ("caffe"). The checkpoints go through
the public conversion and `from_pretrained`. Tolerances are the fixtures' own.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from hf_captioners.conversion import convert
from hf_captioners.modeling.ops_bottom_up import class_nms, overlaps, suppresses

PIXELS = 1e-4
RES4 = 1e-4
LOGITS = 3e-4
DELTAS = 1e-4
BOXES = 5e-3
PROBS = 3e-5
FEATURES = 5e-5


class Case:
    """A parity case, converted and loaded; of a picture, its numbers by name."""

    def __init__(self, folder: Path, images: Path, out_dir: Path) -> None:
        self.folder, self.out_dir = folder, out_dir
        self.settings = json.loads((folder / "config.json").read_text())
        self.layout = self.settings["layout"]
        self.io = load_file(folder / "io.safetensors")
        self.paths = [str(images / name) for name in self.settings["pictures"]]
        checkpoint = folder / ("model.pth" if self.layout == "caffe" else "pytorch_model.bin")
        self.report = convert("bottom_up", checkpoint, out_dir, original_config=folder / "config.yaml")
        self.model = AutoModel.from_pretrained(out_dir).eval()
        self.processor = AutoImageProcessor.from_pretrained(out_dir)

    def numbers(self, index: int) -> dict[str, torch.Tensor]:
        prefix = f"{index}."
        return {name.removeprefix(prefix): value for name, value in self.io.items() if name.startswith(prefix)}

    def inputs(self, index: int) -> dict[str, torch.Tensor]:
        """Of a picture, with the original's pixels."""
        inputs = dict(self.processor(self.paths[index], return_tensors="pt"))
        assert inputs["pixel_values"].shape == self.io[f"{index}.pixel_values"].shape
        return {**inputs, "pixel_values": self.io[f"{index}.pixel_values"]}


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request, shared_parity, shared_data, tmp_path_factory) -> Case:
    images = shared_data / "coco_mini" / "images" / "val2014"
    return Case(shared_parity / "bottom_up_detector" / request.param, images, tmp_path_factory.mktemp("detector") / "o")


def close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    torch.testing.assert_close(got, expected.to(got.dtype), atol=tolerance, rtol=0)


def test_pixels(case):
    for index, path in enumerate(case.paths):
        inputs, numbers = case.processor(path, return_tensors="pt"), case.numbers(index)
        close(inputs.pixel_values, numbers["pixel_values"], 0.0 if case.layout == "frcnn" else PIXELS)
        if case.layout == "frcnn":
            assert torch.equal(inputs.image_sizes[0], numbers["size_hw"])
            close(1 / inputs.scales[0], numbers["scale_yx"], 1e-6)
        else:
            assert torch.equal(inputs.original_sizes[0], numbers["image_hw"])
            close(inputs.scales[0], numbers["im_scale"].expand(2), 1e-7)


@torch.no_grad()
def test_network(case):
    heads = case.model.roi_heads
    for index in range(len(case.paths)):
        numbers = case.numbers(index)
        res4 = case.model.backbone(numbers["pixel_values"])
        close(res4, numbers["res4"], RES4)
        logits, deltas = case.model.proposal_generator.rpn_head(res4)
        close(logits, numbers["rpn_logits"], LOGITS)
        close(deltas, numbers["rpn_deltas"], DELTAS)
        features = heads(numbers["res4"], numbers["proposals"])
        close(features, numbers["features"], FEATURES)
        logits, deltas = heads.box_predictor(features)
        close(logits, numbers["cls_logits"], LOGITS)
        close(deltas.flatten(1), numbers["box_deltas"], DELTAS)
        attributes = heads.box_predictor.attribute_logits(features, logits.argmax(1))
        if case.layout == "frcnn":
            close(attributes, numbers["attr_logits"], LOGITS)
        else:
            close(logits.softmax(1), numbers["class_probs"], PROBS)
            close(attributes.softmax(1), numbers["attr_probs"], PROBS)


@torch.no_grad()
def test_pooling_is_exact(case):
    heads = case.model.roi_heads
    for index in range(len(case.paths)):
        numbers = case.numbers(index)
        crops = torch.cat(list(heads.pool(numbers["res4"], numbers["proposals"])))
        assert torch.equal(crops[:4], numbers["roi_pooled_first"])
        assert torch.equal(crops.double().sum((1, 2, 3)).float(), numbers["roi_pooled_sum"])
        first = heads.res5.prepare(False, torch.float32)(crops[:1])
        close(first, numbers["res5_first"], LOGITS)


@torch.no_grad()
def test_proposals(case):
    for index in range(len(case.paths)):
        numbers = case.numbers(index)
        output = case.model(**case.inputs(index), output_proposals=True)
        close(output.proposals[0], numbers["proposals"], BOXES)


def check_regions(case: Case, output, numbers: dict[str, torch.Tensor], row: int, setting: tuple[int, int]) -> None:
    """One picture of an output against the original's final result."""
    prefix = "min{}_max{}.".format(*setting)
    expected = {name.removeprefix(prefix): value for name, value in numbers.items() if name.startswith(prefix)}
    count = len(expected["objects_id"]) if case.layout == "caffe" else int(expected["preds_per_image"])
    names = {
        "caffe": ("objects_id", "objects_conf", "attrs_id", "attrs_conf", "boxes", "features"),
        "frcnn": ("obj_ids", "obj_probs", "attr_ids", "attr_probs", "boxes", "roi_features"),
    }[case.layout]
    labels, scores, attributes, attribute_scores, boxes, features = (expected[name][:count] for name in names)
    assert output.region_attention_mask[row].sum() == count
    assert torch.equal(output.labels[row, :count], labels)
    assert torch.equal(output.attributes[row, :count], attributes)
    close(output.scores[row, :count], scores, PROBS)
    close(output.attribute_scores[row, :count], attribute_scores, PROBS)
    close(output.boxes[row, :count], boxes, BOXES)
    close(output.region_features[row, :count], features, FEATURES)
    if case.layout == "frcnn":
        height, width = output.original_sizes[row].tolist()
        size = torch.tensor([width, height, width, height])
        close(output.boxes[row, :count] / size, expected["normalized_boxes"][:count], BOXES / width)
        close(output.refined_boxes[row, :count], boxes, BOXES)


def test_regions_of_the_originals_pixels(case):
    for index in range(len(case.paths)):
        for setting in case.settings["min_max"]:
            output = case.model(**case.inputs(index), min_regions=setting[0], max_regions=setting[1])
            check_regions(case, output, case.numbers(index), 0, setting)


def test_regions_of_files_in_a_batch(case):
    """From the pictures alone, all in one batch: as the original's of each alone."""
    inputs = case.processor(case.paths, return_tensors="pt")
    for setting in case.settings["min_max"]:
        output = case.model(**inputs, min_regions=setting[0], max_regions=setting[1])
        for index in range(len(case.paths)):
            check_regions(case, output, case.numbers(index), index, setting)


def test_the_settings_of_the_configuration_are_the_first(case):
    first = case.settings["min_max"][0]
    assert [case.model.config.min_regions, case.model.config.max_regions] == first
    check_regions(case, case.model(**case.inputs(0)), case.numbers(0), 0, first)


def test_folded_norms(case):
    folded = AutoModel.from_pretrained(case.out_dir, fold_norms=True).eval()
    for index in range(len(case.paths)):
        setting = case.settings["min_max"][0]
        check_regions(case, folded(**case.inputs(index)), case.numbers(index), 0, setting)


def test_bfloat16_res5_keeps_the_boxes(case):
    half = AutoModel.from_pretrained(case.out_dir, res5_dtype="bfloat16").eval()
    for index in range(len(case.paths)):
        exact = case.model(**case.inputs(index), output_proposals=True)
        output = half(**case.inputs(index), output_proposals=True)
        assert torch.equal(output.proposals[0], exact.proposals[0])
        boxes = case.model.config.max_proposals * [[0.0, 0.0, 0.0, 0.0]]
        assert len(boxes) >= len(output.boxes[0])
        with torch.no_grad():
            res4, proposals = case.numbers(index)["res4"], case.numbers(index)["proposals"]
            features = case.numbers(index)["features"]
            error = (half.roi_heads(res4, proposals) - features).norm() / features.norm()
        assert 1e-5 < error < 1e-2


@torch.no_grad()
def test_refined_boxes_are_milvlgs(case):
    """Its mode that exports boxes only: refined ones of each proposal's best class, 36 by confidence."""
    if case.layout != "caffe":
        pytest.skip("case_a exports refined boxes anyway")
    for index in range(len(case.paths)):
        numbers = case.numbers(index)
        count = len(numbers["proposals"])
        output = case.model(**case.inputs(index), min_regions=count, max_regions=count, output_proposals=True)
        originals = output.proposals[0] / numbers["im_scale"].float()
        same = (output.boxes[0][None] - originals[:, None]).abs().amax(-1) < 1e-3
        assert same.sum() == count  # all proposals came out, in another order
        refined = output.refined_boxes[0][same.float().argmax(1)]
        overlapping = suppresses(overlaps(refined, refined, 1), 0.3, True)
        probs = numbers["class_probs"][:, 1:]
        confidences = (probs * class_nms(overlapping, probs, 0.0)).amax(1)
        best = confidences.sort(descending=True, stable=True).indices[:36]
        close(refined[best], numbers["two_stage_boxes"], BOXES)


def test_the_extractors_own_file(case):
    if case.layout != "caffe":
        pytest.skip("only case_b has one")
    output = case.model(**case.processor(case.paths[0], return_tensors="pt"))
    with np.load(case.folder / "original_output.npz", allow_pickle=False) as original:
        close(output.region_features[0], torch.from_numpy(original["x"]), FEATURES)
        close(output.boxes[0], torch.from_numpy(original["bbox"]), BOXES)
        assert output.original_sizes[0].tolist() == [int(original["image_h"]), int(original["image_w"])]


@pytest.mark.parametrize("dtype", [torch.float64])
def test_in_float64(case, dtype):
    """Rounding that the fixtures were chosen to survive."""
    model = AutoModel.from_pretrained(case.out_dir, dtype=dtype).eval()
    for index in range(len(case.paths)):
        numbers = case.numbers(index)
        output = model(**case.inputs(index), output_proposals=True)
        close(output.proposals[0], numbers["proposals"], BOXES)
        close(output.region_features[0].float(), case.model(**case.inputs(index)).region_features[0], FEATURES)
