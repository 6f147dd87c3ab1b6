"""From pictures through a detector into a store, and from that into the training of SATIC, on the command line."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from contracts import colour_detector

from hf_captioners import BottomUpConfig, BottomUpForRegionFeatures, BottomUpImageProcessor, FeatureStore, pipeline
from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.hub.facts import read_facts

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_satic.py"
TRAINING = {
    "per_device_train_batch_size": 2, "captions_per_image": 2, "max_steps": 2, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 1, "logging_steps": 1,
}  # fmt: skip
SMALL = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "num_attention_heads": 2, "ffn_dim": 16,
    "max_position_embeddings": 30, "group_size": 1,
}  # fmt: skip
COCO_IMAGES = 4  # of coco_mini, for training; a picture takes 20 seconds and more of a core


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def save(folder, model, image_processor):
    for part in (model, image_processor):
        part.save_pretrained(folder)
    return folder


def detect(data, detector, out, *more):
    words = ["features", "--detector", detector, "--out", out, "--device", "cpu", "--dtype", "float32", *more]
    words += [word for name, value in data.items() for word in (f"--{name.replace('_', '-')}", value)]
    assert main(list(map(str, words))) == 0
    return FeatureStore(out)


def train(tmp_path, new, **data):
    options = {**TRAINING, "new_captioner": {"min_count": 1, **new}, **data, "output_dir": tmp_path / "run"}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({key: str(v) if isinstance(v, Path) else v for key, v in options.items()}))
    runpy.run_path(str(SCRIPT))["main"](["--config", str(recipe)])
    history = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    assert sum("loss" in row for row in history) == TRAINING["max_steps"]
    return tmp_path / "run"


def test_drawn_pictures(tmp_path):
    """Boxes are behind the features, so that the captioner is wider than the detector."""
    world = write_sample_world(tmp_path / "world", num_train=4, num_val=1, num_test=1, size=colour_detector.SIDE)
    detector = save(tmp_path / "detector", *colour_detector.build())
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    store = detect(data, detector, tmp_path / "store", "--append-boxes")
    run = train(tmp_path, SMALL, annotations=data["annotations"], features=tmp_path / "store")
    width = json.loads((run / "config.json").read_text())["feature_size"]
    assert width == BottomUpForRegionFeatures.from_pretrained(detector).config.feature_size + 5
    rows = {row["split"]: row for row in json.loads(data["annotations"].read_text())["images"]}
    tested = rows["test"]
    assert [sample.image for sample in read_facts(run).samples] == [rows["val"]["filename"]]  # no number of a picture
    seen = pipeline(model=run, detector=detector)(str(world / "images" / tested["filename"]))
    assert seen == pipeline(model=run)(store[tested["imgid"]])


@pytest.mark.slow
def test_photographs_at_released_size(shared_data, tmp_path):
    """With random weights: a ResNet-101 at 600 x 800 pixels, and a SATIC of the paper's size."""
    photographs = shared_data / "coco_mini"
    rows = json.loads((photographs / "dataset_karpathy.json").read_text())["images"]
    chosen = [row for row in rows if row["split"] == "restval"][:COCO_IMAGES]
    chosen += [row for row in rows if row["split"] == "test"][:1]  # none to evaluate on
    (tmp_path / "dataset.json").write_text(json.dumps({"images": chosen}))
    torch.manual_seed(0)
    detector = save(tmp_path / "detector", BottomUpForRegionFeatures(BottomUpConfig()), BottomUpImageProcessor())
    data = {"annotations": tmp_path / "dataset.json", "image_root": photographs / "images"}
    store = detect(data, detector, tmp_path / "store")
    regions = [store[image_id] for image_id in store.ids]
    assert len(regions) == len(chosen) and all(10 <= len(one) <= 100 and one.shape[1] == 2048 for one in regions)
    assert all(torch.isfinite(one).all() for one in regions)
    run = train(tmp_path, {}, annotations=data["annotations"], features=tmp_path / "store")
    picture = str(photographs / "images" / "val2014" / chosen[-1]["filename"])
    seen = pipeline(model=run, detector=detector)(picture)
    assert seen == pipeline(model=run)(store[chosen[-1]["cocoid"]])
