"""Pictures of archives: read in their order, each as if it were a file, and a fault stays with its picture."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from hf_captioners.data import limits
from hf_captioners.inference.image_archives import image_names, image_rows
from hf_captioners.inference.image_files import LeftOutFiles, find_images
from hf_captioners.modeling.captioner_image_io import open_image


def encoded(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (3, 2), shade).save(file, "PNG")
    return file.getvalue()


CONTENT = {
    "b.png": encoded(1),
    "sub/a.JPG": encoded(2),
    "no_suffix": encoded(3),
    "notes": b"words",
    "b.txt": b"a dog",
    "c.psd": b"8BPS",
    ".hidden.png": b"x",
    "__MACOSX/._b.png": b"x",
}


def pack(path: Path, content: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in content.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_what_a_folder_would_be_searched_for(tmp_path, name):
    path = pack(tmp_path / name, CONTENT)
    left_out = LeftOutFiles()
    names = [f"{path}/{inner}" for inner in ("b.png", "sub/a.JPG", "no_suffix")]
    assert list(image_names([path], left_out)) == names
    assert str(left_out) == (
        "left out 2 files: 1 .psd (a format that is not read; convert to PNG or JPEG); 1 without suffix (not "
        "recognised as pictures)"
    )
    rows = list(image_rows([path]))
    assert [row["image"]["path"] for row in rows] == names
    assert [open_image(row["image"]).getpixel((0, 0))[0] for row in rows] == [1, 2, 3]


def test_among_files_folders_and_urls(tmp_path):
    path = pack(tmp_path / "x.zip", {"b.png": encoded(1)})
    (tmp_path / "a.png").write_bytes(encoded(2))
    given = [tmp_path / "a.png", path, "https://host/x.jpg", tmp_path]
    names = [tmp_path / "a.png", f"{path}/b.png", "https://host/x.jpg", tmp_path / "a.png"]
    assert list(image_names(find_images(given), LeftOutFiles())) == names
    images = [row["image"] for row in image_rows(find_images(given))]
    assert [image["path"] if isinstance(image, dict) else image for image in images] == names


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".parquet", ".png"])
def test_of_other_machines(tmp_path, suffix):
    """As of this one, where the machine is fsspec's memory."""
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table({"image": [encoded(1), encoded(2), encoded(3)]}), path)
    elif suffix == ".png":
        path.write_bytes(encoded(1))
    else:
        pack(path, CONTENT)
    address = f"memory://bucket{path}"
    fsspec.filesystem("memory").pipe(f"/bucket{path}", path.read_bytes())
    names, far_names = (list(image_names(find_images(given), LeftOutFiles())) for given in (path, address))
    assert [str(name).replace(str(path), address) for name in names] == far_names
    near, far = ([open_image(row["image"]) for row in image_rows(find_images(given))] for given in (path, address))
    assert [image.tobytes() for image in near] == [image.tobytes() for image in far]


@pytest.mark.parametrize("address", ["memory://bucket/none.tar", "none3://bucket/x.tar", "memory://bucket/cut.tar"])
def test_faults_of_other_machines(tmp_path, address):
    cut = pack(tmp_path / "cut.tar", {"a.png": encoded(1), "b.png": os.urandom(10_000)}).read_bytes()[:4000]
    fsspec.filesystem("memory").pipe("/bucket/cut.tar", cut)
    *_, last = image_rows([address])
    assert last["image"]["path"].startswith(address) and address in last["image"]["error"]


def test_it_is_read_as_it_is_asked_for(tmp_path):
    """The second picture is gone when it is its turn."""
    path = pack(tmp_path / "x.tar", {"a.png": encoded(1), "b.png": os.urandom(10_000)})
    rows = image_rows([path])
    assert "bytes" in next(rows)["image"]
    os.truncate(path, 2048)
    assert "cannot be read as an archive" in next(rows)["image"]["error"]


class TestFaults:
    @pytest.mark.parametrize("suffix", [".zip", ".tar"])
    def test_names_that_lead_out(self, tmp_path, suffix):
        path = pack(tmp_path / f"x{suffix}", {"../x.png": encoded(1), "a.png": encoded(2), "../x.txt": b""})
        images = [row["image"] for row in image_rows([path])]
        assert images[0] == {"path": f"{path}/../x.png", "error": "leads out of the archive"}
        assert [image["path"] for image in images] == list(image_names([path], LeftOutFiles()))
        assert len(images) == 2

    def test_a_damaged_member(self, tmp_path):
        path = pack(tmp_path / "x.zip", {"a.png": b"0123456789", "b.png": encoded(2)})
        path.write_bytes(path.read_bytes().replace(b"0123456789", b"0123456780"))
        images = [row["image"] for row in image_rows([path])]
        assert "BadZipFile: Bad CRC-32 for file 'a.png'" in images[0]["error"]
        assert images[1]["bytes"] == encoded(2)

    def test_what_is_behind_a_cut_is_said(self, tmp_path):
        path = pack(tmp_path / "x.tar", {"a.png": encoded(1), "b.png": encoded(2)})
        os.truncate(path, 1024)
        rows = [row["image"] for row in image_rows([path, tmp_path / "c.png"])]
        assert rows[0]["bytes"] == encoded(1)
        assert rows[1] == {"path": str(path), "error": f"{path}: is cut off or damaged behind its first 1 members"}
        assert rows[2] == tmp_path / "c.png"
        assert len(list(image_names([path], LeftOutFiles()))) == 2

    def test_no_archive(self, tmp_path):
        (tmp_path / "x.zip").write_bytes(b"words")
        os.mkfifo(tmp_path / "y.tar")
        paths = [tmp_path / name for name in ("x.zip", "y.tar", "missing.tgz")]
        rows = [row["image"] for row in image_rows(paths)]
        assert [row["path"] for row in rows] == list(map(str, paths))
        errors = ("neither a zip nor a tar archive", "not a regular file", "archive not found")
        assert all(message in row["error"] for message, row in zip(errors, rows, strict=True))

    def test_limits(self, tmp_path, monkeypatch):
        path = pack(tmp_path / "x.tar.gz", {"a.png": bytes(2000), "b.png": encoded(1)})
        monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_BYTES", "1000")
        images = [row["image"] for row in image_rows([path])]
        assert "2000 bytes, more than the 1000 allowed (HF_CAPTIONERS_MAX_IMAGE_BYTES" in images[0]["error"]
        assert images[1]["bytes"] == encoded(1)
        monkeypatch.setattr(limits, "FREE_BYTES", 100)
        path = pack(tmp_path / "y.tar.gz", {"a.png": bytes(10**6), "b.png": encoded(1)})
        images = [row["image"] for row in image_rows([path])]
        assert len(images) == 1 and "HF_CAPTIONERS_MAX_ARCHIVE_BYTES" in images[0]["error"]
