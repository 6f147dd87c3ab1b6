"""An export is what `load_dataset` reads: pictures byte for byte, captions, splits; on a disk and over the Hub."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
from contracts.loopback_hub import READER, LoopbackHub
from huggingface_hub import DatasetCard
from PIL import Image

from hf_captioners.cli.main import main
from hf_captioners.data.captions.export import export_dataset
from hf_captioners.data.captions.splits import load_splits
from hf_captioners.data.fingerprint import fingerprint_of_splits

ROOT = Path(__file__).resolve().parents[3]
SPLITS = ("train", "train", "train", "val")


@pytest.fixture
def source(tmp_path, monkeypatch):
    """Four pictures in Karpathy's layout; the cache of `datasets` is the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "images").mkdir()
    entries = []
    for number, split in enumerate(SPLITS):
        noise = np.random.default_rng(number).integers(0, 255, (30, 40 + number, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / "images" / f"{number}.jpg")
        sentences = [
            {"raw": f"picture {number} .", "sentid": 2 * number},
            {"raw": "one more", "sentid": 2 * number + 1},
        ]
        entries.append({"filename": f"{number}.jpg", "imgid": number, "split": split, "sentences": sentences})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": entries}))
    return str(tmp_path / "dataset.json"), str(tmp_path / "images")


def test_load_dataset_reads_it(source, tmp_path):
    splits = load_splits(*source)
    exported = export_dataset(splits, tmp_path / "out", shard_bytes=1)  # a picture a file
    assert exported.splits == {"train": 3, "val": 1}
    files = sorted(path.name for path in (tmp_path / "out" / "data").iterdir())
    assert files == [f"train-0000{n}-of-00003.parquet" for n in range(3)] + ["val-00000-of-00001.parquet"]
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "loaded"))
    assert set(loaded) == {"train", "val"} and loaded["train"].column_names == [
        "image", "image_id", "file_name", "captions", "sentence_ids",
    ]  # fmt: skip
    closed = loaded["train"].cast_column("image", datasets.Image(decode=False))
    for number, (row, opened) in enumerate(zip(closed, loaded["train"], strict=True)):
        original = Path(source[1], f"{number}.jpg")
        assert row["image"] == {"bytes": original.read_bytes(), "path": original.name}
        assert opened["image"].size == (40 + number, 30)
        assert row["captions"] == [f"picture {number} .", "one more"]
        assert (row["image_id"], row["sentence_ids"]) == (number, [2 * number, 2 * number + 1])
    assert fingerprint_of_splits(loaded) == fingerprint_of_splits(splits) == exported.fingerprint


def test_the_card(source, tmp_path):
    exported = export_dataset(load_splits(*source), tmp_path / "out", name="me/mine")
    card = DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.to_dict()["configs"] == [
        {
            "config_name": "default",
            "data_files": [{"split": split, "path": f"data/{split}-*"} for split in ("train", "val")],
        }
    ]
    assert card.data.task_categories == ["image-to-text"]
    assert exported.fingerprint.hash in card.text and 'load_dataset("me/mine", split="train")' in card.text
    assert "| train | 3 | 6 |" in card.text and "4 captioned pictures, with 8 captions" in card.text


def test_refused(source, tmp_path):
    splits = load_splits(*source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    with pytest.raises(ValueError, match="full: must be a new or an empty folder"):
        export_dataset(splits, tmp_path / "full")
    with pytest.raises(ValueError, match="train: rows without pictures are not exported"):
        export_dataset({"train": splits["train"].remove_columns("image")}, tmp_path / "out")
    with pytest.raises(ValueError, match="val: no rows in it"):
        export_dataset({**splits, "val": splits["val"].select([])}, tmp_path / "out")
    Path(source[1], "2.jpg").unlink()
    with pytest.raises(OSError, match=r"2\.jpg"):
        export_dataset(splits, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command(source, tmp_path, capfd):
    export = ["data", "export", source[0], "--image-root", source[1], "--out", str(tmp_path / "out")]
    assert main(export) == 0
    out, err = capfd.readouterr()
    assert out == f"{tmp_path / 'out'}\n" and '{"train": 3, "val": 1}' in err
    assert main(["data", "check", str(tmp_path / "out")]) == 2  # a folder of Parquet files is for load_dataset
    assert main([*export, "--private"]) == 2
    assert "--private is of the Hub" in capfd.readouterr().err
    Path(source[1], "0.jpg").unlink()
    assert main([*export[:-1], str(tmp_path / "other"), "--on-bad-row", "skip"]) == 0
    assert '{"train": 2, "val": 1}' in capfd.readouterr().err
    Path(source[1], "0.jpg").write_bytes(b"no picture")
    assert main([*export[:-1], str(tmp_path / "third")]) == 2
    assert "pictures of train: 1 of 3 pictures cannot be opened" in capfd.readouterr().err


def test_tars_and_data_sets_of_datasets(source, tmp_path, capfd):
    """The same pictures in three layouts: checked, exported, and checked again, with one fingerprint."""
    splits = load_splits(*source)
    export_dataset(splits, tmp_path / "parquet")
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for rows in splits.values():
            for row in rows.cast_column("image", datasets.Image(decode=False)):
                captions = json.dumps(row["captions"]).encode()
                content = Path(row["image"]["path"]).read_bytes()
                for suffix, member in (("jpg", content), ("json", captions)):
                    info = tarfile.TarInfo(f"{row['image_id']}.{suffix}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))
    capfd.readouterr()
    marks = {}
    for name, place in (("tars", [str(tmp_path / "*.tar")]), ("named", ["--dataset", str(tmp_path / "parquet")])):
        for words in (place, ["--dataset", str(tmp_path / f"from_{name}")]):
            assert main(["data", "check", *words, "--json"]) == 1  # few words
            report = json.loads(capfd.readouterr().out)
            assert [finding["what"] for finding in report["findings"]] == [
                "different words in all captions, fewer than 20"
            ]
            assert sum(split["images"] for split in report["splits"].values()) == 4
            marks[name, words is place] = report["fingerprint"]["hash"]
            if words is place:
                assert main(["data", "export", *words, "--out", str(tmp_path / f"from_{name}")]) == 0
                capfd.readouterr()
    assert set(marks.values()) == {fingerprint_of_splits(splits).hash}
    for words, said in (
        (["x", "--dataset", "y"], "give SOURCE or --dataset"),
        (["x", "--caption-column", "y"], "--caption-column without effect: they are of --dataset"),
        (["--dataset", str(tmp_path / "parquet"), "--caption-column", "y"], "no column 'y'"),
        (["--dataset", "me/nowhere"], "me/nowhere"),
    ):
        assert main(["data", "check", *words]) == 2
        assert said in capfd.readouterr().err


PUSH = """
import sys
from hf_captioners.cli.main import main
sys.exit(main(["data", "export", sys.argv[1], "--image-root", sys.argv[2], "--out", "me/mine", "--private"]))
"""
LOAD = """
import json, sys
from datasets import load_dataset
splits = load_dataset("me/mine")
print(json.dumps({name: [[row["image"].size, row["captions"]] for row in rows] for name, rows in splits.items()}))
"""


def client(code, *words, env, cwd):
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, env={**env, "PYTHONPATH": str(ROOT)}, cwd=cwd)


def test_over_the_hub_and_back(source, tmp_path):
    with LoopbackHub() as hub:
        refused = client(PUSH, *source, env=hub.environment(tmp_path / "reader", READER), cwd=tmp_path)
        assert refused.returncode == 2 and "the token may only read" in refused.stderr and not hub.repositories
        env = hub.environment(tmp_path / "home")
        pushed = client(PUSH, *source, env=env, cwd=tmp_path)
        assert pushed.returncode == 0, pushed.stderr[-3000:]
        repository = hub.repositories["me/mine"]
        assert repository.private and len(repository.commits) == 2  # the Hub's own first one, and the push
        files = repository.commits[repository.refs["main"]]
        assert {name for name in files if name != ".gitattributes"} == {
            "README.md", "data/train-00000-of-00001.parquet", "data/val-00000-of-00001.parquet",
        }  # fmt: skip
        loaded = client(LOAD, env=env, cwd=tmp_path)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
    assert json.loads(loaded.stdout.splitlines()[-1]) == {
        "train": [[[40 + n, 30], [f"picture {n} .", "one more"]] for n in range(3)],
        "val": [[[43, 30], ["picture 3 .", "one more"]]],
    }
