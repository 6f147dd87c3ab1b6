"""The recipes for one's own pictures, from a folder to captioner, contact sheet, curves and card, in each case."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, GPT2Config, GPT2LMHeadModel

import hf_captioners
from hf_captioners import build_vocabulary, build_word_tokenizer
from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import write_sample_world

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
SMALL = {
    "d_model": 16, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 2, "min_count": 1,
}  # fmt: skip
SIZES = {
    "expansionnet_v2": {**SMALL, "encoder_expansion_groups": [4], "decoder_expansion_size": 2},
    "satic": SMALL,
    "dico": {
        "d_model": 16, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_attention_heads": 2, "decoder_attention_heads": 2, "min_count": 1, "max_image_tokens": 32,
    },
    "clip_gpt2": {},
}  # fmt: skip
QUICK = {
    "num_train_epochs": 2, "per_device_train_batch_size": 2, "generation_max_length": 12, "report_to": "none",
    "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def my_images(tmp_path_factory):
    """A folder with six captioned pictures in `train/` and two in `validation/`."""
    world = write_sample_world(tmp_path_factory.mktemp("world"), num_train=6, num_val=2, num_test=1, size=32)
    folder = tmp_path_factory.mktemp("data") / "my_images"
    lines = {"train": [], "validation": []}
    for split in lines:
        (folder / split).mkdir(parents=True)
    for row in json.loads((world / "dataset_karpathy.json").read_text())["images"]:
        split = {"train": "train", "val": "validation"}.get(row["split"])
        if split is not None:
            shutil.copy(world / "images" / row["filename"], folder / split)
            captions = [sentence["raw"] for sentence in row["sentences"]]
            lines[split].append(json.dumps({"file_name": row["filename"], "captions": captions}))
    for split, rows in lines.items():
        (folder / split / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**tower, "image_size": 32, "patch_size": 16, "projection_dim": 8}
    torch.manual_seed(0)
    CLIPModel(CLIPConfig(vision_config=vision, text_config=tower, projection_dim=8)).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def gpt2(my_images, tmp_path_factory):
    """A GPT-2 that can say what the captions say, as the real one can."""
    folder = tmp_path_factory.mktemp("gpt2")
    rows = [json.loads(line) for line in (my_images / "train" / "metadata.jsonl").read_text().splitlines()]
    captions = [caption for row in rows for caption in row["captions"]]
    tokenizer = build_word_tokenizer(build_vocabulary(captions, 1))
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(kind, folder, out, sizes=None, **options):
    given = {**QUICK, "data_dir": folder, "output_dir": out, **options}
    words = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    if sizes:
        words += ["--new_captioner", json.dumps(sizes)]
    return main(["train", "xe", "--config", str(RECIPES / kind / "own_pictures.yaml"), *words])


def test_there_is_one_for_every_captioner():
    from hf_captioners.pipelines import CAPTIONERS

    assert set(SIZES) | {"scdnet"} == set(CAPTIONERS)
    assert all((RECIPES / kind / "own_pictures.yaml").is_file() for kind in SIZES)


@pytest.mark.parametrize("kind", SIZES)
def test_leaves_a_captioner_and_what_it_says_of_itself(kind, my_images, clip, gpt2, tmp_path, caplog):
    out = tmp_path / "mine"
    sizes = {"gpt2": str(gpt2)} if kind == "clip_gpt2" else SIZES[kind]
    assert train(kind, my_images, out, sizes, backbone=clip) == 0
    told = [record.message for record in caplog.records if "few to learn a language from" in record.message]
    assert len(told) == (kind != "clip_gpt2")  # a pretrained GPT-2 has learned one

    captions = hf_captioners.pipeline(model=str(out))(str(next((my_images / "validation").glob("*.png"))))
    assert isinstance(captions[0]["generated_text"], str)
    for name in ("contact_sheet.png", "training.png"):
        with Image.open(out / name) as image:
            assert min(image.size) > 100
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "loss" in entry]) == 6  # each step, of so few
    evaluations = [entry for entry in history if "eval_cider_d" in entry]
    assert len(evaluations) == 2

    card = ModelCard.load(out / "README.md")
    assert card.data.tags == ["image-captioning", kind] and card.data.model_name == "mine"
    assert str(tmp_path) not in card.content and str(clip) not in card.content
    best = max(entry["eval_cider_d"] for entry in evaluations)
    results = {result.metric_type: result for result in card.data.eval_results}
    assert results["cider_d"].metric_value == pytest.approx(best, abs=1e-6)
    assert (results["cider_d"].dataset_name, results["cider_d"].dataset_split) == ("my_images", "validation")
    assert "images:2" in results["cider_d"].metric_args["signature"]
    for said in ("6 pictures with 30 captions, 2 to evaluate on", "contact_sheet.png", "| CIDEr-D x 100 |"):
        assert said in card.content


def test_goes_on_with_a_captioner_and_learns_its_new_words(my_images, clip, tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    assert train("satic", my_images, first, SMALL, backbone=clip) == 0
    other = tmp_path / "others"
    shutil.copytree(my_images, other)
    for split in ("train", "validation"):
        path = other / split / "metadata.jsonl"
        path.write_text(path.read_text().replace("circle", "tractor").replace("square", "harvester"))
    assert (
        train(
            "satic", other, second, model=first, extend_vocabulary="false", extend_min_count=5, max_unknown_words=0.01
        )
        == 2
    )
    assert "of the words of the training captions are unknown to the captioner, such as" in capsys.readouterr().err
    path = first / "README.md"
    path.write_text(path.read_text().replace("library_name:", "license: cc-by-nc-4.0\nlibrary_name:", 1))
    assert train("satic", other, second, model=first) == 0
    card = ModelCard.load(second / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and "| started from | first |" in card.text
    words = hf_captioners.pipeline(model=str(second)).tokenizer.get_vocab()
    assert {"tractor", "harvester", "circle", "square"} <= set(words)


def test_without_validation(my_images, clip, tmp_path, capsys):
    alone = tmp_path / "alone"
    shutil.copytree(my_images / "train", alone / "train")
    assert train("satic", alone, tmp_path / "out", SMALL, backbone=clip) == 2
    assert f"--data_dir {alone}: no validation/ in it to evaluate on" in capsys.readouterr().err
    nothing = {"eval_strategy": "no", "load_best_model_at_end": False, "eval_with_generation": False}
    assert train("satic", alone, tmp_path / "out", SMALL, backbone=clip, **nothing) == 0
    assert "## Evaluation" not in (tmp_path / "out" / "README.md").read_text()
    assert not (tmp_path / "out" / "contact_sheet.png").exists()
