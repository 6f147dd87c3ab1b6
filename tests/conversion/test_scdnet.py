"""Conversion of SCD-Net; the numbers of what comes out are in tests/parity/test_scdnet.py."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from contracts.tiny_scdnet import SIZES
from transformers import AutoProcessor

from hf_captioners import ScdnetConfig, ScdnetForImageCaptioning
from hf_captioners.cli.main import main
from hf_captioners.conversion import convert
from hf_captioners.conversion.scdnet_words import build_tokenizer, read_words

SETTINGS = {"MODEL": {"MAX_SEQ_LEN": 12, "BERT": {"NUM_ATTENTION_HEADS": 2}}}
WORDS = [f"w{index}" for index in range(18)] + ["UNK"]


def original(path, prefix="module.module.", change=None, **fields):
    """A checkpoint in the authors' layout, with other weights in the moving average; returns both."""
    sizes = {**SIZES, "feature_size": 12, "caption_positions": 40, "retrieved_positions": 70, **fields}
    states = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        states.append(ScdnetForImageCaptioning(ScdnetConfig(**sizes)).state_dict())
    if change:
        change(states[1])
    ema = {prefix + name: value for name, value in states[1].items()}
    torch.save({"model": states[0], "trainer": {"iteration": 3, "ema": ema}, "iteration": 3}, path)
    return states


def convert_small(path, out_dir, **options):
    return convert("scdnet", path, out_dir, **{"vocabulary": WORDS, "original_config": SETTINGS, **options})


@pytest.mark.parametrize("prefix", ["module.module.", "module.", ""])
def test_the_moving_average_is_taken_unless_it_is_refused(tmp_path, prefix):
    raw, averaged = original(tmp_path / "x.pth", prefix)
    for name, options, expected in (
        ("ema", {}, averaged),
        ("raw", {"ema": False}, raw),
        ("asked", {"ema": True}, averaged),
    ):
        report = convert_small(tmp_path / "x.pth", tmp_path / name, **options)
        model = ScdnetForImageCaptioning.from_pretrained(tmp_path / name)
        assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
        assert sorted(report.used) == sorted(expected) and not report.dropped
    assert report.special_tokens["UNK"] == (19, "UNK")
    assert set(report.assumed) == {
        "MODEL.TOKEN_EMBED.BIT_SCALE", "DIFFUSION.NOISE_SCHEDULE", "DATALOADER.MAX_FEAT_NUM",
    }  # fmt: skip
    assert report.config.max_regions == 50


@pytest.mark.parametrize("number, expected", [(36, 36), (-1, None)])
def test_the_number_of_regions_is_a_setting(tmp_path, number, expected):
    original(tmp_path / "x.pth")
    settings = {**SETTINGS, "DATALOADER": {"MAX_FEAT_NUM": number}}
    convert_small(tmp_path / "x.pth", tmp_path / "out", original_config=settings)
    assert ScdnetConfig.from_pretrained(tmp_path / "out").max_regions == expected


def test_weights_alone_convert_too(tmp_path):
    raw, _ = original(tmp_path / "x.pth")
    torch.save(raw, tmp_path / "bare.pth")
    convert_small(tmp_path / "bare.pth", tmp_path / "out")
    with pytest.raises(ValueError, match=r"has no moving average of the weights.*give ema=False"):
        convert_small(tmp_path / "bare.pth", tmp_path / "out2", ema=True)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", ["ema", "model_ema"])
def test_a_moving_average_under_the_usual_keys_and_of_any_protocol(tmp_path, protocol, key):
    raw, averaged = original(tmp_path / "x.pth")
    wrapped = [{f"module._orig_mod.{name}": value for name, value in state.items()} for state in (raw, averaged)]
    content = {"state_dict": wrapped[0], key: {"module": wrapped[1]}}
    torch.save(content, tmp_path / "y.pth", pickle_protocol=protocol)
    for ema, expected in ((None, averaged), (False, raw)):
        convert_small(tmp_path / "y.pth", tmp_path / "out", ema=ema, overwrite=True)
        model = ScdnetForImageCaptioning.from_pretrained(tmp_path / "out")
        assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_numbers_that_are_none(tmp_path):
    def change(state):
        state["predictor.logits.weight"][0, 0] = float("inf")

    original(tmp_path / "x.pth", change=change)
    message = r"1 of \d+ weights are NaN or infinite in float32: 1 problem: predictor.logits.weight has 1"
    with pytest.raises(ValueError, match=message):
        convert_small(tmp_path / "x.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_vocabulary_without_an_unknown_word(tmp_path):
    original(tmp_path / "x.pth")
    report = convert_small(tmp_path / "x.pth", tmp_path / "out", vocabulary=[*WORDS[:-1], "zebra"])
    assert set(report.special_tokens) == {"PAD", "SOS", "EOS"} and report.config.unk_token_id is None
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert processor.tokenizer("w0 zebra").input_ids == [0, 1, 19, 0]
    with pytest.raises(Exception, match="WordLevel error: Missing"):
        processor.tokenizer("w0 dog")


def test_two_stages_become_a_cascade(tmp_path, capfd):
    original(tmp_path / "one.pth")
    original(tmp_path / "two.pth", sees_previous=True)
    (tmp_path / "vocabulary.txt").write_text("\n".join(WORDS) + "\n")
    (tmp_path / "settings.json").write_text(json.dumps(SETTINGS))
    arguments = ["--stage1", str(tmp_path / "one.pth"), "--vocabulary", str(tmp_path / "vocabulary.txt")]
    arguments += [
        "--original-config",
        str(tmp_path / "settings.json"),
        "--out",
        str(tmp_path / "out"),
        "--crop-positions",
    ]
    assert main(["convert", "scdnet", str(tmp_path / "two.pth"), *arguments]) == 0
    capfd.readouterr()
    model = ScdnetForImageCaptioning.from_pretrained(tmp_path / "out")
    assert model.is_cascade and model.generation_config.num_inference_steps == [50, 40]
    assert (model.config.caption_positions, model.config.first_stage.retrieved_positions) == (12, 64)
    with pytest.raises(ValueError, match="is a first stage, which has no use for stage1"):
        convert_small(tmp_path / "one.pth", tmp_path / "wrong", stage1=tmp_path / "two.pth")
    with pytest.raises(ValueError, match="is a second stage; give a first stage"):
        convert_small(tmp_path / "two.pth", tmp_path / "wrong", stage1=tmp_path / "two.pth")


def test_whatever_is_wrong_is_named(tmp_path):
    def change(state):
        del state["predictor.logits.bias"]
        state["another"] = torch.zeros(2)
        state["r_token_embed.embeddings_norm.weight"] = torch.zeros(3)

    original(tmp_path / "x.pth", change=change)
    message = "embeddings_norm.weight has shape.*predictor.logits.bias is missing.*another of shape"
    with pytest.raises(ValueError, match=message):
        convert_small(tmp_path / "x.pth", tmp_path / "out")
    original(tmp_path / "y.pth")
    with pytest.raises(ValueError, match=r"the vocabulary has 4 words.*but the tensors have 20"):
        convert_small(tmp_path / "y.pth", tmp_path / "out", vocabulary=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match=r"MODEL.BERT.HIDDEN_ACT='gelu' is not supported"):
        convert_small(tmp_path / "y.pth", tmp_path / "out", original_config={"MODEL": {"BERT": {"HIDDEN_ACT": "gelu"}}})
    with pytest.raises(ValueError, match="vocabulary is required"):
        convert_small(tmp_path / "y.pth", tmp_path / "out", vocabulary=None)
    assert not (tmp_path / "out").exists()


def test_words_count_from_one(tmp_path):
    path = tmp_path / "vocabulary.txt"
    path.write_text("dog\na\nbarks\n")
    words, unknown = read_words(path)
    assert (words, unknown) == ([".", "dog", "a", "barks"], None)
    tokenizer = build_tokenizer(words, unknown, 21)
    assert tokenizer("A dog barks").input_ids == [0, 2, 1, 3, 0]
    assert read_words(["a", "<unk>"])[1] == 2 and read_words(["a", "b"], {"UNK": 1})[1] == 1
    with pytest.raises(ValueError, match="word 'a' stands in lines 1 and 3"):
        read_words(["a", "b", "a"])
