"""The frozen model that reward training stays close to."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ...families import CaptionFamily, learns, without_adapters

ADAPTER = "reference"


class ReferenceModel:
    """The reference of a policy: a model of its own, the policy without its adapters, or with those it began with.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the policy's model, before training.
        family ([`CaptionFamily`]): how the trainer calls it.
        ref_model (`PreTrainedModel`, *optional*): the reference. By default, if the model has adapters that learned
            before, a frozen copy of them; if they are fresh, the model without them; otherwise a frozen copy of the
            model that shares its backbone, where that does not learn.
        fresh_adapters (`bool`, defaults to `False`): whether the model's adapters have been added just now.

    Raises:
        ValueError: `ref_model` is the model itself, or what it has adapters in; the adapter that learns has the name
            that the frozen copy would get.
    """

    def __init__(self, model: Any, family: CaptionFamily, ref_model: Any = None, fresh_adapters: bool = False) -> None:
        if ref_model is not None and without_adapters(ref_model) is without_adapters(model):
            raise ValueError("ref_model is the model itself and would learn with it; give a copy, or None.")
        self.family = family
        self.adapter: str | None = None
        has_adapters = without_adapters(model) is not model
        if ref_model is None and has_adapters and not fresh_adapters:
            self.adapter = _freeze_adapter(model)
        elif ref_model is None and not has_adapters:
            ref_model = frozen_copy(model, family)
        self.model = None if ref_model is None else ref_model.requires_grad_(False).eval()

    @contextmanager
    def in_use(self, model: Any) -> Iterator[Any]:
        """Put the reference into evaluation mode, without gradient, for the time of a `with` block.

        Args:
            model (`PreTrainedModel` or `PeftModel`): the policy's model, unwrapped.
        """
        training = model.training
        with torch.no_grad():
            if self.model is not None:
                yield self.model
                return
            model.eval()
            try:
                with _using_adapter(model, self.adapter):
                    yield model
            finally:
                model.train(training)

    def shares_backbone(self, model: Any) -> bool:
        """Tell whether what the policy's frozen backbone sees is what the reference's sees."""
        if self.model is None:
            return True
        return self.family.backbone(self.model) is self.family.backbone(without_adapters(model))

    def move_to(self, device: torch.device) -> None:
        """Follow the policy to its device."""
        if self.model is not None:
            self.model.to(device)


def frozen_copy(model: Any, family: CaptionFamily) -> Any:
    """A copy of a model that shares with it what does not learn: its backbone, and other frozen parameters."""
    backbone = family.backbone(model)
    shared: dict[int, Any] = {id(one): one for one in model.parameters() if not one.requires_grad}
    if backbone is not None and not learns(backbone):
        shared[id(backbone)] = backbone
    return copy.deepcopy(model, shared)


@contextmanager
def _using_adapter(model: Any, name: str | None) -> Iterator[None]:
    """Another adapter, or none; afterwards the same one is active and the same parameters learn as before."""
    active = model.active_adapter
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        if name is None:
            with model.disable_adapter():
                yield
        else:
            model.set_adapter(name, inference_mode=True)
            yield
    finally:
        if name is not None:
            model.set_adapter(active)
        for parameter, wanted in learning:  # peft lets everything learn in what it switches on
            parameter.requires_grad_(wanted)


def _freeze_adapter(model: Any) -> str:
    """Keep a copy of the adapter that the model has, and return its name."""
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    active = model.active_adapter
    if active == ADAPTER:
        raise ValueError(f"the adapter that learns is called {ADAPTER!r}, as its frozen copy would be; rename it.")
    if ADAPTER in model.peft_config:  # of an earlier training
        model.delete_adapter(ADAPTER)
    config = copy.deepcopy(model.peft_config[active])
    if isinstance(config, LoraConfig):
        config.init_lora_weights = True  # other ways to begin, such as PiSSA, change the weights below the adapters
    learning = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.add_adapter(ADAPTER, config)
    state = get_peft_model_state_dict(model, adapter_name=active, save_embedding_layers=False)
    set_peft_model_state_dict(model, state, adapter_name=ADAPTER)
    model.requires_grad_(False)
    for parameter, wanted in learning:
        parameter.requires_grad_(wanted)
    return ADAPTER


class SyncReferenceCallback(TrainerCallback):
    """Let the reference follow the policy (arXiv 2404.09656): every `ref_model_sync_steps` optimizer steps it becomes
    `ref_model_mixup_alpha` of the policy and the rest of itself.

    Like TRL's callback, but what the two models share is left alone, and the statistics of batch norms follow too.

    Args:
        reference (`PreTrainedModel`): the reference.
    """

    def __init__(self, reference: Any) -> None:
        self.reference = reference

    @torch.no_grad()
    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        options: Any = args
        if state.global_step % options.ref_model_sync_steps:
            return
        source = _state(_unwrapped(kwargs["model"]))
        for name, value in _state(self.reference).items():
            if value is source[name]:
                continue
            if value.is_floating_point():
                value.lerp_(source[name].to(value), options.ref_model_mixup_alpha)
            else:  # a counter
                value.copy_(source[name])


def _state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _unwrapped(model: Any) -> Any:
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model
