"""Log-probabilities of tokens and the sums that losses need, in one pass over the scores and one over their gradients.

The scores of some rows at a time, so that what is computed of them stays in a processor's cache; nothing but the
gradient is as large as the scores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from .captioner_layers import at_least_float32, values_are_known

AT_ONCE = {"cpu": 2**18}  # numbers in a part; elsewhere parts cost more than memory does
ELSEWHERE = 2**27


class TokenScores(NamedTuple):
    """Numbers of M tokens, all in nats, in float32 or float64.

    Args:
        log_probs (`torch.Tensor` of shape `(M,)`): of the tokens, with gradient.
        sums (`torch.Tensor` of shape `(M,)`): log-probabilities of all words added up, with gradient.
        entropies (`torch.Tensor` of shape `(M,)`, *optional*): of the distributions over the words, without gradient.
    """

    log_probs: torch.Tensor
    sums: torch.Tensor
    entropies: torch.Tensor | None


def token_scores(logits: torch.Tensor, targets: torch.Tensor, with_entropies: bool = False) -> TokenScores:
    """Log-probabilities of tokens, those of all words added up, and entropies.

    Args:
        logits (`torch.Tensor` of shape `(M, V)`): scores.
        targets (`torch.LongTensor` of shape `(M,)`): tokens.
        with_entropies (`bool`, defaults to `False`): entropies are wanted.

    Returns:
        [`TokenScores`]
    """
    log_probs, sums, entropies = _TokenScores.apply(logits, targets, with_entropies)
    return TokenScores(log_probs, sums, entropies if with_entropies else None)


def token_log_probs(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of tokens, and entropies of the distributions that they are from.

    Args:
        logits (`torch.Tensor` of shape `(…, V)`): scores.
        targets (`torch.LongTensor` of shape `(…)`): tokens.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: both of the shape of `targets`, in nats, in float32 or float64; only the
        log-probabilities have a gradient.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.captioner_log_probs import token_log_probs
    >>> log_probs, entropies = token_log_probs(torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.long))
    >>> log_probs[0].exp(), entropies[0]
    (tensor([0.2500, 0.2500, 0.2500]), tensor([1.3863, 1.3863, 1.3863]))

    ```
    """
    scores = token_scores(logits.flatten(0, -2), targets.flatten(), with_entropies=True)
    assert scores.entropies is not None
    return scores.log_probs.view(targets.shape), scores.entropies.view(targets.shape)


def _parts(logits: torch.Tensor) -> list[slice]:
    if not values_are_known(logits):
        return [slice(None)]
    rows = max(AT_ONCE.get(logits.device.type, ELSEWHERE) // max(logits.shape[1], 1), 1)
    return [slice(start, start + rows) for start in range(0, len(logits), rows)]


class _TokenScores(torch.autograd.Function):
    """Pass each way of [`token_scores`]; with g and s the gradients of log-probability and sum, that of the scores is
    g onehot + s - (g + V s) softmax."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, with_entropies: bool) -> tuple:
        found = [at_least_float32(logits.new_empty(len(logits))) for _ in TokenScores._fields]
        for rows in _parts(logits):
            log_probs = at_least_float32(logits[rows]).log_softmax(-1)
            found[0][rows] = log_probs.gather(-1, targets[rows, None])[:, 0]
            found[1][rows] = log_probs.sum(-1)
            if with_entropies:
                finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)  # 0 times what is impossible is 0
                found[2][rows] = finite.exp().mul_(finite).sum(-1).neg_()
        ctx.save_for_backward(logits, targets)
        ctx.mark_non_differentiable(found[2])
        ctx.set_materialize_grads(False)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_token: Any, of_sum: Any, _: Any) -> tuple[torch.Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _parts(logits):
            part = at_least_float32(logits[rows]).softmax(-1)
            weight: Any = 0 if of_token is None else of_token[rows, None]
            even: Any = 0 if of_sum is None else of_sum[rows, None]
            part.mul_(-(weight + logits.shape[1] * even))
            if of_sum is not None:
                part.add_(even)
            if of_token is not None:
                part.scatter_add_(-1, targets[rows, None], weight)
            gradient[rows] = part
        return gradient, None, None
