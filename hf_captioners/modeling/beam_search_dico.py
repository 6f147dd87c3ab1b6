"""The beam search of the DiCO captioner: that of transformers 4.20, on whose lists of candidates DiCO was defined.

It differs from the search of transformers 5 in two points, which can change the order of a list and, rarely, its
captions: a caption that is cut off at the longest length is divided by that length with the start token counted (as a
finished one is), and a picture is done by the best of all candidates of a step, those that end included.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput

from .captioner_beam_loop import run_beam_search

NEVER = -1e9  # what all prefixes but the first start with: they are all the same


def dico_beam_search(
    model: Any,
    input_ids: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
    """Beam search by DiCO's rule; runs inside `generate` as its `custom_generate`.

    A picture has K running prefixes and a pool of at most K finished captions. A step takes the 2K best continuations
    of all prefixes by their sums of log-probabilities. One of the first K that ends its caption enters the pool with
    `sum / length ** length_penalty`, where the length counts the start token and not the end token; the pool keeps its
    K best. The first K that do not end run on. The picture is done when its pool is full and no worse than the best
    continuation of the step by the same measure. At `max_length` the prefixes of pictures that are not done enter
    their pools. With `do_sample=True` the continuations are drawn without replacement instead.

    Args:
        model: any model of transformers' generation loop.
        input_ids (`torch.LongTensor` of shape `(B * num_beams, prompt)`): the prompt, repeated for every beam.
        logits_processor (`LogitsProcessorList`): applied to the log-probabilities.
        stopping_criteria (`StoppingCriteriaList`): only `max_length` and criteria that stop everything are used.
        generation_config (`GenerationConfig`): `num_beams`, `num_return_sequences`, `max_length`, `length_penalty`,
            `early_stopping` (`True`: done as soon as the pool is full), `do_sample`, `output_scores`,
            `output_logits`, `return_dict_in_generate`.
        model_kwargs: what the model is called with.

    Returns:
        `torch.LongTensor` of shape `(B * num_return_sequences, length)`, best first, or a
        `GenerateBeamEncoderDecoderOutput`, whose `sequences_scores` are the scores in the pool and whose `scores` and
        `beam_indices` go into `compute_transition_scores(…, normalize_logits=False)`.
    """
    search = _Search(input_ids, generation_config)
    return run_beam_search(search, model, logits_processor, stopping_criteria, generation_config, model_kwargs)


class _Pool:
    """The best captions of one picture so far, at most `size` of them, in the order in which they came.

    An entry is its score, its tokens (length,) and the rows (steps,) that its words were predicted in.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: list[tuple[float, torch.Tensor, torch.Tensor]] = []

    def worst(self) -> float:
        return min(score for score, _, _ in self.entries)

    def add(self, score: float, ids: torch.Tensor, sources: torch.Tensor) -> None:
        if len(self.entries) == self.size:
            if score <= self.worst():
                return
            del self.entries[min(range(self.size), key=lambda index: self.entries[index][0])]
        self.entries.append((score, ids, sources))

    def best(self, count: int) -> list[tuple[float, torch.Tensor, torch.Tensor]]:
        """The `count` best ones, best first; of equal ones that which came later."""
        return sorted(self.entries, key=lambda entry: entry[0])[::-1][:count]


class _Search:
    """The prefixes of B pictures, K of each: rows of `ids` (B * K, length), best first; and the pictures' pools."""

    def __init__(self, prompts: torch.Tensor, config: Any) -> None:
        self.config = config  # generate has put the special tokens there, on the right device
        count, device = config.num_beams, prompts.device
        pictures = prompts.shape[0] // count
        self.ids = prompts
        self.sums = torch.full((pictures, count), NEVER, device=device)
        self.sums[:, 0] = 0.0  # all begin as the same prompt: only the first may branch
        # (B * K, steps): which row each word was predicted in
        self.sources = torch.empty(pictures * count, 0, dtype=torch.long, device=device)
        self.pools = [_Pool(count) for _ in range(pictures)]
        self.done = [False] * pictures
        self._first_rows = torch.arange(pictures, device=device)[:, None] * count

    def is_over(self) -> bool:
        return all(self.done)

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Append a word to every prefix; returns the rows (B * K,) that the new prefixes continue."""
        pictures, count = self.sums.shape
        totals, chosen = self._candidates((log_probs.view(pictures, count, -1) + self.sums[..., None]).flatten(1))
        rows = self._first_rows + chosen // log_probs.shape[-1]  # (B, 2K), best first
        words = chosen % log_probs.shape[-1]
        ends = torch.isin(words, self.config._eos_token_tensor)
        self._finish(totals, rows, words, ends)
        running = ends.long().argsort(dim=1, stable=True)[:, :count]  # the first K that do not end, in their order
        rows, words = rows.gather(1, running).flatten(), words.gather(1, running)
        self.sums = totals.gather(1, running)
        self.ids = torch.cat((self.ids[rows], words.view(-1, 1)), dim=1)
        self.sources = torch.cat((self.sources[rows], rows[:, None]), dim=1)
        return rows

    def _candidates(self, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of all continuations (B, K * V), with their places: 2K of them, so that K do not end."""
        several = max(2, 1 + self.config._eos_token_tensor.numel()) * self.config.num_beams
        if not self.config.do_sample:
            return totals.topk(min(several, totals.shape[1]), dim=1)
        drawn = torch.multinomial(totals.softmax(-1), several)
        sums, order = totals.gather(1, drawn).sort(dim=1, descending=True)
        return sums, drawn.gather(1, order)

    def _finish(self, totals: torch.Tensor, rows: torch.Tensor, words: torch.Tensor, ends: torch.Tensor) -> None:
        """Put what ends into the pools, and see which pictures are done."""
        for picture, rank in ends[:, : self.config.num_beams].nonzero().tolist():
            if not self.done[picture]:
                row = rows[picture, rank]
                caption = torch.cat((self.ids[row], words[picture, rank, None]))
                sources = torch.cat((self.sources[row], row[None]))
                self.pools[picture].add(self._score(totals[picture, rank].item()), caption, sources)
        for picture, best in enumerate(totals[:, 0].tolist()):
            self.done[picture] = self.done[picture] or self._is_done(self.pools[picture], best)

    def _is_done(self, pool: _Pool, best: float) -> bool:
        if len(pool.entries) < pool.size:
            return False
        return self.config.early_stopping is True or pool.worst() >= self._score(best)

    def _score(self, total: float) -> float:
        return total / self.ids.shape[1] ** self.config.length_penalty

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `count` best captions of every picture, their scores and the rows of their words (-1 after the end)."""
        for row, total in enumerate(self.sums.flatten().tolist()):
            picture = row // self.config.num_beams
            if not self.done[picture]:
                self.pools[picture].add(self._score(total), self.ids[row], self.sources[row])
        entries = [entry for pool in self.pools for entry in pool.best(count)]
        pad_sequence = torch.nn.utils.rnn.pad_sequence
        sequences = pad_sequence([ids for _, ids, _ in entries], True, int(self.config._pad_token_tensor))
        sources = pad_sequence([rows for _, _, rows in entries], True, -1)
        return sequences, torch.tensor([score for score, _, _ in entries], device=sequences.device), sources
