"""What reward functions are called with, and what comes of what they return."""

from __future__ import annotations

import asyncio
import json

import pytest
import torch
from contracts.reward_policies import SIDE, TOKENIZER, arbitrary, changed, tiny_processor, weights
from contracts.reward_runs import Spy, logged, star

from hf_captioners import DiCOConfig, SCSTConfig
from hf_captioners.training.reward.functions import RewardError


class TestRewards:
    def test_what_they_are_called_with(self, trainer, rows):
        spy = Spy()
        run = trainer(reward=spy, train=[{**row, "source": f"s{row['image_id']}"} for row in rows], max_steps=1)
        seen = Spy(run)
        run.train()
        (call,), (rollout,) = spy.calls, seen.rollouts
        assert set(call) == {
            "prompts", "completions", "completion_ids", "captions", "image_id", "image", "images", "source",
            "pixel_values", "trainer_state", "log_extra", "log_metric",
        }  # fmt: skip
        assert call["prompts"] == [""] * 12
        assert call["completions"] == rollout.candidates.texts
        pictures = call["image_id"][::3]
        assert call["image_id"] == [one for one in pictures for _ in range(3)]
        assert call["captions"] == [rows[one]["captions"] for one in call["image_id"]]
        assert call["image"] == [rows[one]["image"] for one in call["image_id"]]
        assert [one.size for one in call["images"]] == [(SIDE, SIDE)] * 12
        assert call["source"] == [f"s{one}" for one in call["image_id"]]
        prepared = tiny_processor("satic")(images=[rows[one]["image"] for one in call["image_id"]])["pixel_values"]
        assert torch.equal(torch.stack(call["pixel_values"]), prepared)
        assert call["trainer_state"] is run.state
        for text, ids in zip(call["completions"], call["completion_ids"], strict=True):
            words = [one for one in ids if one != TOKENIZER.eos_token_id]
            assert " ".join(TOKENIZER.convert_ids_to_tokens(words)) == text
            assert TOKENIZER.eos_token_id not in ids[:-1]

    def test_several_with_weights(self, trainer):
        async def later(completions, **kwargs):
            await asyncio.sleep(0)
            return star(completions)

        from trl.rewards import get_soft_overlong_punishment

        long = get_soft_overlong_punishment(max_completion_len=7, soft_punish_cache=3)
        run = trainer(reward=[arbitrary, later, long, star], reward_weights=[1.0, 0.5, 2.0, -0.5], max_steps=1)
        seen = Spy(run)
        run.train()
        (rollout,) = seen.rollouts
        ids, log = rollout.candidates.ids, run.state.log_history[0]
        punished = [min(0.0, (4 - len(one)) / 3) for one in ids]
        assert min(punished) < 0
        expected = [one + 2 * two for one, two in zip(arbitrary(ids), punished, strict=True)]
        assert rollout.rewards.flatten().tolist() == pytest.approx(expected, abs=1e-6)
        assert log["reward"] == pytest.approx(sum(expected) / 12)
        assert log["rewards/later/mean"] == log["rewards/star/mean"]
        name = next(key for key in log if "verlong" in key and key.endswith("/mean"))
        assert log[name] == pytest.approx(sum(punished) / 12)

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_none_for_some(self, trainer, config):
        """The candidate takes no part: neither in the others' baseline nor as winner or loser, and not in the logs."""

        def choosy(completion_ids, **kwargs):
            values = arbitrary(completion_ids)
            return [None if row % 3 == 1 or row < 3 else 5.0 + value for row, value in enumerate(values)]

        run = trainer(config, reward=choosy, max_steps=1, candidate_strategy="sample")
        seen = Spy(run)
        run.train()
        (rollout,), log = seen.rollouts, run.state.log_history[0]
        values = [5.0 + one for one in arbitrary(rollout.candidates.ids)]
        pairs = [(values[row], values[row + 2]) for row in (3, 6, 9)]
        assert log["reward"] == pytest.approx(sum(map(sum, pairs)) / 6)
        assert log["completions/valid_ratio"] == 0.5
        assert log["reward_std"] == pytest.approx(sum(abs(a - b) / 2 for a, b in pairs) / 3)
        assert log["frac_reward_zero_std"] == pytest.approx(sum(a == b for a, b in pairs) / 3)
        if config is SCSTConfig:
            expected = [[0.0] * 3, *([a - b, 0.0, b - a] for a, b in pairs)]
            assert rollout.advantages.tolist() == [pytest.approx(one, abs=1e-5) for one in expected]
        else:
            expected = [[0.0] * 3, *([1.0, 0.0, -1.0] if a >= b else [-1.0, 0.0, 1.0] for a, b in pairs)]
            assert rollout.weights.abs().tolist() == [[abs(x) for x in one] for one in expected]
            assert log["reward_gap"] == pytest.approx(sum(abs(a - b) for a, b in pairs) / 3)

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    @pytest.mark.parametrize("baseline", ["greedy", "leave_one_out"])
    def test_none_for_all(self, trainer, config, baseline, caplog):
        options = {"baseline": baseline} if config is SCSTConfig else {}
        run = trainer(config, reward=lambda completions, **_: [None] * len(completions), weight_decay=0.0, **options)
        before = weights(run.model)
        run.train()
        assert changed(before, run.model) == set()
        assert logged(run, "loss") == [0.0, 0.0]
        assert "reward" not in run.state.log_history[0]
        assert caplog.text.count("counts (rewards: <lambda>): nothing is learned from it") == 1

    def test_a_reward_that_raises(self, trainer):
        def broken(completions, **kwargs):
            raise KeyError("no model")

        with pytest.raises(RewardError, match="the reward 'broken' failed: KeyError: 'no model'"):
            trainer(reward=broken).train()

    def test_log_metric_and_log_extra(self, trainer, tmp_path):
        def talkative(completions, log_extra, log_metric, **kwargs):
            log_extra("words", [len(caption.split()) for caption in completions])
            log_metric("vocabulary", len({word for caption in completions for word in caption.split()}))
            return star(completions)

        run = trainer(reward=talkative, log_completions=True, num_completions_to_print=0, max_steps=1)
        seen = Spy(run)
        run.train()
        texts = seen.rollouts[0].candidates.texts
        assert run.state.log_history[0]["vocabulary"] == len({word for one in texts for word in one.split()})
        lines = (tmp_path / "run" / "completions" / "completions_00001.jsonl").read_text().splitlines()
        assert [json.loads(line)["words"] for line in lines] == [len(one.split()) for one in texts]


class TestCollapse:
    def test_stops_a_run_without_signal(self, trainer, caplog):
        run = trainer(reward=lambda completions, **_: [1.0] * len(completions), max_steps=12, collapse_patience=3)
        run.train()
        assert run.state.global_step == 3
        (diagnosis,) = logged(run, "collapse")
        assert "nothing is left to learn from" in diagnosis
        assert diagnosis in caplog.text

    def test_of_patience_zero_goes_on(self, trainer):
        run = trainer(reward=lambda completions, **_: [1.0] * len(completions), max_steps=8, collapse_patience=0)
        run.train()
        assert run.state.global_step == 8
        assert not logged(run, "collapse")
