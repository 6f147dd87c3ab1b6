"""Dropout whose masks cost little on a CPU.

torch draws a mask there with one call of its generator for every number. Here torch's generator gives a seed, from
which NumPy's SFC64 draws 64 bits for four numbers. `docs/results.md` has what a training step gains.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from .captioner_layers import values_are_known

BITS = 16  # of chance for each number: rates are rounded to multiples of 2**-16


class Dropout(nn.Dropout):
    """`nn.Dropout` that draws its masks faster on a CPU; everywhere else it is the same.

    The mask is a function of torch's generator, as in `nn.Dropout`, but another one. The rate is rounded to 16 bits;
    the scale is that of the rounded rate, so that the expected output is the input.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.modeling.captioner_dropout import Dropout
    >>> dropped = Dropout(0.25)(torch.ones(1000, 1000))
    >>> sorted(set(dropped.flatten().tolist())) == [0.0, torch.tensor(4 / 3).item()], round(dropped.mean().item(), 2)
    (True, 1.0)

    ```
    """

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Drop numbers of `hidden`, of any shape, in training."""
        if not self.training:
            return hidden  # as `nn.Dropout` does, which asks first
        dropped = round(self.p * 2**BITS)
        if not (hidden.device.type == "cpu" and 0 < dropped < 2**BITS and values_are_known(hidden)):
            return super().forward(hidden)
        chance = random_lanes(hidden.numel()).view(hidden.shape)
        # numbers of 8 bits, which are kept for the gradient: torch multiplies with them faster than with booleans
        mask = (chance >= dropped - 2 ** (BITS - 1)).view(torch.int8)
        return (hidden * mask).mul_(2**BITS / (2**BITS - dropped))


def random_lanes(number: int) -> torch.Tensor:
    """Random numbers of 16 bits.

    Args:
        number (`int`): how many.

    Returns:
        `torch.ShortTensor` of shape `(number,)`: each of the 65,536 values is as likely; a function of the state of
        torch's generator.
    """
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-number // 4))
    return torch.from_numpy(words.view(np.int16)[:number])


def draw_masks_faster(model: nn.Module) -> None:
    """Replace torch's dropouts inside a model, those in modules of transformers too.

    Args:
        model (`nn.Module`): changed in place; its numbers without dropout stay what they are.
    """
    for name, module in list(model.named_modules(remove_duplicate=False)):  # one may have several parents
        if type(module) is nn.Dropout and name:
            model.set_submodule(name, Dropout(module.p, module.inplace))
