"""Checks before the first step of what would end a training after its last one: folder, disk, and rights on the Hub."""

from __future__ import annotations

import logging
import math
import shutil
import tempfile
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from transformers import PreTrainedModel
from transformers.trainer_utils import SaveStrategy, has_length

from ..families import without_adapters
from ..hub.access import HubError, check_write_rights

logger = logging.getLogger(__name__)

FEW_IMAGES = 50
"""Below that many evaluation pictures document frequencies are a matter of chance."""

STATES = {"adamw": 2, "radam": 2, "ademamix": 2, "lion_32bit": 1, "adagrad": 1, "rmsprop": 1}
"""Numbers that an optimizer keeps for each one it changes, by the beginning of its name; at least, so 0 for others."""


def check_output_dir(folder: str | Path) -> None:
    """Write into the output folder, which is made if it is not there.

    Args:
        folder (`str` or `Path`): the folder.

    Raises:
        ValueError: it cannot be made or written.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"output_dir {folder} cannot be written: {error.strerror or error}.") from error


def checkpoint_bytes(model: PreTrainedModel, args: Any) -> tuple[int, int]:
    """Sizes of what a training writes.

    Args:
        model (`PreTrainedModel` or `PeftModel`): what learns, and what does not.
        args (`TrainingArguments`): the optimizer.

    Returns:
        `tuple[int, int]`: bytes of the model (of adapters alone, where there are some), and of a checkpoint, at least.
    """
    learning = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    saved = sum(tensors.values()) if without_adapters(model) is model else learning
    if args.save_only_model:
        return saved, saved
    name = str(args.optim.value if isinstance(args.optim, Enum) else args.optim)
    known = [number for start, number in STATES.items() if name.startswith(start)]
    states = known[0] if known and not name.endswith(("_8bit", "_4bit")) else 0
    return saved, saved + states * learning


def checkpoints_at_once(args: Any, max_steps: int, steps_per_epoch: int) -> int:
    """The most checkpoints that are on the disk at the same time.

    Args:
        args (`TrainingArguments`): when to save, and how many to keep.
        max_steps (`int`): steps of the training.
        steps_per_epoch (`int`): steps of an epoch.

    Returns:
        `int`: one more than are kept, since an old one is deleted when the new one is there.
    """
    strategy = SaveStrategy(args.save_strategy)
    if strategy == SaveStrategy.STEPS:
        every = args.save_steps if args.save_steps >= 1 else max(1, math.ceil(max_steps * args.save_steps))
        saves = math.ceil(max_steps / every)
    else:
        epochs = math.ceil(max_steps / max(steps_per_epoch, 1))
        saves = {SaveStrategy.NO: 0, SaveStrategy.EPOCH: epochs}.get(strategy, 1)
    limit = args.save_total_limit or 0
    return saves if limit <= 0 else min(saves, limit + 1)


def check_disk_space(folder: str | Path, needed: int, what: str) -> None:
    """Refuse to begin what cannot be saved.

    Args:
        folder (`str` or `Path`): where it is to be saved; it exists.
        needed (`int`): bytes.
        what (`str`): what they are, for the message.

    Raises:
        ValueError: the disk has less.
    """
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"output_dir {folder}: its disk has {_size(free)} left, and {what} need at least {_size(needed)}; make "
            "room, keep fewer by save_total_limit, leave the optimizer out by save_only_model=True, or go on without "
            "this check by check_disk_space=False."
        )


def _size(number: int) -> str:
    """Bytes as people write them."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number} bytes"


def warn_of_few_images(dataset: Any, metrics: Sequence[str]) -> None:
    """Warn of CIDEr over so few pictures that the document frequencies of their words say little.

    Args:
        dataset (`Dataset`): evaluation rows.
        metrics (`Sequence[str]`): of their captions.
    """
    names = [name for name in metrics if name.startswith("cider")]
    if names and has_length(dataset) and 1 < len(dataset) < FEW_IMAGES:
        logger.warning(
            "%s of %d evaluation pictures counts words in the references of these alone; below about %d of them it "
            "says little and changes much with each.",
            *(" and ".join(names), len(dataset), FEW_IMAGES),
        )


def check_hub_rights(args: Any, api: HfApi | None = None) -> None:
    """Ask the Hub whether the trained model may be written there, where `push_to_hub` says so.

    Args:
        args (`TrainingArguments`): `push_to_hub`, `hub_model_id` and `hub_token`.
        api (`HfApi`, *optional*): the Hub.

    Raises:
        ValueError: it cannot be reached, nobody is logged in, or the token or its owner may not write there.
    """
    if not args.push_to_hub:
        return
    try:
        check_write_rights(args.hub_model_id, args.hub_token, api)
    except HubError as error:
        later = "or leave push_to_hub out and push the folder later: hf-captioners push FOLDER NAME"
        raise ValueError(f"push_to_hub=True, hub_model_id={args.hub_model_id}: {error}; {later}.") from error
