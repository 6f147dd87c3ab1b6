"""The script of DiCO from the command line to captioners that caption."""

import json
import re
import runpy
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
)

import hf_captioners
from hf_captioners import FeatureStore, load_karpathy
from hf_captioners.cli.main import main as hf_captioners_cli
from hf_captioners.data.drawn.world import write_sample_world

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SIZES = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 77,
}  # fmt: skip
OPTIONS = {
    "per_device_train_batch_size": 4, "captions_per_image": 2, "max_steps": 2, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 1, "logging_steps": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(EXAMPLES / "train_dico.py"))["main"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_sample_world(tmp_path_factory.mktemp("world"), num_train=8, num_val=3, num_test=1, size=32)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of a few thousand parameters with its image processor and tokenizer."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**text, "image_size": 32, "patch_size": 8}
    CLIPModel(CLIPConfig(vision_config=vision, text_config=text, projection_dim=8)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    tokens = {name: index for index, name in enumerate(names)}
    CLIPTokenizer(vocab=tokens, merges=[], model_max_length=60).save_pretrained(folder)
    return folder


def train(main, tmp_path, out, words=(), new=None, **options):
    given = {"new_captioner": {**SIZES, **(new or {})}, **OPTIONS, **options, "output_dir": tmp_path / out}
    config = tmp_path / f"{out}.yaml"
    config.write_text(yaml.safe_dump({name: str(v) if isinstance(v, Path) else v for name, v in given.items()}))
    main(["xe", "--config", str(config), *words])
    return tmp_path / out


def captioned(folder, world):
    return hf_captioners.pipeline(model=str(folder))(str(next((world / "images").iterdir())))[0]["generated_text"]


def test_with_a_clip_and_its_tokenizer(main, world, clip, tmp_path):
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    evaluation = {"eval_strategy": "steps", "eval_with_generation": True, "generation_max_length": 12}
    first = train(main, tmp_path, "first", **data, **evaluation, backbone=clip, model_options={"decoder_dropout": 0.2})
    model, processor = AutoModelForImageTextToText.from_pretrained(first), AutoProcessor.from_pretrained(first)
    assert (model.config.vocab_size, len(processor.tokenizer), model.config.pad_token_id) == (515, 515, 514)
    assert (model.config.encoder_layers, model.config.decoder_layers, model.config.decoder_dropout) == (1, 2, 0.2)
    assert (model.config.max_position_embeddings, model.config.feature_size) == (77, 8)
    frozen = CLIPModel.from_pretrained(clip).vision_model.state_dict()
    assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in frozen.items())
    history = json.loads((first / "trainer_state.json").read_text())["log_history"]
    assert [row for row in history if "eval_cider_d" in row]
    captioned(first, world)
    captioned(train(main, tmp_path, "second", **data, model=first), world)


def test_padding_in_the_loss(main, world, clip, tmp_path):
    """The loss that is learned and logged is then the original's, a mean over all places instead of the words."""
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    parts = ("encoder", "encoder_attention", "decoder_input", "decoder", "decoder_attention")
    changes = {"pad_in_loss": True, **{f"{part}_dropout": 0.0 for part in parts}}
    step = {"max_steps": 1, "learning_rate": 0.0, "captions_per_image": 5, "per_device_train_batch_size": 8}
    out = train(main, tmp_path, "out", **data, **step, backbone=clip, model_options=changes)
    model, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
    rows = load_karpathy(*data.values(), split="train")
    captions = [caption for captions in rows["captions"] for caption in captions]
    with torch.no_grad():
        logits = model(**processor(images=rows["image"][:], text_target=captions)).logits
    labels = processor(text_target=captions)["labels"]
    losses = -logits.log_softmax(-1).gather(-1, labels.where(labels != -100, model.config.pad_token_id)[..., None])
    (logged, *_) = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert logged["loss"] == pytest.approx(losses.mean().item(), abs=2e-4)
    assert abs(losses[labels != -100].mean() - losses.mean()) > 2e-3


def test_on_cached_features_with_words_of_the_captions(main, world, clip, tmp_path):
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    seed = train(main, tmp_path, "seed", **data, backbone=clip)
    arguments = {"model": seed, "annotations": data["annotations"], "image-root": data["image_root"]}
    options = [str(part) for name, value in arguments.items() for part in (f"--{name}", value)]
    assert hf_captioners_cli(["features", *options, "--out", str(tmp_path / "features"), "--dtype", "float32"]) == 0
    store = FeatureStore(tmp_path / "features")
    assert store[store.ids[0]].shape == (17, 8)  # the class token is among them
    cached = {"annotations": data["annotations"], "features": tmp_path / "features"}
    out = train(main, tmp_path, "words", **cached, tokenizer="words", new={"min_count": 1})
    model = AutoModelForImageTextToText.from_pretrained(out)
    assert model.backbone is None and model.generation_config.suppress_tokens == [model.config.unk_token_id]
    hf_captioners.pipeline(model=str(out))(store[store.ids[0]])


def test_what_is_missing_is_said(main, world, clip, tmp_path):
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    with pytest.raises(SystemExit, match=r"^--backbone: a new dico needs a pretrained vision model"):
        train(main, tmp_path, "out", annotations="is not looked at")
    for name, message in {"model": "--model no_such", "backbone": "backbone='no_such'"}.items():
        with pytest.raises(SystemExit, match=f"^{message}: there is no such file or folder"):
            train(main, tmp_path, "out", **data, **{name: "no_such"})
    with pytest.raises(SystemExit, match=r"^tokenizer='no_such': there is no such file or folder"):
        train(main, tmp_path, "out", **data, tokenizer="no_such", backbone=clip)
    backbone = tmp_path / "vision"
    CLIPModel.from_pretrained(clip).save_pretrained(backbone)
    CLIPImageProcessorPil().save_pretrained(backbone)
    with pytest.raises(SystemExit, match="there is no tokenizer in this folder; give --tokenizer"):
        train(main, tmp_path, "out", **data, backbone=backbone)
    with pytest.raises(SystemExit, match=r"^--new_captioner tokenizer: give --tokenizer in its place"):
        train(main, tmp_path, "out", **data, new={"tokenizer": "words"}, backbone=clip)


@pytest.mark.parametrize(("words", "said"), [(["--help"], "xe .* dico "), (["xe", "--help"], "--new_captioner")])
def test_help(main, capsys, words, said):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 0
    assert re.search(said, capsys.readouterr().out, re.DOTALL)


def test_a_phase_must_be_named(main, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--config", "x.yaml"])
    assert stop.value.code == 2
    assert "METHOD" in capsys.readouterr().err


def test_the_recipe_is_one_that_the_script_reads(main, monkeypatch):
    """Every name in it is an option; the run ends where it would read its data."""
    recipe = EXAMPLES / "recipes" / "dico" / "1_xe.yaml"
    names = yaml.safe_load(recipe.read_text())
    assert names["per_device_train_batch_size"] * names["gradient_accumulation_steps"] * 2 == 1024
    with pytest.raises((SystemExit, FileNotFoundError), match="dataset_coco"):
        main(["xe", "--config", str(recipe), "--output_dir", "unused", "--report_to", "none"])
