"""HDF5 files: what is no file, no HDF5 or no data set is said by name, and so is a missing h5py."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from hf_captioners import RegionFeatures, load_cocotalk
from hf_captioners.data.features.store import FeatureError
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
    with pytest.raises(ImportError, match=r'some\.h5: .*pip install -e "\.\[h5\]"'):
        open_hdf5(path)


class TestOtherFiles:
    """A file that would bring the content of others is refused by name, before another file is opened."""

    @pytest.fixture
    def secret(self, tmp_path):
        """A file of the machine, and an HDF5 file of it, whose numbers must not be read."""
        (tmp_path / "secret.txt").write_bytes(np.arange(100, 104, dtype="<f4").tobytes())
        with h5py.File(tmp_path / "secret.h5", "w") as file:
            file["inside"] = np.arange(100, 104, dtype="<f4")
        return tmp_path

    @pytest.fixture
    def hostile(self, secret):
        """All ways of HDF5 to the secrets, by the name in the file."""
        path, other = secret / "hostile.h5", str(secret / "secret.h5")
        layout = h5py.VirtualLayout(shape=(4,), dtype="<f4")
        layout[:] = h5py.VirtualSource(other, "inside", shape=(4,))
        with h5py.File(path, "w") as file:
            file.create_dataset("storage", (4,), "<f4", external=[(str(secret / "secret.txt"), 0, 16)])
            file.create_virtual_dataset("virtual", layout)
            file["link"] = h5py.ExternalLink(other, "/inside")
            file["soft"] = h5py.SoftLink("/link")
            file["group/deep"] = h5py.ExternalLink(other, "/")
            file["through"] = h5py.SoftLink("/group/deep/inside")
            file["to_virtual"] = h5py.SoftLink("/virtual")
            file["hard"] = file["storage"]
            file["round"] = h5py.SoftLink("/round")
            file["here"] = np.arange(3)
            file["near"] = h5py.SoftLink("group/../here")  # HDF5 knows no ..
            file["relative"] = h5py.SoftLink("./here")
            file["group/up"] = h5py.SoftLink("/here")
            file["refs"] = np.array([file["virtual"].ref], dtype=h5py.ref_dtype)
        return path

    WAYS = {
        "storage": "external storage, its content lies in another file",
        "virtual": "a virtual data set, put together of others",
        "link": "an external link, into another file",
        "soft": "an external link, into another file",
        "group/deep/inside": "an external link, into another file",
        "through": "an external link, into another file",
        "to_virtual": "a virtual data set",
        "hard": "external storage",
        "round": "more than 16 soft links",
        "near": "a link that leads nowhere",
    }

    def test_h5py_would_read_them(self, hostile):
        with h5py.File(hostile) as file:
            for name in ("storage", "virtual", "link", "soft", "group/deep/inside", "through", "to_virtual", "hard"):
                assert file[name][0] == 100, name

    @pytest.mark.parametrize("name", WAYS)
    def test_refused(self, hostile, name):
        with open_hdf5(hostile) as file, pytest.raises(Hdf5Error, match=rf"hostile\.h5: '{name}': .*{self.WAYS[name]}"):
            read_array(file, name)

    def test_nothing_else_is_opened(self, hostile, secret):
        """A FIFO in the place of the secrets would hang whoever opens it."""
        for name in ("secret.txt", "secret.h5"):
            (secret / name).unlink()
            os.mkfifo(secret / name)
        with open_hdf5(hostile) as file:
            assert len(names_in(file)) == 13
            for name in self.WAYS:
                with pytest.raises(Hdf5Error):
                    read_array(file, name)

    def test_user_defined_link(self, secret):
        """An external link whose type, 64, is made the first one that belongs to no library."""
        path = secret / "own.h5"
        with h5py.File(path, "w") as file:
            file["link"] = h5py.ExternalLink(str(secret / "secret.h5"), "inside")
        content = path.read_bytes()
        assert content.count(b"\x01\x08\x40") == 1  # a link message: its version, its flags, its type
        path.write_bytes(content.replace(b"\x01\x08\x40", b"\x01\x08\x41"))
        with open_hdf5(path) as file, pytest.raises(Hdf5Error, match=r"own\.h5: 'link': a user-defined link"):
            read_array(file, "link")

    def test_links_inside_the_file(self, hostile):
        with open_hdf5(hostile) as file:
            for name in ("here", "/here", "relative", "group/up", "./group//up"):
                assert read_array(file, name).tolist() == [0, 1, 2]
            assert read_array(file, "refs").dtype.kind == "O"  # references, which nobody follows

    @pytest.mark.parametrize("name", ["here/more", "group/none", "none"])
    def test_leads_nowhere(self, hostile, name):
        with open_hdf5(hostile) as file, pytest.raises(Hdf5Error, match="no data set of this name, or a link"):
            read_array(file, name)

    def test_where_it_is_read(self, secret):
        """Region files and labels of cocotalk read through the same function."""
        with h5py.File(secret / "regions.h5", "w") as file:
            file.create_dataset("7_features", (2, 2), "<f4", external=[(str(secret / "secret.txt"), 0, 16)])
        with RegionFeatures(secret / "regions.h5") as regions, pytest.raises(FeatureError, match="external storage"):
            regions[7]
        with h5py.File(secret / "labels.h5", "w") as file:
            for name in ("labels", "label_length", "label_start_ix", "label_end_ix"):
                file[name] = h5py.ExternalLink(str(secret / "secret.h5"), "inside")
        vocabulary = {"ix_to_word": {"1": "a"}, "images": [{"id": 1, "split": "train", "file_path": "a.jpg"}]}
        (secret / "cocotalk.json").write_text(json.dumps(vocabulary))
        with pytest.raises(ValueError, match=r"labels\.h5: 'labels': an external link"):
            load_cocotalk(secret / "cocotalk.json", secret / "labels.h5", "train")


def test_a_data_set_that_declares_gigabytes_and_stores_nothing(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("42", shape=(30_000, 25_000), dtype="f4", chunks=(100, 100))  # 3 GB
        file.create_dataset("43", shape=(300, 200), dtype="f4", chunks=(100, 100))
    assert (tmp_path / "x.h5").stat().st_size < 10_000
    with open_hdf5(tmp_path / "x.h5") as file:
        with pytest.raises(Hdf5Error, match=r"'42': it: declares 3000000000 bytes and stores 0; the limit .* 67108864"):
            read_array(file, "42")
        assert not read_array(file, "43").any()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.h5")
    with pytest.raises(OSError, match=r"x\.h5: expected a HDF5 file, found something that is not a regular file"):
        open_hdf5(tmp_path / "x.h5")
