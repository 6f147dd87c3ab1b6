"""A captioner to a folder of graphs for ONNX Runtime or OpenVINO, which captions as the captioner does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data.files import check_can_be_made, replace_folder, working_folder
from ..modeling.modeling_scdnet import ScdnetForImageCaptioning
from .graphs import CUTS
from .greedy_graph import FORMS, GreedyRule, greedy_graph, save_greedy_graph
from .onnx_graph import quantized, to_onnx
from .openvino_graph import compressed, to_openvino
from .planning import ExportPlan, plan_export
from .silence import silence

INPUTS = ("pixels", "features")
FORMATS = {"onnx": (to_onnx, quantized), "openvino": (to_openvino, compressed)}
"""Formats: what traces a graph, and what makes integers of its weights."""


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
    model: Any,
    processor: Any,
    out_dir: str | Path,
    export_format: str = "onnx",
    *,
    image_input: str | None = None,
    int8: bool = False,
    bf16: bool = False,
    greedy: str | None = None,
    accept: Callable[[Path], None] | None = None,
) -> ExportReport:
    """Export a captioner to ONNX or OpenVINO, as a folder for [`ExportedCaptioner`].

    The graph of the pictures and that of a step take any number of pictures, beams and words; pictures have the size
    that the processor makes, features any number of tokens.

    Args:
        model (`PreTrainedModel`): in float32; SCD-Net or one of [`~hf_captioners.export.graphs.CUTS`].
        processor (`ProcessorMixin`): its processor.
        out_dir (`str` or `Path`): a new or empty folder.
        export_format (`str`, defaults to `"onnx"`): or `"openvino"`.
        image_input (`str`, *optional*): `"pixels"`, or `"features"` of cached ones; by default what the captioner sees
            itself.
        int8 (`bool`, defaults to `False`): 8-bit integers for the weights of linear layers, and with ONNX for their
            inputs when they run: a quarter of the size, and other in the last digits, which can change a caption.
        bf16 (`bool`, defaults to `False`): compute in bfloat16 on processors that have it, of OpenVINO alone; this can
            change a caption, too.
        greedy (`str`, *optional*): also write `greedy.onnx`, one graph from pictures to words: `"loop"`, or
            `"unrolled"` without a `Loop`; see [`~hf_captioners.export.greedy_graph`].
        accept (`Callable[[Path], None]`, *optional*): gets the finished folder before it is put in its place; an error
            of it leaves nothing behind.

    Returns:
        [`ExportReport`]

    Raises:
        ExportError: the captioner, its precision or its inputs cannot be exported; `out_dir` has files.
        ImportError: a library of the extra `onnx` or `openvino` is missing.

    Example:

    ```python
    >>> from hf_captioners.export import export_captioner
    >>> export_captioner(model, processor, "onnx").nodes  # doctest: +SKIP
    {'encoder': 1121, 'decoder': 640}

    ```
    """
    target = Path(out_dir).resolve()
    image_input = image_input or ("features" if getattr(model.config, "features_only", False) else "pixels")
    _check(model, target, export_format, image_input, bf16, greedy)
    plan = plan_export(model, processor, image_input)
    return write_export(plan, target, export_format, int8=int8, bf16=bf16, greedy=greedy, accept=accept)


def write_export(
    plan: ExportPlan,
    target: Path,
    export_format: str = "onnx",
    *,
    int8: bool = False,
    bf16: bool = False,
    greedy: str | None = None,
    accept: Callable[[Path], None] | None = None,
) -> ExportReport:
    """Write the graphs of a plan as a folder for [`ExportedCaptioner`].

    Args:
        plan ([`ExportPlan`]): of the captioner.
        target (`Path`): an absolute path, new or an empty folder.
        export_format, int8, bf16, greedy, accept: see [`export_captioner`].

    Returns:
        [`ExportReport`]
    """
    from transformers.exporters.base import ExportedModel

    trace, in_bits = FORMATS[export_format]
    rule = None if greedy is None else GreedyRule.of(plan.model, plan.inputs["encoder"])
    with silence():
        components = dict(plan.traced(trace))
        if int8:
            components = {name: in_bits(component, plan.inputs[name]) for name, component in components.items()}
    config = copy.deepcopy(plan.model.config)
    config.architectures = [type(plan.model).__name__]
    target.parent.mkdir(parents=True, exist_ok=True)
    with working_folder(target.parent, f".{target.name}.", ".new") as folder:
        ExportedModel(components, export_format, config, plan.model.generation_config).save_pretrained(folder)
        plan.processor.save_pretrained(folder)
        replace(plan.manifest, bfloat16=bf16).write(folder)
        if rule is not None and greedy is not None:
            save_greedy_graph(greedy_graph(components, plan.manifest, rule, greedy), folder)
        names = [*components, *["greedy"] * (greedy is not None)]
        sizes = {name: _bytes_of(folder, name) for name in names}
        if accept is not None:
            accept(folder)
        replace_folder(folder, target)
    return ExportReport(target, {name: _count(component) for name, component in components.items()}, sizes)


def _check(model: Any, target: Path, export_format: str, image_input: str, bf16: bool, greedy: str | None) -> None:
    kinds: Any = (*CUTS, ScdnetForImageCaptioning)
    if export_format not in FORMATS:
        raise ExportError(f"export_format must be one of {', '.join(FORMATS)}, not {export_format!r}")
    if not isinstance(model, kinds):
        known = ", ".join(kind.__name__ for kind in kinds)
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
    if bf16 and export_format != "openvino":
        raise ExportError("bfloat16 is a choice of OpenVINO: give export_format='openvino'")
    if greedy is not None:
        _check_greedy(model, export_format, greedy)
    check_can_be_made(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ExportError(f"{target}: must be a new or an empty folder")


def _check_greedy(model: Any, export_format: str, greedy: str) -> None:
    if greedy not in FORMS:
        raise ExportError(f"greedy must be one of {', '.join(FORMS)}, not {greedy!r}")
    if export_format != "onnx":
        raise ExportError("a greedy graph is an ONNX graph: give export_format='onnx'")
    if isinstance(model, ScdnetForImageCaptioning):
        raise ExportError("a diffusion captioner writes all words at once and has no greedy graph")


def _bytes_of(folder: Path, name: str) -> int:
    files = [*folder.glob(f"{name}.onnx*"), *folder.glob(f"openvino_{name}.*")]
    return sum(path.stat().st_size for path in files)


def _count(component: Any) -> int:
    program = component.program
    return len(program.get_ops()) if "openvino" in type(program).__module__ else sum(1 for _ in program.graph)
