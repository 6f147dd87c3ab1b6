"""The beam search that ClipCap's numbers were made with (arXiv 2111.09734): hypotheses compete by their mean.

It differs from transformers' beam search in two points: at every step the hypotheses are ranked by the mean
log-probability of their words, not by the sum, and finished captions stay in the beam, where a better one can push
them out. The two can return different captions of the same model.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

from .captioner_beam_loop import run_beam_search


def clipcap_beam_search(
    model: Any,
    input_ids: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
    """Beam search by ClipCap's rule; runs inside `generate` as its `custom_generate`.

    At every step each hypothesis offers its `num_beams` best words, a finished one only itself, and the `num_beams`
    best survive by their sum of log-probabilities divided by `length ** length_penalty`, which is also the final
    score. The length counts the words written and the end token, without start token and prompt. With `do_sample=True`
    the words are drawn without replacement instead.

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
    search = _Hypotheses(input_ids, generation_config)
    return run_beam_search(search, model, logits_processor, stopping_criteria, generation_config, model_kwargs)


class _Hypotheses:
    """The hypotheses of B pictures, K of each: rows of `ids` (B * K, length), best first after every step."""

    def __init__(self, prompts: torch.Tensor, config: Any) -> None:
        self.config = config  # generate has put the special tokens there, on the right device
        count, device = config.num_beams, prompts.device
        pictures = prompts.shape[0] // count
        self.ids = prompts
        self.prompt_length = prompts.shape[1]
        self.sums = torch.full((pictures, count), -torch.inf, device=device)
        self.sums[:, 0] = 0.0  # all begin as the same prompt: only the first may branch
        self.lengths = torch.zeros(pictures, count, dtype=torch.long, device=device)
        self.finished = torch.zeros(pictures, count, dtype=torch.bool, device=device)
        # (B * K, steps): which row each word was predicted in
        self.sources = torch.empty(pictures * count, 0, dtype=torch.long, device=device)
        self._first_rows = torch.arange(pictures, device=device)[:, None] * count

    def is_over(self) -> bool:
        return bool(self.finished.all())

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Append a word to every hypothesis; returns the rows (B * K,) that the new hypotheses continue."""
        count = self.sums.shape[1]
        words, gains = self._candidates(log_probs.view(*self.sums.shape, -1))
        sums = (self.sums[..., None] + gains).flatten(1)  # (B, K * K)
        lengths = (self.lengths + (~self.finished).long()).repeat_interleave(count, dim=1)
        chosen = (sums / lengths**self.config.length_penalty).topk(count).indices
        self.sums, self.lengths = sums.gather(1, chosen), lengths.gather(1, chosen)
        origin = chosen // count
        finished = self.finished.gather(1, origin)
        words = torch.where(finished, self.config._pad_token_tensor, words.flatten(1).gather(1, chosen))
        self.finished = finished | torch.isin(words, self.config._eos_token_tensor)
        rows = (self._first_rows + origin).flatten()
        self.ids = torch.cat((self.ids[rows], words.view(-1, 1)), dim=1)
        self.sources = torch.cat((self.sources[rows], rows[:, None]), dim=1)
        return rows

    def _candidates(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K next words of every hypothesis and their log-probabilities (B, K, K); of a finished one only itself."""
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
        scores = self.sums / self.lengths**self.config.length_penalty
        rows = (self._first_rows + torch.arange(count, device=self.ids.device)).flatten()
        lengths = self.lengths.flatten()[rows]
        longest = int(lengths.max())
        written = torch.arange(longest, device=rows.device) < lengths[:, None]
        sources = self.sources[rows, :longest].masked_fill(~written, -1)
        return self.ids[rows, : self.prompt_length + longest], scores[:, :count].flatten(), sources
