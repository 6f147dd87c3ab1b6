"""The tiny CLIP-GPT2s that its tests are about, their tokenizers and towers."""

from __future__ import annotations

import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from hf_captioners import (
    CaptionerImageProcessor,
    ClipGpt2Config,
    ClipGpt2ForImageCaptioning,
    build_vocabulary,
    build_word_tokenizer,
)

CAPTIONS = ["A red circle above a blue square.", "Two small green stars.", "The large star left of a circle."]
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
TINY_GPT2 = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64, **NO_DROPOUT}
TINY_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
TINY_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TINY_MOBILENET = {"model_type": "mobilenet_v2", "image_size": 32, "depth_multiplier": 0.1, "min_depth": 8}
MAPPINGS = [
    {"mapping_type": "linear"},
    {"mapping_type": "linear", "prefix_length": 4},
    {"mapping_type": "mlp", "prefix_length": 3},
    {"mapping_type": "transformer", "prefix_length": 4, "clip_length": 3, "mapping_layers": 2, "mapping_heads": 4},
]


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, one special token for start, end and unknown, none for padding."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(CAPTIONS, vocab_size=280, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end, unk_token=end)


def word_tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer(build_vocabulary(CAPTIONS, min_count=1), model_max_length=20)


def image_processor() -> CaptionerImageProcessor:
    return CaptionerImageProcessor(size={"height": 32, "width": 32})


def tiny_config(**changes) -> ClipGpt2Config:
    text = {**TINY_GPT2, **changes.pop("text_config", {})}
    return ClipGpt2Config(**{"features_only": True, "feature_size": 12, "text_config": text, **changes})


def tiny_model(seed: int = 0, sharp: bool = True, **changes) -> ClipGpt2ForImageCaptioning:
    torch.manual_seed(seed)
    model = ClipGpt2ForImageCaptioning(tiny_config(**changes)).eval()
    model.generation_config.max_length = 10
    if sharp:  # peaked distributions that depend on the picture
        with torch.no_grad():
            model.gpt.transformer.wte.weight.mul_(8.0)
            model.gpt.transformer.wpe.weight.mul_(8.0)
    return model


def by_hand(model, *parts: torch.Tensor) -> torch.Tensor:
    """GPT-2's input (1, L, d) from vectors and token ids, each `(L_i, d)` or `(L_i,)`."""
    table = model.gpt.transformer.wte.weight
    return torch.cat([part if part.ndim == 2 else table[part] for part in parts])[None]
