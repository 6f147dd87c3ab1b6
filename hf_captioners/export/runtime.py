"""Exported captioners: ONNX Runtime or OpenVINO computes, and everything else is the captioner's own class.

An exported captioner is a subclass of its captioner without weights. Pictures and steps go through the graphs;
`generate` and every way of decoding are those of the captioner.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers.utils import cached_file, logging

from ..captioner_table import CAPTIONERS, captioner_classes
from ..extras import require
from ..modeling.captioner_hub import at_once
from ..modeling.modeling_satic import SaticForImageCaptioning
from ..modeling.modeling_scdnet import ScdnetForImageCaptioning
from .manifest import FILE, FOLDERS, Manifest, export_format, split_name
from .running import stand_in
from .scdnet_runtime import ExportedScdnet
from .words_runtime import ExportedGroups, ExportedWords

logger = logging.get_logger(__name__)

PRECISION = "INFERENCE_PRECISION_HINT"  # of OpenVINO
_MIXINS: dict[type, type] = {SaticForImageCaptioning: ExportedGroups, ScdnetForImageCaptioning: ExportedScdnet}


class ExportedCaptioner:
    """Captioner that `hf-captioners export` has written, loaded by [`from_pretrained`].

    It captions on the CPU, or on a GPU with a build of ONNX Runtime for it: `generate`, `forward` with
    `decoder_input_ids`, and `sequence_log_probs`, all without gradient. It does not learn, and has no attentions and
    hidden states.

    Example:

    ```python
    >>> from hf_captioners.export import ExportedCaptioner
    >>> model = ExportedCaptioner.from_pretrained("onnx")  # doctest: +SKIP
    >>> model.generate(**processor(images="photo.jpg"), num_beams=3)  # doctest: +SKIP

    ```
    """

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: Any = None, **options: Any) -> Any:
        """Load an exported captioner.

        Args:
            source (`str` or `Path`): folder, or name on the Hub; the export of a captioner there may be in its
                `onnx/` or `openvino/`, which are looked for in this order, or named, as `"me/mine/openvino"`.
            device (`str` or `torch.device`, *optional*): by default a GPU if ONNX Runtime can use one; of OpenVINO the
                CPU.
            options: of `transformers.exporters.ExportedModel.from_pretrained`, as `revision`, `subfolder`, `providers`
                of ONNX Runtime, its `session_options`, or `config` of OpenVINO's compilation. Both use torch's number
                of threads unless these say another. An `INFERENCE_PRECISION_HINT` in `config` that is not what the
                captioner was exported for is used, with a warning.

        Returns:
            the captioner, a subclass of its own class

        Raises:
            ValueError: there is no exported captioner; ONNX Runtime has no such device or provider here.
            ImportError: a library of the extra `onnx` or `openvino` is missing.
        """
        from transformers.exporters.base import ExportedModel

        source, folder = split_name(source)
        if folder is not None:
            options.setdefault("subfolder", folder)
        found, options["subfolder"] = _find(source, options)
        manifest = Manifest.read(found)
        if export_format(found) == "openvino":
            require("openvino")
            own = _openvino_settings(str(device or "cpu"), manifest)
            options["config"] = {**own, **options.get("config", {})}
            _warn_of_precision(str(source), own[PRECISION], options["config"][PRECISION])
            graphs = ExportedModel.from_pretrained(source, device=device or "cpu", **options)
        else:
            require("onnx", "onnxscript", "onnxruntime")
            if "session_options" not in options:
                options["session_options"] = _session_options()
            graphs = ExportedModel.from_pretrained(source, device=device, **options)
            runner: Any = graphs.runners["encoder"]
            check_providers(runner.session.get_providers(), options.get("providers"), device)
        return assemble(graphs, manifest, str(source))


def check_providers(chosen: list[str], providers: list[Any] | None, device: Any) -> None:
    """Refuse what ONNX Runtime does about a provider that it cannot have: take another one, with a warning at most.

    Args:
        chosen (`list[str]`): providers of a session.
        providers (`list`, *optional*): those that were asked for; a name, or a name with options, each.
        device (`str` or `torch.device`, *optional*): what was asked for instead.

    Raises:
        ValueError: one of them is not among the chosen, by name.

    Example:

    ```python
    >>> from hf_captioners.export.runtime import check_providers
    >>> check_providers(["CPUExecutionProvider"], [("TensorrtExecutionProvider", {})], None)
    Traceback (most recent call last):
        ...
    ValueError: ONNX Runtime did not get TensorrtExecutionProvider and would run on CPUExecutionProvider; ...

    ```
    """
    on_gpu = device is not None and torch.device(device).type == "cuda"
    asked = [one if isinstance(one, str) else one[0] for one in providers or ["CUDAExecutionProvider"] * on_gpu]
    missing = [name for name in asked if name not in chosen]
    if missing:
        raise ValueError(
            f"ONNX Runtime did not get {', '.join(missing)} and would run on {', '.join(chosen)}; install the build of "
            "ONNX Runtime that has it, with its libraries, or ask for one of these."
        )


def _openvino_settings(device: str, manifest: Manifest) -> dict[str, Any]:
    """Settings with which OpenVINO computes what the graphs say, in the precision that they were exported for."""
    # what they say about their precision is not heeded by every version
    settings: dict[str, Any] = {PRECISION: "bf16" if manifest.bfloat16 else "f32"}
    if device.lower().startswith("cpu"):
        # 2026.4 takes what it has prepared for one length of past words for another, without AVX-512
        settings |= {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "CPU_RUNTIME_CACHE_CAPACITY": "0"}
    return settings


def _warn_of_precision(name: str, exported: str, asked: Any) -> None:
    asked = asked if isinstance(asked, str) else asked.get_type_name()  # an openvino.Type
    if asked not in ("f32", exported):
        logger.warning(
            f"{name} was exported to be computed in {exported}: in {asked} captions can be others, and worse. "
            "`hf-captioners export openvino MODEL --bf16 --annotations PATH` scores them in bfloat16 first."
        )


def computes_in_bfloat16(model: Any) -> bool:
    """Tell whether OpenVINO computes an exported captioner in bfloat16, which needs a processor that has it.

    Args:
        model: of [`ExportedCaptioner.from_pretrained`], from OpenVINO, for the CPU.
    """
    compiled = model.graphs.runners["decoder"].compiled_model
    return str(compiled.get_property(PRECISION).get_type_name()) == "bf16"


def _find(source: str | Path, options: dict[str, Any]) -> tuple[Path, str]:
    """Find the file that describes an export, and the sub-folder that it is in."""
    where = {name: options[name] for name in ("revision", "token", "cache_dir") if name in options}
    first: OSError | None = None
    for folder in [options["subfolder"]] if "subfolder" in options else ["", *FOLDERS]:
        try:
            with at_once(source):
                found: Any = cached_file(source, FILE, subfolder=folder, **where)
            return Path(found), folder
        except OSError as error:  # there is none, or no such name
            first = first or error
    assert first is not None
    raise first


def _session_options() -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return options


def assemble(graphs: Any, manifest: Manifest, name: str) -> Any:
    """Make the captioner of two graphs.

    Args:
        graphs (`ExportedModel`): the graphs, with configuration and generation config.
        manifest ([`Manifest`]): what they take.
        name (`str`): folder or Hub name.

    Returns:
        the captioner, in evaluation mode

    Raises:
        ValueError: the configuration is of no captioner.
    """
    if graphs.config is None or graphs.config.model_type not in CAPTIONERS:
        raise ValueError(f"{name}: the configuration in it is of no captioner.")
    own = captioner_classes(graphs.config.model_type)[1]
    mixin = next((mixin for kind, mixin in _MIXINS.items() if issubclass(own, kind)), ExportedWords)
    model = stand_in(type(f"Exported{own.__name__}", (ExportedCaptioner, mixin, own), {}), graphs.config)
    model.graphs, model.manifest, model.name_or_path = graphs, manifest, name
    if graphs.generation_config is not None:
        model.generation_config = graphs.generation_config
    model.attach()
    return model
