"""Means and standard deviations over the steps between two logs, and over all processes."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


class RunningMetrics:
    """Numbers by name, collected until they are asked for.

    A name that ends in `min_length` keeps the smallest number and one that ends in `max_length` the largest; all other
    names keep the mean of everything that was added, whatever the sizes of the batches. What [`add_deviation`] took in
    becomes its standard deviation.

    Example:

    ```python
    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_captioners.training.watch.running_metrics import RunningMetrics
    >>> metrics = RunningMetrics()
    >>> for rewards in (torch.tensor([1.0, 1.0]), torch.tensor([7.0])):
    ...     metrics.add("reward", rewards)
    >>> metrics.add_deviation("spread", torch.tensor([2.0, 6.0]))
    >>> metrics.pop(Accelerator(cpu=True))
    {'reward': 3.0, 'spread': 2.0}

    ```
    """

    def __init__(self) -> None:
        self._parts: dict[str, tuple[float, int]] = {}  # sum and number; the extreme and 1
        self._deviations: dict[str, tuple[int, float, float]] = {}  # number, mean, sum of squared distances from it

    def add(self, name: str, values: torch.Tensor) -> None:
        """Take in numbers of any shape; none at all change nothing."""
        if not values.numel():
            return
        values = values.detach().cpu().double()  # an Apple GPU has no float64
        rule = _extreme(name)
        part = (float(values.sum()), values.numel()) if rule is None else (float(rule(values)), 1)
        self._merge(name, part)

    def add_mean(self, name: str, mean: torch.Tensor, number: int | torch.Tensor) -> None:
        """Take in the mean of numbers that are not at hand, such as a loss; of none at all it changes nothing."""
        if int(number):
            self._merge(name, (float(mean) * int(number), int(number)))

    def add_deviation(self, name: str, values: torch.Tensor) -> None:
        """Take in numbers of any shape, of all of which the standard deviation is wanted; none at all change nothing.

        It is that of the numbers themselves (divided by their number, not by one less), over all batches and processes
        since the last log: unlike a mean of deviations it does not depend on how the numbers come in batches. TRL logs
        the mean over the steps of each step's unbiased deviation.
        """
        if not values.numel():
            return
        values = values.detach().cpu().double().flatten()
        first = values[0]  # measured from one of the numbers, equal numbers differ by exactly 0, without rounding
        mean = first + (values - first).mean()
        self._merge_deviation(name, (len(values), float(mean), float((values - mean).square().sum())))

    def _merge(self, name: str, part: tuple[float, int]) -> None:
        if name not in self._parts:
            self._parts[name] = part
        elif _extreme(name) is None:
            total, number = self._parts[name]
            self._parts[name] = (total + part[0], number + part[1])
        else:
            both = torch.tensor([self._parts[name][0], part[0]], dtype=torch.float64)
            self._parts[name] = (float(_extreme(name)(both)), 1)

    def _merge_deviation(self, name: str, part: tuple[int, float, float]) -> None:
        """Add the squares of two sets, and those between their means (Chan, Golub and LeVeque, 1979)."""
        if name not in self._deviations:
            self._deviations[name] = part
            return
        (number, mean, squares), (more, other_mean, other_squares) = self._deviations[name], part
        share, apart = more / (number + more), other_mean - mean
        squares += other_squares + apart**2 * number * share
        self._deviations[name] = (number + more, mean + apart * share, squares)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The numbers of all processes, and forget them; to be called by every process.

        Args:
            accelerator (`Accelerator`): knows the processes.

        Returns:
            `dict[str, float]`
        """
        if accelerator.num_processes > 1:
            every = gather_object([(self._parts, self._deviations)])
            self._parts, self._deviations = {}, {}
            for parts, deviations in every:
                for name, part in parts.items():
                    self._merge(name, part)
                for name, deviation in deviations.items():
                    self._merge_deviation(name, deviation)
        result = {name: total / number for name, (total, number) in self._parts.items()}
        result.update((name, math.sqrt(squares / number)) for name, (number, _, squares) in self._deviations.items())
        self._parts, self._deviations = {}, {}
        return result


def _extreme(name: str) -> type[torch.Tensor] | None:
    if name.endswith("min_length"):
        return torch.min  # type: ignore[return-value]
    return torch.max if name.endswith("max_length") else None  # type: ignore[return-value]
