"""Pictures that cannot be opened are counted and named before a training begins."""

from pathlib import Path

import datasets
import pytest
from PIL import Image

from hf_captioners.data.image_check import BrokenImagesError, check_images


def rows_of(*pictures):
    closed = [one if isinstance(one, dict) else {"path": one, "bytes": None} for one in pictures]
    return datasets.Dataset.from_dict({"image": closed}).cast_column("image", datasets.Image(decode=False))


@pytest.fixture
def good(tmp_path):
    for name in ("a.png", "b.jpg", "c.webp", "d.gif"):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.webp", "d.gif")]


def test_good_pictures(good, tmp_path):
    content = (tmp_path / "a.png").read_bytes()
    check_images(rows_of(*good, {"path": None, "bytes": content}, "https://example.org/x.png"), "mine")


def test_faults_are_counted_and_named(good, tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.jpg").write_text("<html>not found</html>")
    (tmp_path / "head.png").write_bytes((tmp_path / "a.png").read_bytes()[:12])
    (tmp_path / "x.jxl").write_bytes(b"\xff\x0a" + bytes(99))
    bad = [str(tmp_path / name) for name in ("gone.png", "empty.png", "page.jpg", "head.png", "x.jxl")]
    with pytest.raises(BrokenImagesError) as caught:
        check_images(rows_of(*good, *bad, *bad), "mine")
    message = str(caught.value)
    assert message.startswith(
        f"mine: 10 of 14 pictures cannot be opened: {bad[0]} (no such file), {bad[1]} (the file is"
    )
    assert f"{bad[2]} (not a readable picture)" in message and f"{bad[4]} (a picture in JPEG XL" in message
    assert message.endswith(" and 5 more")


def test_limits(good, monkeypatch):
    monkeypatch.setenv("HF_CAPTIONERS_MAX_IMAGE_PIXELS", "63")
    with pytest.raises(
        BrokenImagesError,
        match=r"4 of 4 .*a\.png \(8 x 8 pixels, more than the 63 allowed \(HF_CAPTIONERS_MAX_IMAGE_PIXELS",
    ):
        check_images(rows_of(*good), "mine")


@pytest.mark.parametrize("name", ["a.png", "b.jpg", "c.webp", "d.gif"])
def test_a_file_that_is_cut_off(tmp_path, name):
    noise = Image.effect_noise((64, 64), 100).convert("RGB")
    noise.save(tmp_path / name)
    check_images(rows_of(str(tmp_path / name)), "mine")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(BrokenImagesError, match=f"1 of 1 pictures cannot be opened: .*{name}"):
        check_images(rows_of(str(tmp_path / name)), "mine")
    with pytest.raises(BrokenImagesError, match="1 of 1"):
        check_images(rows_of({"path": None, "bytes": content[:-40]}), "mine")


def test_bytes_behind_a_whole_picture_are_no_fault(good, tmp_path):
    for path in good:
        with Path(path).open("ab") as file:
            file.write(b"of a camera")
    check_images(rows_of(*good), "mine")
