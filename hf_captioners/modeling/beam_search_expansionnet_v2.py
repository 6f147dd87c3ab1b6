"""The beam search of ExpansionNet v2's published numbers (arXiv 2208.06551; specification of the original, section 13).

It differs from transformers' beam search in two points: finished captions stay in the beam (there is no pool of
finished ones beside it, so a finished caption can be pushed out), and the final score divides by a length that counts
the start token. The two can return different captions of the same model.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

from .captioner_layers import at_least_float32


def paper_beam_search(
    model: Any,
    input_ids: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
    """Beam search by the paper's rule; runs inside `generate` as its `custom_generate`.

    At every step each hypothesis offers its `num_beams` best words, a finished one only itself, and the `num_beams`
    best sums of log-probabilities survive. The search ends when all are finished or `max_length` is reached;
    hypotheses cut off there compete on equal terms. The final score is the sum divided by `length ** length_penalty`,
    where the length counts the start token and the end token. With `do_sample=True` the words are drawn without
    replacement instead.

    Args:
        model: any model of transformers' generation loop.
        input_ids (`torch.LongTensor` of shape `(B * num_beams, prompt)`): the prompt, repeated for every beam.
        logits_processor (`LogitsProcessorList`): applied to the log-probabilities.
        stopping_criteria (`StoppingCriteriaList`): only `max_length` and criteria that stop everything are used.
        generation_config (`GenerationConfig`): `num_beams`, `num_return_sequences`, `max_length`, `length_penalty`,
            `do_sample`, `output_scores`, `output_logits`, `return_dict_in_generate`.
        model_kwargs: what the model is called with.

    Returns:
        `torch.LongTensor` of shape `(B * num_return_sequences, length)`, best first, or a
        `GenerateBeamEncoderDecoderOutput`, whose `sequences_scores` are the final scores and whose `scores` and
        `beam_indices` go into `compute_transition_scores(…, normalize_logits=False)`.
    """
    prompt_length = input_ids.shape[1]
    eos: Any = generation_config._eos_token_tensor  # set by generate, on the right device
    pad: Any = generation_config._pad_token_tensor
    all_scores: list[torch.Tensor] = []
    all_logits: list[torch.Tensor] = []
    beams = _Beams(input_ids, generation_config.num_beams)
    while beams.ids.shape[1] < generation_config.max_length and not beams.finished.all():
        is_first = beams.ids.shape[1] == prompt_length
        new_tokens = 1 if model_kwargs.get("use_cache") and not is_first else None
        inputs = model.prepare_inputs_for_generation(
            beams.ids, next_sequence_length=new_tokens, is_first_iteration=is_first, **model_kwargs
        )
        outputs = model(**inputs, return_dict=True)
        logits = at_least_float32(outputs.logits[:, -1])
        log_probs = logits_processor(beams.ids, logits.log_softmax(-1))  # type: ignore[arg-type]
        if generation_config.output_logits:
            all_logits.append(logits)
        if generation_config.output_scores:
            all_scores.append(log_probs)
        rows = beams.advance(log_probs, eos, pad, generation_config.do_sample)
        model_kwargs = model._update_model_kwargs_for_generation(outputs, model_kwargs, is_encoder_decoder=True)
        if model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"].reorder_cache(rows)
        if stopping_criteria(beams.ids, log_probs).all():
            break

    sequences, scores, sources = beams.best(generation_config.num_return_sequences, generation_config.length_penalty)
    if not generation_config.return_dict_in_generate:
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


class _Beams:
    """The hypotheses of B pictures, K of each: rows of `ids` (B * K, length), best first after every step."""

    def __init__(self, prompts: torch.Tensor, count: int) -> None:
        pictures, device = prompts.shape[0] // count, prompts.device
        self.ids = prompts
        self.prompt_length = prompts.shape[1]
        self.sums = torch.full((pictures, count), -torch.inf, device=device)  # float64 once such gains are added
        self.sums[:, 0] = 0.0  # all hypotheses start as the same prompt: only the first may branch
        self.lengths = torch.full((pictures, count), self.prompt_length, device=device)
        self.finished = torch.zeros(pictures, count, dtype=torch.bool, device=device)
        # (B * K, steps): which row each word was predicted in
        self.sources = torch.empty(pictures * count, 0, dtype=torch.long, device=device)
        self._first_rows = torch.arange(pictures, device=device)[:, None] * count

    def advance(self, log_probs: torch.Tensor, eos: torch.Tensor, pad: torch.Tensor, sample: bool) -> torch.Tensor:
        """Append a word to every hypothesis; returns the rows (B * K,) that the new hypotheses continue."""
        pictures, count = self.sums.shape
        words, gains = self._candidates(log_probs.view(pictures, count, -1), sample)
        self.sums, chosen = (self.sums[..., None] + gains).flatten(1).topk(count)  # of count * count
        origin = chosen // count
        finished = self.finished.gather(1, origin)
        self.lengths = self.lengths.gather(1, origin) + (~finished).long()
        words = torch.where(finished, pad, words.flatten(1).gather(1, chosen))
        self.finished = finished | torch.isin(words, eos)
        rows = (self._first_rows + origin).flatten()
        self.ids = torch.cat((self.ids[rows], words.view(-1, 1)), dim=1)
        self.sources = torch.cat((self.sources[rows], rows[:, None]), dim=1)
        return rows

    def _candidates(self, log_probs: torch.Tensor, sample: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """K next words of every hypothesis and what each adds to its sum, (B, K, K) both; a finished hypothesis offers
        one candidate, itself at no cost."""
        count = log_probs.shape[1]
        if sample:
            words = torch.multinomial(log_probs.exp().flatten(0, 1), count).view(-1, count, count)
            gains = log_probs.gather(-1, words)
        else:
            gains, words = log_probs.topk(count, dim=-1)
        itself = torch.full_like(gains, -torch.inf)
        itself[..., 0] = 0.0
        return words, torch.where(self.finished[..., None], itself, gains)

    def best(self, count: int, length_penalty: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `count` best captions of every picture, their scores and the rows of their words (-1 after the end)."""
        scores, order = (self.sums / self.lengths**length_penalty).sort(dim=1, descending=True, stable=True)
        rows = (self._first_rows + order[:, :count]).flatten()
        lengths = self.lengths.flatten()[rows]
        longest = int(lengths.max())
        generated = torch.arange(self.prompt_length, longest, device=rows.device) < lengths[:, None]
        sources = self.sources[rows, : longest - self.prompt_length].masked_fill(~generated, -1)
        return self.ids[rows, :longest], scores[:, :count].flatten(), sources
