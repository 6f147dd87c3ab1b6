"""Exported captioners that write word by word: the graph selects the rows of the state, which is kept outside of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ..modeling.cache_satic import GroupState, compose
from ..modeling.captioner_autoregressive import DecodeOptions
from ..modeling.captioner_cache import CaptionCacheLayer, CaptionerCache
from ..modeling.captioner_outputs import CaptionerEncoderOutput, CaptionerOutput
from ..modeling.modeling_satic import SaticForImageCaptioning, group_inputs
from .graphs import START, Tensors
from .manifest import Manifest
from .running import ExportedBase


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


class ExportedWords(ExportedBase):
    """Exported captioner that writes word by word."""

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
        images = self.graph_inputs(pixel_values, image_features, image_attention_mask, output_hidden_states, **inputs)
        memory = self.graphs.runners["encoder"](**images)
        return ExportedEncoderOutput(
            last_hidden_state=memory["last_hidden_state"],
            image_attention_mask=memory.get("image_attention_mask"),
            memory=memory,
        )

    def _words_at(self, places: Tensor | None) -> AbstractContextManager[None]:
        """Scores at all places: the output layer is in the graph."""
        return nullcontext()

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


class ExportedGroups(ExportedWords):
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
