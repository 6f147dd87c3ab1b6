"""Multi-head attention as captioners share it: many captions may attend to one picture."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .captioner_layers import eager_attention_forward, weights_of_captions


class CaptionerAttention(nn.Module):
    """Multi-head attention; a subclass adds the projections under its checkpoints' names.

    Args:
        config (`CaptionerConfig`): says which implementation of attention is used, whenever it is asked.
        width (`int`): size d of the hidden states.
        dropout (`float`, defaults to 0.0): rate on the attention weights in training.
    """

    is_causal = False

    def __init__(self, config: Any, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.head_dim = width // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = dropout

    def split(self, hidden: torch.Tensor) -> torch.Tensor:
        """(R, T, d) -> (R, H, T, head)"""
        return hidden.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def attend(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        with_weights: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend from heads to heads of the same B rows.

        Args:
            queries (`torch.Tensor` of shape `(B, H, T, head)`): projected and split hidden states.
            keys, values (`torch.Tensor` of shape `(B, H, L, head)`): what they attend to.
            mask (`torch.BoolTensor` that broadcasts to `(B, H, T, L)`, *optional*): `True` for what is visible.
            with_weights (`bool`, defaults to `False`): weights are wanted, which only plain operations give.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: outputs `(B, T, d)`, before their projection, and the weights
            `(B, H, T, L)` if there are any.
        """
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attention = eager_attention_forward if with_weights else attention
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attention(self, queries, keys, values, mask, dropout=dropout, scaling=self.scaling)
        return output.flatten(2), weights  # (B, T, H, head) -> (B, T, d)

    def attend_to_images(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None,
        all_weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Attend from captions to pictures, a whole number of captions to each, side by side.

        Args:
            queries (`torch.Tensor` of shape `(R, T, d)`): projected hidden states of R captions.
            keys, values (`torch.Tensor` of shape `(B, H, L, head)`): of B pictures, R a multiple of B.
            mask (`torch.BoolTensor` that broadcasts to `(B, H, T, L)`, *optional*): `True` for what is visible.
            all_weights (`list[torch.Tensor]`, *optional*): a list that gets the weights `(R, H, T, L)`.

        Returns:
            `torch.Tensor` of shape `(R, T, d)`: before the projection of the output.
        """
        # the captions of a picture are rows of one long query: (R, T, d) -> (B, H, R/B*T, head)
        # shape[0], not len(): that is a constant in an exported graph
        heads = self.split(queries.reshape(keys.shape[0], -1, queries.shape[-1]))
        output, weights = self.attend(heads, keys, values, mask, with_weights=all_weights is not None)
        if all_weights is not None and weights is not None:
            all_weights.append(weights_of_captions(weights, len(queries)))
        return output.reshape(queries.shape)  # (B, R/B*T, d) -> (R, T, d)
