"""Preparation of images for the bottom-up detector."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import PILImageResampling, SizeDict
from transformers.processing_utils import ImagesKwargs

from .captioner_image_io import open_image, to_rgb
from .captioner_image_limits import ImageError
from .captioner_shipping import registered

SMALLEST_SIDE = 3  # pixels of the resized image, from which the network has a cell
RESIZE_RULES = ("caffe", "torch", "pil")

# of blue, green and red
_CAFFE_MEAN = (102.9801, 115.9465, 122.7717)
_VINVL_MEAN = (103.530, 116.280, 123.675)

PRESETS: dict[str, dict[str, Any]] = {
    "caffe": {"resize_rule": "caffe"},
    "frcnn": {"resize_rule": "torch"},
    "vinvl": {"resize_rule": "pil", "image_mean": list(_VINVL_MEAN)},
}


class BottomUpImagesKwargs(ImagesKwargs, total=False):
    """Options of [`BottomUpImageProcessor`] beyond those of every image processor.

    Args:
        resize_rule (`str`): see [`BottomUpImageProcessor`].
    """

    resize_rule: str


class BottomUpImageProcessor(PilBackend):
    """Scale the shorter side, subtract the mean of every channel, order the channels blue, green, red, and pad.

    Values stay between 0 and 255. The defaults are those of preset `caffe`.

    Args:
        size (`dict`, defaults to `{"shortest_edge": 600, "longest_edge": 1000}`): the shorter side becomes the first,
            unless the longer one would exceed the second.
        resize_rule (`str`, defaults to `"caffe"`): whose arithmetic. `"caffe"` subtracts the mean first and resizes as
            OpenCV does by one factor, without antialiasing; `"torch"` resizes to whole pixels without antialiasing, and
            then normalises; `"pil"` resizes 8-bit images with antialiasing.
        image_mean, image_std (`list[float]`): of blue, green and red.
        kwargs: further options of transformers' image processors.

    Example:

    ```python
    >>> from PIL import Image
    >>> from hf_captioners import BottomUpImageProcessor
    >>> inputs = BottomUpImageProcessor()(Image.new("RGB", (640, 480)), return_tensors="pt")
    >>> inputs.pixel_values.shape, inputs.image_sizes.tolist(), inputs.scales.tolist()
    (torch.Size([1, 3, 600, 800]), [[600, 800]], [[1.25, 1.25]])

    ```
    """

    image_mean = list(_CAFFE_MEAN)
    image_std = [1.0, 1.0, 1.0]
    size = {"shortest_edge": 600, "longest_edge": 1000}
    default_to_square = False
    resample = PILImageResampling.BILINEAR  # of all rules; which points it reads is the rule's
    resize_rule = "caffe"
    do_resize = True
    do_rescale = False
    do_normalize = True
    do_convert_rgb = True
    model_input_names = ["pixel_values", "image_sizes", "original_sizes", "scales"]
    valid_kwargs = BottomUpImagesKwargs

    @classmethod
    def from_preset(cls, name: str, **changes: Any) -> BottomUpImageProcessor:
        """Make the image processor of a convention of [`BottomUpConfig`].

        Args:
            name (`str`): `"caffe"`, `"frcnn"` or `"vinvl"`, with or without `-36`, which makes no difference here.
            changes: settings that are to differ from it.

        Raises:
            ValueError: there is no such preset.
        """
        preset = name.removesuffix("-36")
        if preset not in PRESETS:
            raise ValueError(f"preset {name!r} is not known; expected one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[preset], **changes})

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open paths and URLs (or lists of them) with `open_image`; images pass."""
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(image) for image in image_url_or_urls]
        if isinstance(image_url_or_urls, (str, Path)):
            return open_image(image_url_or_urls)
        return image_url_or_urls

    def process_image(self, image: Any, do_convert_rgb: bool | None = None, **kwargs: Any) -> np.ndarray:
        """An image as an RGB array (3, height, width); arrays are handled as in transformers."""
        if do_convert_rgb and isinstance(image, Image.Image):
            image = to_rgb(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, ship_code: bool = False, **kwargs: Any) -> Any:
        """Save as in transformers; with `ship_code=True` beside a detector that ships its code too.

        Args:
            save_directory (`str` or `Path`): the folder.
            ship_code (`bool`, defaults to `False`): also save this code, for `trust_remote_code=True`.
        """
        if self._auto_class is None:  # forget the code that an earlier save or the folder it came from had
            vars(self).pop("auto_map", None)
        with registered({type(self): "AutoImageProcessor"}) if ship_code else contextlib.nullcontext():
            return super().save_pretrained(save_directory, *args, **kwargs)

    def _preprocess(
        self,
        images: list[np.ndarray],
        size: SizeDict,
        resize_rule: str,
        image_mean: Any,
        image_std: Any,
        do_resize: bool,
        do_normalize: bool,
        return_tensors: Any,
        **kwargs: Any,
    ) -> BatchFeature:
        if resize_rule not in RESIZE_RULES:
            raise ValueError(f"resize_rule must be one of {', '.join(RESIZE_RULES)}, not {resize_rule!r}")
        mean, std = (image_mean, image_std) if do_normalize else ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        pixels, scales = [], []
        for image in images:
            height, width = image.shape[1:]
            target, scale = (
                target_size(height, width, size, resize_rule) if do_resize else ((height, width), (1.0, 1.0))
            )
            pixels.append(_resize(_blue_green_red(image), target, scale[0], resize_rule, mean, std))
            scales.append(scale)
        sizes = np.array([values.shape[1:] for values in pixels], dtype=np.int64)
        batch = torch.zeros(len(pixels), 3, *sizes.max(0).tolist())
        for row, values in zip(batch, pixels, strict=True):
            row[:, : values.shape[1], : values.shape[2]] = values
        data = {
            "pixel_values": batch.numpy(),
            "image_sizes": sizes,
            "original_sizes": np.array([image.shape[1:] for image in images], dtype=np.int64),
            "scales": np.array(scales, dtype=np.float32),
        }
        return BatchFeature(data, tensor_type=return_tensors)


def target_size(height: int, width: int, size: SizeDict, rule: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """Height and width after resizing, and the factors by which coordinates grow.

    Args:
        height (`int`), width (`int`): of the image.
        size (`SizeDict`): `shortest_edge` and `longest_edge`.
        rule (`str`): as `resize_rule` of [`BottomUpImageProcessor`].

    Returns:
        `tuple[tuple[int, int], tuple[float, float]]`: height and width, and the factor of each; with `"caffe"` both are
        the exact one.

    Raises:
        ImageError: a side would have less than 3 pixels.
    """
    short, long = min(height, width), max(height, width)
    edge, limit = size.shortest_edge, size.longest_edge
    if not edge or not limit:
        raise ValueError(f"size must have shortest_edge and longest_edge, not {dict(size)}")
    if rule == "caffe":
        scale = edge / short if round(edge / short * long) <= limit else limit / long
        target = round(height * scale), round(width * scale)
    elif rule == "torch":
        scale = edge / short
        high, wide = (edge, scale * width) if height < width else (scale * height, edge)
        shrink = min(1.0, limit / max(high, wide))
        target = int(high * shrink + 0.5), int(wide * shrink + 0.5)
    else:
        edge = edge if long / short * edge <= limit else round(limit * short / long)
        target = (int(edge * height / width), edge) if width < height else (edge, int(edge * width / height))
    if min(target) < SMALLEST_SIDE:
        raise ImageError(
            f"an image of {width} x {height} pixels is too narrow: resized to {target[1]} x {target[0]}, where the "
            f"detector needs {SMALLEST_SIDE} or more"
        )
    return target, (scale, scale) if rule == "caffe" else (target[0] / height, target[1] / width)


def _blue_green_red(image: np.ndarray) -> np.ndarray:
    """Channels (3, height, width) of an RGB or grey image (3 or 1, height, width) in the network's order."""
    if image.shape[0] not in (1, 3):
        raise ValueError(f"an image must have 1 or 3 channels, not {image.shape[0]}")
    return np.broadcast_to(image, (3, *image.shape[1:]))[::-1]


def _resize(channels: np.ndarray, target: tuple[int, int], scale: float, rule: str, mean: Any, std: Any) -> Tensor:
    """Resized and normalised channels (3, height, width)."""
    if rule == "pil":
        resized = [_resize_8_bit(channel, target) for channel in channels]
        return torch.stack([_centre(*channel) for channel in zip(resized, mean, std, strict=True)])
    if rule == "torch":
        values = torch.from_numpy(channels.astype(np.float32))
        if values.shape[1:] != target:
            values = F.interpolate(values[None], size=target, mode="bilinear", align_corners=False)[0]
        return (values - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    planes = []
    for channel in zip(channels, mean, std, strict=True):  # by itself, for memory
        rows = _interpolate(_centre(*channel), target[1], scale)  # (height, new width)
        planes.append(_interpolate(rows.t(), target[0], scale).t())
    return torch.stack(planes)


def _resize_8_bit(channel: np.ndarray, target: tuple[int, int]) -> np.ndarray:
    if channel.dtype != np.uint8:
        raise ValueError(f'resize_rule="pil" needs 8-bit images, not {channel.dtype}')
    return np.asarray(Image.fromarray(channel).resize(target[::-1], Image.Resampling.BILINEAR))


def _centre(channel: np.ndarray, mean: float, std: float) -> Tensor:
    """A channel without its mean, subtracted in float64 and rounded once."""
    if channel.dtype == np.uint8:  # without a copy of the image in float64
        table = ((np.arange(256) - mean) / std).astype(np.float32)
        return torch.from_numpy(table[channel])
    return torch.from_numpy(((channel.astype(np.float64) - mean) / std).astype(np.float32))


def _interpolate(values: Tensor, count: int, scale: float) -> Tensor:
    """Values `(rows, n)` at `count` places of the last axis, as OpenCV's resize by a factor finds them."""
    last = values.shape[1] - 1
    position = (torch.arange(count, dtype=torch.float64) + 0.5) / scale - 0.5
    low = position.floor()
    share = torch.where((low < 0) | (low >= last), 0.0, position - low).float()
    first = low.long().clamp(0, last)
    second = (first + 1).clamp(max=last)
    return values[:, first] * (1 - share) + values[:, second] * share
