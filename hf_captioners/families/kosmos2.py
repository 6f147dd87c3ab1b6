"""Kosmos-2 (Peng et al., 2023, arXiv 2306.14824): a decoder that reads 64 latent image tokens and a beginning; its CLIP
is the backbone. The captions go on from `An image of`, without boxes; those of `<grounding>` are taken out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel

from .base import SpecialTokens
from .model_parts import behind_start, repeated
from .transformers_family import TransformersFamily


class LatentImages(NamedTuple):
    """B images as the decoder reads them.

    Args:
        latent (`torch.Tensor` of shape `(B, L, width)`): image tokens.
        start (`torch.LongTensor` of shape `(B, P)`): places of image tokens, and the prompt.
        mask (`torch.LongTensor` of shape `(B, P)`): 1 for what is there.
        places (`torch.LongTensor` of shape `(B, P)`): 1 where image tokens are.
    """

    latent: torch.Tensor
    start: torch.Tensor
    mask: torch.Tensor
    places: torch.Tensor


class Kosmos2Family(TransformersFamily):
    """`Kosmos2ForConditionalGeneration`."""

    models: ClassVar[tuple[str, ...]] = ("Kosmos2ForConditionalGeneration",)
    title: ClassVar[str] = "Kosmos-2"
    takes_prompt: ClassVar[bool] = True
    usual_length: ClassVar[int | None] = 64
    default_prompt: ClassVar[str | None] = "An image of"

    @classmethod
    def special_tokens(cls, model: Any) -> SpecialTokens:
        text = model.config.text_config
        return SpecialTokens(text.eos_token_id, text.pad_token_id, text.bos_token_id)

    def input_names(self, model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
        return ("pixel_values", "input_ids", "attention_mask", "image_embeds_position_mask"), ()

    def prepare_rows(self, processor: Any, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> Any:
        return super().prepare_rows(processor, rows, text=[self.prompt] * len(rows), **kwargs)

    def backbone(self, model: Any) -> PreTrainedModel:
        return model.vision_model

    def encode(self, model: Any, image_inputs: dict[str, Any]) -> LatentImages:
        normed = model.vision_model.model.post_layernorm(self.features(model, image_inputs))
        latent, _ = model.image_to_text_projection(nn.functional.normalize(normed, dim=-1))
        return LatentImages(latent, *(image_inputs[name] for name in self.input_names(model)[0][1:]))

    def start_length(self, encoder_outputs: LatentImages) -> int:
        return encoder_outputs.start.shape[1]

    def write(self, model: Any, encoder_outputs: LatentImages, **options: Any) -> torch.Tensor:
        latent, start, mask, places = encoder_outputs
        options.setdefault("pad_token_id", self.tokens.pad_token_id)
        ids = model.text_model.generate(
            input_ids=start, attention_mask=mask, image_embeds=latent, image_embeds_position_mask=places, **options
        )
        return ids[:, start.shape[1] - 1 :]

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: LatentImages) -> torch.Tensor:
        latent, start, mask, places = encoder_outputs
        captions, ids = len(sequences), behind_start(start, sequences)  # (N, P + T - 2)
        added = ids.shape[1] - start.shape[1]
        return model.text_model(
            input_ids=ids,
            attention_mask=nn.functional.pad(repeated(mask, captions), (0, added), value=1),
            image_embeds=repeated(latent, captions),
            image_embeds_position_mask=nn.functional.pad(repeated(places, captions), (0, added)),
            use_cache=False,
            logits_to_keep=sequences.shape[1] - 1,
        ).logits

    def clean(self, processor: Any, text: str) -> str:
        return processor.post_process_generation(text)[0]
