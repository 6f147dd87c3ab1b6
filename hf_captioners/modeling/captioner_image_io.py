"""Opening pictures from outside, within limits: the one place of the project that decodes an image.

`open_image` takes a path, an http(s) URL, bytes, a file object, a PIL image or the `{"path", "bytes"}` dict of
`datasets` and returns an upright 8-bit RGB picture, or raises `ImageError` naming the source and the reason. `to_rgb`
is its last step and also serves pictures that the caller opened.

What happens to a source, in order:

1. its bytes are read, at most `max_bytes` of them (a folder, a FIFO or a device is refused before it is opened);
2. the header is read by one of the decoders of `ALLOWED_FORMATS` only, and the size in it checked against `max_pixels`;
3. the first frame is decoded completely; a truncated file is an error;
4. the EXIF orientation is applied, then `to_rgb`.

PIL's module globals are left as they are: `MAX_IMAGE_PIXELS` keeps guarding with its own, looser limit, and a program
that sets `ImageFile.LOAD_TRUNCATED_IMAGES` gets what it asked for. Colour profiles (ICC) are not applied.
"""

import functools
import http.client
import io
import os
import re
import stat
import struct
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageOps

ALLOWED_FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
"""PIL's names of the formats that are decoded. MPO is what many cameras write into a .jpg; not every PIL has AVIF."""

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20

EncodedSource: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Mapping[str, Any]
ImageSource: TypeAlias = EncodedSource | Image.Image

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]*)://")
_URL_CHUNK = 2**16
_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_WHITE = (255, 255, 255, 255)

# What PIL's parsers and decoders let out on damaged or hostile bytes. MemoryError is not here: it says nothing about
# the picture. DecompressionBombWarning is raised where the program turned warnings into errors.
_DECODER_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(ValueError):
    """A picture could not be read; the message names the source and the reason."""


def to_rgb(image: Image.Image) -> Image.Image:
    """
    Converts a PIL image of any mode to 8-bit RGB.

    Transparency (an alpha channel, a transparent colour or palette entry) is composited on white. CMYK, YCbCr, HSV,
    grey and 1-bit images go through PIL's own conversion. Deep images are scaled to 8 bits, where PIL would clip them:

    - 16-bit grey (`I;16` and its relatives): `round(v / 257)`, so that 0 is black and 65535 is white;
    - 32-bit integers (`I`) within 0..65535 the same, since that is how 16-bit files are opened by some decoders; with
      values outside, the image's own minimum..maximum becomes 0..255;
    - floats (`F`): values within 0..1 times 255, within 0..255 as they are, otherwise as for `I`.

    Args:
        image (`PIL.Image.Image`):
            The picture; it is not changed. Its EXIF orientation is not looked at (`open_image` does that).

    Returns:
        `PIL.Image.Image`: mode "RGB", same size; the same object if it already was opaque RGB.

    Raises:
        [`ImageError`]: PIL cannot convert the mode to RGB, or a float image has values that are not finite.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_captioners.modeling.captioner_image_io import to_rgb

    >>> to_rgb(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    >>> to_rgb(Image.new("I;16", (2, 2), 65535)).getpixel((0, 0))
    (255, 255, 255)

    ```
    """
    if image.mode in _DEEP_MODES:
        return _deep_to_grey(image).convert("RGB")
    try:
        if image.has_transparency_data:
            if image.mode == "La":  # PIL knows La -> LA, but not La -> RGBA
                image = image.convert("LA")
            rgba = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"an image of mode {image.mode} cannot be converted to RGB: {error}") from error


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Scales a 16-bit, 32-bit or float image to mode "L" (see `to_rgb`)."""
    values: np.ndarray = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError("a float image has values that are not finite (NaN or infinity)")
    if image.mode == "F" and low >= 0 and high <= 1:
        offset, scale = 0.0, 255.0
    elif image.mode == "F" and low >= 0 and high <= 255:
        offset, scale = 0.0, 1.0
    elif low >= 0 and high <= 65535:
        offset, scale = 0.0, 1 / 257
    else:
        offset, scale = low, 255 / (high - low) if high > low else 0.0
    exact = np.float32 if values.itemsize == 2 else np.float64  # for integers of 16 and of 32 bits
    grey = np.rint(np.subtract(values, offset, dtype=exact) * scale).astype(np.uint8)
    if isinstance(key := image.info.get("transparency"), int):  # the transparent grey level of a 16-bit PNG
        grey[values == key] = 255
    return Image.fromarray(grey)


def open_image(
    source: ImageSource,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    timeout: float = 10.0,
    rgb: bool = True,
) -> Image.Image:
    """
    Opens a picture from outside and returns its first frame, upright, as 8-bit RGB.

    The format is recognised by the content, not by the name. Safe to call from several threads.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file object, `PIL.Image.Image` or `dict`):
            A path; a URL of the scheme http or https; the encoded bytes; a binary file object (read from its start if
            it can be rewound); a PIL image (its present frame is taken, no limit of bytes or formats applies); or the
            dict of a `datasets.Image` that is not decoded, `{"path": str or None, "bytes": bytes or None}`, where the
            bytes win. A URL is fetched wherever it points, also into a private network: a server which takes URLs from
            strangers has to check them first.
        max_bytes (`int`, *optional*, defaults to 64 MiB):
            Largest encoded size, in bytes.
        max_pixels (`int`, *optional*, defaults to 64 * 2**20):
            Largest width times height, in pixels. PIL's own limit (`2 * PIL.Image.MAX_IMAGE_PIXELS`) holds besides.
        timeout (`float`, *optional*, defaults to 10.0):
            Seconds that a URL may take to answer, and again to deliver its body.
        rgb (`bool`, *optional*, defaults to `True`):
            Convert to RGB; `False` leaves the picture in its own mode.

    Returns:
        `PIL.Image.Image`: decoded.

    Raises:
        [`ImageError`]: the source is missing, unreadable, empty, truncated, not an image, in another format than those
            of `ALLOWED_FORMATS`, over a limit, or without pixels.
        `TypeError`: the source is of none of the types above.

    Example:

    ```python
    >>> import io
    >>> from PIL import Image
    >>> from hf_captioners.modeling.captioner_image_io import open_image

    >>> file = io.BytesIO()
    >>> Image.new("L", (4, 3), 128).save(file, "PNG")
    >>> picture = open_image(file.getvalue())
    >>> picture.mode, picture.size
    ('RGB', (4, 3))

    ```
    """
    name = describe_source(source)
    try:
        if isinstance(source, Image.Image):
            return _decode(source, max_pixels, rgb)
        data = _read(source, max_bytes, timeout)
        if not data:
            raise ImageError("the file is empty")
        if len(data) > max_bytes:
            raise ImageError(f"more than the {max_bytes} bytes allowed")
        with _open_header(data) as image:
            return _decode(image, max_pixels, rgb)
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error


def describe_source(source: ImageSource) -> str:
    """The name of a source in error messages; shortened, as a string may be anything."""
    if isinstance(source, Mapping):
        return describe_source(source["path"]) if source.get("path") else "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        return name if len(name) <= 1000 else f"{name[:1000]}..."
    return f"<{type(source).__name__}>"


def _read(source: EncodedSource, max_bytes: int, timeout: float) -> bytes:
    """Reads the encoded bytes; returns more than `max_bytes` of them only if the caller held them already."""
    if isinstance(source, Mapping):
        inner = source.get("bytes") if source.get("bytes") is not None else source.get("path")
        if inner is None:
            raise ImageError(f"a dict with neither 'bytes' nor 'path' (its keys: {sorted(source)})")
        return _read(inner, max_bytes, timeout)
    if isinstance(source, str) and (scheme := _URL.match(source)):
        if scheme[1].lower() not in ("http", "https"):
            raise ImageError(f"the URL scheme {scheme[1]!r} is not supported; use http or https, or a path")
        return _read_url(source, max_bytes, timeout)
    if isinstance(source, (str, os.PathLike)):
        return _read_path(Path(source), max_bytes)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source)
    return _read_file_object(source, max_bytes)


def _read_path(path: Path, max_bytes: int) -> bytes:
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode) and status.st_size <= max_bytes:
            with path.open("rb") as file:
                return file.read(max_bytes + 1)
    except FileNotFoundError:
        raise ImageError("no such file") from None
    except OSError as error:
        raise ImageError(f"cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ImageError(f"not a path ({error})") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError("is a folder, not a picture")
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
        raise ImageError("is not a regular file")
    raise ImageError(f"{status.st_size} bytes, more than the {max_bytes} allowed")


def _read_file_object(file: BinaryIO, max_bytes: int) -> bytes:
    try:
        if file.seekable():
            file.seek(0)  # like PIL, so that a buffer which was just written can be opened
        data = file.read(max_bytes + 1)
    except AttributeError:
        raise TypeError(
            "an image is a path, an http(s) URL, bytes, a binary file object, a PIL image or a dict with 'path' and "
            f"'bytes', not {type(file).__name__}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: closed
        raise ImageError(f"cannot be read ({error})") from error
    if not isinstance(data, bytes):
        raise TypeError(f"the file object returned {type(data).__name__}, not bytes; open it in binary mode")
    return data


@functools.cache
def _url_opener() -> urllib.request.OpenerDirector:
    """urllib without its file:, ftp: and data: handlers, so that a redirect cannot reach them either."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    opener.addheaders = [("User-Agent", "hf-captioners"), ("Accept", "image/*,*/*;q=0.5")]
    return opener


def _read_url(url: str, max_bytes: int, timeout: float) -> bytes:
    ascii_url = urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")
    try:
        with _url_opener().open(ascii_url, timeout=timeout) as response:
            expected = int(response.headers.get("Content-Length") or -1)
            if expected > max_bytes:
                raise ImageError(f"{expected} bytes, more than the {max_bytes} allowed")
            deadline = time.monotonic() + timeout
            body = bytearray()
            # read1 returns after one receive, so that a server which drips bytes is noticed
            while len(body) <= max_bytes and (chunk := response.read1(_URL_CHUNK)):
                body += chunk
                if time.monotonic() > deadline:
                    raise ImageError(f"not delivered within {timeout} seconds")
    except ImageError:
        raise
    except urllib.error.HTTPError as error:
        raise ImageError(f"HTTP status {error.code} ({error.reason})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ImageError(f"cannot be fetched ({error})") from error
    if len(body) < expected:
        raise ImageError(f"the connection closed after {len(body)} of {expected} bytes")
    return bytes(body)


@functools.cache
def _readable_formats() -> tuple[str, ...]:
    """Those of `ALLOWED_FORMATS` that this PIL has a reader for (the reader of JPEG opens MPO, too)."""
    Image.init()
    return tuple(name for name in ALLOWED_FORMATS if name in Image.OPEN)


def _open_header(data: bytes) -> Image.Image:
    """Parses the header; nothing is decoded yet."""
    try:
        return Image.open(io.BytesIO(data), formats=_readable_formats())
    except Image.UnidentifiedImageError:
        formats = ", ".join(_readable_formats())
        raise ImageError(f"not a readable picture in one of the accepted formats ({formats})") from None
    except _DECODER_ERRORS as error:
        raise ImageError(str(error) or type(error).__name__) from error


def _decode(image: Image.Image, max_pixels: int, rgb: bool) -> Image.Image:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise ImageError(f"{width} x {height} pixels, more than the {max_pixels} allowed")
    try:
        image.load()
    except _DECODER_ERRORS as error:
        raise ImageError(f"broken or truncated picture ({error or type(error).__name__})") from error
    try:
        image = ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        # The pixels are fine and only the metadata is damaged: taken as upright, as viewers do.
        image = image.copy()
    return to_rgb(image) if rgb else image
