"""The scripts of SATIC and CLIP-GPT2 from the command line to captioners that caption."""

import json
import runpy
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from transformers import (
    AutoModelForImageTextToText,
    MobileNetV2Config,
    MobileNetV2ImageProcessorPil,
    MobileNetV2Model,
)

import hf_captioners
from hf_captioners.cli.main import main as hf_captioners_cli
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.training.schedules import noam

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
TRAINING = {
    "per_device_train_batch_size": 4, "captions_per_image": 2, "max_steps": 2, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 1, "logging_steps": 1,
}  # fmt: skip
SATIC = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
    "max_position_embeddings": 30, "group_size": 1,
}  # fmt: skip
GPT2 = {"text_config": {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 40}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_sample_world(tmp_path_factory.mktemp("world"), num_train=8, num_val=3, num_test=1, size=32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobilenet")
    torch.manual_seed(0)
    MobileNetV2Model(MobileNetV2Config(image_size=32, depth_multiplier=0.35)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    MobileNetV2ImageProcessorPil(**size).save_pretrained(folder)
    return folder


def features(world, backbone, folder, tokens):
    data = ["--annotations", world / "dataset_karpathy.json", "--image-root", world / "images"]
    arguments = ["--model", backbone, *data, "--out", folder, "--tokens", tokens, "--dtype", "float32"]
    assert hf_captioners_cli(["features", *map(str, arguments)]) == 0
    return folder


def train(tmp_path, script, out, sizes, **options):
    config = tmp_path / f"{out}.yaml"
    new = {"new_captioner": {"min_count": 1, **sizes}} if sizes else {}
    given = {**TRAINING, **new, **options, "output_dir": tmp_path / out}
    config.write_text(yaml.safe_dump({key: str(v) if isinstance(v, Path) else v for key, v in given.items()}))
    runpy.run_path(str(EXAMPLES / script))["main"](["--config", str(config)])
    return tmp_path / out


def captioned(folder, world):
    picture = str(next((world / "images").iterdir()))
    return hf_captioners.pipeline(model=str(folder))(picture)[0]["generated_text"]


def test_teacher_distillation_student(world, backbone, tmp_path, capfdbinary):
    annotations = world / "dataset_karpathy.json"
    store = features(world, backbone, tmp_path / "features", "grid")
    data = {"annotations": annotations, "features": store}
    evaluation = {"eval_strategy": "steps", "eval_with_generation": True, "generation_max_length": 12}
    noam_options = {
        "lr_scheduler_type": "noam", "learning_rate": 0.01, "lr_scheduler_kwargs": {"warmup_iters": 4},
        "max_grad_value": 0.1,
    }  # fmt: skip
    teacher = train(
        tmp_path, "train_satic.py", "teacher", SATIC, **data, **evaluation, **noam_options, backbone=backbone
    )
    history = json.loads((teacher / "trainer_state.json").read_text())["log_history"]
    rates = [row["learning_rate"] for row in history if "learning_rate" in row]
    assert rates == pytest.approx([noam(step, lr=0.01, warmup_iters=4) for step in range(2)])
    assert [row for row in history if "eval_cider_d" in row]
    captioned(teacher, world)  # from a picture

    capfdbinary.readouterr()
    options = ["--annotations", annotations, "--features", store, "--num-beams", 2, "--num-return-sequences", 2]
    command = ["caption", "--model", teacher, *options, "--split", "train", "--max-new-tokens", 12]
    assert hf_captioners_cli(list(map(str, command))) == 0
    captions = tmp_path / "teacher.jsonl"
    captions.write_bytes(capfdbinary.readouterr().out)
    rows = [json.loads(line) for line in captions.read_text().splitlines()]
    if any(not any(row["captions"]) for row in rows):  # an untrained teacher may say nothing at all
        rows = [{**row, "captions": ["a red circle", "a circle"]} for row in rows]
        captions.write_text("".join(json.dumps(row) + "\n" for row in rows))

    options = {"model": teacher, "model_options": {"group_size": 4}, "distilled": captions}
    student = train(tmp_path, "train_satic.py", "student", {}, **data, **options)
    model = AutoModelForImageTextToText.from_pretrained(student)
    assert model.config.group_size == 4
    assert model.config.vision_config.model_type == "mobilenet_v2"
    captioned(student, world)


@pytest.mark.parametrize("cached", [True, False])
def test_clip_gpt2(world, backbone, tmp_path, cached):
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    if cached:
        data = {**data, "features": features(world, backbone, tmp_path / "pooled", "pooled")}
    first = train(tmp_path, "train_clip_gpt2.py", "first", {**GPT2, "num_tags": 5}, **data, backbone=backbone)
    model = AutoModelForImageTextToText.from_pretrained(first)
    assert (model.config.prefix_length, len(model.config.tag_token_ids)) == (1, 5)
    captioned(first, world)
    captioned(train(tmp_path, "train_clip_gpt2.py", "second", {}, **data, model=first), world)


def test_pooled_features_are_the_embedding_that_the_captioner_computes(world, backbone, tmp_path):
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    folder = train(tmp_path, "train_clip_gpt2.py", "run", GPT2, **data, backbone=backbone)
    of_model = features(world, folder, tmp_path / "of_model", "grid")
    of_backbone = features(world, backbone, tmp_path / "of_backbone", "pooled")
    stores = [hf_captioners.FeatureStore(one) for one in (of_model, of_backbone)]
    assert stores[0].feature_size == stores[1].feature_size == 1280
    for image_id in stores[0].ids:
        assert stores[0][image_id].shape == (1, 1280)
        torch.testing.assert_close(stores[0][image_id], stores[1][image_id])
