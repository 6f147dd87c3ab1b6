"""Decoding of SATIC: greedy decoding, sampling and beam search, K words for a call of the decoder.

The loops ask the model for the words in turn, and the cache (`cache_satic.py`) makes the decoder run once for a
group. So processors and searches see the scores of every word, and the loops of transformers work as well.

Where this differs from the authors' code:

1. A caption ends at its end token, also in the middle of a group (`reference_quirks=True`: at the end of the group).
2. Captions may be as long as `max_length`, also if that is no multiple of K (`reference_quirks=True`: of K).
3. The decoder is not called once more after the last group, and beam search stops when no hypothesis can still win.
4. The beams of all pictures run together, and the projected memory of a picture is shared by them.
5. In greedy decoding, captions that have ended leave the batch as soon as they are half of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteriaList

from .captioner_beam_search import BeamSearch, FinishedPool, LoweringProcessor, WordSteps

UNKNOWN_PENALTY = 1000.0


class UnknownWordPenalty(LoweringProcessor):
    """Lower the log-probability of the unknown word by 1000.

    Args:
        unk_token_id (`int`): the unknown word.
    """

    def __init__(self, unk_token_id: int) -> None:
        self.unk_token_id = unk_token_id

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(N, V) -> (N, V)"""
        scores = scores.clone()
        scores[:, self.unk_token_id] -= UNKNOWN_PENALTY
        return scores


def group_words(prompts: torch.Tensor, steps: WordSteps, criteria: StoppingCriteriaList) -> Any:
    """Greedy decoding or sampling; see [`~captioner_beam_search.loop_of`].

    Args:
        prompts (`torch.LongTensor` of shape `(N, prompt)`): how the captions begin, start token first.
        steps ([`WordSteps`]): where scores come from. Options: `max_length`, `do_sample`, `reference_quirks`.
        criteria (`StoppingCriteriaList`): asked at the end of every group.

    Returns:
        `torch.LongTensor` of shape `(N, length)`, padded after the end, or a `GenerateEncoderDecoderOutput`.
    """
    config = steps.config
    quirks = vars(config).get("reference_quirks", False)
    size, start = steps.model.config.group_size, prompts.shape[1]
    limit = 1 + (config.max_length - 1) // size * size if quirks else config.max_length
    captions = _Captions(prompts, max(limit, start), config._eos_token_tensor, config._pad_token_tensor)
    rows_matter = config.do_sample or config.return_dict_in_generate or criteria or not steps.only_lowers
    may_leave = steps.cache is not None and not rows_matter  # finished rows are read nowhere
    for length in range(start, limit):
        log_probs = steps.next_scores(captions.ids[:, :length], normalized=bool(rows_matter))  # (R, V)
        words = torch.multinomial(log_probs.softmax(-1), 1)[:, 0] if config.do_sample else log_probs.argmax(-1)  # (R,)
        group_is_full = length % size == 0
        captions.append(words, stop=group_is_full or not quirks)
        if group_is_full:
            if criteria:
                captions.stop(criteria(captions.ids[:, : length + 1], log_probs))
            going_on = captions.going_on()  # (rows,)
            if not len(going_on):
                break
            if may_leave and 2 * len(going_on) <= len(captions.ids):
                captions.select(going_on)
                steps.select(going_on)
    sequences = captions.sequences()
    return steps.output(sequences, words=sequences.shape[1] - start)


class SaticBeams(BeamSearch):
    """The authors' rule.

    Every word of a group is one ordinary step: each hypothesis offers its `num_beams` best words and the `num_beams`
    best sums of log-probabilities survive; the scores of the group's other words are those of the hypothesis that they
    were computed for. A hypothesis that ends, or is cut off at `max_length`, leaves the beam for the pool, whose best
    ones are returned, by the score of [`length_normalizer`] for `length_penalty`. Without a length penalty a sum can
    only fall, and the search stops as soon as the pool cannot change any more. It is asked at the end of every group.
    """

    def __init__(self, prompts: torch.Tensor, steps: WordSteps) -> None:
        super().__init__(prompts, steps)
        self.group_size = steps.model.config.group_size
        penalty = self.config.length_penalty
        self.can_rise = penalty not in (0, "", None) or not steps.only_lowers
        self.normalize = length_normalizer(0.0 if penalty is None else penalty)
        self.pool = FinishedPool(self)

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        images, beams = self.sums.shape
        gains, words = log_probs.view(images, beams, -1).topk(beams)  # (B, K, K): of each hypothesis, best first
        # equal sums: a better rank within its hypothesis goes first, then the better hypothesis
        sums = (self.sums[..., None] + gains).transpose(1, 2).flatten(1)  # (B, K * K), rank by rank
        sums, order = sums.sort(dim=1, descending=True, stable=True)  # (B, K * K)
        self.sums, chosen = sums[:, :beams], order[:, :beams]  # (B, K)
        words = words.transpose(1, 2).flatten(1).gather(1, chosen)  # (B, K)
        rows = self.continue_with(self.first_rows + chosen % beams, words)  # (B * K,)
        self._finish(torch.isin(words, self.eos) | (self.ids.shape[1] == self.config.max_length))
        return rows

    def _finish(self, finished: torch.Tensor) -> None:
        """Move hypotheses (B, K) to the pool. What is out of the beam has the sum -inf and is never chosen again."""
        written = self.ids.shape[1] - self.start
        scores = self.normalize(self.sums.double(), written).masked_fill(~finished, -torch.inf)  # (B, K)
        self.sums = self.sums.masked_fill(finished, -torch.inf)  # (B, K)
        shape = self.sums.shape
        self.pool.add(scores, self.ids.view(*shape, -1), self.sources.view(*shape, written))

    def is_over(self) -> bool:
        live = self.sums.amax(1)  # (B,)
        done = live == -torch.inf  # (B,)
        if not self.can_rise:
            done = done | (self.pool.scores[:, -1] >= live)
        return bool(done.all())

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        self._finish(torch.isfinite(self.sums))  # a criterion may have stopped the search early
        return self.pool.best(count)


def length_normalizer(penalty: float | str) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Rule that makes a beam's final score of its sum of log-probabilities and its number n of words.

    Args:
        penalty (`float` or `str`): a number a, for sum / n^a, as in transformers; or in the original's notation `""`
            for the sum, `"avg_a"` for sum / n (whatever a) and `"wu_a"` for sum / ((5 + n) / 6)^a (arXiv 1609.08144).
            n counts the end token and not the start token.

    Returns:
        `Callable[[torch.Tensor, int], torch.Tensor]`

    Raises:
        ValueError: another string.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.decoding_satic import length_normalizer
    >>> [round(length_normalizer(name)(torch.tensor(-6.0), 7).item(), 3) for name in ("", 1.0, "avg_0", "wu_1")]
    [-6.0, -0.857, -0.857, -3.0]

    ```
    """
    if isinstance(penalty, int | float):
        return lambda sums, words: sums / words**penalty
    kind, _, alpha = penalty.partition("_")
    try:
        exponent = float(alpha or "nan") if kind else 0.0
    except ValueError:
        exponent = float("nan")
    if kind not in ("", "avg", "wu") or exponent != exponent:
        raise ValueError(f"length_penalty must be a number, '', 'wu_0.7' or 'avg_0', say, not {penalty!r}.")
    if kind == "wu":
        return lambda sums, words: sums / ((5 + words) / 6) ** exponent
    return lambda sums, words: sums / words if kind == "avg" else sums


class _Captions:
    """Output of greedy decoding and sampling: `ids` (R, limit), the `rows` (R,) of all captions that are still in."""

    def __init__(self, prompts: torch.Tensor, limit: int, eos: torch.Tensor, pad: torch.Tensor) -> None:
        self.eos, self.pad = eos, pad
        self.length = prompts.shape[1]
        self.ids = prompts.new_full((len(prompts), limit), int(pad))  # (R, limit)
        self.ids[:, : self.length] = prompts
        self.all_ids = self.ids.clone()  # (N, limit)
        self.rows = torch.arange(len(prompts), device=prompts.device)  # (R,), of all N captions
        self.lengths = torch.full_like(self.rows, self.length)  # (R,), without padding
        self.ended = self.stopped = torch.zeros_like(self.rows, dtype=torch.bool)  # (R,)

    def append(self, words: torch.Tensor, stop: bool) -> None:
        """Append words (R,) to the captions that have not stopped; those that have ended stop now if `stop` is true."""
        self.ids[:, self.length] = words = torch.where(self.stopped, self.pad, words)  # (R,)
        self.length += 1
        self.lengths = self.lengths + ~self.stopped  # (R,)
        self.ended = self.ended | torch.isin(words, self.eos)  # (R,)
        if stop:
            self.stopped = self.ended

    def stop(self, which: torch.Tensor) -> None:
        """Stop those for which `which` (R,) is true."""
        self.ended = self.stopped = self.stopped | which

    def going_on(self) -> torch.Tensor:
        """The rows that have not stopped."""
        return (~self.stopped).nonzero()[:, 0]  # (rows,)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some rows; the others have stopped."""
        self.all_ids[self.rows] = self.ids  # (N, limit)
        self.rows, self.ids, self.lengths = self.rows[rows], self.ids[rows], self.lengths[rows]
        self.ended, self.stopped = self.ended[rows], self.stopped[rows]  # (rows,), as all of the above but ids

    def sequences(self) -> torch.Tensor:
        """All captions, as wide as the longest one, which is among those that are still in."""
        self.all_ids[self.rows] = self.ids
        return self.all_ids[:, : int(self.lengths.max())]  # (N, longest)
