"""Several captioners that write one caption together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.cache_utils import Cache

from ..modeling.captioner_base import CaptionerPreTrainedModel
from ..modeling.captioner_layers import at_least_float32
from ..modeling.captioner_outputs import CaptionerEncoderOutput, CaptionerOutput


class EnsembleCache(Cache):
    """The members' caches, reordered together."""

    def __init__(self, members: Sequence[Cache]) -> None:
        super().__init__(layers=[layer for member in members for layer in member.layers])
        self.members = list(members)


class CaptionerEnsemble(CaptionerPreTrainedModel, GenerationMixin):
    """Average the members' word probabilities at every step (paper of ExpansionNet v2, section 4.4).

    Greedy decoding, sampling and both beam searches work as for a single model; the pictures are encoded once by each
    member.

    Args:
        models (`Sequence[CaptionerPreTrainedModel]`): captioners of one class and one vocabulary, on one device. The
            first one's generation config is used.

    Raises:
        ValueError: no model, models of different classes, or of different vocabulary sizes or special tokens.

    Example:

    ```python
    >>> from hf_captioners import CaptionerEnsemble
    >>> ensemble = CaptionerEnsemble([first, second])  # doctest: +SKIP
    >>> ids = ensemble.generate(pixel_values=pixel_values, num_beams=5)  # doctest: +SKIP

    ```
    """

    _supports_sdpa = True  # each member chose its attention already

    models: Any

    def __init__(self, models: Sequence[CaptionerPreTrainedModel]) -> None:
        _check_members(models)
        super().__init__(models[0].config)
        self.models = nn.ModuleList(models)
        self.beam_rules = models[0].beam_rules
        self.generation_config = models[0].generation_config
        self.eval()

    @property
    def backbone(self) -> None:
        """An ensemble has no backbone of its own."""
        return None

    def encode_images(self, *args: Any, **kwargs: Any) -> CaptionerEncoderOutput:
        """What every member sees, in `hidden_states`; the other fields are the first member's."""
        members = tuple(model.encode_images(*args, **kwargs) for model in self.models)
        return CaptionerEncoderOutput(**{**members[0], "hidden_states": members})

    def start_cache(self, encoder_outputs: CaptionerEncoderOutput) -> EnsembleCache:
        """The members' caches, each with its own memory."""
        pairs = zip(self.models, encoder_outputs.hidden_states or (), strict=True)
        return EnsembleCache([model.start_cache(memory) for model, memory in pairs])

    # How a captioner decodes is its own; these are the steps of `generate` that a captioner may define.
    def _choose_beam_search(self, *args: Any, **kwargs: Any) -> Any:
        return self.models[0]._choose_beam_search(*args, **kwargs)

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> Any:
        return self.models[0]._prepare_generation_config(*args, **kwargs)

    def _prepare_special_tokens(self, generation_config: Any, *args: Any, **kwargs: Any) -> None:
        self.models[0]._prepare_special_tokens(generation_config, *args, **kwargs)

    def forward(
        self,
        decoder_input_ids: torch.Tensor,
        encoder_outputs: CaptionerEncoderOutput | None = None,
        past_key_values: EnsembleCache | None = None,
        use_cache: bool = True,
        logits_to_keep: int = 0,
        return_dict: bool = True,
    ) -> CaptionerOutput:
        """The logarithm of the average probability, as `logits` (N, T, V).

        Raises:
            ValueError: called without a cache, which holds the members' memories.
        """
        if past_key_values is None:
            raise ValueError("an ensemble decodes with a cache only: use_cache=True.")
        log_probs = []
        for model, cache in zip(self.models, past_key_values.members, strict=True):
            output = model(
                decoder_input_ids=decoder_input_ids,
                encoder_outputs=encoder_outputs,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=logits_to_keep,
            )
            log_probs.append(at_least_float32(output.logits).log_softmax(-1))
        mean = torch.logsumexp(torch.stack(log_probs), dim=0) - math.log(len(log_probs))
        return CaptionerOutput(logits=mean, past_key_values=past_key_values)


def _check_members(models: Sequence[CaptionerPreTrainedModel]) -> None:
    if not models:
        raise ValueError("an ensemble needs at least one model.")
    first = models[0]
    for index, model in enumerate(models[1:], start=1):
        if type(model) is not type(first):
            raise ValueError(f"model {index} is a {type(model).__name__}, the first one a {type(first).__name__}.")
        for name in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"):
            ours, theirs = getattr(first.config, name), getattr(model.config, name)
            if ours != theirs:
                raise ValueError(f"model {index} has {name}={theirs}, the first one {ours}: not one vocabulary.")
        groups = [one.config.to_dict().get("group_size") for one in (first, model)]  # of SATIC
        if groups[0] != groups[1]:
            raise ValueError(f"model {index} has group_size={groups[1]}, the first one {groups[0]}: not one step.")
