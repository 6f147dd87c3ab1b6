"""Folders of pictures: which files are taken, in which order, and what is said of the others."""

import itertools
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from hf_captioners.data.image_suffixes import IMAGE_SUFFIXES
from hf_captioners.inference import image_files
from hf_captioners.inference.image_files import LeftOutFiles, find_images
from hf_captioners.modeling import captioner_image_format
from hf_captioners.modeling.captioner_image_io import open_image


class TestFindImages:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        names = (
            "b.jpg a.JPEG c.txt .hidden.jpg z.png sub/b.webp sub/a.tiff sub/deep/x.gif .git/y.jpg 10.bmp 9.png _.avif"
        )
        for name in names.split():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path / "root"

    def names(self, folder: Path, *args: Any, **options: Any) -> list[str]:
        return [Path(path).relative_to(folder).as_posix() for path in find_images(*args, **options)]

    def test_sorted_and_recursive(self, folder: Path) -> None:
        here = ["10.bmp", "9.png", "_.avif", "a.JPEG", "b.jpg", "z.png"]
        assert self.names(folder, folder) == [*here, "sub/a.tiff", "sub/b.webp", "sub/deep/x.gif"]
        assert self.names(folder, [str(folder)], recursive=False) == here

    def test_named_files_are_always_taken(self, folder: Path) -> None:
        named = [folder / "c.txt", folder / "missing.jpg", folder / ".hidden.jpg", folder / "sub", folder / "c.txt"]
        expected = ["c.txt", "missing.jpg", ".hidden.jpg", "sub/a.tiff", "sub/b.webp", "sub/deep/x.gif", "c.txt"]
        assert self.names(folder, named) == expected
        assert self.names(folder, folder / ".git") == [".git/y.jpg"]

    def test_paths_begin_as_given(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert [str(path) for path in find_images(["sub", "b.jpg"], recursive=False)] == [
            str(Path("sub/a.tiff")),
            str(Path("sub/b.webp")),
            "b.jpg",
        ]

    def test_urls_stay_as_they_are(self) -> None:
        assert list(find_images(["https://host/a//b.jpg?x=1", "HTTP://host"])) == [
            "https://host/a//b.jpg?x=1",
            "HTTP://host",
        ]

    def test_lazy(self, folder: Path) -> None:
        endless = itertools.cycle([folder / "c.txt"])
        assert len(list(itertools.islice(find_images(endless), 5))) == 5

    @pytest.mark.skipif(os.name == "nt", reason="links need rights there")
    def test_links(self, folder: Path, tmp_path: Path) -> None:
        (folder / "sub" / "up").symlink_to(folder)  # a loop
        (folder / "sub" / "self.jpg").symlink_to("self.jpg")
        (folder / "sub" / "dangling.jpg").symlink_to("nowhere")
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "linked.jpg").touch()
        (folder / "to_outside").symlink_to(outside)
        found = self.names(folder, folder)
        assert len(found) == len(set(found)) == 12
        assert {"sub/self.jpg", "sub/dangling.jpg", "to_outside/linked.jpg"} <= set(found)

    def test_folder_that_cannot_be_listed_is_returned(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scandir = os.scandir

        def refuse(path: Any) -> Any:
            if Path(path).name == "sub":
                raise PermissionError(13, "Permission denied", str(path))
            return scandir(path)

        monkeypatch.setattr(os, "scandir", refuse)
        assert self.names(folder, folder)[-2:] == ["z.png", "sub"]

    def test_names_that_are_not_utf8(self, folder: Path) -> None:
        try:
            (folder / "caf\udce9.jpg").touch()
        except OSError:
            pytest.skip("this file system wants UTF-8")
        assert "caf\udce9.jpg" in self.names(folder, folder)


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)


@pytest.fixture
def no_heif(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(name for name in captioner_image_format.readable_formats() if name != "HEIF")
    monkeypatch.setattr(image_files, "readable_formats", lambda: names)


class TestLeftOut:
    """A phone's, a browser's and a scanner's folder."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        picture = Image.linear_gradient("L").convert("RGB")
        for name, image_format in {
            "a.apng": "PNG",
            "b.ppm": "PPM",
            "c.pgm": "PPM",
            "d.jp2": "JPEG2000",
            "e.J2K": "JPEG2000",
            "f.pjpeg": "JPEG",
            "g.jpg_large": "JPEG",
            "IMG_1234": "JPEG",
            "photo.2019": "PNG",
            "photo.jpg?width=300": "JPEG",
            "photo.jpg.1": "JPEG",
        }.items():
            picture.save(tmp_path / name, image_format)
        return tmp_path

    def test_what_pillow_opens_is_taken(self, folder: Path) -> None:
        left_out = LeftOutFiles()
        taken = list(find_images(folder, left_out=left_out))
        assert sorted(taken) == sorted(folder.iterdir())
        assert len(left_out) == 0
        for path in taken:
            assert open_image(path).size == Image.open(path).size == (256, 256)

    def test_what_is_left_out_is_counted(self, folder: Path, no_heif: None) -> None:
        before = list(find_images(folder))
        for name in ("IMG_1.HEIC", "IMG_2.heic", "without_suffix"):
            (folder / name).write_bytes(HEIC)
        (folder / "sub").mkdir()
        for name in ("a.jxl", "b.psd", "sub/c.PSD", "raw.dng", "README", "notes.xyz", "empty"):
            (folder / name).write_bytes(b"II*\0" if name == "raw.dng" else b"BM25 and other words")
        for name in (
            "a.txt",
            "b.json",
            "metadata.jsonl",
            "Thumbs.db",
            ".DS_Store",
            "desktop.ini",
            "IMG_1.MOV",
            "x.jpg.part",
        ):
            (folder / name).touch()
        left_out = LeftOutFiles()
        assert list(find_images(folder, left_out=left_out)) == before
        heic = "HEIC, which needs pillow-heif: pip install pillow-heif"
        assert {suffix: count for (suffix, _), count in left_out.images.items()} == {
            ".heic": 2,
            "": 1,
            ".jxl": 1,
            ".psd": 2,
            ".dng": 1,
        }
        assert left_out.images[".heic", heic] == 2
        assert left_out.unknown == {"": 2, ".xyz": 1}
        text = str(left_out)
        assert text.startswith("left out 10 files: ")
        assert f"2 .heic, 1 without suffix ({heic})" in text
        assert "2 without suffix, 1 .xyz (not recognised as pictures)" in text

    def test_sub_folders_that_are_not_entered_are_not_counted(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        (tmp_path / "sub" / "b.psd").touch()
        left_out = LeftOutFiles()
        assert list(find_images(tmp_path, recursive=False, left_out=left_out)) == []
        assert len(left_out) == 0

    @pytest.mark.skipif(os.name == "nt", reason="FIFOs of POSIX")
    def test_what_is_no_file_is_not_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "broken").symlink_to("nowhere")
        left_out = LeftOutFiles()
        assert list(find_images(tmp_path, left_out=left_out)) == []
        assert left_out.unknown == {"": 2}

    def test_a_line_stays_a_line(self) -> None:
        left_out = LeftOutFiles()
        for index in range(1000):
            left_out.unknown[f".{index}" + "\x1b[31m" * 100] += 1
        assert str(left_out).isprintable() and len(str(left_out)) < 600
        assert "files of 992 more suffixes" in str(left_out)

    def test_every_suffix_has_a_format_that_is_known(self) -> None:
        assert set(IMAGE_SUFFIXES.values()) <= {*captioner_image_format.ALLOWED_FORMATS, "HEIF"}
        for suffix, image_format in IMAGE_SUFFIXES.items():  # Pillow agrees where it knows the suffix
            theirs = Image.registered_extensions().get(suffix)
            assert theirs in (None, image_format) or (theirs, image_format) == ("MPO", "JPEG")


def test_a_pattern_with_braces_stands_for_several(tmp_path):
    (tmp_path / "b{1,2}.jpg").touch()
    given = ["s/{08..10}.tar", tmp_path / "b{1,2}.jpg", tmp_path / "c{1,2}.jpg", "s3://b/{a,b}{x}.tar", "{2..1}.tar"]
    expected = [
        "s/08.tar",
        "s/09.tar",
        "s/10.tar",
        *(str(tmp_path / name) for name in ("b{1,2}.jpg", "c1.jpg", "c2.jpg")),
    ]
    expected += ["s3://b/a{x}.tar", "s3://b/b{x}.tar", "2.tar", "1.tar"]
    assert [str(path) for path in find_images(given)] == expected
