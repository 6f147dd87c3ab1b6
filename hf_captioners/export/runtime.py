"""Exported captioners: ONNX Runtime computes, and everything else is the captioner's own class.

An exported captioner is a subclass of its captioner without weights. Pictures and steps go through the graphs;
`generate` and every way of decoding are those of the captioner.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.utils import cached_file
from typing_extensions import Self

from ..captioner_table import CAPTIONERS, captioner_classes
from ..extras import require
from ..modeling.cache_satic import GroupState, compose
from ..modeling.captioner_autoregressive import DecodeOptions
from ..modeling.captioner_cache import CaptionCacheLayer, CaptionerCache
from ..modeling.captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from ..modeling.modeling_satic import SaticForImageCaptioning, group_inputs
from .graphs import START, Tensors
from .manifest import FILE, Manifest


@dataclass
class ExportedEncoderOutput(CaptionerEncoderOutput):
    """Encoded pictures.

    Args:
        last_hidden_state, image_attention_mask, image_features, hidden_states: see [`CaptionerEncoderOutput`].
        memory (`dict[str, torch.Tensor]`, *optional*): outputs of the graph, a row per picture.
    """

    memory: dict | None = None

    def rows(self, index: Any) -> Self:
        """Select pictures; `generate` repeats the rows of the tensors for each caption, but not those of `memory`."""
        chosen = super().rows(index)
        if self.memory is not None and len(self.memory["last_hidden_state"]) == len(self.last_hidden_state):
            chosen.memory = {name: value[index] for name, value in self.memory.items()}
        return chosen


class ExportedLayer(CaptionCacheLayer):
    """State of captions outside of the graph, which selects its rows.

    Args:
        run (`Callable`): the graph of a step.
        manifest ([`Manifest`]): of the graphs.
        memory (`dict[str, torch.Tensor]`): a row per picture, and of a state that starts with the picture its start.
    """

    def __init__(self, run: Any, manifest: Manifest, memory: Tensors) -> None:
        super().__init__()
        self._run, self._manifest, self._memory = run, manifest, memory
        self._state: Tensors | None = None  # None: no word yet
        self._rows: Tensor | None = None  # of the state, that the captions continue; None: their own
        name, shape = next((name, shape) for name, shape in manifest.state.items() if 0 in shape[1:])
        self._length_of = name, shape.index(0, 1)

    @property
    def images(self) -> int:
        """Number of pictures B."""
        return len(self._memory["last_hidden_state"])

    def step(self, words: Tensor) -> Tensor:
        """Append `words` `(N, step)`, N a multiple of B; returns logits `(N, step, V)`."""
        count, images = len(words), self.images
        if self._state is None:
            state, rows = self._start(), torch.arange(images).repeat_interleave(count // images)
            if self._manifest.starts_with_image:  # which stands in the place of the start token
                self._state, self._rows = state, rows
                return self._memory["first_logits"].index_select(0, rows)[:, None]
        else:
            state, rows = self._state, torch.arange(count) if self._rows is None else self._rows
        shape = (images, count // images)
        outputs = self._run(
            input_ids=words.reshape(*shape, -1), beam_idx=rows.long().view(shape), **self._memory, **state
        )
        self._state, self._rows = {name: outputs[name] for name in self._manifest.state}, None
        return outputs["logits"]

    def _start(self) -> Tensors:
        if self._manifest.starts_with_image:
            return {name: self._memory[f"{START}{name}"] for name in self._manifest.state}
        return {name: torch.zeros(self.images, *shape[1:]) for name, shape in self._manifest.state.items()}

    def get_seq_length(self) -> int:
        name, axis = self._length_of
        return 0 if self._state is None else self._state[name].shape[axis]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Let caption `i` continue caption `beam_idx[i]`, which must be of the same picture."""
        if self._state is not None:
            self._rows = compose(self._rows, beam_idx.long())

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some captions only, and with them their pictures; each must be the only one of its picture."""
        self.reorder_cache(indices)
        self._memory = {name: value.index_select(0, indices) for name, value in self._memory.items()}

    def reset(self) -> None:
        """Forget the captions; the memory stays."""
        self._state = self._rows = None


class ExportedCache(CaptionerCache):
    """State of captions; its last layer is an [`ExportedLayer`]."""

    @property
    def images(self) -> int:
        """Number of pictures B."""
        layer: Any = self.layers[-1]
        return layer.images


class ExportedCaptioner:
    """Captioner that `hf-captioners export` has written; mixed into the captioner's class by [`from_pretrained`].

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

    manifest: Manifest
    graphs: Any

    @classmethod
    def from_pretrained(cls, source: str | Path, *, device: Any = None, **options: Any) -> Any:
        """Load an exported captioner.

        Args:
            source (`str` or `Path`): folder, or name on the Hub.
            device (`str` or `torch.device`, *optional*): by default a GPU if ONNX Runtime can use one.
            options: of `transformers.exporters.ExportedModel.from_pretrained`, as `revision`, `subfolder`, `providers`
                of ONNX Runtime, or `session_options`, by default with torch's number of threads.

        Returns:
            the captioner, a subclass of its own class

        Raises:
            ValueError: there is no exported captioner; ONNX Runtime has no such device or provider here.
            ImportError: a library of the extra `onnx` is missing.
        """
        require("onnxscript", "onnxruntime")
        import onnxruntime
        from transformers.exporters.base import ExportedModel

        if "session_options" not in options:
            options["session_options"] = onnxruntime.SessionOptions()
            options["session_options"].intra_op_num_threads = torch.get_num_threads()
        where = {name: options[name] for name in ("revision", "subfolder", "token", "cache_dir") if name in options}
        found: Any = cached_file(source, FILE, **where)
        manifest = Manifest.read(Path(found))
        graphs = ExportedModel.from_pretrained(source, device=device, **options)
        runner: Any = graphs.runners["encoder"]
        check_providers(runner.session.get_providers(), options.get("providers"), device)
        return assemble(graphs, manifest, str(source))

    # -- what torch and transformers ask for --------------------------------------------------------------------------

    @property
    def device(self) -> torch.device:
        """Device of the words; the graphs may run elsewhere."""
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the scores."""
        return torch.float32

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Stay; [`from_pretrained`] chooses the device of the graphs."""
        return self

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Refuse: the folder of the export is the file format.

        Raises:
            ValueError: always.
        """
        raise ValueError("an exported captioner is not saved again: copy its folder.")

    # -- pictures and words through the graphs ------------------------------------------------------------------------

    @torch.no_grad()
    def encode_images(
        self: Any,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        **inputs: Any,
    ) -> ExportedEncoderOutput:
        """Encode pictures by the graph; see `CaptionerPreTrainedModel.encode_images`."""
        others = [name for name, value in inputs.items() if value is not None]
        if others or output_hidden_states:
            asked = ", ".join(others or ["hidden states"])
            raise ValueError(f"{asked}: not part of an exported captioner.")
        if image_features is not None and image_features.ndim == 2:
            image_features = image_features[:, None]  # (B, 1, D), an embedding
        self.check_images(pixel_values, image_features, image_attention_mask)
        given = "pixels" if image_features is None else "features"
        if given != self.manifest.image_input:
            raise ValueError(
                f"this captioner was exported for {self.manifest.image_input}, not for {given} "
                f"(`hf-captioners export --input {given}`)."
            )
        if image_features is None:
            assert pixel_values is not None
            images = {"pixel_values": pixel_values.to("cpu", torch.float32)}
        else:
            mask = image_attention_mask
            mask = torch.ones(image_features.shape[:2]) if mask is None else mask
            images = {"image_features": image_features.to("cpu", torch.float32), "image_attention_mask": mask.long()}
        memory = self.graphs.runners["encoder"](**images)
        return ExportedEncoderOutput(
            last_hidden_state=memory["last_hidden_state"],
            image_attention_mask=memory.get("image_attention_mask"),
            memory=memory,
        )

    def start_cache(self: Any, encoder_outputs: ExportedEncoderOutput) -> ExportedCache:
        """The state before the first word."""
        return ExportedCache(layers=[self._new_layer(encoder_outputs)])

    def _new_layer(self: Any, encoder_outputs: ExportedEncoderOutput) -> ExportedLayer:
        assert encoder_outputs.memory is not None
        return ExportedLayer(self.graphs.runners["decoder"], self.manifest, encoder_outputs.memory)

    def score_captions(self: Any, encoder_outputs: Any, labels: Tensor | None, **options: Any) -> CaptionerOutput:
        """Score captions without labels; see `forward`.

        Raises:
            ValueError: captions to learn, or outputs that the graphs do not have.
        """
        if labels is not None:
            raise ValueError("an exported captioner does not learn: give decoder_input_ids, not labels.")
        asked = [name for name in ("output_hidden_states", "output_attentions") if options.get(name)]
        if asked:
            raise ValueError(f"{asked[0]}: an exported captioner has none.")
        return super().score_captions(encoder_outputs, labels, **options)

    def decode(
        self: Any, input_ids: Tensor, encoder_outputs: Any, cache: Any, options: DecodeOptions
    ) -> CaptionerOutput:
        """Score words one after the other; see `AutoregressiveCaptioner.decode`."""
        layer = (self.start_cache(encoder_outputs) if cache is None else cache).layers[-1]
        logits = [layer.step(words) for words in input_ids.split(1, dim=1)][-options.logits_to_keep :]
        return CaptionerOutput(logits=torch.cat(logits, dim=1))


class ExportedGroups(ExportedCaptioner):
    """Exported SATIC: its own `decode` asks for groups of words."""

    def start_cache(self: Any, encoder_outputs: ExportedEncoderOutput) -> ExportedCache:
        """The state before the first word."""
        return ExportedCache(layers=[GroupState(), self._new_layer(encoder_outputs)])

    def decode(self: Any, input_ids: Tensor, *args: Any) -> CaptionerOutput:
        """Score words; see [`SaticForImageCaptioning.decode`]."""
        return SaticForImageCaptioning.decode(self, input_ids, *args)

    def _score(
        self: Any, ids: Tensor, encoder_outputs: Any, options: DecodeOptions, weights: Any
    ) -> tuple[Tensor, list[Tensor]]:
        slots = group_inputs(ids, self.config.group_size)  # (N, groups * K)
        logits, states = self.score_groups(slots, encoder_outputs, self.start_cache(encoder_outputs))
        return logits[:, : ids.shape[1]][:, -options.logits_to_keep :], states

    def score_groups(
        self: Any, slots: Tensor, encoder_outputs: Any, cache: Any, weights: Any = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Score whole groups one after the other; see [`SaticForImageCaptioning.score_groups`]."""
        groups = slots.split(self.config.group_size, dim=1)
        return torch.cat([cache.layers[-1].step(group) for group in groups], dim=1), []


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
    mixin = ExportedGroups if issubclass(own, SaticForImageCaptioning) else ExportedCaptioner
    kind = type(f"Exported{own.__name__}", (mixin, own), {})
    with torch.device("meta"):
        model: Any = kind(graphs.config)
    model._modules.clear()
    model.backbone = None
    model.graphs, model.manifest, model.name_or_path = graphs, manifest, name
    if graphs.generation_config is not None:
        model.generation_config = graphs.generation_config
    return model.eval()
