"""Decoding word by word: the stepper of all loops, and the captioners' own beam searches, each of which is a rule.

A rule is a subclass of [`BeamSearch`] that defines how hypotheses compete: of [`FinishedStay`] if finished captions
stay in the beam, or with a [`FinishedPool`] if they leave it.

What `output_scores` and `output_logits` give is the same for every captioner and every decoding, greedy, sampled or
with beams: `logits` are what the model gave, before softmax and processors; `scores` are log-probabilities after the
processors (in transformers' loops without beams of the distribution that is left, so that they add up to 1 again). So
`model.compute_transition_scores(out.sequences, out.scores, out.beam_indices)` are the log-probabilities of the words,
as `sequence_log_probs` has them, wherever no processor changed them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.logits_process import (
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)
from transformers.generation.stopping_criteria import EosTokenCriteria, MaxLengthCriteria
from transformers.generation.utils import GenerateBeamEncoderDecoderOutput, GenerateEncoderDecoderOutput

from .captioner_layers import at_least_float32


class LoweringProcessor(LogitsProcessor):
    """A processor that only lowers log-probabilities and treats each caption by itself."""


class LogProbabilities(LogitsProcessor):
    """Log-probabilities of logits, last of all processors in loops of transformers that keep logits as `scores`."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(N, V) -> (N, V)"""
        return scores.log_softmax(-1)


class NoRepeatedNgrams(NoRepeatNGramLogitsProcessor):
    """Processor of transformers, without the start token."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(N, V) -> (N, V)"""
        return super().__call__(input_ids[:, 1:], scores)


class RepeatedWordPenalty(RepetitionPenaltyLogitsProcessor):
    """Processor of transformers, without the start token."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """(N, V) -> (N, V)"""
        return super().__call__(input_ids[:, 1:], scores)


def behind_start(processor: Any) -> Any:
    """A processor that counts repetitions behind the start token only; other processors as they are."""
    if type(processor) is NoRepeatNGramLogitsProcessor:
        return NoRepeatedNgrams(processor.ngram_size)
    if type(processor) is RepetitionPenaltyLogitsProcessor:
        return RepeatedWordPenalty(processor.penalty)
    return processor


LOWERING_PROCESSORS = (
    LoweringProcessor,
    MinLengthLogitsProcessor,
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
)


class WordSteps:
    """Ask a captioner for the words in turn, and keep the scores that the caller wants.

    Args:
        model ([`AutoregressiveCaptioner`]): the captioner.
        logits_processor (`LogitsProcessorList`): applied to the log-probabilities.
        generation_config (`GenerationConfig`): `output_scores`, `output_logits`, `output_hidden_states`,
            `output_attentions`, `return_dict_in_generate`. `generate` has put the special tokens there, on the right
            device.
        model_kwargs (`dict`): `encoder_outputs` and, with a cache, `past_key_values`.

    Attributes:
        only_lowers (`bool`): whether all processors are of those that only lower log-probabilities, so that the sum of
            a hypothesis cannot rise, and treat each caption by itself.
    """

    def __init__(
        self,
        model: Any,
        logits_processor: LogitsProcessorList,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
    ) -> None:
        self.model, self.processor = model, logits_processor
        self.config: Any = generation_config
        self.memory, self.cache = model_kwargs["encoder_outputs"], model_kwargs.get("past_key_values")
        self.only_lowers = all(isinstance(processor, LOWERING_PROCESSORS) for processor in logits_processor)
        self._is_first = True
        self._scores: list[torch.Tensor] = []
        self._logits: list[torch.Tensor] = []
        self._layers: dict[str, list] = {}  # of every word, what was asked for of the decoder's layers

    def next_scores(self, ids: torch.Tensor, normalized: bool = True) -> torch.Tensor:
        """Log-probabilities (N, V), after the processors, of the words that follow `ids` (N, length); if not
        `normalized`, what has their order."""
        new = ids if self._is_first or self.cache is None else ids[:, -1:]
        self._is_first = False
        asked = {name: True for name in ("output_hidden_states", "output_attentions") if vars(self.config)[name]}
        output = self.model(
            decoder_input_ids=new, encoder_outputs=self.memory, past_key_values=self.cache, logits_to_keep=1, **asked
        )
        logits = at_least_float32(output.logits[:, -1])  # (N, V)
        scores: Any = self.processor(ids, logits.log_softmax(-1) if normalized else logits)  # type: ignore[arg-type]
        self._logits += [logits] if self.config.output_logits else []
        self._scores += [scores] if self.config.output_scores else []
        for name in ("decoder_hidden_states", "cross_attentions", "decoder_attentions") if asked else ():
            self._layers.setdefault(name, []).append(output.get(name))
        return scores

    def reorder(self, rows: torch.Tensor) -> None:
        """Let caption `i` continue caption `rows[i]`, which is of the same picture."""
        if self.cache is not None:
            self.cache.reorder_cache(rows)

    def select(self, rows: torch.Tensor) -> None:
        """Go on with some of the captions, each of which is the only one of its picture."""
        assert self.cache is not None
        self.cache.batch_select_indices(rows)
        self.memory = self.memory.rows(rows)

    def output(
        self, sequences: torch.Tensor, words: int | None = None, **beams: torch.Tensor
    ) -> torch.Tensor | GenerateEncoderDecoderOutput | GenerateBeamEncoderDecoderOutput:
        """Output of `generate`.

        Args:
            sequences (`torch.LongTensor` of shape `(N, length)`): the captions.
            words (`int`, *optional*): of how many words scores are returned; by default of all.
            beams (`torch.Tensor`): `sequences_scores` and `beam_indices` of a beam search.

        Returns:
            the sequences, or with `return_dict_in_generate` a `ModelOutput` of transformers
        """
        if not self.config.return_dict_in_generate:
            return sequences
        kind: Any = GenerateBeamEncoderDecoderOutput if beams else GenerateEncoderDecoderOutput
        scores, logits = tuple(self._scores[:words]) or None, tuple(self._logits[:words]) or None
        layers = {name: tuple(all_words[:words]) for name, all_words in self._layers.items() if any(all_words)}
        return kind(sequences=sequences, scores=scores, logits=logits, past_key_values=self.cache, **beams, **layers)


def loop_of(write: Callable[[torch.Tensor, WordSteps, StoppingCriteriaList], Any]) -> Callable:
    """A loop as transformers wants it for its `custom_generate`.

    Args:
        write (`Callable`): what writes captions, from the prompts `(N, prompt)`, the steps, and those stopping criteria
            that it has to ask: all but the longest length and the end token, which it sees to itself.

    Returns:
        `Callable`
    """
    usual = (MaxLengthCriteria, EosTokenCriteria)

    def loop(
        model: Any,
        input_ids: torch.Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **model_kwargs: Any,
    ) -> Any:
        steps = WordSteps(model, logits_processor, generation_config, model_kwargs)
        others = [criterion for criterion in stopping_criteria if not isinstance(criterion, usual)]
        return write(input_ids, steps, StoppingCriteriaList(others))

    return loop


class BeamSearch:
    """The hypotheses of B pictures, K of each, side by side; a subclass is the rule by which they compete.

    Args:
        prompts (`torch.LongTensor` of shape `(B * K, prompt)`): how the captions begin, repeated for every hypothesis.
        steps ([`WordSteps`]): where scores come from, and the options.

    Attributes:
        ids (`torch.LongTensor` of shape `(B * K, length)`): the hypotheses so far.
        sums (`torch.Tensor` of shape `(B, K)`): their sums of log-probabilities.
        sources (`torch.LongTensor` of shape `(B * K, steps)`): the row that each word was predicted in.
    """

    nothing = -torch.inf  # sum of all hypotheses but the first at the start, where all are the same prompt
    options: ClassVar[tuple[str, ...]] = ()  # of `captioner_options.OWN_BEAMS`, those that the rule has
    group_size = 1  # words between two checks whether the search is over

    def __init__(self, prompts: torch.Tensor, steps: WordSteps) -> None:
        self.config = config = steps.config
        images, device = prompts.shape[0] // config.num_beams, prompts.device
        self.ids = prompts  # (B * K, prompt)
        self.start = prompts.shape[1]
        self.eos, self.pad = config._eos_token_tensor, config._pad_token_tensor
        self.first_rows = torch.arange(images, device=device)[:, None] * config.num_beams  # (B, 1)
        self.sums = torch.full((images, config.num_beams), self.nothing, device=device)  # (B, K), float64 later
        self.sums[:, 0] = 0.0
        self.sources = prompts.new_empty(prompts.shape[0], 0)  # (B * K, 0)

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        """Append a word to every hypothesis, by scores (B * K, V); returns the rows (B * K,) that they continue."""
        raise NotImplementedError

    def is_over(self) -> bool:
        """Tell whether no further word can change the result."""
        raise NotImplementedError

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The `count` best captions of every picture, their scores and the rows of their words (-1 after the end)."""
        raise NotImplementedError

    def continue_with(self, rows: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """Let the hypotheses be `words` (B, K) behind those in `rows` (B, K); returns the rows (B * K,)."""
        rows = rows.flatten()  # (B * K,)
        self.ids = torch.cat((self.ids.index_select(0, rows), words.view(-1, 1)), dim=1)  # (B * K, length + 1)
        self.sources = torch.cat((self.sources.index_select(0, rows), rows[:, None]), dim=1)  # (B * K, steps + 1)
        return rows

    @classmethod
    def search(cls, prompts: torch.Tensor, steps: WordSteps, criteria: StoppingCriteriaList) -> Any:
        """Search for the best captions; see [`loop_of`].

        Args:
            prompts (`torch.LongTensor` of shape `(B * K, prompt)`): how the captions begin, repeated for every beam.
            steps ([`WordSteps`]): where scores come from. Options: `num_beams`, `num_return_sequences`, `max_length`,
                `length_penalty`, `do_sample` and what else the rule knows.
            criteria (`StoppingCriteriaList`): what stops everything is used.

        Returns:
            `torch.LongTensor` of shape `(B * num_return_sequences, length)`, best first, or a
            `GenerateBeamEncoderDecoderOutput`, whose `sequences_scores` are the final scores.
        """
        search = cls(prompts, steps)
        for length in range(prompts.shape[1], steps.config.max_length):
            log_probs = steps.next_scores(search.ids)  # (B * K, V)
            steps.reorder(search.advance(log_probs))
            if length % search.group_size == 0:
                stopped: Any = criteria and criteria(search.ids, log_probs).all()
                if stopped or search.is_over():
                    break
        sequences, scores, sources = search.best(steps.config.num_return_sequences)
        return steps.output(sequences, sequences_scores=scores, beam_indices=sources)


class FinishedStay(BeamSearch):
    """Searches in which finished captions stay in the beam, where a better one can push them out.

    At every step each hypothesis offers its `num_beams` best words, a finished one only itself, and the `num_beams`
    best survive by `rank`. The search ends when all are finished or `max_length` is reached; hypotheses cut off there
    compete on equal terms. The final score is the sum of log-probabilities divided by `length ** length_penalty`. With
    `do_sample=True` the words are drawn without replacement instead.
    """

    def __init__(self, prompts: torch.Tensor, steps: WordSteps) -> None:
        super().__init__(prompts, steps)
        self.start_length = self.prompt_length()
        self.lengths = torch.full_like(self.sums, self.start_length, dtype=torch.long)  # (B, K)
        self.finished = torch.zeros_like(self.sums, dtype=torch.bool)  # (B, K)

    def prompt_length(self) -> int:
        """Number of the prompt's tokens that the length of a caption counts."""
        return self.start

    def rank(self, sums: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Scores by which candidates survive, of sums and lengths (B, K * K), the end token counted."""
        return sums

    def score(self, sums: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Final scores, of any shape."""
        return sums / lengths**self.config.length_penalty

    def is_over(self) -> bool:
        return bool(self.finished.all())

    def advance(self, log_probs: torch.Tensor) -> torch.Tensor:
        beams = self.sums.shape[1]
        words, gains = self._candidates(log_probs.view(*self.sums.shape, -1))  # (B, K, K)
        sums = (self.sums[..., None] + gains).flatten(1)  # (B, K * K)
        lengths = (self.lengths + (~self.finished).long()).repeat_interleave(beams, dim=1)  # (B, K * K)
        chosen = self.rank(sums, lengths).topk(beams).indices  # (B, K)
        self.sums, self.lengths = sums.gather(1, chosen), lengths.gather(1, chosen)
        origin = chosen // beams  # (B, K)
        finished = self.finished.gather(1, origin)  # (B, K)
        words = torch.where(finished, self.pad, words.flatten(1).gather(1, chosen))  # (B, K)
        self.finished = finished | torch.isin(words, self.eos)
        return self.continue_with(self.first_rows + origin, words)

    def _candidates(self, log_probs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K next words of every hypothesis and what each adds to its sum, (B, K, K) both; a finished hypothesis offers
        itself only, at no cost."""
        beams = log_probs.shape[1]
        if self.config.do_sample:
            words = torch.multinomial(log_probs.exp().flatten(0, 1), beams).view(-1, beams, beams)  # (B, K, K)
            gains = log_probs.gather(-1, words)  # (B, K, K)
        else:
            gains, words = log_probs.topk(beams, dim=-1)  # (B, K, K)
        itself = torch.full_like(gains, -torch.inf)  # (B, K, K)
        itself[..., 0] = 0.0
        return words, torch.where(self.finished[..., None], itself, gains)

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        scores, order = self.score(self.sums, self.lengths).sort(dim=1, descending=True, stable=True)  # (B, K)
        rows = (self.first_rows + order[:, :count]).flatten()  # (B * count,)
        words = self.lengths.flatten()[rows] - self.start_length  # (B * count,), without the prompt
        longest = int(words.max())
        written = torch.arange(longest, device=rows.device) < words[:, None]  # (B * count, longest)
        sources = self.sources[rows, :longest].masked_fill(~written, -1)  # (B * count, longest)
        return self.ids[rows, : self.start + longest], scores[:, :count].flatten(), sources


class FinishedPool:
    """The K best finished captions of every picture so far, best first, equal ones in the order of their coming.

    Args:
        search ([`BeamSearch`]): whose captions they are; at its start.

    Attributes:
        scores (`torch.DoubleTensor` of shape `(B, K)`): minus infinity where there is none yet.
    """

    def __init__(self, search: BeamSearch) -> None:
        images, count = search.sums.shape
        self.start, self.dtype = search.start, search.sums.dtype
        self.limit = max(search.config.max_length, search.start)
        self.pad = int(search.pad)
        self.scores = torch.full((images, count), -torch.inf, dtype=torch.float64, device=search.ids.device)  # (B, K)
        self.lengths = torch.full_like(search.ids.view(images, count, -1)[..., 0], search.start)  # (B, K)
        self.ids = search.ids.new_full((images, count, self.limit), self.pad)  # (B, K, limit)
        self.sources = search.ids.new_full((images, count, self.limit - search.start), -1)  # (B, K, limit - prompt)

    def add(self, scores: torch.Tensor, ids: torch.Tensor, sources: torch.Tensor) -> None:
        """Add captions and keep the best ones.

        Args:
            scores (`torch.Tensor` of shape `(B, M)`): minus infinity for what is no finished caption.
            ids (`torch.LongTensor` of shape `(B, M, length)`): the captions.
            sources (`torch.LongTensor` of shape `(B, M, steps)`): the row that each word was predicted in.
        """
        missing = self.limit - ids.shape[-1]
        count = self.scores.shape[1]
        scores, order = torch.cat((self.scores, scores.double()), dim=1).sort(dim=1, descending=True, stable=True)
        # scores and order (B, K + M)
        self.scores, kept = scores[:, :count], order[:, :count]  # (B, K)
        lengths = torch.full_like(ids[..., 0], ids.shape[-1])  # (B, M)
        self.lengths = torch.cat((self.lengths, lengths), dim=1).gather(1, kept)  # (B, K)
        self.ids = _keep(self.ids, torch.nn.functional.pad(ids, (0, missing), value=self.pad), kept)
        self.sources = _keep(self.sources, torch.nn.functional.pad(sources, (0, missing), value=-1), kept)

    def best(self, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose as [`BeamSearch.best`] does."""
        longest = int(self.lengths[:, :count].max())
        ids, sources = self.ids[:, :count, :longest], self.sources[:, :count, : longest - self.start]
        # (B, count, longest) and (B, count, longest - prompt)
        scores = self.scores[:, :count].to(self.dtype)  # (B, count)
        return ids.flatten(0, 1), scores.flatten(), sources.flatten(0, 1)


def _keep(before: torch.Tensor, new: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """Rows `kept` (B, K) of both (B, K + M, width)."""
    both = torch.cat((before, new), dim=1)  # (B, K + M, width)
    return both.gather(1, kept[..., None].expand(-1, -1, both.shape[-1]))  # (B, K, width)
