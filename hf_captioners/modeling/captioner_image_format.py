"""Formats of pictures that are decoded, recognised by their first bytes, with the limits particular to some of them.

A decoder is on the list if it is a part of Pillow (or `pillow-heif`), starts no other program, and declares the size
of the picture before it decodes. So these are not:

- EPS and PostScript (Ghostscript runs the program in the file), WMF and EMF (Windows draws them), PDF, SVG;
- containers and stubs (HDF5, FITS, GRIB, MPEG, ICO, ICNS, PSD, DDS), formats without a signature (TGA, PCX), RAW;
- JPEG XL: `pillow-jxl-plugin` decodes the whole picture before its size can be compared with a limit.

What is compared besides the limits of every picture:

1. JPEG: the number of scans, as each costs as much as a whole picture;
2. JPEG 2000: tiles and code-blocks, which take memory whether or not they hold data (20 kB can ask for gigabytes);
3. TIFF: the size of a tile, which may be larger than the picture;
4. Netpbm text, Netpbm with odd maxima, and run-length BMP: the bytes, as Pillow decodes these in Python.
"""

import functools
import importlib
import io
import re
import struct
from collections.abc import Iterator

from PIL import Image, ImageFile

from .captioner_image_limits import ImageError, too_many

ALLOWED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""PIL's names of the formats that PIL decodes. MPO is what many cameras write into a .jpg; not every PIL has AVIF."""

SIGNATURE_BYTES = 64
"""As many of the first bytes as `sniff_format` needs."""

UNREAD_FORMATS = {
    "HEIF": "HEIC, which needs pillow-heif: pip install pillow-heif",
    "JXL": "JPEG XL, which is not read; convert it to PNG or JPEG, with djxl for example",
    "AVIF": "AVIF, which this Pillow has no decoder for; install a newer one",
}
"""Pictures that cannot be opened, or not always, and what helps."""

MAX_TILES = 2**14
"""Most tiles of a JPEG 2000; a picture of 64 megapixels in tiles of 128 x 128 has 4,096."""
MAX_CODE_BLOCKS = 2**18
"""Most code-blocks of a JPEG 2000; a picture of 64 megapixels has 49,152 of the usual size, 64 x 64."""
MAX_BYTES_IN_PYTHON = 8 * 2**20
"""Largest file of a kind that Pillow decodes in Python, about a second per megabyte."""
MAX_COMMENTS = 100
"""Most comments of a Netpbm text; Pillow copies a megabyte for each."""

_SIGNATURES = {
    "JPEG": rb"\xff\xd8\xff",
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "GIF": rb"GIF8[79]a",
    "WEBP": rb"RIFF.{4}WEBP",
    "BMP": rb"BM.{4}\0{4}",
    "TIFF": rb"II[*+]\0|MM\0[*+]",
    "JPEG2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  \r\n\x87\n",
    "PPM": rb"P[1-6fF][\s#][\s\d#]",
    "JXL": rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n",
}
_SIGNATURE = re.compile(b"|".join(b"(?P<%b>%b)" % (name.encode(), rule) for name, rule in _SIGNATURES.items()), re.S)
_ISO_BRANDS = re.compile(rb"(?P<AVIF>avi[fs])|(?P<HEIF>he[iv][cxms]|mif1|msf1)")
_PYTHON_CODECS = ("ppm", "ppm_plain", "bmp_rle")


def sniff_format(head: bytes) -> str | None:
    """Name the picture format that bytes begin like.

    Args:
        head (`bytes`): the first bytes of a file, `SIGNATURE_BYTES` or more.

    Returns:
        `str`, *optional*: a name of `ALLOWED_FORMATS`, or `"HEIF"` or `"JXL"`; `None` where it is none of these.
    """
    if match := _SIGNATURE.match(head):
        return match.lastgroup
    if head[4:8] != b"ftyp":
        return None
    brands = _ISO_BRANDS.search(head, 8, max(int.from_bytes(head[:4], "big"), 12))
    return brands.lastgroup if brands else None


@functools.cache
def readable_formats() -> tuple[str, ...]:
    """Those of `ALLOWED_FORMATS` that this PIL has a reader for, and `"HEIF"` where `pillow-heif` is installed."""
    Image.init()
    heif = () if _heif_reader() is None else ("HEIF",)
    return (*(name for name in ALLOWED_FORMATS if name in Image.OPEN), *heif)


@functools.cache
def _heif_reader() -> type[ImageFile.ImageFile] | None:
    """The reader of `pillow-heif`, used without registering it with PIL, which is the program's choice."""
    try:
        return importlib.import_module("pillow_heif").HeifImageFile
    except ImportError:
        return None


def open_header(data: bytes, max_scans: int, max_pixels: int) -> ImageFile.ImageFile:
    """Parse the header of a picture. Nothing is decoded yet.

    Args:
        data (`bytes`): the whole file.
        max_scans (`int`): most scans of a JPEG.
        max_pixels (`int`): largest tile of a TIFF.

    Returns:
        `PIL.ImageFile.ImageFile`: with its size, not loaded.

    Raises:
        [`ImageError`]: in none of the formats, or over a limit of its format.
        Exception: whatever PIL's parsers let out.
    """
    kind = sniff_format(data[:SIGNATURE_BYTES])
    if kind == "JPEG":
        _check_scans(data, max_scans)
    elif kind == "JPEG2000":
        _check_jpeg2000(data)
    image = _parse(data, kind)
    tile_pixels = _tile_pixels(image)
    if tile_pixels > max_pixels:
        raise too_many(f"a TIFF with tiles of {tile_pixels}", max_pixels, "pixels")
    if image.tile and image.tile[0][0] in _PYTHON_CODECS:
        _check_decoded_in_python(data, image.tile[0][0])
    return image


def _parse(data: bytes, kind: str | None) -> ImageFile.ImageFile:
    reader = _heif_reader() if kind == "HEIF" else None
    if reader is not None:
        return reader(io.BytesIO(data))
    pil_formats = [name for name in readable_formats() if name != "HEIF"]
    try:
        return Image.open(io.BytesIO(data), formats=pil_formats)
    except Image.UnidentifiedImageError:
        if kind in UNREAD_FORMATS and kind not in readable_formats():
            raise ImageError(f"a picture in {UNREAD_FORMATS[kind]}") from None
        formats = ", ".join(readable_formats())
        raise ImageError(f"not a readable picture in one of the accepted formats ({formats})") from None


_MARKER = re.compile(rb"\xff([^\x00\xff])", re.S)  # may stand behind more 0xff; `\xff+` is searched 12 times slower
_SOS, _EOI = 0xDA, 0xD9


def _check_scans(data: bytes, max_scans: int) -> None:
    """Count the scans of a JPEG up to the limit, as libjpeg walks through it (ITU-T T.81, annex B)."""
    scans, position = 0, 2
    while match := _MARKER.search(data, position):
        marker, position = match[1][0], match.end()
        if marker == _EOI:
            return
        if marker < 0xC0 or 0xD0 <= marker <= 0xD8:  # without a length: restarts, and what is none
            continue
        scans += marker == _SOS
        if scans > max_scans:
            raise too_many(f"a JPEG with {scans} or more", max_scans, "scans")
        position += int.from_bytes(data[position : position + 2], "big")


_SIZ = re.compile(rb"\xff\x4f\xff\x51")
_COD_OR_COC = re.compile(rb"\xff([\x52\x53])")


def _check_jpeg2000(data: bytes) -> None:
    """Compare tiles and code-blocks of all codestreams in a file (ISO/IEC 15444-1, annex A.5 and A.6)."""
    for siz in _SIZ.finditer(data):
        fields = data[siz.end() : siz.end() + 38]
        if len(fields) < 38:
            continue
        x1, y1, x0, y0, tile_width, tile_height, tile_x0, tile_y0, components = struct.unpack(">4x8IH", fields)
        if int.from_bytes(fields[:2], "big") != 38 + 3 * components:
            continue  # not a header but pixels that look like one
        if not (0 < components <= 4 and x1 > x0 and y1 > y0 and tile_width and tile_height):
            raise ImageError(f"a JPEG 2000 of {x1 - x0} x {y1 - y0} pixels and {components} components")
        tiles = -(-(x1 - tile_x0) // tile_width) * -(-(y1 - tile_y0) // tile_height)
        blocks = int(components * (x1 - x0) * (y1 - y0) * max(_code_block_densities(data, siz.end()), default=0.0))
        if tiles > MAX_TILES or blocks > MAX_CODE_BLOCKS:
            raise ImageError(
                f"a JPEG 2000 with {tiles} tiles and about {blocks} code-blocks, more than the {MAX_TILES} and "
                f"{MAX_CODE_BLOCKS} allowed"
            )


def _code_block_densities(data: bytes, start: int) -> Iterator[float]:
    """Code-blocks per pixel under every coding style (COD, COC) that stands behind `start`."""
    for match in _COD_OR_COC.finditer(data, start):
        length = int.from_bytes(data[match.end() : match.end() + 2], "big")
        # COD: Lcod, Scod, order, layers (2), transform of components; COC: Lcoc, component, Scoc
        first = 7 if match[1] == b"\x52" else 4
        style = data[match.end() + first : match.end() + length]  # levels, width, height, passes, wavelet, precincts
        if len(style) < 5 or len(style) not in (5, 6 + style[0]) or max(style[1:3]) > 8:
            continue  # pixels that look like a marker
        levels, width, height = style[0], style[1] + 2, style[2] + 2  # width and height: powers of two
        precincts = style[5:] or b"\xff" * (levels + 1)
        # A code-block ends with its precinct, which sub-bands halve; level r has 4^(r - levels) of the pixels.
        yield sum(
            4.0 ** (level - levels)
            * 2.0 ** -(min(width, max((precinct & 15) - 1, 0)) + min(height, max((precinct >> 4) - 1, 0)))
            for level, precinct in enumerate(precincts)
        )


_TILE_WIDTH, _TILE_HEIGHT = 322, 323


def _tile_pixels(image: ImageFile.ImageFile) -> int:
    """The pixels of a tile of a TIFF; 0 of other pictures."""
    if image.format != "TIFF":
        return 0
    tags = image.tag_v2  # type: ignore[attr-defined]  # TiffImageFile
    return int(tags.get(_TILE_WIDTH, 0)) * int(tags.get(_TILE_HEIGHT, 0))


def _check_decoded_in_python(data: bytes, codec: str) -> None:
    if len(data) > MAX_BYTES_IN_PYTHON:
        raise ImageError(
            f"{len(data)} bytes of a kind that Pillow decodes slowly ({codec}), more than the {MAX_BYTES_IN_PYTHON} "
            "allowed; save it as PNG"
        )
    if codec == "ppm_plain" and data.count(b"#") > MAX_COMMENTS:
        raise ImageError(f"more than {MAX_COMMENTS} comments in a Netpbm text")
