"""Preparation of images for the bottom-up detector; the originals' pixels are in tests/parity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.image_utils import SizeDict

from hf_captioners import BottomUpImageProcessor, ImageError
from hf_captioners.modeling.image_processing_bottom_up import target_size

SIZE = SizeDict(shortest_edge=600, longest_edge=1000)
SMALL = {"shortest_edge": 30, "longest_edge": 50}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def interpolated(values: np.ndarray, count: int, scale: float) -> np.ndarray:
    """The first axis at `count` places, from the definition: a pixel's value stands in its middle."""
    rows = []
    for place in range(count):
        position = (place + 0.5) / scale - 0.5
        low = math.floor(position)
        share = position - low
        if low < 0 or low >= len(values) - 1:
            low, share = min(max(low, 0), len(values) - 1), 0.0
        rows.append(values[low] * (1 - share) + values[min(low + 1, len(values) - 1)] * share)
    return np.array(rows)


class TestSizes:
    @pytest.mark.parametrize(
        ("height", "width", "rule", "expected"),
        [
            (480, 640, "caffe", (600, 800)),
            (427, 640, "caffe", (600, 899)),
            (300, 640, "caffe", (469, 1000)),  # 600 / 300 would make 1280
            (640, 300, "caffe", (1000, 469)),
            (1200, 2000, "caffe", (600, 1000)),
            (427, 640, "torch", (600, 899)),
            (300, 640, "torch", (469, 1000)),
            (429, 640, "torch", (600, 895)),
            (429, 640, "pil", (600, 895)),
            (427, 640, "pil", (600, 899)),
            (300, 640, "pil", (469, 1000)),
        ],
    )
    def test_known_sizes(self, height, width, rule, expected):
        target, scale = target_size(height, width, SIZE, rule)
        assert target == expected
        if rule == "caffe":
            assert scale[0] == scale[1] in (600 / min(height, width), 1000 / max(height, width))
        else:
            assert scale == (target[0] / height, target[1] / width)

    @pytest.mark.parametrize("rule", ["caffe", "torch", "pil"])
    def test_the_limit_holds_for_all(self, rule):
        rng = np.random.default_rng(0)
        for height, width in rng.integers(50, 2000, (200, 2)).tolist():
            target, _ = target_size(height, width, SIZE, rule)
            slack = max(target) / min(target) if rule == "pil" else 0.0  # its longer side follows the rounded one
            assert max(target) <= 1000 + slack and (min(target) == 600 or max(target) >= 1000 - slack - 1)
            assert abs(target[0] / target[1] / (height / width) - 1) < 0.02


class TestPixels:
    @pytest.mark.parametrize(("width", "height"), [(40, 25), (17, 23), (200, 90), (60, 61)])
    def test_caffe(self, width, height):
        images = BottomUpImageProcessor(size=SMALL)
        picture = noise(width, height)
        inputs = images(picture, return_tensors="pt")
        scale, (new_height, new_width) = inputs.scales[0, 0].item(), inputs.image_sizes[0].tolist()
        exact = 30 / min(width, height)
        if round(exact * max(width, height)) > 50:
            exact = 50 / max(width, height)
        assert scale == pytest.approx(exact, rel=1e-7)
        values = np.asarray(picture)[:, :, ::-1].astype(np.float64) - images.image_mean
        expected = interpolated(interpolated(values, new_height, exact).swapaxes(0, 1), new_width, exact)
        np.testing.assert_allclose(inputs.pixel_values[0].numpy(), expected.transpose(2, 1, 0), atol=1e-4)

    def test_torch(self):
        """To a whole number of pixels: the positions follow from both sizes."""
        picture = noise(40, 24)
        inputs = BottomUpImageProcessor.from_preset("frcnn", size=SMALL)(picture, return_tensors="pt")
        assert inputs.image_sizes.tolist() == [[30, 50]]
        values = np.asarray(picture)[:, :, ::-1].astype(np.float64)
        expected = interpolated(interpolated(values, 30, 30 / 24).swapaxes(0, 1), 50, 50 / 40)
        mean = np.array([102.9801, 115.9465, 122.7717])[:, None, None]
        np.testing.assert_allclose(inputs.pixel_values[0].numpy(), expected.transpose(2, 1, 0) - mean, atol=1e-3)

    def test_pil(self):
        picture = noise(200, 120)
        inputs = BottomUpImageProcessor.from_preset("vinvl", size=SMALL)(picture, return_tensors="pt")
        resized = np.asarray(picture.resize((50, 30), Image.Resampling.BILINEAR))[:, :, ::-1]
        expected = resized.transpose(2, 0, 1) - np.array([103.53, 116.28, 123.675])[:, None, None]
        np.testing.assert_allclose(inputs.pixel_values[0].numpy(), expected, atol=1e-4)

    @pytest.mark.parametrize("preset", ["caffe", "frcnn", "vinvl"])
    def test_blue_comes_first(self, preset):
        images = BottomUpImageProcessor.from_preset(preset, size=SMALL)
        red = images(Image.new("RGB", (60, 40), (255, 0, 0)), return_tensors="pt").pixel_values[0]
        expected = torch.tensor([0.0, 0.0, 255.0]) - torch.tensor(images.image_mean)
        torch.testing.assert_close(red.mean((1, 2)), expected)
        torch.testing.assert_close(red.amax((1, 2)), red.amin((1, 2)))

    def test_padding_is_on_the_right_and_below(self):
        images = BottomUpImageProcessor(size=SMALL)
        pictures = [noise(60, 40), noise(30, 60, 1)]
        batch = images(pictures, return_tensors="pt")
        assert batch.image_sizes.tolist() == [[30, 45], [50, 25]]
        assert batch.original_sizes.tolist() == [[40, 60], [60, 30]]
        assert batch.pixel_values.shape == (2, 3, 50, 45)
        for index, picture in enumerate(pictures):
            height, width = batch.image_sizes[index].tolist()
            alone = images(picture, return_tensors="pt").pixel_values
            assert torch.equal(batch.pixel_values[index, :, :height, :width], alone[0])
            assert not batch.pixel_values[index, :, height:].any()
            assert not batch.pixel_values[index, :, :, width:].any()

    def test_without_resizing(self):
        inputs = BottomUpImageProcessor(do_resize=False)(noise(33, 21), return_tensors="pt")
        assert inputs.image_sizes.tolist() == [[21, 33]] and inputs.scales.tolist() == [[1, 1]]
        values = np.asarray(noise(33, 21))[:, :, ::-1].transpose(2, 0, 1) - np.array(
            [102.9801, 115.9465, 122.7717]
        ).reshape(3, 1, 1)
        np.testing.assert_allclose(inputs.pixel_values[0].numpy(), values, atol=1e-4)

    @pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16"])
    def test_modes(self, mode):
        picture = Image.new("I;16", (60, 40), 500) if mode == "I;16" else noise(60, 40).convert(mode)
        assert BottomUpImageProcessor(size=SMALL)(picture, return_tensors="pt").pixel_values.shape == (1, 3, 30, 45)

    def test_arrays_and_paths(self, tmp_path):
        images, picture = BottomUpImageProcessor(size=SMALL), noise(60, 40)
        picture.save(tmp_path / "picture.png")
        expected = images(picture, return_tensors="pt").pixel_values
        for source in (np.asarray(picture), str(tmp_path / "picture.png"), np.asarray(picture).astype(np.float32)):
            assert torch.equal(images(source, return_tensors="pt").pixel_values, expected)
        grey = images(np.asarray(picture)[None, :, :, 0], return_tensors="pt").pixel_values
        assert torch.equal(grey[0, 2], expected[0, 2])
        torch.testing.assert_close(grey[0, 0] + images.image_mean[0], grey[0, 2] + images.image_mean[2])

    def test_saving(self, tmp_path):
        BottomUpImageProcessor.from_preset("vinvl", size=SMALL).save_pretrained(tmp_path)
        loaded = BottomUpImageProcessor.from_pretrained(tmp_path)
        assert loaded.resize_rule == "pil" and list(loaded.image_mean) == [103.53, 116.28, 123.675]
        assert dict(loaded.size) == SMALL


class TestRefusals:
    @pytest.mark.parametrize("rule", ["caffe", "torch", "pil"])
    @pytest.mark.parametrize(("width", "height"), [(1, 20000), (20000, 1), (5, 4000)])
    def test_pictures_that_are_too_narrow(self, rule, width, height):
        images = BottomUpImageProcessor(resize_rule=rule)
        with pytest.raises(ImageError, match=f"{width} x {height} pixels is too narrow"):
            images(Image.new("RGB", (width, height)), return_tensors="pt")

    def test_a_single_pixel(self):
        """Documented: it becomes 600 x 600 pixels of one colour."""
        assert BottomUpImageProcessor()(Image.new("RGB", (1, 1)), return_tensors="pt").image_sizes.tolist() == [
            [600] * 2
        ]

    def test_broken_files(self, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            BottomUpImageProcessor()(str(tmp_path / "broken.jpg"), return_tensors="pt")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"resize_rule": "cubic"}, "resize_rule must be one of caffe, torch, pil, not 'cubic'"),
            ({"size": {"height": 30, "width": 40}}, "size must have shortest_edge and longest_edge"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ValueError, match=message):
            BottomUpImageProcessor(**changes)(noise(60, 40), return_tensors="pt")

    def test_channels(self):
        with pytest.raises(ValueError, match="1 or 3 channels, not 4"):
            BottomUpImageProcessor(do_convert_rgb=False)(noise(60, 40).convert("RGBA"), return_tensors="pt")
