"""The captioner of `starter/`: small, complete, with its card, and as good as the card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from hf_captioners.cli.main import main
from hf_captioners.hub.facts import read_facts
from hf_captioners.inference.loading import load_captioners

STARTER = Path(__file__).resolve().parent.parent / "starter"


def test_is_small_and_in_half_precision():
    assert sum(path.stat().st_size for path in STARTER.rglob("*")) <= 12_000_000
    weights = load_file(STARTER / "model.safetensors")
    assert {one.dtype for one in weights.values() if one.is_floating_point()} == {torch.float16}
    assert all(torch.isfinite(one).all() for one in weights.values() if one.is_floating_point())


def test_captions_a_picture_in_float32(tmp_path, capfd):
    picture = tmp_path / "photo.jpg"
    Image.effect_noise((320, 240), 80).convert("RGB").save(picture)
    assert main(["caption", str(picture), "--model", str(STARTER)]) == 0
    assert len(json.loads(capfd.readouterr().out)["caption"].split()) > 2
    assert load_captioners([str(STARTER)], device="cpu")[0].dtype == torch.float32


def test_its_card_is_whole():
    facts, card = read_facts(STARTER), ModelCard.load(STARTER / "README.md")
    assert facts is not None and len(facts.samples) == 20 and facts.parameters and facts.speed
    scores = {one.metric_type: one.metric_value for one in card.data.eval_results if one.dataset_split == "test"}
    assert {"cider_d", "bleu_4", "meteor"} <= scores.keys()
    for heading in ("Use", "Training", "Evaluation", "Captions as they came", "Limits", "Licence and source"):
        assert f"\n## {heading}\n" in card.text, heading


@pytest.mark.slow
def test_scores_are_those_of_its_card(shared_data, capfd):
    mini = shared_data / "flickr8k_mini"
    words = [
        "evaluate",
        "--model",
        STARTER,
        "--dataset",
        mini / "dataset_karpathy.json",
        "--image-root",
        mini / "images",
    ]
    assert main([*map(str, words), "--split", "test", "--metrics", "cider_d", "--json"]) == 0
    (result,) = [one for one in read_facts(STARTER).results if one.split == "test"]
    found = json.loads(capfd.readouterr().out)["corpus"]["cider_d"]
    assert found == pytest.approx(result.scores["cider_d"], abs=2e-3)  # a caption or two may depend on the processor
