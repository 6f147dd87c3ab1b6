"""Smoke runs of benchmarks, so that the tables of docs/results.md can be made again."""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import sys
from pathlib import Path

import pytest

from hf_captioners.data.drawn.world import write_sample_world

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 40, "unk_token_id": 39}
SCDNET = json.dumps(SIZES, separators=(",", ":"))
SATIC = json.dumps(
    {
        **{"d_model": 16, "ffn_dim": 16, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1},
        **{"vocab_size": 40, "unk_token_id": 39},
    },
    separators=(",", ":"),
)
EXPANSIONNET = json.dumps(
    {
        **{"d_model": 16, "ffn_dim": 16, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1},
        **{"encoder_expansion_groups": [2], "decoder_expansion_size": 2, "vocab_size": 90},
        "vision_config": {
            **{"model_type": "swin", "image_size": 64, "embed_dim": 8},
            **{"depths": [1, 1], "num_heads": [1, 2], "window_size": 4},
        },
    },
    separators=(",", ":"),
)
RUNS = {
    "bench_any_captioner": "--width 32 --image-size 32 --images 2 --tokens 2 --candidates 2 --num-beams 2 --repeats 1",
    "bench_caption_files": "speed --pictures 3 --batch-size 2 --num-beams 1 --tokens 2 --repeats 1",
    "bench_detector": "--size 64 64 --proposals 4 --repeat 1",
    "bench_export_speed": f"--captioners satic --repeats 1 --sizes {SATIC}",
    "bench_fast": f"speed --systems satic --tokens 2 --repeats 1 --sizes {SATIC}",
    "bench_generate": f"--batch-sizes 1 --num-beams 2 --tokens 2 --repeats 1 --sizes {EXPANSIONNET}",
    "bench_gpu": f"--device cpu --no-compile --no-training --systems satic --batch-sizes 1 --tokens 2 --repeats 1 "
    f"--sizes {SATIC}",
    "bench_reward_training": "--only scst --repeats 1 --pictures 2 --samples 2 --words 3 --vocabulary 60 --grid 4",
    "bench_rivals": "--others git --systems satic --tokens 2 --num-beams 2 --repeats 1 --width 32 --image-size 32 "
    f"--sizes {SATIC}",
    "bench_satic": "--fast --batch-sizes 2 --group-sizes 1 2 --regions 3 --tokens 2 --repeats 1",
    "bench_xe_training": "--cases 2x1 1x2 --repeats 1 --vocabulary 60 --grid 4",
    "bench_scdnet": f"speed --batch-sizes 1 --steps 2 1 --repeats 1 --sizes {SCDNET}",
}


@pytest.fixture(autouse=True)
def logs_again():
    """Benchmarks are silent; other tests read logs."""
    yield
    logging.disable(logging.NOTSET)


# further tables of the same benchmarks
OTHER_RUNS = [
    ("bench_caption_files", "features --pictures 3 --batch-size 2 --repeats 1"),
    ("bench_fast", f"words --cases SATIC --tokens 2 --repeats 1 --sizes {SATIC}"),
    ("bench_reward_training", "--only dico --small --repeats 1 --dico-images 2 --beams 2 --length 4"),
]


@pytest.mark.parametrize(("name", "words"), [*RUNS.items(), *OTHER_RUNS])
def test_prints_a_table_of_numbers(name, words, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    importlib.import_module(name).main()
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(rows) > 2 and any(character.isdigit() for character in rows[-1])
    assert "nan" not in " ".join(rows)


def test_an_export(tiny_captioner_dir, tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    world = write_sample_world(tmp_path / "world", num_train=1, num_val=1, num_test=2, size=32)
    words = [str(tiny_captioner_dir), "--annotations", str(world / "dataset_karpathy.json")]
    words += ["--image-root", str(world / "images"), "--greedy-graph", "loop"]
    monkeypatch.setattr(sys, "argv", ["bench_export", *words])
    importlib.import_module("bench_export").main()
    rows = [line.split("|")[2:4] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    ways = ["torch float32", "onnx float32", "onnx float32, one graph (loop)", "onnx int8"]
    assert [way.strip() for way, _ in rows] == ways
    assert [same.strip() for _, same in rows[:3]] == ["100%"] * 3


def test_metrics(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    annotations = [{"image_id": number // 2, "caption": f"a dog runs {number}"} for number in range(8)]
    predictions = [{"image_id": number, "caption": "a dog runs"} for number in range(4)]
    for name, content in (("captions", {"annotations": annotations}), ("results_satic", predictions)):
        with gzip.open(tmp_path / f"{name}_val2014.json.gz", "wt") as file:
            json.dump(content, file)
    (tmp_path / "karpathy_test_image_ids.txt").write_text("0 1 3")
    monkeypatch.setattr(sys, "argv", ["bench_metrics", "--captions", str(tmp_path)])
    benchmark = importlib.import_module("bench_metrics")
    monkeypatch.setattr(benchmark.shutil, "which", lambda name: None)  # without Java
    benchmark.main()
    printed = capsys.readouterr().out
    assert "3 pictures, 6 references" in printed and "val2014, 4 pictures, 8 references" in printed
    assert "| meteor |" in printed and "captions/s" in printed


def test_threads_of_a_training(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["bench_threads", "--train", "--steps", "1"])
    importlib.import_module("bench_threads").main()
    assert min(json.loads(capsys.readouterr().out).values()) > 0


def test_a_feature_store(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    words = f"--images 6 --regions 3 --width 8 --batch-size 4 --rounds 1 --stores 2 --folder {tmp_path}".split()
    importlib.import_module("bench_feature_store").main(words)
    rates = json.loads(capsys.readouterr().out)["images_per_second"]
    assert list(rates) == ["store", "memmap", "collator", "rechecked"] and min(rates.values()) > 0


def test_memory_as_pictures_go_by(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    words = "memory --pictures 6 --batch-size 2 --num-beams 1 --tokens 2 --rows 3"
    monkeypatch.setattr(sys, "argv", ["bench_caption_files", *words.split()])
    importlib.import_module("bench_caption_files").main()
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [int(row[0]) for row in rows] == [2, 4, 6]
    assert all(10 < float(number) < 100_000 for row in rows for number in row[1:])


def test_scdnet_that_computes_everything_in_each_step_writes_the_same(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    torch, plain = importlib.import_module("torch"), importlib.import_module("bench_scdnet").PlainScdnet
    from contracts.tiny_scdnet import small_model

    ours = small_model()
    other = plain(ours.config).eval()
    other.load_state_dict(ours.state_dict())
    features = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))
    inputs = {"image_features": features, "retrieved_ids": torch.tensor([[1, 7, 8], [1, 9, 8], [1, 4, 5]])}
    options = {"num_inference_steps": 6, "return_dict_in_generate": True}
    states = [model.generate(**inputs, **options).stages[0].state for model in (ours, other)]
    torch.testing.assert_close(*states, atol=1e-4, rtol=1e-4)
