"""Small pieces that captioners share."""

from __future__ import annotations

import torch


def grid_tokens(hidden: torch.Tensor) -> torch.Tensor:
    """The output of any vision backbone as a sequence of tokens.

    Args:
        hidden (`torch.Tensor`): `last_hidden_state`, `(B, L, C)` of a transformer or `(B, C, height, width)` of a CNN.

    Returns:
        `torch.Tensor` of shape `(B, L, C)`, rows of the grid one after the other.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.captioner_layers import grid_tokens
    >>> grid_tokens(torch.zeros(2, 1280, 7, 7)).shape
    torch.Size([2, 49, 1280])

    ```
    """
    return hidden if hidden.ndim == 3 else hidden.flatten(2).transpose(1, 2)


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """`values` in float32 if they are shorter; float64 stays.

    Args:
        values (`torch.Tensor`): of any floating-point type.

    Returns:
        `torch.Tensor`
    """
    return values if values.dtype == torch.float64 else values.float()


def token_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of given tokens, without those of all the others in memory.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`): scores.
        targets (`torch.LongTensor` of shape `(N, T)`): tokens.

    Returns:
        `torch.Tensor` of shape `(N, T)`: in nats, in float32 or float64, with gradient.
    """
    logits = at_least_float32(logits)
    return logits.gather(-1, targets[..., None]).squeeze(-1) - logits.logsumexp(-1)


@torch.no_grad()
def token_entropies(logits: torch.Tensor) -> torch.Tensor:
    """Entropy of each distribution over the words, row by row, so that no second copy of the scores is made.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`): scores.

    Returns:
        `torch.Tensor` of shape `(N, T)`: in nats, in float32 or float64.
    """
    rows = [torch.distributions.Categorical(logits=at_least_float32(row), validate_args=False) for row in logits]
    return torch.stack([row.entropy() for row in rows])


def ended_before(tokens: torch.Tensor, eos_token_id: int | list[int]) -> torch.Tensor:
    """Where a caption is over already.

    Args:
        tokens (`torch.LongTensor` of shape `(N, T)`): words, without the start token, which may equal the end token.
        eos_token_id (`int` or `list[int]`): what ends a caption.

    Returns:
        `torch.BoolTensor` of shape `(N, T)`: `True` behind the first end token, not at it.
    """
    is_end = torch.isin(tokens, torch.as_tensor(eos_token_id, device=tokens.device)).long()
    return is_end.cumsum(1) > is_end
