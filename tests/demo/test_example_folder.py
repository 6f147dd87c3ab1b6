"""Examples: pictures of one folder, and no other file."""

import pytest
from PIL import Image

from hf_captioners.demo.example_folder import ExampleFolder
from hf_captioners.modeling.captioner_image_io import ImageError


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "below").mkdir(parents=True)
    for path in (folder / "b.png", folder / "a.JPG", folder / "below/c.png", tmp_path / "secret.png"):
        Image.new("RGB", (30, 20), "red").save(path)
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "inside.png").symlink_to(folder / "b.png")
    return folder


def test_pictures_of_the_folder_alone(folder):
    examples = ExampleFolder(folder)
    assert examples.names == ["a.JPG", "b.png", "broken.png", "inside.png"]
    assert examples.open("b.png").size == (30, 20)
    shown = examples.thumbnails(15)
    assert [(image.size, name) for image, name in shown] == [
        ((15, 10), one) for one in ("a.JPG", "b.png", "inside.png")
    ]
    assert "broken.png" not in examples.names and len(ExampleFolder(folder, 2).names) == 2


@pytest.mark.parametrize(
    "name", ["../secret.png", "link.png", "below/c.png", "notes.txt", "/etc/passwd", "", "\x1b.png"]
)
def test_no_path_outside_can_be_read(folder, name):
    with pytest.raises(ImageError, match="is none of the examples") as caught:
        ExampleFolder(folder).open(name)
    assert "\x1b" not in str(caught.value)


def test_what_becomes_a_link_later_is_none(folder, tmp_path):
    examples = ExampleFolder(folder)
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(ImageError, match=r"b\.png: is none"):
        examples.open("b.png")


def test_a_folder_without_pictures(tmp_path):
    for place, said in ((tmp_path, "no pictures in it"), (tmp_path / "nowhere", "no such folder")):
        with pytest.raises(ValueError, match=f"--examples {place}: {said}"):
            ExampleFolder(place)
