"""Streaming data sets as sources: every row once, whatever files and processes they come in."""

from __future__ import annotations

import datasets
import fsspec
import pytest

from hf_captioners.data.rows import undecoded
from hf_captioners.inference.caption_run import CaptionRun, Share, merge_parts
from hf_captioners.inference.image_streams import ImageStream
from hf_captioners.modeling.captioner_image_source import read_source

SIZES = [5, 1, 7, 3]
NAMES = [f"{shard}/{row}" for shard, size in enumerate(SIZES) for row in range(size)]
SHARED = len(NAMES) * 2 // 3  # rows that a killed run has done, in the middle of a file


def generated(shards):
    for shard, size in shards:
        for row in range(size):
            yield {
                "image": {"path": f"{shard}-{row}.jpg", "bytes": f"{shard}/{row}".encode()},
                "key": 100 * shard + row,
            }


@pytest.fixture
def rows():
    features = datasets.Features({"image": datasets.Image(), "key": datasets.Value("int64")})
    shards = list(enumerate(SIZES))
    return datasets.IterableDataset.from_generator(generated, features=features, gen_kwargs={"shards": shards})


def go(path, stream, share=None, stop=None):
    """Caption with the images' bytes, up to so many."""
    with CaptionRun(path, {}, share) as run:
        sources = (share or Share()).of(stream.sources(run.wants))
        remaining = run.remaining((source, place, row) for source, rows in sources for place, row in enumerate(rows))
        for number, row in enumerate(remaining):
            if number == stop:
                return run.tally.summary()
            run.add({"image_id": row["image_id"], "caption": read_source(row["image"], 100, 1.0).decode()})
        return run.finish()


def records(path):
    from hf_captioners.data.json_lines import read_json_lines

    return [(record["image_id"], record["caption"]) for record in read_json_lines(path)]


def test_each_row_once_behind_a_kill(rows, tmp_path):
    path = tmp_path / "captions.jsonl"
    go(path, ImageStream(rows), stop=SHARED)
    assert len(records(path)) == SHARED
    summary = go(path, ImageStream(rows))
    assert (summary["captioned"], summary["skipped"]) == (len(NAMES) - SHARED, SHARED)
    assert records(path) == [(name, name) for name in NAMES]


def test_finished_files_are_not_read_again(rows, tmp_path, monkeypatch):
    path, read = tmp_path / "captions.jsonl", []
    go(path, ImageStream(rows), stop=SHARED)
    shard = type(rows).shard

    def watched(dataset, number, index):
        read.append(index)
        return shard(dataset, number, index)

    monkeypatch.setattr(type(rows), "shard", watched)
    go(path, ImageStream(rows))
    assert read == [2, 3]


@pytest.mark.parametrize("number", [2, 3, 6])  # with 6 processes and 4 files they share the rows
def test_processes_share_files_or_rows(rows, tmp_path, number):
    path = tmp_path / "captions.jsonl"
    for index in range(number):
        share = Share(index, number)
        stream = ImageStream(rows, share=share)
        go(path, stream, share, stop=1)
        assert go(path, stream, share)["captioned"] < len(NAMES) - 1
    merge_parts(path)
    assert records(path) == [(name, name) for name in NAMES]


def test_names_of_a_column(rows, tmp_path):
    path = tmp_path / "captions.jsonl"
    go(path, ImageStream(rows, id_column="key"), stop=SHARED)
    go(path, ImageStream(rows, id_column="key"))
    expected = [100 * int(name.partition("/")[0]) + int(name.partition("/")[2]) for name in NAMES]
    assert records(path) == list(zip(expected, NAMES, strict=True))
    named = undecoded(rows).rename_column("key", "image_id")  # the name that such a column has elsewhere
    assert [row["image_id"] for source in ImageStream(named).sources(lambda name: True) for row in source] == expected


def test_images_of_other_machines_are_read_when_they_are_opened():
    fsspec.filesystem("memory").pipe("/photos/a.jpg", b"there")
    paths = ["memory://photos/a.jpg", "memory://photos/none.jpg", None]
    rows = datasets.Dataset.from_dict({"image": paths}).to_iterable_dataset()
    images = [row["image"] for source in ImageStream(rows).sources(lambda name: True) for row in source]
    assert read_source(images[0], 100, 1.0) == b"there"
    with pytest.raises(ValueError, match="cannot be read"):
        read_source(images[1], 100, 1.0)
    assert images[1]["path"] == paths[1] and images[2] == {"error": "no image"}


def test_mistakes(rows):
    with pytest.raises(ValueError, match="no column 'photo'; it has 'image', 'key'"):
        ImageStream(rows, "photo")
    with pytest.raises(ValueError, match="no column 'name'"):
        ImageStream(rows, id_column="name")
    empty = datasets.Dataset.from_dict({"image": ["a.jpg"], "image_id": [None]}).to_iterable_dataset()
    with pytest.raises(ValueError, match="row 0/0: the column 'image_id' is empty there"):
        list(next(ImageStream(empty).sources(lambda name: True)))
