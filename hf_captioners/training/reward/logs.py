"""Logged numbers of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...metrics.diversity import diversity
from ...metrics.tokens import Tokenizer
from ..watch.completions import CompletionRow
from ..watch.running_metrics import RunningMetrics
from .rollout import Rollout


def log_rollout(
    metrics: RunningMetrics,
    rollout: Rollout,
    log_probs: torch.Tensor,
    entropies: torch.Tensor,
    tokenizer: Tokenizer = "ptb",
) -> None:
    """Take in what is logged of the candidates of a micro-batch, whatever the method.

    Args:
        metrics ([`RunningMetrics`]): where to log.
        rollout ([`Rollout`]): the micro-batch.
        log_probs, entropies (`torch.Tensor` of shape `(B * k, T - 1)`): of the policy, 0 where no token counts.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts captions into words, to count those that are
            repeated; see [`~hf_captioners.metrics.tokenize`].
    """
    candidates, rewards, functions = rollout.candidates, rollout.rewards, rollout.function_rewards
    metrics.add("reward", rewards[rollout.valid])
    for name, column in zip(
        rollout.function_rewards.names, rollout.function_rewards.per_function.unbind(dim=1), strict=True
    ):
        known = column[~column.isnan()]
        metrics.add(f"rewards/{name}/mean", known)
        metrics.add_deviation(f"rewards/{name}/std", known)
    for name, value in functions.metrics.items():
        metrics.add(name, torch.tensor([value]))
    deviations = deviation(rewards, rollout.valid)
    metrics.add("reward_std", deviations)
    metrics.add("frac_reward_zero_std", (deviations < 1e-8).float())
    metrics.add("entropy", entropies[candidates.mask])
    if rollout.reference_log_probs is not None:
        metrics.add("kl", (log_probs - rollout.reference_log_probs).sum(dim=1))
    for name in ("mean_length", "min_length", "max_length"):
        metrics.add(f"completions/{name}", candidates.lengths)
    metrics.add("completions/valid_ratio", rollout.valid.float())
    metrics.add("completions/clipped_ratio", (~candidates.finished).float())
    metrics.add("completions/unique_ratio", candidates.firsts.float().mean(dim=1))
    repetition = diversity(candidates.texts, max_n=2, tokenizer=tokenizer).per_image["repetition_2"]
    metrics.add("completions/repetition", torch.as_tensor(repetition))


def completion_rows(rollout: Rollout, shown: dict[str, torch.Tensor]) -> list[CompletionRow]:
    """The candidates of a micro-batch with their rewards, for the table of completions.

    Args:
        rollout ([`Rollout`]): the micro-batch.
        shown (`dict[str, torch.Tensor]`): further numbers of each candidate, `(B * k,)`.

    Returns:
        `list[CompletionRow]`
    """
    rewards, k = rollout.function_rewards, rollout.candidates.k
    names = rollout.columns.get("image_id", list(range(len(rollout.rewards))))
    files = rollout.columns.get("file_name", [_file_name(image) for image in rollout.columns.get("image", names)])
    further = {**rewards.extra, **{name: values.tolist() for name, values in shown.items()}}
    return [
        CompletionRow(
            image_id=names[row // k],
            completion=text,
            rewards=dict(zip(rewards.names, rewards.per_function[row].tolist(), strict=True)),
            reward=float(rewards.total[row]),
            extra={name: values[row] for name, values in further.items()},
            file_name=files[row // k],
        )
        for row, text in enumerate(rollout.candidates.texts)
    ]


def _file_name(image: Any) -> str | None:
    """The name of the file that a closed image is in, if it is in one."""
    path = image.get("path") if isinstance(image, Mapping) else image
    return Path(path).name if isinstance(path, str | Path) else None


def deviation(rewards: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Standard deviation of the rewards `(B, k)` of each picture's valid candidates; of pictures that have any.

    In float64, or equal rewards such as 2.3 would deviate by the rounding of their mean.
    """
    rewards, valid = rewards.cpu().double(), valid.cpu()
    number = valid.sum(dim=1, keepdim=True)
    mean = rewards.masked_fill(~valid, 0.0).sum(dim=1, keepdim=True) / number
    squares = (rewards - mean).square().masked_fill(~valid, 0.0).sum(dim=1, keepdim=True)
    return (squares / number).sqrt()[number > 0]
