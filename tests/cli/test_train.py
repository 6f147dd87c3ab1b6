"""`hf-captioners train`: the methods, their help, and one training of each from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import datasets
import pytest
from contracts.training_commands import REWARDED, XE, tiny_world, train
from transformers import AutoModelForImageTextToText

from hf_captioners.cli.main import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_world(tmp_path_factory.mktemp("world"))


def test_a_new_captioner_then_rewards(data, tmp_path):
    captioner = tmp_path / "xe"
    assert train("xe", tmp_path, **data, **XE) == 0
    assert AutoModelForImageTextToText.from_pretrained(captioner).config.group_size == 2
    rewards = {**data, "model": str(captioner), **REWARDED, "rewards": ["length"]}
    rewards |= {"model_type": "satic", "max_words": 3}
    assert train("scst", tmp_path, **rewards) == 0
    assert train("dico", tmp_path, **rewards) == 0
    for method in ("scst", "dico"):
        history = json.loads((tmp_path / method / "trainer_state.json").read_text())["log_history"]
        assert "rewards/length/mean" in history[0]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("xe", {}, "--model_type: expected one of clip_gpt2, dico, "),
        (
            "xe",
            {"model_type": "satic", "data_dir": "no_such"},
            "--backbone: a new satic needs a pretrained vision model",
        ),
        (
            "xe",
            {"model_type": "satic", "features": "no_such"},
            "give --annotations (a file of captions, or tars), --data_dir (a folder) or --dataset_name (of the Hub), "
            "one of them",
        ),
        ("scst", {"model_type": "satic"}, "--model: scst goes on with a captioner; `hf-captioners train xe` makes one"),
        ("dico", {"model": "no_such", "annotations": "no_such.json"}, "no_such.json"),
        ("xe", {"captions_per_image": 0}, "captions_per_image must be at least 1, not 0"),
    ],
)
def test_mistakes_are_one_line(method, options, message, tmp_path, capsys):
    assert train(method, tmp_path, **options) == 2
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    assert out == "" and line.startswith("hf-captioners train: error: ") and message in line


def test_help(capsys):
    for words, said in ((["train", "--help"], "xe  "), (["train", "xe", "--help"], "--captions_per_image")):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
        assert said in capsys.readouterr().out


def test_a_method_must_be_named(capsys):
    for words in (["train"], ["train", "grpo"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "usage: hf-captioners train" in capsys.readouterr().err


def test_as_a_module():  # what `accelerate launch -m` runs
    command = [sys.executable, "-m", "hf_captioners", "train", "scst", "--output_dir", "unused", "--use_cpu"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1].startswith("hf-captioners train: error: --model: scst goes on with a captioner")
