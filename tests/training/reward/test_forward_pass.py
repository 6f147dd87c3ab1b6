"""Calls of a policy through what is wrapped around it."""

from __future__ import annotations

import pytest
import torch

from hf_captioners.training.reward.forward_pass import call_through


class Wrapper(torch.nn.Module):
    """Like DistributedDataParallel: knows when its own forward pass runs."""

    def __init__(self, module):
        super().__init__()
        self.module, self.passes = module, 0

    def forward(self, *args, **kwargs):
        self.passes += 1
        return self.module(*args, **kwargs)


class TestCallThrough:
    def test_goes_through_what_is_wrapped_around_and_leaves_no_trace(self):
        base = torch.nn.Linear(2, 3)
        wrapped, batch = Wrapper(base), torch.ones(1, 2)
        found = call_through(wrapped, base, lambda: base(batch) + 1)  # the function may use the model
        torch.testing.assert_close(found, base(batch) + 1)
        assert wrapped.passes == 1
        assert "forward" not in vars(base)

    def test_keeps_another_patch(self):
        base = torch.nn.Linear(2, 3)
        base.forward = lambda x: torch.zeros(1)  # as accelerate does for autocast
        patch = base.forward
        assert call_through(Wrapper(base), base, lambda: float(base(torch.ones(2)))) == 0.0
        assert base.forward is patch

    def test_cleans_up_after_an_error(self):
        base = torch.nn.Linear(2, 3)
        with pytest.raises(ZeroDivisionError):
            call_through(Wrapper(base), base, lambda: 1 / 0)
        assert "forward" not in vars(base)

    def test_without_a_wrapper(self):
        base = torch.nn.Linear(2, 3)
        assert call_through(base, base, lambda: 7) == 7
