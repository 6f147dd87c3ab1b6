"""Logs of training by reward, against numbers by hand."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from contracts.reward_policies import TOKENIZER, arbitrary, tiny_policy
from contracts.reward_runs import Spy, logged, star
from PIL import Image

from hf_captioners import DiCOConfig, SCSTConfig
from hf_captioners.rewards import RepetitionReward


def log_probs_by_hand(model, rollout):
    """Log-probabilities and entropies of the candidates' tokens, (N, T - 1), from the model's logits."""
    sequences = rollout.candidates.sequences
    repeated = {name: value.repeat_interleave(3, dim=0) for name, value in rollout.image_inputs.items()}
    log_p = model(**repeated, decoder_input_ids=sequences[:, :-1]).logits.double().log_softmax(-1)
    chosen = log_p.gather(-1, sequences[:, 1:, None])[..., 0]
    return chosen * rollout.candidates.mask, -(log_p.exp() * log_p).sum(-1)


COMMON = [
    "loss", "grad_norm", "learning_rate", "epoch", "reward", "reward_std", "frac_reward_zero_std", "entropy",
    "rewards/arbitrary/mean", "rewards/arbitrary/std", "completions/mean_length", "completions/min_length",
    "completions/max_length", "completions/clipped_ratio", "completions/valid_ratio", "completions/unique_ratio",
    "completions/repetition", "num_tokens", "step",
]  # fmt: skip
OF_SCST = ["advantage_std", "baseline"]
OF_DICO = [
    "kl", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
    "logps/rejected", "reward_gap", "gamma_max",
]  # fmt: skip


class TestLogs:
    @pytest.mark.parametrize(
        ("config", "options", "keys"),
        [
            (SCSTConfig, {"baseline": "greedy"}, OF_SCST),
            (SCSTConfig, {"beta": 0.1}, [*OF_SCST[:1], "kl"]),
            (DiCOConfig, {}, OF_DICO),
        ],
    )
    def test_keys(self, trainer, rows, config, options, keys):
        run = trainer(config, evaluation=rows[:3], **options)
        run.train()
        assert all(set(entry) == {*COMMON, *keys} for entry in run.state.log_history if "loss" in entry)
        training_only = {"grad_norm", "learning_rate", "epoch", "num_tokens", "step"}
        found = {key for key in run.evaluate() if key.startswith("eval_")}
        found -= {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
        assert found == {f"eval_{key}" for key in {*COMMON, *keys} - training_only}
        assert all(math.isfinite(entry[key]) for entry in run.state.log_history for key in entry)

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_values(self, trainer, config):
        """Of two micro-batches of two pictures, from the candidates and the model's logits."""
        options = {"candidate_strategy": "sample", "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
        run = trainer(config, max_steps=1, **options)
        seen = Spy(run)
        run.train()
        log, model = run.state.log_history[0], tiny_policy("satic")
        with torch.no_grad():
            parts = [log_probs_by_hand(model, rollout) for rollout in seen.rollouts]
        entropies = [value[rollout.candidates.mask] for (_, value), rollout in zip(parts, seen.rollouts, strict=True)]
        assert log["entropy"] == pytest.approx(float(torch.cat(entropies).mean()), abs=1e-5)
        captions = [ids for rollout in seen.rollouts for ids in rollout.candidates.ids]
        ended = [ids[-1:] == [TOKENIZER.eos_token_id] for ids in captions]
        lengths = [len(ids) - end for ids, end in zip(captions, ended, strict=True)]
        assert log["completions/mean_length"] == pytest.approx(sum(lengths) / 12)
        assert (log["completions/min_length"], log["completions/max_length"]) == (min(lengths), max(lengths))
        assert log["completions/clipped_ratio"] == pytest.approx(1 - sum(ended) / 12)
        assert 0 < sum(ended) < 12
        texts = [text for rollout in seen.rollouts for text in rollout.candidates.texts]
        distinct = [len(set(texts[row : row + 3])) / 3 for row in range(0, 12, 3)]
        assert log["completions/unique_ratio"] == pytest.approx(sum(distinct) / 4)
        assert log["num_tokens"] == sum(map(len, captions))
        rewards = torch.tensor(arbitrary(captions)).view(4, 3)
        assert log["reward"] == log["rewards/arbitrary/mean"] == pytest.approx(float(rewards.mean()))
        assert log["reward_std"] == pytest.approx(float(rewards.std(dim=1, correction=0).mean()), abs=1e-6)
        assert log["rewards/arbitrary/std"] == pytest.approx(float(rewards.double().std(correction=0)), abs=1e-6)
        assert log["completions/valid_ratio"] == 1.0
        assert log["frac_reward_zero_std"] == float((rewards.std(dim=1) == 0).float().mean())
        if config is DiCOConfig:
            assert log["kl"] == pytest.approx(0.0, abs=1e-5)
            assert log["rewards/chosen"] == pytest.approx(0.0, abs=1e-5)
            assert log["loss"] == pytest.approx(math.log(2), abs=1e-5)
            scores = torch.cat([value.sum(1) for value, _ in parts]).view(4, 3)
            best = rewards.argmax(dim=1, keepdim=True)
            assert log["logps/chosen"] == pytest.approx(float(scores.gather(1, best).mean()), abs=1e-4)

    def test_equal_rewards(self, trainer):
        run = trainer(reward=lambda completions, **_: [2.3] * len(completions), max_steps=1)
        run.train()
        assert logged(run, "frac_reward_zero_std") == [1.0]
        assert logged(run, "reward_std") == [0.0]

    def test_are_means_over_the_steps_since_the_last_one(self, trainer):
        every, rare = (trainer(max_steps=4, logging_steps=steps) for steps in (1, 4))
        for run in (every, rare):
            run.train()
        for key in ("reward", "entropy", "completions/mean_length"):
            weight = [1] * 4
            if key == "entropy":  # a mean over tokens
                tokens = [0, *logged(every, "num_tokens")]
                weight = [b - a for a, b in itertools.pairwise(tokens)]
            mean = sum(w * x for w, x in zip(weight, logged(every, key), strict=True)) / sum(weight)
            assert logged(rare, key) == [pytest.approx(mean)]
        assert logged(rare, "num_tokens") == logged(every, "num_tokens")[-1:]

    def test_tokens_are_counted_on_after_resuming(self, trainer, tmp_path):
        options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
        whole, resumed = trainer(folder="whole", **options), trainer(folder="resumed", **options)
        whole.train()
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
        assert logged(whole, "num_tokens") == logged(resumed, "num_tokens")

    def test_completions(self, trainer, tmp_path, capsys):
        run = trainer(log_completions=True, num_completions_to_print=4, reward=[arbitrary, star], max_steps=1)
        seen = Spy(run)
        run.train()
        printed = capsys.readouterr()
        assert "step 1, 4 of 12 completions" in printed.err
        assert "advantage" in printed.err
        assert "completions" not in printed.out.replace("completions/", "")
        lines = (tmp_path / "run" / "completions" / "completions_00001.jsonl").read_text().splitlines()
        (rollout,), found = seen.rollouts, [json.loads(line) for line in lines]
        assert [one["completion"] for one in found] == rollout.candidates.texts
        assert [one["image_id"] for one in found][::3] == rollout.columns["image_id"]
        assert [one["advantage"] for one in found] == rollout.advantages.flatten().tolist()
        assert found[0]["rewards"].keys() == {"arbitrary", "star"}
        assert [one["reward"] for one in found] == rollout.rewards.flatten().tolist()

    @pytest.mark.parametrize("kind", ["path", "closed", "file_name", "open"])
    def test_completions_name_files(self, trainer, rows, tmp_path, capsys, kind):
        """By their path in the data, or else by that of the picture."""

        def named(row, number):
            others = {name: value for name, value in row.items() if name != "image"}
            if kind == "open":
                return {**others, "image": Image.open(row["image"]).convert("RGB")}
            image = {"path": row["image"], "bytes": None} if kind == "closed" else row["image"]
            return {**others, "image": image, **({"file_name": f"sub/{number}.png"} if kind == "file_name" else {})}

        train = [named(row, number) for number, row in enumerate(rows)]
        run = trainer(train=train, log_completions=True, num_completions_to_print=99, max_steps=1)
        run.train()
        text = (tmp_path / "run" / "completions" / "completions_00001.jsonl").read_text()
        found = [json.loads(line) for line in text.splitlines()]
        name = {"path": "{}.png", "closed": "{}.png", "file_name": "sub/{}.png", "open": None}[kind]
        assert [one.get("file_name") for one in found] == [name and name.format(one["image_id"]) for one in found]
        shown = (name or "{}").format(found[0]["image_id"])
        assert f"│ {shown} " in capsys.readouterr().err

    def test_repetition_is_counted_in_the_words_of_the_rewards(self, trainer):
        """Cut into single letters, captions repeat themselves more."""
        letters = RepetitionReward(n=2, tokenizer="builtins:list")
        logs = []
        for reward in (arbitrary, [arbitrary, letters]):
            run = trainer(reward=reward, reward_weights=None if reward is arbitrary else [1.0, 0.0], max_steps=1)
            seen = Spy(run)
            run.train()
            logs.append(logged(run, "completions/repetition")[0])
        (rollout,) = seen.rollouts
        assert logs[1] == pytest.approx(-sum(letters(rollout.candidates.texts)) / 12, abs=1e-6)
        assert logs[1] > logs[0]

    def test_no_completions_by_default(self, trainer, tmp_path, capsys):
        trainer(max_steps=1).train()
        assert "step 1" not in capsys.readouterr().err
        assert not (tmp_path / "run" / "completions").exists()
