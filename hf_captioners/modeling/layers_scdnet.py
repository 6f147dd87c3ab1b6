"""The parts of SCD-Net's network, under the names of the authors' checkpoints.

All blocks are post-norm, with a bias everywhere and ReLU. Captions of a picture are rows side by side and share its
memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from .captioner_attention import CaptionerAttention
from .captioner_layers import at_least_float32
from .configuration_scdnet import ScdnetConfig
from .diffusion_scdnet import ids_to_bits

BLOCK_EPS = 1e-12  # of the layer normalisations in blocks; those of the embeddings have torch's 1e-5

Heads = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # queries, keys and values, (R, H, T, head) each


class Float32Module(nn.Module):
    """A module whose numbers stay in float32 when the model's type becomes a shorter one."""

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        # what torch calls for .to(), .half() and .bfloat16(); there is no public hook
        before = {name: value.data for name, value in (*self.named_parameters(), *self.named_buffers())}
        super()._apply(fn, recurse)
        for name, value in (*self.named_parameters(), *self.named_buffers()):
            if value.dtype in (torch.bfloat16, torch.float16) and before[name].dtype == torch.float32:
                value.data = before[name].to(value.device)
        return self


class BitCodec(Float32Module):
    """The bits of all words, and the noise at which captions are scored by default; neither is saved."""

    table: torch.Tensor
    noise: torch.Tensor

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.config = config
        assert config.num_bits is not None
        self.register_buffer("table", torch.empty(config.vocab_size, config.num_bits), persistent=False)
        self.register_buffer("noise", torch.empty(config.caption_length, config.num_bits), persistent=False)
        self.reset()

    def reset(self) -> None:
        """Compute both again, also after the vocabulary has grown."""
        config, device = self.config, self.table.device
        if device.type == "meta":
            return
        self.table = self.encode(torch.arange(config.vocab_size, device=device))  # (V, n)
        generator = torch.Generator().manual_seed(config.scoring_seed)
        self.noise = torch.randn(self.noise.shape, generator=generator).to(device)  # (L, n)

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """(…) -> (…, n)"""
        assert self.config.num_bits is not None
        return ids_to_bits(ids, self.config.num_bits, self.config.vocab_size, float(self.config.bit_scale))


class Attention(CaptionerAttention):
    """Multi-head attention without its output projection."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__(config, config.hidden_size, dropout=config.attention_dropout)
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def project(self, hidden: torch.Tensor) -> Heads:
        """Queries, keys and values of `hidden` (R, T, d)."""
        return self.split(self.query(hidden)), *self.keys_and_values(hidden)

    def keys_and_values(self, memory: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of `memory` (B, L, d)."""
        return self.split(self.key(memory)), self.split(self.value(memory))


class Residual(nn.Module):
    """A branch's last layer, added to what the branch started from, and normalised."""

    def __init__(self, inner: int, config: ScdnetConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=BLOCK_EPS)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, branch: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """(R, T, inner), (R, T, d) -> (R, T, d)"""
        return self.LayerNorm(hidden + self.dropout(self.dense(branch)))


class AttentionBlock(nn.Module):
    """Attention and its residual."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.self = Attention(config)
        self.output = Residual(config.hidden_size, config)


class Intermediate(nn.Module):
    """The first half of a feed-forward block."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, T, d) -> (R, T, inner)"""
        return self.dropout(self.dense(hidden).relu())


class EncoderLayer(GradientCheckpointingLayer):
    """Self-attention and feed-forward."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.attention = AttentionBlock(config)
        self.intermediate = Intermediate(config)
        self.output = Residual(config.intermediate_size, config)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor | None, heads: Heads | None = None, wanted: int | None = None
    ) -> torch.Tensor:
        """(R, T, d) -> (R, T, d), or of the first `wanted` rows only; `heads` are the projections if they are there."""
        attend, join = self.attention.self, self.attention.output
        query, keys, values = attend.project(hidden) if heads is None else heads
        hidden = join(attend.attend(query[:, :, :wanted], keys, values, mask)[0], hidden[:, :wanted])
        return self.output(self.intermediate(hidden), hidden)


class DecoderLayer(GradientCheckpointingLayer):
    """Self-attention of the words, attention to the picture, and feed-forward."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.self_attn = AttentionBlock(config)
        self.x_att = AttentionBlock(config)
        self.intermediate = Intermediate(config)
        self.output = Residual(config.intermediate_size, config)

    def forward(
        self,
        hidden: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        all_weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """(R, T, d) -> (R, T, d), attending to B pictures, R a multiple of B; `mask` is (B, 1, 1, L). The weights
        (R, H, T, L) are appended to `all_weights`, if they are wanted."""
        attend = self.self_attn.self
        hidden = self.self_attn.output(attend.attend(*attend.project(hidden), None)[0], hidden)
        attend = self.x_att.self
        hidden = self.x_att.output(
            attend.attend_to_images(attend.query(hidden), keys, values, mask, all_weights), hidden
        )
        return self.output(self.intermediate(hidden), hidden)


class Encoder(nn.Module):
    """Layers over one sequence: the regions, or caption and retrieved sentence."""

    def __init__(self, layers: int, config: ScdnetConfig) -> None:
        super().__init__()
        self.layers: Any = nn.ModuleList(EncoderLayer(config) for _ in range(layers))


class Decoder(nn.Module):
    """The sentence decoder."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.g_layers: Any = nn.ModuleList(DecoderLayer(config) for _ in range(config.decoder_layers))


class VisualEmbedding(nn.Module):
    """Features to the network's width."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        assert config.feature_size is not None
        self.embeddings = nn.Linear(config.feature_size, config.hidden_size)
        self.embeddings_norm = nn.LayerNorm(config.hidden_size)
        self.dropout = nn.Dropout(config.visual_dropout)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(B, L, feature_size) -> (B, L, d)"""
        return self.dropout(self.embeddings_norm(self.embeddings(features).relu()))


class Positions(nn.Module):
    """A learned table of positions."""

    def __init__(self, rows: int, config: ScdnetConfig) -> None:
        super().__init__()
        self.position_embeddings = nn.Embedding(rows, config.hidden_size)

    def forward(self, length: int) -> torch.Tensor:
        """(length, d)"""
        return self.position_embeddings.weight[:length]


class TimeFeatures(nn.Module):
    """Learned sinusoids of the log-SNR."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(config.time_frequencies))

    def forward(self, log_ratios: torch.Tensor) -> torch.Tensor:
        """(R,) -> (R, 1 + 2 frequencies)"""
        angles = log_ratios[:, None] * self.weights * 2 * math.pi
        return torch.cat((log_ratios[:, None], angles.sin(), angles.cos()), dim=-1)


class TimeEmbedding(Float32Module, nn.Sequential):
    """The vector of a time; in float32 in every type and under autocast, where a rounded log-SNR means nothing."""

    def __init__(self, config: ScdnetConfig) -> None:
        width = 1 + 2 * config.time_frequencies
        hidden = nn.Linear(width, config.hidden_size), nn.SiLU(), nn.Linear(config.hidden_size, config.hidden_size)
        nn.Sequential.__init__(self, TimeFeatures(config), *hidden)

    def forward(self, log_ratios: torch.Tensor) -> torch.Tensor:
        """(R,) -> (R, d)"""
        with torch.autocast(log_ratios.device.type, enabled=False):
            return super().forward(log_ratios)


class BitEmbedding(nn.Module):
    """Noisy bits with what else is known of a caption, and the time, to the network's width."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        assert config.num_bits is not None
        inputs = (3 if config.sees_previous else 2) * config.num_bits
        self.embeddings = nn.Linear(inputs, config.hidden_size, bias=False)
        self.embeddings_norm = nn.LayerNorm(config.hidden_size)
        self.embeddings_pos = Positions(config.caption_positions, config)
        self.embeddings_token_type = nn.Embedding(1, config.hidden_size)
        self.time_embed = TimeEmbedding(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, bits: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """(N, L, inputs), (N or 1, d) -> (N, L, d)"""
        hidden = self.embeddings(bits.to(self.embeddings_norm.weight.dtype))
        hidden = hidden + self.embeddings_pos(bits.shape[1]) + time.to(hidden.dtype)[:, None]
        return self.dropout(self.embeddings_norm(hidden + self.embeddings_token_type.weight[0]))


class WordEmbedding(nn.Module):
    """The words of retrieved sentences, which do not depend on the time."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embeddings_norm = nn.LayerNorm(config.hidden_size)
        self.embeddings_pos = Positions(config.retrieved_positions, config)
        self.embeddings_token_type = nn.Embedding(1, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """(R, T) -> (R, T, d)"""
        hidden = self.embeddings(ids) + self.embeddings_pos(ids.shape[1]) + self.embeddings_token_type.weight[0]
        return self.dropout(self.embeddings_norm(hidden))


class Predictor(nn.Module):
    """Scores of the words."""

    def __init__(self, config: ScdnetConfig) -> None:
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.logits = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, L, d) -> (N, L, V)"""
        return self.logits(self.dropout(hidden))


def word_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Probabilities of the words in float32, also under autocast."""
    return at_least_float32(logits).softmax(-1).float()


def first_regions(
    features: torch.Tensor, mask: torch.Tensor | None, most: int | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The first regions of each picture.

    Args:
        features (`torch.Tensor` of shape `(B, L, feature_size)`): of the regions.
        mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for real regions.
        most (`int`, *optional*): how many real regions stay; all by default.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: features and mask; with a mask what does not stay is hidden by it.
    """
    if most is None or features.shape[1] <= most:
        return features, mask
    if mask is None:
        return features[:, :most], None
    return features, mask.bool() & (mask.bool().cumsum(1) <= most)
