"""Preparation of pictures for the captioners."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend, TorchvisionBackend
from transformers.image_transforms import get_resize_output_image_size, normalize, rescale
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)
from transformers.processing_utils import ImagesKwargs

from .captioner_image_io import open_image, to_rgb
from .captioner_image_limits import MAX_PIXELS, ImageError, limit_of
from .captioner_image_source import ImageSource, describe_source

_SMALL = 2**20
"""Pixels up to which a picture is not resized before its batch is."""
_CHANNELS_FIRST: Any = dict.fromkeys(("data_format", "input_data_format"), ChannelDimension.FIRST)


def open_for_processor(source: ImageSource, image_processor: Any, **limits: Any) -> Image.Image:
    """Open a picture for an image processor: in RGB, or in its own mode where the processor has to see that.

    Args:
        source (`ImageSource`): see `open_image`.
        image_processor (`BaseImageProcessor`): what will prepare the picture.
        limits: further arguments of `open_image`.

    Returns:
        `PIL.Image.Image`

    Raises:
        ImageError: see `open_image`; a picture so narrow that scaling its shorter side to the processor's size would
            make gigabytes of it (1 x 60000 pixels fit into a few kilobytes).
    """
    settings = vars(image_processor)  # what `to_dict` would copy, for each picture
    image = open_image(source, rgb=not settings.get("black_non_rgb", False), **limits)
    edge = dict(settings.get("size") or {}).get("shortest_edge")
    if edge and edge**2 * max(image.size) > limit_of("pixels", MAX_PIXELS) * min(image.size):
        width, height = image.size
        raise ImageError(
            f"{describe_source(source)}: {width} x {height} pixels are too narrow a picture to scale to {edge}"
        )
    return image


def open_resized(source: ImageSource, image_processor: Any, **limits: Any) -> Image.Image:
    """Open a picture for a batch: as `open_for_processor`, and a large one at the size that its processor gives it.

    The processor makes the same `pixel_values` of it to the last bit: its own conversion and its own resizing come
    first in its preprocessing, and resizing once more to the same size changes nothing. What is gained is memory: a
    batch waits as pictures of the processor's size (or up to a megapixel), however many pixels they had.

    Args:
        source (`ImageSource`): see `open_image`.
        image_processor (`BaseImageProcessor`): what will prepare the picture, without other options in that call.
        limits: further arguments of `open_image`.

    Returns:
        `PIL.Image.Image`: as of `open_for_processor` if it is small or not RGB, or if the processor has a resizing
        or an order of its own.

    Raises:
        ImageError: see `open_for_processor`.
    """
    image = open_for_processor(source, image_processor, **limits)
    is_large = image.width * image.height > _SMALL
    is_plain = image.mode == "RGB" and not image.has_transparency_data
    return _resized(image, image_processor) if is_large and is_plain and _resizes_first(image_processor) else image


def _resized(image: Image.Image, image_processor: Any) -> Image.Image:
    """A picture at the size that an image processor which `_resizes_first` gives it."""
    size = SizeDict(**dict(image_processor.size))
    in_torch = isinstance(image_processor, TorchvisionBackend)
    if in_torch:
        pixels = image_processor.process_image(image)  # (3, H, W)
        pixels = image_processor.resize(pixels, size, resample=image_processor.resample)  # (3, height, width)
        return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()))
    shape: Any = (size.height, size.width)
    if size.shortest_edge:
        no_pixels = np.broadcast_to(np.uint8(0), (3, image.height, image.width))  # takes no memory
        shape = get_resize_output_image_size(
            no_pixels, size.shortest_edge, default_to_square=False, input_data_format=ChannelDimension.FIRST
        )
    # `PilBackend.resize` makes a PIL picture of its array and resizes that: the same without the copies
    return image.resize((shape[1], shape[0]), image_processor.resample)


def _resizes_first(image_processor: Any) -> bool:
    """Tell whether an image processor begins with a resizing, for which a picture of its size is left as it is."""
    # `_preprocess` is where transformers' image processors put an order of their own; there is no public name for that.
    cls = type(image_processor)
    for backend in (PilBackend, TorchvisionBackend):
        if issubclass(cls, backend) and image_processor.do_resize:
            size = {name for name, pixels in dict(image_processor.size).items() if pixels}
            usual = cls.resize in (backend.resize, CaptionerImageProcessor.resize)
            usual = usual and cls._preprocess in (backend._preprocess, CaptionerImageProcessor._preprocess)
            return usual and size in ({"height", "width"}, {"shortest_edge"})
    return False


class CaptionerImagesKwargs(ImagesKwargs, total=False):
    """Options of [`CaptionerImageProcessor`] beyond those of every image processor.

    Args:
        black_non_rgb (`bool`): see [`CaptionerImageProcessor`].
    """

    black_non_rgb: bool


class CaptionerImageProcessor(PilBackend):
    """Resize to a fixed size without keeping the aspect ratio, scale to [0, 1], normalise.

    With the defaults this is the preprocessing of ExpansionNet v2 (specification of the original, section 12), equal
    to the last bit: PIL's antialiased bilinear filter, 384 x 384, ImageNet mean and deviation. Pictures of other modes
    (grey, alpha, palette, CMYK, 16 bit) are converted by `to_rgb`.

    Args:
        size (`dict`, defaults to `{"height": 384, "width": 384}`): pixels.
        image_mean, image_std (`list[float]`): per channel.
        black_non_rgb (`bool`, defaults to `False`): the original code replaced every picture that is not RGB by a
            black one. `True` does the same, to reproduce its published numbers.
        kwargs: further options of transformers' image processors.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_captioners import CaptionerImageProcessor
    >>> processor = CaptionerImageProcessor(size={"height": 96, "width": 96})
    >>> processor(Image.new("L", (640, 480)), return_tensors="pt").pixel_values.shape
    torch.Size([1, 3, 96, 96])

    ```
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"height": 384, "width": 384}
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    black_non_rgb = False
    model_input_names = ["pixel_values"]
    valid_kwargs = CaptionerImagesKwargs

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open paths and URLs (or lists of them) with `open_image`; pictures pass."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(url) for url in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, Path)):
            # in its own mode: an option of the call may ask for black pictures
            return open_image(image_url_or_urls, rgb=False)
        return image_url_or_urls

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, black_non_rgb: bool | None = None, **kwargs: Any
    ) -> np.ndarray:
        """A picture as an RGB array (3, height, width); arrays are handled as in transformers."""
        if do_convert_rgb and isinstance(image, Image.Image):
            black = black_non_rgb and image.mode != "RGB"
            image = Image.new("RGB", image.size) if black else to_rgb(image)
            return np.asarray(image).transpose(2, 0, 1)  # (3, height, width), not to be written to
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

    def resize(self, image: np.ndarray, size: SizeDict, *args: Any, **kwargs: Any) -> np.ndarray:
        """As in transformers, without making a PIL picture of one that has its size, which changes nothing."""
        wanted = {name: pixels for name, pixels in dict(size).items() if pixels}
        if image.dtype == np.uint8 and wanted == dict(zip(("height", "width"), image.shape[1:], strict=True)):
            return image
        return super().resize(image, size, *args, **kwargs)

    def _preprocess(self, images: list[np.ndarray], *args: Any, **kwargs: Any) -> BatchFeature:
        """As in transformers; 8-bit pictures are scaled and normalised by a table of the 256 results, in one pass."""
        steps = {name: kwargs[name] for name in ("do_rescale", "do_normalize")}
        if kwargs["do_pad"] or not any(steps.values()) or any(image.dtype != np.uint8 for image in images):
            return super()._preprocess(images, *args, **kwargs)
        unscaled = {**kwargs, **dict.fromkeys(steps, False), "return_tensors": None}
        sized: list[np.ndarray] = super()._preprocess(images, *args, **unscaled)["pixel_values"]
        scale = kwargs["rescale_factor"] if kwargs["do_rescale"] else None
        moments = (kwargs["image_mean"], kwargs["image_std"]) if kwargs["do_normalize"] else None
        return BatchFeature({"pixel_values": _by_table(sized, scale, moments)}, tensor_type=kwargs["return_tensors"])


def _by_table(
    images: list[np.ndarray], scale: float | None, moments: tuple[Any, Any] | None
) -> np.ndarray | list[np.ndarray]:
    """8-bit pictures (channels, height, width), scaled and normalised: in one array if they are of one shape."""
    shapes = {image.shape for image in images}
    first = _table(len(images[0]), scale, moments)
    scaled: Any = (
        np.empty((len(images), *images[0].shape), first.dtype)
        if len(shapes) == 1
        else [np.empty(image.shape, first.dtype) for image in images]
    )
    for image, values in zip(images, scaled, strict=True):
        for channel, results in enumerate(_table(len(image), scale, moments)):
            np.take(results, image[channel], out=values[channel], mode="wrap")  # the mode that is fastest
    return scaled


@functools.lru_cache(maxsize=16)
def _table(channels: int, scale: float | None, moments: tuple[Any, Any] | None) -> np.ndarray:
    """Results of transformers for each value of 8 bits, in each channel: (channels, 256)."""
    values = np.tile(np.arange(256, dtype=np.uint8), (channels, 1, 1))  # a picture of 256 x 1 pixels
    if scale is not None:
        values = rescale(values, scale, **_CHANNELS_FIRST)
    if moments is not None:
        values = normalize(values, *moments, **_CHANNELS_FIRST)
    return values.reshape(channels, 256)
