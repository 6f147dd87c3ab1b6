"""The script of SCD-Net's first stage: from a recipe to a captioner, and what must not depend on how it is run."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import CaptionCollator, FeatureStore, load_karpathy
from hf_captioners.data.captions.attached import attach_sentences
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features
from hf_captioners.inference.captioning import caption_rows
from hf_captioners.training.schedules import noam

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_scdnet.py"
RECIPE = {
    "new_captioner": {
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "visual_layers": 1, "semantic_layers": 1,
        "decoder_layers": 1, "time_frequencies": 4, "caption_positions": 20, "retrieved_positions": 24, "min_count": 1,
    },
    "captions_per_image": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "noam",
    "lr_scheduler_kwargs": {"warmup_iters": 3}, "max_grad_value": 0.1, "max_grad_norm": 0.0, "weight_decay": 0.0,
    "moving_average_decay": 0.9, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    "seed": 1, "logging_steps": 1,
}  # fmt: skip
STILL = {"dropout": 0.0, "attention_dropout": 0.0, "visual_dropout": 0.0}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Sums of several threads differ from run to run in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Options that name a drawn world's annotations, features, and three sentences of other pictures for each one."""
    folder = tmp_path_factory.mktemp("world")
    world = write_sample_world(folder / "world", num_train=8, num_val=3, num_test=1, size=32)
    images = json.loads((world / "dataset_karpathy.json").read_text())["images"]
    with FeatureWriter(folder / "features", dtype=torch.float32) as writer:
        for image in images:
            generator = torch.Generator().manual_seed(image["imgid"])
            writer.add(image["imgid"], torch.randn(5, 12, generator=generator))
    lines = []
    for place, image in enumerate(images):
        others = [images[(place + step) % len(images)]["sentences"][0]["raw"] for step in (1, 2, 3)]
        lines.append(json.dumps({"image_id": image["imgid"], "captions": others}) + "\n")
    (folder / "retrieved.jsonl").write_text("".join(lines))
    return {
        "annotations": str(world / "dataset_karpathy.json"),
        "features": str(folder / "features"),
        "sentences": [f"retrieved={folder / 'retrieved.jsonl'}"],
    }


@pytest.fixture()
def train(tmp_path, data):
    """Run the script; returns the output folder."""
    main = runpy.run_path(str(SCRIPT))["main"]

    def run(out="run", **options):
        config = tmp_path / f"{out}.yaml"
        config.write_text(yaml.safe_dump({**RECIPE, **data, **options, "output_dir": str(tmp_path / out)}))
        main(["--config", str(config)])
        return tmp_path / out

    return run


def log(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def rows_of(data, split="train"):
    rows = load_karpathy(data["annotations"], split=split)
    rows = attach_sentences(rows, data["sentences"][0].partition("=")[2], "retrieved")
    return attach_features(rows, FeatureStore(data["features"]))


def test_the_loss_falls_and_the_captioner_captions(train, data):
    evaluation = {"eval_strategy": "steps", "eval_steps": 30, "eval_with_generation": True}
    options = {"per_device_train_batch_size": 8, "model_options": {**STILL, "hidden_size": 32}}
    folder = train(max_steps=30, generation_max_length=21, **options, **evaluation)
    history = log(folder)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    rates = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert rates == pytest.approx([noam(step, lr=0.01, warmup_iters=3) for step in range(30)])
    assert [entry["eval_cider_d"] for entry in history if "eval_cider_d" in entry]
    for name in (folder, folder / "raw"):
        model, processor = AutoModelForImageTextToText.from_pretrained(name), AutoProcessor.from_pretrained(name)
        rows = rows_of(data, "val")
        records = list(caption_rows(model.eval(), processor, [rows[index] for index in range(3)]))
        assert all("caption" in record for record in records)


def test_each_caption_sees_another_sentence_of_its_picture(train, data):
    folder = train(max_steps=1)
    processor = AutoProcessor.from_pretrained(folder)
    rows = [rows_of(data)[index] for index in range(4)]
    collator = CaptionCollator(processor, captions_per_image=3, seed=1)
    batch = collator(rows)
    assert len(batch["retrieved_ids"]) == len(batch["seeds"]) == 12
    seen = processor.batch_decode(batch["retrieved_ids"])
    for place, row in enumerate(rows):
        assert len(set(seen[3 * place : 3 * place + 3])) == len(set(row["retrieved"]))
    alone = CaptionCollator(processor, captions_per_image=3, seed=1)([rows[2]])
    assert processor.batch_decode(alone["retrieved_ids"]) == seen[6:9]
    collator.epoch = 1
    assert processor.batch_decode(collator(rows)["retrieved_ids"]) != seen
    collator.training = False
    first = processor(image_features=torch.zeros(4, 1, 12), retrieved=[row["retrieved"][0] for row in rows])
    assert torch.equal(collator(rows)["retrieved_ids"], first["retrieved_ids"])


def test_going_on_is_bit_exact(train, tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1}  # two steps are an epoch
    whole = train("whole", **options)
    shutil.copytree(whole, tmp_path / "cut")
    for step in (2, 4):
        shutil.rmtree(tmp_path / "cut" / f"checkpoint-{step}")
    shutil.rmtree(tmp_path / "cut/checkpoint-3")
    cut = train("cut", resume_from_checkpoint=True, **options)
    for name in ("model.safetensors", "raw/model.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert [entry.get("loss") for entry in log(cut)][:4] == [entry.get("loss") for entry in log(whole)][:4]


def test_chance_depends_on_neither_batches_nor_accumulation(train):
    still = {"model_options": STILL, "optim": "sgd"}
    ends = []
    for size, accumulation in ((8, 1), (2, 4)):
        folder = train(
            f"of_{size}", max_steps=3, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
            learning_rate=0.05, **still,
        )  # fmt: skip
        ends.append([entry["loss"] for entry in log(folder) if "loss" in entry])
    assert ends[0] == pytest.approx(ends[1], rel=1e-3)


@pytest.mark.slow
def test_two_processes_equal_one(train, tmp_path, data):
    options = {"max_steps": 3, "optim": "sgd", "learning_rate": 0.05, "model_options": STILL}
    one = train("one", per_device_train_batch_size=8, **options)
    config = tmp_path / "two.yaml"
    two = {**RECIPE, **data, **options, "per_device_train_batch_size": 4, "output_dir": str(tmp_path / "two")}
    config.write_text(yaml.safe_dump(two))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(SCRIPT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "--config", str(config)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert run.returncode == 0, run.stderr[-3000:]
    losses = [[entry["loss"] for entry in log(folder) if "loss" in entry] for folder in (one, tmp_path / "two")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    first, second = (load_file(folder / "model.safetensors") for folder in (one, tmp_path / "two"))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-5)


def test_without_sentences_training_says_what_is_missing(train):
    with pytest.raises((SystemExit, ValueError), match="give retrieved_ids"):
        train(max_steps=1, sentences=None)
    train(max_steps=1, sentences=None, model_options={"retrieval": "none"})
