"""The state of a captioner's decoder: what all of them have alike."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class CaptionerCache(Cache):
    """State of a decoder, made by `start_cache`.

    What belongs to a caption has a row per caption, and is reordered by beam search; what depends on the picture alone
    has a row per *picture*. Captions of one picture stand side by side.
    """

    @property
    def images(self) -> int:
        """Number of pictures B."""
        layer: Any = self.layers[-1]
        return layer.memory_keys.shape[0]


class CaptionCacheLayer(CacheLayerMixin):
    """A layer of state that its model fills itself."""

    def get_max_length(self) -> int:
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        raise NotImplementedError(f"{type(self).__name__} is made by start_cache, not of key and value states.")

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} is filled by its model, not by key and value states.")


class MemoryCacheLayer(CaptionCacheLayer):
    """A layer that also keeps the cross-attention's projections of the memory, shared by a picture's captions.

    Args:
        memory_keys, memory_values (`torch.Tensor` of shape `(B, H, L, d / H)`): a row per picture.
    """

    def __init__(self, memory_keys: torch.Tensor, memory_values: torch.Tensor) -> None:
        super().__init__()
        self.memory_keys = memory_keys.contiguous()  # for every word they are read again
        self.memory_values = memory_values.contiguous()
