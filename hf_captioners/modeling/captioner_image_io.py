"""Opening pictures from outside, within limits: the one place of the project that decodes an image.

`open_image` takes a path, an http(s) URL, base64 text, a data: URI, bytes, a file object, a PIL image or the
`{"path", "bytes"}` dict of `datasets` and returns an upright 8-bit RGB picture, or raises `ImageError` naming the
source and the reason. `to_rgb` is its last step and also serves pictures that the caller opened.

What happens to a source, in order:

1. its bytes are read, at most `max_bytes` of them (`captioner_image_source`);
2. the header is read by one of the decoders on the list only, and what it declares is compared with `max_pixels`, the
   number of scans and the limits of its format (`captioner_image_format`);
3. the first frame is decoded completely; a truncated file is an error;
4. the EXIF orientation is applied, then `to_rgb`.

PIL's module globals are left as they are: `MAX_IMAGE_PIXELS` keeps guarding with its own, looser limit, and a program
that sets `ImageFile.LOAD_TRUNCATED_IMAGES` gets what it asked for. Colour profiles (ICC) are not applied.
"""

import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

from .captioner_image_format import open_header
from .captioner_image_limits import MAX_BYTES, MAX_PIXELS, MAX_SCANS, ImageError, limit_of, shorten, too_many
from .captioner_image_source import ImageSource, describe_source, read_source

_DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
_ROWS = 256
_WHITE = (255, 255, 255, 255)

# What PIL's parsers and decoders let out on damaged or hostile bytes. MemoryError is not here: it tells nothing about
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


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert a PIL image of any mode to 8-bit RGB.

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
            return _on_white(image)
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise ImageError(f"an image of mode {image.mode} cannot be converted to RGB: {error}") from error


def _on_white(image: Image.Image) -> Image.Image:
    """Composite a picture with transparency on white; in strips, as PIL needs three pictures of four bytes a pixel."""
    opaque = Image.new("RGB", image.size)
    for top in range(0, image.height, _ROWS):
        strip = image.crop((0, top, image.width, min(top + _ROWS, image.height)))
        if strip.mode == "La":  # PIL knows La -> LA, but not La -> RGBA
            strip = strip.convert("LA")
        strip = strip.convert("RGBA")
        opaque.paste(Image.alpha_composite(Image.new("RGBA", strip.size, _WHITE), strip).convert("RGB"), (0, top))
    return opaque


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Scale a 16-bit, 32-bit or float image to mode "L" (see `to_rgb`)."""
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
    grey = np.empty(values.shape, np.uint8)
    for top in range(0, len(values), _ROWS):  # the exact values of a whole picture would take up to 24 bytes a pixel
        rows = slice(top, top + _ROWS)
        grey[rows] = np.rint(np.subtract(values[rows], offset, dtype=exact) * scale)
    if isinstance(key := image.info.get("transparency"), int):  # the transparent grey level of a 16-bit PNG
        grey[values == key] = 255
    return Image.fromarray(grey)


def open_image(
    source: ImageSource,
    *,
    max_bytes: int | None = None,
    max_pixels: int | None = None,
    timeout: float = 10.0,
    rgb: bool = True,
) -> Image.Image:
    """Open a picture from outside and return its first frame, upright, as 8-bit RGB.

    The formats: JPEG, PNG (also APNG), WebP, GIF, BMP, TIFF, JPEG 2000, Netpbm, AVIF where PIL has it, and HEIC where
    `pillow-heif` is installed. The content decides, not the name. Safe to call from several threads.

    Args:
        source (`str`, `os.PathLike`, `bytes`, file object, `PIL.Image.Image` or `dict`):
            A path; a URL of the scheme http or https; base64 text, alone or in a data: URI; the encoded bytes; a binary
            file object (read from its start if it can be rewound); a PIL image (its present frame is taken, no limit of
            bytes or formats applies); or the dict of a `datasets.Image` that is not decoded, `{"path": str or None,
            "bytes": bytes or None}`, where the bytes win. A URL is fetched wherever it points, also into a private
            network: a server which takes URLs, or paths, from strangers has to check them first.
        max_bytes (`int`, *optional*, defaults to 64 MiB):
            Largest encoded size, in bytes; without it `HF_CAPTIONERS_MAX_IMAGE_BYTES` of the environment holds.
        max_pixels (`int`, *optional*, defaults to 64 * 2**20):
            Largest width times height, in pixels; without it `HF_CAPTIONERS_MAX_IMAGE_PIXELS` of the environment holds.
            PIL's own limit (`2 * PIL.Image.MAX_IMAGE_PIXELS`) holds besides.
        timeout (`float`, *optional*, defaults to 10.0):
            Seconds that the whole exchange with a server may take.
        rgb (`bool`, *optional*, defaults to `True`):
            Convert to RGB; `False` leaves the picture in its own mode.

    Returns:
        `PIL.Image.Image`: decoded.

    Raises:
        [`ImageError`]: the source is missing, unreadable, empty, truncated, not an image, in another format than
            those above, over a limit, or without pixels.
        `TypeError`: the source is of none of the types above.
        `ValueError`: an environment variable with a limit is no positive integer.

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
    max_bytes = limit_of("bytes", MAX_BYTES) if max_bytes is None else max_bytes
    max_pixels = limit_of("pixels", MAX_PIXELS) if max_pixels is None else max_pixels
    try:
        if isinstance(source, Image.Image):
            return _decode(source, max_pixels, rgb)
        data = read_source(source, max_bytes, timeout)
        with _header(data, max_pixels) as image:
            return _decode(image, max_pixels, rgb)
    except ImageError as error:
        raise ImageError(f"{describe_source(source)}: {error}") from error


def _header(data: bytes, max_pixels: int) -> Image.Image:
    max_scans = limit_of("scans", MAX_SCANS)
    try:
        return open_header(data, max_scans, max_pixels)
    except ImageError:
        raise
    except _DECODER_ERRORS as error:
        raise ImageError(shorten(str(error)) or type(error).__name__) from error


def _decode(image: Image.Image, max_pixels: int, rgb: bool) -> Image.Image:
    _check_size(image, max_pixels)
    try:
        image.load()
    except _DECODER_ERRORS as error:
        raise ImageError(f"broken or truncated picture ({shorten(str(error)) or type(error).__name__})") from error
    _check_size(image, max_pixels)  # of HEIC the decoder may report another size
    try:
        image = ImageOps.exif_transpose(image)
    except _DECODER_ERRORS:
        # The pixels are fine and only the metadata is damaged: taken as upright, as viewers do.
        image = image.copy()
    return to_rgb(image) if rgb else image


def _check_size(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise ImageError(f"no pixels: {width} x {height}")
    if width * height > max_pixels:
        raise too_many(f"{width} x {height}", max_pixels, "pixels")
