"""A captioner to a folder of two ONNX graphs, which captions as the captioner does, without torch's weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..data.files import check_can_be_made, replace_folder, working_folder
from ..modeling.captioner_autoregressive import DecodeOptions
from ..modeling.captioner_outputs import CaptionerEncoderOutput
from .graphs import BEAMS, CUTS, IMAGES, PAST, START, TOKENS, Cut, DecoderGraph, EncoderGraph, Tensors
from .manifest import Manifest
from .onnx_graph import to_onnx

INPUTS = ("pixels", "features")


class ExportError(ValueError):
    """A captioner that cannot be exported, or a folder that cannot be written."""


@dataclass(frozen=True)
class ExportReport:
    """The result of an export.

    Attributes:
        out_dir (`Path`): the folder that was written.
        nodes (`dict[str, int]`): operations of each graph.
        num_bytes (`dict[str, int]`): bytes of each graph, its weights included.
    """

    out_dir: Path
    nodes: dict[str, int]
    num_bytes: dict[str, int]


@torch.no_grad()
def export_captioner(
    model: Any, processor: Any, out_dir: str | Path, *, image_input: str | None = None, int8: bool = False
) -> ExportReport:
    """Export a captioner to ONNX, as a folder for [`ExportedCaptioner`].

    The graph of the pictures and that of a step take any number of pictures, beams and words; pictures have the size
    that the processor makes, features any number of tokens.

    Args:
        model (`PreTrainedModel`): in float32; one of [`~hf_captioners.export.graphs.CUTS`].
        processor (`ProcessorMixin`): its processor.
        out_dir (`str` or `Path`): a new or empty folder.
        image_input (`str`, *optional*): `"pixels"`, or `"features"` of cached ones; by default what the captioner sees
            itself.
        int8 (`bool`, defaults to `False`): 8-bit integers for the weights of linear layers: a quarter of the size,
            faster on CPUs, and other in the last digits, which can change a caption.

    Returns:
        [`ExportReport`]

    Raises:
        ExportError: the captioner, its precision or its inputs cannot be exported; `out_dir` has files.
        ImportError: a library of the extra `onnx` is missing.

    Example:

    ```python
    >>> from hf_captioners.export import export_captioner
    >>> export_captioner(model, processor, "onnx").nodes  # doctest: +SKIP
    {'encoder': 1121, 'decoder': 640}

    ```
    """
    from transformers.exporters.base import ExportedModel

    target = Path(out_dir).resolve()
    image_input = image_input or ("features" if model.config.features_only else "pixels")
    _check(model, target, image_input)
    model = model.eval()
    cut = _cut_of(model)
    masked = image_input == "features"
    encoder = EncoderGraph(cut, masked).eval()
    first, second = (
        _examples(cut, encoder, _images(model, processor, image_input, more), BEAMS + more, PAST + more)
        for more in (0, 1)
    )
    decoder = DecoderGraph(cut, first.state).eval()
    manifest = Manifest(
        image_input=image_input,
        step=cut.step,
        state={name: _shape_at_start(first.words[name], second.words[name]) for name in first.state},
        starts_with_image=first.starts_with_image,
    )
    components = {
        "encoder": to_onnx(encoder, first.images, _other_sizes(first.images, second.images), int8),
        "decoder": to_onnx(decoder, first.words, _other_sizes(first.words, second.words), int8),
    }
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    with working_folder(target.parent, f".{target.name}.", ".new") as folder:
        ExportedModel(components, "onnx", config, model.generation_config).save_pretrained(folder)
        processor.save_pretrained(folder)
        manifest.write(folder)
        sizes = {name: _bytes_of(folder, name) for name in components}
        replace_folder(folder, target)
    return ExportReport(target, {name: _count(component) for name, component in components.items()}, sizes)


@dataclass
class _Examples:
    """Inputs of both graphs, and the names of those with a row per caption."""

    images: Tensors
    words: Tensors
    state: list[str]
    starts_with_image: bool


def _check(model: Any, target: Path, image_input: str) -> None:
    kinds: Any = tuple(CUTS)
    if not isinstance(model, kinds):
        known = ", ".join(kind.__name__ for kind in CUTS)
        raise ExportError(f"a {type(model).__name__} cannot be exported; these captioners can: {known}")
    if not any(True for _ in model.parameters()):
        raise ExportError("this captioner is an exported one already")
    if image_input not in INPUTS:
        raise ExportError(f"image_input must be one of {', '.join(INPUTS)}, not {image_input!r}")
    if image_input == "pixels" and model.config.features_only:
        raise ExportError("this captioner reads features and sees no pixels: give image_input='features'")
    if vars(model.config).get("tag_token_ids"):
        raise ExportError("a captioner with a tag predictor cannot be exported: its anchors are no part of the graphs")
    if model.dtype != torch.float32:
        raise ExportError(f"the captioner is in {model.dtype}; load it with dtype=torch.float32")
    check_can_be_made(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target}: must be a new or an empty folder")


def _cut_of(model: Any) -> Cut:
    return next(cut for kind, cut in CUTS.items() if isinstance(model, kind))(model)


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


def _bytes_of(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{name}.onnx*"))


def _count(component: Any) -> int:
    return sum(1 for _ in component.program.graph)
