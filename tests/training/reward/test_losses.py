"""The losses of reward training: the original code's numbers, closed forms, TRL, and pictures without a pair."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hf_captioners.training.reward.losses import (
    BASELINES,
    NORMALIZATIONS,
    advantages,
    dico_loss,
    loss_items,
    self_critical_loss,
)


class DicoCase:
    """A parity case of DiCO: what its code gave for given log-probabilities and rewards."""

    def __init__(self, folder: Path) -> None:
        self.settings = json.loads((folder / "config.json").read_text())
        self.io = load_file(folder / "io.safetensors")
        self.options = {"beta": self.settings["dico_beta"], "reward_temperature": 1 / self.settings["dico_tau"]}

    def loss(self, kind: str, **changes: Any) -> Any:
        source = "cand" if kind == "tie" else kind
        given = [self.io[f"{source}_{name}"] for name in ("policy_logps", "ref_logps")]
        rewards = torch.full_like(given[0], 0.75) if kind == "tie" else self.io[f"{kind}_rewards"]
        return dico_loss(*given, **{"rewards": rewards, **self.options, **changes})


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def dico(request, shared_parity) -> DicoCase:
    return DicoCase(shared_parity / "dico" / request.param)


def random_case(pictures: int = 6, k: int = 5, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """Log-probabilities of policy and reference, and rewards."""
    noise = torch.Generator().manual_seed(pictures * 100 + k)
    policy, reference, rewards = (torch.randn(pictures, k, generator=noise, dtype=dtype) for _ in range(3))
    return 3 * policy - 20, 3 * reference - 20, 0.01 * rewards + 0.7


def close(got: torch.Tensor, expected: torch.Tensor | float, tolerance: float = 1e-12) -> None:
    expected = torch.as_tensor(expected, dtype=got.dtype)
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# -- DiCO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cand", "tie", "step"])
def test_dico_loss_is_the_originals(dico, kind):
    out = dico.loss(kind)
    assert torch.equal(out.winners, dico.io[f"{kind}_chosen_mask"].bool())
    losers = out.gammas[~out.winners].view(len(out.winners), -1)  # candidate order, without the winner
    close(losers, dico.io[f"{kind}_gamma"], 1e-4)
    close(out.per_image.mean(), dico.io[f"{kind}_loss"], 1e-4)
    assert out.is_pair.all()
    assert not out.gammas[out.winners].any()
    if kind == "cand":
        close(out.per_image, dico.io["cand_loss_per_image"], 1e-4)
    if kind != "tie":
        close(out.chosen_rewards.mean(), dico.io[f"{kind}_chosen_reward"], 1e-4)
        close(out.rejected_rewards.mean(), dico.io[f"{kind}_rejected_reward"], 1e-4)


def test_equal_rewards_the_first_candidate_wins_against_equal_weights(dico):
    out = dico.loss("tie")
    k = dico.settings["n_candidates"]
    assert out.winners[:, 0].all()
    close(out.gammas, torch.tensor([0.0] + [1 / (k - 1)] * (k - 1)).expand_as(out.gammas), 1e-6)


def test_dico_loss_by_the_definition_one_picture_after_the_other():
    policy, reference, rewards = random_case()
    out = dico_loss(policy, reference, rewards, beta=0.3, reward_temperature=1 / 300)
    for row in range(len(policy)):
        rho = [p - r for p, r in zip(policy[row].tolist(), reference[row].tolist(), strict=True)]
        reward = rewards[row].tolist()
        best = max(range(len(reward)), key=reward.__getitem__)
        weights = [0.0 if i == best else math.exp(300 * (reward[best] - reward[i])) for i in range(len(reward))]
        mixed = sum(w * r for w, r in zip(weights, rho, strict=True)) / sum(weights)
        assert out.gammas[row].tolist() == pytest.approx([w / sum(weights) for w in weights], rel=1e-10)
        assert out.chosen_rewards[row].item() == pytest.approx(0.3 * rho[best], rel=1e-12)
        assert out.rejected_rewards[row].item() == pytest.approx(0.3 * mixed, rel=1e-10)
        assert out.per_image[row].item() == pytest.approx(math.log1p(math.exp(0.3 * (mixed - rho[best]))), rel=1e-10)


def test_dico_gradient_in_closed_form():
    """dL/dlog p(w) = -beta sigmoid(-z) and dL/dlog p(i) = beta gamma_i sigmoid(-z); nothing reaches the others."""
    policy, reference, rewards = (one.requires_grad_() for one in random_case())
    out = dico_loss(policy, reference, rewards, beta=0.2, reward_temperature=0.01)
    out.per_image.sum().backward()
    z = out.chosen_rewards - out.rejected_rewards
    signs = out.gammas - out.winners.to(out.gammas.dtype)
    close(policy.grad, (0.2 * signs * torch.sigmoid(-z)[:, None]).detach())
    close(policy.grad.sum(dim=1), torch.zeros(len(policy)))  # what the winner gains, the losers lose
    assert reference.grad is None
    assert rewards.grad is None
    assert not (out.chosen_rewards.requires_grad or out.rejected_rewards.requires_grad or out.gammas.requires_grad)


def test_dico_gradient_is_the_numeric_derivative(dico):
    policy, reference = (dico.io[f"cand_{name}"].double() for name in ("policy_logps", "ref_logps"))

    def loss(one: torch.Tensor) -> torch.Tensor:
        return dico_loss(one, reference, dico.io["cand_rewards"].double(), **dico.options).per_image.mean()

    assert torch.autograd.gradcheck(loss, policy.requires_grad_())


def trl_dpo(chosen: torch.Tensor, rejected: torch.Tensor, reference: list[torch.Tensor], beta: float) -> Any:
    """Loss and metrics of TRL's own DPOTrainer for captions of one token, whose log-probabilities are given."""
    trl = pytest.importorskip("trl")
    from accelerate import Accelerator

    trainer = object.__new__(trl.DPOTrainer)  # its loss is a method; the rest of it would need a language model
    trainer.model = SimpleNamespace(training=True)
    trainer.accelerator = Accelerator(cpu=True)
    trainer.aux_loss_enabled = trainer.use_weighting = False
    trainer.ld_alpha, trainer.precompute_ref_logps, trainer.f_divergence_type = None, True, "reverse_kl"
    trainer.loss_types, trainer.loss_weights, trainer.beta = ["sigmoid"], [1.0], beta
    trainer._metrics, trainer._total_train_tokens, trainer._tp_size = defaultdict(lambda: defaultdict(list)), 0, 1
    tokens = torch.cat((chosen, rejected))[:, None]
    other = torch.zeros_like(tokens.detach())
    output = SimpleNamespace(log_probs=tokens, entropy=other, mean_logits=other, is_top1=other.bool())
    ones = torch.ones(len(tokens), 2, dtype=torch.long)
    inputs = {"input_ids": ones, "attention_mask": ones, "completion_mask": torch.tensor([[0, 1]]).expand_as(ones)}
    inputs |= {"ref_chosen_logps": reference[0], "ref_rejected_logps": reference[1]}
    loss = trainer.compute_loss(lambda **_: output, inputs)
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def test_two_candidates_are_trls_dpo():
    policy, reference, rewards = random_case(pictures=7, k=2)
    policy.requires_grad_()
    out = dico_loss(policy, reference, rewards, beta=0.15, reward_temperature=1 / 300)
    best = rewards.argmax(dim=1, keepdim=True)
    pairs = [[one.gather(1, index).squeeze(1) for index in (best, 1 - best)] for one in (policy, reference)]
    loss, metrics = trl_dpo(*pairs[0], pairs[1], beta=0.15)
    close(out.per_image.mean().detach(), loss.detach())
    got, expected = (torch.autograd.grad(one, policy)[0] for one in (out.per_image.mean(), loss))
    close(got, expected)
    assert out.chosen_rewards.mean().item() == pytest.approx(metrics["rewards/chosen"])
    assert out.rejected_rewards.mean().item() == pytest.approx(metrics["rewards/rejected"])
    margins = out.chosen_rewards - out.rejected_rewards
    assert margins.mean().item() == pytest.approx(metrics["rewards/margins"])
    assert (margins > 0).double().mean().item() == pytest.approx(metrics["rewards/accuracies"])


def test_candidates_that_take_no_part_change_nothing():
    """The same as if they were not there, whatever their rewards and log-probabilities."""
    policy, reference, rewards = random_case(pictures=2, k=5)
    valid = torch.tensor([[True, False, True, True, False], [False, True, True, False, True]])
    rewards[~valid], reference[~valid] = 5.0, -1e4
    whole = policy.clone().requires_grad_()
    out = dico_loss(whole, reference, rewards, beta=0.2, reward_temperature=0.01, valid=valid)
    out.per_image.sum().backward()
    for row in range(2):
        kept = valid[row]
        part = policy[row, kept][None].requires_grad_()
        alone = dico_loss(part, reference[row, kept][None], rewards[row, kept][None], 0.2, 0.01)
        alone.per_image.sum().backward()
        close(out.per_image[row].detach(), alone.per_image[0].detach())
        close(out.gammas[row, kept], alone.gammas[0])
        assert torch.equal(out.winners[row, kept], alone.winners[0])
        close(whole.grad[row, kept], part.grad[0])
        close(out.rejected_rewards[row], alone.rejected_rewards[0])
    assert not (out.winners[~valid].any() or out.gammas[~valid].any() or whole.grad[~valid].any())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pictures_without_a_pair_are_0_and_their_gradient_too(dtype):
    policy, reference, rewards = random_case(pictures=4, k=3, dtype=dtype)
    valid = torch.tensor([[True, True, True], [False, True, False], [False, False, False], [True, False, True]])
    policy.requires_grad_()
    out = dico_loss(policy, reference, rewards, beta=0.2, reward_temperature=1 / 300, valid=valid)
    out.per_image.sum().backward()
    assert out.is_pair.tolist() == [True, False, False, True]
    assert out.per_image[1:3].tolist() == [0.0, 0.0]
    assert out.winners.sum(dim=1).tolist() == [1, 0, 0, 1]
    assert not out.gammas[1:3].any()
    assert out.gammas.isfinite().all()
    assert policy.grad.isfinite().all()
    assert policy.grad.abs().sum(dim=1).gt(0).tolist() == [True, False, False, True]
    assert {one.dtype for one in (out.per_image, out.gammas, out.chosen_rewards, policy.grad)} == {dtype}


def test_a_batch_without_any_pair_still_has_a_gradient():
    policy, reference, rewards = random_case(pictures=2, k=3)
    policy.requires_grad_()
    out = dico_loss(policy, reference, rewards, 0.2, 0.01, valid=torch.zeros(2, 3, dtype=torch.bool))
    out.per_image.sum().backward()  # DistributedDataParallel waits for it
    assert out.per_image.sum().item() == 0.0
    assert torch.equal(policy.grad, torch.zeros_like(policy))


def test_one_candidate_is_no_pair():
    policy, reference, rewards = random_case(pictures=3, k=1)
    assert not dico_loss(policy, reference, rewards, 0.2, 0.01).is_pair.any()


def test_rewards_that_are_not_there_do_no_harm():
    policy, reference, rewards = random_case(pictures=1, k=4)
    expected = dico_loss(policy[:, :3], reference[:, :3], rewards[:, :3], 0.2, 0.01)
    rewards[0, 3] = torch.nan
    policy.requires_grad_()
    out = dico_loss(policy, reference, rewards, 0.2, 0.01, valid=~rewards.isnan())
    out.per_image.sum().backward()
    close(out.per_image.detach(), expected.per_image)
    assert policy.grad.isfinite().all()
    assert policy.grad[0, 3] == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_huge_gaps_do_not_overflow(dtype):
    """tau 300 and gaps of 10, log-ratios of thousands: all the weight on the worst, and the loss is linear."""
    policy = torch.tensor([[-4000.0, -10.0, -20.0], [-10.0, -4000.0, -4000.0]], dtype=dtype, requires_grad=True)
    rewards = torch.tensor([[10.0, 0.0, 5.0], [10.0, 0.0, 5.0]], dtype=dtype)
    out = dico_loss(policy, torch.full_like(policy, -20.0), rewards, beta=0.5, reward_temperature=1 / 300)
    out.per_image.sum().backward()
    assert out.gammas.tolist() == [[0.0, 1.0, 0.0]] * 2
    assert out.per_image.tolist() == [0.5 * 3990, 0.0]
    assert policy.grad.tolist() == [[-0.5, 0.5, 0.0], [0.0, 0.0, 0.0]]


def test_equal_captions_and_equal_rewards_give_log_2():
    policy = torch.full((2, 4), -7.0)
    out = dico_loss(policy, torch.full_like(policy, -9.0), torch.ones(2, 4), 0.2, 1 / 300)
    close(out.per_image, torch.full((2,), math.log(2)), 1e-6)


def test_the_scale_of_beta_and_temperature():
    """Half the gaps at half the temperature are the same weights, and half the ratios at twice beta the same loss."""
    policy, reference, rewards = random_case()
    out = dico_loss(policy, reference, rewards, beta=0.2, reward_temperature=0.02)
    same = dico_loss(policy / 2, reference / 2, rewards / 2, beta=0.4, reward_temperature=0.01)
    close(same.gammas, out.gammas)
    close(same.per_image, out.per_image)


# -- self-critical training ------------------------------------------------------------------------------------------


def test_advantages_in_closed_form():
    rewards = torch.tensor([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    assert advantages(rewards, "greedy", torch.tensor([2.0, 1.0])).tolist() == [[-1.0, 0.0, 4.0], [-0.5] * 3]
    assert advantages(rewards, "mean").tolist() == [[-2.0, -1.0, 3.0], [0.0] * 3]
    assert advantages(rewards, "leave_one_out").tolist() == [[-3.0, -1.5, 4.5], [0.0] * 3]


@pytest.mark.parametrize("k", [2, 3, 7])
def test_the_mean_as_baseline_is_leave_one_out_times_a_factor(k):
    rewards = random_case(k=k)[2]
    close(advantages(rewards, "mean"), advantages(rewards, "leave_one_out") * (k - 1) / k)
    close(advantages(rewards, "mean").sum(dim=1), torch.zeros(len(rewards)))


def test_leave_one_out_is_what_trls_rloo_computes():
    """Sum of the others over their number; unscorable ones drop out, and a lone one has nothing to learn."""
    rewards = random_case(pictures=3, k=4)[2]
    valid = torch.tensor([[True] * 4, [True, False, True, True], [False, True, False, False]])
    with_gaps = rewards.masked_fill(~valid, torch.nan)
    total, number = with_gaps.nansum(dim=1, keepdim=True), valid.sum(dim=1, keepdim=True)
    expected = (with_gaps - (total - with_gaps) / (number - 1)).nan_to_num(0.0, posinf=0.0, neginf=0.0)
    close(advantages(rewards, "leave_one_out", valid=valid), expected)


@pytest.mark.parametrize("baseline", BASELINES)
def test_advantages_of_candidates_that_take_no_part(baseline):
    rewards, greedy = torch.tensor([[1.0, 9.0, 3.0], [4.0, 9.0, 9.0], [9.0, 9.0, 9.0]]), torch.ones(3)
    valid = torch.tensor([[True, False, True], [True, False, False], [False, False, False]])
    got = advantages(rewards.masked_fill(~valid, torch.nan), baseline, greedy, valid)
    expected = {"greedy": [0.0, 2.0, 3.0], "mean": [-1.0, 1.0, 0.0], "leave_one_out": [-2.0, 2.0, 0.0]}[baseline]
    assert got[valid].tolist() == expected
    assert not got[~valid].any()


def test_errors_name_what_would_be_right():
    rewards = torch.ones(1, 2)
    with pytest.raises(ValueError, match="baseline must be one of greedy, mean, leave_one_out, not 'median'"):
        advantages(rewards, "median")
    with pytest.raises(ValueError, match="baseline='greedy' needs the rewards of the greedy captions"):
        advantages(rewards, "greedy")
    with pytest.raises(ValueError, match="normalization must be one of caption, none, token, not 'length'"):
        self_critical_loss(rewards, rewards, rewards[0], "length")
    with pytest.raises(ValueError, match="normalization must be one of caption, none, token, not 'tokens'"):
        loss_items(rewards, "tokens")


B_K = torch.linspace(0.1, 0.6, 6).view(2, 3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: advantages(B_K[0], "mean"), r"rewards must have the shape \(B, k\), not \(3,\)"),
        (
            lambda: advantages(B_K, "greedy", torch.ones(2, 1)),
            r"greedy has the shape \(2, 1\), but rewards has \(2, 3\); expected \(2,\)",
        ),
        (lambda: advantages(B_K, "greedy", torch.ones(3)), r"greedy has the shape \(3,\)"),
        (
            lambda: advantages(B_K, "mean", valid=torch.ones(2, 1).bool()),
            r"valid has the shape \(2, 1\), but rewards has \(2, 3\); expected \(2, 3\)",
        ),
        (
            lambda: advantages(B_K, "mean", valid=torch.ones(2, 3).long()),
            r"valid must be of torch.bool, not torch.int64",
        ),
        (
            lambda: self_critical_loss(B_K, B_K, torch.ones(2, 1)),
            r"advantages has the shape \(2, 1\), but log_probs has \(2, 3\); expected \(2,\)",
        ),
        (lambda: self_critical_loss(B_K, B_K, torch.tensor(1.0)), r"advantages has the shape \(\)"),
        (lambda: self_critical_loss(B_K, B_K[:1], torch.ones(2)), r"mask has the shape \(1, 3\), but log_probs has"),
        (lambda: self_critical_loss(B_K[0], B_K[0], torch.ones(3)), r"log_probs must have the shape \(N, T\)"),
        (
            lambda: dico_loss(B_K[:, :1], B_K, B_K, 0.2, 0.1),
            r"policy_log_probs has the shape \(2, 1\), but rewards has \(2, 3\); expected \(2, 3\)",
        ),
        (lambda: dico_loss(B_K, B_K[0], B_K, 0.2, 0.1), r"reference_log_probs has the shape \(3,\)"),
        (lambda: dico_loss(B_K, B_K, B_K, 0.2, 0.0), r"reward_temperature must be above 0, not 0.0"),
        (lambda: dico_loss(B_K, B_K, B_K, 0.2, -1.0), r"reward_temperature must be above 0, not -1.0"),
        (lambda: dico_loss(B_K, B_K, B_K, 0.2, math.nan), r"reward_temperature must be above 0, not nan"),
        (
            lambda: dico_loss(B_K, B_K, torch.tensor([[0.0, 1.0, 2.0], [0.0, math.nan, 1.0]]), 0.2, 0.1),
            r"rewards\[1, 1\] is nan; expected a finite number, or valid=False there",
        ),
        (
            lambda: dico_loss(B_K, B_K, torch.tensor([[0.0, 1.0, math.inf], [0.0, 0.0, 1.0]]), 0.2, 0.1),
            r"rewards\[0, 2\] is inf",
        ),
    ],
    ids=range(16),
)
def test_shapes_and_values_that_would_give_wrong_numbers(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_integer_rewards_are_numbers_too():
    rewards = torch.tensor([[1, 2, 6]])
    for baseline in BASELINES:
        got, expected = (advantages(one, baseline, torch.tensor([2])) for one in (rewards, rewards.float()))
        assert torch.equal(got, expected) and got.dtype == torch.float32
    policy = torch.tensor([[-4.0, -5.0, -6.0]])
    got, expected = (dico_loss(policy, policy + 1, one, 0.2, 0.5) for one in (rewards, rewards.float()))
    assert torch.equal(got.per_image, expected.per_image) and torch.equal(got.gammas, expected.gammas)


def self_critical_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two captions, of 2 and 3 tokens; behind them is what no one may look at."""
    log_probs = torch.tensor([[-1.0, -2.0, -torch.inf, torch.nan], [-3.0, -0.5, -1.0, 7.0]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False, False], [True, True, True, False]])
    return log_probs, mask, torch.tensor([2.0, -1.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("normalization", "expected", "items", "gradient"),
    [
        ("none", 2 * 3.0 - 4.5, 2, [[-2.0, -2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]),
        ("token", 2 * 3.0 - 4.5, 5, [[-2.0, -2.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]),
        ("caption", 2 * 1.5 - 1.5, 2, [[-1.0, -1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3, 0.0]]),
    ],
)
@pytest.mark.parametrize("mask_type", [torch.bool, torch.float64])
def test_self_critical_loss_in_closed_form(normalization, expected, items, gradient, mask_type):
    log_probs, mask, gains = self_critical_case()
    log_probs.requires_grad_()
    gains.requires_grad_()
    loss = self_critical_loss(log_probs, mask.to(mask_type), gains, normalization)
    loss.backward()
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    assert loss_items(mask.to(mask_type), normalization) == items
    close(log_probs.grad, torch.tensor(gradient, dtype=torch.float64))
    assert gains.grad is None


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_a_caption_without_tokens_teaches_nothing(normalization):
    log_probs = torch.zeros(1, 3, requires_grad=True)
    loss = self_critical_loss(log_probs, torch.zeros(1, 3), torch.tensor([5.0]), normalization)
    loss.backward()
    assert loss.item() == 0
    assert not log_probs.grad.any()


def test_the_loss_follows_the_type_of_the_log_probabilities():
    _, mask, gains = self_critical_case()
    loss = self_critical_loss(torch.zeros(2, 4), mask, gains)
    assert loss.dtype == torch.float32


def test_the_expected_gradient_is_the_policy_gradient():
    """Over all captions of one word, the gradient of the loss, weighed with their probabilities, is - that of the mean
    reward, with any baseline that does not depend on the caption."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, 4.0, 2.0], dtype=torch.float64)
    (expected,) = torch.autograd.grad(logits.softmax(0) @ rewards, logits)
    for baseline in (0.0, 2.5):
        gains = advantages(rewards[:, None], "greedy", torch.full((3,), baseline, dtype=torch.float64)).flatten()
        weights = logits.softmax(0).detach()
        loss = self_critical_loss(logits.log_softmax(0)[:, None], torch.ones(3, 1), gains * weights, "none")
        (gradient,) = torch.autograd.grad(loss, logits)
        close(gradient, -expected)


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_self_critical_loss_of_satic(case):
    """The original's mask: the first word, and every word behind one that is no end token."""
    io = load_file(Path(__file__).resolve().parents[2] / "fixtures" / "parity" / "satic" / case / "io.safetensors")
    seq, sampled = io["nsc.gen_seq"], io["nsc.cider_sampled"].view(-1, 5)
    mask = torch.nn.functional.pad(seq[:, :-1] != 0, (1, 0), value=True)
    gains = {
        "nsc": advantages(sampled, "leave_one_out"),
        "sc": advantages(sampled, "greedy", io["nsc.cider_greedy"].view(-1, 5)[:, 0]),
    }
    for kind, one in gains.items():
        close(one.flatten(), io[f"{kind}.rewards"][:, 0], 1e-6)
        total = self_critical_loss(io["nsc.gen_logprobs"].double(), mask, one.flatten(), "token")
        close(total / loss_items(mask, "token"), io[f"{kind}.loss"], 1e-5)


@pytest.mark.parametrize("kind", ["e2e", "feat"])
def test_self_critical_loss_of_expansionnet_v2(parity_case, kind):
    io = load_file(parity_case / "io.safetensors")
    rewards, lengths = io[f"{kind}.scst.rewards"], io[f"{kind}.scst.sample_lengths"].flatten()
    gains = advantages(rewards, "leave_one_out")
    close(rewards - gains, io[f"{kind}.scst.reward_base"])
    log_probs = io[f"{kind}.scst.sample_logprobs"].flatten(0, 1)[:, 1:].double()
    mask = torch.arange(1, log_probs.shape[1] + 1) < lengths[:, None]
    total = self_critical_loss(log_probs, mask, gains.flatten(), "none")
    close(total / loss_items(mask, "none"), io[f"{kind}.scst.loss"][0], 1e-7)
