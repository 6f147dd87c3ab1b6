"""The backbone in training by reward, precision and memory."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from contracts.reward_policies import assert_close, assert_same, changed, tiny_policy, weights
from contracts.reward_runs import SGD, logged, lora

from hf_captioners import DiCOConfig, SCSTConfig


class Calls:
    """Counts the pictures that go through a backbone."""

    def __init__(self, backbone):
        self.sizes = []
        backbone.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        self.sizes.append(len(args[0] if args else kwargs["pixel_values"]))


class TestBackbone:
    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    @pytest.mark.parametrize("kind", ["satic", "dico", "vision-encoder-decoder"])
    def test_sees_a_picture_once_a_step(self, trainer, config, kind):
        """For candidates, greedy captions, policy and reference."""
        options = {"baseline": "greedy", "beta": 0.1} if config is SCSTConfig else {}
        run = trainer(config, kind=kind, **options)
        calls = Calls(run.family.backbone(run.model))
        run.train()
        assert calls.sizes == [4, 4]

    def test_of_another_model_as_reference_sees_it_too(self, trainer):
        run = trainer(DiCOConfig, ref_model=tiny_policy("satic", seed=1), max_steps=1)
        calls = [Calls(model.backbone) for model in (run.model, run.reference.model)]
        run.train()
        assert [one.sizes for one in calls] == [[4], [4]]
        assert abs(logged(run, "kl")[0]) > 0.1

    @pytest.mark.parametrize("kind", ["satic", "vision-encoder-decoder"])
    def test_cache(self, trainer, rows, kind):
        """A picture once in the run; equal results; another picture of the same name is another picture."""
        runs = [trainer(kind=kind, max_steps=6, cache_image_features=cached) for cached in (False, True)]
        calls = Calls(runs[1].family.backbone(runs[1].model))
        for run in runs:
            run.train()
        assert sum(calls.sizes) == 8
        assert_same(*[weights(run.model) for run in runs])
        renamed = [{**row, "image_id": other["image_id"]} for row, other in itertools.pairwise(rows)]
        first, second = (run.evaluate(renamed)["eval_reward"] for run in runs)
        assert first == second
        assert sum(calls.sizes) == 8

    @pytest.mark.parametrize("kind", ["satic", "vision-encoder-decoder"])
    @pytest.mark.parametrize("trained", ["all", "layer"])
    def test_may_learn(self, trainer, kind, trained):
        run = trainer(DiCOConfig, kind=kind, train_backbone=trained)
        before, reference = weights(run.model), weights(run.reference.model)
        assert not run.reference.shares_backbone(run.model)
        run.train()
        learns = {name for name, one in run.family.backbone(run.model).named_parameters() if one.requires_grad}
        prefix = "encoder." if kind == "vision-encoder-decoder" else "backbone."
        moved = {name.removeprefix(prefix) for name in changed(before, run.model) if name.startswith(prefix)}
        assert moved
        assert moved <= learns
        assert (trained == "all") == ("embeddings.cls_token" in moved)
        assert changed(reference, run.reference.model) == set()

    def test_accumulation_while_it_learns(self, trainer):
        start, ends = weights(tiny_policy("satic")), []
        for size, accumulation in ((8, 1), (3, 3)):
            run = trainer(
                DiCOConfig, train_backbone="all", per_device_train_batch_size=size, tau=2.0,
                gradient_accumulation_steps=accumulation, **SGD,
            )  # fmt: skip
            run.train()
            ends.append(weights(run.model))
        assert_close(*ends, start)


class TestPrecisionAndMemory:
    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_bfloat16(self, trainer, rows, config):
        run = trainer(config, bf16=True, evaluation=rows[:3], max_steps=3, cache_image_features=True)
        before = weights(run.model)
        run.train()
        assert all(math.isfinite(value) for value in [*logged(run, "loss"), *logged(run, "grad_norm")])
        assert changed(before, run.model)
        assert all(one.dtype == torch.float32 for one in run.model.parameters())
        assert math.isfinite(run.evaluate()["eval_loss"])

    @pytest.mark.parametrize("kind", ["satic", "clip_gpt2", "expansionnet_v2", "dico", "vision-encoder-decoder"])
    def test_activation_checkpointing(self, trainer, kind):
        runs = [
            trainer(DiCOConfig, kind=kind, activation_checkpointing=on, generate_with_dropout=True, max_grad_norm=0.0)
            for on in (False, True)
        ]
        start = weights(runs[0].model)
        for run in runs:
            run.train()
        assert_close(weights(runs[0].model), weights(runs[1].model), start)

    def test_no_copy_without_need(self, trainer):
        assert trainer(SCSTConfig, beta=0.0).reference is None
        assert trainer(DiCOConfig, peft_config=lora("satic"), kind="satic").reference.model is None
        tied = trainer(SCSTConfig, beta=0.1)
        assert tied.reference.model.backbone is tied.model.backbone
