"""Bit diffusion: closed forms. The original's numbers are in tests/parity/test_scdnet.py."""

import math

import pytest
import torch

from hf_captioners.modeling.diffusion_scdnet import (
    SamplingPlan,
    bits_needed,
    bits_to_ids,
    denoise,
    ids_to_bits,
    log_snr,
    signal_and_noise,
)


def test_bits_are_binary_digits():
    ids = torch.arange(37)
    bits = ids_to_bits(ids, 6, 37, scale=0.5)
    digits = [[int(digit) - 0.5 for digit in f"{index:06b}"] for index in range(37)]
    assert torch.equal(bits, torch.tensor(digits))
    assert torch.equal(bits_to_ids(bits), ids)


@pytest.mark.parametrize("words, bits", [(2, 1), (32, 5), (33, 6), (10200, 14)])
def test_bits_needed(words, bits):
    assert bits_needed(words) == bits == math.ceil(math.log2(words))


@pytest.mark.parametrize("time, expected", [(0.0, 8.76919), (0.02, 6.26260), (0.5, -0.02493), (1.0, -33.89131)])
def test_landmarks_of_the_specification(time, expected):
    assert float(log_snr(torch.tensor(time))) == pytest.approx(expected, abs=1e-5)
    alpha, sigma = signal_and_noise(log_snr(torch.tensor(time)))
    assert float(alpha**2 + sigma**2) == pytest.approx(1.0)


def test_time_difference_puts_the_state_ahead():
    plan = SamplingPlan.of(50, 45.0)
    alpha, _ = signal_and_noise(log_snr(torch.tensor(0.08)))
    assert float(plan.next_alpha[0]) == pytest.approx(float(alpha), abs=1e-5)
    assert plan.noisy.tolist() == [True] * 4 + [False] * 46  # t' is 0 from there on


def steps(sampler, table, target, noise, **options):
    words = torch.nn.functional.one_hot(target, len(table)).float()
    return denoise(lambda *_: words, SamplingPlan.of(10), noise, table, sampler, **options)


def test_ddim_of_a_sure_network_stays_on_the_straight_path():
    """State = alpha x0 + sigma eps with the eps of the start, at every step."""
    table, target = ids_to_bits(torch.arange(8), 3, 8), torch.tensor([[3, 5]])
    noise = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    plan = SamplingPlan.of(10)
    alpha, sigma = plan.next_alpha[-1], plan.next_sigma[-1]
    torch.testing.assert_close(steps("ddim", table, target, noise).state, alpha * table[target] + sigma * noise)


def test_the_posterior_of_a_sure_network_has_the_variance_of_the_schedule():
    """With noise in every step, alpha(0.1) x0 + sigma(0.1) eps before the last one."""
    table, target = ids_to_bits(torch.arange(8), 3, 8), torch.full((4000, 2), 5)
    generator = torch.Generator().manual_seed(0)
    noise, *added = (torch.randn(4000, 2, 3, generator=generator) for _ in range(11))
    last = steps("paper", table, target, noise, step_noise=added, keep=True).states[-1]
    alpha, sigma = signal_and_noise(log_snr(torch.tensor(0.1)))
    left = last - alpha * table[target]
    assert abs(float(left.mean())) < 0.02 * float(sigma) * 2
    assert float(left.std()) == pytest.approx(float(sigma), rel=0.03)


def test_time_spacing_is_a_power_of_the_even_times():
    plan = SamplingPlan.of(4, time_spacing=2.0)
    expected = log_snr(torch.tensor([1.0, 0.5625, 0.25, 0.0625]))
    torch.testing.assert_close(plan.log_ratios, expected)
    with pytest.raises(ValueError, match=r"time_spacing must be positive, not 0\.0"):
        SamplingPlan.of(4, time_spacing=0.0)


def test_two_likely_words_can_have_the_bits_of_a_third():
    """Words 1 and 2, bits 01 and 10, at .6 and .4 once each: the signs of the mean are those of the likelier one; with
    0, 1 and 2 at .3, .35 and .35 every sign is negative and word 0 comes out, the least likely."""
    table = ids_to_bits(torch.arange(4), 2, 4)
    words = torch.tensor([[[0.0, 0.6, 0.4, 0.0], [0.3, 0.35, 0.35, 0.0]]])
    written = denoise(lambda *_: words, SamplingPlan.of(3), torch.zeros(1, 2, 2), table)
    assert written.words("bits", 4).tolist() == [[1, 0]]
    assert written.words("likeliest", 4).tolist() == [[1, 1]]
