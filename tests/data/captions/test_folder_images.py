"""Pictures and whole folders in archives: the same rows as unpacked, and nothing else that is in them."""

import io
import json
import logging
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from hf_captioners.data import archive as archives
from hf_captioners.data.archive import ArchiveError
from hf_captioners.data.captions.folder import load_folder
from hf_captioners.data.captions.folder_files import is_folder, read_folder
from hf_captioners.data.captions.predictions import read_references
from hf_captioners.data.captions.records import CaptionFileError

COLORS = {"a.png": (255, 0, 0), "b.png": (0, 0, 255)}
LINES = [{"file_name": name, "captions": [f"caption of {name}"]} for name in COLORS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(archives.constants, "HF_HOME", str(tmp_path / "hf"))


def encoded(color) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), color).save(file, "PNG")
    return file.getvalue()


def metadata(names=COLORS, prefix="") -> bytes:
    lines = [{"file_name": f"{prefix}{name}", "captions": [f"caption of {name}"]} for name in names]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def pack(path: Path, content: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
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


PICTURES = {name: encoded(color) for name, color in COLORS.items()}


def check(root: Path, split="train", prefix="train/"):
    rows = load_folder(root)[split]
    names = [f"{prefix}{name}" for name in COLORS]
    assert rows["image_id"][:] == rows["file_name"][:] == names
    assert rows["captions"][:] == [[f"caption of {name}"] for name in COLORS]
    assert [row["image"].getpixel((0, 0)) for row in rows] == list(COLORS.values())


def under(folder: str, content: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in content.items()}


class TestPicturesInArchives:
    @pytest.mark.parametrize("name", ["pictures.zip", "pictures.tar", "sub/pictures.tar.gz"])
    @pytest.mark.parametrize("inside", ["", "Images", "train"])
    def test_beside_the_metadata_file(self, tmp_path, name, inside):
        pack(tmp_path / "data" / "train" / name, under(inside, PICTURES) if inside else PICTURES)
        (tmp_path / "data" / "train" / "metadata.jsonl").write_bytes(metadata())
        check(tmp_path / "data")

    def test_called_by_the_archive(self, tmp_path):
        pack(tmp_path / "data" / "train" / "pictures.zip", PICTURES)
        (tmp_path / "data" / "train" / "metadata.jsonl").write_bytes(metadata(prefix="pictures/"))
        check(tmp_path / "data", prefix="train/pictures/")

    def test_one_archive_for_all_splits(self, tmp_path):
        pack(tmp_path / "data" / "pictures.zip", {**under("train", PICTURES), **under("val", PICTURES)})
        for split in ("train", "val"):
            (tmp_path / "data" / split).mkdir()
            (tmp_path / "data" / split / "metadata.jsonl").write_bytes(metadata())
        check(tmp_path / "data")
        check(tmp_path / "data", "validation", "val/")

    def test_some_are_files_and_some_in_several_archives(self, tmp_path):
        pack(tmp_path / "train" / "1.zip", {"a.png": PICTURES["a.png"]})
        pack(tmp_path / "train" / "2.tar", {"b.png": PICTURES["b.png"]})
        (tmp_path / "train" / "c.png").write_bytes(PICTURES["a.png"])
        (tmp_path / "train" / "metadata.jsonl").write_bytes(metadata(["a.png", "b.png", "c.png"]))
        assert len(load_folder(tmp_path)["train"]) == 3

    def test_a_picture_in_two_archives(self, tmp_path):
        for name in ("1.zip", "2.zip"):
            pack(tmp_path / "train" / name, {**PICTURES, f"{name}.txt": b""})
        (tmp_path / "train" / "metadata.jsonl").write_bytes(metadata())
        with pytest.raises(CaptionFileError, match=r"'a\.png' is in 1\.zip/a\.png and 2\.zip/a\.png, expected it once"):
            read_folder(tmp_path)

    def test_what_is_missing_and_what_is_left_out(self, tmp_path, caplog):
        pack(tmp_path / "train" / "pictures.zip", {**PICTURES, "c.png": b"", "d.txt": b""})
        (tmp_path / "train" / "metadata.jsonl").write_bytes(metadata())
        with caplog.at_level(logging.WARNING):
            read_folder(tmp_path)
        assert (
            "2 files beside it are not named in it and left out: pictures.zip/c.png, pictures.zip/d.txt" in caplog.text
        )
        (tmp_path / "train" / "metadata.jsonl").write_bytes(metadata(["a.png", "e.png"]))
        with pytest.raises(
            FileNotFoundError, match=r"1 of 2 pictures are missing: train/e\.png.* beside .* and in pictures\.zip$"
        ):
            read_folder(tmp_path)

    def test_archives_are_left_alone_where_nothing_is_missing(self, tmp_path):
        for name, data in PICTURES.items():
            (tmp_path / "train").mkdir(exist_ok=True)
            (tmp_path / "train" / name).write_bytes(data)
        (tmp_path / "train" / "metadata.jsonl").write_bytes(metadata())
        (tmp_path / "train" / "broken.zip").write_bytes(b"PK")
        check(tmp_path)
        assert not (tmp_path / "hf").exists()


class TestFoldersInArchives:
    @pytest.mark.parametrize("name", ["train.zip", "Training.tar.gz"])
    @pytest.mark.parametrize("inside", ["", "train", "some/where"])
    def test_a_split(self, tmp_path, name, inside):
        content = {**PICTURES, "metadata.jsonl": metadata()}
        pack(tmp_path / "data" / name, under(inside, content) if inside else content)
        check(tmp_path / "data", prefix=f"{name.partition('.')[0]}/")

    @pytest.mark.parametrize("inside", ["", "dataset/"])
    def test_all_splits(self, tmp_path, inside):
        content = {**PICTURES, "metadata.jsonl": metadata()}
        path = pack(tmp_path / "x" / "data.zip", {**under(f"{inside}train", content), **under(f"{inside}val", content)})
        check(path)
        check(path, "validation", "val/")
        check(path.parent)
        assert is_folder(path) and not is_folder(path.parent / "other.zip")
        references = read_references(path, "val")
        assert list(references.captions) == ["val/a.png", "val/b.png"]
        assert Path(references.file_names["val/a.png"]).read_bytes() == PICTURES["a.png"]

    def test_only_a_train_folder(self, tmp_path):
        check(pack(tmp_path / "data.zip", under("train", {**PICTURES, "metadata.jsonl": metadata()})))

    def test_the_folder_that_was_made_of_it_goes_first(self, tmp_path):
        (tmp_path / "train.zip").write_bytes(b"PK")
        (tmp_path / "train").mkdir()
        for name, data in {**PICTURES, "metadata.jsonl": metadata()}.items():
            (tmp_path / "train" / name).write_bytes(data)
        check(tmp_path)

    def test_messages_have_the_names_of_the_user(self, tmp_path):
        pack(tmp_path / "train.zip", {**PICTURES, "metadata.jsonl": b'{"file_name": "a.png", "captions": []}'})
        with pytest.raises(CaptionFileError, match=rf"^{tmp_path}/train\.zip/metadata\.jsonl: 1 of 1 lines"):
            read_folder(tmp_path)
        pack(tmp_path / "train.zip", PICTURES)
        with pytest.raises(CaptionFileError, match=rf"^{tmp_path}: the pictures of train\.zip have no captions"):
            read_folder(tmp_path)
        pack(tmp_path / "train.tar", PICTURES)
        with pytest.raises(CaptionFileError, match=r"train\.tar and train\.zip are both train, expected one"):
            read_folder(tmp_path)

    def test_archives_of_strangers(self, tmp_path):
        content = {"metadata.jsonl": metadata(), **PICTURES, "../../outside.png": b"x"}
        path = pack(tmp_path / "x" / "y" / "train.tar", content)
        with pytest.raises(ArchiveError, match=r"train\.tar: the member '\.\./\.\./outside\.png' leads out"):
            read_folder(path.parent)
        assert not list(tmp_path.rglob("outside.png"))
