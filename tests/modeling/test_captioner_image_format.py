"""Formats: what is decoded, by content, and files that are small but declare much.

Hostile files are made here from honest ones by changing what their headers say (the tables of the standards), or taken
from Pillow's encoders with odd settings.
"""

import contextlib
import io
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, features

from hf_captioners.modeling import captioner_image_format
from hf_captioners.modeling.captioner_image_format import SIGNATURE_BYTES, readable_formats, sniff_format
from hf_captioners.modeling.captioner_image_io import ImageError, open_image

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 36, 3), dtype=np.uint8)
HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
JXL_HEADS = (b"\xff\x0a" + bytes(64), b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(64))


def encode(format: str, image: Image.Image | None = None, **options: object) -> bytes:
    file = io.BytesIO()
    (image or Image.fromarray(PIXELS)).save(file, format, **options)
    return file.getvalue()


class TestDecoded:
    @pytest.mark.parametrize(
        ("format", "options"),
        [
            ("PPM", {}),
            ("JPEG2000", {}),
            ("JPEG2000", {"no_jp2": True}),
            ("JPEG2000", {"tile_size": (16, 16)}),
            ("PNG", {"save_all": True, "append_images": [Image.new("RGB", (36, 24))]}),  # APNG
        ],
    )
    def test_lossless(self, format: str, options: dict[str, object]) -> None:
        data = encode(format, **options)
        np.testing.assert_array_equal(np.asarray(open_image(data)), PIXELS)

    @pytest.mark.parametrize(
        ("header", "body"),
        [
            (b"P3 2 1 255\n", b"1 2 3  # a comment\n 250 251 252"),
            (b"P6\n# a comment\n2 1\n255\n", bytes([1, 2, 3, 250, 251, 252])),
        ],
    )
    def test_netpbm_colours(self, header: bytes, body: bytes) -> None:
        assert np.asarray(open_image(header + body)).tolist() == [[[1, 2, 3], [250, 251, 252]]]

    def test_netpbm_greys(self) -> None:
        assert np.asarray(open_image(b"P1 2 1\n1 0"))[..., 0].tolist() == [[0, 255]]
        assert np.asarray(open_image(b"P4 2 1\n\x80"))[..., 0].tolist() == [[0, 255]]
        assert np.asarray(open_image(b"P5 2 1 255\n\x07\x09"))[..., 0].tolist() == [[7, 9]]
        assert np.asarray(open_image(b"P5 2 1 65535\n\xff\xff\x01\x01"))[..., 0].tolist() == [[255, 1]]

    def test_16_bit_jpeg_2000(self) -> None:
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        picture = np.asarray(open_image(encode("JPEG2000", Image.fromarray(values))))
        np.testing.assert_array_equal(picture[..., 0], np.floor(values / 257 + 0.5))

    def test_heic_is_read_by_pillow_heif_where_it_is_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A stand-in for the reader: that it gets the bytes, and its picture the checks of every other."""

        def reader(file: io.BytesIO) -> Image.Image:
            assert file.read() == HEIC_HEAD
            return Image.open(io.BytesIO(encode("PNG")))

        monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(HeifImageFile=reader))
        captioner_image_format._heif_reader.cache_clear()
        captioner_image_format.readable_formats.cache_clear()
        try:
            assert "HEIF" in readable_formats()
            np.testing.assert_array_equal(np.asarray(open_image(HEIC_HEAD)), PIXELS)
            with pytest.raises(ImageError, match="36 x 24 pixels"):
                open_image(HEIC_HEAD, max_pixels=863)
        finally:
            captioner_image_format._heif_reader.cache_clear()
            captioner_image_format.readable_formats.cache_clear()

    def test_heic_by_pillow_heif(self) -> None:
        pillow_heif = pytest.importorskip("pillow_heif")
        smooth = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(48, 0).repeat(3, 2)
        file = io.BytesIO()
        pillow_heif.from_pillow(Image.fromarray(smooth)).save(file, quality=-1, chroma=444)
        before = dict(Image.OPEN)
        picture = open_image(file.getvalue())
        assert picture.size == (64, 48)
        assert np.abs(np.asarray(picture).astype(int) - smooth).max() <= 3
        assert before == Image.OPEN  # nothing is registered with PIL
        with pytest.raises(ImageError):
            open_image(file.getvalue()[:-100])

    def test_what_cannot_be_read_says_what_helps(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setattr(captioner_image_format, "_heif_reader", lambda: None)
        (tmp_path / "IMG_0001.jpg").write_bytes(HEIC_HEAD)  # phones' exports have such names
        with pytest.raises(ImageError, match=r"IMG_0001\.jpg: a picture in HEIC, which needs pillow-heif"):
            open_image(tmp_path / "IMG_0001.jpg")
        for head in JXL_HEADS:
            with pytest.raises(ImageError, match="a picture in JPEG XL, which is not read"):
                open_image(head)


class TestSniff:
    @pytest.mark.parametrize("format", ["JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"])
    def test_pillow_s_own_files(self, format: str) -> None:
        if format == "AVIF" and not features.check("avif"):
            pytest.skip("this PIL has no AVIF")
        assert sniff_format(encode(format)[:SIGNATURE_BYTES]) == ("JPEG" if format == "MPO" else format)

    def test_others(self) -> None:
        assert sniff_format(HEIC_HEAD) == "HEIF"
        assert [sniff_format(head) for head in JXL_HEADS] == ["JXL", "JXL"]
        assert sniff_format(encode("JPEG2000", no_jp2=True)) == "JPEG2000"
        assert sniff_format(struct.pack(">4sHH", b"MM\0*", 0, 8)) == "TIFF"

    @pytest.mark.parametrize(
        "head",
        [b"", b"B", b"BM25 is a ranking function", b"P1 of the plan", b"%PDF-1.7", b"%!PS-Adobe", b"<svg", b"PK\3\4"],
    )
    def test_no_pictures(self, head: bytes) -> None:
        assert sniff_format(head) is None
        assert sniff_format(b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(40)) is None  # a video


def jpeg_with_scans(count: int, **options: object) -> bytes:
    """A JPEG of `count` scans: the last one of a progressive one repeated."""
    data = encode("JPEG", Image.new("L", (16, 16), 77), progressive=True, **options)
    last = data.rindex(b"\xff\xda")
    here = data.count(b"\xff\xda")
    return data[:-2] + data[last:-2] * (count - here) + data[-2:]


class TestJpegScans:
    def test_at_the_limit_and_beyond(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert open_image(jpeg_with_scans(100)).size == (16, 16)
        with pytest.raises(ImageError, match="a JPEG with 101 or more scans, more than the 100 allowed"):
            open_image(jpeg_with_scans(101))
        monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_SCANS", "101")
        assert open_image(jpeg_with_scans(101)).size == (16, 16)

    def test_not_decoded_beyond(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("opened"))
        with pytest.raises(ImageError, match="scans"):
            open_image(jpeg_with_scans(20_000))

    def test_what_looks_like_scans_in_metadata_and_behind_the_picture(self) -> None:
        """A thumbnail in EXIF, the video of a motion photo."""
        decoys = b"\xff\xda" * 20_000
        data = encode("JPEG", exif=b"Exif\0\0" + decoys[:60_000], comment=decoys[:60_000]) + decoys
        assert open_image(data).size == (36, 24)

    def test_decoys_do_not_hide_scans(self) -> None:
        """Bytes that libjpeg passes over where a walk that trusts their lengths would jump over the scans."""
        honest = jpeg_with_scans(3)
        last = honest.rindex(b"\xff\xda")
        for decoy in (b"\xff\x02\xff\xff", b"\xff\xd0\xff\xff", b"\xff\xff\xff", b"\xff\x00\xff\xff", b"\x12\x34"):
            with pytest.raises(ImageError, match="scans"):
                open_image(honest[:-2] + decoy + honest[last:-2] * 300 + honest[-2:])

    def test_damaged_lengths_end(self) -> None:
        data = encode("JPEG")
        for position in range(2, 200):
            with contextlib.suppress(ImageError):
                open_image(data[:position] + b"\xff\xfe\0\0" + data[position:])


class TestJpeg2000:
    @staticmethod
    def siz(data: bytes, *fields: int) -> bytes:
        """The codestream with other Xsiz, Ysiz, XOsiz, YOsiz, XTsiz, YTsiz, XTOsiz and YTOsiz (A.5.1)."""
        changed = bytearray(data)
        struct.pack_into(">8I", changed, data.index(b"\xff\x4f\xff\x51") + 8, *fields)
        return bytes(changed)

    @pytest.mark.parametrize("no_jp2", [True, False])
    def test_a_pixel_per_tile(self, no_jp2: bool) -> None:
        """65,025 tiles in 200 bytes: OpenJPEG takes 0.7 GB for them."""
        data = encode("JPEG2000", Image.new("RGB", (255, 255)), no_jp2=no_jp2)
        with pytest.raises(ImageError, match="a JPEG 2000 with 65025 tiles"):
            open_image(self.siz(data, 255, 255, 0, 0, 1, 1, 0, 0))

    def large(self, **options: object) -> bytes:
        """The header of a picture of 2048 x 2048."""
        data = encode("JPEG2000", Image.new("RGB", (64, 64)), no_jp2=True, **options)
        return self.siz(data, 2048, 2048, 0, 0, 2048, 2048, 0, 0)

    def test_small_code_blocks(self) -> None:
        """3 million of 4 x 4 pixels: OpenJPEG takes 1.5 GB for 16 megapixels, of a file of 20 kB."""
        for options in ({"codeblock_size": (4, 4)}, {"codeblock_size": (4, 8)}, {"precinct_size": (8, 8)}):
            with pytest.raises(ImageError, match="code-blocks"):
                open_image(self.large(**options))

    def test_usual_code_blocks(self) -> None:
        black = Image.new("RGB", (1024, 1024))
        for options in ({}, {"codeblock_size": (16, 16)}, {"precinct_size": (64, 64)}, {"tile_size": (64, 64)}):
            assert open_image(encode("JPEG2000", black, **options)).size == (1024, 1024)

    def test_in_a_coding_style_of_one_component(self) -> None:
        data = self.large()
        end = data.index(b"\xff\x52")
        levels = data[end + 9]
        coc = b"\xff\x53" + struct.pack(">HBBBBBBB", 9, 1, 0, levels, 0, 0, 0, 1)  # code-blocks of 4 x 4
        end += 2 + int.from_bytes(data[end + 2 : end + 4], "big")
        with pytest.raises(ImageError, match="code-blocks"):
            open_image(data[:end] + coc + data[end:])

    def test_components(self) -> None:
        data = bytearray(encode("JPEG2000", no_jp2=True))
        struct.pack_into(">H", data, 4, 38 + 3 * 16384)
        struct.pack_into(">H", data, 40, 16384)
        with pytest.raises(ImageError, match="16384 components"):
            open_image(bytes(data))

    def test_empty_area(self) -> None:
        with pytest.raises(ImageError):
            open_image(self.siz(encode("JPEG2000"), 10, 10, 20, 20, 0, 0, 0, 0))


class TestOthers:
    def test_a_tiff_tile_larger_than_the_picture(self) -> None:
        tags = {256: 64, 257: 64, 258: 8, 259: 1, 262: 1, 277: 1, 322: 32768, 323: 32768, 324: 8, 325: 4096}
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())  # LONG, one value
        directory = struct.pack("<H", len(tags)) + entries + bytes(4)
        data = b"II*\0" + struct.pack("<I", 8 + 4096) + bytes(4096) + directory
        with pytest.raises(ImageError, match="a TIFF with tiles of 1073741824 pixels, more than the 67108864 allowed"):
            open_image(data)
        tags[322] = tags[323] = 64
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
        assert open_image(data[: 8 + 4096] + struct.pack("<H", len(tags)) + entries + bytes(4)).size == (64, 64)

    def test_what_pillow_decodes_in_python(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(captioner_image_format, "MAX_BYTES_IN_PYTHON", 2000)
        assert open_image(encode("PPM")).size == (36, 24)  # 2,605 bytes, raw
        for head in (b"P6 36 24 254\n", b"P3 36 24 255\n"):
            with pytest.raises(ImageError, match=r"decodes slowly \(ppm.*more than the 2000 allowed; save it as PNG"):
                open_image(head + b" 1" * 1300)

    def test_comments_of_netpbm(self) -> None:
        """Pillow copies what is left of a block for each: minutes for a megabyte of comments."""
        assert open_image(b"P3 1 1 255\n" + b"#\n" * 100 + b"1 2 3\n").size == (1, 1)
        with pytest.raises(ImageError, match="more than 100 comments"):
            open_image(b"P3 1 1 255\n" + b"#\n" * 101 + b"1 2 3\n")
