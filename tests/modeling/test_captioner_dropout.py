"""Dropout with masks that cost little, against what dropout is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_captioners import DicoCaptionerConfig, DicoForImageCaptioning
from hf_captioners.modeling.captioner_dropout import Dropout, draw_masks_faster, random_lanes


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_drops_at_its_rate_wherever_a_number_stands(rate):
    torch.manual_seed(0)
    kept = Dropout(rate)(torch.ones(1000, 400)) != 0
    deviation = (rate * (1 - rate) / kept.numel()) ** 0.5
    assert kept.float().mean().item() == pytest.approx(1 - rate, abs=5 * deviation)
    for lane in range(4):  # four numbers share a word of the generator
        part = kept.flatten()[lane::4].double()
        assert part.mean().item() == pytest.approx(1 - rate, abs=10 * deviation)
        neighbour = kept.flatten()[(lane + 1) % 4 :: 4].double()
        covariance = ((part - part.mean()) * (neighbour - neighbour.mean())).mean().item()
        assert covariance == pytest.approx(0.0, abs=10 * rate * (1 - rate) / len(part) ** 0.5)


def test_lanes_take_all_values_evenly():
    torch.manual_seed(1)
    counts = torch.bincount(random_lanes(65536 * 64).long() + 32768, minlength=65536).double()
    assert len(counts) == 65536
    chi_square = ((counts - 64) ** 2 / 64).sum().item()
    assert chi_square == pytest.approx(65535, abs=6 * (2 * 65535) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kept_numbers_are_scaled_and_gradients_too(dtype):
    torch.manual_seed(2)
    dropout, hidden = Dropout(0.25), torch.randn(30, 20, 10, dtype=dtype).transpose(0, 1).requires_grad_()
    output = dropout(hidden)
    output.sum().backward()
    kept = output != 0
    assert output.dtype == dtype and 0.7 < kept.double().mean() < 0.8
    expected = torch.where(kept, hidden.detach() * torch.tensor(4 / 3, dtype=dtype), 0)
    torch.testing.assert_close(output.detach(), expected)
    torch.testing.assert_close(hidden.grad, torch.where(kept, 4 / 3, 0.0).to(dtype))


def test_chance_is_that_of_torch():
    dropout, hidden = Dropout(0.3), torch.ones(50, 50)
    torch.manual_seed(3)
    first, second = dropout(hidden), dropout(hidden)
    torch.manual_seed(3)
    assert torch.equal(dropout(hidden), first) and not torch.equal(first, second)
    layer = nn.Linear(50, 50)

    def dropped(part: torch.Tensor) -> torch.Tensor:
        return dropout(layer(part))

    gradients = []
    for run in (dropped, lambda part: checkpoint(dropped, part, use_reentrant=False)):
        torch.manual_seed(4)
        layer.zero_grad()
        run(hidden).square().sum().backward()
        gradients.append(layer.weight.grad.clone())
    torch.testing.assert_close(*gradients)  # a checkpointed layer draws the same mask again


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_all_or_nothing(rate):
    assert torch.equal(Dropout(rate)(torch.ones(3, 5)), torch.full((3, 5), 1 - rate))


def test_without_training_and_without_numbers():
    hidden = torch.randn(3, 5)
    assert Dropout(0.5).eval()(hidden) is hidden
    assert Dropout(0.5)(torch.empty(0, 5)).shape == (0, 5)


def test_dropouts_of_transformers_too():
    model = DicoForImageCaptioning(
        DicoCaptionerConfig(
            vocab_size=50, d_model=16, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
            decoder_ffn_dim=16, max_image_tokens=9, max_position_embeddings=8, features_only=True, feature_size=12,
        )
    )  # fmt: skip
    kinds = {type(module) for module in model.modules() if isinstance(module, nn.Dropout)}
    assert kinds == {Dropout}
    other = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.2), nn.AlphaDropout(0.2)))
    draw_masks_faster(other)
    assert isinstance(other[1][0], Dropout) and other[1][0].p == 0.2 and type(other[1][1]) is nn.AlphaDropout


def test_a_dropout_of_two_parents():
    shared = nn.Dropout(0.3)
    model = nn.Sequential(nn.Sequential(shared), nn.Sequential(shared))
    draw_masks_faster(model)
    assert [type(part[0]) for part in model] == [Dropout, Dropout]
