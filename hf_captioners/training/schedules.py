"""Learning-rate schedules, and the optimizer of ExpansionNet v2 (specification of the original, section 15)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch


def custom_warmup_anneal(
    step: int,
    *,
    lr: float,
    warmup_iters: int,
    batches_per_epoch: int,
    anneal_coeff: float,
    anneal_every_epoch: float,
    min_lr: float = 5e-7,
) -> float:
    """Hyperbolic warm-up, then a fall by a factor every few epochs, which counts from the first step.

    Args:
        step (`int`): batches before this one.
        lr (`float`): highest rate.
        warmup_iters (`int`): batches of the warm-up; at distance n from its end the rate is `lr / n`.
        batches_per_epoch (`int`): batches of an epoch.
        anneal_coeff (`float`): the factor.
        anneal_every_epoch (`float`): epochs between two falls.
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
    step: int, *, lr: float, warmup_iters: int, batches_per_epoch: int, anneal_every_epoch: float, **unused: Any
) -> float:
    """Linear warm-up, and a fall to 0.8 of the rate every few epochs. Arguments as in `custom_warmup_anneal`."""
    return (
        min(step, warmup_iters) / warmup_iters * lr * 0.8 ** math.floor(step / (batches_per_epoch * anneal_every_epoch))
    )


def noam(step: int, *, lr: float, warmup_iters: int, **unused: Any) -> float:
    """Linear warm-up, and a fall with the inverse square root of the steps (arXiv 1706.03762, section 5.3).

    The published formula, `factor * d_model**-0.5 * min(t**-0.5, t * warmup_iters**-1.5)` with t counted from 1, has
    the highest rate `factor * (d_model * warmup_iters)**-0.5`, which is what is given here. SATIC trains with factor 1,
    width 512 and 20,000 steps of warm-up, so with `lr=3.125e-4`.

    Args:
        step (`int`): batches before this one.
        lr (`float`): highest rate, reached at the end of the warm-up.
        warmup_iters (`int`): batches of the warm-up.
        unused: options of the other schedules.

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


class RectifiedAdam(torch.optim.Optimizer):
    """RAdam as ExpansionNet v2 was trained with it: no update at all until the variance is tractable (arXiv
    1908.03265).

    With `betas=(0.9, 0.98)` these are the first five steps. `torch.optim.RAdam` takes steps along the momentum there;
    later the two agree.

    Args:
        params (`Iterable`): parameters or groups.
        lr (`float`, defaults to 1e-3): rate.
        betas (`tuple[float, float]`, defaults to `(0.9, 0.98)`): decay of the two moments.
        eps (`float`, defaults to 1e-9): added to the root of the second moment.

    Raises:
        ValueError: a rate below 0 or a beta outside [0, 1).
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.98), eps: float = 1e-9
    ) -> None:
        if lr < 0:
            raise ValueError(f"RectifiedAdam: lr must not be negative, it is {lr}.")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"RectifiedAdam: betas must be in [0, 1), not {betas}.")
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One update; `closure` recomputes and returns the loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        (beta1, beta2), grad = group["betas"], parameter.grad
        state["step"] += 1
        state["exp_avg"].lerp_(grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        rate = self._rectified_rate(state["step"], beta1, beta2)
        if rate:
            denominator = state["exp_avg_sq"].sqrt().add_(group["eps"])
            parameter.addcdiv_(state["exp_avg"], denominator, value=-group["lr"] * rate)

    @staticmethod
    def _rectified_rate(step: int, beta1: float, beta2: float) -> float:
        """What multiplies the rate; 0 while the length of the approximated average is below 5."""
        longest = 2 / (1 - beta2) - 1
        decay = beta2**step
        length = longest - 2 * step * decay / (1 - decay)
        if length < 5:
            return 0.0
        rectification = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return math.sqrt((1 - decay) * rectification) / (1 - beta1**step)
