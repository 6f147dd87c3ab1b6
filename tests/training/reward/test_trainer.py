"""Training by reward, whichever the method: what must not depend on how it is run, rewards, logs, evaluation."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import os
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from contracts.hanging import HANGING_S
from contracts.reward_policies import (
    LORA_TARGETS,
    SIDE,
    TOKENIZER,
    arbitrary,
    assert_close,
    assert_same,
    changed,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_processor,
    tiny_rows,
    weights,
)
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import DiCOConfig, FeatureStore, ImageError, SCSTConfig, SCSTTrainer
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features
from hf_captioners.rewards import RepetitionReward
from hf_captioners.training.reward.forward_pass import call_through
from hf_captioners.training.reward.functions import RewardError

SAMPLE = {"candidate_strategy": "sample", "baseline": "leave_one_out"}
SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture()
def trainer(tmp_path, rows):
    def make(config=SCSTConfig, folder="run", train=rows, **options):
        options = {**SAMPLE, **options} if config is SCSTConfig else options
        return reward_trainer(config, tmp_path / folder, train, **options)

    return make


def lora(kind):
    torch.manual_seed(0)
    return LoraConfig(r=2, target_modules=LORA_TARGETS.get(kind), init_lora_weights=False, lora_dropout=0.1)


def logged(run, key):
    return [entry[key] for entry in run.state.log_history if key in entry]


METHODS = {
    "leave-one-out": (SCSTConfig, {}),
    "tokens": (SCSTConfig, {"normalize_tokens": True}),
    "normalized": (SCSTConfig, {"normalize_advantages": True, "baseline": "mean"}),
    "greedy": (SCSTConfig, {"baseline": "greedy", "candidate_strategy": "beam"}),
    "tied": (SCSTConfig, {"beta": 0.1}),
    "dico": (DiCOConfig, {"tau": 2.0}),
    "dico-sample": (DiCOConfig, {"tau": 2.0, "candidate_strategy": "sample", "mask_truncated_completions": True}),
}


class TestAccumulation:
    @pytest.mark.parametrize("method", METHODS)
    def test_is_exact(self, trainer, method):
        """Eight pictures at once, two or four at a time, or three, three and two."""
        config, options = METHODS[method]
        start, ends, losses = weights(tiny_policy("satic")), [], []
        for size, accumulation in ((8, 1), (4, 2), (3, 3)):
            run = trainer(
                config, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, max_steps=3,
                **{**options, **SGD},
            )  # fmt: skip
            run.train()
            ends.append(weights(run.model))
            losses.append(logged(run, "loss"))
            assert losses[-1] == pytest.approx(losses[0], abs=1e-5)
        assert_close(ends[0], ends[1], start)
        assert_close(ends[0], ends[2], start)

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_of_adapters_of_a_vision_encoder_decoder(self, trainer, config):
        kind, ends = "vision-encoder-decoder", []
        for size, accumulation in ((8, 1), (3, 3)):
            adapters = LoraConfig(r=2, target_modules=LORA_TARGETS[kind], init_lora_weights=False)
            torch.manual_seed(0)
            run = trainer(
                config, kind=kind, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
                peft_config=adapters, **SGD,
            )  # fmt: skip
            start = weights(run.model)
            run.train()
            ends.append(weights(run.model))
        assert_close(ends[0], ends[1], start)


RESUMED = {
    "sample": ("satic", SCSTConfig, {}),
    "greedy": ("expansionnet_v2", SCSTConfig, {"baseline": "greedy", "normalize_advantages": True}),
    "dropout-in-candidates": ("clip_gpt2", DiCOConfig, {"generate_with_dropout": True, "tau": 2.0}),
    "accumulated": ("dico", DiCOConfig, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    "diverse": ("satic", SCSTConfig, {"candidate_strategy": "diverse_beam", "train_backbone": "all", "beta": 0.1}),
    "adapters": ("clip_gpt2", SCSTConfig, {"adapters": "fresh"}),
    "adapters-dico": ("vision-encoder-decoder", DiCOConfig, {"adapters": "fresh", "candidate_strategy": "sample"}),
    "cached": ("vision-encoder-decoder", SCSTConfig, {"cache_image_features": True}),
    "persistent": (
        "expansionnet_v2",
        SCSTConfig,
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
    ),
    "older-adapters": ("satic", DiCOConfig, {"adapters": "older", "candidate_strategy": "sample"}),
    "average": ("scdnet", SCSTConfig, {"baseline": "greedy", "moving_average_decay": 0.8}),
}


class TestResume:
    @pytest.mark.parametrize("case", RESUMED)
    def test_is_bit_exact_in_the_middle_of_an_epoch(self, trainer, rows, case, tmp_path):
        kind, method, options = RESUMED[case]
        adapters = options.get("adapters")

        def make(folder):
            model = tiny_policy(kind, dropout=0.2)
            peft = lora(kind) if adapters == "fresh" else None
            if adapters == "older":
                model.freeze_backbone()
                config = LoraConfig(r=2, target_modules=model.LORA_TARGET_MODULES, init_lora_weights=False)
                torch.manual_seed(0)
                model = get_peft_model(model, config)
            return trainer(
                method, folder=folder, model=model, kind=kind, peft_config=peft, evaluation=rows[:3],
                **{
                    "max_steps": 5, "save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps",
                    "eval_steps": 3, **{name: value for name, value in options.items() if name != "adapters"},
                },
            )  # fmt: skip

        whole = make("whole")
        start = weights(whole.model)
        whole.train()
        torch.manual_seed(99)
        resumed = make("resumed")
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert_same(weights(whole.model), weights(resumed.model))
        assert changed(start, whole.model)
        assert logged(whole, "loss") == logged(resumed, "loss")
        logs = [[untimed(one) for one in run.state.log_history if one["step"] > 3][:-1] for run in (whole, resumed)]
        assert logs[0] == logs[1]
        assert len(logs[0]) >= 2


def untimed(entry):
    return {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}


TWO_PROCESSES = """
import json, sys
from pathlib import Path
import torch
from safetensors.torch import save_file
from contracts.reward_policies import quickly, reward_trainer, tiny_policy
from hf_captioners import DiCOConfig, SCSTConfig
from peft import LoraConfig

out, rows, runs = Path(sys.argv[1]), *map(json.loads, sys.argv[2:])
for name, (config, options) in runs.items():
    adapters = options.pop("adapters", False)
    torch.manual_seed(0)
    peft = LoraConfig(r=2, init_lora_weights=False) if adapters else None
    config = {"scst": SCSTConfig, "dico": DiCOConfig}[config]
    with quickly():
        run = reward_trainer(config, out / name, rows, evaluation=rows[:5], peft_config=peft, **options)
        run.train()
        assert run.args.world_size == 2
        metrics = run.evaluate()
    history = [entry for entry in run.state.log_history if "loss" in entry]
    save_file({k: v.contiguous() for k, v in run.model.state_dict().items()}, out / f"{name}{run.args.process_index}")
    (out / f"{name}{run.args.process_index}.json").write_text(json.dumps([history, metrics]))
run.accelerator.end_training()
"""


def test_two_processes_equal_one(trainer, rows, tmp_path):
    from safetensors.torch import load_file

    common = {**SGD, "max_steps": 4, "per_device_train_batch_size": 2, "per_device_eval_batch_size": 2}
    tied = {**SAMPLE, **common, "normalize_advantages": True, "beta": 0.1, "gradient_accumulation_steps": 2}
    runs = {
        "tokens": ("scst", {**SAMPLE, **common, "normalize_tokens": True, "normalize_advantages": True}),
        "tied": ("scst", {**tied, "train_backbone": "all"}),
        "dico": ("dico", {**common, "tau": 2.0, "num_iterations": 2, "gradient_accumulation_steps": 2}),
        "adapters": ("dico", {**common, "adapters": True, "candidate_strategy": "sample"}),
        "average": ("scst", {**SAMPLE, **common, "kind": "scdnet", "baseline": "greedy", "moving_average_decay": 0.5}),
    }
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]  # two, not one
    command += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0", "script.py"]
    result = subprocess.run(
        [*command, str(tmp_path), json.dumps(rows), json.dumps(runs)], cwd=tmp_path, capture_output=True, text=True,
        timeout=HANGING_S, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    for name, (config, options) in runs.items():
        torch.manual_seed(0)
        adapters = LoraConfig(r=2, init_lora_weights=False) if options.pop("adapters", False) else None
        options.update(per_device_train_batch_size=4, per_device_eval_batch_size=4)
        config = SCSTConfig if config == "scst" else DiCOConfig
        one = reward_trainer(config, tmp_path / "one", rows, evaluation=rows[:5], peft_config=adapters, **options)
        start = weights(one.model)
        one.train()
        metrics = one.evaluate()
        first, second = (load_file(tmp_path / f"{name}{rank}") for rank in range(2))
        assert_same(first, second)
        assert_close(weights(one.model), first, start)
        (history, found), others = (json.loads((tmp_path / f"{name}{rank}.json").read_text()) for rank in range(2))
        expected = [entry for entry in one.state.log_history if "loss" in entry]
        for key in expected[0].keys() - {"step", "epoch"}:
            assert [entry[key] for entry in history] == pytest.approx([entry[key] for entry in expected], abs=2e-4), key
        for key in (
            "eval_loss",
            "eval_reward",
            "eval_entropy",
            "eval_completions/max_length",
        ):  # the last rows are repeated
            assert found[key] == pytest.approx(metrics[key], abs=1e-4), key
        assert [entry["reward"] for entry in others[0]] == [entry["reward"] for entry in history]


class Spy:
    """Keeps what a trainer rolls out, and what a reward is called with."""

    def __init__(self, run=None):
        self.calls, self.rollouts = [], []
        if run is not None:
            roll_out = run.roll_out
            run.roll_out = lambda batch: self.rollouts.append(roll_out(batch)) or self.rollouts[-1]

    def __call__(self, **given):
        self.calls.append(given)
        return arbitrary(given["completion_ids"])


def star(completions, **kwargs):
    return [float(caption.count("s")) for caption in completions]


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
    def test_none_for_all(self, trainer, config, baseline):
        options = {"baseline": baseline} if config is SCSTConfig else {}
        run = trainer(config, reward=lambda completions, **_: [None] * len(completions), weight_decay=0.0, **options)
        before = weights(run.model)
        run.train()
        assert changed(before, run.model) == set()
        assert logged(run, "loss") == [0.0, 0.0]
        assert "reward" not in run.state.log_history[0]

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


@pytest.fixture(scope="module")
def clip_reward():
    """CLIP-S by a model of a few thousand parameters, of token ids."""
    from transformers import CLIPConfig, CLIPModel

    from hf_captioners.metrics.clip.clip_score import ClipScorer
    from hf_captioners.rewards import ClipReward

    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(TOKENIZER), "bos_token_id": TOKENIZER.bos_token_id}
    text |= {"eos_token_id": TOKENIZER.eos_token_id}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=4)
    scorer = ClipScorer(CLIPModel(config), image_processor=tiny_processor("satic").image_processor)
    return lambda **options: ClipReward(scorer, use_ids=True, **options)


class TestRows:
    def test_pictures_of_a_data_set_stay_closed(self, trainer, rows, clip_reward):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        runs = [trainer(train=train, reward=clip_reward(), evaluation=train) for train in (rows, dataset)]
        for run in runs:
            run.train()
        assert_same(*[weights(run.model) for run in runs])
        assert logged(runs[0], "reward") == logged(runs[1], "reward")
        assert runs[0].evaluate()["eval_reward"] == runs[1].evaluate()["eval_reward"]

    def test_pictures_in_the_file_of_a_data_set(self, trainer, rows, clip_reward):
        """Bytes without a path, as from parquet."""
        pictures = [{"path": None, "bytes": Path(row["image"]).read_bytes()} for row in rows]
        columns = {"image": pictures, **{name: [row[name] for row in rows] for name in ("image_id", "captions")}}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        spy = Spy()
        run = trainer(train=dataset, reward=[clip_reward(), spy])
        run.train()
        image, images = spy.calls[0]["image"], spy.calls[0]["images"]
        assert image.closed[0] == pictures[spy.calls[0]["image_id"][0]]
        with Image.open(rows[spy.calls[0]["image_id"][0]]["image"]) as picture:
            assert image[0].tobytes() == images[0].tobytes() == picture.convert("RGB").tobytes()
        plain = trainer(reward=[clip_reward(), arbitrary])
        plain.train()
        assert_same(weights(run.model), weights(plain.model))

    def test_the_captioners_own_pixels(self, trainer, clip_reward):
        """Prepared alike, they are the same pictures."""
        runs = [trainer(reward=clip_reward(use_pixel_values=own), max_steps=1) for own in (False, True)]
        for run in runs:
            run.train()
        assert logged(runs[0], "reward") == pytest.approx(logged(runs[1], "reward"), abs=1e-6)

    @pytest.mark.parametrize("keep_images", [False, True])
    def test_cached_features(self, trainer, rows, tmp_path, clip_reward, keep_images):
        model, processor = tiny_policy("satic"), tiny_processor("satic")
        with FeatureWriter(tmp_path / "features", dtype=torch.float32) as writer:
            for row in rows:
                pixels = processor(images=row["image"])["pixel_values"]
                writer.add(row["image_id"], model.extract_image_features(pixels)[0])
        columns = {name: [row[name] for row in rows] for name in ("image_id", "captions", "image")}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        cached = attach_features(dataset, FeatureStore(tmp_path / "features"), keep_images=keep_images)
        rewards = [arbitrary, clip_reward()] if keep_images else arbitrary
        runs = [trainer(train=train, evaluation=train, reward=rewards, **SGD) for train in (rows, cached)]
        for run in runs:
            run.train()
        assert_close(*[weights(run.model) for run in runs], weights(model))
        assert runs[0].evaluate()["eval_reward"] == pytest.approx(runs[1].evaluate()["eval_reward"], abs=1e-6)

    def test_features_of_different_lengths(self, trainer):
        """Padded ones, whatever stands beside them in a micro-batch."""
        torch.manual_seed(0)
        rows = [{"image_id": i, "image_features": torch.randn(2 + i % 4, 16), "captions": ["a"]} for i in range(8)]
        start, ends = weights(tiny_policy("satic")), []
        for size, accumulation in ((8, 1), (3, 3)):
            run = trainer(
                train=rows, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, **SGD
            )  # fmt: skip
            run.train()
            ends.append(weights(run.model))
        assert_close(*ends, start)

    def test_a_vision_encoder_decoder_refuses_features(self, trainer):
        rows = [{"image_id": 0, "image_features": torch.randn(2, 16), "captions": ["a"]}]
        with pytest.raises(ValueError, match="does not read image_attention_mask, image_features of a batch"):
            trainer(train=rows, kind="vision-encoder-decoder").train()

    def test_broken_pictures(self, trainer, rows, tmp_path, caplog):
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        train = [*rows[:7], {**rows[7], "image": str(tmp_path / "broken.jpg")}]
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            trainer(train=train).train()
        with caplog.at_level(logging.WARNING, logger="hf_captioners"):
            run = trainer(train=train, skip_broken_images=True)
            seen = Spy(run)
            run.train()
        assert sorted(len(one.rewards) for one in seen.rollouts) == [3, 4]
        assert "broken.jpg" in caplog.text
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            run.evaluate(train)

    def test_rows_without_names(self, trainer, rows):
        """Beams need none; what is drawn is drawn by the captions, or not at all."""
        bare = [{"image": row["image"]} for row in rows]
        trainer(DiCOConfig, train=bare).train()
        with pytest.raises(ValueError, match=r"rows need an image_id to draw captions by; these have only \['image'\]"):
            trainer(train=bare).train()
        trainer(train=[{**row, "captions": rows[i]["captions"]} for i, row in enumerate(bare)]).train()

    def test_captions_must_be_a_list(self, trainer, rows):
        with pytest.raises(ValueError, match=r"image_id 3 \(.*\): 'captions' must be a list of captions, not 'a star'"):
            trainer(train=[{**rows[3], "captions": "a star"}]).train()


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
            texts = tiny_processor(kind).batch_decode(written)
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
        calls = Calls(run.policy.backbone(run.model))
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
        calls = Calls(runs[1].policy.backbone(runs[1].model))
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
        learns = {name for name, one in run.policy.backbone(run.model).named_parameters() if one.requires_grad}
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


class TestErrors:
    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_no_processor(self, trainer, config):
        with pytest.raises(ValueError, match="Trainer: give the captioner's processor as processing_class"):
            trainer(config, processing_class=None)

    def test_no_options(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"max_completion_length \+ 1=30 is beyond"):  # SCSTConfig's default
            SCSTTrainer(tiny_policy("satic"), reward_funcs=star, processing_class=tiny_processor("satic"))

    def test_options_of_something_else(self, tmp_path):
        with pytest.raises(TypeError, match="SCSTTrainer: args must be a SCSTConfig, not a DiCOConfig"):
            args = DiCOConfig(output_dir=str(tmp_path), use_cpu=True)
            SCSTTrainer(tiny_policy("satic"), None, star, args, processing_class=tiny_processor("satic"))

    @pytest.mark.parametrize("name", ["reward_processing_classes", "compute_metrics"])
    def test_arguments_of_trl_that_have_no_use(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"{name}: "):
            args = SCSTConfig(output_dir=str(tmp_path), use_cpu=True)
            model, processor = tiny_policy("satic"), tiny_processor("satic")
            SCSTTrainer(model, None, star, args, processing_class=processor, **{name: star})

    def test_no_reward(self, trainer):
        with pytest.raises(ValueError, match="DiCOTrainer: give reward_funcs"):
            trainer(DiCOConfig, reward=None)

    def test_a_model_that_is_none(self, tmp_path):
        with pytest.raises(TypeError, match="a str cannot be trained here"):
            SCSTTrainer("satic", args=SCSTConfig(output_dir=str(tmp_path), use_cpu=True), processing_class=object())

    def test_a_reference_with_other_words(self, trainer):
        other = tiny_policy("satic")
        other.config.vocab_size += 1
        other = type(other)(other.config)
        with pytest.raises(ValueError, match=f"of {other.config.vocab_size} tokens, cannot score the captions"):
            trainer(DiCOConfig, ref_model=other)

    def test_adapters_beside_adapters(self, trainer):
        model = get_peft_model(tiny_policy("satic"), LoraConfig(target_modules=r".*linears\.0"))
        with pytest.raises(ValueError, match="has adapters already; leave peft_config out"):
            trainer(model=model, peft_config=LoraConfig(r=2))

    def test_adapters_that_from_pretrained_put_into_the_model(self, trainer):
        model = tiny_policy("satic")
        model.add_adapter(LoraConfig(target_modules=r".*linears\.0"))
        with pytest.raises(ValueError, match="is_trainable=True"):
            trainer(model=model)

    def test_nothing_learns(self, trainer):
        with pytest.raises(ValueError, match="no parameter of this SaticForImageCaptioning learns"):
            trainer(model=tiny_policy("satic").requires_grad_(False))

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_the_model_as_its_own_reference(self, trainer, config):
        model = tiny_policy("satic")
        with pytest.raises(ValueError, match="ref_model is the model itself"):
            trainer(config, model=model, ref_model=model)

    def test_another_kind_of_model(self, trainer):
        with pytest.raises(TypeError, match="a Linear cannot be trained here"):
            trainer(model=torch.nn.Linear(2, 2))

    def test_a_class_as_reward(self, trainer):
        with pytest.raises(TypeError, match="Spy is a class; give an object of it"):
            trainer(reward=Spy)

    def test_a_batch_of_broken_pictures_only(self, trainer, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        rows = [{"image_id": i, "image": str(tmp_path / "broken.jpg"), "captions": ["a"]} for i in range(4)]
        with pytest.raises(ImageError, match="none of the 4 pictures of a batch can be opened"):
            trainer(train=rows, skip_broken_images=True).train()


class Wrapper(torch.nn.Module):
    """Like DistributedDataParallel: knows when its own forward pass runs."""

    def __init__(self, module):
        super().__init__()
        self.module, self.passes = module, 0

    def forward(self, *args, **kwargs):
        self.passes += 1
        return self.module(*args, **kwargs)


class TestCallThrough:
    def test_goes_through_what_is_wrapped_around_and_leaves_no_trace(self):
        base = torch.nn.Linear(2, 3)
        wrapped, batch = Wrapper(base), torch.ones(1, 2)
        found = call_through(wrapped, base, lambda: base(batch) + 1)  # the function may use the model
        torch.testing.assert_close(found, base(batch) + 1)
        assert wrapped.passes == 1
        assert "forward" not in vars(base)

    def test_keeps_another_patch(self):
        base = torch.nn.Linear(2, 3)
        base.forward = lambda x: torch.zeros(1)  # as accelerate does for autocast
        patch = base.forward
        assert call_through(Wrapper(base), base, lambda: float(base(torch.ones(2)))) == 0.0
        assert base.forward is patch

    def test_cleans_up_after_an_error(self):
        base = torch.nn.Linear(2, 3)
        with pytest.raises(ZeroDivisionError):
            call_through(Wrapper(base), base, lambda: 1 / 0)
        assert "forward" not in vars(base)

    def test_without_a_wrapper(self):
        base = torch.nn.Linear(2, 3)
        assert call_through(base, base, lambda: 7) == 7
