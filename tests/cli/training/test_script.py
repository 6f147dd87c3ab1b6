"""Last lines of a training: a mistake, a full disk or Ctrl-C is one line; an error of the program is itself."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
from contracts.hanging import HANGING_S
from contracts.training_commands import NEW, REWARDED, VISION, XE, tiny_world, train, write_recipe
from transformers import SwinConfig, SwinModel, ViTImageProcessor

from hf_captioners.training.reward.functions import RewardError

REWARDS = """
import os, signal
calls = []

class Kind:
    pass

def wrong(completions, **kwargs):
    raise KeyError("mine")

def interrupting(completions, trainer_state, **kwargs):
    if trainer_state.global_step == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return [float(len(one)) for one in completions]

def interrupting_the_launcher(completions, trainer_state, **kwargs):
    if trainer_state.global_step == 2 and os.environ["RANK"] == "0":
        os.kill(os.getppid(), signal.SIGINT)
        signal.pause()
    return [float(len(one)) for one in completions]
"""
SAVED = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def captioner(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    assert train("xe", folder, **data, **XE, max_steps=1) == 0
    return str(folder / "xe")


@pytest.fixture()
def own_rewards(tmp_path, monkeypatch):
    """A module of reward functions that Python finds."""
    (tmp_path / "rewards_of_the_test.py").write_text(REWARDS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("rewards_of_the_test", None)
    return "rewards_of_the_test"


def line_of(capsys):
    """The last line on stderr, of a command that printed no traceback."""
    err = capsys.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


class TestMistakes:
    @pytest.mark.parametrize(
        "words", [["--backbone", "no/such"], ["--tokenizer=words"], ["--new-captioner", '{"d_model": 8}']]
    )
    def test_what_is_of_a_new_captioner_beside_a_saved_one(self, data, captioner, tmp_path, capsys, words):
        recipe = {**data, "model_type": "satic", "model": captioner}
        name = words[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
        assert train("xe", tmp_path, *words, **recipe) == 2
        assert f"{name} is of a new captioner, and that of --model {captioner} has its own: leave " in line_of(capsys)
        assert train("xe", tmp_path, **recipe, new_captioner=NEW) == 0  # that the recipe also makes one by

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"backbone": "/no/such/backbone"}, "backbone='/no/such/backbone': there is no such file or folder"),
            ({"backbone": "{empty}"}, "backbone='{empty}': the folder has no preprocessor_config.json"),
            ({"model": "{empty}"}, "--model {empty}: the folder has no configuration (config.json)"),
            ({"model": "{backbone}"}, "--model {backbone}: is a swin, which is no captioner"),
            ({"model": "{captioner}", "model_type": "dico"}, "is a satic, and the options are those of a dico"),
            ({"model": "{captioner}", "model_options": {"d_model": 32}}, "weights of {captioner} are of other sizes"),
            ({"new_captioner": {**NEW, "num_attention_heads": 3}}, "num_attention_heads=3 must divide d_model=16"),
            ({"new_captioner": {**NEW, "d_model": "wide"}}, "--new_captioner: Field 'd_model' expected int, got str"),
            (
                {"new_captioner": {**NEW, "vision_config": {**VISION, "num_heads": [3]}}},
                "--new_captioner vision_config: no picture of 32 x 32 pixels goes through this swin",
            ),
            ({"new_captioner": {**NEW, "vision_config": "swin"}}, "vision_config must be names and their values"),
            ({"train_backbone": "("}, "'(' of the backbone: neither none, all nor an expression"),
            ({"max_steps": [1, 2]}, "max_steps: expected a whole number, not [1, 2]"),
            ({"max_steps": 2.5}, "max_steps: expected a whole number, not 2.5"),
            ({"model_type": {"a": 1}}, "model_type: expected a text, not {'a': 1}"),
            (
                {"new_captioner": {**NEW, "vision_config": {**VISION, "model_type": "swim"}}},
                "model_type must be that of a vision model of transformers, not 'swim'; do you mean swin or swinv2?",
            ),
            ({"lr_scheduler_kwargs": {"warmup": 1}}, "lr_scheduler_type=linear has no 'warmup'"),
            ({"lr_scheduler_kwargs": "warmup"}, "lr_scheduler_kwargs='warmup': expected names and their values as"),
            ({"optim_args": "beta1"}, "optim_args='beta1': expected names and values"),
            ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, not 0"),
            ({"learning_rate": math.nan}, "learning_rate must be 0 or more, not nan"),
            (
                {"metric_for_best_model": "cidre", "eval_strategy": "steps", "eval_with_generation": True},
                "metric_for_best_model='cidre': evaluation has bleu_1, bleu_2, bleu_3, bleu_4, caption_words, cider_d, "
                "loss, rouge_l.",
            ),
            ({"learning_rate": 1e30, "max_steps": 9}, "before the optimizer's step, of the rows image_id"),
            ({"report_to": "wandb"}, "--report_to wandb: "),
        ],
    )  # fmt: skip
    def test_are_one_line(self, data, captioner, tmp_path, capsys, options, message):
        if options.get("report_to") == "wandb":
            pytest.importorskip("transformers").utils.import_utils.is_wandb_available = lambda: False
        folders = {"empty": tmp_path / "empty", "backbone": tmp_path / "backbone", "captioner": captioner}
        folders["empty"].mkdir()
        SwinModel(SwinConfig(**VISION)).save_pretrained(folders["backbone"])
        ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folders["backbone"])

        def filled(value):
            return re.sub(r"{(\w+)}", lambda one: str(folders[one[1]]), value) if isinstance(value, str) else value

        options = {name: filled(value) for name, value in options.items()}
        own = {} if "model" in options else XE
        if "backbone" in options:
            own = {**XE, "new_captioner": {}}
        assert train("xe", tmp_path, **{**data, **own, **options}) == 2
        line = line_of(capsys)
        assert line.startswith("hf-captioners train: error: ") and filled(message) in line
        assert "huggingface.co" not in line

    def test_in_a_line_of_metadata(self, tmp_path, capsys):
        path = tmp_path / "images" / "train" / "metadata.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text('{"file_name": "a.png", "captions": ["a"]}\n{"file_name": \n')
        assert train("xe", tmp_path, data_dir=str(tmp_path / "images"), **XE) == 2
        assert f"{path}: line 2: not JSON: " in line_of(capsys)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                "output_dir: x\n\tmax_steps: 2\n",
                ", line 2, column 1: found character '\\t' that cannot start any token",
            ),
            ("new_captioner: {a: 1\nmax_steps: 2\n", ", line 2, column 10: expected ',' or '}', but got ':'"),
            ("output_dir: a: b\n", ", line 1, column 14: mapping values are not allowed here"),
            ("- a\n- b\n", ": must be lines of `option: value`"),
            ("\0", ": no YAML: unacceptable character #x0000"),
            ("max_stepz: 2\n", ": max_stepz is no option of hf-captioners train xe; do you mean max_steps"),
        ],
    )
    def test_of_yaml(self, tmp_path, capsys, text, message):
        from hf_captioners.cli.main import main

        (tmp_path / "recipe.yaml").write_text(text)
        assert main(["train", "xe", "--config", str(tmp_path / "recipe.yaml")]) == 2
        assert f"--config {tmp_path / 'recipe.yaml'}{message}" in line_of(capsys)

    def test_in_the_folder_of_another_training(self, data, tmp_path, capsys):
        (tmp_path / "xe").mkdir()
        (tmp_path / "xe" / "trainer_state.json").write_text("{}")
        assert train("xe", tmp_path, **data, **XE) == 2
        assert "xe has a training: trainer_state.json. Go on with it by resume_from_checkpoint=true" in line_of(capsys)

    def test_show_their_traceback_if_it_is_asked_for(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setenv("HF_CAPTIONERS_TRACEBACK", "1")
        assert train("xe", tmp_path) == 2
        err = capsys.readouterr().err
        assert err.startswith("Traceback (most recent call last)") and "in captioner_class" in err
        assert err.splitlines()[-1].startswith("hf-captioners train: error: --model_type: expected one of")

    def test_a_class_in_the_place_of_a_reward(self, data, captioner, own_rewards, tmp_path, capsys):
        options = {**data, **REWARDED, "model": captioner, "rewards": f"{own_rewards}:Kind"}
        assert train("scst", tmp_path, **options) == 2
        assert f"--rewards {own_rewards}:Kind: Kind is no function" in line_of(capsys)

    def test_an_error_of_a_reward_keeps_its_traceback(self, data, captioner, own_rewards, tmp_path):
        with pytest.raises(RewardError, match="the reward 'wrong' failed: KeyError: 'mine'"):
            train("scst", tmp_path, **data, **REWARDED, model=captioner, rewards=f"{own_rewards}:wrong")


class TestInterrupted:
    """Ctrl-C: status 130, and a line that says what is saved and how to go on."""

    def test_in_training(self, data, captioner, own_rewards, tmp_path, capsys):
        options = {**data, **REWARDED, **SAVED, "model": captioner, "rewards": f"{own_rewards}:interrupting"}
        assert train("scst", tmp_path, **options) == 130
        saved = tmp_path / "scst" / "checkpoint-2"
        expected = f"stopped at step 2: {saved} is saved; go on there with --resume_from_checkpoint true"
        assert line_of(capsys) == f"hf-captioners train scst: {expected}"
        options["rewards"] = "repetition"
        assert train("scst", tmp_path, "--resume_from_checkpoint", "true", **options) == 0
        history = json.loads((tmp_path / "scst" / "trainer_state.json").read_text())
        assert history["global_step"] == 4

    def test_without_a_checkpoint(self, data, captioner, own_rewards, tmp_path, capsys):
        options = {**data, **REWARDED, "max_steps": 4, "model": captioner, "rewards": f"{own_rewards}:interrupting"}
        assert train("scst", tmp_path, **options) == 130
        assert line_of(capsys).endswith(
            "stopped at step 2: no checkpoint has been saved (save_strategy, save_steps)"
        )  # fmt: skip

    def test_before_the_first_step(self, data, tmp_path, capsys, monkeypatch):
        def press(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr("hf_captioners.cli.training.script.load_rows", press)
        assert train("xe", tmp_path, **data, **XE) == 130
        assert line_of(capsys) == "hf-captioners train xe: stopped before the first step; nothing has been saved"

    @pytest.mark.slow
    @pytest.mark.parametrize("launcher", ["torch.distributed.run", "accelerate.commands.launch"])
    def test_of_two_processes(self, data, captioner, own_rewards, tmp_path, launcher):
        rewards = f"{own_rewards}:interrupting_the_launcher"
        recipe = write_recipe(tmp_path, "scst", **data, **REWARDED, **SAVED, model=captioner, rewards=rewards)
        own = {
            "torch.distributed.run": ["--standalone", "--nproc_per_node=2"],
            "accelerate.commands.launch": ["--multi_gpu", "--num_processes=2", "--num_machines=1",
                                           "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"],
        }  # fmt: skip
        command = [sys.executable, "-m", launcher, *own[launcher], "-m", "hf_captioners", "train", "scst"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
        run = subprocess.run(
            [*command, "--config", str(recipe)], capture_output=True, text=True, timeout=HANGING_S, env=environment
        )
        assert run.returncode != 0
        said = [line for line in run.stderr.splitlines() if "stopped at step 2" in line]
        assert said == [
            f"hf-captioners train scst: stopped at step 2: {tmp_path / 'scst' / 'checkpoint-2'} is saved; go on there "
            "with --resume_from_checkpoint true"
        ]


def test_a_full_disk(data, tmp_path, capsys, monkeypatch):
    """The file is named, and what is saved; the status is 3, and the older checkpoint whole."""
    save, calls = torch.save, []

    def full(content, path, *args, **kwargs):
        calls.append(path)
        if len(calls) > 4 and Path(path).name == "optimizer.pt":  # of the second checkpoint, as torch says it
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")
        save(content, path, *args, **kwargs)

    monkeypatch.setattr(torch, "save", full)
    assert train("xe", tmp_path, **data, **XE, **{**SAVED, "save_steps": 1}) == 3
    line = line_of(capsys)
    assert re.search(r"No space left on device: '.*checkpoint-2/optimizer\.pt' -- ", line)
    assert line.endswith(f"{tmp_path / 'xe' / 'checkpoint-1'} is saved; go on there with --resume_from_checkpoint true")
    assert [path.name for path in (tmp_path / "xe").iterdir()] == ["checkpoint-1"]
