"""Candidates: captions that the model writes for the pictures of a batch, to be scored and learned from.

What chance decides is a function of the seed, the step, the picture and the candidate alone, so that batch size,
gradient accumulation, the number of processes and resuming do not change the candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ...families import CaptionerFamily, CaptionFamily, SpecialTokens
from ...modeling.captioner_layers import ended_before
from ..rows import chance

STRATEGIES = ("beam", "sample", "diverse_beam")


@dataclass
class Candidates:
    """k captions of each of B pictures, those of a picture side by side.

    Attributes:
        sequences (`torch.LongTensor` of shape `(B * k, T)`): start token, words, end token, padding.
        mask (`torch.BoolTensor` of shape `(B * k, T - 1)`): tokens behind the start token that count: words and the end
            token, no padding.
        finished (`torch.BoolTensor` of shape `(B * k,)`): whether a caption has its end token.
        texts (`list[str]`): the captions in words.
        k (`int`): candidates of a picture.
        log_probs (`torch.Tensor` of shape `(B * k, T - 1)`, *optional*): of the tokens, without gradient, where the
            way of writing defines them together with the captions.
        scoring_inputs (`dict[str, Any]`): further arguments of `sequence_log_probs` that belong to how they were
            written, such as the step and the noise of a diffusion model.
        greedy ([`Candidates`], *optional*): for each candidate the greedy caption of the way in which it was written,
            where it has one of its own.
    """

    sequences: torch.Tensor
    mask: torch.Tensor
    finished: torch.Tensor
    texts: list[str]
    k: int
    log_probs: torch.Tensor | None = None
    scoring_inputs: dict[str, Any] = field(default_factory=dict)
    greedy: Candidates | None = None

    @classmethod
    def of(
        cls,
        sequences: torch.Tensor,
        tokens: SpecialTokens | GenerationConfig,
        texts: list[str],
        k: int,
        log_probs: torch.Tensor | None = None,
        scoring_inputs: dict[str, Any] | None = None,
    ) -> Candidates:
        """The candidates of what a model wrote, with the ids of its end token and padding; see [`Candidates`]."""
        targets, eos = sequences[:, 1:], tokens.eos_token_id
        is_end = torch.isin(targets, torch.as_tensor(eos, device=targets.device))
        counts = is_end | (targets != tokens.pad_token_id)
        mask, finished = counts & ~ended_before(targets, eos), is_end.any(dim=1)
        if log_probs is not None:
            log_probs = log_probs.masked_fill(~mask, 0.0)
        return cls(sequences, mask, finished, texts, k, log_probs, scoring_inputs or {})

    @property
    def ids(self) -> list[list[int]]:
        """The tokens of each caption, end token included, without start token and the padding behind. Padding that the
        model wrote between two words stays: the log-probabilities skip it, but it is part of what is rewarded."""
        places = torch.arange(1, self.mask.shape[1] + 1, device=self.mask.device)
        stops = (self.mask * places).amax(dim=1).tolist()  # behind the last token that counts
        return [row[:stop] for row, stop in zip(self.sequences[:, 1:].tolist(), stops, strict=True)]

    @property
    def lengths(self) -> torch.Tensor:
        """Words of each caption in tokens, `(B * k,)`, without the end token."""
        return self.mask.sum(dim=1) - self.finished.long()

    @property
    def firsts(self) -> torch.Tensor:
        """`torch.BoolTensor` of shape `(B, k)`: candidates that say what no earlier one of their picture says."""
        earlier_texts = [self.texts[row - row % self.k : row] for row in range(len(self.texts))]
        first = [text not in earlier for text, earlier in zip(self.texts, earlier_texts, strict=True)]
        return torch.tensor(first, device=self.sequences.device).view(-1, self.k)


class SampledChoice(LogitsProcessor):
    """Draw the next token from the scores, with a given random number; all other scores become -inf.

    The draw inverts the cumulative distribution in float64, on Apple's GPUs, which have none, in float32.

    Args:
        uniforms (`torch.Tensor` of shape `(N, steps)`): numbers in [0, 1), for each caption one per token.
    """

    def __init__(self, uniforms: torch.Tensor) -> None:
        self.uniforms = uniforms
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        cumulated = scores.to(self.uniforms.dtype).softmax(dim=-1).cumsum(dim=-1)
        drawn = self.uniforms[:, self.step, None].to(cumulated.device) * cumulated[:, -1:]
        self.step += 1
        return _only(torch.searchsorted(cumulated, drawn, right=True).clamp(max=scores.shape[-1] - 1), scores)


class DiverseChoice(LogitsProcessor):
    """Diverse beam search with a beam in each group (Vijayakumar et al., 2018): every candidate avoids what the earlier
    candidates of its picture say at the same place.

    Args:
        k (`int`): candidates of a picture, whose rows are side by side.
        penalty (`float`): taken from a token's log-probability for each earlier candidate that has it.
        eos_token_id (`int` or `list[int]`): what ends a caption; one that has ended says nothing more.
        start_length (`int`, defaults to 1): tokens before the first word, among which the end token ends nothing.
    """

    def __init__(self, k: int, penalty: float, eos_token_id: int | Sequence[int], start_length: int = 1) -> None:
        self.k = k
        self.start_length = start_length
        self.penalty = penalty
        self.eos_token_id = eos_token_id

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        eos = torch.as_tensor(self.eos_token_id, device=input_ids.device)
        goes_on = ~torch.isin(input_ids[:, self.start_length :], eos).any(dim=1).view(-1, self.k)
        grouped = scores.log_softmax(dim=-1).view(-1, self.k, scores.shape[-1])
        said = torch.zeros_like(grouped[:, 0])
        chosen = []
        for index, candidate in enumerate(grouped.unbind(dim=1)):
            token = (candidate - self.penalty * said).argmax(dim=-1, keepdim=True)
            said = said.scatter_add(1, token, goes_on[:, index, None].to(said))
            chosen.append(token)
        return _only(torch.stack(chosen, dim=1).view(-1, 1), scores)


def _only(tokens: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Scores that leave one token (N, 1) to choose."""
    return torch.full_like(scores, -torch.inf).scatter(1, tokens, 0.0)


def random_numbers(names: Sequence[str], k: int, steps: int) -> torch.Tensor:
    """Random numbers for the candidates of pictures: a function of the picture's name alone.

    Args:
        names (`Sequence[str]`): for each picture what chance depends on.
        k (`int`): candidates of a picture.
        steps (`int`): tokens of a caption.

    Returns:
        `torch.Tensor` of shape `(len(names) * k, steps)`: float64 in [0, 1).
    """
    draws = [chance(f"{name} {candidate}") for name in names for candidate in range(k)]
    return torch.tensor([[draw.random() for _ in range(steps)] for draw in draws], dtype=torch.float64)


def generation_options(
    args: Any,
    names: Sequence[str],
    device: torch.device,
    eos_token_id: int | Sequence[int],
    greedy: bool = False,
    start_length: int = 1,
) -> dict[str, Any]:
    """The options of `generate` that give the candidates of a batch, for models that write word by word.

    Args:
        args ([`RewardTrainingConfig`]): `candidate_strategy` and its options.
        names (`Sequence[str]`): for each picture what chance depends on.
        device (`torch.device`): of the model.
        eos_token_id (`int` or `list[int]`): what ends a caption; with `"diverse_beam"` a candidate that has ended is no
            longer avoided.
        greedy (`bool`, defaults to `False`): one greedy caption of each picture instead.
        start_length (`int`, defaults to 1): tokens before the first word.

    Returns:
        `dict[str, Any]`
    """
    k = args.num_generations
    options: dict[str, Any] = {"max_length": args.max_completion_length + 1}
    if greedy:
        return {**options, "num_beams": 1, "do_sample": False}
    options["num_return_sequences"] = k
    if args.candidate_strategy == "beam":
        return {**options, "num_beams": k, "do_sample": False, **(args.generation_kwargs or {})}
    chooser: LogitsProcessor
    processors: list[LogitsProcessor] = []
    if args.candidate_strategy == "sample":
        processors = _warpers(args)
        wide = torch.float32 if device.type == "mps" else torch.float64
        chooser = SampledChoice(random_numbers(names, k, args.max_completion_length).to(device, wide))
    else:
        chooser = DiverseChoice(k, args.diversity_penalty, eos_token_id, start_length)
    # generate's own warpers stay out of it: they would come after the choice
    options.update(num_beams=1, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_p=None)
    options.update(logits_processor=LogitsProcessorList([*processors, chooser]))
    return {**options, "repetition_penalty": args.repetition_penalty, **(args.generation_kwargs or {})}


def _warpers(args: Any) -> list[LogitsProcessor]:
    """Logits processors that shape the distribution to sample from, in the order of transformers."""
    warpers: list[LogitsProcessor] = []
    if args.temperature != 1.0:
        warpers.append(TemperatureLogitsWarper(args.temperature))
    if args.top_k:
        warpers.append(TopKLogitsWarper(args.top_k))
    if args.top_p < 1.0:
        warpers.append(TopPLogitsWarper(args.top_p))
    if args.min_p is not None:
        warpers.append(MinPLogitsWarper(args.min_p))
    return warpers


def write_candidates(
    family: CaptionFamily,
    model: Any,
    encoder_outputs: Any,
    processor: Any,
    args: Any,
    names: Sequence[str],
    greedy: bool = False,
) -> Candidates:
    """Let a model write captions of encoded images.

    Args:
        family ([`CaptionFamily`]): how the model is called.
        model (`PreTrainedModel`): the model, in the mode in which it is to write.
        encoder_outputs: of [`CaptionFamily.encode`], B images.
        processor (`ProcessorMixin`): turns tokens into words.
        args ([`RewardTrainingConfig`]): how many captions, how long and how.
        names (`Sequence[str]`): for each image what chance depends on.
        greedy (`bool`, defaults to `False`): one greedy caption of each image instead.

    Returns:
        [`Candidates`]
    """
    tokens = family.tokens
    if type(family) is CaptionerFamily:
        return _written_at_once(family, model, encoder_outputs, processor, args, names, greedy)
    start = family.start_length(encoder_outputs)
    options = generation_options(args, names, model.device, tokens.eos_token_id, greedy, start)
    sequences = family.generate(model, encoder_outputs, **options)
    return Candidates.of(sequences, tokens, family.decode(processor, sequences), 1 if greedy else args.num_generations)


def _written_at_once(
    family: CaptionFamily,
    model: Any,
    encoder_outputs: Any,
    processor: Any,
    args: Any,
    names: Sequence[str],
    greedy: bool,
) -> Candidates:
    """Candidates of a captioner that does not write word by word, in its own way of writing them."""
    written = model.write_candidates(
        encoder_outputs,
        num_candidates=1 if greedy else args.num_generations,
        max_length=args.max_completion_length + 1,
        seeds=names,
        greedy=greedy,
        **(args.generation_kwargs or {}),
    )
    k, tokens = len(written.sequences) // len(encoder_outputs.last_hidden_state), family.tokens
    inputs = {"log_probs": written.log_probs, "scoring_inputs": written.scoring_inputs}
    candidates = Candidates.of(written.sequences, tokens, family.decode(processor, written.sequences), k, **inputs)
    if written.greedy_sequences is not None:
        texts = family.decode(processor, written.greedy_sequences)
        candidates.greedy = Candidates.of(written.greedy_sequences, tokens, texts, k)
    return candidates
