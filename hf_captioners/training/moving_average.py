"""A moving average of the weights that learn, which is evaluated, and which the trained model has at the end.

As in SCD-Net's training (arXiv 2212.03099): after each optimizer step `average <- decay * average + (1 - decay) *
weights`, beginning with a copy, without warm-up and without a correction of the bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import TrainOutput

from ..data.files import system_errors
from .checkpointing import CheckpointingTrainer

AVERAGE_FILE = "moving_average.safetensors"
RAW_FOLDER = "raw"


class MovingAverageCallback(TrainerCallback):
    """Keep a moving average of the weights that learn.

    Args:
        model (`torch.nn.Module`): what learns; its parameters with `requires_grad` are averaged.
        decay (`float`): of the average, in (0, 1).

    Attributes:
        is_in_model (`bool`): whether the model has the average, and this object the weights as they are.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._model = model
        self._move = get_ema_multi_avg_fn(decay)
        self._values: dict[str, torch.Tensor] = {}
        self._goes_on = False
        self.is_in_model = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin with a copy of the weights, unless an average has been loaded to go on with."""
        if not self._goes_on:
            self.copy_weights()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Move the average towards the weights."""
        weights = self._weights()
        self._move([self._values[name] for name in weights], list(weights.values()), 0)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let another training begin with a copy again."""
        self._goes_on = False

    def copy_weights(self) -> None:
        """Let the average be the model's weights."""
        self._values = {name: weight.detach().clone() for name, weight in self._weights().items()}
        self.is_in_model = False

    def save(self, folder: Path) -> None:
        """Write the average into a checkpoint.

        Args:
            folder (`Path`): the checkpoint.

        Raises:
            OSError: the disk is full, or the like.
        """
        with system_errors(folder):
            save_file({name: value.contiguous() for name, value in self._values.items()}, folder / AVERAGE_FILE)

    def load(self, folder: Path) -> None:
        """Go on with the average of a checkpoint.

        Args:
            folder (`Path`): the checkpoint.

        Raises:
            ValueError: it is the average of other weights.
        """
        weights, values = self._weights(), load_file(folder / AVERAGE_FILE)
        other = [name for name in weights.keys() | values.keys() if _shape(weights, name) != _shape(values, name)]
        if other:
            raise ValueError(
                f"{folder / AVERAGE_FILE}: is of other weights than those that learn here; {min(other)} and "
                f"{len(other) - 1} more differ. Train what was trained before, or begin anew."
            )
        self._values = {name: values[name].to(weight.device) for name, weight in weights.items()}
        self._goes_on, self.is_in_model = True, False

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange the model's weights and what this object holds."""
        for name, weight in self._weights().items():
            held = self._values[name].clone()
            self._values[name].copy_(weight)
            weight.copy_(held)
        self.is_in_model = not self.is_in_model

    @contextmanager
    def model_with(self, average: bool) -> Iterator[None]:
        """Have the average in the model, or the weights as they are, for a while.

        Args:
            average (`bool`): which.
        """
        other = bool(self._values) and self.is_in_model != average
        if other:
            self.exchange()
        try:
            yield
        finally:
            if other:
                self.exchange()

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: weight for name, weight in self._model.named_parameters() if weight.requires_grad}


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> torch.Size | None:
    return tensors[name].shape if name in tensors else None


class AveragingTrainer(CheckpointingTrainer):
    """A [`CheckpointingTrainer`] that may keep a moving average, exactly so across stops.

    Checkpoints hold it beside the weights. When training has ended the model has the average, of the best checkpoint if
    that was loaded; the folder of a saved model then has the weights as they are in `raw/`.
    """

    average: MovingAverageCallback | None = None

    def keep_average(self, decay: float) -> None:
        """Keep a moving average from now on.

        Args:
            decay (`float`): in (0, 1).

        Raises:
            ValueError: the weights are spread over processes.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("moving_average_decay: weights that FSDP or DeepSpeed spread over processes have none.")
        self.average = MovingAverageCallback(self.model, decay)
        self.add_callback(self.average)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Have the average in the model for a while, if there is one."""
        if self.average is None:
            yield
            return
        with self.average.model_with(average=True):
            yield

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as [`CheckpointingTrainer`] does; at the end the model has the average.

        Args, Raises: see there.

        Returns:
            `TrainOutput`
        """
        output = super().train(*args, **kwargs)
        if self.average is not None and not self.average.is_in_model:
            self.average.exchange()
        return output

    def checkpoint_parts(self, checkpoint: Path) -> list[tuple[str, ...]]:
        """As in [`CheckpointingTrainer`]; the average is part of the state of a run."""
        return [*super().checkpoint_parts(checkpoint), *([] if self.average is None else [(AVERAGE_FILE,)])]

    def write_more(self, checkpoint: Path) -> None:
        if self.average is not None and self.args.should_save:
            self.average.save(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save as `Trainer` does; behind a training with an average also the weights as they are, in `raw/`.

        Args:
            output_dir (`str`, *optional*): the folder; by default that of the run.
        """
        super().save_model(output_dir, _internal_call)
        if self.average is None or not self.average.is_in_model or _internal_call:
            return
        with self.average.model_with(average=False):
            super().save_model(str(Path(output_dir or str(self.args.output_dir)) / RAW_FOLDER), _internal_call=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        checkpoint = Path(resume_from_checkpoint)
        if self.average is None:
            return
        if (checkpoint / AVERAGE_FILE).is_file():
            self.average.load(checkpoint)
            return
        self.average.copy_weights()  # of a training that has ended, without checkpoints
        if (checkpoint / RAW_FOLDER).is_dir():
            super()._load_from_checkpoint(str(checkpoint / RAW_FOLDER), model)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.average is not None:
            self.average.load(Path(str(self.state.best_model_checkpoint)))
