"""Opening pictures: every broken or odd kind is built here and compared with NumPy or the array it was made of."""

import io
import os
import pickle
import struct
import time
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from hf_captioners.modeling.captioner_image_io import ImageError, open_image, to_rgb

ORIENTATION = 0x0112
HEIGHT, WIDTH = 24, 36


@pytest.fixture
def pixels() -> np.ndarray:
    """A picture without any symmetry, [24, 36, 3] uint8."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def colours(image: Image.Image) -> list[tuple[int, int, int]]:
    return [(red, green, blue) for red, green, blue in np.asarray(image).reshape(-1, 3).tolist()]


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bare_png(width: int, height: int, data: bytes = b"") -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = png_chunk(b"IDAT", zlib.compress(data))
    return b"\x89PNG\r\n\x1a\n" + header + body + png_chunk(b"IEND", b"")


class TestSources:
    def test_every_kind_of_source_gives_the_same_picture(self, tmp_path: Path, pixels: np.ndarray) -> None:
        data = encode(Image.fromarray(pixels), "PNG")
        path = tmp_path / "a picture.png"
        path.write_bytes(data)
        buffer = io.BytesIO(data)
        buffer.read()  # left at its end, as after writing
        sources: list[Any] = [
            path,
            str(path),
            data,
            bytearray(data),
            memoryview(data),
            buffer,
            Image.fromarray(pixels),
            Image.open(path),
            {"path": str(path), "bytes": None},
            {"path": None, "bytes": data},
            {"path": "not/there.png", "bytes": data},
        ]
        for source in sources:
            picture = open_image(source)
            assert picture.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(picture), pixels)

    def test_open_file_and_stream_without_seek(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "picture.png"
        path.write_bytes(encode(Image.fromarray(pixels), "PNG"))
        with path.open("rb") as file:
            np.testing.assert_array_equal(np.asarray(open_image(file)), pixels)
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(path.read_bytes())
        with os.fdopen(reading, "rb") as pipe:
            np.testing.assert_array_equal(np.asarray(open_image(pipe)), pixels)

    def test_pil_image_is_not_changed(self, pixels: np.ndarray) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image = Image.open(io.BytesIO(encode(Image.fromarray(pixels), "PNG", exif=exif)))
        assert open_image(image).size == (HEIGHT, WIDTH)
        assert image.size == (WIDTH, HEIGHT)
        assert image.getexif()[ORIENTATION] == 6

    @pytest.mark.parametrize("source", [7, None, np.zeros((4, 4, 3), np.uint8), io.StringIO("text")])
    def test_other_types_are_a_type_error(self, source: Any) -> None:
        with pytest.raises(TypeError):
            open_image(source)

    def test_empty_dict_and_closed_file(self) -> None:
        with pytest.raises(ImageError, match="neither 'bytes' nor 'path'"):
            open_image({"path": None, "bytes": None})
        closed = io.BytesIO(b"x")
        closed.close()
        with pytest.raises(ImageError, match="closed"):
            open_image(closed)
        image = Image.open(io.BytesIO(encode(Image.new("RGB", (4, 4)), "PNG")))
        image.close()
        with pytest.raises(ImageError):
            open_image(image)

    def test_error_survives_pickling(self) -> None:
        error = pickle.loads(pickle.dumps(ImageError("cat.jpg: no such file")))
        assert isinstance(error, ValueError)
        assert str(error) == "cat.jpg: no such file"


class TestFormats:
    @pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
    def test_lossless_formats(self, format: str, pixels: np.ndarray) -> None:
        np.testing.assert_array_equal(np.asarray(open_image(encode(Image.fromarray(pixels), format))), pixels)

    def test_lossless_webp(self, pixels: np.ndarray) -> None:
        data = encode(Image.fromarray(pixels), "WEBP", lossless=True)
        np.testing.assert_array_equal(np.asarray(open_image(data)), pixels)

    @pytest.mark.parametrize("format", ["JPEG", "MPO", "WEBP", "AVIF", "GIF"])
    def test_lossy_formats(self, format: str) -> None:
        if format == "AVIF" and not features.check("avif"):
            pytest.skip("this PIL has no AVIF")
        smooth = np.linspace(0, 255, WIDTH).astype(np.uint8)[None, :, None].repeat(HEIGHT, 0).repeat(3, 2)
        options = {"save_all": True, "append_images": [Image.new("RGB", (5, 5))]} if format == "MPO" else {}
        picture = open_image(encode(Image.fromarray(smooth), format, **options))
        assert picture.size == (WIDTH, HEIGHT)
        assert np.abs(np.asarray(picture).astype(int) - smooth).max() <= 8

    def test_the_content_decides_and_not_the_name(self, tmp_path: Path, pixels: np.ndarray) -> None:
        path = tmp_path / "really_a_png.jpg"
        path.write_bytes(encode(Image.fromarray(pixels), "PNG"))
        np.testing.assert_array_equal(np.asarray(open_image(path)), pixels)

    @pytest.mark.parametrize("format", ["ICO", "TGA", "PCX", "EPS", "PDF", "ICNS"])
    def test_formats_outside_the_list(self, format: str, tmp_path: Path) -> None:
        path = tmp_path / "picture.png"
        path.write_bytes(encode(Image.new("RGB", (64, 64)), format))
        with pytest.raises(ImageError, match=r"picture\.png: not a readable picture .*JPEG, .*PNG"):
            open_image(path)

    @pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
    def test_only_the_first_frame(self, format: str) -> None:
        frames = [Image.new("RGB", (20, 10), colour) for colour in ("red", "lime", "blue")]
        data = encode(frames[0], format, save_all=True, append_images=frames[1:], lossless=True)
        picture = open_image(data)
        assert picture.size == (20, 10)
        assert set(colours(picture)) == {(255, 0, 0)}


class TestOrientation:
    # What a viewer has to do to the stored array, in NumPy (EXIF 2.3, tag 0x0112).
    UPRIGHT: ClassVar[dict[int, Callable[[np.ndarray], np.ndarray]]] = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }

    @pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_upright(self, orientation: int, format: str, pixels: np.ndarray) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        picture = open_image(encode(Image.fromarray(pixels), format, exif=exif, lossless=True))
        np.testing.assert_array_equal(np.asarray(picture), self.UPRIGHT[orientation](pixels))
        assert picture.getexif().get(ORIENTATION, 1) == 1

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_upright_jpeg(self, orientation: int, pixels: np.ndarray) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        stored = np.asarray(Image.open(io.BytesIO(encode(Image.fromarray(pixels), "JPEG"))))
        picture = open_image(encode(Image.fromarray(pixels), "JPEG", exif=exif))
        np.testing.assert_array_equal(np.asarray(picture), self.UPRIGHT[orientation](stored))

    @pytest.mark.parametrize("exif", [b"Exif\x00\x00", b"Exif\x00\x00garbage!garbage!", b"Exif\x00\x00II*\x00\xff\xff"])
    def test_damaged_exif_is_taken_as_upright(self, exif: bytes, pixels: np.ndarray) -> None:
        assert open_image(encode(Image.fromarray(pixels), "JPEG", exif=exif)).size == (WIDTH, HEIGHT)

    @pytest.mark.parametrize("orientation", [0, 9, 200])
    def test_unknown_orientation_is_taken_as_upright(self, orientation: int, pixels: np.ndarray) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        assert open_image(encode(Image.fromarray(pixels), "PNG", exif=exif)).size == (WIDTH, HEIGHT)


class TestToRgb:
    def test_rgb_is_returned_as_it_is(self, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels)
        assert to_rgb(image) is image

    @pytest.mark.parametrize("mode", ["RGBA", "LA"])
    def test_alpha_is_composited_on_white(self, mode: str) -> None:
        channels = len(mode)
        values = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, channels), dtype=np.uint8)
        alpha = values[..., -1:] / 255.0
        expected = values[..., :-1] * alpha + 255 * (1 - alpha)
        picture = np.asarray(open_image(encode(Image.fromarray(values, mode), "PNG")))
        assert np.abs(picture - np.broadcast_to(expected, picture.shape)).max() <= 1

    def test_premultiplied_alpha(self) -> None:
        rgba = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
        la = Image.new("LA", (2, 2), (100, 128))
        for image, premultiplied in ((rgba, rgba.convert("RGBa")), (la, la.convert("La"))):
            expected = np.asarray(to_rgb(image)).astype(int)
            assert np.abs(np.asarray(to_rgb(premultiplied)) - expected).max() <= 2

    def test_palette_with_transparency(self, pixels: np.ndarray) -> None:
        palette = Image.fromarray(pixels).quantize(16)
        indices = np.asarray(palette)
        colours = np.array(palette.getpalette()).reshape(-1, 3)
        alphas = np.arange(16) * 17
        expected = colours[indices] * (alphas[indices] / 255.0)[..., None] + 255 - alphas[indices][..., None]
        picture = np.asarray(open_image(encode(palette, "PNG", transparency=bytes(alphas.tolist()))))
        assert np.abs(picture - expected).max() <= 1
        one_clear = np.asarray(open_image(encode(palette, "GIF", transparency=3)))
        assert (one_clear[indices == 3] == 255).all()
        np.testing.assert_array_equal(one_clear[indices != 3], colours[indices][indices != 3])
        opaque = np.asarray(open_image(encode(palette, "PNG")))
        np.testing.assert_array_equal(opaque, colours[indices])

    def test_palette_mode_with_alpha(self) -> None:
        image = Image.new("PA", (2, 2), (0, 0))
        assert to_rgb(image).getpixel((0, 0)) == (255, 255, 255)

    def test_transparent_colour(self) -> None:
        image = Image.new("RGB", (2, 1), (10, 20, 30))
        image.putpixel((1, 0), (1, 2, 3))
        picture = open_image(encode(image, "PNG", transparency=(10, 20, 30)))
        assert colours(picture) == [(255, 255, 255), (1, 2, 3)]
        grey = Image.fromarray(np.array([[7, 9]], dtype=np.uint8))
        assert colours(open_image(encode(grey, "PNG", transparency=7))) == [(255, 255, 255), (9, 9, 9)]

    def test_cmyk_jpeg(self) -> None:
        # PIL writes CMYK JPEGs inverted, with an Adobe marker, as Photoshop does, and reads them back.
        for colour, expected in (((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)):
            data = encode(Image.new("CMYK", (16, 16), colour), "JPEG")
            assert b"Adobe" in data
            assert np.abs(np.asarray(open_image(data)).astype(int) - expected).max() <= 2

    @pytest.mark.parametrize("mode", ["1", "L", "YCbCr", "HSV", "RGBX", "CMYK"])
    def test_other_modes(self, mode: str) -> None:
        picture = to_rgb(Image.new("RGB", (3, 2), "white").convert(mode))
        assert (picture.mode, picture.size) == ("RGB", (3, 2))
        assert picture.getpixel((0, 0)) == (255, 255, 255)

    def test_16_bit_png(self) -> None:
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        expected = np.floor(values / 257 + 0.5).astype(np.uint8)
        picture = np.asarray(open_image(encode(Image.fromarray(values), "PNG")))
        np.testing.assert_array_equal(picture, expected[..., None].repeat(3, 2))
        np.testing.assert_array_equal(np.asarray(to_rgb(Image.fromarray(values.astype(np.int32)))), picture)
        np.testing.assert_array_equal(np.asarray(open_image(encode(Image.fromarray(values), "TIFF"))), picture)
        big_endian = Image.frombytes("I;16B", (256, 256), values.astype(">u2").tobytes())
        np.testing.assert_array_equal(np.asarray(to_rgb(big_endian)), picture)

    def test_16_bit_png_with_a_transparent_grey(self) -> None:
        values = np.array([[0, 1000, 65535]], dtype=np.uint16)
        picture = open_image(encode(Image.fromarray(values), "PNG", transparency=1000))
        assert [red for red, _, _ in colours(picture)] == [0, 255, 255]

    @pytest.mark.parametrize(
        ("values", "expected"),
        [
            ([[0.0, 0.5, 1.0]], [0, 128, 255]),
            ([[0.0, 100.4, 255.0]], [0, 100, 255]),
            ([[0.0, 257.0, 65535.0]], [0, 1, 255]),
            ([[-1.0, 0.0, 1.0]], [0, 128, 255]),
            ([[-3.0, -3.0, -3.0]], [0, 0, 0]),
        ],
    )
    def test_floats(self, values: list[list[float]], expected: list[int]) -> None:
        picture = open_image(encode(Image.fromarray(np.array(values, dtype=np.float32)), "TIFF"))
        assert [red for red, _, _ in colours(picture)] == expected

    def test_32_bit_integers_outside_16_bits_are_stretched(self) -> None:
        values = np.array([[-(2**31), 0, 2**31 - 1]], dtype=np.int32)
        assert [red for red, _, _ in colours(to_rgb(Image.fromarray(values)))] == [0, 128, 255]

    def test_nan_is_an_error(self) -> None:
        image = Image.fromarray(np.array([[0.0, np.nan]], dtype=np.float32))
        with pytest.raises(ImageError, match="not finite"):
            to_rgb(image)


class TestBroken:
    @pytest.mark.filterwarnings("ignore::UserWarning")  # PIL has things to say about cut TIFFs
    @pytest.mark.parametrize(
        ("format", "options"),
        [
            ("JPEG", {}),
            ("JPEG", {"progressive": True}),
            ("PNG", {}),
            ("WEBP", {}),
            ("GIF", {}),
            ("BMP", {}),
            ("TIFF", {}),
            ("MPO", {}),
        ],
    )
    def test_truncated_anywhere(self, format: str, options: dict[str, object], pixels: np.ndarray) -> None:
        """Cut at every tenth byte and at the last 40: an error, or (only trailing bytes are gone) the same picture."""
        data = encode(Image.fromarray(pixels), format, **options)
        whole = np.asarray(open_image(data))
        outcomes = []
        for cut in [*range(0, len(data), 10), *range(len(data) - 40, len(data))]:
            try:
                np.testing.assert_array_equal(np.asarray(open_image(data[:cut])), whole)
                outcomes.append(cut)
            except ImageError:
                pass
        assert all(len(data) - cut <= 20 for cut in outcomes)

    @pytest.mark.parametrize("format", ["JPEG", "PNG"])
    @pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
    def test_truncated_file_names_itself(self, format: str, share: float, tmp_path: Path, pixels: np.ndarray) -> None:
        data = encode(Image.fromarray(pixels), format)
        path = tmp_path / "cut.jpg"
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ImageError, match=r"cut\.jpg: "):
            open_image(path)

    def test_damaged_data(self, pixels: np.ndarray) -> None:
        """Random damage gives a picture or an ImageError, and never another exception."""
        rng = np.random.default_rng(3)
        seeds = [encode(Image.fromarray(pixels), format) for format in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")]
        for _ in range(600):
            data = bytearray(seeds[rng.integers(len(seeds))])
            for position in rng.integers(0, min(len(data), rng.choice([60, 10**6])), 3):
                data[position] = rng.integers(256)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert open_image(bytes(data)).mode == "RGB"
            except ImageError as error:
                assert str(error).startswith("<bytes>: ")

    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "empty"),
            (bytes(1000), "not a readable picture"),
            (b"This is not a picture, whatever its name says.\n", "not a readable picture"),
            (b"\xff\xd8\xff", "not a readable picture"),
            (b"\x89PNG\r\n\x1a\n", "not a readable picture"),
        ],
    )
    def test_not_a_picture(self, content: bytes, reason: str, tmp_path: Path) -> None:
        path = tmp_path / "fake.jpg"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=rf"fake\.jpg: .*{reason}"):
            open_image(path)
        with pytest.raises(ImageError, match=rf"<bytes>: .*{reason}"):
            open_image(content)

    @pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0), (0, 0)])
    def test_no_pixels(self, width: int, height: int) -> None:
        with pytest.raises(ImageError):
            open_image(bare_png(width, height))
        with pytest.raises(ImageError, match=f"no pixels: {width} x {height}"):
            open_image(Image.new("RGB", (width, height)))

    @pytest.mark.parametrize(("width", "height"), [(1, 500), (500, 1), (1, 1)])
    def test_thin_pictures_are_fine(self, width: int, height: int) -> None:
        assert open_image(encode(Image.new("RGB", (width, height)), "JPEG")).size == (width, height)

    def test_paths_that_are_not_files(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"missing\.jpg: no such file"):
            open_image(tmp_path / "missing.jpg")
        with pytest.raises(ImageError, match="is a folder"):
            open_image(tmp_path)
        with pytest.raises(ImageError, match="not a path"):
            open_image("nul\0byte.jpg")
        with pytest.raises(ImageError) as caught:
            open_image("x" * 100_000)
        assert len(str(caught.value)) < 1200

    @pytest.mark.skipif(os.name == "nt", reason="FIFOs and devices of POSIX")
    def test_fifo_and_device_do_not_hang(self, tmp_path: Path) -> None:
        fifo = tmp_path / "pipe.jpg"
        os.mkfifo(fifo)
        for path in (fifo, "/dev/zero"):
            with pytest.raises(ImageError, match="not a regular file"):
                open_image(path)

    @pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
    def test_symlink_loop_and_permission(self, tmp_path: Path) -> None:
        loop = tmp_path / "loop.jpg"
        loop.symlink_to(loop)
        with pytest.raises(ImageError, match=r"loop\.jpg: cannot be read"):
            open_image(loop)
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        locked = tmp_path / "locked.png"
        locked.write_bytes(encode(Image.new("RGB", (4, 4)), "PNG"))
        locked.chmod(0)
        with pytest.raises(ImageError, match="Permission denied"):
            open_image(locked)


class TestLimits:
    def test_bytes(self, tmp_path: Path, pixels: np.ndarray) -> None:
        data = encode(Image.fromarray(pixels), "PNG")
        path = tmp_path / "large.png"
        path.write_bytes(data)
        sources: list[Any] = [path, data, io.BytesIO(data)]
        for source in sources:
            assert open_image(source, max_bytes=len(data)).size == (WIDTH, HEIGHT)
            with pytest.raises(ImageError, match=f"{len(data) - 1}"):
                open_image(source, max_bytes=len(data) - 1)

    def test_pixels(self, pixels: np.ndarray) -> None:
        image = Image.fromarray(pixels)
        for source in (encode(image, "PNG"), image):
            assert open_image(source, max_pixels=WIDTH * HEIGHT).size == (WIDTH, HEIGHT)
            with pytest.raises(ImageError, match=f"{WIDTH} x {HEIGHT} pixels"):
                open_image(source, max_pixels=WIDTH * HEIGHT - 1)

    @pytest.mark.parametrize("side", [65_000, 12_000, 9_000])
    @pytest.mark.parametrize("max_pixels", [64 * 2**20, 10**6])
    def test_decompression_bomb(self, side: int, max_pixels: int) -> None:
        """Beyond PIL's error limit, between its warning and its error, and below both; in a file of a few kilobytes."""
        bomb = bare_png(side, side, bytes(4_000_000))
        assert len(bomb) < 8192
        started = time.process_time()  # not the clock of a machine that others use
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(ImageError, match="pixels"):
                open_image(bomb, max_pixels=max_pixels)
        assert time.process_time() - started < 2

    def test_bomb_where_warnings_are_errors(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(ImageError, match="pixels"):
                open_image(bare_png(12_000, 12_000))

    def test_compressed_text_bomb(self) -> None:
        text = b"comment\0\0" + zlib.compress(bytes(200_000_000))
        data = bare_png(4, 4, bytes(4 * 13))
        with pytest.raises(ImageError):
            open_image(data[:33] + png_chunk(b"zTXt", text) + data[33:])

    def test_globals_of_pil_are_left_alone(self, monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray) -> None:
        """And the limit does not depend on them."""
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
        with pytest.raises(ImageError, match="65000 x 65000 pixels"):
            open_image(bare_png(65_000, 65_000))
        assert Image.MAX_IMAGE_PIXELS is None
        assert ImageFile.LOAD_TRUNCATED_IMAGES is False

    def test_threads(self, pixels: np.ndarray) -> None:
        good = encode(Image.fromarray(pixels), "PNG")
        sources = [good, bare_png(65_000, 65_000), good[:200], good] * 25

        def outcome(source: bytes) -> str:
            try:
                return str(np.array_equal(np.asarray(open_image(source)), pixels))
            except ImageError:
                return "error"

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(outcome, sources)) == ["True", "error", "error", "True"] * 25
