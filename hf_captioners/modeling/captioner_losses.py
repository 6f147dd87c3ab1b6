"""The two label-smoothed losses of captions. With `smoothing` 0 both are the cross-entropy."""

from __future__ import annotations

import math

import torch

from .captioner_log_probs import TokenScores, token_scores


def smoothed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy with mass spread evenly over *all* words, as torch has it; its minimum is not 0.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)` or `(M, V)`): scores; of all places, or of those with words only.
        labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
        smoothing (`float`): mass that is spread, in [0, 1).
        num_items (`int` or `torch.Tensor`, *optional*): what to divide the sum by; the number of targets by default.

    Returns:
        `torch.Tensor` of shape `()`: in nats per target.
    """
    words = _words(logits, labels)
    expected = (1 - smoothing) * words.log_probs.sum()
    if smoothing:
        expected = expected + smoothing / logits.shape[-1] * words.sums.sum()
    return -expected / (len(words.log_probs) if num_items is None else num_items)


def smoothed_divergence(
    logits: torch.Tensor, labels: torch.Tensor, smoothing: float, num_items: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Kullback-Leibler divergence of the smoothed targets from the model's words; its minimum is 0.

    The target distribution is `1 - smoothing` on the right word and `smoothing / (V - 1)` on each of the *others*.

    Args:
        logits (`torch.Tensor` of shape `(N, T, V)` or `(M, V)`): scores; of all places, or of those with words only.
        labels (`torch.LongTensor` of shape `(N, T)`): words; -100 where there is none.
        smoothing (`float`): mass of the other words, in [0, 1).
        num_items (`int` or `torch.Tensor`, *optional*): what to divide the sum by; the number of targets by default.

    Returns:
        `torch.Tensor` of shape `()`: in nats per target.
    """
    words = _words(logits, labels)
    other = smoothing / (logits.shape[-1] - 1)
    expected = (1 - smoothing - other) * words.log_probs
    if smoothing:
        expected = expected + other * words.sums - (1 - smoothing) * math.log(1 - smoothing)
        expected = expected - smoothing * math.log(other)
    return -expected.sum() / (len(words.log_probs) if num_items is None else num_items)


def _words(logits: torch.Tensor, labels: torch.Tensor) -> TokenScores:
    """Numbers of the M words of captions."""
    places = labels != -100
    return token_scores(logits if logits.ndim == 2 else logits[places], labels[places])
