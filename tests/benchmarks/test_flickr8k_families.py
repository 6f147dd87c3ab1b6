"""The trainings of small captioners of transformers on Flickr8k, a step each on a drawn world."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_captioners.cli.train import train_example
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.families import family_of
from hf_captioners.inference.loading import load_captioners

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """The script, with smaller captioners."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    module = importlib.import_module("train_flickr8k_families")
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    for settings in (module.VISION, module.TEXT):
        for name, value in small.items():
            monkeypatch.setitem(settings, name, value)
    return module


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as that of the real pictures."""
    root = tmp_path_factory.mktemp("data")
    write_sample_world(root / "flickr8k_mini", num_train=4, num_val=2, num_test=3, size=32)
    return root


@pytest.mark.parametrize("name", ["vit_gpt2", "blip", "git"])
def test_a_new_captioner_is_saved_as_transformers_saves_it(module, data, tmp_path, name):
    args = argparse.Namespace(annotations=data / "flickr8k_mini/dataset_karpathy.json", out=tmp_path)
    model, processor = load_captioners([str(module.new_captioner(args, name))], device="cpu")
    family = family_of(model)
    entries = json.loads(args.annotations.read_text())["images"]
    entry = next(entry for entry in entries if entry["split"] == "train")
    rows = [{"image": str(data / "flickr8k_mini/images" / entry["filename"])}]
    batch = family.training_batch(processor, rows, [entry["sentences"][0]["raw"]])
    assert batch["pixel_values"].shape == (1, 3, 96, 96)
    assert int(batch["labels"].min()) >= 0 and batch["labels"][0, -1] == processor.tokenizer.sep_token_id
    assert processor.tokenizer.unk_token_id not in batch["labels"]
    loss = family.caption_loss(model, batch, None, None)
    assert 0 < float(loss.detach()) < 2 * torch.tensor(len(processor.tokenizer)).log()


def test_before_and_after(module, data, tmp_path, monkeypatch, capsys):
    methods = {"train_xe.py": "xe", "train_scst.py": "scst"}
    ran = []

    def run(words: list[str], check: bool) -> None:
        ran.append(words)
        options = ["--eval_strategy", "no"] if "train_xe" in words[1] else []
        options += ["--report_to", "none", "--report", "false", "--per_device_train_batch_size", "2"]
        train_example(methods[Path(words[1]).name], [*map(str, words[2:]), *options])

    monkeypatch.setattr(subprocess, "run", run)
    words = ["--data", str(data), "--out", str(tmp_path), "--systems", "vit_gpt2", "--max-steps", "1"]
    monkeypatch.setattr(sys, "argv", ["train_flickr8k_families", *words])
    for _ in range(2):  # the second time all is there
        module.main()
    assert len(ran) == 2
    assert str(tmp_path / "vit_gpt2_xe/captioner") in map(str, ran[1])  # where SCST begins
    text = (tmp_path / "families.md").read_text()
    assert text in capsys.readouterr().out
    lines = text.splitlines()
    assert (
        sum(line.startswith("| vit_gpt2 | ") and (" | XE | 1 | " in line or " | SCST | 1 | " in line) for line in lines)
        == 2
    )
    assert "not counted" not in text
    assert any(line.startswith("Signature: `metrics:bleu+meteor+cider_d+diversity|") for line in lines)
    assert sum("jpg" in line or "png" in line for line in lines) == 3
