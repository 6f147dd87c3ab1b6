"""Graphs of a captioner before they are traced, examples of their inputs, and which sizes of these are free."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from torch import nn

from ..modeling.captioner_autoregressive import DecodeOptions
from ..modeling.captioner_outputs import CaptionerEncoderOutput
from ..modeling.modeling_scdnet import ScdnetForImageCaptioning
from .graphs import BEAMS, CUTS, IMAGES, PAST, START, TOKENS, WORDS, Cut, DecoderGraph, EncoderGraph, Tensors
from .manifest import Manifest
from .scdnet_graphs import ScdnetEncoderGraph, ScdnetStepGraph, read_by_stage


@dataclass
class ExportPlan:
    """Graphs of a captioner before they are traced.

    Args:
        model (`PreTrainedModel`): the captioner.
        processor (`ProcessorMixin`): its processor.
        manifest ([`Manifest`]): inputs of the graphs.
        graphs (`dict[str, nn.Module]`): by name, modules with flat named tensors.
        inputs (`dict[str, dict[str, torch.Tensor]]`): examples for each.
        dynamic_shapes (`dict[str, dict[str, Any]]`): of every input the axes that may have other sizes.
    """

    model: Any
    processor: Any
    manifest: Manifest
    graphs: dict[str, nn.Module]
    inputs: dict[str, Tensors]
    dynamic_shapes: dict[str, dict[str, Any]]
    _traced: dict[Any, dict[str, Any]] = field(default_factory=dict)

    @torch.no_grad()
    def traced(self, trace: Callable[..., Any]) -> dict[str, Any]:
        """Trace the graphs, once, whatever is made of them.

        Args:
            trace (`Callable`): [`~hf_captioners.export.onnx_graph.to_onnx`] or that of another format.

        Returns:
            `dict[str, ExportedComponent]`: of each graph, in float32.
        """
        if trace not in self._traced:
            self._traced[trace] = {
                name: trace(graph, self.inputs[name], self.dynamic_shapes[name]) for name, graph in self.graphs.items()
            }
        return self._traced[trace]


@torch.no_grad()
def plan_export(model: Any, processor: Any, image_input: str) -> ExportPlan:
    """Cut a captioner into graphs and make examples of their inputs.

    Args:
        model (`PreTrainedModel`): in float32; SCD-Net or one of [`~hf_captioners.export.graphs.CUTS`].
        processor (`ProcessorMixin`): its processor, which says how large pictures are.
        image_input (`str`): `"pixels"` or `"features"`.

    Returns:
        [`ExportPlan`]
    """
    model = model.eval()
    if isinstance(model, ScdnetForImageCaptioning):
        return _plan_diffusion(model, processor, image_input)
    cut: Cut = next(cut for kind, cut in CUTS.items() if isinstance(model, kind))(model)
    encoder = EncoderGraph(cut, masked=image_input == "features").eval()
    first, second = (
        _examples(cut, encoder, _images(model, processor, image_input, more), BEAMS + more, PAST + more)
        for more in (0, 1)
    )
    manifest = Manifest(
        image_input=image_input,
        step=cut.step,
        state={name: _shape_at_start(first.words[name], second.words[name]) for name in first.state},
        starts_with_image=first.starts_with_image,
    )
    return ExportPlan(
        model,
        processor,
        manifest,
        graphs={"encoder": encoder, "decoder": DecoderGraph(cut, first.state).eval()},
        inputs={"encoder": first.images, "decoder": first.words},
        dynamic_shapes={
            "encoder": _other_sizes(first.images, second.images),
            "decoder": _other_sizes(first.words, second.words),
        },
    )


def _plan_diffusion(model: ScdnetForImageCaptioning, processor: Any, image_input: str) -> ExportPlan:
    """Plan of SCD-Net: pictures and sentences, and a step of each stage."""
    steps: dict[str, Any] = {"decoder": model}
    if model.first_stage is not None:
        steps["first_decoder"] = model.first_stage
    encoder = ScdnetEncoderGraph(model).eval()
    graphs: dict[str, nn.Module] = {"encoder": encoder}
    graphs |= {name: ScdnetStepGraph(network).eval() for name, network in steps.items()}
    both: list[dict[str, Tensors]] = []
    for more in (0, 1):
        images = _images(model, processor, image_input, more)
        count, words = IMAGES + more, WORDS + more
        ids = torch.arange(count * words).view(count, words) % model.config.vocab_size
        inputs = {"encoder": {**images, "retrieved_ids": ids}}
        memory = {**encoder(**inputs["encoder"]), "retrieved_mask": torch.ones_like(ids)}
        memory |= {name: mask for name, mask in images.items() if name == "image_attention_mask"}
        shape = (count, BEAMS + more, *model.codec.noise.shape)
        for name, network in steps.items():
            known = read_by_stage(memory, first=name != "decoder")
            known.pop("last_hidden_state")
            bits = ("state", "known_bits", *["previous"] * network.config.sees_previous)
            noise = {part: model.codec.noise.expand(shape).clone() for part in bits}
            inputs[name] = {**noise, "log_ratios": torch.zeros(shape[:2]), **known}
        both.append(inputs)
    shapes = {name: _other_sizes(inputs, both[1][name]) for name, inputs in both[0].items()}
    manifest = Manifest(image_input=image_input, step=model.config.caption_length, state={}, starts_with_image=False)
    return ExportPlan(model, processor, manifest, graphs, both[0], shapes)


@dataclass
class _Examples:
    """Inputs of both graphs, and the names of those with a row per caption."""

    images: Tensors
    words: Tensors
    state: list[str]
    starts_with_image: bool


def _images(model: Any, processor: Any, image_input: str, more: int) -> Tensors:
    """Examples of pictures, in the second call of other sizes where these may differ."""
    if image_input == "pixels":
        images = [Image.new("RGB", (64, 48), (90, 120, 150))] * (IMAGES + more)
        return {"pixel_values": processor.image_processor(images=images, return_tensors="pt")["pixel_values"].float()}
    size = (IMAGES + more, TOKENS + more)
    mask = torch.ones(size, dtype=torch.long)
    mask[1, -1] = 0
    random = torch.Generator().manual_seed(0)
    return {
        "image_features": torch.randn(*size, model.config.feature_size, generator=random),
        "image_attention_mask": mask,
    }


def _examples(cut: Cut, encoder: EncoderGraph, images: Tensors, beams: int, past: int) -> _Examples:
    """Inputs of a step after `past` steps of `beams` captions of every picture."""
    outputs = encoder(**images)
    start = {name.removeprefix(START): outputs.pop(name) for name in list(outputs) if name.startswith(START)}
    memory = CaptionerEncoderOutput(
        last_hidden_state=outputs["last_hidden_state"], image_attention_mask=outputs.get("image_attention_mask")
    )
    count = memory.last_hidden_state.shape[0]
    words = torch.arange(count * beams * past * cut.step).view(count * beams, -1) % cut.model.config.vocab_size
    if start:
        state = {name: value.repeat_interleave(beams, dim=0) for name, value in start.items()}
        for step in range(past):
            _, state = cut.advance(words[:, step : step + 1], memory, outputs, state)
    else:
        cache = cut.model.start_cache(memory)
        # the last group of SATIC is scored from the words of the one before it
        cut.model.decode(words[:, : 1 + (past - 1) * cut.step], memory, cache, DecodeOptions())
        state = cut.state(cache)
    shape = (count, beams)
    inputs = {
        "input_ids": words[:, : cut.step].reshape(*shape, cut.step),
        "beam_idx": torch.arange(count * beams).view(shape),
        **(outputs if cut.reads_memory else {}),
        **state,
    }
    return _Examples(images, inputs, list(state), bool(start))


def _other_sizes(first: Tensors, second: Tensors) -> dict[str, Any]:
    """Of every input, the axes whose sizes differ between two examples."""
    dynamic = torch.export.Dim.DYNAMIC
    return {
        name: {
            axis: dynamic
            for axis, sizes in enumerate(zip(value.shape, second[name].shape, strict=True))
            if len(set(sizes)) > 1
        }
        for name, value in first.items()
    }


def _shape_at_start(first: torch.Tensor, second: torch.Tensor) -> list[int]:
    """Shape of a state before the first word, -1 for the number of captions."""
    later = [0 if one != other else one for one, other in zip(first.shape[1:], second.shape[1:], strict=True)]
    return [-1, *later]
