"""Log-probabilities, sums and entropies of tokens, against torch's own operations."""

from __future__ import annotations

import pytest
import torch

from hf_captioners.modeling import captioner_log_probs
from hf_captioners.modeling.captioner_log_probs import token_log_probs, token_scores
from hf_captioners.modeling.captioner_losses import smoothed_cross_entropy, smoothed_divergence


@pytest.fixture(params=["in one part", "a row at a time"], autouse=True)
def parts(request, monkeypatch) -> None:
    if request.param == "a row at a time":
        monkeypatch.setitem(captioner_log_probs.AT_ONCE, "cpu", 1)


@pytest.fixture()
def logits() -> torch.Tensor:
    return (3 * torch.randn(6, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()


@pytest.fixture()
def targets() -> torch.Tensor:
    return torch.tensor([0, 10, 4, 4, 7, 1])


def test_numbers_are_those_of_torch(logits, targets):
    scores = token_scores(logits, targets, with_entropies=True)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(scores.log_probs, -torch.nn.functional.nll_loss(expected, targets, reduction="none"))
    torch.testing.assert_close(scores.sums, expected.sum(-1))
    torch.testing.assert_close(scores.entropies, torch.distributions.Categorical(logits=logits).entropy())
    assert not scores.entropies.requires_grad


def test_gradients_are_those_of_finite_differences(logits, targets):
    assert torch.autograd.gradcheck(lambda scores: token_scores(scores, targets)[:2], logits)
    assert torch.autograd.gradcheck(lambda scores: token_scores(scores, targets)[0], logits)
    assert torch.autograd.gradcheck(lambda scores: token_scores(scores, targets)[1], logits)


def test_a_second_pass_backwards_gives_the_same(logits, targets):
    total = token_scores(logits, targets).log_probs.sum()
    first, second = (torch.autograd.grad(total, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_scores_are_read_in_float32(logits, targets, dtype):
    short = logits.detach().to(dtype).requires_grad_()
    wide = short.detach().float().requires_grad_()
    scores = token_scores(short, targets)
    assert scores.log_probs.dtype == torch.float32
    torch.testing.assert_close(scores.log_probs, wide.log_softmax(-1).gather(-1, targets[:, None])[:, 0])
    scores.log_probs.sum().backward()
    wide.log_softmax(-1).gather(-1, targets[:, None]).sum().backward()
    torch.testing.assert_close(short.grad, wide.grad.to(dtype))


def test_impossible_words_have_no_share_in_entropy(logits, targets):
    scores = logits.detach().index_fill(1, torch.tensor([2, 3]), -torch.inf).requires_grad_()
    log_probs, entropies = token_log_probs(scores.view(2, 3, 11), targets.view(2, 3))
    possible = scores[:, [place for place in range(11) if place not in (2, 3)]]
    torch.testing.assert_close(entropies.flatten(), torch.distributions.Categorical(logits=possible).entropy())
    log_probs.sum().backward()
    assert scores.grad.isfinite().all() and (scores.grad[:, [2, 3]] == 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("loss", [smoothed_cross_entropy, smoothed_divergence])
def test_losses_without_scores_of_padding_equal_those_with_them(logits, loss, smoothing):
    labels = torch.tensor([[1, 2, -100], [3, -100, -100]])
    scores = logits.view(2, 3, 11)
    whole = loss(scores, labels, smoothing)
    (expected,) = torch.autograd.grad(whole, logits)
    chosen = loss(scores[labels != -100], labels, smoothing)
    torch.testing.assert_close(chosen, whole)
    torch.testing.assert_close(torch.autograd.grad(chosen, logits)[0], expected)
    plain = torch.nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), label_smoothing=smoothing)
    if loss is smoothed_cross_entropy:
        torch.testing.assert_close(whole, plain)
        torch.testing.assert_close(expected, torch.autograd.grad(plain, logits)[0])
