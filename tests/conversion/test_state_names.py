"""Names without wrappers."""

from __future__ import annotations

import itertools

import pytest
import torch

from hf_captioners.conversion.state_names import unwrapped_names


class Net(torch.nn.Module):
    """A module with a part that is itself called `module`."""

    def __init__(self) -> None:
        super().__init__()
        self.module = torch.nn.Linear(2, 2)
        self.head = torch.nn.Linear(2, 2)


@pytest.mark.parametrize("count", range(1, 4))
def test_wrappers_of_torch_in_any_order(count: int) -> None:
    wrappers = (torch.compile, torch.nn.DataParallel, torch.optim.swa_utils.AveragedModel)
    for chain in itertools.product(wrappers, repeat=count):
        if (torch.compile, torch.compile) in itertools.pairwise(chain):
            continue  # gives a function
        model = net = Net()
        for wrap in chain:
            model = wrap(model)
        assert sorted(unwrapped_names(model.state_dict()).values()) == sorted(net.state_dict()), chain


def test_a_part_that_was_compiled() -> None:
    net = Net()
    names = list(net.state_dict())
    net.head = torch.compile(net.head)
    assert list(unwrapped_names(net.state_dict()).values()) == names


@pytest.mark.parametrize("names", [["module.a", "b"], ["my_orig_mod.a"], ["amodule.a"], ["module."], []])
def test_other_names_stay(names: list[str]) -> None:
    assert list(unwrapped_names(names).values()) == names
