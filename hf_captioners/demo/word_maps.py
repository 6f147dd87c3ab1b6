"""Heat maps of where each word of a caption looked, over the picture that the captioner saw.

Cross-attention where a captioner has it; else gradient times feature, or, where a picture is a single vector, gradient
times pixel. They are not the same thing, and each map says which it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..families.captioner import CaptionerFamily
from ..families.transformers_family import TransformersFamily
from ..modeling.captioner_image_io import open_image
from .shown_captioner import Candidate, ShownCaptioner

ATTENTION = "cross-attention, the mean of layers and heads"
FEATURE = "gradient times feature, where positive"
PIXEL = "gradient times pixel, where positive"
_CELLS = 14  # of a map of pixels, on a side
_LARGEST = 512  # pixels of a side of a view


@dataclass(frozen=True)
class WordMaps:
    """Heat maps of a caption's words.

    Args:
        method (`str`): what they show.
        words (`list[str]`): of the caption.
        maps (`np.ndarray` of shape `(words, height, width)`): of each word, at least 0 and at most 1; the largest is 1
            unless all are 0.
        view (`PIL.Image.Image`): the picture as the captioner saw it.
    """

    method: str
    words: list[str]
    maps: np.ndarray
    view: Image.Image

    def pictures(self) -> list[tuple[Image.Image, str]]:
        """The maps over the picture, with their words."""
        return [(with_heat(self.view, heat), word) for heat, word in zip(self.maps, self.words, strict=True)]


def word_maps(
    captioner: ShownCaptioner, image: Image.Image, candidate: Candidate, sentence: str | None = None
) -> WordMaps:
    """Find where each word of a caption looked.

    Args:
        captioner ([`ShownCaptioner`]): that wrote it.
        image (`PIL.Image.Image`): the picture.
        candidate ([`Candidate`]): the caption.
        sentence (`str`, *optional*): see `ShownCaptioner.inputs`.

    Returns:
        [`WordMaps`]

    Raises:
        ValueError: the captioner has neither attention nor gradients, as one that carries its own code.
    """
    if not isinstance(captioner.family, (CaptionerFamily, TransformersFamily)):
        raise ValueError(f"{captioner.name} carries its own code, whose attention is not known here")
    inputs = captioner.inputs(image, sentence)
    method, weights = _weights(captioner, inputs, candidate.ids)
    places = torch.tensor(_word_places(captioner, candidate.ids))
    by_word = [weights[: len(places)][places == word].mean(0) for word in places.unique().tolist()]
    words = candidate.caption.split()
    if "pixel_values" in inputs:
        view = seen_image(captioner.processor, inputs["pixel_values"][0])
        maps = [_on_grid(row, inputs["pixel_values"].shape[-2:]) for row in by_word]
    else:
        view = open_image(image)
        view.thumbnail((_LARGEST, _LARGEST))
        boxes = captioner.processor.detector.regions(image)[1] * (view.width / image.width)
        maps = [on_boxes(row.numpy(), boxes, view.size) for row in by_word]
    maps = [_scaled(heat) for heat in maps[: len(words)]]
    return WordMaps(method, words[: len(maps)], np.stack(maps) if maps else np.zeros((0, 1, 1)), view)


def _weights(captioner: ShownCaptioner, inputs: Any, ids: torch.Tensor) -> tuple[str, torch.Tensor]:
    """The method, and how much each token of a caption has to do with each place of the picture: (T - 1, places)."""
    if isinstance(captioner.family, CaptionerFamily):
        with torch.no_grad():
            attention = _cross_attention(captioner, inputs, ids)
        if attention is not None:
            return ATTENTION, attention
    return _gradients(captioner, inputs, ids)


def _cross_attention(captioner: ShownCaptioner, inputs: Any, ids: torch.Tensor) -> torch.Tensor | None:
    """Attention (T - 1, places) of each token, if the captioner has a decoder that looks at the picture."""
    model = captioner.model
    encoded = captioner.family.encode(model, captioner.family.image_inputs(model, inputs))
    words = {"labels": ids[:, 1:]} if captioner.denoises else {"decoder_input_ids": ids[:, :-1]}
    layers = model(encoder_outputs=encoded, output_attentions=True, **words).cross_attentions
    if not layers:
        return None
    return torch.stack([layer[0].float().mean(0) for layer in layers]).mean(0)[: ids.shape[1] - 1].cpu()


def _gradients(captioner: ShownCaptioner, inputs: Any, ids: torch.Tensor) -> tuple[str, torch.Tensor]:
    """Gradient of each token's log-probability times what the captioner sees, summed over channels."""
    family, model = captioner.family, captioner.model
    images = family.image_inputs(model, inputs)
    others = {name: value for name, value in images.items() if name not in ("pixel_values", "image_features")}
    with torch.no_grad():
        features = (
            images["image_features"] if "image_features" in images else _tokens(captioner, images["pixel_values"])
        )
    if features is not None and features.shape[1] > 2:
        seen, name, method = features, "image_features", FEATURE
    elif "pixel_values" in images:
        seen, name, method = images["pixel_values"], "pixel_values", PIXEL
    else:
        raise ValueError(f"{captioner.name} sees one vector a picture, in which there are no places")
    with torch.enable_grad():
        seen = seen.detach().clone().requires_grad_()
        learning = [parameter.requires_grad for parameter in model.parameters()]
        model.requires_grad_(name == "pixel_values")  # a frozen backbone passes no gradient on
        try:
            log_probs = family.log_probs(model, ids.clone(), family.encode(model, {name: seen, **others}))[0][0]
            found = [torch.autograd.grad(one, seen, retain_graph=True)[0] for one in log_probs]
        finally:
            for parameter, learns in zip(model.parameters(), learning, strict=True):
                parameter.requires_grad_(learns)
    product = torch.stack([(gradient * seen).detach()[0] for gradient in found]).float()
    if method == FEATURE:
        return method, product.sum(-1).clamp(min=0).cpu()
    cells = torch.nn.functional.adaptive_avg_pool2d(product.sum(1, keepdim=True), _CELLS)
    return method, cells.flatten(1).clamp(min=0).cpu()


def _tokens(captioner: ShownCaptioner, pixel_values: torch.Tensor) -> torch.Tensor | None:
    """Tokens (1, tokens, width) that the backbone makes of a picture."""
    if isinstance(captioner.family, CaptionerFamily):
        tokens: torch.Tensor = captioner.model.extract_image_features(pixel_values)
        return tokens
    if isinstance(captioner.family, TransformersFamily) and captioner.family.keeps_features:
        return captioner.family.look(captioner.model, pixel_values)
    return None


def _word_places(captioner: ShownCaptioner, ids: torch.Tensor) -> list[int]:
    """For each token behind the start token, up to the last that is of a word, the word that it is of."""
    ends = {*captioner.family.tokens.ends, captioner.family.tokens.pad_token_id}
    last = next((n for n, token in enumerate(ids[0, 1:].tolist()) if token in ends), ids.shape[1] - 1)
    begun = [captioner.family.decode(captioner.processor, ids[:, : n + 2])[0].split() for n in range(last)]
    return [max(len(words) - 1, 0) for words in begun]


def _on_grid(weights: torch.Tensor, size: Sequence[int]) -> np.ndarray:
    """Weights of places as a map of the picture's proportions; a class token before them is left out."""
    for skipped in (0, 1):
        number = len(weights) - skipped
        rows = max(round((number * size[0] / size[1]) ** 0.5), 1)
        if number and number % rows == 0 and abs(rows / (number // rows) - size[0] / size[1]) < 0.5:
            return weights[skipped:].view(rows, -1).numpy()
    raise ValueError(f"{len(weights)} places are no grid of a picture")


def on_boxes(weights: np.ndarray, boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Weights of regions as a map: a pixel has the mean of the regions that it is in.

    Args:
        weights (`np.ndarray` of shape `(regions,)`): of the regions.
        boxes (`np.ndarray` of shape `(regions or more, 4)`): x1, y1, x2, y2 in pixels.
        size (`tuple[int, int]`): width and height.

    Returns:
        `np.ndarray` of shape `(height, width)`

    Example:

    ```python
    >>> import numpy as np
    >>> from hf_captioners.demo.word_maps import on_boxes
    >>> on_boxes(np.array([0.2, 0.6]), np.array([[0, 0, 2, 1], [1, 0, 3, 1]]), (4, 1)).tolist()
    [[0.2, 0.4, 0.6, 0.0]]

    ```
    """
    total, count = np.zeros(size[::-1]), np.zeros(size[::-1])
    for weight, box in zip(weights, boxes, strict=False):
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        total[y1:y2, x1:x2] += weight
        count[y1:y2, x1:x2] += 1
    return total / np.maximum(count, 1)


def _scaled(heat: np.ndarray) -> np.ndarray:
    top = heat.max()
    return heat / top if top > 0 else heat * 0.0


def seen_image(processor: Any, pixels: torch.Tensor) -> Image.Image:
    """The picture that an image processor has made, as it was before normalisation.

    Args:
        processor (`ProcessorMixin`): with the image processor.
        pixels (`torch.Tensor` of shape `(3, height, width)`): of it.

    Returns:
        `PIL.Image.Image`
    """
    settings = processor.image_processor.to_dict()
    values = pixels.float().cpu()
    if settings.get("do_normalize"):
        mean, std = (torch.tensor(settings[name])[:, None, None] for name in ("image_mean", "image_std"))
        values = values * std + mean
    scale = 1 / settings.get("rescale_factor", 1 / 255) if settings.get("do_rescale", True) else 1.0
    array = (values * scale).clamp(0, 255).byte().permute(1, 2, 0).numpy()
    view = Image.fromarray(array)
    factor = _LARGEST / max(view.size)
    return view.resize((round(view.width * factor), round(view.height * factor)), Image.Resampling.BICUBIC)


def with_heat(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """A picture that is dark where a map is 0 and warm where it is 1.

    Args:
        image (`PIL.Image.Image`): RGB.
        heat (`np.ndarray` of shape `(height, width)`): 0 to 1, of any size.

    Returns:
        `PIL.Image.Image`: as large as the picture.
    """
    mask = Image.fromarray((heat * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    strength = np.asarray(mask, dtype=np.float32)[:, :, None] / 255
    warm = np.asarray(image.convert("RGB"), dtype=np.float32) * (0.3 + 0.7 * strength) + strength * [80.0, 20.0, 0.0]
    return Image.fromarray(warm.clip(0, 255).astype(np.uint8))
