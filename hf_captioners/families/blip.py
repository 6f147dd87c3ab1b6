"""BLIP (Li et al., 2022, arXiv 2201.12086): a ViT and a BERT that reads it by cross-attention; its ViT is the backbone.

The captions begin with `[DEC]` and end with `[SEP]`, as BLIP's authors teach them; `BlipProcessor` alone would begin
them with `[CLS]`, with which `generate` does not.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel

from .base import SpecialTokens
from .model_parts import behind_start, repeated
from .transformers_family import EncodedImages, PrefixedFamily


class BlipFamily(PrefixedFamily):
    """`BlipForConditionalGeneration`."""

    models: ClassVar[tuple[str, ...]] = ("BlipForConditionalGeneration",)
    title: ClassVar[str] = "BLIP"

    @classmethod
    def special_tokens(cls, model: Any) -> SpecialTokens:
        text = model.config.text_config
        return SpecialTokens(text.sep_token_id, text.pad_token_id, text.bos_token_id)

    def backbone(self, model: Any) -> PreTrainedModel:
        return model.vision_model

    def vocab_size(self, model: Any) -> int:
        return int(model.config.text_config.vocab_size)

    def write(self, model: Any, encoder_outputs: EncodedImages, **options: Any) -> torch.Tensor:
        features, start = encoder_outputs
        ids = model.text_decoder.generate(
            input_ids=start,
            attention_mask=torch.ones_like(start),
            encoder_hidden_states=features,
            encoder_attention_mask=features.new_ones(features.shape[:2], dtype=torch.long),
            eos_token_id=self.tokens.eos_token_id,
            pad_token_id=self.tokens.pad_token_id,
            **options,
        )
        return ids[:, start.shape[1] - 1 :]

    def logits(self, model: Any, sequences: torch.Tensor, encoder_outputs: EncodedImages) -> torch.Tensor:
        features, start = encoder_outputs
        return model.text_decoder(
            input_ids=behind_start(start, sequences),
            encoder_hidden_states=repeated(features, len(sequences)),  # (N, L, width)
            use_cache=False,
            logits_to_keep=sequences.shape[1] - 1,
        ).logits

    def own_smoothing(self, model: Any) -> float:
        return model.config.text_config.label_smoothing
