"""Candidates and dropout in training by reward."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.reward_policies import arbitrary, assert_same, changed, tiny_policy, tiny_processor, weights
from contracts.reward_runs import Spy, logged
from peft import LoraConfig

from hf_captioners import DiCOConfig, SCSTConfig


class TestCandidates:
    def test_truncated_ones_can_be_left_out(self, trainer):
        run = trainer(mask_truncated_completions=True, max_steps=1)
        seen = Spy(run)
        run.train()
        (rollout,), log = seen.rollouts, run.state.log_history[0]
        finished = rollout.candidates.finished
        assert 0 < int(finished.sum()) < 12
        assert torch.equal(rollout.valid.flatten(), finished)
        assert (rollout.advantages.flatten()[~finished] == 0).all()
        assert log["completions/clipped_ratio"] == pytest.approx(float((~finished).float().mean()))
        rewards = torch.tensor(arbitrary(rollout.candidates.ids))
        assert log["reward"] == pytest.approx(float(rewards[finished].mean()))

    @pytest.mark.parametrize("strategy", ["beam", "sample", "diverse_beam"])
    @pytest.mark.parametrize("kind", ["satic", "vision-encoder-decoder"])
    def test_strategies(self, trainer, strategy, kind):
        run = trainer(DiCOConfig, kind=kind, candidate_strategy=strategy, num_generations=4, max_steps=1)
        seen = Spy(run)
        run.train()
        (rollout,) = seen.rollouts
        assert rollout.candidates.sequences.shape[0] == 16
        assert rollout.candidates.sequences.shape[1] <= 8
        if strategy == "beam":
            model = tiny_policy(kind)
            pixels = tiny_processor(kind)(
                images=[row["image"] for row in run.train_dataset if row["image_id"] in rollout.columns["image_id"]]
            )["pixel_values"]
            order = sorted(rollout.columns["image_id"])
            written = model.generate(pixel_values=pixels, num_beams=4, num_return_sequences=4, max_length=8)
            reader = tiny_processor(kind)
            if kind == "vision-encoder-decoder":  # as transformers documents it
                reader = reader.tokenizer
            texts = reader.batch_decode(written, skip_special_tokens=True)
            expected = [texts[4 * order.index(name) + i] for name in rollout.columns["image_id"] for i in range(4)]
            assert rollout.candidates.texts == [text.strip() for text in expected]

    def test_samples_change_from_step_to_step_and_with_the_seed(self, trainer):
        texts = []
        for seed in (1, 1, 2):
            run = trainer(max_steps=2, per_device_train_batch_size=8, learning_rate=0.0, seed=seed, data_seed=1)
            seen = Spy(run)
            run.train()
            by_name = [
                {name: one.candidates.texts[3 * row : 3 * row + 3] for row, name in enumerate(one.columns["image_id"])}
                for one in seen.rollouts
            ]
            texts.append(by_name)
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]
        assert texts[0][0] != texts[0][1]

    def test_candidates_with_dropout(self, trainer):
        texts = []
        for dropout, switched_on in ((0.0, False), (0.5, False), (0.5, True)):
            run = trainer(
                DiCOConfig, model=tiny_policy("satic", dropout), generate_with_dropout=switched_on, max_steps=1
            )
            seen = Spy(run)
            run.train()
            texts.append(seen.rollouts[0].candidates.texts)
        assert texts[0] == texts[1]
        assert texts[0] != texts[2]

    def test_too_long_ones(self, trainer):
        message = r"max_completion_length \+ 1=13 is beyond the model's max_position_embeddings=12"
        with pytest.raises(ValueError, match=message):
            trainer(max_completion_length=12)
        with pytest.raises(ValueError, match=r"max_completion_length \+ 1=18 is beyond the decoder's 16 positions"):
            trainer(kind="vision-encoder-decoder", max_completion_length=17)


class TestDropout:
    def test_the_policy_learns_with_it(self, trainer):
        run = trainer(DiCOConfig, model=tiny_policy("satic", 0.5), max_steps=1)
        run.train()
        assert logged(run, "loss")[0] != pytest.approx(math.log(2), abs=1e-3)  # without: policy and reference agree

    @pytest.mark.parametrize("adapters", [False, True])
    @pytest.mark.parametrize(("config", "options"), [(DiCOConfig, {}), (SCSTConfig, {"beta": 0.1})])
    def test_is_not_in_the_logged_kl(self, trainer, config, options, adapters):
        """The first step's is 0: the reference is the policy, whose dropout is switched off for it."""
        peft = LoraConfig(r=2, lora_dropout=0.5) if adapters else None
        run = trainer(config, model=tiny_policy("satic", 0.5), max_steps=2, peft_config=peft, **options)
        run.train()
        first, second = logged(run, "kl")
        assert first == pytest.approx(0.0, abs=1e-5)
        assert abs(second) > 1e-4
        assert run.model.training

    def test_the_logged_kl_of_repeated_candidates_is_that_of_the_present_policy(self, trainer):
        run = trainer(DiCOConfig, model=tiny_policy("satic", 0.5), max_steps=2, num_iterations=2)
        run.train()
        first, second = logged(run, "kl")
        assert first == pytest.approx(0.0, abs=1e-5)
        assert abs(second) > 1e-4

    def test_learning_in_bfloat16_keeps_its_gradients(self, trainer):
        """Autocast keeps the weights that it has cast, with their gradient."""
        run = trainer(DiCOConfig, model=tiny_policy("satic", 0.5), max_steps=1, bf16=True)
        before = weights(run.model)
        run.train()
        learns = {name for name, one in run.model.named_parameters() if one.requires_grad}
        assert len(changed(before, run.model)) > 0.8 * len(learns)

    def test_can_be_switched_off(self, trainer):
        """Then dropout in the configuration changes nothing."""
        runs = [
            trainer(DiCOConfig, model=tiny_policy("satic", rate), disable_dropout=off)
            for rate, off in ((0.0, False), (0.5, True))
        ]
        for run in runs:
            run.train()
        assert_same(*[weights(run.model) for run in runs])
        assert runs[1].model.training
