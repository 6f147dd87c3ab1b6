"""Adapters in training: new ones, and the captioner that they belong to, kept where it can be loaded again."""

from __future__ import annotations

import copy
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..families import without_adapters
from ..modeling.captioner_adapters import BASE_FOLDER, may_be_on_hub
from ..modeling.captioner_base import CaptionerPreTrainedModel
from .checkpoints import filled_whole

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


def with_adapters(model: PreTrainedModel, peft_config: Any) -> Any:
    """Give a model new adapters, which alone learn.

    Args:
        model (`PreTrainedModel`): the model.
        peft_config (`PeftConfig`): the adapters; where it names no layers, a captioner's own `LORA_TARGET_MODULES` are
            put into it, or those that peft knows of such a model.

    Returns:
        `PeftModel`

    Raises:
        ValueError: no layers are named, and peft knows none of such a model.
    """
    from peft import get_peft_model

    if peft_config.target_modules is None and isinstance(model, CaptionerPreTrainedModel):
        peft_config.target_modules = model.LORA_TARGET_MODULES
    try:
        return get_peft_model(model, peft_config)
    except ValueError as error:
        if peft_config.target_modules is not None:
            raise
        raise ValueError(
            f"target_modules (lora_target_modules): peft knows no layers of a {model.config.model_type} for adapters; "
            f"name some of {', '.join(_linear_names(model))}."
        ) from error


def _linear_names(model: PreTrainedModel) -> list[str]:
    """The last parts of the names of linear layers, each once."""
    linear = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    return list(dict.fromkeys(name.rpartition(".")[2] for name in linear))


def check_adapters(model: Any, peft_config: Any, train_backbone: str) -> None:
    """Refuse models whose adapters would be lost or would not learn, and a backbone that would not be saved.

    Args:
        model (`PreTrainedModel` or `PeftModel`): what is to learn.
        peft_config (`PeftConfig`, *optional*): new adapters.
        train_backbone (`str`): what of the backbone learns.

    Raises:
        ValueError: adapters together with a backbone that learns, or on top of others.
    """
    if train_backbone != "none" and (peft_config is not None or without_adapters(model) is not model):
        raise ValueError(
            f"train_backbone={train_backbone!r} and adapters (lora_rank, peft_config) exclude each other: adapters are "
            "saved alone, and the backbone would not be; leave train_backbone out, or train the model itself. Adapters "
            "learn in the backbone too where lora_target_modules names its layers."
        )
    if without_adapters(model) is not model:
        if peft_config is not None:
            raise ValueError("peft_config: the model is a PeftModel and has adapters already; leave peft_config out.")
    elif "peft_config" in vars(model):  # put there by transformers' from_pretrained
        raise ValueError(
            "the model has adapters that from_pretrained put into it, frozen; open its folder with "
            "peft.PeftModel.from_pretrained(base_model, folder, is_trainable=True) to train them on."
        )
