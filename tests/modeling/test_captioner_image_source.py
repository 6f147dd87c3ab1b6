"""Where a picture's bytes come from: base64 text and data: URIs against transformers, odd files, messages, limits."""

import base64
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from hf_captioners.modeling.captioner_image_io import ImageError, open_image
from hf_captioners.modeling.captioner_image_limits import MAX_ECHO, shorten

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
FORMATS = ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "JPEG2000", "PPM"]


def encode(format: str = "PNG", pixels: np.ndarray = PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format)
    return file.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


class TestBase64:
    @pytest.mark.parametrize("format", FORMATS)
    def test_as_transformers_opens_it(self, format: str) -> None:
        text = text_of(encode(format))
        for source in (text, f"data:image/{format.lower()};base64,{text}"):
            np.testing.assert_array_equal(np.asarray(open_image(source)), np.asarray(load_image(source)))

    @pytest.mark.parametrize("length", range(3))  # as many = at the end
    def test_line_breaks_padding_and_escapes(self, length: int) -> None:
        data = encode() + bytes(length)
        text = text_of(data)
        sources = [
            base64.encodebytes(data).decode(),  # lines of 76 characters
            text.rstrip("="),
            f"DATA:image/png;charset=utf-8;base64,{text}",
            "data:;base64," + text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
            f"data:image/png;base64,\n{text}\n",
            base64.urlsafe_b64encode(data).decode(),
            f"data:image/png;base64,{base64.urlsafe_b64encode(data).decode()}",
        ]
        for source in sources:
            np.testing.assert_array_equal(np.asarray(open_image(source)), PIXELS)

    def test_in_a_dict(self) -> None:
        np.testing.assert_array_equal(np.asarray(open_image({"path": text_of(encode()), "bytes": None})), PIXELS)

    def test_a_file_of_that_name_comes_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        tiny = b"BM" + bytes(12)
        monkeypatch.chdir(tmp_path)
        Path(text_of(tiny)).write_bytes(encode())
        np.testing.assert_array_equal(np.asarray(open_image(text_of(tiny))), PIXELS)

    @pytest.mark.parametrize(
        ("source", "reason"),
        [
            ("data:image/png;base64," + "?" * 5000, "<data: URI of 5022 characters>: its content is not base64"),
            ("data:image/svg+xml,%3Csvg/%3E", "its content is not base64"),
            ("data:", "the file is empty"),
            ("data:image/png;base64," + text_of(b"no picture" * 500), "not a readable picture"),
            (text_of(encode())[:1000], "<base64 text of 1000 characters>: broken or truncated picture"),
            (text_of(b"%PDF-1.7 " * 500), "neither a path nor base64 text of a picture"),
            (text_of(encode()) + "é", "its content is not base64"),
            ("data:image/png;base64,é", "its content is not base64"),
        ],
    )
    def test_errors_are_short(self, source: str, reason: str) -> None:
        with pytest.raises(ImageError) as caught:
            open_image(source)
        assert reason in str(caught.value)
        assert len(str(caught.value)) < 400

    def test_bytes_are_limited_before_decoding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode()
        for source in (text_of(data), f"data:image/png;base64,{text_of(data)}"):
            assert open_image(source, max_bytes=len(data)).size == (36, 24)
            with pytest.raises(ImageError, match=f"more than the {len(data) - 1} allowed"):
                open_image(source, max_bytes=len(data) - 1)
        monkeypatch.setattr(base64, "b64decode", lambda *_, **__: pytest.fail("decoded"))
        with pytest.raises(ImageError, match="more than the 100 allowed"):
            open_image("data:image/png;base64," + "A" * 1000, max_bytes=100)


class TestPaths:
    @pytest.mark.skipif(os.name == "nt", reason="FIFOs of POSIX")
    def test_a_file_that_becomes_a_fifo(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between looking and opening: opening must not wait for a writer."""
        (tmp_path / "a.png").write_bytes(encode())
        looked_at = Path.stat

        def swap(path: Path, **options: Any) -> os.stat_result:
            status = looked_at(path, **options)
            if path == tmp_path / "a.png":  # and no file of whoever asks besides
                path.unlink()
                os.mkfifo(path)
            return status

        monkeypatch.setattr(Path, "stat", swap)
        with pytest.raises(ImageError, match="is not a regular file"):
            open_image(tmp_path / "a.png")

    def test_a_sparse_file_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "holes.png").open("wb") as file:
            file.truncate(2**40)
        with pytest.raises(ImageError, match="1099511627776 bytes, more than the 67108864 allowed"):
            open_image(tmp_path / "holes.png")

    def test_names_in_messages_are_short_and_printable(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError) as caught:
            open_image(f"{tmp_path}/\x1b[31mred\n{'x/' * 2000}cat.jpg")
        message = str(caught.value)
        assert message.isprintable() and len(message) < 300
        assert "\\x1b[31mred\\n" in message and "cat.jpg: " in message

    def test_shorten(self) -> None:
        assert shorten("a cat.jpg") == "a cat.jpg"
        assert shorten("\udcff\t") == "\\udcff\\t"
        assert len(shorten("x" * 10**6)) == MAX_ECHO + len("...")


class TestLimitsOfTheEnvironment:
    def test_bytes_and_pixels(self, monkeypatch: pytest.MonkeyPatch) -> None:
        data = encode()
        monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_BYTES", "1000")
        with pytest.raises(ImageError, match=r"the 1000 allowed \(HF_CAPTIONERS_MAX_IMAGE_BYTES sets another limit\)"):
            open_image(data)
        assert open_image(data, max_bytes=10_000).size == (36, 24)
        monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_BYTES", "10000")
        monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_PIXELS", "863")
        with pytest.raises(ImageError, match="36 x 24 pixels, more than the 863 allowed"):
            open_image(data)
        monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_PIXELS", "864")
        assert open_image(data).size == (36, 24)

    @pytest.mark.parametrize("value", ["0", "-1", "64M", "1e9", "x" * 1000])
    def test_what_is_no_number(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_PIXELS", value)
        with pytest.raises(ValueError, match=r"HF_CAPTIONERS_MAX_IMAGE_PIXELS=.* must be a positive integer") as caught:
            open_image(encode())
        assert not isinstance(caught.value, ImageError) and len(str(caught.value)) < 400
