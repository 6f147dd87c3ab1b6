"""HDF5 files: what is no file, no HDF5 or no data set is said by name, and so is a missing h5py."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from hf_captioners.data.hdf5 import Hdf5Error, names_in, open_hdf5, read_array

h5py = pytest.importorskip("h5py")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "some.h5"
    with h5py.File(path, "w") as file:
        file["numbers"] = np.arange(6, dtype=">i4").reshape(2, 3)
        file["words"] = ["a", "dog"]
        file.create_group("group")
        file["lost"] = h5py.SoftLink("/nowhere")
        file.create_dataset("packed", data=np.zeros((100, 100)), compression="gzip")
    return path


def test_arrays(path):
    with open_hdf5(path) as file:
        assert names_in(file) == ["group", "lost", "numbers", "packed", "words"]
        assert read_array(file, "numbers").tolist() == [[0, 1, 2], [3, 4, 5]]
        assert read_array(file, "words").dtype.kind == "O"


@pytest.mark.parametrize(
    ("name", "message"), [("absent", "no data set"), ("lost", "a link that leads nowhere"), ("group", "is a group")]
)
def test_no_such_array(path, name, message):
    with open_hdf5(path) as file, pytest.raises(Hdf5Error, match=rf"some\.h5: '{name}': .*{message}"):
        read_array(file, name)


def test_damaged_array(path):
    with h5py.File(path) as file:
        place = file["packed"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[place : place + 8] = bytes(8)
    path.write_bytes(content)
    with open_hdf5(path) as file, pytest.raises(Hdf5Error, match=r"some\.h5: 'packed': damaged"):
        read_array(file, "packed")


def test_no_hdf5_file(tmp_path, path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5: no such file"):
        open_hdf5(tmp_path / "none.h5")
    with pytest.raises(Hdf5Error, match="not a readable HDF5 file"):
        open_hdf5(tmp_path)
    (tmp_path / "text.h5").write_text("words")
    (tmp_path / "cut.h5").write_bytes(path.read_bytes()[:1000])
    for name in ("text.h5", "cut.h5"):
        with pytest.raises(Hdf5Error, match=rf"{name}: not a readable HDF5 file"):
            open_hdf5(tmp_path / name)


def test_without_h5py(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r'some\.h5: .*pip install "hf_captioners\[h5\]"'):
        open_hdf5(path)
