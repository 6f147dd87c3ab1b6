"""Bit diffusion of SCD-Net: words as bits, the noise schedule, and the samplers; no weights.

A word's id is a vector of analog bits, -b or +b, most significant first. Time t runs from 0, words, to 1, noise. All
numbers of the schedule are float32 and computed in the original's order of operations, in every precision of the
network: the log-SNR at t = 1, -33.89, exists only because float32 has no exact pi / 2, and in shorter types the
schedule means nothing.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

NOISE_SCHEDULES = ("cosine", "linear")
SAMPLERS = ("paper", "ddim")
WORD_CHOICES = ("bits", "likeliest")
SELF_CONDITIONS = ("none", "previous")
CASCADES = ("online", "offline")
TRAINING_END = 0.999  # times of training are drawn from [0, 0.999)


def bits_needed(vocab_size: int) -> int:
    """Bits of a word of a vocabulary, `ceil(log2 vocab_size)`, at least 1."""
    return max(1, (vocab_size - 1).bit_length())


def ids_to_bits(ids: torch.Tensor, num_bits: int, vocab_size: int, scale: float = 1.0) -> torch.Tensor:
    """Analog bits of words, the most significant first.

    Args:
        ids (`torch.LongTensor` of any shape): words; those beyond the vocabulary count as its last one.
        num_bits (`int`): bits of a word.
        vocab_size (`int`): words.
        scale (`float`, defaults to 1.0): b.

    Returns:
        `torch.FloatTensor` of shape `(*ids.shape, num_bits)`: -b and +b.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.diffusion_scdnet import bits_to_ids, ids_to_bits
    >>> bits = ids_to_bits(torch.tensor([0, 5, 99]), 3, vocab_size=7)
    >>> bits.tolist(), bits_to_ids(bits).tolist()
    ([[-1.0, -1.0, -1.0], [1.0, -1.0, 1.0], [1.0, 1.0, -1.0]], [0, 5, 6])

    ```
    """
    places = torch.arange(num_bits - 1, -1, -1, device=ids.device)
    digits = (ids.clamp(0, vocab_size - 1)[..., None] >> places) & 1  # (…, n)
    return (digits.float() * 2 - 1) * scale


def bits_to_ids(bits: torch.Tensor) -> torch.Tensor:
    """Words of analog bits: a digit is 1 where the value is above 0. May lie beyond the vocabulary.

    Args:
        bits (`torch.Tensor` of shape `(…, n)`): the most significant first.

    Returns:
        `torch.LongTensor` of shape `(…)`
    """
    places = torch.arange(bits.shape[-1] - 1, -1, -1, device=bits.device)
    return ((bits > 0).long() << places).sum(-1)


def log_snr(times: torch.Tensor, schedule: str = "cosine") -> torch.Tensor:
    """The logarithm of the signal-to-noise ratio, which the network is told instead of the time.

    Args:
        times (`torch.Tensor`): in [0, 1].
        schedule (`str`, defaults to `"cosine"`): or `"linear"`.

    Returns:
        `torch.FloatTensor` of the same shape.
    """
    times = times.float()
    if schedule == "linear":
        return -torch.log(torch.expm1(1e-4 + 10 * times**2))
    angle = (times + 0.008) / 1.008 * math.pi * 0.5  # in this order: see the top of this module
    return -torch.log((torch.cos(angle) ** -2 - 1).clamp(min=1e-5))


def signal_and_noise(log_ratios: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Factors of signal and noise, alpha and sigma, whose squares sum to 1.

    Args:
        log_ratios (`torch.FloatTensor`): see `log_snr`.

    Returns:
        `tuple[torch.FloatTensor, torch.FloatTensor]`
    """
    return log_ratios.sigmoid().sqrt(), (-log_ratios).sigmoid().sqrt()


def corrupt(bits: torch.Tensor, noise: torch.Tensor, log_ratios: torch.Tensor) -> torch.Tensor:
    """Noisy bits, alpha x + sigma noise.

    Args:
        bits, noise (`torch.FloatTensor` of shape `(N, L, n)`): clean bits and standard normal noise.
        log_ratios (`torch.FloatTensor` of shape `(N,)`): log-SNR of each caption.

    Returns:
        `torch.FloatTensor` of shape `(N, L, n)`
    """
    alpha, sigma = signal_and_noise(log_ratios)
    return alpha[:, None, None] * bits + sigma[:, None, None] * noise


def check_sampling(options: Mapping[str, Any], stages: int) -> None:
    """Refuse options of the samplers that mean nothing.

    Args:
        options (`Mapping[str, Any]`): by name; `None` is the same as none.
        stages (`int`): of the model; where there are two an option may have a number for each.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    for name, (accepts, expected) in _NUMBERS.items():
        value: Any = options.get(name)
        several = isinstance(value, (list, tuple))
        if several and (stages == 1 or len(value) != stages):
            raise ValueError(
                f"{name} must be {expected}{', or one for each of 2 stages' * (stages > 1)}, not {value!r}."
            )
        if value is not None and not all(map(accepts, value if several else [value])):
            raise ValueError(f"{name} must be {expected}, not {value!r}.")
    for name, known in _CHOICES.items():
        if options.get(name) not in (None, *known):
            raise ValueError(f"{name} must be one of {', '.join(known)}, not {options[name]!r}.")
    if options.get("generator") is not None and not isinstance(options["generator"], torch.Generator):
        raise ValueError(f"generator must be a torch.Generator, not {options['generator']!r}; seed takes a number.")
    weights: Any = options.get("cascade_weights")
    are_two = isinstance(weights, (list, tuple)) and len(weights) == 2 and all(map(_is_rate, weights))
    if weights is not None and not (are_two and sum(weights) > 0):
        raise ValueError(f"cascade_weights must be two numbers from 0 on, not both 0, not {weights!r}.")
    asked = [f"{name}={options[name]!r}" for name in ("cascade", "cascade_weights") if options.get(name) is not None]
    if asked and stages == 1:
        raise ValueError(f"{', '.join(asked)} is for a cascade, which owns two stages; this model is one.")


def _is_count(value: Any) -> bool:
    return _is_whole(value) and value >= 1


def _is_whole(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and operator.index(value) is not None
    except TypeError:
        return False


def _is_rate(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value >= 0


def _is_positive(value: Any) -> bool:
    return _is_rate(value) and value > 0


_NUMBERS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_inference_steps": (_is_count, "a whole number of at least 1"),
    "time_difference": (_is_rate, "a finite number of at least 0"),
    "time_spacing": (_is_positive, "a finite number above 0"),
    "seed": (_is_whole, "a whole number"),
}
_CHOICES = {
    "sampler": SAMPLERS,
    "word_choice": WORD_CHOICES,
    "self_condition": SELF_CONDITIONS,
    "cascade": CASCADES,
}


@dataclass
class SamplingPlan:
    """Coefficients of the schedule for T steps of a sampler, each a `torch.FloatTensor` of shape `(T,)`.

    Attributes:
        log_ratios: log-SNR that the network is told.
        alpha, sigma: of the state before a step.
        next_alpha, next_sigma: of the state behind it.
        kept: c of the paper's update, `-expm1(log_snr(t) - log_snr(t'))`.
        noisy: where noise may be added, not behind the last step.
    """

    log_ratios: torch.Tensor
    alpha: torch.Tensor
    sigma: torch.Tensor
    next_alpha: torch.Tensor
    next_sigma: torch.Tensor
    kept: torch.Tensor
    noisy: torch.Tensor

    @classmethod
    def of(
        cls,
        num_steps: int,
        time_difference: float = 0.0,
        schedule: str = "cosine",
        device: torch.device | str = "cpu",
        time_spacing: float = 1.0,
    ) -> SamplingPlan:
        """The plan of steps from t = 1 to 0.

        Args:
            num_steps (`int`): T.
            time_difference (`float`, defaults to 0.0): how many steps the state is ahead of the time that the network
                is told.
            schedule (`str`, defaults to `"cosine"`): see `log_snr`.
            device (`torch.device`, defaults to the CPU): where the numbers are wanted; they are computed on the CPU, so
                that they are the same everywhere.
            time_spacing (`float`, defaults to 1.0): power p of the times (1 - k / T)^p. The paper's steps are even;
                above 1 more of them are near t = 0, where the state has little noise.

        Returns:
            [`SamplingPlan`]

        Raises:
            ValueError: fewer steps than one, or a power that is not positive.
        """
        if num_steps < 1:
            raise ValueError(f"num_inference_steps must be at least 1, not {num_steps}.")
        if not time_spacing > 0:
            raise ValueError(f"time_spacing must be positive, not {time_spacing}.")
        even = torch.linspace(1.0, 0.0, num_steps + 1)
        behind = (even[1:] - time_difference / num_steps).clamp(min=0.0) ** time_spacing
        ratios, next_ratios = log_snr(even[:-1] ** time_spacing, schedule), log_snr(behind, schedule)
        parts = (*signal_and_noise(ratios), *signal_and_noise(next_ratios), -torch.expm1(ratios - next_ratios))
        return cls(*(part.to(device) for part in (ratios, *parts, behind > 0)))

    def __len__(self) -> int:
        return len(self.log_ratios)

    def update(
        self, step: int, state: torch.Tensor, clean: torch.Tensor, sampler: str, noise: torch.Tensor | None
    ) -> torch.Tensor:
        """The state behind a step.

        Args:
            step (`int`): which.
            state (`torch.FloatTensor` of shape `(N, L, n)`): before it.
            clean (`torch.FloatTensor` of shape `(N, L, n)`): the bits that the network predicts.
            sampler (`str`): `"paper"`, the mean of the ancestral posterior, evaluated as the original does; `"ddim"`,
                where the noise that the prediction leaves is kept.
            noise (`torch.FloatTensor` of shape `(N, L, n)`, *optional*): to be added by the paper's sampler.

        Returns:
            `torch.FloatTensor` of shape `(N, L, n)`
        """
        alpha, next_alpha, kept = self.alpha[step], self.next_alpha[step], self.kept[step]
        if sampler == "ddim":
            left = (state - alpha * clean) / self.sigma[step]
            return next_alpha * clean + self.next_sigma[step] * left
        mean = next_alpha * (state * (1 - kept) / alpha + kept * clean)
        if noise is None:
            return mean
        variance = (self.next_sigma[step] ** 2 * kept).clamp(min=1e-20)
        return torch.where(self.noisy[step], mean + variance.sqrt() * noise, mean)


@dataclass
class Denoised:
    """Output of a sampler for N captions of L places.

    Attributes:
        state (`torch.FloatTensor` of shape `(N, L, n)`): behind the last step.
        likeliest (`torch.LongTensor` of shape `(N, L)`): the likeliest words of the last step.
        states, predictions (`list[torch.FloatTensor]`): what the network saw in each step, and the bits it expected,
            where a trajectory was asked for.
        probabilities (`list[torch.FloatTensor]`): of the words in the first and the last step, `(N, L, V)` each.
    """

    state: torch.Tensor
    likeliest: torch.Tensor | None = None
    states: list[torch.Tensor] = field(default_factory=list)
    predictions: list[torch.Tensor] = field(default_factory=list)
    probabilities: list[torch.Tensor] = field(default_factory=list)

    def words(self, choice: str, vocab_size: int) -> torch.Tensor:
        """The words that were written.

        The state is a mixture of words' bits: where two words are likely, its signs may be those of a third one.

        Args:
            choice (`str`): `"bits"`, the words whose bits are the signs of the state, as in the paper; `"likeliest"`,
                those that the network found likeliest in the last step.
            vocab_size (`int`): words; bits beyond them are the last one.

        Returns:
            `torch.LongTensor` of shape `(N, L)`
        """
        if choice == "likeliest" and self.likeliest is not None:
            return self.likeliest
        return bits_to_ids(self.state).clamp(max=vocab_size - 1)


def denoise(
    predict: Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor],
    plan: SamplingPlan,
    noise: torch.Tensor,
    table: torch.Tensor,
    sampler: str = "paper",
    step_noise: Sequence[torch.Tensor] | None = None,
    keep: bool = False,
    known: torch.Tensor | None = None,
) -> Denoised:
    """Write captions: refine noise, all words at once.

    Args:
        predict (`Callable`): `predict(step, state, self_condition)` gives the probabilities of the words
            `(N, L, V)` in float32.
        plan ([`SamplingPlan`]): the steps.
        noise (`torch.FloatTensor` of shape `(N, L, n)`): the state at the start.
        table (`torch.FloatTensor` of shape `(V, n)`): bits of all words.
        sampler (`str`, defaults to `"paper"`): see `SamplingPlan.update`.
        step_noise (`Sequence[torch.FloatTensor]`, *optional*): noise to add in each step, by the paper's sampler.
        keep (`bool`, defaults to `False`): also return the trajectory.
        known (`torch.FloatTensor` of shape `(N, L, n)`, *optional*): bits that the first step sees as the last
            prediction; zeros by default.

    Returns:
        [`Denoised`]

    Raises:
        ValueError: another sampler; noise for the steps of DDIM, or not for every step.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}, not {sampler!r}.")
    if step_noise is not None and (sampler == "ddim" or len(step_noise) != len(plan)):
        raise ValueError(f"noise of {len(step_noise)} steps for the sampler {sampler!r} with {len(plan)} steps.")
    result = Denoised(noise)
    known, limit = torch.zeros_like(noise) if known is None else known, table.amax()
    for step in range(len(plan)):
        words = predict(step, result.state, known)  # (N, L, V)
        clean = words @ table  # (N, L, n), the expected bits
        if keep:
            result.states.append(result.state)
            result.predictions.append(clean)
            if step in (0, len(plan) - 1):
                result.probabilities.append(words)
        known = clean.clamp(-limit, limit)
        added = None if step_noise is None else step_noise[step]
        result.state = plan.update(step, result.state, known, sampler, added)
    result.likeliest = words.argmax(-1)
    return result
