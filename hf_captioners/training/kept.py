"""Lines of the log about what a training keeps: which checkpoint, why, and whether it differs from the beginning."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)


def digest_of_learning(model: nn.Module) -> str:
    """The digest of the parameters that learn, by which two states of a model are told from each other.

    Args:
        model (`torch.nn.Module`): the model.

    Returns:
        `str`

    Example:

    ```python
    >>> from torch import nn
    >>> from hf_captioners.training.kept import digest_of_learning
    >>> layer = nn.Linear(2, 2)
    >>> before = digest_of_learning(layer)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> digest_of_learning(layer) == before
    False

    ```
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        if parameter.requires_grad:
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def say_kept(state: Any, args: Any, changed: bool | None) -> None:
    """Say in the log which checkpoint is kept, where the best is, and warn of a training that has improved nothing.

    Args:
        state (`TrainerState`): at the end of the training.
        args (`TrainingArguments`): its options.
        changed (`bool`, *optional*): whether the weights differ from those that training began with; `None` if that is
            not known.
    """
    best = state.best_model_checkpoint if args.load_best_model_at_end else None
    if best is not None:
        logger.info("%s is kept, %s", best, _reason(state, args))
    if changed is False:
        logger.warning(
            "the weights that are kept are those that training began with, and it has not improved the captioner: "
            "train longer, or with another learning rate or fewer warmup_steps."
        )


def _reason(state: Any, args: Any) -> str:
    """The reason for keeping the best checkpoint, and what came before and behind it."""
    metric = f"eval_{args.metric_for_best_model.removeprefix('eval_')}"
    values = {entry["step"]: entry[metric] for entry in state.log_history if metric in entry}
    behind = [value for step, value in values.items() if step > state.best_global_step]
    reason = f"the best of {len(values)} evaluations by {metric}: {state.best_metric:.4g} at step "
    reason += f"{state.best_global_step:,} of {state.global_step:,}"
    if behind:
        reason += f"; the {len(behind)} later ones were no better, the last {behind[-1]:.4g}"
    return reason + (f"; {values[0]:.4g} before the first step" if 0 in values else "")
