"""Checks of what transformers' `TrainingArguments` takes as it is, and fails at later or without naming the option."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers import SchedulerType, TrainingArguments, get_scheduler
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR
from transformers.trainer_utils import HubStrategy, IntervalStrategy, SaveStrategy

AT_LEAST_ONE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "dataloader_prefetch_factor",
    "eval_accumulation_steps",
)
POSITIVE = ("num_train_epochs", "logging_steps", "save_steps")
NOT_NEGATIVE = (
    *("learning_rate", "weight_decay", "adam_epsilon", "max_grad_norm", "warmup_steps"),
    *("eval_steps", "eval_delay", "dataloader_num_workers", "seed", "data_seed"),
)
SHARES = ("adam_beta1", "adam_beta2")
STRATEGIES: dict[str, Any] = {
    "eval_strategy": IntervalStrategy,
    "logging_strategy": IntervalStrategy,
    "save_strategy": SaveStrategy,
    "hub_strategy": HubStrategy,
}
MAPPINGS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
OR_A_FILE = ("accelerator_config", "fsdp_config", "deepspeed")
"""Mappings in whose place the path of a JSON file may stand."""

_GIVEN = {"self", "optimizer", "num_warmup_steps", "num_training_steps", "last_epoch", "kwargs"}
_NO_OPTIONS = (SchedulerType.CONSTANT, SchedulerType.CONSTANT_WITH_WARMUP)
_ON_METRICS = {SchedulerType.REDUCE_ON_PLATEAU: ReduceLROnPlateau, SchedulerType.GREEDY: GreedyLR}


def check_values(args: TrainingArguments) -> None:
    """Check values that transformers reads without naming their options; called before it does.

    Args:
        args (`TrainingArguments`): as they were given.

    Raises:
        ValueError: a number out of its range, an unknown strategy, a mapping that is none, or `optim_args` that are
            no names with values.
    """
    values = vars(args)
    for names, fits, expected in (
        (AT_LEAST_ONE, lambda number: number >= 1, "at least 1"),
        (POSITIVE, lambda number: number > 0, "above 0"),
        (NOT_NEGATIVE, lambda number: number >= 0, "0 or more"),
        (SHARES, lambda number: 0 <= number < 1, "from 0 to below 1"),
        (("max_steps",), lambda number: number == -1 or number >= 1, "at least 1, or -1 for num_train_epochs"),
    ):
        for name in names:
            number = values[name]
            if number is not None and not (math.isfinite(float(number)) and fits(float(number))):
                raise ValueError(f"{name} must be {expected}, not {number}.")
    for name, strategy in STRATEGIES.items():
        known = [member.value for member in strategy]
        if values[name] not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {values[name]!r}.")
    for name in (*MAPPINGS, *OR_A_FILE):
        _check_mapping(name, values[name])
    for part in filter(None, (args.optim_args or "").replace(" ", "").split(",")):
        if part.count("=") != 1 or not all(part.split("=")):
            raise ValueError(
                f"optim_args={args.optim_args!r}: expected names and values such as 'beta2=0.98,eps=1e-9', "
                f"and {part!r} is none."
            )


def _check_mapping(name: str, value: Any) -> None:
    """Refuse a text that is no JSON of names and values."""
    if not isinstance(value, str):
        return
    if value.startswith("{"):
        try:
            json.loads(value)
        except ValueError as error:
            raise ValueError(f"{name}={value!r} is not JSON: {error}.") from error
    elif name in MAPPINGS:
        raise ValueError(f"{name}={value!r}: expected names and their values as JSON, such as '{{\"name\": 1}}'.")


def check_scheduler(name: str, options: Mapping[str, Any], learning_rate: float) -> None:
    """Check the options of a schedule of transformers by ten steps of it, on one number.

    Args:
        name (`str`): the `lr_scheduler_type`.
        options (`Mapping[str, Any]`): its `lr_scheduler_kwargs`.
        learning_rate (`float`): of the training, which some schedules compare with.

    Raises:
        ValueError: the schedule has no such option, needs one that is missing, or cannot work with a value.

    Example:

    ```python
    >>> from hf_captioners.training.option_checks import check_scheduler
    >>> check_scheduler("cosine", {"num_cycles": 2}, 1e-3)
    >>> check_scheduler("cosine", {"cycles": 2}, 1e-3)
    Traceback (most recent call last):
    ...
    ValueError: lr_scheduler_kwargs: lr_scheduler_type=cosine has no 'cycles', but num_cycles.

    ```
    """
    kind = SchedulerType(name)
    reader: Any = _ON_METRICS.get(kind, TYPE_TO_SCHEDULER_FUNCTION[kind])
    known = [] if kind in _NO_OPTIONS else [one for one in inspect.signature(reader).parameters if one not in _GIVEN]
    for option in options:
        if option not in known:
            has = f"but {', '.join(known)}" if known else "and no options at all"
            raise ValueError(f"lr_scheduler_kwargs: lr_scheduler_type={kind.value} has no {option!r}, {has}.")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)
    metrics = [1.0] if kind in _ON_METRICS else []
    try:
        with warnings.catch_warnings(action="ignore"):
            schedule: Any = get_scheduler(kind, optimizer, 1, 8, dict(options))
            for _ in range(10):
                optimizer.step()
                schedule.step(*metrics)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(
            f"lr_scheduler_kwargs={dict(options)} with lr_scheduler_type={kind.value}: {error} (it has "
            f"{', '.join(known) or 'no options'})."
        ) from error
