"""Two folders become a cascade."""

from __future__ import annotations

import json

import pytest
import torch
from contracts.tiny_scdnet import small_model
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import CaptionerImageProcessor, ScdnetProcessor, build_word_tokenizer
from hf_captioners.cli.main import main

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
