"""LMDB databases and pickles of region features: as the projects write them, and nothing in them is run."""

from __future__ import annotations

import base64
import gzip
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from hf_captioners.conversion.region_sources import open_region_features
from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.data.features.region_files import open_arrays
from hf_captioners.data.features.regions import write_region_features
from hf_captioners.data.features.store import FeatureError, FeatureStore

LMDB = Path(__file__).parents[1] / "fixtures" / "lmdb" / "regions.mdb.gz"


def features_of(number):
    return np.arange(8 * (2 + number % 5), dtype=np.float32).reshape(-1, 8) / 16 + number


def boxes_of(number):
    return np.arange(4 * (2 + number % 5), dtype=np.float32).reshape(-1, 4) + 1


def encoded(array):
    return base64.b64encode(array.tobytes())


class TestLmdb:
    """The database holds, by the remainder of the id and 4: ViLBERT's dicts, mmf's, `.npz` and `.npy`."""

    @pytest.fixture
    def path(self, tmp_path):
        (tmp_path / "coco.lmdb").mkdir()
        (tmp_path / "coco.lmdb" / "data.mdb").write_bytes(gzip.decompress(LMDB.read_bytes()))
        return tmp_path / "coco.lmdb"

    def test_features(self, path):
        with open_region_features(path) as regions:
            assert sorted(regions.ids) == list(range(1, 33))
            for number in regions.ids:
                assert np.array_equal(regions[number], features_of(number))

    def test_boxes(self, path):
        sizes = dict.fromkeys(range(1, 33), (640, 480))
        regions = open_region_features(path, boxes=path, image_sizes=sizes)
        for number in (4, 5, 6):
            x1 = boxes_of(number)[:, 0]
            assert np.allclose(np.sort(regions[number][:, 8]), np.sort(x1 / 640))
        with pytest.raises(FeatureError, match=r"key b'7': .*"):
            regions[7]  # an .npy has no boxes: its features are taken for such and do not fit

    def test_by_the_plain_way(self, path):
        with pytest.raises(FeatureError, match="an LMDB database or a pickle; open_region_features"):
            open_arrays(path, "features")

    def test_cut_off(self, path, tmp_path):
        """Images behind the end have no features, and the others have theirs."""
        content = (path / "data.mdb").read_bytes()
        (path / "data.mdb").write_bytes(content[:-2000])
        summary = write_region_features(open_region_features(path), tmp_path / "out", dtype=torch.float32)
        assert len(summary.errors) == 1 and summary.count == 31
        assert "cut off, its value is behind the end of the file" in next(iter(summary.errors.values()))
        assert torch.equal(FeatureStore(tmp_path / "out")[3], torch.from_numpy(features_of(3)))


LISTS = {
    "X-modaler's list": [{"image_id": str(n), "features": features_of(n), "boxes": boxes_of(n)} for n in (3, 4)],
    "base64": [
        {"img_id": n, "num_boxes": len(boxes_of(n)), "features": encoded(features_of(n)), "boxes": encoded(boxes_of(n))}
        for n in (3, 4)
    ],
    "dict of arrays": {3: features_of(3), "4": features_of(4)},
    "dict of dicts": {b"3": {"feat": features_of(3)}, "4": {"feat": features_of(4)}},
}


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize("content", LISTS.values(), ids=LISTS)
def test_pickles(tmp_path, content, protocol):
    path = tmp_path / "regions.pkl"
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    with open_region_features(path) as regions:
        assert regions.ids == [3, 4]
        for number in regions.ids:
            assert np.array_equal(regions[number], features_of(number))


def test_boxes_and_sizes_of_a_pickle(tmp_path):
    records = [{**record, "image_w": 640, "image_h": 480} for record in LISTS["X-modaler's list"]]
    path = tmp_path / "regions.pkl"
    path.write_bytes(pickle.dumps(records))
    with open_region_features(path, boxes=path) as regions:
        assert regions[3].shape == (5, 13)


class Command:
    def __reduce__(self):
        return os.system, ("touch unpickled",)


REFUSED = {
    "a command": (Command(), CheckpointError, r"regions\.pkl: refers to posix\.system"),
    "a number": (7, CheckpointError, "holds 7; expected a list of dicts"),
    "empty": ([], FeatureError, "no regions in it"),
    "no id": ([{"features": features_of(3)}], FeatureError, r"\[0\]: image_id is None"),
    "twice": ([LISTS["base64"][0]] * 2, FeatureError, r"\[1\]: image_id 3 is already that of \[0\]"),
}


@pytest.mark.parametrize(("content", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(tmp_path, monkeypatch, content, kind, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "regions.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(kind, match=message):
        open_region_features(tmp_path / "regions.pkl")
    assert not (tmp_path / "unpickled").exists()


BAD_RECORDS = {
    "no features": ({"boxes": boxes_of(3)}, r"\[0\]: has .*'boxes'.*, expected 'feat' or 'features'"),
    "a text": ({"features": "AAAA"}, r"\[0\]: features: num_boxes is None, expected a whole number"),
    "a number": ({"features": 5}, r"\[0\]: features: is 5, expected an array, or base64"),
}


@pytest.mark.parametrize(("record", "message"), BAD_RECORDS.values(), ids=BAD_RECORDS)
def test_bad_records(tmp_path, record, message):
    (tmp_path / "regions.pkl").write_bytes(pickle.dumps([{"image_id": 3, **record}, LISTS["base64"][1]]))
    regions = open_region_features(tmp_path / "regions.pkl")
    assert regions[4].shape == (6, 8)
    with pytest.raises(FeatureError, match=rf"regions\.pkl: {message}"):
        regions[3]
