"""Tars in WebDataset's layouts: rows, ids, and samples that cannot be used."""

import io
import itertools
import json
import re
import tarfile

import datasets
import pytest
from PIL import Image

from hf_captioners.data.archive import ArchiveError
from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.captions.load import load_captions
from hf_captioners.data.captions.records import CaptionFileError
from hf_captioners.data.captions.tar_shards import is_webdataset, stream_tars, tar_shards


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def png(colour="red"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path, **members):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            content = content if isinstance(content, bytes) else content.encode()
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def rows_of(source):
    rows = load_captions(source)
    return dict(zip(rows["image_id"][:], rows["captions"][:], strict=True))


def test_both_layouts(tmp_path):
    texts = pack(tmp_path / "a.tar", **{"1.png": png("blue"), "1.txt": "a dog\n", "2.png": png(), "2.txt": "a cat"})
    lists = pack(tmp_path / "b.tar", **{"x/3.json": json.dumps(["a cow", "one cow"]), "x/3.png": png(), "x/3.cls": "7"})
    objects = pack(tmp_path / "c.tar", **{"4.png": png(), "4.json": json.dumps({"url": "", "caption": "a hen"})})
    assert rows_of(texts) == {1: ["a dog"], 2: ["a cat"]}
    assert rows_of(lists) == {"x/3": ["a cow", "one cow"]} and rows_of(objects) == {4: ["a hen"]}
    row = load_captions(texts)[0]
    assert row["image"].getpixel((0, 0)) == (0, 0, 255) and row["file_name"] == "1.png"


def test_samples_of_one_coco_picture_are_one(tmp_path):
    """As in DiCO's tars, which have a sample per caption."""
    for number in range(2):
        stem = f"{number}__COCO_train2014_000000379613"
        pack(tmp_path / f"{number:06d}.tar", **{f"{stem}.jpg": png(), f"{stem}.txt": f"caption {number}"})
    assert rows_of(tmp_path / "{000000..000001}.tar") == {379613: ["caption 0", "caption 1"]}
    assert rows_of(tmp_path / "*.tar") == {379613: ["caption 0", "caption 1"]}


def test_a_changed_tar_is_read_anew(tmp_path):
    path = tmp_path / "a.tar"
    pack(path, **{"1.png": png(), "1.txt": "a dog"})
    assert rows_of(path) == {1: ["a dog"]}
    pack(path, **{"1.png": png(), "1.txt": "a cat, and more"})
    assert rows_of(path) == {1: ["a cat, and more"]}


def test_archives_of_folders_are_others(tmp_path):
    for name in ("train/a.png", "metadata.jsonl"):
        path = pack(tmp_path / "folder.tar", **{name: png(), "train/a.txt": "a dog"})
        assert not is_webdataset(path) and tar_shards(path) == []
    assert tar_shards(tmp_path / "nothing.tar") == [] and tar_shards(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=r"1 of 2 tars are missing: .*nothing2\.tar"):
        tar_shards(f"{tmp_path}/{{folder,nothing2}}.tar")


GOOD = {"1.png": png(), "1.txt": "a dog"}
BAD = {
    "outside": (
        {"../2.png": png(), "../2.txt": "a"},
        ArchiveError,
        r"the member '\.\./2\.png' leads out of the archive",
    ),
    "no captions": ({"2.png": png()}, CaptionFileError, r"the member '2\.png' has no captions beside it, in 2\.txt or"),
    "no picture": ({"2.txt": "a cat"}, CaptionFileError, r"the member '2\.txt' has no picture of its name beside it"),
    "apart": ({"2.png": png(), "3.png": png(), "2.txt": "x"}, CaptionFileError, r"'2\.png' has no captions beside it"),
    "empty picture": ({"2.png": b"", "2.txt": "a"}, CaptionFileError, r"the member '2\.png' is empty, expected a pic"),
    "empty captions": ({"2.png": png(), "2.txt": ""}, CaptionFileError, r"the member '2\.txt' is empty, expected capt"),
    "blank": (
        {"2.png": png(), "2.txt": " \n"},
        CaptionFileError,
        r"the member '2\.txt': its content is \[\], expected",
    ),
    "null": ({"2.png": png(), "2.json": "[null]"}, CaptionFileError, r"'2\.json': its content\[0\] is None, expected"),
    "number": ({"2.png": png(), "2.json": "3"}, CaptionFileError, r"'2\.json': is 3, expected a list of captions"),
    "cut JSON": ({"2.png": png(), "2.json": '["a'}, CaptionFileError, r"the member '2\.json': Unterminated string"),
    "Latin 1": ({"2.png": png(), "2.txt": b"\xe9"}, CaptionFileError, r"the member '2\.txt': 'utf-8' codec can't dec"),
    "two pictures": ({"2.png": png(), "2.jpg": png()}, CaptionFileError, r"'2\.jpg' has the name of '2\.png'"),
}


@pytest.mark.parametrize("name", BAD)
def test_message_names_tar_and_member(tmp_path, name):
    members, kind, message = BAD[name]
    path = pack(tmp_path / "a.tar", **GOOD, **members)
    with pytest.raises(kind, match=message) as caught:
        load_captions(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.fixture
def bad_tars(tmp_path):
    """Tars with a good sample each before a bad one; the last is cut off behind its first sample."""
    for number, (members, _, _) in enumerate(BAD.values()):
        good = {f"{100 + number}.png": png(), f"{100 + number}.txt": f"caption {number}"}
        pack(tmp_path / f"{number:02d}.tar", **good, **members)
    cut = pack(tmp_path / "99.tar", **{"199.png": png(), "199.txt": "a cow", "200.png": png(), "200.txt": "a hen"})
    cut.write_bytes(cut.read_bytes()[: 5 * 512 + 100])
    return tmp_path / "*.tar"


def test_bad_samples_are_left_out(bad_tars, caplog):
    """Also in the second reading, from the cache; the rest of a tar that is cut off is one fault."""
    expected = {100 + number: [f"caption {number}"] for number in range(len(BAD))} | {199: ["a cow"]}
    for _ in range(2):
        bad_rows = BadRows("skip")
        rows = load_captions(bad_tars, bad_rows=bad_rows)
        assert dict(zip(rows["image_id"][:], rows["captions"][:], strict=True)) == expected
        faults = len(BAD) + 3  # two members lead out, and two samples of "apart" lack captions, and one a picture
        assert bad_rows.count == faults + 1
        assert "99.tar: " in bad_rows.messages[-1]
        for number, (_, _, message) in enumerate(BAD.values()):
            found = [fault for fault in bad_rows.messages if f"/{number:02d}.tar: " in fault]
            assert any(re.search(message, fault) for fault in found), (message, found)
    bad_rows = BadRows("skip")
    rows = stream_tars(tar_shards(bad_tars), buffer_size=1, bad_rows=bad_rows)
    read = list(itertools.islice(iter(rows), len(expected)))
    assert {row["image_id"]: row["captions"] for row in read} == expected
    assert set(read[0]) == {"image", "image_id", "captions", "file_name"}
    with pytest.raises(ValueError, match=r"member|cut off"):
        list(itertools.islice(iter(stream_tars(tar_shards(bad_tars))), len(expected)))


def test_pictures_and_captions_of_a_stream_are_looked_at(tmp_path):
    broken = {"2.png": png()[:40], "2.txt": "a cat", "3.jpg": b"GIF8", "3.txt": "a cow"}
    words = {"4.png": png(), "4.txt": "...", "5.png": png(), "5.txt": "a hen " * 1000}
    path = pack(tmp_path / "a.tar", **GOOD, **broken, **words)
    bad_rows = BadRows("skip")
    rows = iter(stream_tars([str(path)], "mine", check_images=True, bad_rows=bad_rows, buffer_size=1))
    assert [next(rows)["image_id"] for _ in range(3)] == [1, 1, 1]
    for number, (row, said) in enumerate(
        [
            (1, r"field 'image': picture .*a\.tar/2\.png \(.*\)"),
            (2, r"field 'image': picture .*a\.tar/3\.jpg \(.*\)"),
            (3, r"a caption without a word: '\.\.\.'"),
            (4, r"a caption of more than 5000 characters: .*"),
        ]
    ):
        assert re.fullmatch(rf"mine: file 0, row {row}: {said}", bad_rows.messages[number])
    rows = iter(stream_tars([str(path)], "mine", bad_rows=BadRows("skip"), buffer_size=1))
    assert [next(rows)["image_id"] for _ in range(3)] == [1, 2, 3]  # as the header of no picture was looked at


def test_nothing_left(tmp_path):
    path = pack(tmp_path / "a.tar", **{"2.png": b"", "2.txt": "a"})
    with pytest.raises(CaptionFileError, match=r"a\.tar: no samples that can be used.*'2\.png' is empty"):
        load_captions(path, bad_rows=BadRows("skip"))


def test_one_name_in_two_tars(tmp_path):
    for name in "ab":
        pack(tmp_path / f"{name}.tar", **GOOD)
    bad_rows = BadRows("skip")
    assert len(load_captions(tmp_path / "{a,b}.tar", bad_rows=bad_rows)) == bad_rows.count == 1
    with pytest.raises(CaptionFileError, match=r"the sample '1\.png' is in .*a\.tar and in .*b\.tar"):
        load_captions(tmp_path / "{a,b}.tar")
    with pytest.raises(ValueError, match=r"a\.tar: pictures and captions are both in it; leave image_root=x out"):
        load_captions(tmp_path / "a.tar", "x")
    with pytest.raises(ValueError, match=r"split='val': tars have no splits"):
        load_captions(tmp_path / "a.tar", split="val")
