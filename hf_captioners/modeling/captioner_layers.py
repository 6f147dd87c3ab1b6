"""Small pieces that captioners share."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import initialization as init
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.import_utils import is_tracing

LARGEST_FEATURE = 1e12  # beyond what backbones give; squares of such numbers still add up in float32
MASKED_SCORE = -1e9  # finite: a row without anything visible attends evenly instead of being NaN


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """`values` in float32 if they are shorter; float64 stays.

    Args:
        values (`torch.Tensor`): of any floating-point type.

    Returns:
        `torch.Tensor`
    """
    return values if values.dtype == torch.float64 else values.float()


def ended_before(tokens: torch.Tensor, eos_token_id: int | list[int]) -> torch.Tensor:
    """Positions at which a caption is over already.

    Args:
        tokens (`torch.LongTensor` of shape `(N, T)`): words, without the start token, which may equal the end token.
        eos_token_id (`int` or `list[int]`): what ends a caption.

    Returns:
        `torch.BoolTensor` of shape `(N, T)`: `True` behind the first end token, not at it.
    """
    is_end = torch.isin(tokens, torch.as_tensor(eos_token_id, device=tokens.device)).long()
    return is_end.cumsum(1) > is_end


def padding_mask(mask: torch.Tensor | None) -> torch.Tensor | None:
    """A mask, or `None` if it hides nothing, so that less is computed.

    Args:
        mask (`torch.Tensor` of shape `(B, L)`, *optional*): 1 for real tokens.

    Returns:
        `torch.Tensor` or `None`: in a graph that is being traced or exported, always the mask: what a graph does must
        not depend on values.
    """
    if mask is None or (values_are_known(mask) and bool(mask.all())):
        return None
    return mask


def check_features(features: torch.Tensor, name: str, largest: float = LARGEST_FEATURE) -> None:
    """Refuse features with which nothing can be computed.

    Args:
        features (`torch.Tensor`): of any shape, without padding.
        name (`str`): what they are, for the message.
        largest (`float`, defaults to `LARGEST_FEATURE`): what is too large in absolute value.

    Raises:
        ValueError: they are complex, not finite or too large.
    """
    if features.is_complex():
        raise ValueError(f"{name} must be real numbers, not {features.dtype}: their imaginary part would be lost.")
    peak = float(features.abs().max()) if features.numel() else 0.0
    if not math.isfinite(peak):
        raise ValueError(f"{name} contains NaN or infinity.")
    if peak > largest:
        raise ValueError(f"{name} contains {peak:.3g}, and numbers beyond {largest:.3g} cannot be computed with.")


def values_are_known(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's values may decide what is done: not while a graph is traced, compiled or exported."""
    return not is_tracing(tensor)


@contextmanager
def eager_attention(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Let a model of transformers compute its attention eagerly for once, if that is `wanted`, for the weights."""
    usual: Any = model.config._attn_implementation
    if not wanted or usual == "eager":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


def weights_of_captions(weights: torch.Tensor, captions: int) -> torch.Tensor:
    """Attention (R, H, T, L) of R captions, of that (B, H, R/B*T, L) of the long queries of B pictures."""
    images, heads, _, tokens = weights.shape
    split = weights.reshape(images, heads, captions // images, -1, tokens)  # (B, H, R/B, T, L)
    return split.transpose(1, 2).flatten(0, 1)  # (R, H, T, L)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operations, for `ALL_ATTENTION_FUNCTIONS.get_interface`.

    Args:
        module (`nn.Module`): the attention, which knows whether it is training.
        query (`torch.Tensor` of shape `(B, H, T, head)`): queries.
        key, value (`torch.Tensor` of shape `(B, H, L, head)`): what they attend to.
        attention_mask (`torch.BoolTensor` that broadcasts to `(B, H, T, L)`, *optional*): `True` for what is visible.
        scaling (`float`): factor of the scores.
        dropout (`float`, defaults to 0.0): rate on the weights.
        kwargs: not used; other implementations know more options.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: outputs `(B, T, H, head)` and weights `(B, H, T, L)`.
    """
    scores = at_least_float32(torch.matmul(query, key.transpose(2, 3)) * scaling)  # (B, H, T, L)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, MASKED_SCORE)
    weights = nn.functional.dropout(scores.softmax(-1).to(value.dtype), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2), weights


def initialize(module: nn.Module, xavier: bool = False) -> None:
    """Give a module of torch a fresh start, for `_init_weights`; other modules are left alone.

    Args:
        module (`nn.Module`): linear layer, embedding, layer or batch normalisation.
        xavier (`bool`, defaults to `False`): Xavier-uniform tables (matrices) instead of torch's default for them.
            Vectors always get torch's default.
    """
    if isinstance(module, nn.Linear):
        bound = module.in_features**-0.5
        if xavier:
            init.xavier_uniform_(module.weight)
        else:
            init.uniform_(module.weight, -bound, bound)
        if module.bias is not None:
            init.uniform_(module.bias, -bound, bound)
    elif isinstance(module, nn.Embedding):
        (init.xavier_uniform_ if xavier else init.normal_)(module.weight)
    elif isinstance(module, nn.LayerNorm | nn.BatchNorm1d):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    if isinstance(module, nn.BatchNorm1d) and module.track_running_stats:
        init.zeros_(module.running_mean)  # type: ignore[arg-type]
        init.ones_(module.running_var)  # type: ignore[arg-type]
        init.zeros_(module.num_batches_tracked)  # type: ignore[arg-type]
