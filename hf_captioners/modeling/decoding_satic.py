"""How SATIC writes a caption: greedy decoding, sampling and beam search, K words for a call of the decoder.

The loops ask the model for one word after the other, and `cache_satic.py` sees to it that the decoder runs once for a
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
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

from .captioner_layers import at_least_float32
from .captioner_outputs import CaptionerEncoderOutput

UNKNOWN_PENALTY = 1000.0
# They only ever lower a score, so that the sum of a hypothesis cannot rise, and look at each caption for itself.
LOWERING_PROCESSORS = (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


def group_sample(
    model: Any,
    input_ids: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateEncoderDecoderOutput:
    """Greedy decoding or sampling; runs inside `generate` as its `custom_generate`.

    Args:
        model ([`SaticForImageCaptioning`]): the captioner.
        input_ids (`torch.LongTensor` of shape `(N, prompt)`): how the captions begin, start token first.
        logits_processor (`LogitsProcessorList`): applied to the log-probabilities of one word after the other.
        stopping_criteria (`StoppingCriteriaList`): besides length and end token, asked at the end of every group.
        generation_config (`GenerationConfig`): `max_length`, `do_sample`, `suppress_unk`, `reference_quirks`,
            `output_scores`, `output_logits`, `return_dict_in_generate`.
        model_kwargs: what the model is called with.

    Returns:
        `torch.LongTensor` of shape `(N, length)`, padded after the end, or a `GenerateEncoderDecoderOutput`. Its
        `scores` are log-probabilities after the processors, its `logits` before them: N rows for each word.
    """
    quirks = vars(generation_config).get("reference_quirks", False)
    size, start = model.config.group_size, input_ids.shape[1]
    limit: Any = generation_config.max_length
    if quirks:
        limit = 1 + (limit - 1) // size * size
    steps = _Steps(model, logits_processor, generation_config, model_kwargs, beams=False)
    others = _other_criteria(stopping_criteria)
    captions = _Captions(input_ids, max(limit, start), *_special_tokens(generation_config))
    draw, as_dict = generation_config.do_sample, generation_config.return_dict_in_generate
    may_leave = steps.can_shrink and not (draw or as_dict or others)  # nobody sees the other rows
    for length in range(start, limit):
        log_probs = steps.next_log_probs(captions.ids[:, :length])
        words = torch.multinomial(log_probs.softmax(-1), 1)[:, 0] if draw else log_probs.argmax(-1)
        group_is_full = length % size == 0
        captions.append(words, stop=group_is_full or not quirks)
        if group_is_full:
            if others:
                captions.stop(others(captions.ids[:, : length + 1], log_probs))
            going_on = captions.going_on()
            if not len(going_on):
                break
            if may_leave and 2 * len(going_on) <= len(captions.ids):
                captions.select(going_on)
                steps.select(going_on)
    sequences = captions.sequences()
    if not as_dict:
        return sequences
    count = sequences.shape[1] - start
    return GenerateEncoderDecoderOutput(
        sequences=sequences,  # type: ignore[arg-type]
        scores=steps.scores(count),  # type: ignore[arg-type]
        logits=steps.logits(count),  # type: ignore[arg-type]
        past_key_values=model_kwargs.get("past_key_values"),
    )


def group_beam_search(
    model: Any,
    input_ids: Any,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    **model_kwargs: Any,
) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
    """Beam search by the authors' rule; runs inside `generate` as its `custom_generate`.

    Every word of a group is one ordinary step: each hypothesis offers its `num_beams` best words and the `num_beams`
    best sums of log-probabilities survive; the scores of the group's other words are those of the hypothesis that they
    were computed for. A hypothesis that ends, or is cut off at `max_length`, leaves the beam for the pool, whose best
    ones are returned. Without a length penalty a sum can only fall, and the search stops as soon as the pool cannot
    change any more.

    Args:
        model ([`SaticForImageCaptioning`]): the captioner.
        input_ids (`torch.LongTensor` of shape `(B * num_beams, prompt)`): the prompt, repeated for every beam.
        logits_processor (`LogitsProcessorList`): applied to the log-probabilities of one word after the other.
        stopping_criteria (`StoppingCriteriaList`): besides length and end token, what stops everything is used; asked
            at the end of every group.
        generation_config (`GenerationConfig`): `num_beams`, `num_return_sequences`, `max_length`, `length_penalty` (see
            [`length_normalizer`]), `suppress_unk`, `output_scores`, `output_logits`, `return_dict_in_generate`.
        model_kwargs: what the model is called with.

    Returns:
        `torch.LongTensor` of shape `(B * num_return_sequences, length)`, best first, or a
        `GenerateBeamEncoderDecoderOutput`, whose `sequences_scores` are the final scores and whose `scores` and
        `beam_indices` go into `compute_transition_scores(…, normalize_logits=False)`.
    """
    size, start = model.config.group_size, input_ids.shape[1]
    limit: Any = generation_config.max_length
    steps = _Steps(model, logits_processor, generation_config, model_kwargs, beams=True)
    others = _other_criteria(stopping_criteria)
    eos, pad = _special_tokens(generation_config)
    beams = _Beams(input_ids, generation_config.num_beams, limit, int(pad), generation_config.length_penalty)
    can_rise = beams.penalized or not all(isinstance(one, LOWERING_PROCESSORS) for one in logits_processor)
    for length in range(start, limit):
        log_probs = steps.next_log_probs(beams.ids[:, :length])
        rows = beams.advance(log_probs, eos)
        if model_kwargs.get("past_key_values") is not None:
            model_kwargs["past_key_values"].reorder_cache(rows)
        if length % size == 0:
            stopped = others and others(beams.ids[:, : length + 1], log_probs).all()
            if stopped or beams.settled(can_rise):
                break
    sequences, scores, sources = beams.best(generation_config.num_return_sequences)
    if not generation_config.return_dict_in_generate:
        return sequences
    return GenerateBeamEncoderDecoderOutput(
        sequences=sequences,  # type: ignore[arg-type]  # their annotations are narrower than what they hold
        sequences_scores=scores,
        scores=steps.scores(),  # type: ignore[arg-type]
        logits=steps.logits(),  # type: ignore[arg-type]
        beam_indices=sources,  # type: ignore[arg-type]
        past_key_values=model_kwargs.get("past_key_values"),
    )


def length_normalizer(penalty: float | str) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """How a beam's final score follows from its sum of log-probabilities and its number n of words.

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
    >>> [round(length_normalizer(one)(torch.tensor(-6.0), 7).item(), 3) for one in ("", 1.0, "avg_0", "wu_1")]
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


class _Steps:
    """Asks the model for one word after the other, and keeps the scores that the caller wants."""

    def __init__(
        self,
        model: Any,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        beams: bool,
    ) -> None:
        self.model, self.processor = model, logits_processor
        names = ("encoder_outputs", "past_key_values")
        self.inputs: dict[str, Any] = {name: model_kwargs.get(name) for name in names}
        self.inputs["use_cache"] = cached = self.inputs["past_key_values"] is not None
        self.new_words: int | None = 1 if cached else None
        self.first = True
        suppress = vars(generation_config).get("suppress_unk", "beams")
        self.unknown = model.config.unk_token_id if suppress is True or (suppress == "beams" and beams) else None
        self._scores: list[torch.Tensor] | None = [] if generation_config.output_scores else None
        self._logits: list[torch.Tensor] | None = [] if generation_config.output_logits else None
        # whether `select` may be called: processors that remember rows would mix them up
        each_for_itself = all(isinstance(one, LOWERING_PROCESSORS) for one in logits_processor)
        self.can_shrink = cached and each_for_itself

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some of the captions; without beams each is the only one of its picture."""
        self.inputs["past_key_values"].batch_select_indices(rows)
        memory = self.inputs["encoder_outputs"]
        self.inputs["encoder_outputs"] = CaptionerEncoderOutput(**{name: one[rows] for name, one in memory.items()})

    def next_log_probs(self, ids: torch.Tensor) -> torch.Tensor:
        """Log-probabilities (N, V) of the words that follow `ids` (N, length), after the processors."""
        new = ids if self.first or self.new_words is None else ids[:, -1:]
        self.first = False
        output = self.model(decoder_input_ids=new, logits_to_keep=1, return_dict=True, **self.inputs)
        log_probs = at_least_float32(output.logits[:, -1]).log_softmax(-1)
        if self._logits is not None:
            self._logits.append(log_probs)
        if self.unknown is not None:
            log_probs = log_probs.clone()
            log_probs[:, self.unknown] -= UNKNOWN_PENALTY
        log_probs = self.processor(ids, log_probs)  # type: ignore[arg-type]
        if self._scores is not None:
            self._scores.append(log_probs)
        return log_probs

    def scores(self, count: int | None = None) -> tuple[torch.Tensor, ...] | None:
        """What the processors gave, for each of the first `count` words."""
        return None if self._scores is None else tuple(self._scores[:count])

    def logits(self, count: int | None = None) -> tuple[torch.Tensor, ...] | None:
        """What the processors got, for each of the first `count` words."""
        return None if self._logits is None else tuple(self._logits[:count])


class _Captions:
    """What greedy decoding and sampling write: `ids` (R, limit), the `rows` (R,) of all captions that are still in."""

    def __init__(self, prompts: torch.Tensor, limit: int, eos: torch.Tensor, pad: torch.Tensor) -> None:
        self.eos, self.pad = eos, pad
        self.length = prompts.shape[1]
        self.ids = prompts.new_full((len(prompts), limit), int(pad))
        self.ids[:, : self.length] = prompts
        self.all_ids = self.ids.clone()
        self.rows = torch.arange(len(prompts), device=prompts.device)
        self.lengths = torch.full_like(self.rows, self.length)  # without padding
        self.ended = self.stopped = torch.zeros_like(self.rows, dtype=torch.bool)

    def append(self, words: torch.Tensor, stop: bool) -> None:
        """Append words (R,) to the captions that have not stopped; those that have ended stop now if `stop` is true."""
        self.ids[:, self.length] = words = torch.where(self.stopped, self.pad, words)
        self.length += 1
        self.lengths = self.lengths + ~self.stopped
        self.ended = self.ended | torch.isin(words, self.eos)
        if stop:
            self.stopped = self.ended

    def stop(self, which: torch.Tensor) -> None:
        """Stop those for which `which` (R,) is true."""
        self.ended = self.stopped = self.stopped | which

    def going_on(self) -> torch.Tensor:
        """The rows that have not stopped."""
        return (~self.stopped).nonzero()[:, 0]

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some rows; the others have stopped."""
        self.all_ids[self.rows] = self.ids
        self.rows, self.ids, self.lengths = self.rows[rows], self.ids[rows], self.lengths[rows]
        self.ended, self.stopped = self.ended[rows], self.stopped[rows]

    def sequences(self) -> torch.Tensor:
        """All captions, as wide as the longest one, which is among those that are still in."""
        self.all_ids[self.rows] = self.ids
        return self.all_ids[:, : int(self.lengths.max())]


class _Beams:
    """The hypotheses of B pictures, K of each: rows of `ids` (B * K, limit), and the pool of the finished ones."""

    def __init__(self, prompts: torch.Tensor, count: int, limit: int, pad: int, penalty: float | str | None) -> None:
        pictures, device = prompts.shape[0] // count, prompts.device
        self.start = self.length = prompts.shape[1]
        self.penalized = penalty not in (0, "", None)
        self.normalize = length_normalizer(0.0 if penalty is None else penalty)
        self.ids = prompts.new_full((pictures * count, limit), pad)
        self.ids[:, : self.start] = prompts
        # (B * K, steps): which row each word was predicted in
        self.sources = prompts.new_full((pictures * count, limit - self.start), -1)
        self.sums = torch.full((pictures, count), -torch.inf, device=device)  # float64 once such scores are added
        self.sums[:, 0] = 0.0  # all hypotheses start as the same prompt: only the first may branch
        self.first_rows = torch.arange(pictures, device=device)[:, None] * count
        # the pool: the best K finished ones of each picture, best first, equal ones in the order of their coming
        self.pool_scores = torch.full((pictures, count), -torch.inf, device=device, dtype=torch.float64)
        self.pool_ids = self.ids.view(pictures, count, -1)
        self.pool_sources = self.sources.view(pictures, count, -1)
        self.pool_lengths = torch.full((pictures, count), self.start, device=device)

    def advance(self, log_probs: torch.Tensor, eos: torch.Tensor) -> torch.Tensor:
        """Append a word to every hypothesis; returns the rows (B * K,) that the new hypotheses continue."""
        pictures, count = self.sums.shape
        gains, words = log_probs.view(pictures, count, -1).topk(count)  # (B, K, K): of each hypothesis, best first
        # equal sums: a better rank within its hypothesis goes first, then the better hypothesis
        sums = (self.sums[..., None] + gains).transpose(1, 2).flatten(1)
        sums, order = sums.sort(dim=1, descending=True, stable=True)
        self.sums, chosen = sums[:, :count], order[:, :count]
        words = words.transpose(1, 2).flatten(1).gather(1, chosen)
        rows = (self.first_rows + chosen % count).flatten()
        self.ids = self.ids.index_select(0, rows)
        self.ids[:, self.length] = words.flatten()
        self.sources = self.sources.index_select(0, rows)
        self.sources[:, self.length - self.start] = rows
        self.length += 1
        is_last = self.length == self.ids.shape[1]
        self._finish(torch.isin(words, eos) | is_last)
        return rows

    def _finish(self, finished: torch.Tensor) -> None:
        """Move hypotheses (B, K) to the pool. What is out of the beam has the sum -inf and is never chosen again."""
        scores = self.normalize(self.sums.double(), self.length - self.start).masked_fill(~finished, -torch.inf)
        self.sums = self.sums.masked_fill(finished, -torch.inf)
        pictures, count = scores.shape
        scores, order = torch.cat((self.pool_scores, scores), dim=1).sort(dim=1, descending=True, stable=True)
        self.pool_scores, kept = scores[:, :count], order[:, :count]
        lengths = torch.full_like(self.pool_lengths, self.length)
        self.pool_lengths = torch.cat((self.pool_lengths, lengths), dim=1).gather(1, kept)

        def merge(pool: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
            both = torch.cat((pool, new.view(pictures, count, -1)), dim=1)
            return both.gather(1, kept[..., None].expand(-1, -1, both.shape[-1]))

        self.pool_ids, self.pool_sources = merge(self.pool_ids, self.ids), merge(self.pool_sources, self.sources)

    def settled(self, can_rise: bool) -> bool:
        """Whether nothing that is still in the beam can enter the pool."""
        live = self.sums.amax(1)
        done = live == -torch.inf
        if not can_rise:
            done = done | (self.pool_scores[:, -1] >= live)
        return bool(done.all())

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `count` best captions of every picture, their scores and the rows of their words (-1 after the end)."""
        self._finish(torch.isfinite(self.sums))  # a criterion may have stopped the search early
        lengths = self.pool_lengths[:, :count]
        longest = int(lengths.max())
        ids, sources = self.pool_ids[:, :count, :longest], self.pool_sources[:, :count, : longest - self.start]
        scores = self.pool_scores[:, :count].to(self.sums.dtype)
        return ids.flatten(0, 1), scores.flatten(), sources.flatten(0, 1)


def _special_tokens(generation_config: GenerationConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """End tokens and padding token, as `generate` put them on the right device."""
    config: Any = generation_config
    return config._eos_token_tensor, config._pad_token_tensor


def _other_criteria(stopping_criteria: StoppingCriteriaList) -> StoppingCriteriaList:
    """Those that the loops do not see to themselves."""
    usual = (MaxLengthCriteria, EosTokenCriteria)
    return StoppingCriteriaList(one for one in stopping_criteria if not isinstance(one, usual))
