"""Means over the steps between two logs, and over all processes."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


class RunningMetrics:
    """Numbers by name, collected until they are asked for.

    A name that ends in `min_length` keeps the smallest number and one that ends in `max_length` the largest; all other
    names keep the mean of everything that was added, whatever the sizes of the batches.

    Example:

    ```python
    >>> import torch
    >>> from accelerate import Accelerator
    >>> from hf_captioners.training.running_metrics import RunningMetrics
    >>> metrics = RunningMetrics()
    >>> metrics.add("reward", torch.tensor([1.0, 2.0]))
    >>> metrics.add("reward", torch.tensor([6.0]))
    >>> metrics.pop(Accelerator(cpu=True))
    {'reward': 3.0}

    ```
    """

    def __init__(self) -> None:
        self._parts: dict[str, tuple[float, int]] = {}  # sum and number; the extreme and 1

    def add(self, name: str, values: torch.Tensor) -> None:
        """Take in numbers of any shape; none at all change nothing."""
        if not values.numel():
            return
        values = values.detach().cpu().double()  # an Apple GPU has no float64
        rule = _extreme(name)
        part = (float(values.sum()), values.numel()) if rule is None else (float(rule(values)), 1)
        self._merge(name, part)

    def _merge(self, name: str, part: tuple[float, int]) -> None:
        if name not in self._parts:
            self._parts[name] = part
        elif _extreme(name) is None:
            total, number = self._parts[name]
            self._parts[name] = (total + part[0], number + part[1])
        else:
            both = torch.tensor([self._parts[name][0], part[0]], dtype=torch.float64)
            self._parts[name] = (float(_extreme(name)(both)), 1)

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """The numbers of all processes, and forget them; to be called by every process.

        Args:
            accelerator (`Accelerator`): knows the processes.

        Returns:
            `dict[str, float]`
        """
        if accelerator.num_processes > 1:
            every = gather_object([self._parts])
            self._parts = {}
            for parts in every:
                for name, part in parts.items():
                    self._merge(name, part)
        result = {name: total / number for name, (total, number) in self._parts.items()}
        self._parts = {}
        return result


def _extreme(name: str) -> type[torch.Tensor] | None:
    if name.endswith("min_length"):
        return torch.min  # type: ignore[return-value]
    return torch.max if name.endswith("max_length") else None  # type: ignore[return-value]
