"""Models that read an image among the words of a prompt and write on: the base of PaliGemma and of chat models.

Their prompts may differ in length, since larger images have more tokens; they are padded on the left. The vision tower
runs once: its outputs are kept as they are, and what lies between it and the language model runs with gradient.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling.processing_captioner import open_row
from .base import CAPTIONS, SpecialTokens
from .model_parts import answering, behind_start, learns, repeated, without_adapters
from .transformers_family import TransformersFamily

_TEXT = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_SEEN = "tower_outputs"


class Prompted(NamedTuple):
    """B prompts with their images encoded.

    Args:
        text (`dict[str, torch.Tensor]`): `input_ids` (B, P), padded on the left, and what goes along with them.
        features (`ModelOutput`): image features in the width of the language model, in `pooler_output`.
        places (`dict[str, torch.Tensor]`): what else tells where image tokens are, a row per image.
    """

    text: dict[str, torch.Tensor]
    features: Any
    places: dict[str, torch.Tensor]


class PromptedFamily(TransformersFamily):
    """Base of such families.

    Attributes:
        caption_types (`dict[str, int]`): types of the caption's own tokens, by the name of the input.
        first_position (`int`): the position of the first token.
    """

    takes_prompt: ClassVar[bool] = True
    usual_length: ClassVar[int | None] = 64
    keeps_features: ClassVar[bool] = False
    caption_types: ClassVar[Mapping[str, int]] = {"token_type_ids": 0, "mm_token_type_ids": 0}
    first_position: ClassVar[int] = 0

    @classmethod
    def special_tokens(cls, model: Any) -> SpecialTokens:
        settings, text = vars(model.generation_config), model.config.get_text_config()
        end = text.eos_token_id if settings["eos_token_id"] is None else settings["eos_token_id"]
        if end is None:
            raise ValueError("model.generation_config.eos_token_id is None; set it to the tokenizer's eos_token_id.")
        pad = settings["pad_token_id"]
        if pad is None:
            pad = end[0] if isinstance(end, list) else end
        return SpecialTokens(end, pad, pad)

    # -- images and prompts ------------------------------------------------------------------------------------------

    def prompt_text(self, processor: Any) -> str:
        """The prompt as the processor reads it, with the place of the image in it."""
        raise NotImplementedError(f"{type(self).__name__} must define prompt_text.")

    def prepare_rows(self, processor: Any, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        text = [self.prompt_text(processor)] * len(rows)
        images = [[open_row(processor, row)["image"]] for row in rows]  # a list for each prompt
        inputs = processor(images=images, text=text, padding=True, padding_side="left", return_tensors="pt", **kwargs)
        inputs.pop("labels", None)  # PaliGemma's, of no caption
        self.check_ids(processor, inputs)
        return inputs

    def image_inputs(self, model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Everything that the processor made; `input_ids` first, a row per image."""
        own = {name: value for name, value in batch.items() if name not in CAPTIONS}
        return {"input_ids": own.pop("input_ids"), **own}

    def first_images(self, batch: Mapping[str, Any], number: int, size: int) -> dict[str, Any]:
        """As in [`CaptionFamily`]; patches of several images may be one after the other, as many as their grids say."""
        kept = super().first_images(batch, number, size)
        grids = batch.get("image_grid_thw")
        if grids is not None:
            kept["pixel_values"] = batch["pixel_values"][: int(grids[:number].prod(dim=1).sum())]
        return kept

    # -- encoding ----------------------------------------------------------------------------------------------------

    def backbone(self, model: Any) -> PreTrainedModel:
        return without_adapters(model).get_encoder(modality="image")

    def run_backbone(self, model: Any, image_inputs: dict[str, Any]) -> dict[str, Any]:
        backbone = self.backbone(model)
        if learns(backbone) or _SEEN in image_inputs:
            return image_inputs
        outputs: list[Any] = []
        hook = backbone.register_forward_hook(lambda *call: outputs.append(_copied(call[2])))
        training = backbone.training
        try:
            with torch.no_grad():
                backbone.eval()
                self.image_features(model, image_inputs)
        finally:
            backbone.train(training)
            hook.remove()
        return {**image_inputs, _SEEN: outputs}

    def image_features(self, model: Any, image_inputs: Mapping[str, Any]) -> Any:
        """Features of images in the width of the language model: the vision tower, and what follows it."""
        look = without_adapters(model).base_model.get_image_features
        known = inspect.signature(look).parameters
        inputs = {name: value for name, value in image_inputs.items() if name in known and name not in _TEXT}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.backbone(model).dtype)
        return look(**inputs, return_dict=True)

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> Prompted:
        inputs = dict(image_inputs)
        seen = inputs.pop(_SEEN, None)
        if seen is None:
            features = self.image_features(model, inputs)
        else:
            answers = iter(seen)
            with answering(self.backbone(model), lambda *args, **kwargs: _copied(next(answers))):
                features = self.image_features(model, inputs)
        text = {name: inputs.pop(name) for name in _TEXT if name in inputs}
        return Prompted(text, features, {name: value for name, value in inputs.items() if "pixel" not in name})

    def start_length(self, encoder_outputs: Prompted) -> int:
        return encoder_outputs.text["input_ids"].shape[1]

    # -- writing and scoring -----------------------------------------------------------------------------------------

    def write(self, model: Any, encoder_outputs: Prompted, **options: Any) -> torch.Tensor:
        text, features, places = encoder_outputs
        options.setdefault("pad_token_id", self.tokens.pad_token_id)
        options.setdefault("suppress_tokens", [model.config.image_token_id])  # which would be the place of an image
        ids = model.generate(**text, **places, mm_encoder_outputs={"image": _copied(features)}, **options)
        return ids[:, text["input_ids"].shape[1] - 1 :]

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: Prompted) -> torch.Tensor:
        text, features, places = encoder_outputs
        captions, start = len(sequences), text["input_ids"]
        ids = behind_start(start, sequences)  # (N, P + T - 2)
        added = ids.shape[1] - start.shape[1]
        mask = nn.functional.pad(repeated(text["attention_mask"], captions), (0, added), value=1)
        inputs = {
            name: nn.functional.pad(repeated(text[name], captions), (0, added), value=value)
            for name, value in self.caption_types.items()
            if name in text
        }
        if "image_grid_thw" not in places:  # which makes positions of its own
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).masked_fill(mask == 0, 0) + self.first_position
        return model(
            input_ids=ids,
            attention_mask=mask,
            mm_encoder_outputs={"image": _for_captions(features, len(start), captions)},
            use_cache=False,
            logits_to_keep=sequences.shape[1] - 1,
            **inputs,
            **{name: repeated(value, captions) for name, value in places.items()},
        ).logits

    def check_length(self, model: Any, name: str, length: int) -> None:
        """Accept any length: the models read thousands of tokens."""


def _copied(output: Any) -> Any:
    """The outputs of a model, of which one may be replaced without changing the others' owner."""
    return type(output)(**output)


def _for_captions(features: Any, images: int, captions: int) -> Any:
    """Features of B images, which may have several parts each, for N captions that stand side by side."""
    rows, times = _copied(features), captions // images
    if times == 1:
        return rows
    parts = len(rows.pooler_output) // images
    order = [row * parts + part for row in range(images) for _ in range(times) for part in range(parts)]
    rows.pooler_output = _chosen(rows.pooler_output, order)
    if rows.get("deepstack_features") is not None:
        rows.deepstack_features = [_chosen(layer, order) for layer in rows.deepstack_features]
    return rows


def _chosen(values: Any, order: list[int]) -> Any:
    return values[order] if isinstance(values, torch.Tensor) else [values[place] for place in order]
