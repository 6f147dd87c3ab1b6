"""Evaluation and files of training by reward."""

from __future__ import annotations

import pytest
import torch
from contracts.reward_policies import assert_same, changed, tiny_policy, weights
from contracts.reward_runs import Spy, logged, lora, untimed
from peft import PeftModel
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import DiCOConfig, SCSTConfig


class TestEvaluation:
    def test_of_captions_and_of_candidates(self, trainer, rows):
        for config in (SCSTConfig, DiCOConfig):
            run = trainer(config, evaluation=rows[:5], eval_with_generation=True, per_device_eval_batch_size=2)
            scores = run.evaluate()
            assert {"eval_reward", "eval_loss", "eval_cider_d", "eval_completions/mean_length"} <= scores.keys()
            assert scores["eval_cider_d"] == run.compute_caption_metrics(
                run.generate_captions(rows[:5]), [row["captions"] for row in rows[:5]]
            )["cider_d"]  # fmt: skip

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_is_the_same_again_and_leaves_the_training_as_it_was(self, trainer, rows, config):
        options = {"evaluation": rows[:5], "candidate_strategy": "sample", "max_steps": 4, "train_backbone": "all"}
        plain, watched = (
            trainer(config, eval_strategy="steps" if on else "no", eval_steps=1, **options) for on in (0, 1)
        )
        first = watched.evaluate()
        untouched = weights(watched.model)
        again = watched.evaluate()
        assert untimed(first) == untimed(again)
        assert changed(untouched, watched.model) == set()
        assert watched.data_collator.training
        for run in (plain, watched):
            run.train()
        assert_same(weights(plain.model), weights(watched.model))
        assert logged(plain, "reward") == logged(watched, "reward")
        assert logged(plain, "completions/mean_length") == logged(watched, "completions/mean_length")
        assert len(logged(watched, "eval_reward")) == 4

    def test_reward_of_evaluation_is_a_mean_over_all_candidates(self, trainer, rows):
        run = trainer(evaluation=rows[:5], per_device_eval_batch_size=2)
        seen = Spy(run)
        scores = run.evaluate()
        rewards = torch.cat([one.rewards.flatten() for one in seen.rollouts])
        assert len(rewards) == 15
        assert scores["eval_reward"] == pytest.approx(float(rewards.mean()))

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_does_not_depend_on_the_batches(self, trainer, rows, config):
        options = {"normalize_advantages": True, "normalize_tokens": True} if config is SCSTConfig else {"tau": 2.0}
        whole, parts = (
            trainer(config, evaluation=rows[:5], per_device_eval_batch_size=size, **options).evaluate()
            for size in (5, 2)
        )
        for key in ("eval_loss", "eval_reward", "eval_entropy", "eval_completions/mean_length"):
            assert parts[key] == pytest.approx(whole[key], abs=1e-5), key

    def test_a_best_metric_that_there_will_not_be(self, trainer, rows):
        options = {"evaluation": rows[:3], "eval_strategy": "steps", "save_strategy": "steps"}
        run = trainer(metric_for_best_model="rewards/arbitrari/mean", **options)
        with pytest.raises(ValueError, match=r"evaluation has .*, reward, reward_std, rewards/arbitrary/mean, "):
            run.train()
        trainer(metric_for_best_model="rewards/arbitrary/mean", **options).check_best_metric()

    def test_keeps_the_best_model_by_reward(self, trainer, rows, tmp_path):
        run = trainer(
            evaluation=rows[:5], max_steps=4, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
            metric_for_best_model="reward", load_best_model_at_end=True, learning_rate=0.05,
        )  # fmt: skip
        run.train()
        rewards = logged(run, "eval_reward")
        best = rewards.index(max(rewards)) + 1
        assert run.args.greater_is_better
        assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
        kept = AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / f"checkpoint-{best}")
        assert_same(weights(run.model), weights(kept))


class TestFiles:
    def test_a_saved_model_is_a_captioner(self, trainer, tmp_path, rows):
        run = trainer(DiCOConfig)
        run.train()
        run.save_model()
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "run")
        processor = AutoProcessor.from_pretrained(tmp_path / "run")
        assert_same(weights(run.model), weights(model))
        written = model.generate(**processor(images=[row["image"] for row in rows]), num_beams=3, max_length=8)
        assert processor.batch_decode(written) == run.generate_captions(rows)
        assert "forward" not in vars(run.model)

    def test_adapters_are_saved_alone(self, trainer, tmp_path):
        run = trainer(DiCOConfig, kind="clip_gpt2", peft_config=lora("clip_gpt2"))
        run.train()
        run.save_model()
        assert not (tmp_path / "run" / "model.safetensors").exists()
        loaded = PeftModel.from_pretrained(tiny_policy("clip_gpt2"), tmp_path / "run")
        expected = {name: value for name, value in weights(run.model).items() if "lora_" in name}
        assert expected
        for name, value in expected.items():
            assert torch.equal(weights(loaded)[name], value)
