"""A graph of torch to ONNX, on transformers' exporter: traced, folded, and with 8-bit weights if asked for.

onnxscript's own optimiser is left out: it takes `x + 1e-9` for `x`, and ExpansionNet v2 divides by such sums. Folding
of constants, without which the transposed weights are none that int8 finds, and the removal of what is there twice or
read nowhere, change no number.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..extras import require

if TYPE_CHECKING:
    from transformers.exporters.base import ExportedComponent

LIBRARIES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
_INT8_LAYERS = ["MatMul", "Gemm"]
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # else ONNX Runtime advises to prepare what is folded here


def to_onnx(graph: nn.Module, inputs: dict[str, torch.Tensor], dynamic_shapes: dict[str, Any]) -> ExportedComponent:
    """Export a module whose `forward` takes and returns flat named tensors.

    Args:
        graph (`nn.Module`): in evaluation mode.
        inputs (`dict[str, torch.Tensor]`): examples.
        dynamic_shapes (`dict[str, Any]`): of every input the axes that may have other sizes, as `torch.export` wants
            them.

    Returns:
        `ExportedComponent`: the ONNX model with what transformers records about it.

    Raises:
        ImportError: a library of the extra `onnx` is missing.
    """
    require(*LIBRARIES)
    from transformers.exporters.base import ExportedComponent
    from transformers.exporters.exporter_onnx import OnnxConfig, OnnxExporter

    config = OnnxConfig(dynamic=True, dynamic_shapes=dynamic_shapes, optimize=False, opset_version=OPSET)
    module: Any = graph  # any module will do
    program, metadata = OnnxExporter().export_program(module, dict(inputs), config)
    _fold(program)
    program.metadata_props[_PREPARED[0]] = _PREPARED[1]
    metadata.export_config = {"opset_version": OPSET, "int8": False}
    return ExportedComponent(program, metadata)


def _fold(program: Any) -> None:
    """Compute what is constant, once, and remove what is there twice or read nowhere."""
    from onnx_ir import passes
    from onnx_ir.passes import common
    from onnxscript import optimizer

    common.InlinePass()(program)
    limit = 2**31
    for _ in range(2):
        optimizer.fold_constants(
            program,
            onnx_shape_inference=True,
            input_size_limit=limit,
            output_size_limit=limit,
            # in plain Python, minutes for a table of positions
            should_fold=lambda node: False if node.op_type == "Resize" else None,
        )
        common.RemoveUnusedNodesPass()(program)
    passes.Sequential(
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(program)


def quantized(component: ExportedComponent, inputs: dict[str, torch.Tensor]) -> ExportedComponent:
    """Make 8-bit integers of the weights of linear layers, per column, and of their inputs when they run.

    Weights take 7 of the 8 bits, so that results do not depend on the processor (ONNX Runtime, "Quantize ONNX Models").

    Args:
        component (`ExportedComponent`): of [`to_onnx`]; it stays as it is.
        inputs (`dict[str, torch.Tensor]`): examples.

    Returns:
        `ExportedComponent`
    """
    from onnxruntime.quantization import QuantType
    from transformers.exporters.base import ExportedComponent
    from transformers.exporters.configs import ExportFormat
    from transformers.exporters.quantizers.quantizer_onnxruntime import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    config = OnnxRuntimeDynamicConfig(
        op_types_to_quantize=_INT8_LAYERS, per_channel=True, weight_type=QuantType.QInt8,
        reduce_range=True,  # 7 bits: with 8, sums of products saturate on processors without VNNI
        extra_options={"MatMulConstBOnly": True},
    )  # fmt: skip
    program = OnnxRuntimeQuantizer(config).quantize(component.program, inputs, ExportFormat.ONNX)
    settings = {**(component.metadata.export_config or {}), "int8": True}
    return ExportedComponent(program, dataclasses.replace(component.metadata, export_config=settings))
