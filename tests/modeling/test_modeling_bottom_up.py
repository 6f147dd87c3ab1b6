"""The bottom-up detector: known boxes on drawn pictures, batches, options, and refusals. Parity is in tests/parity."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from contracts import colour_detector
from contracts.colour_detector import ANCHOR, SIDE, objectness
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

from hf_captioners import BottomUpConfig, BottomUpForRegionFeatures, BottomUpImageProcessor
from hf_captioners.data.drawn.drawing import draw_scene
from hf_captioners.data.drawn.scene import COLORS, RELATIONS, Scene, Thing
from hf_captioners.modeling.resnet_bottom_up import FrozenNorm

TINY = {
    "depths": [1, 1, 2, 1],
    "stem_channels": 4,
    "res2_channels": 8,
    "bottleneck_width": 4,
    "rpn_channels": 8,
    "embedding_size": 4,
    "attribute_hidden_size": 8,
    "rpn_pre_nms": 200,
    "max_proposals": 20,
    "min_regions": 4,
    "max_regions": 9,
}
PIXELS = {"shortest_edge": 96, "longest_edge": 160}


def tiny(preset: str = "caffe", **changes: object) -> BottomUpForRegionFeatures:
    """A detector of a few thousand parameters whose classes are peaked and whose boxes are spread."""
    torch.manual_seed(0)
    sizes = {**TINY, "num_labels": 12, "num_attributes": 5, **({"num_groups": 2} if preset == "vinvl" else {})}
    model = BottomUpForRegionFeatures(BottomUpConfig.from_preset(preset, **{**sizes, **changes})).eval()
    with torch.no_grad():
        for part in (model.proposal_generator.rpn_head, model.roi_heads.box_predictor):
            for parameter in part.parameters():
                parameter.mul_(20)
    return model


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with structure."""
    values = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


def processor(preset: str = "caffe") -> BottomUpImageProcessor:
    return BottomUpImageProcessor.from_preset(preset, size=PIXELS)


@pytest.fixture(scope="module", params=["caffe", "frcnn", "vinvl"])
def detector(request) -> tuple[BottomUpForRegionFeatures, BottomUpImageProcessor]:
    return tiny(request.param), processor(request.param)


class TestKnownBoxes:
    """Weights set by hand: boxes, their order and their colours follow from the picture (contracts/colour_detector)."""

    @pytest.fixture(scope="class")
    def model(self):
        return colour_detector.build()

    @staticmethod
    def scenes() -> list[tuple[Image.Image, list[str]]]:
        """Two stars of different colours each, in every combination of two."""
        pictures = []
        for index, first in enumerate(COLORS):
            for second in [color for color in COLORS if color != first][:: 1 + index % 2]:
                rng = random.Random(f"{first} {second}")
                things = Thing("star", first, "small"), Thing("star", second, "small")
                picture = draw_scene(Scene(things, relation=rng.choice(RELATIONS)), SIDE, rng)
                pictures.append((picture, [first, second]))
        return pictures

    @staticmethod
    def expected_proposals(picture: Image.Image, limit: int) -> np.ndarray:
        """Anchors at all cells by their objectness; one goes if it overlaps a better one by more than 5 %."""
        scores = objectness(np.asarray(picture))
        places = [(x * 16, y * 16) for y in range(len(scores)) for x in range(len(scores))]
        boxes = np.array([[x + ANCHOR[0], y + ANCHOR[1], x + ANCHOR[2], y + ANCHOR[3]] for x, y in places])
        boxes = boxes.clip(0, SIDE)
        kept: list[np.ndarray] = []
        for index in np.argsort(-scores.ravel(), kind="stable"):
            box = boxes[index]
            if all(overlap(box, other) < 0.05 for other in kept):
                kept.append(box)
        return np.array(kept[:limit])

    def test_proposals(self, model):
        detector, images = model
        for picture, _ in self.scenes()[::5]:
            output = detector(**images(picture, return_tensors="pt"), output_proposals=True)
            expected = self.expected_proposals(picture, 2)  # behind the two stars scores are 0, but for rounding
            np.testing.assert_allclose(output.proposals[0][:2].numpy(), expected, atol=1e-4)

    def test_boxes_and_colours(self, model):
        detector, images = model
        for picture, colors in self.scenes()[::2]:
            output = detector(**images(picture, return_tensors="pt"))
            found = [detector.config.id2label[label] for label in output.labels[0].tolist()]
            assert sorted(found) == sorted(colors)
            expected = self.expected_proposals(picture, 2)
            for box, name in zip(output.boxes[0].numpy(), found, strict=True):
                assert np.abs(expected - box).max(1).min() < 1e-4
                centre = shape_centre(np.asarray(picture), name)
                assert np.all(box[:2] < centre) and np.all(centre < box[2:])

    def test_in_pixels_of_the_original(self, model):
        """A picture of three times the size, every pixel nine times, has boxes three times as large."""
        detector, images = model
        picture, _ = self.scenes()[3]
        output = detector(**images(picture, return_tensors="pt"))
        large = picture.resize((3 * SIDE, 3 * SIDE), Image.Resampling.NEAREST)
        larger = detector(**images(large, return_tensors="pt"))
        torch.testing.assert_close(larger.boxes, 3 * output.boxes, rtol=1e-5, atol=1e-4)
        assert larger.original_sizes.tolist() == [[3 * SIDE, 3 * SIDE]]

    def test_a_wide_picture_beside_a_small_one(self, model):
        """Padding has no regions, and an empty picture has the `min_regions` that are asked for."""
        detector, images = model
        picture, _ = self.scenes()[8]
        wide = Image.new("RGB", (2 * SIDE, SIDE), (255, 255, 255))
        wide.paste(picture, (SIDE, 0))
        images = BottomUpImageProcessor(size={"shortest_edge": SIDE, "longest_edge": 2 * SIDE})
        batch = images([picture, wide, Image.new("RGB", (SIDE, SIDE), "white")], return_tensors="pt")
        output = detector(**batch)
        assert output.region_attention_mask.sum(1).tolist() == [2, 2, 1]
        shift = torch.tensor([SIDE, 0.0, SIDE, 0.0])
        torch.testing.assert_close(output.boxes[1, :2], output.boxes[0, :2] + shift)
        assert torch.equal(output.labels[0], output.labels[1])


def overlap(box: np.ndarray, other: np.ndarray) -> float:
    width, height = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2])
    shared = max(width, 0) * max(height, 0)
    return shared / (np.prod(box[2:] - box[:2]) + np.prod(other[2:] - other[:2]) - shared)


def shape_centre(picture: np.ndarray, color: str) -> np.ndarray:
    """Mean x and y of the pixels that are nearest to a colour."""
    names = [*COLORS, "background"]
    values = np.array([*COLORS.values(), (240, 240, 240)])
    nearest = np.abs(picture[:, :, None].astype(int) - values).sum(-1).argmin(-1)
    y, x = np.nonzero(nearest == names.index(color))
    return np.array([x.mean(), y.mean()])


class TestBatches:
    def test_regions_do_not_depend_on_the_batch(self, detector):
        model, images = detector
        pictures = [photo(200, 120), photo(90, 150, 1), photo(64, 64, 2)]
        together = model(**images(pictures, return_tensors="pt"))
        for index, picture in enumerate(pictures):
            alone = model(**images(picture, return_tensors="pt"))
            count = len(alone.labels[0])
            assert together.region_attention_mask[index].sum() == count
            for name in alone:
                if name != "region_attention_mask" and alone[name][0].ndim and len(alone[name][0]) == count:
                    assert torch.equal(together[name][index, :count], alone[name][0]), name

    def test_padding(self, detector):
        model, _ = detector
        output = model(torch.stack([torch.zeros(3, 96, 128), torch.randn(3, 96, 128) * 50]))
        mask = output.region_attention_mask.bool()
        assert mask.shape == output.labels.shape and mask.sum(1).max() == mask.shape[1]
        assert not output.region_features[~mask].any() and not output.boxes[~mask].any()
        assert (output.labels[~mask] == -1).all() and (output.labels[mask] >= 0).all()

    def test_deterministic(self, detector):
        model, images = detector
        inputs = images(photo(160, 100), return_tensors="pt")
        first, second = model(**inputs), model(**inputs)
        assert all(torch.equal(first[name], second[name]) for name in first)

    def test_chunks_change_nothing_but_rounding(self, detector):
        model, images = detector
        inputs = images(photo(160, 100), return_tensors="pt")
        whole = model(**inputs)
        model.config.regions_per_chunk = 3
        parts = model(**inputs)
        model.config.regions_per_chunk = 50
        torch.testing.assert_close(parts.region_features, whole.region_features, rtol=1e-4, atol=1e-5)
        assert torch.equal(parts.labels, whole.labels)


class TestOptions:
    @pytest.mark.parametrize(("least", "most"), [(1, 1), (3, 3), (6, 20), (20, 20)])
    def test_numbers_of_regions(self, detector, least, most):
        model, images = detector
        output = model(**images(photo(160, 100), return_tensors="pt"), min_regions=least, max_regions=most)
        proposals = model(**images(photo(160, 100), return_tensors="pt"), output_proposals=True).proposals[0]
        count = output.labels.shape[1]
        assert count <= most
        if model.config.selection == "class_nms":
            assert count >= min(least, len(proposals))

    def test_given_boxes(self, detector):
        """Features of regions that were found before are those of then."""
        model, images = detector
        inputs = images(photo(160, 96), return_tensors="pt")
        found = model(**inputs, min_regions=5, max_regions=5, output_proposals=True)
        scale = inputs.scales[0].flip(0).repeat(2)
        boxes = found.proposals[0] / scale
        described = model(**inputs, boxes=[boxes])
        assert torch.equal(described.boxes[0], boxes)
        same = (described.region_features[0][None] - found.region_features[0][:, None]).abs().amax(-1)
        assert same.amin(1).max() < 1e-4

    def test_scores_and_attributes_are_probabilities(self, detector):
        model, images = detector
        output = model(**images(photo(160, 100), return_tensors="pt"))
        assert ((output.scores > 0) & (output.scores <= 1)).all()
        assert output.attribute_probs.shape[2] == 5
        assert torch.equal(output.attribute_probs.amax(2), output.attribute_scores)

    def test_attributes_below_the_threshold_count_as_none(self):
        model = tiny("vinvl", attribute_threshold=0.9999)
        assert not model(**processor("vinvl")(photo(160, 100), return_tensors="pt")).attribute_probs.any()

    def test_without_attributes(self):
        model = tiny(num_attributes=0)
        output = model(**processor()(photo(160, 100), return_tensors="pt"))
        assert (output.attributes == -1).all() and output.attribute_probs.shape[2] == 0
        assert "roi_heads.box_predictor.attr_score.weight" not in model.state_dict()

    def test_boxes_lie_in_the_image(self, detector):
        model, images = detector
        output = model(**images(photo(171, 103), return_tensors="pt"))
        for boxes in (output.boxes, output.refined_boxes):
            assert boxes.min() >= 0
            assert (boxes[..., 2] <= 171.5).all() and (boxes[..., 3] <= 103.5).all()

    def test_max_proposals(self):
        model = tiny(max_proposals=3)
        assert len(model(**processor()(photo(160, 100), return_tensors="pt"), output_proposals=True).proposals[0]) == 3

    def test_float16_of_res5_only(self):
        model, inputs = tiny(), processor()(photo(160, 100), return_tensors="pt")
        exact = model(**inputs)
        model.config.res5_dtype = "float16"
        half = model(**inputs)
        assert half.region_features.dtype == torch.float32
        assert not torch.equal(half.region_features, exact.region_features)
        assert torch.equal(half.boxes, exact.boxes)


class TestSaving:
    def test_weights_buffers_and_settings(self, detector, tmp_path):
        model, images = detector
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name.endswith("running_var"):
                    buffer.uniform_(0.5, 2)
        model.save_pretrained(tmp_path)
        images.save_pretrained(tmp_path)
        loaded = AutoModel.from_pretrained(tmp_path).eval()
        state = model.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
        assert loaded.config.anchors == model.config.anchors
        inputs = images(photo(160, 100), return_tensors="pt")
        again = AutoImageProcessor.from_pretrained(tmp_path)(photo(160, 100), return_tensors="pt")
        assert torch.equal(inputs.pixel_values, again.pixel_values)
        torch.testing.assert_close(loaded(**again).region_features, model(**inputs).region_features)

    def test_random_weights_are_tame(self):
        """Dozens of blocks neither silence nor blow up features."""
        torch.manual_seed(0)
        sizes = {"stem_channels": 8, "res2_channels": 16, "bottleneck_width": 8, "num_labels": 5}
        model = BottomUpForRegionFeatures(BottomUpConfig(**sizes)).eval()
        features = model(**processor()(photo(160, 100), return_tensors="pt")).region_features
        assert 0.1 < features.std() < 100


REMOTE_SCRIPT = """
import sys
sys.modules["hf_captioners"] = None  # importing it raises ImportError
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel

folder, picture = sys.argv[1:]
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "bottom_up"
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
images = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
output = model(**images(picture, return_tensors="pt"))
torch.save({name: value for name, value in output.items()}, folder + "_output")
model.save_pretrained(folder + "_again")
"""


def test_shipped_code_runs_where_the_package_is_missing(tmp_path):
    model, images = tiny(), processor()
    folder, picture = tmp_path / "shipped", tmp_path / "picture.png"
    photo(160, 100).save(picture)
    model.save_pretrained(folder, ship_code=True)
    images.save_pretrained(folder, ship_code=True)
    run = subprocess.run(
        [sys.executable, "-c", REMOTE_SCRIPT, str(folder), str(picture)],
        capture_output=True,
        text=True,
        env={"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PATH": "", "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    expected = model(**images(str(picture), return_tensors="pt"))
    output = torch.load(f"{folder}_output")
    assert all(torch.equal(output[name], expected[name]) for name in expected)
    shipped = {path.name for path in folder.glob("*.py")}
    assert shipped == {path.name for path in Path(f"{folder}_again").glob("*.py")}
    model.save_pretrained(tmp_path / "clean")
    images.save_pretrained(tmp_path / "clean")
    assert not list((tmp_path / "clean").glob("*.py"))
    assert not any("auto_map" in path.read_text() for path in (tmp_path / "clean").glob("*.json"))
    assert AutoModel.from_pretrained(folder).__class__ is BottomUpForRegionFeatures  # no trust needed where it is


class TestRefusals:
    @pytest.mark.parametrize("part", ["backbone", "proposal_generator", "roi_heads.res5", "roi_heads.box_predictor"])
    def test_nan_weights(self, part):
        model = tiny()
        with torch.no_grad():
            next(iter(model.get_submodule(part).parameters())).fill_(float("nan"))
        with pytest.raises(ValueError, match=r"image 0 of the batch .* computes NaN or infinity"):
            model(**processor()(photo(160, 100), return_tensors="pt"))

    def test_nan_pixels(self, detector):
        model, _ = detector
        pixels = torch.zeros(2, 3, 96, 96)
        pixels[1, 0, 50, 50] = float("nan")
        with pytest.raises(ValueError, match="image 1 of the batch"):
            model(pixels)

    def test_no_proposal_is_left(self):
        """Caffe's smallest proposal has 16 pixels of the original; a strip of 12 has none."""
        with pytest.raises(ValueError, match=r"image 0 of the batch \(128 x 12 pixels.*no proposal is left"):
            tiny()(torch.zeros(1, 3, 12, 128))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pixel_values": torch.zeros(1, 1, 96, 96)}, r"pixel_values must be .* \(B, 3, height, width\)"),
            ({"pixel_values": torch.zeros(1, 3, 96, 96, dtype=torch.int64)}, "floating point"),
            ({"image_sizes": torch.tensor([[96, 200]])}, r"image_sizes\[0\] is 96 x 200"),
            ({"image_sizes": torch.tensor([[2, 96]])}, "3 pixels or more"),
            ({"image_sizes": torch.tensor([96, 96])}, r"image_sizes must be \(1, 2\)"),
            ({"original_sizes": torch.tensor([[0, 96]])}, "original_sizes must be positive"),
            ({"scales": torch.ones(1, 2, dtype=torch.float16)}, "scales must be float32"),
            ({"scales": torch.tensor([[1.0, float("nan")]])}, "scales must be positive"),
            ({"min_regions": 5, "max_regions": 3}, "min_regions=5 .* max_regions=3"),
            ({"min_regions": 0}, "min_regions=0"),
            ({"boxes": [torch.zeros(0, 4)]}, r"boxes\[0\] must be \(R, 4\)"),
            ({"boxes": [torch.tensor([[5.0, 5, 1, 9]])]}, "x1 <= x2"),
            ({"boxes": []}, "boxes are of 0 images"),
        ],
    )
    def test_arguments(self, arguments, message):
        with pytest.raises(ValueError, match=message):
            tiny()(**{"pixel_values": torch.zeros(1, 3, 96, 96), **arguments})

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("pooler", "crop"),
            ("selection", "best"),
            ("depths", [1, 2, 3]),
            ("depths", [1, 2, 100_000, 1]),
            ("max_regions", 5),
            ("anchors", [[0.0, 1.0]]),
            ("num_groups", 3),
            ("bbox_weights", [1.0, 0.0, 1.0, 1.0]),
            ("nms_thresholds", []),
            ("id2attribute", {0: "red"}),
            ("res5_dtype", "int8"),
            ("max_proposals", 0),
        ],
    )
    def test_configurations(self, field, value):
        with pytest.raises(StrictDataclassError, match=field):
            BottomUpConfig(**{field: value})

    def test_presets(self):
        with pytest.raises(ValueError, match="'detectron' is not known; expected one of caffe, caffe-36"):
            BottomUpConfig.from_preset("detectron")
        with pytest.raises(ValueError, match="'detectron' is not known"):
            BottomUpImageProcessor.from_preset("detectron")


@pytest.mark.parametrize(
    ("preset", "tensors", "millions"), [("caffe", 616, 65.56), ("frcnn", 640, 65.55), ("vinvl", 841, 177.1)]
)
def test_released_sizes(preset, tensors, millions):
    """Counts of the published files, with their anchors and the counters of their normalisations."""
    with torch.device("meta"):
        model = BottomUpForRegionFeatures(BottomUpConfig.from_preset(preset))
    norms = sum(isinstance(module, FrozenNorm) for module in model.modules())
    numbers, names = sum(value.numel() for value in model.state_dict().values()), len(model.state_dict())
    if preset == "vinvl":  # its attribute head has a copy of res5
        numbers += sum(value.numel() for value in model.roi_heads.res5.state_dict().values())
        names += len(model.roi_heads.res5.state_dict())
    assert round(numbers / 1e6, 1) == round(millions, 1)
    counters = {"caffe": norms - 24, "frcnn": norms, "vinvl": 0}[preset]  # MILVLG's stem, res2 and res3 have none
    assert names + counters + 1 == tensors
