"""The time of a caption beside that of a reference."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from contracts.tiny_families import tiny_model

from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.hub.facts import read_facts
from hf_captioners.inference import speed
from hf_captioners.inference.loading import load_captioners
from hf_captioners.inference.speed import measure_speed


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only while something is captioned: 1, 2, 3, … for the captioner, 10 for the reference."""
    state = {"now": 0.0, "own": 0}

    def caption_rows(model, processor, rows, batch_size):
        state["own"] += 1
        state["now"] += state["own"]
        return [{"image": row["image"], "caption": "a square"} for row in rows]

    blip = tiny_model("blip")
    monkeypatch.setattr(blip, "generate", lambda **options: state.update(now=state["now"] + 10))
    monkeypatch.setattr(speed, "caption_rows", caption_rows)
    monkeypatch.setattr(speed, "_now", lambda device: state["now"])
    return blip


def test_the_median_without_the_first_run(clock, tiny_captioner_dir):
    model, processor = load_captioners([str(tiny_captioner_dir)], device="cpu")
    measured = measure_speed(model, processor, [{"image": "a"}, {"image": "b"}, {"image": "c"}], clock)
    assert (measured.milliseconds, measured.reference_milliseconds, measured.number) == (3000, 10000, 3)
    assert measured.ratio == 0.3
    assert str(measured).startswith("3e+03 ms a caption, 0.3 of the 1e+04 ms of BLIP-base")


def test_chance_is_left_alone_and_what_cannot_be_timed_is_named(tiny_captioner_dir, tmp_path):
    model, processor = load_captioners([str(tiny_captioner_dir)], device="cpu")
    with pytest.raises(ValueError, match="no pictures"):
        measure_speed(model, processor, [], tiny_model("blip"))
    before = torch.random.get_rng_state()
    with pytest.raises(ValueError, match=r"gone\.png"):
        measure_speed(model, processor, [{"image": tmp_path / "gone.png"}], tiny_model("blip"))
    assert torch.equal(before, torch.random.get_rng_state())


def test_evaluate_writes_it_onto_the_card(tiny_captioner_dir, tmp_path, monkeypatch, capsys):
    world = write_sample_world(tmp_path / "world", num_train=1, num_val=3, num_test=1)
    folder = shutil.copytree(tiny_captioner_dir, tmp_path / "mine")
    monkeypatch.setattr(speed, "BlipForConditionalGeneration", lambda config: tiny_model("blip"))
    words = [
        "evaluate",
        "--model",
        folder,
        "--dataset",
        world / "dataset_karpathy.json",
        "--image-root",
        world / "images",
    ]
    words += ["--split", "val", "--metrics", "cider_d", "--speed"]
    assert main(list(map(str, words))) == 2
    assert "give --update-card" in capsys.readouterr().err
    assert main([*map(str, words), "--update-card", str(folder)]) == 0
    facts = read_facts(folder)
    assert "BLIP-base" in facts.speed and f"| time | {facts.speed[:12]}" in (folder / "README.md").read_text()
    assert json.loads((folder / "card_facts.json").read_text())["results"]
