"""Captioned images for the contrastive training of a small CLIP: feature maps of images, and batches of pairs.

What the frozen layers of the backbone make of an image never changes, so it is computed once, of each image and of some
random crops of it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BaseImageProcessor, MobileNetV2Model, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ..data.progress import progress
from ..metrics.clip.clip_score import PREFIX
from ..modeling.image_processing_captioner import open_for_processor


def layers_of(backbone: MobileNetV2Model) -> list[nn.Module]:
    """Layers of a MobileNetV2 in their order, before it takes the mean."""
    return [backbone.conv_stem, *backbone.layer, backbone.conv_1x1]


class LastLayers(nn.Module):
    """The last layers of a MobileNetV2 as a vision tower of its own. They are the backbone's, not copies.

    Args:
        backbone (`MobileNetV2Model`): all of it.
        number (`int`): how many of its layers belong to the tower; with none, what is left is the mean.
        dropout (`float`, defaults to 0): of the pooled output, in training.
    """

    def __init__(self, backbone: MobileNetV2Model, number: int, dropout: float = 0.0) -> None:
        super().__init__()
        layers = layers_of(backbone)
        self.layer = nn.ModuleList(layers[len(layers) - number :])
        self.dropout = nn.Dropout(dropout)

    def train(self, mode: bool = True) -> LastLayers:
        """Batch norm keeps the statistics of the pretraining: those of a few pictures are worse."""
        super().train(mode)
        self.layer.eval()
        return self

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """The pooled output; in the place of pixels it takes the maps of [`feature_maps`]."""
        hidden = pixel_values.float()
        for layer in self.layer:
            hidden = layer(hidden)
        pooled = self.dropout(hidden.mean((2, 3)))
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)


@torch.no_grad()
def feature_maps(backbone: MobileNetV2Model, number: int, pixel_values: Tensor) -> Tensor:
    """Output of the layers before [`LastLayers`]: float16 of shape (images, channels, height, width)."""
    layers = layers_of(backbone)
    hidden = pixel_values
    for layer in layers[: len(layers) - number]:
        hidden = layer(hidden)
    if not number:
        hidden = hidden.mean((2, 3), keepdim=True)  # takes less room, and its mean is the same
    return hidden.half()


def random_crop(image: Image.Image, smallest: float) -> Image.Image:
    """A part of the image in the shape of the image, mirrored or not: few captions say left or right."""
    scale = random.uniform(smallest, 1.0) ** 0.5
    width, height = (max(1, round(side * scale)) for side in image.size)
    left, top = random.randint(0, image.width - width), random.randint(0, image.height - height)
    part = image.crop((left, top, left + width, top + height))
    return part if random.random() < 0.5 else part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)


class MappedImages(torch.utils.data.Dataset):
    """Captions of images with the feature maps of the images, computed here.

    Args:
        rows (`Dataset`): with `image` and `captions`.
        backbone (`MobileNetV2Model`): whose first layers make the maps.
        image_processor (`BaseImageProcessor`): prepares the images.
        number (`int`): layers that learn, and do not belong to the first ones.
        views (`int`, defaults to 1): of each image: itself, and random crops.
        smallest_crop (`float`, defaults to 1.0): least share of the image in a crop.
    """

    def __init__(
        self,
        rows: Any,
        backbone: MobileNetV2Model,
        image_processor: BaseImageProcessor,
        number: int,
        views: int = 1,
        smallest_crop: float = 1.0,
    ) -> None:
        self.captions: list[list[str]] = list(rows["captions"])
        maps = []
        for source in progress(rows["image"], desc="feature maps", unit="image"):
            image = open_for_processor(source, image_processor)
            crops = [random_crop(image, smallest_crop) for _ in range(views - 1)]
            pixels = image_processor(images=[image, *crops], return_tensors="pt")["pixel_values"]
            maps.append(feature_maps(backbone, number, pixels))
        self.maps = torch.stack(maps)  # [images, views, channels, height, width]

    def __len__(self) -> int:
        return len(self.captions)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"maps": self.maps[row], "captions": self.captions[row]}


class PairCollator:
    """A view of each image and one of its captions, with words left out.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): of the captions.
        word_dropout (`float`): share of words that become the unknown word, which so gets a meaning.
        prefix_rate (`float`): share of captions with the prefix of CLIP-S.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, word_dropout: float, prefix_rate: float) -> None:
        self.tokenizer = tokenizer
        self.word_dropout = word_dropout
        self.prefix_rate = prefix_rate

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """`pixel_values`, `input_ids`, `attention_mask`, and `return_loss` for the contrastive loss."""
        maps = torch.stack([random.choice(row["maps"]) for row in rows])
        captions = [self._prefix() + random.choice(row["captions"]) for row in rows]
        inputs = self.tokenizer(
            captions, padding=True, truncation=True, return_special_tokens_mask=True, return_tensors="pt"
        )
        ids = inputs["input_ids"]
        left_out = (torch.rand(ids.shape) < self.word_dropout) & ~inputs["special_tokens_mask"].bool()
        ids = ids.masked_fill(left_out, self.tokenizer.unk_token_id)
        return {
            "pixel_values": maps,
            "input_ids": ids,
            "attention_mask": inputs["attention_mask"],
            "return_loss": True,
        }

    def _prefix(self) -> str:
        return PREFIX if random.random() < self.prefix_rate else ""
