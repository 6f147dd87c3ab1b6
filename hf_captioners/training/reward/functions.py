"""Several rewards of the same completions, weighted and summed: what a trainer calls.

Reward functions have the signature of TRL's `GRPOTrainer` (1.16), and those written for it run unchanged: called with
`prompts`, `completions`, `completion_ids`, the columns of the rows, `trainer_state`, `log_extra` and `log_metric`, they
return a list of numbers, with `None` where they do not apply; `async` ones run at the same time. A completion
that no function applies to has NaN as its total, and the trainer leaves it out. What differs from TRL:

1. A function without `**kwargs` is given the arguments that it names.
2. Prompts are empty: a captioner has none. Completions are texts, not conversations.
3. A column that a function needs and the rows have not, a value that is no finite number, NaN included, and an
   exception inside a function are errors that name the function.
4. Equal names are numbered (`length`, `length_2`), so that no function's log overwrites another's.
5. Reward models are not among the functions: a text model would never see the picture.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import math
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from ...metrics.tokens import Tokenizer
from ...rewards import BleuReward, CiderDReward, LengthReward, RepetitionReward

logger = logging.getLogger(__name__)

RewardFunction: TypeAlias = Callable[..., Any]


class RewardError(RuntimeError):
    """A reward function failed. The message names it; the cause is what it raised."""


@dataclass(frozen=True)
class Rewards:
    """Reward values of completions.

    Attributes:
        names (`list[str]`): of the functions, each once.
        per_function (`torch.Tensor` of shape (completions, functions)): float32, on the CPU; NaN where a function does
            not apply.
        total (`torch.Tensor` of shape (completions,)): weighted sum over the functions that apply; NaN where none does.
        extra (`dict[str, list]`): columns that functions logged with `log_extra`, a value per completion. A column
            that several functions log has their names in front: `length/words`.
        metrics (`dict[str, float]`): what functions logged with `log_metric`, the mean where it was logged repeatedly.
    """

    names: list[str]
    per_function: Tensor
    total: Tensor
    extra: dict[str, list[Any]]
    metrics: dict[str, float]

    @property
    def applies(self) -> Tensor:
        """Tell whether any function applies to each completion: bool of shape (completions,)."""
        return ~self.total.isnan()


class RewardFunctions:
    """The rewards of a training: calls the functions, checks what they return, and sums.

    Args:
        reward_funcs (`Callable` or `list` of them): functions, or objects with `__call__`; sync or async. Their names
            are their `__name__`, else that of their class.
        reward_weights (`Sequence[float]`, *optional*): a factor per function, by default 1.

    Raises:
        TypeError: something that is no function.
        ValueError: no functions, or weights that don't fit.

    Example:

    ```python
    >>> from hf_captioners.rewards import LengthReward
    >>> from hf_captioners.training.reward.functions import RewardFunctions
    >>> def colour(completions, **kwargs):
    ...     return [1.0 if "red" in caption else None for caption in completions]
    >>> rewards = RewardFunctions([colour, LengthReward(maximum=3)], reward_weights=[1.0, 0.1])
    >>> result = rewards(completions=["a red bus", "a bus on the road"])
    >>> result.names
    ['colour', 'length']
    >>> result.per_function
    tensor([[ 1.,  0.],
            [nan, -2.]])
    >>> result.total
    tensor([ 1.0000, -0.2000])

    ```
    """

    def __init__(
        self, reward_funcs: RewardFunction | Sequence[RewardFunction], reward_weights: Sequence[float] | None = None
    ) -> None:
        is_sequence = isinstance(reward_funcs, (list, tuple))
        self.functions: list[Any] = list(reward_funcs) if is_sequence else [reward_funcs]  # type: ignore[arg-type]
        if not self.functions:
            raise ValueError("no reward functions; expected at least one")
        for function in self.functions:
            _check_function(function)
        self.names = _distinct([_name(function) for function in self.functions])
        weights = [1.0] * len(self.names) if reward_weights is None else [float(weight) for weight in reward_weights]
        if len(weights) != len(self.names):
            raise ValueError(f"{len(weights)} reward_weights for {len(self.names)} functions; expected one each")
        if not all(map(math.isfinite, weights)):
            raise ValueError(f"reward_weights {weights}: expected finite numbers")
        self.weights = torch.tensor(weights)
        self._loop: _LoopThread | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the first function that cuts captions into words; `"ptb"` if none does."""
        kinds = (BleuReward, CiderDReward, LengthReward, RepetitionReward)
        return next((reward.tokenizer for reward in self.functions if isinstance(reward, kinds)), "ptb")

    @torch.no_grad()
    def __call__(
        self,
        completions: Sequence[str],
        completion_ids: Sequence[Sequence[int]] | None = None,
        trainer_state: Any = None,
        **columns: Any,
    ) -> Rewards:
        """Compute the rewards of completions.

        Args:
            completions (`Sequence[str]`): generated captions.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): their token ids.
            trainer_state (`TrainerState`, *optional*): how far the training is.
            columns: the rows' columns, such as `captions` and `image_id`, in lists with a value per completion. What
                is no list is given to the functions as it is.

        Returns:
            [`Rewards`]

        Raises:
            ValueError: no completions; a list of another length; a column that a function needs is missing; a function
                returned something else than a finite number or `None` per completion.
            RewardError: a function raised something.
        """
        number = len(completions)
        columns = {"prompts": [""] * number, **columns, "completions": completions, "trainer_state": trainer_state}
        if completion_ids is not None:
            columns["completion_ids"] = completion_ids
        _check_lengths(columns, number)
        log = _Log(number)
        outputs = zip(self.names, self._outputs(columns, log), strict=True)
        per_function = torch.stack([_values(name, output, columns, number) for name, output in outputs], dim=1)
        total = (per_function * self.weights).nansum(dim=1)
        without = per_function.isnan().all(dim=1)
        total[without] = torch.nan
        if without.any():
            row = int(without.nonzero()[0])
            logger.warning(
                "%d of %d completions have no reward and are left out: %s gave None, first for completion %d%s, %r",
                *(int(without.sum()), number, " and ".join(self.names), row, _image(columns, row), completions[row]),
            )
        return Rewards(list(self.names), per_function, total, log.extra(), log.metrics())

    def check_columns(self, columns: Iterable[str]) -> None:
        """Check, before the first step, that the rows have what the functions need.

        Args:
            columns (`Iterable[str]`): names of the rows' columns, and of what a trainer gives besides.

        Raises:
            ValueError: a function needs another one, such as the references, `captions`.
        """
        available = {*columns, "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric"}
        for name, function in zip(self.names, self.functions, strict=True):
            _wanted(name, function, dict.fromkeys(available))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_loop": None}  # a thread cannot be pickled; the next call starts another

    def _outputs(self, columns: Mapping[str, Any], log: _Log) -> list[Any]:
        """Outputs of each function: the sync ones one after another, then the async ones at the same time."""
        outputs: list[Any] = []
        waiting: dict[int, Awaitable[Any]] = {}
        try:
            for position, (name, function) in enumerate(zip(self.names, self.functions, strict=True)):
                logging_to = {"log_extra": functools.partial(log.add_column, name), "log_metric": log.add_metric}
                arguments = _wanted(name, function, {**columns, **logging_to})
                with _named(name):
                    outputs.append(function(**arguments))
                if inspect.isawaitable(outputs[-1]):
                    waiting[position] = outputs[-1]
        except Exception:
            for coroutine in waiting.values():  # they were never started, and Python would warn of it
                if inspect.iscoroutine(coroutine):
                    coroutine.close()
            raise
        if waiting:
            if self._loop is None or not self._loop.is_alive():  # it is dead in a forked process
                self._loop = _LoopThread()
            names = [self.names[position] for position in waiting]
            results = self._loop.run(_gather(names, list(waiting.values())))
            for position, result in zip(waiting, results, strict=True):
                outputs[position] = result
        return outputs


async def _gather(names: list[str], awaitables: list[Awaitable[Any]]) -> list[Any]:
    """Results of awaitables. All of them come to their end before the first failure is raised."""

    async def wait(name: str, awaitable: Awaitable[Any]) -> Any:
        with _named(name):
            return await awaitable

    pairs = zip(names, awaitables, strict=True)
    results = await asyncio.gather(*(wait(*pair) for pair in pairs), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


class _LoopThread:
    """An event loop in a thread of its own, which lives as long as its owner.

    So async functions also run where the caller's thread has a running loop, as in notebooks, and clients that they
    keep between calls stay on the loop that they were made in.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run_loop, args=(self._loop,), name="async-rewards", daemon=True)
        self._thread.start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # where the wait was interrupted; otherwise it is done


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    torch.set_grad_enabled(False)  # of this thread
    try:
        loop.run_forever()
    finally:
        loop.close()


class _Log:
    """Log of the functions during a call."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._columns: dict[str, dict[str, list[Any]]] = {}  # column -> function -> values
        self._metrics: dict[str, list[float]] = {}

    def add_column(self, function: str, column: str, values: Iterable[Any]) -> None:
        """The `log_extra` of a function."""
        values = list(values)
        if len(values) != self.number:
            raise ValueError(f"log_extra({column!r}): {len(values)} values for {self.number} completions")
        self._columns.setdefault(column, {})[function] = values

    def add_metric(self, name: str, value: float) -> None:
        """The `log_metric` of the functions."""
        self._metrics.setdefault(name, []).append(float(value))

    def extra(self) -> dict[str, list[Any]]:
        return {
            column if len(by_function) == 1 else f"{function}/{column}": values
            for column, by_function in self._columns.items()
            for function, values in by_function.items()
        }

    def metrics(self) -> dict[str, float]:
        return {name: sum(values) / len(values) for name, values in self._metrics.items()}


def _check_function(function: Any) -> None:
    if isinstance(function, type):
        raise TypeError(f"{function.__name__} is a class; give an object of it as the reward: {function.__name__}(...)")
    if isinstance(function, (str, PreTrainedModel)):
        raise TypeError(f"{_shown(function)}: reward models are not called by name; give a function that calls it")
    if not callable(function):
        raise TypeError(f"{_shown(function)} is no reward function")


def _name(function: RewardFunction) -> str:
    """The name under which TRL logs a function."""
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _distinct(names: list[str]) -> list[str]:
    """The names, a repeated one with a number."""
    distinct: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in distinct:
            number += 1
            candidate = f"{name}_{number}"
        distinct.append(candidate)
    return distinct


def _wanted(name: str, function: RewardFunction, arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments that the function's signature names, or all if it takes all."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # compiled, without a signature
        return arguments
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for parameter in parameters:
        if parameter.kind not in variable and parameter.default is parameter.empty and parameter.name not in arguments:
            names = ", ".join(sorted(arguments))
            raise ValueError(f"the reward {name!r} needs {parameter.name!r}, but there are only {names}")
    if any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        return arguments
    return {parameter.name: arguments[parameter.name] for parameter in parameters if parameter.name in arguments}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Give exceptions the name of the reward."""
    try:
        yield
    except Exception as error:
        raise RewardError(f"the reward {name!r} failed: {type(error).__name__}: {error}") from error


def _check_lengths(columns: Mapping[str, Any], number: int) -> None:
    if not number:
        raise ValueError("no completions; expected at least one")
    for name, values in columns.items():
        if isinstance(values, (list, tuple)) and len(values) != number:
            raise ValueError(f"{len(values)} values of {name!r} for {number} completions; expected one each")


def _values(name: str, output: Any, columns: Mapping[str, Any], number: int) -> Tensor:
    """Returned values of a function, as float32 of shape (completions,), NaN for `None`."""
    values = output.tolist() if isinstance(output, (Tensor, np.ndarray)) else output
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ValueError(f"the reward {name!r} returned {_shown(output)}, expected a list of {number} numbers or None")
    values = list(values)
    if len(values) != number:
        raise ValueError(
            f"the reward {name!r} returned {len(values)} values for {number} completions; expected one each"
        )
    numbers = []
    for row, value in enumerate(values):
        numbers.append(math.nan if value is None else _number(value))
        if value is not None and not math.isfinite(numbers[-1]):
            where = f"completion {row}{_image(columns, row)}"
            raise ValueError(f"the reward {name!r} gave {_shown(value)} for {where}, expected a finite number or None")
    return torch.tensor(numbers, dtype=torch.float32)


def _number(value: Any) -> float:
    """A number as float32 has it, infinite where it has none; NaN for what is no number."""
    try:
        return math.nan if isinstance(value, (str, bytes)) else float(torch.tensor(float(value), dtype=torch.float32))
    except (TypeError, ValueError, OverflowError, RuntimeError):  # RuntimeError: of a tensor with several numbers
        return math.nan


def _image(columns: Mapping[str, Any], row: int) -> str:
    return f" (image_id {columns['image_id'][row]!r})" if "image_id" in columns else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text if len(text) <= 40 else text[:37] + '...'} ({type(value).__name__})"
