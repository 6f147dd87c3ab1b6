"""Region features into the store: bit for bit, with boxes as the definition says, past whatever is broken."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from hf_captioners.data.features.regions import (
    RegionFeatures,
    read_image_sizes,
    write_region_features,
)
from hf_captioners.data.features.store import FeatureError, FeatureStore
from hf_captioners.modeling.captioner_detector import box_features

SIZES = {3: (640, 480), 5: (100, 50), 8: (333, 500)}


def features_of(image_id, regions):
    rng = np.random.default_rng(image_id)
    return rng.random((regions, 6), dtype=np.float32)


def boxes_of(image_id, regions):
    """Boxes with corners in the picture; the last two have equal areas."""
    width, height = SIZES[image_id]
    rng = np.random.default_rng(100 + image_id)
    xs = np.sort(rng.uniform(0, width, (regions, 2)), axis=1)
    ys = np.sort(rng.uniform(0, height, (regions, 2)), axis=1)
    boxes = np.stack([xs[:, 0], ys[:, 0], xs[:, 1], ys[:, 1]], axis=1).astype(np.float32)
    boxes[-1] = boxes[-2] = [1, 2, 9, 8]
    return boxes


NUMBERS = {3: 10, 5: 4, 8: 36}
FEATURES = {image_id: features_of(image_id, regions) for image_id, regions in NUMBERS.items()}
BOXES = {image_id: boxes_of(image_id, regions) for image_id, regions in NUMBERS.items()}


@pytest.fixture
def folder(tmp_path):
    """SATIC's two folders, `cocobu_att` and `cocobu_box`."""
    for name in ("cocobu_att", "cocobu_box"):
        (tmp_path / name).mkdir()
    for image_id in NUMBERS:
        np.savez_compressed(tmp_path / "cocobu_att" / f"{image_id}.npz", feat=FEATURES[image_id])
        np.save(tmp_path / "cocobu_box" / f"{image_id}.npy", BOXES[image_id])
    return tmp_path


@pytest.fixture
def hdf5(tmp_path):
    """The layout of `coco_detections.hdf5`."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "detections.hdf5", "w") as file:
        for image_id in NUMBERS:
            file[f"{image_id}_features"] = FEATURES[image_id]
            file[f"{image_id}_boxes"] = BOXES[image_id]
            file[f"{image_id}_cls_prob"] = np.ones((NUMBERS[image_id], 7))
    return tmp_path / "detections.hdf5"


def with_boxes(image_id, features):
    """The definition, region by region, in Python's own numbers."""
    width, height = SIZES[image_id]
    rows = []
    for vector, (x1, y1, x2, y2) in zip(features.tolist(), BOXES[image_id].tolist(), strict=True):
        share = (x2 - x1) * (y2 - y1) / (width * height)
        rows.append([*vector, x1 / width, y1 / height, x2 / width, y2 / height, share])
    return sorted(rows, key=lambda row: row[-1], reverse=True)  # of equal ones the first stays first


def same_store(path, expected, tolerance=0.0):
    store = FeatureStore(path)
    assert store.ids == list(expected)
    for image_id, features in expected.items():
        assert store[image_id].shape == np.shape(features)
        assert np.allclose(store[image_id].double().numpy(), features, rtol=0, atol=tolerance)
    return True


class TestFeatures:
    def test_every_image_has_its_own_number_of_regions(self, folder):
        with RegionFeatures(folder / "cocobu_att") as regions:
            assert (len(regions), regions.ids) == (3, [3, 5, 8])
            summary = write_region_features(regions, folder / "out", dtype=torch.float32)
        assert (summary.count, summary.added, summary.errors) == (3, 3, {})
        assert summary.num_bytes == FeatureStore(folder / "out").num_bytes
        assert same_store(folder / "out", FEATURES)

    def test_half_precision_is_the_default(self, folder):
        write_region_features(RegionFeatures(folder / "cocobu_att"), folder / "out")
        store = FeatureStore(folder / "out")
        assert store.dtype == torch.float16
        assert torch.equal(store[5], torch.from_numpy(FEATURES[5].astype(np.float16)))

    def test_hdf5(self, hdf5, tmp_path):
        with RegionFeatures(hdf5) as regions:
            write_region_features(regions, tmp_path / "out", dtype=torch.float32)
        assert same_store(tmp_path / "out", FEATURES)

    @pytest.mark.parametrize("dtype", [np.float16, ">f4", np.float64, np.longdouble])
    def test_any_floating_point(self, tmp_path, dtype):
        (tmp_path / "in").mkdir()
        np.save(tmp_path / "in" / "3.npy", FEATURES[3].astype(dtype))
        write_region_features(RegionFeatures(tmp_path / "in"), tmp_path / "out", dtype=torch.float32)
        assert same_store(tmp_path / "out", {3: FEATURES[3].astype(dtype).astype(np.float32)})

    def test_l2_norm(self, folder):
        regions = RegionFeatures(folder / "cocobu_att", l2_norm=True)
        write_region_features(regions, folder / "out", dtype=torch.float32)
        expected = {
            image_id: [[value / math.hypot(*vector) for value in vector] for vector in features.tolist()]
            for image_id, features in FEATURES.items()
        }
        assert same_store(folder / "out", expected, 1e-7)


class TestBoxes:
    @pytest.mark.parametrize("layout", ["folder", "hdf5"])
    def test_appended_and_largest_first(self, request, tmp_path, layout):
        source = request.getfixturevalue(layout)
        path, boxes = (source, source) if layout == "hdf5" else (source / "cocobu_att", source / "cocobu_box")
        with RegionFeatures(path, boxes=boxes, image_sizes=SIZES) as regions:
            write_region_features(regions, tmp_path / "out", dtype=torch.float32)
        expected = {image_id: with_boxes(image_id, features) for image_id, features in FEATURES.items()}
        assert same_store(tmp_path / "out", expected, 1e-7)
        assert FeatureStore(tmp_path / "out").feature_size == 11

    def test_norm_is_that_of_the_features_alone(self, folder):
        options = {"boxes": folder / "cocobu_box", "image_sizes": SIZES, "l2_norm": True}
        features = RegionFeatures(folder / "cocobu_att", **options)[8]
        assert np.allclose(np.linalg.norm(features[:, :6], axis=1), 1, atol=1e-6)
        assert np.all(np.diff(features[:, -1]) <= 0)

    @pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float16, np.float64])
    def test_products_do_not_overflow(self, dtype):
        boxes = np.array([[0, 0, 255, 200]], dtype=dtype)
        assert np.allclose(box_features(boxes, 510, 400), [[0, 0, 0.5, 0.5, 0.25]], rtol=1e-6)

    def test_no_regions(self):
        assert box_features(np.zeros((0, 4)), 640, 480).shape == (0, 5)

    @pytest.mark.parametrize(
        ("boxes", "message"),
        [
            (
                [[1, 1, 5, 5], [9, 1, 5, 5]],
                r"box 1 is \[9\.0, 1\.0, 5\.0, 5\.0\], expected x1, y1, x2, y2 inside a pic",
            ),
            ([[1, 9, 5, 5]], "box 0"),
            ([[1, 1, 66, 5]], "inside a picture of 64 x 48 pixels"),
            ([[1, 1, 5, 50]], "box 0"),
            ([[-2, 1, 5, 5]], "box 0"),
            ([[1, float("nan"), 5, 5]], "box 0"),
            ([[0, 0, 0.5, 1.0]], "no coordinate is above 1, expected pixels"),
            ([[1, 1, 5]], r"is float64 of shape \[1, 3\], expected numbers of shape \[num_regions, 4\]"),
            ([1, 1, 5, 5], r"of shape \[4\]"),
        ],
    )
    def test_what_cannot_be(self, boxes, message):
        with pytest.raises(ValueError, match=message):
            box_features(np.array(boxes, dtype=np.float64), 64, 48)

    def test_detectors_round(self):
        box_features(np.array([[-0.4, 0.0, 64.6, 48.0], [1, 1, 65, 49]]), 64, 48)

    def test_without_sizes(self, folder):
        for options in ({"boxes": folder / "cocobu_box"}, {"image_sizes": SIZES}):
            with pytest.raises(ValueError, match="give boxes and image_sizes together"):
                RegionFeatures(folder / "cocobu_att", **options)

    def test_of_other_images(self, folder):
        with pytest.raises(FeatureError, match=r"image_sizes: no size of any image of .*cocobu_att, such as 3"):
            RegionFeatures(folder / "cocobu_att", boxes=folder / "cocobu_box", image_sizes={"3": (4, 5)})
        (folder / "other").mkdir()
        np.save(folder / "other" / "77.npy", BOXES[3])
        with pytest.raises(FeatureError, match=r"other: no boxes of any image of .*cocobu_att"):
            RegionFeatures(folder / "cocobu_att", boxes=folder / "other", image_sizes=SIZES)


class TestBroken:
    def test_is_recorded_by_name_and_the_rest_goes_on(self, folder, caplog):
        path = folder / "cocobu_att"
        (path / "5.npz").write_bytes(b"PK\x03\x04 and no more")
        bad = {
            "20": np.ones(6, dtype=np.float32),  # cocobu_fc, the mean of all regions
            "21": np.ones((2, 6), dtype=np.int64),
            "22": np.ones((0, 6), dtype=np.float32),
            "23": np.full((2, 6), np.nan, dtype=np.float32),
            "24": np.ones((2, 7), dtype=np.float32),
            "25": np.full((2, 6), 1e6, dtype=np.float32),
            "26": np.ones((200, 6), dtype=np.float32),
        }
        for name, array in bad.items():
            np.savez(path / f"{name}.npz", feat=array)
        summary = write_region_features(RegionFeatures(path), folder / "out")
        assert (summary.count, summary.added, sorted(summary.errors)) == (2, 2, [5, 20, 21, 22, 23, 24, 25, 26])
        messages = {
            5: r"5.npz: not readable: ",
            20: "20.npz: is float32 of shape [6], expected floating point of shape [num_regions, feature_size]",
            21: "21.npz: is int64 of shape [2, 6]",
            22: "22.npz: has 0 regions, expected 1 to 100 (max_regions sets another)",
            26: "26.npz: has 200 regions, expected 1 to 100",
            23: "23.npz: image 23: features in float16 have NaN or infinity",
            24: "24.npz: image 24: features are 7 wide",
            25: "25.npz: image 25: features in float16 have NaN or infinity, too large for it",
        }
        for image_id, message in messages.items():
            assert message in summary.errors[image_id]
            assert f"image {image_id} has no features: {summary.errors[image_id]}" in caplog.text
        store = FeatureStore(folder / "out")
        assert (store.ids, store.errors) == ([3, 8], summary.errors)

    def test_boxes(self, folder):
        boxes = folder / "cocobu_box"
        np.save(boxes / "3.npy", BOXES[3][:-1])
        (boxes / "5.npy").unlink()
        regions = RegionFeatures(folder / "cocobu_att", boxes=boxes, image_sizes=SIZES)
        summary = write_region_features(regions, folder / "out")
        assert summary.errors == {
            3: f"{boxes}: image 3 has 9 boxes for 10 regions",
            5: f"{boxes}: no boxes of image 5",
        }
        regions = RegionFeatures(folder / "cocobu_att", boxes=boxes, image_sizes={3: (640, 480), 8: (33, 50)})
        with pytest.raises(FeatureError, match=r"8\.npy: box \d+ is .* inside a picture of 33 x 50 pixels"):
            regions[8]
        with pytest.raises(FeatureError, match="no boxes of image 5"):
            regions[5]
        np.save(boxes / "5.npy", BOXES[5])
        regions = RegionFeatures(folder / "cocobu_att", boxes=boxes, image_sizes={3: (640, 480)})
        with pytest.raises(FeatureError, match="image_sizes: no size of image 5"):
            regions[5]

    def test_a_region_without_direction(self, tmp_path):
        (tmp_path / "in").mkdir()
        np.save(tmp_path / "in" / "3.npy", np.array([[1, 2], [0, 0]], dtype=np.float32))
        with pytest.raises(FeatureError, match=r"3\.npy: region 1 is all zeros"):
            RegionFeatures(tmp_path / "in", l2_norm=True)[3]


class TestResuming:
    def test_continues_and_tries_again_what_failed(self, folder, monkeypatch):
        path, out = folder / "cocobu_att", folder / "out"
        whole = (path / "5.npz").read_bytes()
        (path / "5.npz").write_bytes(b"")
        assert write_region_features(RegionFeatures(path), out).added == 2
        (path / "5.npz").write_bytes(whole)
        read = []

        def noted(self, image_id, old=RegionFeatures.read):
            read.append(image_id)
            return old(self, image_id)

        monkeypatch.setattr(RegionFeatures, "read", noted)
        summary = write_region_features(RegionFeatures(path), out)
        assert (read, summary.count, summary.added, summary.errors) == ([5], 3, 1, {})
        assert FeatureStore(out).errors == {}
        assert FeatureStore(out).ids == [3, 8, 5]

    def test_an_interrupted_run(self, folder, monkeypatch):
        path, out = folder / "cocobu_att", folder / "out"

        def interrupted(self, image_id, old=RegionFeatures.read):
            if image_id == 8:
                raise KeyboardInterrupt
            return old(self, image_id)

        with monkeypatch.context() as patched:
            patched.setattr(RegionFeatures, "read", interrupted)
            with pytest.raises(KeyboardInterrupt):
                write_region_features(RegionFeatures(path), out, dtype=torch.float32)
        with pytest.raises(FeatureError, match="interrupted"):
            FeatureStore(out)
        assert write_region_features(RegionFeatures(path), out, dtype=torch.float32).added == 1
        assert same_store(out, FEATURES)

    def test_another_source_is_refused(self, folder):
        path = folder / "cocobu_att"
        write_region_features(RegionFeatures(path), folder / "out")
        with pytest.raises(FeatureError, match="l2_norm: False there, True now"):
            write_region_features(RegionFeatures(path, l2_norm=True), folder / "out")
        path.rename(folder / "vinvl")
        with pytest.raises(FeatureError, match="regions: 'cocobu_att' there, 'vinvl' now"):
            write_region_features(RegionFeatures(folder / "vinvl"), folder / "out")


class TestImageSizes:
    def test_layouts(self, tmp_path):
        path = tmp_path / "cocotalk.json"
        images = [{"id": 3, "width": 640, "height": 480}, {"id": "0005", "width": 1, "height": 2}, {"id": 8}]
        path.write_text(json.dumps({"images": images, "annotations": []}))
        assert read_image_sizes(path) == {3: (640, 480), 5: (1, 2)}

    @pytest.mark.parametrize(
        ("images", "message"),
        [
            (None, r"no list 'images'"),
            ([], "no image of it has 'width' and 'height'"),
            ([{"id": 3}], "no image of it has 'width' and 'height'"),
            ([3], r"images\[0\] is 3, expected an object"),
            ([{"id": 3, "width": 640}], r"images\[0\]: width and height are 640 and None, expected pixels"),
            ([{"id": 3, "width": 640, "height": 0}], r"images\[0\]: width and height are 640 and 0"),
            ([{"id": 3, "width": 640.0, "height": 1}], r"images\[0\]: width and height are 640\.0 and 1"),
            ([{"width": 640, "height": 1}], r"images\[0\]: field 'id' is None"),
        ],
    )
    def test_refused(self, tmp_path, images, message):
        (tmp_path / "sizes.json").write_text(json.dumps({"images": images}))
        with pytest.raises(ValueError, match=rf"sizes\.json: {message}"):
            read_image_sizes(tmp_path / "sizes.json")
