"""Regions of pictures into stores and files, by a detector whose answers are known (contracts/colour_detector)."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from contracts import colour_detector
from PIL import Image

from hf_captioners.data.drawn.drawing import draw_scene
from hf_captioners.data.drawn.scene import Scene, Thing
from hf_captioners.data.features.region_tsv import read_tsv
from hf_captioners.data.features.regions import RegionFeatures, write_region_features
from hf_captioners.data.features.store import FeatureError, FeatureStore
from hf_captioners.inference.detect_regions import RegionDetector, images_by_id, write_detected_regions

COLOURS = {7: ["black", "red"], "sea": ["blue", "green"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved detector."""
    path = tmp_path_factory.mktemp("detector")
    for part in colour_detector.build():
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def detector(folder):
    return RegionDetector.from_pretrained(folder, "cpu")


@pytest.fixture
def images(tmp_path):
    """Two pictures of two stars each, and a broken file."""
    paths = []
    for name, (first, second) in (("007", COLOURS[7]), ("sea", COLOURS["sea"])):
        things = Thing("star", first, "small"), Thing("star", second, "small")
        paths.append(tmp_path / f"{name}.png")
        picture = draw_scene(Scene(things, relation="left of"), colour_detector.SIDE, random.Random(0))
        picture.resize((448, 448), Image.Resampling.NEAREST).save(paths[-1])
    paths.append(tmp_path / "broken.jpg")
    paths[-1].write_bytes(b"\xff\xd8\xff\xe0")
    return images_by_id(paths)


def test_names_and_boxes(detector, images):
    for image_id, path in images[:2]:
        regions = detector(path)
        assert sorted(regions.objects) == COLOURS[image_id]
        left, right = sorted(regions.records(), key=lambda record: record["box"][0])
        assert [left["object"], right["object"]] == COLOURS[image_id]
        assert regions.arrays.height == regions.arrays.width == 448
        assert left["box"][2] - left["box"][0] == 2 * 45  # twice the size that the anchor was made for
        assert set(regions.attribute_names) <= {"pale", "dark"}


def test_store(detector, images, tmp_path, caplog):
    summary = write_detected_regions(detector, images, tmp_path / "store", dtype=torch.float32)
    assert (summary.count, summary.added, list(summary.errors)) == (2, 2, ["broken"])
    assert "image 'broken' has no regions" in caplog.text
    store = FeatureStore(tmp_path / "store")
    assert store.ids == [7, "sea"] and "broken" in store.errors
    for image_id, path in images[:2]:
        arrays = detector(path).arrays
        assert np.array_equal(store[image_id].numpy(), arrays.features)
        assert np.array_equal(store.extra(image_id, "boxes").numpy(), arrays.boxes)
        assert store.extra(image_id, "labels").tolist() == arrays.labels.tolist()
        assert store.extra(image_id, "image_size").tolist() == [448, 448]
    with pytest.raises(FeatureError, match="has no 'depth' beside the features of image 7"):
        store.extra(7, "depth")


@pytest.mark.parametrize("layout", ["store", "npz", "tsv"])
def test_a_second_run_goes_on(detector, images, tmp_path, layout):
    options = {"layout": layout}
    out = tmp_path / "out"
    assert write_detected_regions(detector, images[:1], out, **options).count == 1
    shown = []
    summary = write_detected_regions(detector, images, out, **options, show=lambda *args: shown.append(args[0]))
    assert (summary.count, summary.added) == (2, 1) and shown == ["sea"]
    assert summary.num_bytes > 0
    other = RegionDetector(detector.model, detector.image_processor, max_regions=1)
    with pytest.raises(FeatureError, match="max_regions"):
        write_detected_regions(other, images, out, **options)


def test_npz_is_read_by_the_region_features(detector, images, tmp_path):
    write_detected_regions(detector, images, tmp_path / "npz", layout="npz")
    with RegionFeatures(tmp_path / "npz") as regions:
        assert regions.ids == [7, "sea"]
        assert np.array_equal(regions["sea"], detector(images[1][1]).arrays.features)
    with np.load(tmp_path / "npz" / "7.npz", allow_pickle=False) as file:
        assert int(file["image_h"]) == 448 and int(file["num_boxes"]) == 2
        assert file["objects_id"].tolist() == detector(images[0][1]).arrays.labels.tolist()


def test_boxes_in_the_features_are_those_of_the_files(detector, images, tmp_path):
    """`append_boxes` gives what the npz files with their boxes give in two steps."""
    write_detected_regions(detector, images, tmp_path / "npz", layout="npz")
    write_detected_regions(detector, images, tmp_path / "store", append_boxes=True, dtype=torch.float32)
    sizes = {7: (448, 448), "sea": (448, 448)}
    with RegionFeatures(tmp_path / "npz", boxes=tmp_path / "npz", image_sizes=sizes) as regions:
        write_region_features(regions, tmp_path / "two", dtype=torch.float32)
    one, two = FeatureStore(tmp_path / "store"), FeatureStore(tmp_path / "two")
    for image_id in sizes:
        torch.testing.assert_close(one[image_id], two[image_id])
        assert one[image_id].shape[1] == detector.model.config.feature_size + 5


def test_tsv(detector, images, tmp_path):
    write_detected_regions(detector, images, tmp_path / "regions.tsv", layout="tsv")
    rows = list(read_tsv(tmp_path / "regions.tsv"))
    assert [row[0] for row in rows] == [7, "sea"]
    for (_, boxes, features, size), (_, path) in zip(rows, images, strict=False):
        arrays = detector(path).arrays
        assert np.array_equal(boxes, arrays.boxes) and np.array_equal(features, arrays.features)
        assert size == (448, 448)
    line = (tmp_path / "regions.tsv").read_text().splitlines()[0].split("\t")
    assert line[:4] == ["7", "448", "448", "2"]


def test_a_tsv_line_that_was_cut_off_is_written_again(detector, images, tmp_path):
    out = tmp_path / "regions.tsv"
    write_detected_regions(detector, images[:2], out, layout="tsv")
    whole = out.read_bytes()
    out.write_bytes(whole[:-40])
    assert write_detected_regions(detector, images[:2], out, layout="tsv").added == 1
    assert out.read_bytes() == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [("1\t2\t3\n", "line 1 has 3 fields"), ("\t2\t3\t4\t5\t6\n", "line 1: image_id is ''")],
)
def test_other_files_are_not_appended_to(detector, images, tmp_path, text, message):
    (tmp_path / "regions.tsv").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_detected_regions(detector, images, tmp_path / "regions.tsv", layout="tsv")
    assert (tmp_path / "regions.tsv").read_text() == text


def test_workers_change_nothing(detector, images, tmp_path):
    write_detected_regions(detector, images, tmp_path / "a", layout="tsv")
    write_detected_regions(detector, images, tmp_path / "b", layout="tsv", num_workers=1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_ids(tmp_path):
    assert images_by_id(["a/0042.jpg", "b/cat.png"]) == [(42, "a/0042.jpg"), ("cat", "b/cat.png")]
    with pytest.raises(ValueError, match=r"a/7\.png and b/7\.jpg would both be image 7"):
        images_by_id(["a/7.png", "b/7.jpg"])


class TestRefusals:
    def test_another_model(self, tiny_captioner_dir):
        with pytest.raises(ValueError, match="of the type expansionnet_v2, expected bottom_up"):
            RegionDetector.from_pretrained(tiny_captioner_dir)

    def test_no_model(self, tmp_path):
        with pytest.raises(ValueError, match="no detector could be loaded"):
            RegionDetector.from_pretrained(tmp_path)

    def test_settings(self, folder):
        with pytest.raises(ValueError, match="max_proposals must be at least 1"):
            RegionDetector.from_pretrained(folder, max_proposals=0)
        with pytest.raises(ValueError, match=r"min_regions=50 .* max_regions=10"):
            RegionDetector.from_pretrained(folder, min_regions=50)

    def test_layouts(self, detector, images, tmp_path):
        with pytest.raises(ValueError, match="layout='csv', expected one of store, npz, tsv"):
            write_detected_regions(detector, images, tmp_path / "out", layout="csv")
        with pytest.raises(ValueError, match="append_boxes is for a store"):
            write_detected_regions(detector, images, tmp_path / "out", layout="npz", append_boxes=True)

    def test_a_name_that_is_no_file(self, detector, images, tmp_path):
        summary = write_detected_regions(detector, [("../x", images[0][1])], tmp_path / "out", layout="npz")
        assert "without slashes" in summary.errors["../x"]
        assert json.loads((tmp_path / "out" / "detector.json").read_text())["detector"]
