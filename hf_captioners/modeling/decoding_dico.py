"""The beam search of the DiCO captioner: that of transformers 4.20, on whose lists of candidates DiCO was defined.

It differs from the search of transformers 5 in two points, which can change the order of a list and, rarely, its
captions: a caption that is cut off at the longest length is divided by that length with the start token counted (as a
finished one is), and a picture is done by the best of all candidates of a step, those that end included.
"""

from __future__ import annotations

import torch

from .captioner_beam_search import BeamSearch, FinishedPool, WordSteps


class DicoBeams(BeamSearch):
    """K running prefixes for every picture, and a pool of at most K finished captions.

    A step takes the 2K best continuations of all prefixes by their sums of log-probabilities. One of the first K that
    ends its caption enters the pool with `sum / length ** length_penalty`, where the length counts the start token and
    not the end token; the pool keeps its K best. The first K that do not end run on. The picture is done when its pool
    is full and no worse than the best continuation of the step by the same measure, or with `early_stopping=True` as
    soon as it is full. At `max_length` the prefixes of pictures that are not done enter their pools. With
    `do_sample=True` the continuations are drawn without replacement instead.
    """

    options = ("early_stopping",)
    nothing = -1e9

    def __init__(self, prompts: torch.Tensor, steps: WordSteps) -> None:
        super().__init__(prompts, steps)
        self.pool = FinishedPool(self)
        self.done = torch.zeros_like(self.sums[:, 0], dtype=torch.bool)  # (B,)

    def is_over(self) -> bool:
        return bool(self.done.all())

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        beams = self.sums.shape[1]
        totals = log_probs.view(*self.sums.shape, -1) + self.sums[..., None]  # (B, K, V)
        totals, chosen = self._candidates(totals.flatten(1))  # (B, 2K), best first
        rows, words = self.first_rows + chosen // log_probs.shape[-1], chosen % log_probs.shape[-1]
        ends = torch.isin(words, self.eos)
        self._finish(totals, rows[:, :beams], words[:, :beams], ends[:, :beams])
        running = ends.long().argsort(dim=1, stable=True)[:, :beams]  # the first K that do not end, in their order
        self.sums = totals.gather(1, running)
        return self.continue_with(rows.gather(1, running), words.gather(1, running))

    def _candidates(self, totals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of all continuations (B, K * V), with their places: 2K of them, so that K do not end."""
        count = max(2, 1 + self.eos.numel()) * self.config.num_beams
        if not self.config.do_sample:
            return totals.topk(min(count, totals.shape[1]), dim=1)
        drawn = torch.multinomial(totals.softmax(-1), count)
        sums, order = totals.gather(1, drawn).sort(dim=1, descending=True)
        return sums, drawn.gather(1, order)

    def _finish(self, totals: torch.Tensor, rows: torch.Tensor, words: torch.Tensor, ends: torch.Tensor) -> None:
        """Put into the pools what ends of the first K candidates (B, K), and see which pictures are done."""
        scores = self._score(totals)  # (B, 2K)
        finished = scores[:, : rows.shape[1]].masked_fill(~ends | self.done[:, None], -torch.inf)
        ids = torch.cat((self.ids[rows], words[..., None]), dim=-1)  # (B, K, length + 1)
        sources = torch.cat((self.sources[rows], rows[..., None]), dim=-1)  # (B, K, steps + 1)
        self.pool.add(finished, ids, sources)
        worst = self.pool.scores[:, -1]
        enough = self.config.early_stopping is True
        self.done = self.done | (worst > -torch.inf) & (enough | (worst >= scores[:, 0]))

    def _score(self, totals: torch.Tensor) -> torch.Tensor:
        return totals.double() / self.ids.shape[1] ** self.config.length_penalty

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = (*self.sums.shape, -1)
        scores = self._score(self.sums).masked_fill(self.done[:, None], -torch.inf)
        self.pool.add(scores, self.ids.view(shape), self.sources.view(*self.sums.shape, self.sources.shape[1]))
        return self.pool.best(count)
