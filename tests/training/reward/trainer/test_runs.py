"""Training by reward does not depend on how it is run: accumulated, resumed, on two processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from contracts.hanging import HANGING_S
from contracts.reward_policies import (
    LORA_TARGETS,
    assert_close,
    assert_same,
    changed,
    reward_trainer,
    tiny_policy,
    weights,
)
from contracts.reward_runs import SAMPLE, SGD, logged, lora, untimed
from peft import LoraConfig, get_peft_model

from hf_captioners import DiCOConfig, SCSTConfig

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
