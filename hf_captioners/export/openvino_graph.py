"""A graph of torch to OpenVINO, on transformers' exporter, and with 8-bit weights if asked for."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..extras import require

if TYPE_CHECKING:
    from transformers.exporters.base import ExportedComponent


def to_openvino(graph: nn.Module, inputs: dict[str, torch.Tensor], dynamic_shapes: dict[str, Any]) -> ExportedComponent:
    """Export a module whose `forward` takes and returns flat named tensors.

    Args:
        graph (`nn.Module`): in evaluation mode.
        inputs (`dict[str, torch.Tensor]`): examples.
        dynamic_shapes (`dict[str, dict[str, Any]]`): of every input the axes that may have other sizes, as
            `torch.export` wants them.

    Returns:
        `ExportedComponent`: the OpenVINO model with what transformers records about it. It asks to be computed in
        float32, where OpenVINO would take bfloat16 on processors that have it.

    Raises:
        ImportError: OpenVINO, of the extra `openvino`, is missing.
    """
    require("openvino")
    from transformers.exporters.base import ExportedComponent
    from transformers.exporters.exporter_openvino import OpenVINOConfig, OpenVINOExporter

    # not stateful: beam search selects the rows of the state inside of the graph, whatever their number
    config = OpenVINOConfig(dynamic=True, dynamic_shapes=dynamic_shapes, stateful=False)
    module: Any = graph  # any module will do
    program, metadata = OpenVINOExporter().export_program(module, dict(inputs), config)
    metadata.export_config = {"int8": False}
    return ExportedComponent(program, metadata)


def compressed(component: ExportedComponent, inputs: dict[str, torch.Tensor]) -> ExportedComponent:
    """Make 8-bit integers of the weights of linear layers, with a scale for each row; inputs stay as they are.

    Args:
        component (`ExportedComponent`): of [`to_openvino`]; it stays as it is.
        inputs (`dict[str, torch.Tensor]`): examples.

    Returns:
        `ExportedComponent`

    Raises:
        ImportError: NNCF, of the extra `openvino`, is missing.
    """
    require("nncf")
    import nncf
    from transformers.exporters.base import ExportedComponent
    from transformers.exporters.configs import ExportFormat
    from transformers.exporters.quantizers.quantizer_nncf import NNCFOpenVINOQuantizer, NNCFWeightCompressionConfig

    quantizer = NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig(mode=nncf.CompressWeightsMode.INT8_SYM))
    program = quantizer.quantize(component.program.clone(), inputs, ExportFormat.OPENVINO)
    return ExportedComponent(program, dataclasses.replace(component.metadata, export_config={"int8": True}))
