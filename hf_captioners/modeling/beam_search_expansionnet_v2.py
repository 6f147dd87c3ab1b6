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

from .captioner_beam_loop import run_beam_search


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
    search = _Beams(input_ids, generation_config)
    return run_beam_search(search, model, logits_processor, stopping_criteria, generation_config, model_kwargs)


class _Beams:
    """The hypotheses of B pictures, K of each: rows of `ids` (B * K, length), best first after every step."""

    def __init__(self, prompts: torch.Tensor, config: Any) -> None:
        self.config = config  # generate has put the special tokens there, on the right device
        count, device = config.num_beams, prompts.device
        pictures = prompts.shape[0] // count
        self.ids = prompts
        self.prompt_length = prompts.shape[1]
        self.sums = torch.full((pictures, count), -torch.inf, device=device)  # float64 once such gains are added
        self.sums[:, 0] = 0.0  # all hypotheses start as the same prompt: only the first may branch
        self.lengths = torch.full((pictures, count), self.prompt_length, device=device)
        self.finished = torch.zeros(pictures, count, dtype=torch.bool, device=device)
        # (B * K, steps): which row each word was predicted in
        self.sources = torch.empty(pictures * count, 0, dtype=torch.long, device=device)
        self._first_rows = torch.arange(pictures, device=device)[:, None] * count

    def is_over(self) -> bool:
        return bool(self.finished.all())

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Append a word to every hypothesis; returns the rows (B * K,) that the new hypotheses continue."""
        pictures, count = self.sums.shape
        words, gains = self._candidates(log_probs.view(pictures, count, -1))
        self.sums, chosen = (self.sums[..., None] + gains).flatten(1).topk(count)  # of count * count
        origin = chosen // count
        finished = self.finished.gather(1, origin)
        self.lengths = self.lengths.gather(1, origin) + (~finished).long()
        words = torch.where(finished, self.config._pad_token_tensor, words.flatten(1).gather(1, chosen))
        self.finished = finished | torch.isin(words, self.config._eos_token_tensor)
        rows = (self._first_rows + origin).flatten()
        self.ids = torch.cat((self.ids[rows], words.view(-1, 1)), dim=1)
        self.sources = torch.cat((self.sources[rows], rows[:, None]), dim=1)
        return rows

    def _candidates(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K next words of every hypothesis and what each adds to its sum, (B, K, K) both; a finished hypothesis offers
        one candidate, itself at no cost."""
        count = log_probs.shape[1]
        if self.config.do_sample:
            words = torch.multinomial(log_probs.exp().flatten(0, 1), count).view(-1, count, count)
            gains = log_probs.gather(-1, words)
        else:
            gains, words = log_probs.topk(count, dim=-1)
        itself = torch.full_like(gains, -torch.inf)
        itself[..., 0] = 0.0
        return words, torch.where(self.finished[..., None], itself, gains)

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `count` best captions of every picture, their scores and the rows of their words (-1 after the end)."""
        scores, order = (self.sums / self.lengths**self.config.length_penalty).sort(dim=1, descending=True, stable=True)
        rows = (self._first_rows + order[:, :count]).flatten()
        lengths = self.lengths.flatten()[rows]
        longest = int(lengths.max())
        generated = torch.arange(self.prompt_length, longest, device=rows.device) < lengths[:, None]
        sources = self.sources[rows, : longest - self.prompt_length].masked_fill(~generated, -1)
        return self.ids[rows, :longest], scores[:, :count].flatten(), sources
