"""Mappers from an image embedding to image tokens of GPT-2's width: linear, MLP, and the transformer of ClipCap.

ClipCap: Prefix for Image Captioning, R. Mokady, A. Hertz and A. H. Bermano, 2021 (arXiv 2111.09734). Parameter names of
the MLP and the transformer are those of the published checkpoints, where they stand below `clip_project.`.

All mappers take embeddings (…, D) and give tokens (…, P, d).
"""

import torch
from torch import nn
from transformers import GPT2Config
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration_clip_gpt2 import ClipGpt2Config


def _widths(config: ClipGpt2Config) -> tuple[int, int]:
    """D of the embedding and d of GPT-2."""
    assert isinstance(config.text_config, GPT2Config) and config.feature_size is not None
    return config.feature_size, config.text_config.n_embd


class LinearMapper(nn.Module):
    """Linear layer, D to P * d."""

    def __init__(self, config: ClipGpt2Config) -> None:
        super().__init__()
        width, d_model = _widths(config)
        self.shape = (config.prefix_length, d_model)
        self.linear = nn.Linear(width, config.prefix_length * d_model)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(…, D) -> (…, P, d)"""
        return self.linear(embeddings).unflatten(-1, self.shape)


class MLPMapper(nn.Module):
    """Two linear layers with tanh between, D to P * d / 2 to P * d (ClipCap, section 3.1)."""

    def __init__(self, config: ClipGpt2Config) -> None:
        super().__init__()
        width, d_model = _widths(config)
        self.shape = (config.prefix_length, d_model)
        inner, outer = config.prefix_length * d_model // 2, config.prefix_length * d_model
        self.model = nn.Sequential(nn.Linear(width, inner), nn.Tanh(), nn.Linear(inner, outer))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(…, D) -> (…, P, d)"""
        return self.model(embeddings).unflatten(-1, self.shape)


class MapperAttention(nn.Module):
    """Self-attention over image tokens, without mask. Only the output projection has a bias."""

    def __init__(self, d_model: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_queries = nn.Linear(d_model, d_model, bias=False)
        self.to_keys_values = nn.Linear(d_model, 2 * d_model, bias=False)  # the keys, then the values
        self.project = nn.Linear(d_model, d_model)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, L, d) -> (R, L, d)"""
        projected = (self.to_queries(hidden), *self.to_keys_values(hidden).chunk(2, dim=-1))
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        # (R, H, L, head); fused whatever `attn_implementation` is: there is no mask that could differ
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.project(mixed.transpose(1, 2).flatten(2))


class MapperFeedForward(nn.Module):
    """Two linear layers with ReLU between."""

    def __init__(self, d_model: int, ratio: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(d_model, ratio * d_model)
        self.fc2 = nn.Linear(ratio * d_model, d_model)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(…, d) -> (…, d)"""
        return self.fc2(self.fc1(hidden).relu())


class MapperLayer(GradientCheckpointingLayer):
    """Attention and feed-forward, each pre-norm and residual."""

    def __init__(self, d_model: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(d_model)
        self.attn = MapperAttention(d_model, heads)
        self.norm2 = nn.LayerNorm(d_model)
        self.mlp = MapperFeedForward(d_model, ratio)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, L, d) -> (R, L, d)"""
        hidden = hidden + self.attn(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))


class MapperTransformer(nn.Module):
    """The layers one after the other."""

    def __init__(self, d_model: int, config: ClipGpt2Config) -> None:
        super().__init__()
        heads, ratio = config.mapping_heads, config.mapping_ratio
        self.layers = nn.ModuleList(MapperLayer(d_model, heads, ratio) for _ in range(config.mapping_layers))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, L, d) -> (R, L, d)"""
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


class TransformerMapper(nn.Module):
    """The embedding as C tokens, and P learned constants that read from them (ClipCap, section 3.2)."""

    def __init__(self, config: ClipGpt2Config) -> None:
        super().__init__()
        width, d_model = _widths(config)
        assert config.clip_length is not None
        self.shape = (config.clip_length, d_model)
        self.linear = nn.Linear(width, config.clip_length * d_model)
        self.prefix_const = nn.Parameter(torch.empty(config.prefix_length, d_model))
        self.transformer = MapperTransformer(d_model, config)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """(…, D) -> (…, P, d)"""
        tokens = self.linear(embeddings.flatten(0, -2)).unflatten(-1, self.shape)  # (R, C, d)
        constants = self.prefix_const.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        mapped = self.transformer(torch.cat((tokens, constants), dim=1))[:, self.shape[0] :]
        return mapped.unflatten(0, embeddings.shape[:-1])


MAPPERS = {"linear": LinearMapper, "mlp": MLPMapper, "transformer": TransformerMapper}
