"""The paper's schedules by their formulas, and its optimizer against `torch.optim.RAdam` and by hand."""

import copy
import math

import pytest
import torch

from hf_captioners.training.schedules import SCHEDULES, RectifiedAdam, annealing, custom_warmup_anneal, noam

ANNEALING = {"lr": 2e-4, "warmup_iters": 10000, "batches_per_epoch": 11807, "anneal_every_epoch": 2.0}

PAPER = {
    "lr": 2e-4,
    "warmup_iters": 10000,
    "batches_per_epoch": 11807,
    "anneal_coeff": 0.8,
    "anneal_every_epoch": 2.0,
    "min_lr": 5e-7,
}


class TestCustomWarmupAnneal:
    @pytest.mark.parametrize(
        ("step", "rate"), [(0, 2e-8), (5000, 4e-8), (9900, 2e-6), (9990, 2e-5), (9999, 2e-4), (10000, 2e-4)]
    )
    def test_the_paper(self, step, rate):  # specification of the original, section 15
        assert custom_warmup_anneal(step, **PAPER) == pytest.approx(rate, rel=1e-12)

    @pytest.mark.parametrize("warmup", [1, 7, 40])
    @pytest.mark.parametrize("every", [0.5, 1.0, 2.5])
    def test_the_formula(self, warmup, every):
        options = {**PAPER, "warmup_iters": warmup, "batches_per_epoch": 10, "anneal_every_epoch": every, "lr": 1e-3}
        for step in range(120):
            distance = warmup - step if warmup - step > 1 else 1
            falls = int(step // (10 * every))
            rate = 1e-3 / distance
            for _ in range(falls):
                rate *= 0.8
            if step >= warmup:
                rate = max(rate, 5e-7)
            assert custom_warmup_anneal(step, **options) == pytest.approx(rate, rel=1e-12)

    def test_falls_count_from_the_first_step_and_stop_at_the_lowest_rate(self):
        assert custom_warmup_anneal(23613, **PAPER) == pytest.approx(2e-4)
        assert custom_warmup_anneal(23614, **PAPER) == pytest.approx(1.6e-4)
        assert custom_warmup_anneal(10**7, **PAPER) == 5e-7
        assert custom_warmup_anneal(0, **{**PAPER, "lr": 1e-9}) == pytest.approx(1e-13)  # no floor in the warm-up


class TestAnnealing:
    @pytest.mark.parametrize(
        ("step", "rate"), [(0, 0.0), (2500, 5e-5), (10000, 2e-4), (23613, 2e-4), (23614, 1.6e-4), (47228, 1.28e-4)]
    )
    def test_linear_warm_up_then_falls(self, step, rate):
        assert annealing(step, **ANNEALING) == pytest.approx(rate, rel=1e-12)

    def test_the_fall_is_fixed(self):
        with pytest.raises(TypeError, match="anneal_coeff"):
            annealing(23614, **PAPER)


@pytest.mark.parametrize(("width", "warmup", "factor"), [(512, 20000, 1.0), (64, 400, 2.0), (48, 1, 0.5)])
def test_noam_is_the_published_formula(width, warmup, factor):  # arXiv 1706.03762, section 5.3
    for step in (0, 1, 9, 399, 400, 19999, 20000, 100000):
        t = step + 1
        rate = factor * width**-0.5 * min(t**-0.5, t * warmup**-1.5)
        assert noam(step, lr=factor * (width * warmup) ** -0.5, warmup_iters=warmup) == pytest.approx(rate, rel=1e-12)


@pytest.mark.parametrize("name", ["annealing", "custom_warmup_anneal", "noam"])
def test_all_take_what_the_trainer_knows(name):
    assert SCHEDULES[name](100, lr=1e-3, batches_per_epoch=10) > 0


def gradients(steps, *shapes):
    generator = torch.Generator().manual_seed(0)
    return [[torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes] for _ in range(steps)]


def follow(optimizer, parameters, gradients):
    """The parameters after each step along given gradients."""
    path = []
    for step in gradients:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
        path.append([parameter.detach().clone() for parameter in parameters])
    return path


def parameters(*shapes):
    return [torch.nn.Parameter(torch.full(shape, 0.5, dtype=torch.float64)) for shape in shapes]


class TestRectifiedAdam:
    SHAPES = ((3, 2), (4,))

    def test_no_update_in_the_first_five_steps(self):
        own = parameters(*self.SHAPES)
        path = follow(RectifiedAdam(own, lr=0.1), own, gradients(6, *self.SHAPES))
        for step in path[:5]:
            assert all(torch.equal(one, torch.full_like(one, 0.5)) for one in step)
        assert all((one != 0.5).all() for one in path[5])

    def test_the_later_steps_are_those_of_torch(self):
        options = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-9}
        own, theirs = parameters(*self.SHAPES), parameters(*self.SHAPES)
        steps = gradients(40, *self.SHAPES)
        ours = follow(RectifiedAdam(own, **options), own, steps)
        reference = follow(torch.optim.RAdam(theirs, **options), theirs, steps)
        for step in range(5, 40):
            for index in range(len(self.SHAPES)):
                moved = ours[step][index] - ours[step - 1][index]
                torch.testing.assert_close(moved, reference[step][index] - reference[step - 1][index])

    @pytest.mark.parametrize("betas", [(0.9, 0.98), (0.5, 0.9), (0.9, 0.999)])
    def test_by_hand(self, betas):
        beta1, beta2 = betas
        (own,) = parameters((1,))
        steps = gradients(30, (1,))
        path = follow(RectifiedAdam([own], lr=0.1, betas=betas, eps=1e-9), [own], steps)
        value, longest = 0.5, 2 / (1 - beta2) - 1
        for t in range(1, 31):
            seen = [float(step[0]) for step in steps[:t]]
            mean = sum((1 - beta1) * beta1 ** (t - i) * g for i, g in enumerate(seen, start=1))
            square = sum((1 - beta2) * beta2 ** (t - i) * g * g for i, g in enumerate(seen, start=1))
            length = longest - 2 * t * beta2**t / (1 - beta2**t)
            if length >= 5:
                r = math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))
                corrected = math.sqrt(square / (1 - beta2**t))
                value -= 0.1 * r * (mean / (1 - beta1**t)) / (corrected + 1e-9 / math.sqrt(1 - beta2**t))
            assert float(path[t - 1][0]) == pytest.approx(value, rel=1e-10)

    def test_save_and_load_in_the_middle(self, tmp_path):
        steps = gradients(12, *self.SHAPES)
        whole = parameters(*self.SHAPES)
        expected = follow(RectifiedAdam(whole), whole, steps)[-1]
        first = parameters(*self.SHAPES)
        optimizer = RectifiedAdam(first)
        follow(optimizer, first, steps[:7])
        torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
        second = copy.deepcopy(first)
        continued = RectifiedAdam(second, lr=1.0)
        continued.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
        assert continued.param_groups[0]["lr"] == 1e-3
        for one, other in zip(follow(continued, second, steps[7:])[-1], expected, strict=True):
            assert torch.equal(one, other)

    def test_groups_and_parameters_without_gradient(self):
        one, two, idle = parameters((2,), (2,), (2,))
        optimizer = RectifiedAdam([{"params": [one], "lr": 0.1}, {"params": [two, idle], "lr": 0.2}])
        same = gradients(8, (2,))
        path = follow(optimizer, [one, two], [[step[0], step[0]] for step in same])
        torch.testing.assert_close(path[-1][1] - 0.5, 2 * (path[-1][0] - 0.5))
        assert torch.equal(idle, torch.full_like(idle, 0.5))

    def test_closure(self):
        (own,) = parameters((2,))
        optimizer = RectifiedAdam([own])

        def loss():
            optimizer.zero_grad()
            value = (own**2).sum()
            value.backward()
            return value

        assert optimizer.step(loss).item() == pytest.approx(0.5)
        assert RectifiedAdam([own]).step() is None

    def test_every_parameter_counts_its_own_steps(self):
        first, late = parameters((2,), (2,))
        optimizer = RectifiedAdam([first, late], lr=0.1)
        for number, (gradient,) in enumerate(gradients(12, (2,))):
            first.grad, late.grad = gradient, gradient if number >= 4 else None
            optimizer.step()
            assert torch.equal(first, torch.full_like(first, 0.5)) == (number < 5)
            assert torch.equal(late, torch.full_like(late, 0.5)) == (number < 9)

    @pytest.mark.parametrize("decoupled", [False, True])
    def test_weight_decay_is_that_of_torch(self, decoupled):
        options = {"lr": 0.1, "betas": (0.9, 0.98), "eps": 1e-9, "decoupled_weight_decay": decoupled}
        ours, theirs = parameters((3,), (3,))
        optimizers = RectifiedAdam([ours], **options), torch.optim.RAdam([theirs], **options)
        for step, (gradient,) in enumerate(gradients(9, (3,))):
            for optimizer, parameter in zip(optimizers, (ours, theirs), strict=True):
                optimizer.param_groups[0]["weight_decay"] = 0.0 if step < 5 else 0.1
                parameter.grad = gradient.clone()
                if step == 5:
                    parameter.data.fill_(0.5)
                optimizer.step()
        torch.testing.assert_close(ours, theirs)

    def test_errors(self):
        with pytest.raises(ValueError, match=r"Invalid learning rate: -1\.0"):
            RectifiedAdam(parameters((2,)), lr=-1.0)
