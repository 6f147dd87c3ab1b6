"""The loop that the captioners' own beam searches run in."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

from .captioner_layers import at_least_float32


class BeamSearch(Protocol):
    """The hypotheses of B pictures, K of each, and the rule by which they compete.

    Attributes:
        ids (`torch.LongTensor` of shape `(B * K, length)`): the hypotheses so far.
    """

    ids: torch.Tensor

    def is_over(self) -> bool:
        """Whether no further word can change the result."""
        ...

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Append a word to every hypothesis, by scores (B * K, V); returns the rows (B * K,) that they continue."""
        ...

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `count` best captions of every picture, their scores and the rows of their words (-1 after the end)."""
        ...


def run_beam_search(
    search: BeamSearch,
    model: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
    """Ask the model for one word after the other until a beam search is over.

    Args:
        search ([`BeamSearch`]): at its start, with the prompts as hypotheses.
        model: any model of transformers' generation loop.
        logits_processor (`LogitsProcessorList`): applied to the log-probabilities.
        stopping_criteria (`StoppingCriteriaList`): only criteria that stop everything are used, besides `max_length`.
        generation_config (`GenerationConfig`): `num_return_sequences`, `max_length`, `output_scores`, `output_logits`,
            `return_dict_in_generate`.
        model_kwargs (`dict`): what the model is called with.

    Returns:
        `torch.LongTensor` of shape `(B * num_return_sequences, length)`, best first, or a
        `GenerateBeamEncoderDecoderOutput`.
    """
    config: Any = generation_config
    prompt_length = search.ids.shape[1]
    all_scores: list[torch.Tensor] = []
    all_logits: list[torch.Tensor] = []
    while search.ids.shape[1] < config.max_length and not search.is_over():
        is_first = search.ids.shape[1] == prompt_length
        new_tokens = 1 if model_kwargs.get("use_cache") and not is_first else None
        inputs = model.prepare_inputs_for_generation(
            search.ids, next_sequence_length=new_tokens, is_first_iteration=is_first, **model_kwargs
        )
        outputs = model(**inputs, return_dict=True)
        logits = at_least_float32(outputs.logits[:, -1])
        log_probs: Any = logits_processor(search.ids, logits.log_softmax(-1))  # type: ignore[arg-type]
        all_logits += [logits] if config.output_logits else []
        all_scores += [log_probs] if config.output_scores else []
        rows = search.advance(log_probs)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=True)
        if model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"].reorder_cache(rows)
        if stopping_criteria(search.ids, log_probs).all():
            break
    sequences, scores, sources = search.best(config.num_return_sequences)
    if not config.return_dict_in_generate:
        return sequences
    output: Any = GenerateBeamEncoderDecoderOutput  # its annotations are narrower than what transformers puts there
    return output(
        sequences=sequences,
        sequences_scores=scores,
        scores=tuple(all_scores) or None,
        logits=tuple(all_logits) or None,
        beam_indices=sources,
        past_key_values=model_kwargs.get("past_key_values"),
    )
