"""Arrays by image id: both layouts, ids, and every way in which a file can be damaged."""

from __future__ import annotations

import io
import os
import pickle
import random
import zipfile

import numpy as np
import pytest

from hf_captioners.data.features.region_files import open_arrays
from hf_captioners.data.features.store import FeatureError

ARRAY = np.arange(15, dtype=np.float32).reshape(5, 3)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(**arrays):
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    """Reads image 7 from a folder with one file of this name and content."""

    def read_one(name, content):
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / name).write_bytes(content)
        return open_arrays(tmp_path / "one", "features").read(7)

    return read_one


class TestFolder:
    def test_ids(self, tmp_path):
        for name in ("10.npz", "9.npy", "000000000011.npy", "b.npy", "a.jpg.npz", "._9.npz", "9.txt", "readme.md"):
            (tmp_path / name).touch()
        assert open_arrays(tmp_path, "features").ids == [9, 10, 11, "a.jpg", "b"]

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("7.npy", npy(ARRAY)),
            ("007.npz", npz(feat=ARRAY)),
            ("7.npz", npz(feat=ARRAY, boxes=ARRAY[:1])),
            ("7.npz", npz(z=ARRAY)),  # the only array, whatever its name
        ],
        ids=["npy", "npz", "npz with more", "npz of another name"],
    )
    def test_layouts(self, read, tmp_path, name, content):
        where, array = read(name, content)
        assert where == str(tmp_path / "one" / name)
        assert np.array_equal(array, ARRAY)

    def test_two_files_of_one_image(self, read):
        read("7.npy", npy(ARRAY))
        with pytest.raises(FeatureError, match=r"'007\.npz' and '7\.npy' are both of image 7"):
            read("007.npz", npz(feat=ARRAY))

    def test_nothing_in_it(self, tmp_path):
        with pytest.raises(FeatureError, match="no arrays in it; expected one per image"):
            open_arrays(tmp_path, "features")
        with pytest.raises(FileNotFoundError, match="none: no such file"):
            open_arrays(tmp_path / "none", "features")


class Gotcha:
    def __reduce__(self):
        return (open, ("unpickled", "w"))


class TestDamaged:
    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("7.npz", b"", "no array of NumPy"),
            ("7.npy", b"words", "pickle"),
            ("7.npy", npy(ARRAY)[:-4], ""),
            ("7.npz", npz(feat=ARRAY)[:-4], "zip"),
            ("7.npz", npz(boxes=ARRAY, z=ARRAY), r"it has the arrays \['boxes', 'z'\], expected 'feat' or one array"),
            ("7.npy", npy(np.array([Gotcha()]), allow_pickle=True), "allow_pickle=False"),
            ("7.npz", npz(feat=np.array([Gotcha()], dtype=object)), "allow_pickle=False"),
            ("7.npy", pickle.dumps(Gotcha()), "pickle"),
        ],
        ids=["empty", "words", "cut npy", "cut npz", "two arrays", "objects", "objects in npz", "pickle"],
    )
    def test_is_named_and_nothing_is_unpickled(self, read, tmp_path, monkeypatch, name, content, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(FeatureError, match=rf"one/{name}: not readable: .*{message}"):
            read(name, content)
        assert not (tmp_path / "unpickled").exists()

    def test_no_array_in_the_archive(self, read):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("feat", "words")
        with pytest.raises(FeatureError, match="'feat' in it is no array"):
            read("7.npz", buffer.getvalue())

    @pytest.mark.parametrize("name", ["7.npy", "7.npz"])
    def test_any_damage_is_a_feature_error(self, read, name):
        """Cut off and overwritten at places drawn by a fixed seed: an array or a FeatureError, never anything else."""
        whole, rng = npy(ARRAY) if name == "7.npy" else npz(feat=ARRAY), random.Random(0)
        refused = 0
        for turn in range(400):
            content = bytearray(whole[: rng.randrange(len(whole))] if turn % 4 == 0 else whole)
            for _ in range(rng.choice((0, 1, 3)) if content else 0):
                content[rng.randrange(len(content))] = rng.randrange(256)
            try:
                read(name, content)
            except FeatureError:
                refused += 1
        assert refused > 100


class TestHdf5:
    @pytest.fixture
    def path(self, tmp_path):
        return tmp_path / "regions.hdf5"

    def write(self, path, **arrays):
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            for name, array in arrays.items():
                file[name] = array
        return open_arrays(path, "features")

    @pytest.mark.parametrize(
        "names", [["9", "10", "b"], ["9_features", "10_features", "b_features", "9_boxes", "9_cls_prob"]]
    )
    def test_names(self, path, names):
        arrays = self.write(path, **dict.fromkeys(names, ARRAY))
        assert arrays.ids == [9, 10, "b"]
        assert arrays.read(9)[0] == f"{path}: {names[0]!r}"
        assert np.array_equal(arrays.read(9)[1], ARRAY)
        arrays.close()

    def test_refused(self, path):
        with pytest.raises(FeatureError, match="no arrays in it"):
            self.write(path)
        with pytest.raises(FeatureError, match="'07' and '7' are both of image 7"):
            self.write(path, **{"7": ARRAY, "07": ARRAY})
        with pytest.raises(FeatureError, match=r"regions\.hdf5: '7': is a group, expected a data set"):
            self.write(path, **{"7/feat": ARRAY}).read(7)


class TestBombs:
    def test_an_npz_that_unpacks_to_much_more(self, tmp_path, monkeypatch):
        monkeypatch.setattr("hf_captioners.data.limits.FREE_BYTES", 2**16)
        np.savez_compressed(tmp_path / "42.npz", feat=np.zeros((1000, 1000), np.float32))
        with pytest.raises(FeatureError, match=r"42\.npz: not readable: 'feat': declares 4000128 bytes and stores \d+"):
            open_arrays(tmp_path, "features").read(42)
        monkeypatch.setenv("HF_CAPTIONERS_MAX_ARRAY_BYTES", "4000128")
        assert open_arrays(tmp_path, "features").read(42)[1].shape == (1000, 1000)

    @pytest.mark.parametrize("packed", [False, True])
    def test_a_header_that_declares_more_than_there_is(self, tmp_path, packed):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**5, 10**4)})
        if packed:
            with zipfile.ZipFile(tmp_path / "42.npz", "w") as archive:
                archive.writestr("feat.npy", header.getvalue())
        else:
            (tmp_path / "42.npy").write_bytes(header.getvalue())
        with pytest.raises(FeatureError, match="declares 4000000000 bytes of an array and has 128"):
            open_arrays(tmp_path, "features").read(42)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
    def test_a_fifo_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "42.npz")
        with pytest.raises(FeatureError, match="not a regular file"):
            open_arrays(tmp_path, "features").read(42)
