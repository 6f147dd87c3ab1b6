"""Stopping before the optimizer's step at the first loss or gradient that is no finite number."""

from __future__ import annotations

from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

SHOWN_ROWS = 8


class FiniteCallback(TrainerCallback):
    """Check losses and gradients, and name the rows that they are of.

    After one step with a loss or gradient that is no number all weights are none, and the log says 0.0.

    Args:
        gradients (`bool`, defaults to `True`): whether to check gradients too; not where float16 is scaled, since a
            scaler leaves out such steps by itself.
    """

    def __init__(self, gradients: bool = True) -> None:
        self.gradients = gradients
        self.rows: list[str] = []

    def check_loss(self, loss: torch.Tensor, rows: list[str], state: TrainerState, args: TrainingArguments) -> None:
        """Take in the loss of a micro-batch.

        Args:
            loss (`torch.Tensor` of shape `()`): of the micro-batch.
            rows (`list[str]`): names of its rows.
            state (`TrainerState`), args (`TrainingArguments`): of the training.

        Raises:
            FloatingPointError: it is no finite number.
        """
        if not loss.isfinite():
            raise _error(f"the loss is {loss.item()}", rows, state, args)
        self.rows.extend(rows)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        rows, self.rows = self.rows, []
        gradients = [parameter.grad for parameter in kwargs["model"].parameters() if parameter.grad is not None]
        if self.gradients and gradients:
            largest = torch.nn.utils.get_total_norm(gradients, norm_type=torch.inf)
            if not largest.isfinite():
                raise _error(f"a gradient is {largest.item()}", rows, state, args)


def _error(problem: str, rows: list[str], state: TrainerState, args: TrainingArguments) -> FloatingPointError:
    more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
    return FloatingPointError(
        f"step {state.global_step + 1}: {problem}, before the optimizer's step, of the rows "
        f"{', '.join(rows[:SHOWN_ROWS]) or '(without names)'}{more}.\n"
        f"Look at their features or captions, or lower learning_rate={args.learning_rate:g} or raise its warm-up."
    )
