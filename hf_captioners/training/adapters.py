"""The captioner that adapters belong to, kept where it can be loaded again."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..modeling.captioner_adapters import BASE_FOLDER, may_be_on_hub
from .checkpoints import filled_whole
from .policy import without_adapters

logger = logging.getLogger(__name__)


def keep_base(model: Any, run: Path, processor: Any, writes: bool = True, goes_on: bool = False) -> None:
    """Keep the captioner of adapters where it can be found, and let the adapters say where.

    A captioner that was loaded and not changed is where it was loaded from. Another one is saved in `base/` of the run,
    unless the training goes on with what is there.

    Args:
        model (`PreTrainedModel` or `PeftModel`): a model without adapters is left alone.
        run (`Path`): output folder of the training.
        processor (`ProcessorMixin`): saved with the captioner.
        writes (`bool`, defaults to `True`): whether this process writes files.
        goes_on (`bool`, defaults to `False`): whether the training is gone on with.

    Raises:
        ValueError: the run's folder is that of the captioner.
        OSError: it cannot be saved.
    """
    base = without_adapters(model)
    if base is model:
        return
    name: str = base.name_or_path
    if name and Path(name).is_dir():
        name = str(Path(name).resolve())
        if Path(name) == run.resolve():
            raise ValueError(
                f"output_dir {run} is the folder of the captioner that the adapters belong to, and they would become "
                "part of it; choose another output_dir."
            )
    elif not may_be_on_hub(name):
        name = str(run.resolve() / BASE_FOLDER)
        _save(model, Path(name), processor, writes, goes_on)
    for config in model.peft_config.values():
        config.base_model_name_or_path = name


def _save(model: Any, folder: Path, processor: Any, writes: bool, goes_on: bool) -> None:
    """Save the captioner without its adapters, or take over the one that a training has left."""
    if goes_on and (folder / CONFIG_NAME).is_file():
        _take_over(without_adapters(model), folder)
    elif writes:
        alone: Any = copy.deepcopy(model).unload()
        with filled_whole(folder) as staged:
            alone.save_pretrained(staged)
            processor.save_pretrained(staged)
        (folder.parent / ADAPTER_CONFIG_NAME).unlink(missing_ok=True)  # of adapters whose base is gone
        logger.info("the captioner that the adapters belong to is saved in %s", folder)


@torch.no_grad()
def _take_over(base: Any, folder: Path) -> None:
    """Give the captioner below adapters the weights of a saved one."""
    saved = load_file(folder / SAFE_WEIGHTS_NAME)
    for name, value in base.state_dict().items():
        own = name.replace(".base_layer.", ".").replace(".original_module.", ".")
        if own in saved:
            value.copy_(saved[own])
