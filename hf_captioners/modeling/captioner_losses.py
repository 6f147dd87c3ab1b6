"""The two label-smoothed losses of captions. With `smoothing` 0 both are the cross-entropy."""

from __future__ import annotations

import math

import torch
from torch import nn

from .captioner_layers import at_least_float32


def smoothed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy with mass spread evenly over *all* words, as torch has it; its minimum is not 0.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`): scores.
        labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
        smoothing (`float`): mass that is spread, in [0, 1).
        num_items (`int` or `torch.Tensor`, *optional*): what to divide the sum by; the number of targets by default.

    Returns:
        `torch.Tensor` of shape `()`: in nats per target.
    """
    loss = nn.functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=smoothing
    )
    return loss / ((labels != -100).sum() if num_items is None else num_items)


def smoothed_divergence(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Kullback-Leibler divergence of the smoothed targets from the model's words; its minimum is 0.

    The target distribution is `1 - smoothing` on the right word and `smoothing / (V - 1)` on each of the *others*.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)`): scores.
        labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
        smoothing (`float`): mass of the other words, in [0, 1).
        num_items (`int` or `torch.Tensor`, *optional*): what to divide the sum by; the number of targets by default.

    Returns:
        `torch.Tensor` of shape `()`: in nats per target.
    """
    targets = labels != -100
    log_probs = at_least_float32(logits[targets]).log_softmax(-1)  # (M, V): of the M targets only
    right = log_probs.gather(-1, labels[targets][:, None])[:, 0]  # (M,)
    other = smoothing / (logits.shape[-1] - 1)
    expected = (1 - smoothing - other) * right
    if smoothing:
        expected = expected + other * log_probs.sum(-1) - (1 - smoothing) * math.log(1 - smoothing)
        expected = expected - smoothing * math.log(other)
    return -expected.sum() / (targets.sum() if num_items is None else num_items)
