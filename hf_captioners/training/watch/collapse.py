"""A watch over reward training: stop, and say why, when captions or rewards have collapsed.

A captioner that is paid by a number finds ways to be paid that nobody wanted: it says the same for every picture, never
ends a caption, or repeats what the reward likes. None of these heals by itself, and a night of training is lost. What
is watched are the logs that reward trainers write anyway; none of the rules asks for more computation.

1. A value that is no number: `loss`, `reward` or `kl` in one log, the gradient's norm in every log of the window.
   (`loss` alone does not show it: `logging_nan_inf_filter` of the Trainer leaves such steps out of the mean.)
2. No signal: almost no picture has candidates with different rewards, so almost no gradient is left.
3. No end: captions run into the length limit, after at least half of them ended earlier in the run. Weak models, and
   limits below the usual length, have that from their first step, and learning may still repair it: after `patience`
   logs there is a warning, and a stop after ten times as many if the share has not fallen at all.
4. Length: more than twice, or less than half of what it was. Shortening is fine where most captions had no end.
5. Repetition: a third more of the word pairs were said before. A caption that says one phrase twice, "in a red shirt in
   a red shirt", has a third.
6. Reward: it has fallen from the best level of the run by more than the spread of a picture's candidates, that is, the
   mean caption is now what a bad candidate was then, and by more than four times the noise between logs.

7. Nobody takes part: no candidate has a reward, or all of them are left out. Such a run has not even a `reward` to log.

All of them but the first ask for `patience` logs in a row. Everything is computed from the run's log history, which
checkpoints hold, so that a resumed run is judged as if it had never stopped.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

logger = logging.getLogger(__name__)

Logs = Sequence[Mapping[str, Any]]

_CLIPPED = "completions/clipped_ratio"
_START_LOGS = 3  # their median is where the run started; more would count a fast collapse as the start
_FEW_TOKENS = 5.0  # a start with shorter captions is taken as this long: it has not learnt to write captions yet
_ENDED_ONCE = 0.5
_NEVER_ENDED = 10  # times patience
_NOISE_FACTOR = 4.0
_MEDIAN_DIFFERENCE = 0.954  # of two Gaussian values, absolute, in standard deviations: 0.6745 * sqrt(2)


@dataclass(eq=False)
class CollapseCallback(TrainerCallback):
    """Stop training with a diagnosis when the captions or their rewards have collapsed.

    The diagnosis is logged as an error, kept as `diagnosis`, and appended to the log history as `{"collapse": text,
    "step": step}`, from where `trainer.save_state()` and `hf-captioners plot` have it. The step at which training
    stops is not saved as a checkpoint: with `save_total_limit` it would push out one from before the collapse. The
    weights are still in memory for who wants them.

    With several processes all of them decide alike, as long as what the trainer logs is gathered first, as everything
    that these rules look at is.

    Args:
        patience (`int`, defaults to 5): logs in a row that must look collapsed; 0 switches the watch off. A log should
            be a mean over some dozens of pictures: with a smaller `logging_steps` x batch, be more patient.
        max_zero_std (`float`, defaults to 0.95): largest `frac_reward_zero_std`, a share of the pictures.
        max_clipped (`float`, defaults to 0.9): largest `completions/clipped_ratio`, a share of the captions. Where it
            is larger from the start on there is a warning, and a stop after 10 x `patience` logs without any fall.
        max_length_ratio (`float`, defaults to 2.0), min_length_ratio (`float`, defaults to 0.5): bounds of
            `completions/mean_length` over what it was at the start.
        max_repetition (`float`, defaults to 0.3): largest rise of `completions/repetition` over the start.
        max_reward_drop (`float`, defaults to 1.0): largest fall of `reward` from its best level, in units of the
            `reward_std` of the start.

    Attributes:
        diagnosis (`str`, *optional*): what happened and what to try, after a stop.

    Raises:
        ValueError: a limit that can never, or would always, be passed.

    Example:

    ```python
    >>> from hf_captioners.training.watch.collapse import CollapseCallback
    >>> logs = [{"step": 10 * step, "reward": 0.4, "completions/mean_length": 9.0 * step} for step in range(1, 12)]
    >>> CollapseCallback().diagnose(logs).split(". ")[0]
    'captions run away in length: 63.0 to 99.0 over the last 5 logs, and 18.0 at the start'
    >>> CollapseCallback().diagnose(logs[:5]) is None
    True

    ```
    """

    patience: int = 5
    max_zero_std: float = 0.95
    max_clipped: float = 0.9
    max_length_ratio: float = 2.0
    min_length_ratio: float = 0.5
    max_repetition: float = 0.3
    max_reward_drop: float = 1.0
    diagnosis: str | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.patience < 0:
            raise ValueError(f"patience is {self.patience}; it counts logs, and 0 switches the watch off")
        limits = {
            "max_zero_std": (0, 1),
            "max_clipped": (_ENDED_ONCE, 1),
            "max_length_ratio": (1, math.inf),
            "min_length_ratio": (0, 1),
            "max_repetition": (0, math.inf),
            "max_reward_drop": (0, math.inf),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} is {value}, expected {low} to {high}")

    def diagnose(self, history: Logs) -> str | None:
        """Look at the last logs of a run.

        Args:
            history (`Sequence[Mapping[str, Any]]`): `log_history` of a `trainer_state.json`; logs of evaluations are
                not looked at.

        Returns:
            `str` or `None`: what has collapsed, with the numbers, and what to try; `None` if nothing has.
        """
        logs = [entry for entry in history if _is_of_training(entry)]
        if self.patience == 0 or not logs:
            return None
        run = _Run(logs, self.patience)
        findings = (
            _not_finite(run),
            _nobody_takes_part(run),
            _without_end(run, self.max_clipped),
            _never_ended(run, self.max_clipped),
            _repetitive(run, self.max_repetition),
            _too_long(run, self.max_length_ratio),
            _too_short(run, self.min_length_ratio),
            _reward_fell(run, self.max_reward_drop),
            _without_signal(run, self.max_zero_std),
        )
        return " Also: ".join(finding for finding in findings if finding is not None) or None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.diagnosis = None

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.diagnosis is not None or not state.log_history or not _is_of_training(state.log_history[-1]):
            return
        self.diagnosis = self.diagnose(state.log_history)
        if self.diagnosis is None:
            if state.is_world_process_zero:
                self._warn(state.log_history)
            return
        entry: dict[str, Any] = {"collapse": self.diagnosis, "step": state.global_step}
        state.log_history.append(entry)
        control.should_training_stop = True
        control.should_save = False
        if state.is_world_process_zero:
            advice = "collapse_patience=0 goes on all the same"
            logger.error("training stopped at step %d: %s (%s)", state.global_step, self.diagnosis, advice)

    def _warn(self, history: Logs) -> None:
        """Warn once, in the log in which captions have been without an end for `patience` logs from the start on."""
        clipped = _Run([entry for entry in history if _is_of_training(entry)], self.patience).values(_CLIPPED)
        if 0 < self.patience == len(clipped) and _CLIPPED in history[-1] and min(clipped) >= self.max_clipped:
            logger.warning(
                "captions have no end: %s is %.2f or more since the start. Is eos_token_id that of the captions that "
                "the model was trained with, and max_completion_length long enough for them?",
                *(_CLIPPED, min(clipped)),
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.diagnosis is not None:  # the stop ends the epoch, whose end may save
            control.should_save = False


def _is_of_training(entry: Mapping[str, Any]) -> bool:
    return "loss" in entry or "reward" in entry  # evaluations have eval_loss, the end of a run has train_loss


@dataclass(frozen=True)
class _Run:
    """The training logs of a run, one key at a time."""

    logs: Logs
    patience: int

    def values(self, key: str) -> list[float]:
        return [float(log[key]) for log in self.logs if isinstance(log.get(key), Real)]

    def finite(self, key: str) -> list[float]:
        return [value for value in self.values(key) if math.isfinite(value)]

    def window(self, key: str) -> list[float]:
        """The last `patience` values; nothing if one of these logs has none, or the run is younger."""
        values = _Run(self.logs[-self.patience :], self.patience).values(key)
        return values if len(values) == self.patience else []

    def start(self, key: str) -> float | None:
        values = self.finite(key)[:_START_LOGS]
        return statistics.median(values) if len(values) == _START_LOGS else None

    def span(self, values: Sequence[float], digits: int = 2) -> str:
        low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
        return f"{low if low == high else f'{low} to {high}'} over the last {self.patience} logs"


def _not_finite(run: _Run) -> str | None:
    last = _Run(run.logs[-1:], 1)
    bad = [
        f"{key} is {number}"
        for key in ("loss", "reward", "kl")
        for number in last.values(key)
        if not math.isfinite(number)
    ]
    norms = run.window("grad_norm")
    if norms and not any(math.isfinite(norm) for norm in norms):  # single ones are usual with float16
        bad.append(f"grad_norm is {norms[-1]}, and no number in the last {run.patience} logs")
    if not bad:
        return None
    return (
        f"{', '.join(bad)}. The weights are lost or about to be; go back to a checkpoint. Try a lower learning_rate, "
        "bfloat16 or float32 instead of float16, a smaller max_grad_norm, and see that the rewards return numbers."
    )


def _without_end(run: _Run, limit: float) -> str | None:
    clipped = run.window(_CLIPPED)
    if not clipped or min(clipped) < limit:
        return None
    lowest = min(run.finite(_CLIPPED))
    if lowest > _ENDED_ONCE:
        return None
    return (
        f"captions do not end any more: {_CLIPPED} is {run.span(clipped)}, and was {lowest:.2f}. The "
        "reward does not miss the end. Try a reward that sees the end token, mask_truncated_completions, a lower "
        "learning_rate, a larger beta."
    )


def _never_ended(run: _Run, limit: float) -> str | None:
    clipped = run.finite(_CLIPPED)
    if len(clipped) < _NEVER_ENDED * run.patience or min(clipped) < max(limit, clipped[0]):
        return None
    return (
        f"captions have had no end since the start: {_CLIPPED} is {min(clipped):.2f} or more in all {len(clipped)} "
        "logs, and has not fallen. Try the eos_token_id of the captions that the model was trained with, a larger "
        "max_completion_length, cross-entropy training before this one."
    )


def _nobody_takes_part(run: _Run) -> str | None:
    taking_part = run.window("completions/valid_ratio")
    if not taking_part or max(taking_part) > 0:
        return None
    return (
        f"no candidate takes part: completions/valid_ratio is {run.span(taking_part)}. Either all rewards return None "
        "for every caption, or mask_truncated_completions leaves out all captions for want of an end. Try a reward "
        "that applies, a larger max_completion_length, the eos_token_id that the model was trained with."
    )


def _repetitive(run: _Run, limit: float) -> str | None:
    repetition, start = run.window("completions/repetition"), run.start("completions/repetition")
    if not repetition or start is None or not min(repetition) > start + limit:
        return None
    return (
        f"captions repeat themselves: completions/repetition is {run.span(repetition)}, and was {start:.2f} at the "
        "start. The reward pays for saying things twice. Try adding a repetition or length reward, CIDEr-D beside "
        "a CLIP reward, a lower learning_rate, a larger beta."
    )


def _too_long(run: _Run, ratio: float) -> str | None:
    lengths, start = run.window("completions/mean_length"), run.start("completions/mean_length")
    if not lengths or start is None or not min(lengths) > ratio * max(start, _FEW_TOKENS):
        return None
    return (
        f"captions run away in length: {run.span(lengths, 1)}, and {start:.1f} at the start. The reward pays for more "
        "words. Try adding a length reward, CIDEr-D beside a CLIP reward, a lower learning_rate, a larger beta."
    )


def _too_short(run: _Run, ratio: float) -> str | None:
    lengths, start = run.window("completions/mean_length"), run.start("completions/mean_length")
    if not lengths or start is None or not max(lengths) < ratio * start:
        return None
    clipped = run.start(_CLIPPED)
    if clipped is not None and clipped > _ENDED_ONCE:  # the start was the length limit, not the length of captions
        return None
    return (
        f"captions shrink: {run.span(lengths, 1)} tokens, and {start:.1f} at the start. The reward pays for saying "
        "little. Try adding a length reward, a lower learning_rate, a larger beta."
    )


def _reward_fell(run: _Run, limit: float) -> str | None:
    rewards, spread, patience = run.window("reward"), run.start("reward_std"), run.patience
    levels = np.array(run.finite("reward"))
    if not rewards or not spread or len(levels) < 2 * patience or len(levels) < _START_LOGS + 1:
        return None
    best = float(np.median(np.lib.stride_tricks.sliding_window_view(levels, patience), axis=1).max())
    noise = float(np.median(np.abs(np.diff(levels)))) / _MEDIAN_DIFFERENCE
    if not max(rewards) < best - max(limit * spread, _NOISE_FACTOR * noise):
        return None
    return (
        f"the reward has fallen: {run.span(rewards, 3)}, and {best:.3f} at its best, while a picture's candidates "
        f"differed by {spread:.3f} at the start. The steps are too large for what the rewards tell. Try a lower "
        "learning_rate, a larger batch or more candidates, a larger beta, and go on from a checkpoint before the fall."
    )


def _without_signal(run: _Run, limit: float) -> str | None:
    same, signal = run.window("frac_reward_zero_std"), run.window("advantage_std")
    if not same or min(same) < limit:
        return None
    if signal and min(signal) > 1e-6 and min(same) > 1 - 1e-6:  # one candidate against a greedy baseline still learns
        return None
    distinct = run.window("completions/unique_ratio")
    text = (
        "nothing is left to learn from: in most pictures all candidates get the same reward (frac_reward_zero_std "
        f"is {run.span(same)})."
    )
    if distinct and max(distinct) < 0.5:
        return (
            f"{text} They are the same captions (completions/unique_ratio {run.span(distinct)}). Try a lower "
            "learning_rate, a higher temperature, a larger beta."
        )
    return (
        f"{text} Try a reward with finer steps, such as CIDEr-D or a CLIP reward instead of BLEU, and see what the "
        "candidates and their rewards are (log_completions)."
    )
