"""A loss or a gradient that is no number stops a training before it spoils the weights."""

from __future__ import annotations

import pytest
import torch
from contracts.reward_policies import (
    assert_same,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_processor,
    tiny_rows,
    weights,
)

from hf_captioners import DiCOConfig, SCSTConfig, XEConfig, XETrainer


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture()
def trainer(tmp_path):
    def make(config, rows, **options):
        if config is not XEConfig:
            return reward_trainer(config, tmp_path / "run", rows, **options)
        args = XEConfig(
            output_dir=str(tmp_path / "run"), report_to="none", use_cpu=True, save_strategy="no",
            **{"max_steps": 4, "per_device_train_batch_size": 4, **options},
        )  # fmt: skip
        return XETrainer(tiny_policy("satic"), args, rows, processing_class=tiny_processor("satic"))

    return make


@pytest.mark.parametrize("config", [XEConfig, SCSTConfig, DiCOConfig])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_features_too_large(trainer, config, accumulation):
    """They are refused, by their row, before they are computed with, and no weight has moved."""
    rows = [
        {"image_id": index, "image_features": torch.full((3, 16), 1e38 if index == 6 else 0.1), "captions": ["a star"]}
        for index in range(8)
    ]
    run = trainer(
        config, rows, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation, learning_rate=0.0,
        weight_decay=0.0, num_train_epochs=1, max_steps=-1,
    )  # fmt: skip
    before = weights(run.model)
    with pytest.raises(ValueError, match=r"image_id 6: image_features contains 1e\+38"):
        run.train()
    assert_same(weights(run.model), before)


def test_a_rate_too_high(trainer, tmp_path):
    run = trainer(XEConfig, tiny_rows(tmp_path), learning_rate=1e30, optim="sgd", lr_scheduler_type="constant")
    with pytest.raises(FloatingPointError, match=r"(?s)step 2: .*or lower learning_rate=1e\+30"):
        run.train()
    assert run.state.global_step == 1
    assert all(value.isfinite().all() for value in weights(run.model).values())


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_gradient(trainer, tmp_path, max_grad_norm):
    """The loss is a number; clipping an infinite gradient makes it 0 or none."""
    run = trainer(XEConfig, tiny_rows(tmp_path), max_grad_norm=max_grad_norm)
    parameter = next(one for one in run.model.parameters() if one.requires_grad)
    parameter.register_hook(lambda gradient: gradient.index_fill(0, torch.tensor([0]), torch.inf))
    before = weights(run.model)
    with pytest.raises(FloatingPointError, match=r"step 1: a gradient is (nan|inf), .*image_id \d \(.*\.png\)"):
        run.train()
    assert_same(weights(run.model), before)
