"""The same captions by one process, by two of which one is killed, and by Ray of which an actor is killed.

Of drawn pictures, and with `--run-slow` of Flickr8k's, packed into tars.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.killed_captioning import caption_until_killed
from PIL import Image

from hf_captioners.cli import main

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "caption_ray.py"
SHARDS = 4


def drawn(seed: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)).save(file, "JPEG")
    return file.getvalue()


def pack(folder: Path, pictures: dict[str, bytes]) -> str:
    """WebDataset's layout: tars of pictures with captions of their own beside them, which nobody reads here."""
    names, size = sorted(pictures), -(-len(pictures) // SHARDS)
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number:06d}.tar", "w") as archive:
            for name in names[number * size : (number + 1) * size]:
                for member, content in ((name, pictures[name]), (f"{Path(name).stem}.txt", b"a picture")):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    return f"{folder}/{{000000..{SHARDS - 1:06d}}}.tar"


@pytest.fixture(scope="module", params=["drawn", pytest.param("flickr8k", marks=pytest.mark.slow)])
def shards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """Pattern of the tars, and how many pictures are in them."""
    if request.param == "drawn":
        pictures = {f"{seed:03d}.jpg": drawn(seed) for seed in range(40)} | {"017.jpg": b"no picture"}
    else:
        folder = request.getfixturevalue("shared_data") / "flickr8k_mini" / "images"
        pictures = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".jpg"}
        assert len(pictures) == 3600
    return pack(tmp_path_factory.mktemp("shards"), pictures), len(pictures)


@pytest.fixture(scope="module")
def options(tiny_captioner_dir: Path) -> list[Any]:
    return ["--model", tiny_captioner_dir, "--batch-size", 6, "--max-new-tokens", 8, "--log-every", 500]


def records_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def expected(shards: tuple[str, int], options: list[Any], tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Records of one process."""
    out = tmp_path_factory.mktemp("one") / "captions.jsonl"
    main.main(["caption", *map(str, [shards[0], "--out", out, *options])])
    records = records_of(out)
    assert len(records) == shards[1] and len({record.get("caption") for record in records}) > 5
    return records


def test_two_processes_of_which_one_is_killed(shards, options, expected, tmp_path, monkeypatch):
    out = tmp_path / "captions.jsonl"
    arguments = [*map(str, [shards[0], "--out", out, *options])]
    monkeypatch.setenv("WORLD_SIZE", "2")
    caption_until_killed(arguments, shards[1] // 4, {"RANK": "1", "WORLD_SIZE": "2"})
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        main.main(["caption", *arguments])
    assert main.main(["caption", "--merge", str(out)]) == any("error" in record for record in expected)
    assert records_of(out) == expected


@pytest.fixture(scope="module")
def cluster():
    """A local Ray."""
    ray = pytest.importorskip("ray", reason="needs ray, of the extra ray")
    ray.init(num_cpus=4, include_dashboard=False, object_store_memory=2**28, logging_level="warning")
    yield ray
    ray.shutdown()


def test_ray_of_which_an_actor_is_killed(cluster, shards, tiny_captioner_dir, expected, tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("caption_ray", EXAMPLE)
    caption_ray = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(caption_ray)
    mark, batches, base = tmp_path / "killed", 5 if shards[1] == 40 else 50, caption_ray.CaptionBatches

    class Mortal(base):  # sent to the actors by its content
        done = 0

        def __call__(self, batch):
            self.done += 1
            if self.done == batches // 2 and not mark.exists():
                mark.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__call__(batch)

    monkeypatch.setattr(caption_ray, "CaptionBatches", Mortal)
    out, source = tmp_path / "captioned", str(Path(shards[0]).parent)
    options = ["--format", "webdataset", "--actors", "2", "--batch-size", "6", "--max-new-tokens", "8"]
    caption_ray.main([source, str(out), "--model", str(tiny_captioner_dir), *options])
    assert mark.exists()
    found: dict[str, dict[str, str]] = {}
    for path in sorted(out.glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, field = member.name.partition(".")
                assert found.setdefault(key, {}).setdefault(field, member.name) == member.name  # once
                if field != "jpg":
                    found[key][field] = archive.extractfile(member).read().decode()
    captions = {Path(record["image"]).stem: record.get("caption") for record in expected}
    assert {key: fields.get("caption.txt") for key, fields in found.items()} == captions
    assert {key for key, fields in found.items() if "error.txt" in fields} == {
        Path(record["image"]).stem for record in expected if "error" in record
    }
    assert all({"jpg", "txt"} <= set(fields) for fields in found.values())
