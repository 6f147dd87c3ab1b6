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
