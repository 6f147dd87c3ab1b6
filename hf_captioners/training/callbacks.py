"""Callbacks of the captioners' trainers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .collator import ImageCollator


class EpochCallback(TrainerCallback):
    """Tell a collator which epoch it is, so that it chooses something else in each."""

    def __init__(self, collator: ImageCollator) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)


class GradientClampCallback(TrainerCallback):
    """Clamp every element of the gradients, after any clipping of their norm and before the optimizer's step.

    Args:
        limit (`float`): largest absolute value.
    """

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        torch.nn.utils.clip_grad_value_(kwargs["model"].parameters(), self.limit)
