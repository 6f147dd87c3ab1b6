"""A captioner to a folder of two ONNX graphs, which captions as the captioner does, without torch's weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..data.files import check_can_be_made, replace_folder, working_folder
from .graphs import CUTS
from .onnx_graph import quantized
from .planning import ExportPlan, plan_export

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
    target = Path(out_dir).resolve()
    image_input = image_input or ("features" if model.config.features_only else "pixels")
    _check(model, target, image_input)
    return write_onnx(plan_export(model, processor, image_input), target, int8)


def write_onnx(plan: ExportPlan, target: Path, int8: bool = False) -> ExportReport:
    """Write the ONNX graphs of a plan as a folder for [`ExportedCaptioner`].

    Args:
        plan ([`ExportPlan`]): of the captioner.
        target (`Path`): an absolute path, new or an empty folder.
        int8 (`bool`, defaults to `False`): see [`export_captioner`].

    Returns:
        [`ExportReport`]
    """
    from transformers.exporters.base import ExportedModel

    components = dict(plan.onnx)
    if int8:
        components = {name: quantized(component, plan.inputs[name]) for name, component in components.items()}
    config = copy.deepcopy(plan.model.config)
    config.architectures = [type(plan.model).__name__]
    with working_folder(target.parent, f".{target.name}.", ".new") as folder:
        ExportedModel(components, "onnx", config, plan.model.generation_config).save_pretrained(folder)
        plan.processor.save_pretrained(folder)
        plan.manifest.write(folder)
        sizes = {name: _bytes_of(folder, name) for name in components}
        replace_folder(folder, target)
    return ExportReport(target, {name: _count(component) for name, component in components.items()}, sizes)


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


def _bytes_of(folder: Path, name: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(f"{name}.onnx*"))


def _count(component: Any) -> int:
    return sum(1 for _ in component.program.graph)
