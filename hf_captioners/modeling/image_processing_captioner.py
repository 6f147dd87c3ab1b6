"""Preparation of pictures for the captioners."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, PILImageResampling
from transformers.processing_utils import ImagesKwargs

from .captioner_image_io import MAX_PIXELS, ImageError, ImageSource, describe_source, open_image, to_rgb


def open_picture(source: ImageSource, image_processor: Any, **limits: Any) -> Image.Image:
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
    settings = image_processor.to_dict()
    picture = open_image(source, rgb=not settings.get("black_non_rgb", False), **limits)
    edge = (settings.get("size") or {}).get("shortest_edge")
    if edge and edge**2 * max(picture.size) > MAX_PIXELS * min(picture.size):
        width, height = picture.size
        raise ImageError(
            f"{describe_source(source)}: {width} x {height} pixels are too narrow a picture to scale to {edge}"
        )
    return picture


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
            return [self.fetch_images(one) for one in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, Path)):
            return open_picture(image_url_or_urls, self)
        return image_url_or_urls

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, black_non_rgb: bool | None = None, **kwargs: Any
    ) -> np.ndarray:
        """A picture as an RGB array (3, height, width); arrays are handled as in transformers."""
        if do_convert_rgb and isinstance(image, Image.Image):
            black = black_non_rgb and image.mode != "RGB"
            image = Image.new("RGB", image.size) if black else to_rgb(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)
