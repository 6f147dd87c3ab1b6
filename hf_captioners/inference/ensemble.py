"""Ensembles: captioners that write a caption together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin

from ..modeling.captioner_autoregressive import AutoregressiveCaptioner
from ..modeling.captioner_cache import CaptionerCache
from ..modeling.captioner_layers import at_least_float32
from ..modeling.captioner_outputs import CaptionerEncoderOutput, CaptionerOutput


class EnsembleCache(CaptionerCache):
    """The members' caches, reordered together, and what each member attends to."""

    def __init__(self, members: Sequence[CaptionerCache], memories: Sequence[CaptionerEncoderOutput]) -> None:
        super().__init__(layers=[layer for member in members for layer in member.layers])
        self.members = list(members)
        self.memories = list(memories)

    @property
    def images(self) -> int:
        """Number of pictures."""
        return self.members[0].images

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some captions only, each the only one of its picture."""
        super().batch_select_indices(indices)
        self.memories = [memory.rows(indices) for memory in self.memories]


class CaptionerEnsemble(AutoregressiveCaptioner, GenerationMixin):
    """Average the members' word probabilities at every step (paper of ExpansionNet v2, section 4.4).

    Greedy decoding, sampling and both beam searches work as for a single model; the pictures are encoded once by each
    member.

    Args:
        models (`Sequence[AutoregressiveCaptioner]`): captioners of one class and one vocabulary, on one device. The
            first one's generation config is used.

    Raises:
        ValueError: no model; models of different classes, or of one that does not write word by word; different
            vocabulary sizes or special tokens.

    Example:

    ```python
    >>> from hf_captioners import CaptionerEnsemble
    >>> ensemble = CaptionerEnsemble([first, second])  # doctest: +SKIP
    >>> ids = ensemble.generate(pixel_values=pixel_values, num_beams=5)  # doctest: +SKIP

    ```
    """

    _supports_sdpa = True  # each member chose its attention already

    models: Any

    def __init__(self, models: Sequence[AutoregressiveCaptioner]) -> None:
        _check_members(models)
        super().__init__(models[0].config)
        self.models = nn.ModuleList(models)
        self.decodings, self.text_options = models[0].decodings, models[0].text_options
        self.generation_config = models[0].generation_config
        self.eval()

    @property
    def backbone(self) -> None:
        """An ensemble has no backbone of its own."""
        return None

    def encode_images(self, *args: Any, **kwargs: Any) -> CaptionerEncoderOutput:
        """Encoder outputs of every member, in `hidden_states`; the other fields are the first member's."""
        members = tuple(model.encode_images(*args, **kwargs) for model in self.models)
        return CaptionerEncoderOutput(**{**members[0], "hidden_states": members})

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> EnsembleCache:
        """The members' caches, each with its own memory."""
        memories = encoder_outputs.hidden_states or ()
        return EnsembleCache(
            [model.start_cache(memory) for model, memory in zip(self.models, memories, strict=True)], memories
        )

    # How a captioner decodes is its own; these are the steps of `generate` that a captioner may define.
    def _choose_decoding(self, *args: Any, **kwargs: Any) -> Any:
        return self.models[0]._choose_decoding(*args, **kwargs)

    def _get_logits_processor(self, *args: Any, **kwargs: Any) -> Any:
        return self.models[0]._get_logits_processor(*args, **kwargs)

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
        return self.models[0]._prepare_generation_config(*args, **kwargs)

    def _words_at(self, places: torch.Tensor | None) -> AbstractContextManager[None]:
        """Scores at all places: the output layers are the members'."""
        return nullcontext()

    def _check_length(self, *args: Any) -> None:
        self.models[0]._check_length(*args)

    def decode(
        self, input_ids: torch.Tensor, encoder_outputs: CaptionerEncoderOutput, cache: Any, options: Any
    ) -> CaptionerOutput:
        """The logarithm of the average probability, as `logits` (N, T, V).

        Raises:
            ValueError: called without a cache, which holds the members' memories.
        """
        if cache is None:
            raise ValueError("an ensemble decodes with a cache only: use_cache=True.")
        log_probs = []
        for model, member, memory in zip(self.models, cache.members, cache.memories, strict=True):
            output = model.decode(input_ids, memory, member, options)
            log_probs.append(at_least_float32(output.logits).log_softmax(-1))  # (N, T, V)
        mean = torch.logsumexp(torch.stack(log_probs), dim=0) - math.log(len(log_probs))
        return CaptionerOutput(logits=mean)


def _check_members(models: Sequence[AutoregressiveCaptioner]) -> None:
    if not models:
        raise ValueError("an ensemble needs at least one model.")
    first = models[0]
    if not isinstance(first, AutoregressiveCaptioner):
        raise ValueError(f"model 0 is a {type(first).__name__}; an ensemble is of captioners that write word by word.")
    for index, model in enumerate(models[1:], start=1):
        if type(model) is not type(first):
            raise ValueError(f"model {index} is a {type(model).__name__}, the first one a {type(first).__name__}.")
        for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
            ours, theirs = getattr(first.config, name), getattr(model.config, name)
            if ours != theirs:
                raise ValueError(f"model {index} has {name}={theirs}, the first one {ours}: not one vocabulary.")
        groups = [member.config.to_dict().get("group_size") for member in (first, model)]  # of SATIC
        if groups[0] != groups[1]:
            raise ValueError(f"model {index} has group_size={groups[1]}, the first one {groups[0]}: not one step.")
