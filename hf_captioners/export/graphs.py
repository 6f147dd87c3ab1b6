"""The two graphs of a captioner that writes word by word: of pictures, and of the next words of captions.

A graph has flat named tensors. That of the pictures gives what every step reads, a row per picture. That of a step gets
words `(B, K, step)` of K captions of each of B pictures, the row of the state that each continues `(B, K)`, and the
state itself, and gives logits and the new state. It selects the rows inside, so that beam search moves no tensors.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from ..modeling.cache_satic import GroupCacheLayer, GroupState
from ..modeling.captioner_autoregressive import AutoregressiveCaptioner, DecodeOptions
from ..modeling.captioner_cache import CaptionerCache
from ..modeling.captioner_outputs import CaptionerEncoderOutput
from ..modeling.expansion_expansionnet_v2 import ExpansionCacheLayer
from ..modeling.modeling_clip_gpt2 import ClipGpt2ForImageCaptioning, PrefixCache
from ..modeling.modeling_dico import DicoCache, DicoForImageCaptioning
from ..modeling.modeling_expansionnet_v2 import ExpansionNetV2ForImageCaptioning
from ..modeling.modeling_satic import SaticForImageCaptioning

Tensors = dict[str, Tensor]

IMAGES, BEAMS, TOKENS, PAST, WORDS = 2, 3, 5, 4, 7  # sizes of the examples that graphs are traced with
START = "start_"  # in front of the name of a state that pictures begin with


class Cut:
    """Rules by which a captioner is cut into two graphs.

    Args:
        model ([`AutoregressiveCaptioner`]): the captioner.

    Attributes:
        step (`int`): words that the decoder reads at a time.
        reads_memory (`bool`): whether a step reads what `encode` gives.
    """

    step = 1
    reads_memory = True

    def __init__(self, model: Any) -> None:
        self.model = model

    def encode(self, encoded: CaptionerEncoderOutput) -> tuple[Tensors, Tensors]:
        """Tensors with a row per picture that every step reads, and the state that captions start from, if any."""
        return self.memory(self.model.start_cache(encoded)), {}

    def memory(self, cache: Any) -> Tensors:
        """Tensors of a cache that have a row per picture."""
        raise NotImplementedError

    def state(self, cache: Any) -> Tensors:
        """Tensors of a cache that have a row per caption."""
        raise NotImplementedError

    def restore(self, memory: Tensors, state: Tensors) -> Any:
        """The cache of these tensors."""
        raise NotImplementedError

    def advance(
        self, words: Tensor, encoded: CaptionerEncoderOutput, memory: Tensors, state: Tensors
    ) -> tuple[Tensor, Tensors]:
        """Logits `(N, step, V)` behind `words` `(N, step)`, and the state after them."""
        cache = self.restore(memory, state)
        logits = self.model.decode(words, encoded, cache, DecodeOptions(logits_to_keep=1)).logits
        return logits, self.state(cache)


class ExpansionNetV2Cut(Cut):
    """State of the dynamic expansions; keys and values of the memory."""

    parts = ("projections", "slot_scores", "weights")

    def memory(self, cache: Any) -> Tensors:
        return _keys_and_values("memory", [(layer.memory_keys, layer.memory_values) for layer in cache.layers])

    def state(self, cache: Any) -> Tensors:
        return {f"{part}_{index}": layer.state[part] for index, layer in enumerate(cache.layers) for part in self.parts}

    def restore(self, memory: Tensors, state: Tensors) -> Any:
        layers: list[Any] = []
        for index in range(len(self.model.decoders)):
            layer = ExpansionCacheLayer(*_of_layer("memory", memory, index))
            layer.state = {part: state[f"{part}_{index}"] for part in self.parts}
            layers.append(layer)
        return CaptionerCache(layers=layers)


class SaticCut(Cut):
    """A step is a group of K words."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.step = model.config.group_size

    def memory(self, cache: Any) -> Tensors:
        return _keys_and_values("memory", [(layer.memory_keys, layer.memory_values) for layer in cache.layers[1:]])

    def state(self, cache: Any) -> Tensors:
        return _keys_and_values("past", [(layer.keys, layer.values) for layer in cache.layers[1:]])

    def restore(self, memory: Tensors, state: Tensors) -> Any:
        layers: list[Any] = [GroupState()]
        for index in range(len(self.model.model.decoder.layers)):
            layer = GroupCacheLayer(*_of_layer("memory", memory, index))
            layer.keys, layer.values = _of_layer("past", state, index)
            layers.append(layer)
        return CaptionerCache(layers=layers)

    def advance(
        self, words: Tensor, encoded: CaptionerEncoderOutput, memory: Tensors, state: Tensors
    ) -> tuple[Tensor, Tensors]:
        cache = self.restore(memory, state)
        logits, _ = self.model.score_groups(words, encoded, cache)
        return logits, self.state(cache)


class DicoCut(Cut):
    """GPT-2's own cache; keys and values of the memory beside it."""

    def memory(self, cache: Any) -> Tensors:
        return _keys_and_values("memory", [(layer.keys, layer.values) for layer in cache.cross_attention_cache.layers])

    def state(self, cache: Any) -> Tensors:
        return _keys_and_values("past", [(layer.keys, layer.values) for layer in cache.self_attention_cache.layers])

    def restore(self, memory: Tensors, state: Tensors) -> Any:
        settings = self.model.decoder.config
        return DicoCache(
            _filled(DynamicCache(config=settings), "past", state),
            _filled(DynamicCache(config=settings), "memory", memory),
        )


class ClipGpt2Cut(Cut):
    """The picture stands among the words: its keys and values are the state that captions start from."""

    reads_memory = False

    def encode(self, encoded: CaptionerEncoderOutput) -> tuple[Tensors, Tensors]:
        prefix, mask = encoded.last_hidden_state, encoded.image_attention_mask
        cache = PrefixCache(self.model.config.text_config, prefix.shape[0])
        logits = self._run(prefix, mask, None if mask is None else _positions(mask), cache)
        start = self.state(cache)
        return {"first_logits": logits[:, 0]}, start if mask is None else {**start, "mask": mask}

    def state(self, cache: Any) -> Tensors:
        return _keys_and_values("past", [(layer.keys, layer.values) for layer in cache.layers])

    def restore(self, memory: Tensors, state: Tensors) -> Any:
        return _filled(PrefixCache(self.model.config.text_config, 0), "past", state)

    def advance(
        self, words: Tensor, encoded: CaptionerEncoderOutput, memory: Tensors, state: Tensors
    ) -> tuple[Tensor, Tensors]:
        cache, mask, positions = self.restore(memory, state), state.get("mask"), None
        if mask is not None:
            mask = torch.cat((mask, torch.ones_like(words)), dim=1)  # (N, P + 1)
            positions = _positions(mask)[:, -1:]
        logits = self._run(self.model.get_input_embeddings()(words), mask, positions, cache)
        after = self.state(cache)
        return logits, after if mask is None else {**after, "mask": mask}

    def _run(self, embeddings: Tensor, mask: Tensor | None, positions: Tensor | None, cache: Any) -> Tensor:
        output = self.model.gpt(
            inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, past_key_values=cache,
            use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        return output.logits


CUTS: dict[type[AutoregressiveCaptioner], type[Cut]] = {
    ExpansionNetV2ForImageCaptioning: ExpansionNetV2Cut,
    SaticForImageCaptioning: SaticCut,
    ClipGpt2ForImageCaptioning: ClipGpt2Cut,
    DicoForImageCaptioning: DicoCut,
}
"""Cuts of the captioners."""


class EncoderGraph(nn.Module):
    """Pictures to what every step reads.

    Args:
        cut ([`Cut`]): of the captioner.
        masked (`bool`): whether the tokens of pictures have a mask.
    """

    def __init__(self, cut: Cut, masked: bool) -> None:
        super().__init__()
        self.model = cut.model
        self.cut, self.masked = cut, masked

    def forward(self, **images: Tensor) -> Tensors:
        """Memory, mask, keys and values, and the start of the state under names with `start_` in front."""
        encoded = self.model.encode_images(**images)
        memory, start = self.cut.encode(encoded)
        outputs = {"last_hidden_state": encoded.last_hidden_state, **memory}
        if self.masked:
            outputs["image_attention_mask"] = encoded.image_attention_mask
        return {**outputs, **{f"{START}{name}": value for name, value in start.items()}}


class DecoderGraph(nn.Module):
    """Words and a state to logits and the next state.

    Args:
        cut ([`Cut`]): of the captioner.
        state (`list[str]`): names of the tensors with a row per caption.
    """

    def __init__(self, cut: Cut, state: list[str]) -> None:
        super().__init__()
        self.model = cut.model
        self.cut, self.state = cut, state

    def forward(self, **tensors: Tensor) -> Tensors:
        """`logits` `(N, step, V)` and the state of N = B * K captions."""
        words, rows = tensors["input_ids"].flatten(0, 1), tensors["beam_idx"].flatten()  # (N, step), (N,)
        state = {name: tensors[name].index_select(0, rows) for name in self.state}
        memory = {name: value for name, value in tensors.items() if name not in (*self.state, "input_ids", "beam_idx")}
        encoded = CaptionerEncoderOutput(
            last_hidden_state=memory.get("last_hidden_state"),  # type: ignore[arg-type]
            image_attention_mask=memory.get("image_attention_mask"),
        )
        logits, after = self.cut.advance(words, encoded, memory, state)
        return {"logits": logits, **after}


def _keys_and_values(name: str, layers: list[tuple[Tensor, Tensor]]) -> Tensors:
    """Keys and values of layers under names of their own."""
    named: Tensors = {}
    for index, (keys, values) in enumerate(layers):
        named |= {f"{name}_keys_{index}": keys, f"{name}_values_{index}": values}
    return named


def _of_layer(name: str, tensors: Tensors, index: int) -> tuple[Tensor, Tensor]:
    return tensors[f"{name}_keys_{index}"], tensors[f"{name}_values_{index}"]


def _filled(cache: Any, name: str, tensors: Tensors) -> Any:
    """A cache of transformers with these keys and values."""
    for index, layer in enumerate(cache.layers):
        keys, values = _of_layer(name, tensors, index)
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = keys, values
    return cache


def _positions(mask: Tensor) -> Tensor:
    """Positions `(N, L)` of what a mask shows, without padding in front."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)
