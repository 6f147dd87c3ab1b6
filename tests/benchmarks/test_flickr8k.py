"""The report of SCD-Net on Flickr8k, on a drawn world with captioners that are there already."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contracts.tiny_scdnet import small_model

from hf_captioners import CaptionerImageProcessor, ScdnetProcessor, build_word_tokenizer
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.data.features.store import FeatureWriter

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
WORDS = "PAD SOS EOS UNK a above and below black blue circle gray green left of on red square the to"
HISTORY = [
    {"step": 1, "epoch": 0.5, "loss": 3.5},
    {"step": 2, "epoch": 1.0, "eval_cider_d": 0.25},
    {"step": 2, "epoch": 1.0, "train_runtime": 90.0},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures, features, sentences and captioners of all steps."""
    tmp_path = tmp_path_factory.mktemp("flickr8k")
    world = write_sample_world(tmp_path / "world", num_train=2, num_val=2, num_test=3, size=32)
    images = json.loads((world / "dataset_karpathy.json").read_text())["images"]
    out = tmp_path / "out"
    with FeatureWriter(out / "features", dtype=torch.float32) as writer:
        for image in images:
            writer.add(image["imgid"], torch.randn(3, 12, generator=torch.Generator().manual_seed(image["imgid"])))
    tokenizer = build_word_tokenizer(WORDS.split())
    for step in ("1_xe", "2_scst", "5_xe", "6_scst"):
        captioner = out / "scdnet" / step
        small_model(sees_previous=step[0] in "56").save_pretrained(captioner)
        ScdnetProcessor(CaptionerImageProcessor(), tokenizer).save_pretrained(captioner)
        (captioner / "trainer_state.json").write_text(json.dumps({"log_history": HISTORY, "global_step": 2}))
    for file, text in (("retrieved", "a red square"), ("scdnet/3_xe", "a blue circle"), ("scdnet/4_scst", "the left")):
        lines = [json.dumps({"image_id": image["imgid"], "captions": [text, "a"]}) + "\n" for image in images]
        (out / f"{file}.jsonl").write_text("".join(lines))
    return tmp_path


@pytest.fixture
def args(folder, monkeypatch):
    """Options of the command line."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return argparse.Namespace(
        out=folder / "out", data=folder / "data", annotations=folder / "world/dataset_karpathy.json",
        image_root=folder / "world/images", num_beams=2, num_train_epochs=None, cpu_time=True,
        scdnet_steps=["1_xe", "6_scst"],
    )  # fmt: skip


def test_scdnet_is_reported_with_its_sentences(args, monkeypatch):
    train, scdnet = importlib.import_module("train_flickr8k"), importlib.import_module("flickr8k_scdnet")
    monkeypatch.setattr(scdnet, "DECODINGS", {f"{steps} steps": {"num_inference_steps": steps} for steps in (2, 3)})
    section, lines = train.finish(args, scdnet.ScdnetRun(args, "5_xe", args.out / "retrieved.jsonl"))
    assert [line.split(" | ")[1] for line in lines] == ["2 steps", "3 steps"]
    assert [line.split(" | ")[5] for line in lines] == ["2.0", "3.0"]  # calls of the network
    assert "| picture | 3 steps | retrieved | previous | a reference |" in section
    assert sum("| a red square | a blue circle |" in line for line in section) == 3
    assert "| 1 | 0.250 |" in section and any("1.5 min, 2 steps" in line for line in section)
    folder = args.out / "scdnet_5_xe"
    captions = [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]
    assert len(captions) == 3 and all("2 steps" in row and "image" not in row for row in captions)
    assert (folder / "training.png").stat().st_size and (folder / "contact_sheet.png").stat().st_size


def test_scdnet_is_trained_by_the_recipes_makefile(args, monkeypatch):
    scdnet = importlib.import_module("flickr8k_scdnet")
    monkeypatch.setattr(scdnet, "write_features", lambda args, tokens: args.out / "features")
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda words, **_: ran.append([str(word) for word in words]))
    runs = list(scdnet.train_scdnet(args, Path("teacher")))
    assert [run.name for run in runs] == ["scdnet_1_xe", "scdnet_6_scst"]
    assert runs[1].sentences["previous"] == args.out / "scdnet/4_scst.jsonl"
    monkeypatch.undo()
    (words,) = ran  # no retriever is built where the sentences are there
    shown = subprocess.run([words[0], "-n", *words[1:]], capture_output=True, text=True, check=True).stdout
    assert shown.count("train_scdnet.py") == 2 and shown.count("train_scst.py") == 2
    assert shown.count(f"--backbone {args.data}/vision_backbone") == 2
    assert shown.count(f"retrieved={args.out}/retrieved.jsonl") == 6 and "--model teacher" in shown
    assert "9_scst" not in shown


def test_the_curve_of_a_trained_captioner(args, monkeypatch, capsys):
    bench = importlib.import_module("bench_scdnet")
    folder = args.out / "scdnet"
    files = {"model": folder / "5_xe", "annotations": args.annotations, "features": args.out / "features"}
    files |= {"retrieved": args.out / "retrieved.jsonl", "previous": folder / "3_xe.jsonl", "out": args.out / "curve"}
    words = [word for name, value in files.items() for word in (f"--{name}", str(value))]
    more = "--split test --num-images 2 --steps 1 3 --spacings 1 2 --self-conditions none previous"
    monkeypatch.setattr(sys, "argv", ["bench_scdnet", "curve", *words, *more.split()])
    bench.main()
    printed = capsys.readouterr().out
    table = (args.out / "curve/curve.md").read_text()
    assert table in printed and len(table.splitlines()) == 2 + (1 + 2) * 2 * 2 + 2
    first = table.splitlines()[2]  # the paper's sampler with the most steps
    assert first.startswith("| paper | none | 1.0 | 3 | ") and "| +0.0 (+0.0 to +0.0) |" in first
    results = json.loads((args.out / "curve/curve.json").read_text())
    assert all(len(result["scores"]) == 2 and result["milliseconds"] > 0 for result in results)
    assert (args.out / "curve/curve.png").stat().st_size


def test_the_first_stage_of_a_cascade_has_steps_of_its_own(args):
    bench = importlib.import_module("bench_scdnet")
    options = {"sampler": "paper", "first_steps": 10, "num_inference_steps": 4, "time_difference": 1.0}
    expected = {"sampler": "paper", "num_inference_steps": [10, 4], "time_difference": [9.0, 1.0]}
    assert bench.generate_options(options) == expected
