"""Learning-rate schedules and the optimizer of the papers, under the names that `TrainingArguments` takes.

`lr_scheduler_type` names a schedule and `lr_scheduler_kwargs` holds its options; `optim` and `optim_args` do the same
for the optimizer. Those of ExpansionNet v2 are specified in section 15 of the original's description.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch


def custom_warmup_anneal(
    step: int,
    *,
    lr: float,
    batches_per_epoch: int,
    warmup_iters: int = 10000,
    anneal_coeff: float = 0.8,
    anneal_every_epoch: float = 2.0,
    min_lr: float = 5e-7,
) -> float:
    """Hyperbolic warm-up, then a fall by a factor every few epochs, which counts from the first step.

    Args:
        step (`int`): batches before this one.
        lr (`float`): highest rate.
        batches_per_epoch (`int`): batches of an epoch.
        warmup_iters (`int`, defaults to 10000): batches of the warm-up; at distance n from its end the rate is
            `lr / n`.
        anneal_coeff (`float`, defaults to 0.8): the factor.
        anneal_every_epoch (`float`, defaults to 2.0): epochs between two falls.
        min_lr (`float`, defaults to 5e-7): lowest rate after the warm-up.

    Returns:
        `float`: the rate.

    Example:

    ```python
    >>> from hf_captioners.training.schedules import custom_warmup_anneal
    >>> options = dict(lr=2e-4, warmup_iters=10000, batches_per_epoch=11807, anneal_coeff=0.8, anneal_every_epoch=2)
    >>> [round(custom_warmup_anneal(step, **options), 9) for step in (0, 9990, 9999, 23614)]
    [2e-08, 2e-05, 0.0002, 0.00016]

    ```
    """
    annealed = anneal_coeff ** math.floor(step / (batches_per_epoch * anneal_every_epoch))
    floor = min_lr if step >= warmup_iters else 0.0
    return max(floor, lr / max(warmup_iters - step, 1) * annealed)


def annealing(
    step: int, *, lr: float, batches_per_epoch: int, warmup_iters: int = 10000, anneal_every_epoch: float = 2.0
) -> float:
    """Linear warm-up, and a fall to 0.8 of the rate every few epochs. Arguments as in `custom_warmup_anneal`."""
    return (
        min(step, warmup_iters) / warmup_iters * lr * 0.8 ** math.floor(step / (batches_per_epoch * anneal_every_epoch))
    )


def noam(step: int, *, lr: float, batches_per_epoch: int = 1, warmup_iters: int = 10000) -> float:
    """Linear warm-up, and a fall with the inverse square root of the steps (arXiv 1706.03762, section 5.3).

    The published formula, `factor * d_model**-0.5 * min(t**-0.5, t * warmup_iters**-1.5)` with t counted from 1, has
    the highest rate `factor * (d_model * warmup_iters)**-0.5`, which is what is given here. SATIC trains with factor 1,
    width 512 and 20,000 steps of warm-up, so with `lr=3.125e-4`.

    Args:
        step (`int`): batches before this one.
        lr (`float`): highest rate, reached at the end of the warm-up.
        batches_per_epoch (`int`, defaults to 1): not used, epochs are nothing to this schedule.
        warmup_iters (`int`, defaults to 10000): batches of the warm-up.

    Returns:
        `float`: the rate.

    Example:

    ```python
    >>> from hf_captioners.training.schedules import noam
    >>> [round(noam(step, lr=3.125e-4, warmup_iters=20000), 9) for step in (0, 9999, 19999, 79999)]
    [1.6e-08, 0.00015625, 0.0003125, 0.00015625]

    ```
    """
    progress = (step + 1) / warmup_iters
    return lr * min(progress**-0.5, progress)


SCHEDULES: dict[str, Callable[..., float]] = {
    "custom_warmup_anneal": custom_warmup_anneal,
    "annealing": annealing,
    "noam": noam,
}


def check_schedule(name: str, options: Mapping[str, Any]) -> None:
    """Check the options of a schedule.

    Args:
        name (`str`): one of `SCHEDULES`.
        options (`dict`): its `lr_scheduler_kwargs`.

    Raises:
        ValueError: the schedule has no such option, a value is no number of 0 or more, or a warm-up is shorter than a
            batch.
    """
    for option, value in options.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"lr_scheduler_kwargs: {option} must be a number of 0 or more, not {value!r}.")
    if options.get("warmup_iters", 1) < 1:
        raise ValueError(f"lr_scheduler_kwargs: warmup_iters must be at least 1, not {options['warmup_iters']}.")
    try:
        SCHEDULES[name](0, **{"lr": 1.0, "batches_per_epoch": 1, **options})
    except (TypeError, ZeroDivisionError) as error:
        raise ValueError(f"lr_scheduler_kwargs={dict(options)}: {error}.") from error


class RectifiedAdam(torch.optim.RAdam):
    """RAdam as ExpansionNet v2 was trained with it: no update at all until the variance is tractable (arXiv
    1908.03265).

    With `betas=(0.9, 0.98)` these are the first five steps. `torch.optim.RAdam` takes steps along the momentum there;
    later the two are one.

    Args:
        params (`Iterable`): parameters or groups.
        lr (`float`, defaults to 1e-3): rate.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.98)`): decay of the two moments.
        eps (`float`, defaults to 1e-9): added to the root of the second moment.
        options: further ones of `torch.optim.RAdam`, as `weight_decay`.

    Raises:
        ValueError: a rate below 0 or a beta outside [0, 1).
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-9,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, **options)

    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update; `closure` recomputes and returns the loss."""
        with self._without_early_updates():
            return super().step(closure)

    @contextmanager
    def _without_early_updates(self) -> Iterator[None]:
        """Give a rate of 0 to parameters whose next step is too early for an update; the moments go on."""
        groups = self.param_groups
        self.param_groups = [part for group in groups for part in self._parts(group)]
        try:
            yield
        finally:
            self.param_groups = groups

    def _parts(self, group: dict[str, Any]) -> list[dict[str, Any]]:
        """A group's parameters to update and those to leave."""
        steps = {parameter: int(self.state.get(parameter, {}).get("step", 0)) + 1 for parameter in group["params"]}
        early = [parameter for parameter, step in steps.items() if _length(step, group["betas"][1]) <= 5]
        late = [parameter for parameter in group["params"] if parameter not in set(early)]
        return [{**group, "params": late}, {**group, "params": early, "lr": 0.0}]


def _length(step: int, beta: float) -> float:
    """Length of the simple moving average that the second moment approximates, rho_t of the paper."""
    decay = beta**step
    return 2 / (1 - beta) - 1 - 2 * step * decay / (1 - decay)


def radam_options(optim_args: str | None) -> dict[str, Any]:
    """Read the options of [`RectifiedAdam`] as `TrainingArguments` writes them.

    Args:
        optim_args (`str`, *optional*): such as `"beta2=0.98,eps=1e-9"`.

    Returns:
        `dict[str, Any]`: `betas` and `eps`, by default the paper's.

    Raises:
        ValueError: another option, or a value that is no number.
    """
    values = {"beta1": 0.9, "beta2": 0.98, "eps": 1e-9}
    for text in filter(None, (optim_args or "").replace(" ", "").split(",")):
        name, _, value = text.partition("=")
        try:
            values[name] = float(value) if name in values else values[name]
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"optim_args={optim_args!r}: radam takes beta1, beta2 and eps with a number each, not {text!r}."
            ) from error
    return {"betas": (values["beta1"], values["beta2"]), "eps": values["eps"]}
