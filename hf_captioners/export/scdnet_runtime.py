"""Exported SCD-Net: its own samplers, cascade and scores, with pictures and steps through the graphs."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from ..modeling.captioner_outputs import CaptionerOutput
from ..modeling.layers_scdnet import BitCodec
from ..modeling.modeling_scdnet import ScdnetEncoderOutput
from .running import ExportedBase, stand_in
from .scdnet_graphs import read_by_stage


@dataclass
class ExportedScdnetOutput(ScdnetEncoderOutput):
    """Encoded pictures; see [`ScdnetEncoderOutput`], whose sentences are in `memory`.

    Args:
        memory (`dict[str, torch.Tensor]`, *optional*): outputs of the graph, a row per picture.
    """

    memory: dict | None = None

    def rows(self, index: Any) -> Self:
        """Select pictures, with their sentences."""
        chosen: Any = super().rows(index)
        chosen.memory = {name: value[index] for name, value in (self.memory or {}).items()}
        return chosen


@dataclass
class ExportedKnown:
    """Inputs of N captions that are known before the first step.

    Attributes:
        memory: a row for each of B pictures; N is a multiple of B.
        previous (`(N, L, n)`): bits of the previous sentence.
    """

    memory: dict[str, Tensor]
    previous: Tensor | None


class ExportedScdnet(ExportedBase):
    """Exported SCD-Net, a stage or a cascade; one retrieved sentence for each picture."""

    first_stage: Any
    step_graph = "decoder"

    def attach(self: Any) -> None:
        """Add what needs no weights: the bits of the words, and the first stage of a cascade."""
        self.codec = BitCodec(self.config)
        # the times go into the graph as they are
        self.token_embed = SimpleNamespace(time_embed=lambda log_ratios: log_ratios)
        self.first_stage = None
        if self.config.first_stage is not None:
            self.first_stage = stand_in(type(self), self.config.first_stage)
            self.first_stage.graphs, self.first_stage.step_graph = self.graphs, "first_decoder"
            self.first_stage.attach()

    @torch.no_grad()
    def encode_images(
        self: Any,
        pixel_values: Tensor | None = None,
        image_features: Tensor | None = None,
        image_attention_mask: Tensor | None = None,
        output_hidden_states: bool = False,
        retrieved_ids: Tensor | None = None,
        retrieved_mask: Tensor | None = None,
        previous_ids: Tensor | None = None,
        **inputs: Any,
    ) -> ExportedScdnetOutput:
        """Encode pictures and their sentences by the graph; see `ScdnetForImageCaptioning.encode`."""
        images = self.graph_inputs(pixel_values, image_features, image_attention_mask, output_hidden_states, **inputs)
        if "image_features" in images:
            features, mask = images.values()
            longest = self.config.max_regions
            images = {"image_features": features[:, :longest], "image_attention_mask": mask[:, :longest]}
        count = len(next(iter(images.values())))
        ids = self._retrieved(retrieved_ids, retrieved_mask, next(iter(images.values())))
        self._check_sentences(count, {"retrieved_ids": ids, "previous_ids": previous_ids})
        if len(ids) != count:
            raise ValueError(f"{len(ids)} retrieved_ids: an exported captioner takes one for each of {count} pictures.")
        memory = dict(self.graphs.runners["encoder"](**images, retrieved_ids=ids))
        memory["retrieved_mask"] = torch.ones_like(ids) if retrieved_mask is None else retrieved_mask.long()
        if "image_attention_mask" in images:
            memory["image_attention_mask"] = images["image_attention_mask"]
        first = None
        if self.first_stage is not None:
            first = self._output(read_by_stage(memory, first=True))
        previous = None if previous_ids is None else self._padded(previous_ids)
        return self._output(read_by_stage(memory, first=False), previous_ids=previous, first=first)

    def _output(self, memory: dict[str, Tensor], **others: Any) -> ExportedScdnetOutput:
        mask = memory.get("image_attention_mask")
        return ExportedScdnetOutput(memory["last_hidden_state"], image_attention_mask=mask, memory=memory, **others)

    def _known(self: Any, encoded: Any, captions: int, previous_ids: Tensor | None = None) -> ExportedKnown:
        if captions % len(encoded.last_hidden_state):
            raise ValueError(
                f"{captions} captions cannot be shared out among {len(encoded.last_hidden_state)} pictures evenly."
            )
        return ExportedKnown(encoded.memory, self.previous_bits(encoded, captions, previous_ids))

    def predict(
        self: Any,
        state: Tensor,
        known_bits: Tensor,
        time: Tensor,
        known: ExportedKnown,
        states: bool = False,
        all_weights: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """One step through the graph; see `ScdnetForImageCaptioning.predict`. `time` are log-SNRs here."""
        if all_weights is not None:
            raise ValueError("output_attentions: an exported captioner has none.")
        shape = (len(known.memory["last_hidden_state"]), -1)
        bits = {"state": state, "known_bits": known_bits, "log_ratios": time.expand(len(state))}
        if known.previous is not None:
            bits["previous"] = known.previous
        inputs = {name: value.float().unflatten(0, shape) for name, value in bits.items()}
        return self.graphs.runners[self.step_graph](**inputs, **known.memory)["logits"], []

    def score_captions(self, encoder_outputs: Any, labels: Tensor | None, **options: Any) -> CaptionerOutput:
        """Refuse: SCD-Net scores captions to learn; `sequence_log_probs` scores those that are there.

        Raises:
            ValueError: always.
        """
        raise ValueError("an exported captioner does not learn: sequence_log_probs scores captions.")
