"""`hf-captioners regions` and `features --detector`: output, exit status, and mistakes in the arguments."""

from __future__ import annotations

import json
import random

import pytest
from contracts import colour_detector
from PIL import Image

from hf_captioners.cli.main import main
from hf_captioners.data.drawn.drawing import draw_scene
from hf_captioners.data.drawn.scene import Scene, Thing
from hf_captioners.data.features.store import FeatureStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved detector, and pictures beside it."""
    path = tmp_path_factory.mktemp("regions")
    for part in colour_detector.build():
        part.save_pretrained(path / "detector")
    (path / "pictures").mkdir()
    for name, (first, second) in (("1", ("red", "blue")), ("2", ("green", "black"))):
        things = Thing("star", first, "small"), Thing("star", second, "small")
        picture = draw_scene(Scene(things, relation="left of"), colour_detector.SIDE, random.Random(0))
        picture.save(path / "pictures" / f"{name}.png")
    return path


def test_regions(folder, tmp_path, capfd):
    picture, out = folder / "pictures" / "1.png", tmp_path / "out.png"
    assert main(["regions", str(picture), "--detector", str(folder / "detector"), "--out", str(out)]) == 0
    records = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert sorted(record["object"] for record in records) == ["blue", "red"]
    with Image.open(out) as drawn, Image.open(picture) as original:
        assert drawn.size == original.size and drawn.convert("RGB") != original


def test_fewer_regions(folder, capfd):
    picture = str(folder / "pictures" / "1.png")
    assert main(["regions", picture, "--detector", str(folder / "detector"), "--max-regions", "1"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--detector", "nowhere"], "--detector nowhere: no such folder"),
        (["--detector", "DETECTOR", "--out", "x.gif"], "x.gif: a picture of regions is written as .png or .jpg"),
        (["--detector", "DETECTOR", "--min-regions", "50"], "min_regions=50"),
        (["--detector", "DETECTOR", "--device", "cuda:99"], "cuda:99"),
    ],
)
def test_mistakes(folder, capfd, more, message):
    words = [str(folder / "detector") if word == "DETECTOR" else word for word in more]
    assert main(["regions", str(folder / "pictures" / "1.png"), *words]) == 2
    assert message in capfd.readouterr().err


def test_a_picture_that_is_not_there(folder, capfd):
    assert main(["regions", "nothing.jpg", "--detector", str(folder / "detector")]) == 2
    assert "nothing.jpg: no such file" in capfd.readouterr().err


class TestFeatures:
    def run(self, folder, *words):
        return main(["features", *map(str, words), "--detector", str(folder / "detector"), "--device", "cpu"])

    def test_a_folder(self, folder, tmp_path, capfd):
        assert self.run(folder, folder / "pictures", "--out", tmp_path / "store", "--show", tmp_path / "show") == 0
        summary = json.loads(capfd.readouterr().out)
        assert (summary["count"], summary["added"], summary["errors"]) == (2, 2, 0)
        assert FeatureStore(tmp_path / "store").ids == [1, 2]
        assert sorted(path.name for path in (tmp_path / "show").iterdir()) == ["1.jpg", "2.jpg"]

    def test_a_dataset(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        images = [
            {
                "filename": f"{number}.png",
                "imgid": number,
                "cocoid": 100 + number,
                "split": "train",
                "sentences": [{"raw": "two stars", "sentid": number}],
            }
            for number in (1, 2)
        ]
        (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
        words = ["--annotations", tmp_path / "dataset.json", "--image-root", folder / "pictures"]
        assert self.run(folder, *words, "--out", tmp_path / "store", "--append-boxes", "--splits", "train") == 0
        store = FeatureStore(tmp_path / "store")
        assert store.ids == [101, 102] and store[101].shape == (2, 37)

    def test_other_layouts(self, folder, tmp_path, capfd):
        for layout in ("npz", "tsv"):
            out = tmp_path / layout
            assert self.run(folder, folder / "pictures", "--out", out, "--format", layout) == 0
            assert json.loads(capfd.readouterr().out)["count"] == 2
        assert {path.name for path in (tmp_path / "npz").glob("*.npz")} == {"1.npz", "2.npz"}
        assert len((tmp_path / "tsv").read_text().splitlines()) == 2

    def test_a_broken_picture(self, folder, tmp_path, capfd, caplog):
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0")
        words = [folder / "pictures" / "1.png", tmp_path / "broken.jpg"]
        assert self.run(folder, *words, "--out", tmp_path / "store") == 1
        assert json.loads(capfd.readouterr().out)["errors"] == 1 and "broken.jpg" in caplog.text

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "--detector needs pictures, or --annotations with --image-root, --data-dir or --dataset"),
            (["x", "--annotations", "a", "--image-root", "b"], "--detector needs pictures, or --annotations"),
            (["x", "--batch-size", "3"], "--batch-size needs --model"),
            (["x", "--norm", "l2"], "--norm needs --regions"),
            (["x", "--model", "y"], "--model does not go with --detector"),
            (["x", "--format", "npz", "--append-boxes"], "append_boxes is for a store"),
        ],
    )
    def test_mistakes(self, folder, tmp_path, capfd, words, message):
        assert self.run(folder, *words, "--out", tmp_path / "out") == 2
        assert message in capfd.readouterr().err
