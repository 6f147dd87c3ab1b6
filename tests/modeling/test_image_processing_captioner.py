"""Preparation of pictures: against transformers and by hand, modes, sources, the black pictures, files."""

import http.server
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    CLIPImageProcessorPil,
    ConvNextImageProcessorPil,
    ViTImageProcessorPil,
)

from hf_captioners import CaptionerImageProcessor, ExpansionNetV2Processor, ImageError, open_image
from hf_captioners.modeling.captioner_image_io import to_rgb
from hf_captioners.modeling.image_processing_captioner import open_for_processor, open_resized

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = {"height": 20, "width": 28}


@pytest.fixture()
def processor():
    return CaptionerImageProcessor(size=SIZE)


def noise(width=37, height=23, channels=3, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels.squeeze(2) if channels == 1 else pixels)


def by_hand(image, size=SIZE):
    """Resize, scale and normalise an RGB picture: specification of the original, section 12."""
    small = image.resize((size["width"], size["height"]), Image.Resampling.BILINEAR)
    pixels = (np.asarray(small, dtype=np.float64) / 255 - MEAN) / STD
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy()).float()[None]


def image_of(mode):
    rgb = noise()
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
    if mode == "RGBA":
        rgb.putalpha(noise(channels=1, seed=1))
        return rgb
    return rgb.convert(mode)


class TestNumbers:
    @pytest.mark.parametrize("size", [(37, 23), (12, 90), (28, 20), (1, 1)])
    def test_rgb_equals_transformers_to_the_last_bit(self, size):
        image = noise(*size)
        theirs = ViTImageProcessorPil(size=SIZE, resample=2, image_mean=MEAN, image_std=STD)
        ours = CaptionerImageProcessor(size=SIZE)(image, return_tensors="pt").pixel_values
        assert torch.equal(ours, theirs(image, return_tensors="pt").pixel_values)
        torch.testing.assert_close(ours, by_hand(image), atol=1e-6, rtol=1e-6)

    def test_the_defaults_are_the_originals(self):
        image = noise(640, 480)
        pixels = CaptionerImageProcessor()(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, by_hand(image, {"height": 384, "width": 384}), atol=1e-6, rtol=1e-6)

    @pytest.mark.parametrize("options", [{}, {"do_normalize": False}, {"do_rescale": False}, {"do_resize": False}])
    def test_steps_equal_transformers_to_the_last_bit(self, options):
        """Of all 256 values in each channel, as arrays of 8 bits and of floats, which stay as they were."""
        values = np.arange(256, dtype=np.uint8)
        image = np.stack([values, values[::-1], np.roll(values, 77)], axis=-1).reshape(16, 16, 3)
        own = CaptionerImageProcessor(size={"height": 16, "width": 16}, **options)
        theirs = ViTImageProcessorPil(
            **{"size": own.size, "resample": own.resample, "image_mean": own.image_mean, "image_std": own.image_std},
            **options,
        )
        for picture in (Image.fromarray(image), image, image.astype(np.float32) / 255):
            before = np.array(picture)
            expected = theirs(picture, return_tensors="pt").pixel_values
            assert torch.equal(own(picture, return_tensors="pt").pixel_values, expected)
            assert np.array_equal(before, np.array(picture))

    def test_a_batch_of_different_sizes(self, processor):
        images = [noise(37, 23), noise(5, 80)]
        batch = processor(images, return_tensors="pt").pixel_values
        assert torch.equal(batch, torch.cat([processor(one, return_tensors="pt").pixel_values for one in images]))

    def test_arrays_and_tensors(self, processor):
        image = noise()
        expected = processor(image, return_tensors="pt").pixel_values
        array = np.asarray(image)
        for picture in (array, array.transpose(2, 0, 1), torch.from_numpy(array.transpose(2, 0, 1).copy())):
            assert torch.equal(processor(picture, return_tensors="pt").pixel_values, expected)


class TestModes:
    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "RGBA", "LA"])
    def test_every_mode_becomes_rgb(self, processor, mode):
        image = image_of(mode)
        assert image.mode == mode
        pixels = processor(image, return_tensors="pt").pixel_values
        assert torch.equal(pixels, processor(to_rgb(image), return_tensors="pt").pixel_values)

    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK"])
    def test_without_transparency_as_pil_converts(self, processor, mode):
        image = image_of(mode)
        pixels = processor(image, return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, by_hand(image.convert("RGB")), atol=1e-6, rtol=1e-6)

    def test_16_bit_grey_is_scaled(self, processor):
        grey = noise().convert("L")
        pixels = processor(image_of("I;16"), return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, by_hand(grey.convert("RGB")), atol=1e-6, rtol=1e-6)

    def test_transparency_lies_on_white(self, processor):
        image = image_of("RGBA")
        alpha = np.asarray(image)[..., 3:] / 255.0
        blended = np.asarray(image)[..., :3] * alpha + 255 * (1 - alpha)
        pixels = processor(image, return_tensors="pt").pixel_values
        expected = by_hand(Image.fromarray(np.rint(blended).astype(np.uint8)))
        torch.testing.assert_close(pixels, expected, atol=2 / 255 / min(STD), rtol=0)  # PIL rounds twice

    def test_a_transparent_colour_is_white_for_pictures_as_for_paths(self, processor, tmp_path):
        image = Image.new("RGB", (9, 9), (10, 20, 30))
        image.save(tmp_path / "keyed.png", transparency=(10, 20, 30))
        white = processor(Image.new("RGB", (9, 9), "white"), return_tensors="pt").pixel_values
        with Image.open(tmp_path / "keyed.png") as opened:
            assert opened.mode == "RGB"
            assert torch.equal(processor(opened, return_tensors="pt").pixel_values, white)
        assert torch.equal(processor(tmp_path / "keyed.png", return_tensors="pt").pixel_values, white)


class TestSources:
    def test_paths(self, processor, tmp_path):
        image = noise()
        image.save(tmp_path / "a.png")
        expected = processor(image, return_tensors="pt").pixel_values
        for source in (tmp_path / "a.png", str(tmp_path / "a.png"), [str(tmp_path / "a.png")]):
            assert torch.equal(processor(source, return_tensors="pt").pixel_values, expected)
        mixed = processor([str(tmp_path / "a.png"), image], return_tensors="pt").pixel_values
        assert torch.equal(mixed, torch.cat([expected, expected]))

    def test_an_upright_picture_of_a_rotated_file(self, processor, tmp_path):
        image, exif = noise(), Image.Exif()
        exif[0x0112] = 6  # the camera lay on its side: turn by 90 degrees clockwise to see the picture
        image.save(tmp_path / "a.png", exif=exif)
        upright = image.transpose(Image.Transpose.ROTATE_270)
        pixels = processor(tmp_path / "a.png", return_tensors="pt").pixel_values
        assert torch.equal(pixels, processor(upright, return_tensors="pt").pixel_values)

    def test_urls(self, processor, tmp_path):
        noise().save(tmp_path / "a.png")

        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=tmp_path)

            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/"
            pixels = processor(f"{url}a.png", return_tensors="pt").pixel_values
            with pytest.raises(ImageError, match=r"missing.png: HTTP status 404"):
                processor(f"{url}missing.png")
            server.shutdown()
        assert torch.equal(pixels, processor(noise(), return_tensors="pt").pixel_values)

    def test_broken_ones_are_named(self, processor, tmp_path):
        (tmp_path / "text.jpg").write_text("no picture")
        with pytest.raises(ImageError, match=r"text\.jpg"):
            processor([noise(), tmp_path / "text.jpg"])
        with pytest.raises(ImageError, match=r"nowhere\.jpg: no such file"):
            processor("nowhere.jpg")


class TestBlack:
    """`black_non_rgb`: specification of the original, section 12, "Bug"."""

    @pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "RGBA"])
    def test_other_modes_become_black(self, mode):
        processor = CaptionerImageProcessor(size=SIZE, black_non_rgb=True)
        black = by_hand(Image.new("RGB", (37, 23)))
        torch.testing.assert_close(processor(image_of(mode), return_tensors="pt").pixel_values, black)

    def test_rgb_stays(self, processor):
        black = CaptionerImageProcessor(size=SIZE, black_non_rgb=True)
        ours, theirs = (one(noise(), return_tensors="pt").pixel_values for one in (black, processor))
        assert torch.equal(ours, theirs)

    def test_for_one_call(self, processor):
        pixels = processor(image_of("L"), return_tensors="pt", black_non_rgb=True).pixel_values
        torch.testing.assert_close(pixels, by_hand(Image.new("RGB", (37, 23))))
        assert not processor.black_non_rgb

    def test_for_one_call_on_a_path(self, processor, tmp_path):
        image_of("L").save(tmp_path / "grey.png")
        pixels = processor(tmp_path / "grey.png", return_tensors="pt", black_non_rgb=True).pixel_values
        torch.testing.assert_close(pixels, by_hand(Image.new("RGB", (37, 23))))

    def test_what_open_image_opened_is_rgb(self, tmp_path):
        image_of("L").save(tmp_path / "grey.png")
        processor = CaptionerImageProcessor(size=SIZE, black_non_rgb=True)
        pixels = processor(open_image(tmp_path / "grey.png"), return_tensors="pt").pixel_values
        torch.testing.assert_close(pixels, by_hand(image_of("L").convert("RGB")), atol=1e-6, rtol=1e-6)


class TestFiles:
    def test_save_and_load(self, tmp_path):
        processor = CaptionerImageProcessor(size=SIZE, black_non_rgb=True, image_mean=[0.5, 0.5, 0.5])
        processor.save_pretrained(tmp_path)
        for loaded in (
            CaptionerImageProcessor.from_pretrained(tmp_path),
            AutoImageProcessor.from_pretrained(tmp_path),
        ):
            assert type(loaded) is CaptionerImageProcessor
            assert loaded.to_dict() == processor.to_dict()
            assert dict(loaded.size) == SIZE
            assert loaded.black_non_rgb is True
            ours, theirs = (one(noise(), return_tensors="pt").pixel_values for one in (processor, loaded))
            assert torch.equal(ours, theirs)

    def test_inside_a_processor(self, tiny_captioner_dir, tmp_path):
        tokenizer = AutoProcessor.from_pretrained(tiny_captioner_dir).tokenizer
        processor = CaptionerImageProcessor(size=SIZE, black_non_rgb=True)
        ExpansionNetV2Processor(processor, tokenizer).save_pretrained(tmp_path)
        loaded = ExpansionNetV2Processor.from_pretrained(tmp_path).image_processor
        assert loaded.to_dict() == processor.to_dict()

    def test_auto_image_processor_of_a_captioner(self, tiny_captioner_dir):
        loaded = AutoImageProcessor.from_pretrained(tiny_captioner_dir)
        assert type(loaded) is CaptionerImageProcessor
        assert dict(loaded.size) == {"height": 32, "width": 32}


class TestOpenPicture:
    def test_black_non_rgb_sees_the_mode_through_every_door(self, tmp_path):
        Image.new("L", (8, 8), 200).save(tmp_path / "grey.png")
        black = CaptionerImageProcessor(size={"height": 4, "width": 4}, black_non_rgb=True)
        assert open_for_processor(tmp_path / "grey.png", black).mode == "L"
        assert open_for_processor(tmp_path / "grey.png", CaptionerImageProcessor()).mode == "RGB"
        expected = black(Image.new("RGB", (8, 8)), return_tensors="pt").pixel_values
        for source in (str(tmp_path / "grey.png"), open_for_processor(tmp_path / "grey.png", black)):
            assert torch.equal(black(source, return_tensors="pt").pixel_values, expected)

    def test_refuses_pictures_that_scaling_would_blow_up(self, tmp_path):
        Image.new("L", (60000, 1)).save(tmp_path / "line.png")
        scales = CLIPImageProcessorPil()
        with pytest.raises(ImageError, match=r"line.png: 60000 x 1 pixels are too narrow a picture to scale to 224"):
            open_for_processor(tmp_path / "line.png", scales)
        assert open_for_processor(tmp_path / "line.png", CaptionerImageProcessor()).size == (60000, 1)
        assert open_for_processor(Image.new("RGB", (500, 1)), scales).size == (500, 1)


class TestOpenResized:
    """Large pictures are resized when they are opened: same numbers, less memory."""

    PROCESSORS = (
        CaptionerImageProcessor(),
        CaptionerImageProcessor(size=SIZE, do_normalize=False),
        CaptionerImageProcessor(black_non_rgb=True),
        CLIPImageProcessorPil(),
        ViTImageProcessorPil(resample=Image.Resampling.LANCZOS),
    )

    @pytest.mark.parametrize("processor", PROCESSORS, ids=lambda one: type(one).__name__)
    @pytest.mark.parametrize(
        ("width", "height", "channels"), [(1503, 901, 3), (801, 1999, 3), (2001, 601, 1), (999, 1201, 4)]
    )
    def test_the_same_numbers(self, processor, width, height, channels):
        image = noise(width, height, channels)
        expected = processor(open_for_processor(image, processor), return_tensors="pt").pixel_values
        resized = open_resized(image, processor)
        assert torch.equal(processor(resized, return_tensors="pt").pixel_values, expected)
        assert torch.equal(processor([noise(), resized], return_tensors="pt").pixel_values[1:], expected)
        if not (processor.to_dict().get("black_non_rgb") and channels != 3):
            assert resized.width * resized.height < 2**20

    def test_small_pictures_stay(self):
        assert open_resized(noise(640, 480), CaptionerImageProcessor()).size == (640, 480)

    @pytest.mark.parametrize(
        "processor",
        [
            ConvNextImageProcessorPil(),  # resizes to another size than it says, then crops
            CaptionerImageProcessor(do_resize=False),
            ViTImageProcessorPil(size={"shortest_edge": 224, "longest_edge": 600}),
        ],
        ids=lambda one: type(one).__name__,
    )
    def test_others_see_the_whole_picture(self, processor):
        assert open_resized(noise(1503, 901), processor).size == (1503, 901)

    def test_transparency_and_orientation(self, tmp_path):
        image, exif = noise(1203, 1001, 4), Image.Exif()
        exif[0x0112] = 6
        image.save(tmp_path / "a.png", exif=exif)
        processor = CaptionerImageProcessor()
        expected = processor(open_image(tmp_path / "a.png"), return_tensors="pt").pixel_values
        resized = open_resized(tmp_path / "a.png", processor)
        assert resized.size == (384, 384)
        assert torch.equal(processor(resized, return_tensors="pt").pixel_values, expected)
