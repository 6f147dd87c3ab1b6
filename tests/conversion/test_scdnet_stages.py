"""Two folders become a cascade."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from contracts.tiny_scdnet import small_model
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import CaptionerImageProcessor, ScdnetProcessor, build_word_tokenizer
from hf_captioners.cli.main import main
from hf_captioners.hub.card import write_card
from hf_captioners.hub.facts import CardFacts

WORDS = ["PAD", "SOS", "EOS", "UNK", *"abcdefghijklmnop"]


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Folders of both stages, of a second one with other words, and of an own first one."""
    folder = tmp_path_factory.mktemp("stages")
    models = {"first": small_model(1), "second": small_model(2, sees_previous=True), "others": small_model(1)}
    for name, model in models.items():
        words = [*WORDS[:-1], "q"] if name == "others" else WORDS
        model.save_pretrained(folder / name)
        ScdnetProcessor(CaptionerImageProcessor(), build_word_tokenizer(words)).save_pretrained(folder / name)
    return folder, models


def test_they_are_joined(stages, tmp_path, capsys):
    folder, models = stages
    words = ["scdnet", "join", str(folder / "first"), str(folder / "second"), "--out", str(tmp_path / "cascade")]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out) == {"out_dir": str(tmp_path / "cascade")}
    cascade = AutoModelForImageTextToText.from_pretrained(tmp_path / "cascade")
    assert cascade.is_cascade and cascade.generation_config.num_inference_steps == [50, 40]
    for own, stage in ((cascade, "second"), (cascade.first_stage, "first")):
        weights = own.state_dict()
        assert all(torch.equal(weights[name], value) for name, value in models[stage].state_dict().items())
    assert AutoProcessor.from_pretrained(tmp_path / "cascade").tokenizer.vocab_size == 20
    assert main(words) == 2  # it is there
    assert main([*words, "--overwrite"]) == 0
    again = [*words[:2], str(folder / "first"), str(tmp_path / "cascade"), "--out", str(tmp_path / "again")]
    assert main(again) == 2
    assert "is a cascade already, expected a stage of SCD-Net" in capsys.readouterr().err


@pytest.mark.parametrize("of_first, joined", [("cc-by-nc-4.0", "cc-by-nc-4.0"), ("mit", None), (None, None)])
def test_the_cascade_has_a_card_with_the_licence_of_its_stages(stages, tmp_path, of_first, joined, caplog):
    first, second = (shutil.copytree(stages[0] / name, tmp_path / name) for name in ("first", "second"))
    for folder, licence, base in ((first, of_first, "org/one"), (second, "cc-by-nc-4.0", "org/two")):
        write_card(CardFacts(folder.name, {"model_type": "scdnet"}, licence=licence, base_models=[base]), folder)
    assert main(["scdnet", "join", str(first), str(second), "--out", str(tmp_path / "cascade")]) == 0
    card = ModelCard.load(tmp_path / "cascade/README.md")
    assert card.data.license == joined and card.data.base_model == ["org/one", "org/two"]
    assert ("the stages do not name the same licence" in caplog.text) == (joined is None)
    assert "| first stage | first |" in card.text and card.data.model_name == "cascade"


def test_a_detector_in_the_second_folder_comes_along(stages, tmp_path):
    second = shutil.copytree(stages[0] / "second", tmp_path / "second")
    (second / "parts/detector").mkdir(parents=True)
    (second / "parts/detector/config.json").write_text('{"model_type": "bottom_up"}')
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "detector": "parts/detector"}))
    out = tmp_path / "cascade"
    assert main(["scdnet", "join", str(stages[0] / "first"), str(second), "--out", str(out)]) == 0
    assert (out / "parts/detector/config.json").is_file()
    assert json.loads((out / "config.json").read_text())["detector"] == "parts/detector"


def test_a_detector_beside_the_second_folder_is_named(stages, tmp_path):
    second = shutil.copytree(stages[0] / "second", tmp_path / "second")
    (tmp_path / "detector").mkdir()
    config = json.loads((second / "config.json").read_text())
    (second / "config.json").write_text(json.dumps({**config, "detector": "../detector"}))
    out = tmp_path / "elsewhere/cascade"
    assert main(["scdnet", "join", str(stages[0] / "first"), str(second), "--out", str(out)]) == 0
    assert json.loads((out / "config.json").read_text())["detector"] == str((tmp_path / "detector").resolve())
    assert not (tmp_path / "elsewhere/detector").exists()


@pytest.mark.parametrize(
    "first, second, message",
    [
        ("second", "first", "is a second stage, expected the first one"),
        ("first", "first", "is a first stage, expected the second one"),
        ("others", "second", "the stages have other words: 'p' has the ids None and 19"),
    ],
)
def test_folders_that_are_no_two_stages(stages, tmp_path, capfd, first, second, message):
    folder, _ = stages
    assert main(["scdnet", "join", str(folder / first), str(folder / second), "--out", str(tmp_path / "out")]) == 2
    assert message in capfd.readouterr().err and not (tmp_path / "out").exists()
