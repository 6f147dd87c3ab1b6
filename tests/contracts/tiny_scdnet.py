"""A tiny SCD-Net with random weights."""

from __future__ import annotations

from typing import Any

import torch

from hf_captioners import ScdnetConfig, ScdnetForImageCaptioning

SIZES: dict[str, Any] = {
    "vocab_size": 20,
    "max_position_embeddings": 13,
    "caption_positions": 12,
    "retrieved_positions": 12,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "visual_layers": 1,
    "semantic_layers": 2,
    "decoder_layers": 2,
    "time_frequencies": 4,
    "visual_dropout": 0.0,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unk_token_id": 3,
}


def small_model(seed: int = 0, **changes: Any) -> ScdnetForImageCaptioning:
    torch.manual_seed(seed)
    model = ScdnetForImageCaptioning(ScdnetConfig(**{**SIZES, "feature_size": 12, **changes})).eval()
    model.generation_config.num_inference_steps = [5, 4] if model.is_cascade else 5
    model.generation_config.time_difference = [2.0, 0.0] if model.is_cascade else 0.0
    with torch.no_grad():  # peaked distributions, so that captions depend on the picture
        for network in filter(None, (model, model.first_stage)):
            network.predictor.logits.weight.mul_(6.0)
            network.visual_embed.embeddings.weight.mul_(3.0)
            network.token_embed.time_embed[0].weights.mul_(0.01)  # smooth in a time that is rounded
    return model
