"""`hf-captioners train`: the methods, their help, and one training of each from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import datasets
import pytest
import yaml
from transformers import AutoModelForImageTextToText

from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import write_sample_world

TRAINING = {
    "per_device_train_batch_size": 4, "max_steps": 2, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    "use_cpu": True, "seed": 1, "logging_steps": 1,
}  # fmt: skip
NEW = {
    "vision_config": {"model_type": "swin", "image_size": 32, "embed_dim": 8, "depths": [1], "num_heads": [2]},
    "feature_size": 8, "min_count": 1, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16, "encoder_layers": 1,
    "decoder_layers": 1, "max_position_embeddings": 20, "group_size": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    world = write_sample_world(tmp_path_factory.mktemp("world"), num_train=8, num_val=2, num_test=1, size=32)
    return {"annotations": str(world / "dataset_karpathy.json"), "image_root": str(world / "images")}


def train(method, tmp_path, *words, **options):
    recipe = tmp_path / f"{method}.yaml"
    recipe.write_text(yaml.safe_dump({**TRAINING, **options, "output_dir": str(tmp_path / method)}))
    return main(["train", method, "--config", str(recipe), *words])


def test_a_new_captioner_then_rewards(data, tmp_path):
    captioner = tmp_path / "xe"
    assert train("xe", tmp_path, **data, model_type="satic", new_captioner=NEW, train_backbone="all") == 0
    assert AutoModelForImageTextToText.from_pretrained(captioner).config.group_size == 2
    rewards = {**data, "model": str(captioner), "max_completion_length": 8, "rewards": ["length"]}
    rewards |= {"model_type": "satic", "candidate_strategy": "sample", "num_generations": 2, "max_words": 3}
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
            "give --annotations (Karpathy's layout) or --data_dir (a folder), one of them",
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
