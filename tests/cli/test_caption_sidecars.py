"""`hf-captioners caption --sidecar .txt`: the captions of stdout, in files beside the pictures."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_captioners.cli import main

BROKEN = "more/n5.png"
NAMES = ["n0.png", "n1.png", "n2.jpg", "more/n3.png", "more/n4.png", BROKEN]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / BROKEN).write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def run(tiny_captioner_dir: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    def run_here(*arguments: Any) -> tuple[int, bytes, str]:
        capfdbinary.readouterr()
        options = ["--model", tiny_captioner_dir, "--batch-size", 2, "--max-new-tokens", 6]
        status = main.main(["caption", *map(str, [*arguments, *options])])
        out, err = capfdbinary.readouterr()
        return status, out, err.decode()

    return run_here


def texts(photos: Path, suffix: str = ".txt") -> dict[str, str]:
    return {path.relative_to(photos).as_posix(): path.read_text("utf-8") for path in photos.rglob(f"*{suffix}")}


@pytest.fixture
def expected(run: Any, photos: Path) -> dict[str, str]:
    records = [json.loads(line) for line in run(photos)[1].splitlines()]
    captions = {Path(record["image"]): record["caption"] for record in records if "error" not in record}
    return {path.relative_to(photos).with_suffix(".txt").as_posix(): f"{text}\n" for path, text in captions.items()}


def test_each_picture_has_its_caption_beside_it(run, photos, expected):
    status, out, err = run(photos, "--sidecar", ".txt")
    assert (status, out) == (1, b"") and "files beside the pictures: 5 captioned, 1 failed, 0 skipped" in err
    assert texts(photos) == expected and len(expected) == 5
    assert not list(photos.rglob(".*"))


def test_existing_files_are_refused_or_left_as_they_are(run, photos, expected):
    (photos / "n1.txt").write_text("mine")
    status, _, err = run(photos, "--sidecar", ".txt")
    assert status == 2 and "1 of the pictures have such a file; --skip-existing leaves these pictures out" in err
    assert texts(photos) == {"n1.txt": "mine"}
    status, _, err = run(photos, "--sidecar", ".txt", "--skip-existing")
    assert status == 1 and "files beside the pictures: 4 captioned, 1 failed, 1 skipped" in err
    assert texts(photos) == {**expected, "n1.txt": "mine"}


def test_processes_share_the_pictures(run, photos, expected, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    run(photos, "--sidecar", ".txt")
    assert 0 < len(texts(photos)) < 5
    monkeypatch.setenv("RANK", "0")
    run(photos, "--sidecar", ".txt")
    assert texts(photos) == expected


def test_several_captions_are_lines(run, photos):
    run(photos, "--sidecar", ".captions", "--num-beams", 3, "--num-return-sequences", 2)
    assert {len(text.splitlines()) for text in texts(photos, ".captions").values()} == {2}


def test_a_picture_that_is_named_twice_is_one(run, photos, expected):
    again = photos / "more" / ".." / "n1.png"
    status, _, err = run(photos / "n1.png", photos, again, "--sidecar", ".txt")
    assert status == 1 and "5 captioned, 1 failed, 0 skipped, 2 named again" in err
    assert texts(photos) == expected


def test_pictures_named_one_by_one_do_not_share_a_file(run, photos):
    (photos / "n1.jpg").write_bytes((photos / "n2.jpg").read_bytes())
    names = ["n1.png", "more/n3.png", "more/../n1.jpg"]
    status, _, err = run(*(photos / name for name in names), "--sidecar", ".txt")
    assert status == 2 and f"{photos}/more/../n1.png and {photos}/more/../n1.jpg would both have" in err
    assert texts(photos) == {}


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["photos", "--sidecar", "txt"], "expected a suffix such as .txt, found 'txt'"),
        (["photos", "--sidecar", "/../a.txt"], "expected a suffix such as .txt"),
        (["photos", "--sidecar", ".PNG"], ".PNG is a suffix of pictures"),
        (["photos", "photos.zip", "--sidecar", ".txt"], "photos.zip: pictures of archives, tables and servers have no"),
        (["--data-dir", "photos", "--sidecar", ".txt"], "--sidecar goes with picture files and folders"),
        (["photos", "--skip-existing"], "--skip-existing goes with --sidecar"),
        (["photos", "--sidecar", ".txt", "--out", "a.jsonl"], "--sidecar goes without --out"),
        (["photos", "photos/n0.jpg", "--sidecar", ".txt"], ""),
    ],
)
def test_mistakes_come_before_any_work(run, photos, arguments, message, monkeypatch):
    monkeypatch.chdir(photos.parent)
    with zipfile.ZipFile("photos.zip", "w") as archive:
        archive.write("photos/n0.png")
    if not message:
        (photos / "n0.png").rename(photos / "n2.png")
        message = "photos/n2.jpg and photos/n2.png would both have photos/n2.txt"
    status, out, err = run(*arguments)
    assert (status, out) == (2, b"") and message in err
    assert texts(photos) == {}
