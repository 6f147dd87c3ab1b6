"""The TSV of bottom-up attention: read as it was published, line by line, past what is broken."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.features.region_outputs import RegionArrays, TsvFile
from hf_captioners.data.features.region_tsv import ArrayTsv
from hf_captioners.data.features.regions import RegionFeatures, write_region_features
from hf_captioners.data.features.store import FeatureError, FeatureStore

RNG = np.random.default_rng(0)
FEATURES = {number: RNG.random((regions, 6), dtype=np.float32) for number, regions in ((42, 10), (7, 100), (9, 36))}
BOXES = {number: np.tile(np.float32([1, 2, 3, 4]), (len(rows), 1)) for number, rows in FEATURES.items()}


def line(number, **changes):
    fields = {
        "image_id": str(number).encode(),
        "image_w": b"640",
        "image_h": b"480",
        "num_boxes": str(len(FEATURES[number])).encode(),
        "boxes": base64.b64encode(BOXES[number].tobytes()),
        "features": base64.b64encode(FEATURES[number].tobytes()),
    }
    return b"\t".join({**fields, **changes}.values())


@pytest.fixture
def write(tmp_path):
    def written(*lines, name="trainval_36.tsv", end=b"\r\n"):  # as Python's csv wrote them
        (tmp_path / name).write_bytes(b"".join(one + end for one in lines))
        return tmp_path / name

    return written


def test_into_the_store(write, tmp_path):
    path = write(*map(line, FEATURES))
    with RegionFeatures(path) as regions:
        assert regions.ids == [42, 7, 9]
        write_region_features(regions, tmp_path / "store")
    store = FeatureStore(tmp_path / "store")
    for number, features in FEATURES.items():
        assert np.array_equal(store[number].numpy(), features.astype(np.float16))


def test_boxes_and_sizes_of_the_same_file(write):
    path = write(*map(line, FEATURES))
    with RegionFeatures(path, boxes=path) as regions:
        assert np.allclose(regions[42][:, 6:], [1 / 640, 2 / 480, 3 / 640, 4 / 480, 4 / (640 * 480)])


def test_what_our_detector_writes(tmp_path):
    none = np.zeros(36)
    with TsvFile(tmp_path / "regions.tsv", {}) as file:
        file.add("a/b.jpg", RegionArrays(FEATURES[9], BOXES[9], none, none, none, none, 480, 640))
    with RegionFeatures(tmp_path / "regions.tsv") as regions:
        assert regions.ids == ["a/b.jpg"]
        assert np.array_equal(regions["a/b.jpg"], FEATURES[9])


def test_several_files(write):
    first, second = write(line(42), line(7), name="a.tsv"), write(line(9), line(7), name="b.tsv")
    with pytest.raises(FeatureError, match=r"b\.tsv: image 7 is already in .*a\.tsv"):
        RegionFeatures([first, second])
    bad_rows = BadRows("skip")
    regions = RegionFeatures([first, second], bad_rows=bad_rows)
    assert (regions.ids, bad_rows.count) == ([42, 7, 9], 1)
    assert regions.metadata()["regions"] == ["a.tsv", "b.tsv"]
    assert np.array_equal(regions[9], FEATURES[9])


BAD_LINES = {
    "cut off": (line(9)[:30], r"line 2 has 5 fields, expected 6: image_id, image_w, "),
    "empty": (b"", "line 2 has 1 fields"),
    "no id": (line(9, image_id=b""), "line 2: image_id is '', expected an integer or a string"),
    "no size": (line(9, image_w=b"wide"), "line 2: image_w is b'wide', expected a whole number"),
    "twice": (line(42), "line 2: image_id 42 is already that of line 1"),
}


@pytest.mark.parametrize(("bad", "message"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_lines(write, bad, message):
    path = write(line(42), bad, line(7))
    with pytest.raises(FeatureError, match=rf"trainval_36\.tsv: {message}"):
        ArrayTsv(path, "features", BadRows())
    bad_rows = BadRows("skip")
    assert (ArrayTsv(path, "features", bad_rows).ids, bad_rows.count) == ([42, 7], 1)


BAD_ARRAYS = {
    "boxes": ({"num_boxes": b"-1"}, r"num_boxes is b'-1', expected a whole number"),
    "rows": ({"num_boxes": b"7"}, r"features: 864 bytes are no float32 numbers of 7 boxes"),
    "none": ({"num_boxes": b"0"}, r"features: 864 bytes are no float32 numbers of 0 boxes"),
    "zero": ({"num_boxes": b"0", "features": b""}, r"features: has 0 regions, expected 1 to 100"),
    "many": ({"num_boxes": b"216", "features": line(9).split(b"\t")[5]}, r"features: has 216 regions, expected 1 to 1"),
    "text": ({"features": b"AAA"}, r"features: no base64: "),
    "alphabet": ({"features": b"AA*="}, r"features: no base64: "),
}


@pytest.mark.parametrize(("changes", "message"), BAD_ARRAYS.values(), ids=BAD_ARRAYS)
def test_bad_arrays(write, changes, message):
    regions = RegionFeatures(write(line(42), line(9, **changes)))
    assert np.array_equal(regions[42], FEATURES[42])
    with pytest.raises(FeatureError, match=rf"trainval_36\.tsv: line 2: {message}"):
        regions[9]


def test_nothing_in_it(write):
    with pytest.raises(FeatureError, match="no regions in it"):
        RegionFeatures(write())
