"""Callbacks of the captioners' trainers."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.collator import CaptionCollator


class EpochCallback(TrainerCallback):
    """Tell a [`CaptionCollator`] which epoch it is, so that it chooses other captions in each."""

    def __init__(self, collator: CaptionCollator) -> None:
        self.collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.collator.epoch = int(state.epoch or 0)
