"""Reading Karpathy's layout: rows, splits, caching, missing pictures, and everything that can be wrong in a file."""

import collections
import gzip
import json
import os
import pickle

import datasets
import pytest
from PIL import Image

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.captions.karpathy import SPLITS, KarpathyBuilder, load_karpathy


def entry(number, split="train", **fields):
    sentences = [{"raw": f" Caption {i} of {number} .", "sentid": 10 * number + i, "tokens": []} for i in range(2)]
    return {"filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences, **fields}


def write_annotations(folder, images):
    path = folder / "dataset.json"
    path.write_text(json.dumps({"images": images, "dataset": "test"}), encoding="utf-8")
    return path


def write_images(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (4, 3)).save(folder / name)


@pytest.fixture
def load(tmp_path):
    """`load_karpathy` with a cache of the test's own."""

    def load_with_cache(*args, **kwargs):
        return load_karpathy(*args, cache_dir=tmp_path / "cache", **kwargs)

    return load_with_cache


def ids(dataset):
    return [row["image_id"] for row in dataset]


class TestRows:
    def test_flickr_layout_has_neither_cocoid_nor_filepath(self, tmp_path, load):
        write_images(tmp_path / "images", "7.png")
        dataset = load(write_annotations(tmp_path, [entry(7)]), tmp_path / "images")
        (row,) = dataset
        assert row.pop("image").size == (4, 3)
        assert row == {
            "image_id": 7,
            "file_name": "7.png",
            "split": "train",
            "captions": [" Caption 0 of 7 .", " Caption 1 of 7 ."],  # the raw text, spaces and all
            "sentence_ids": [70, 71],
        }

    def test_coco_layout(self, tmp_path, load):
        write_images(tmp_path / "images" / "val2014", "7.png")
        dataset = load(write_annotations(tmp_path, [entry(7, cocoid=391895, filepath="val2014")]), tmp_path / "images")
        assert dataset[0]["image_id"] == 391895
        assert dataset[0]["file_name"] == "val2014/7.png"
        path = dataset.cast_column("image", datasets.Image(decode=False))[0]["image"]["path"]
        assert path == str(tmp_path / "images" / "val2014" / "7.png")

    def test_folder_of_filepath_may_be_absent(self, tmp_path, load):
        write_images(tmp_path / "images", "7.png")
        dataset = load(write_annotations(tmp_path, [entry(7, filepath="val2014")]), tmp_path / "images")
        assert dataset[0]["image"].size == (4, 3)

    def test_without_image_root_there_are_captions_only(self, tmp_path, load):
        dataset = load(write_annotations(tmp_path, [entry(7)]))
        assert dataset.column_names == ["image_id", "file_name", "split", "captions", "sentence_ids"]

    def test_sentid_may_be_absent(self, tmp_path, load):
        dataset = load(write_annotations(tmp_path, [entry(7, sentences=[{"raw": "a"}, {"raw": "", "sentid": 3}])]))
        assert dataset[0]["captions"] == ["a", ""]
        assert dataset[0]["sentence_ids"] == [None, 3]

    @pytest.mark.parametrize("encode", [gzip.compress, lambda content: b"\xef\xbb\xbf" + content])
    def test_gzip_and_byte_order_mark(self, tmp_path, load, encode):
        path = write_annotations(tmp_path, [entry(7, sentences=[{"raw": "café 猫"}])])
        path.write_bytes(encode(path.read_bytes()))
        assert load(path)[0]["captions"] == ["café 猫"]

    def test_relative_paths_stay_valid_elsewhere(self, tmp_path, load, monkeypatch):
        write_images(tmp_path / "images", "7.png")
        write_annotations(tmp_path, [entry(7)])
        monkeypatch.chdir(tmp_path)
        dataset = load("dataset.json", "images")
        monkeypatch.chdir(tmp_path.parent)
        assert dataset[0]["image"].size == (4, 3)

    def test_paths_with_pattern_characters(self, tmp_path, load):
        folder = tmp_path / "[set] *"
        write_images(folder / "images", "7.png")
        assert ids(load(write_annotations(folder, [entry(7)]), folder / "images")) == [7]

    def test_nothing_on_stdout(self, tmp_path, load, capfd):
        load(write_annotations(tmp_path, [entry(7)]))
        assert capfd.readouterr().out == ""


class TestSplits:
    @pytest.fixture
    def annotations(self, tmp_path):
        return write_annotations(tmp_path, [entry(1, "test"), entry(2, "restval"), entry(3, "val"), entry(4, "train")])

    @pytest.mark.parametrize("streaming", [False, True])
    @pytest.mark.parametrize(
        ("split", "expected"),
        [
            ("train+restval", [4, 2]),
            ("test", [1]),
            ("val + test", [3, 1]),
            (["val", "test"], [3, 1]),
            ("test+test", [1]),
            ("all", [4, 2, 3, 1]),
        ],
    )
    def test_selection(self, annotations, load, split, expected, streaming):
        assert ids(load(annotations, split=split, streaming=streaming)) == expected
        assert ids(load(annotations, split=split, streaming=streaming)) == expected  # from the cache

    def test_default_passes_over_splits_that_do_not_occur(self, tmp_path, load):
        assert ids(load(write_annotations(tmp_path, [entry(1, "restval"), entry(2, "val")]))) == [1]

    @pytest.mark.parametrize("streaming", [False, True])
    def test_none_of_the_splits_occurs(self, tmp_path, load, streaming):
        annotations = write_annotations(tmp_path, [entry(1, "val"), entry(2, "test")])
        with pytest.raises(
            ValueError, match=r"dataset\.json: no image of split train\+restval; its splits are: val, t"
        ):
            load(annotations, streaming=streaming)

    @pytest.mark.parametrize("split", ["validation", "train[:10]", "", "train,val"])
    def test_unknown_name(self, annotations, load, split):
        with pytest.raises(ValueError, match="is not a split; expected 'all' or names of train, restval, val, test"):
            load(annotations, split=split)


class TestStreaming:
    def test_rows_are_those_of_the_dataset(self, tmp_path, load):
        images = [entry(number, SPLITS[number % 4]) for number in range(1, 9)]
        write_images(tmp_path / "images", *(image["filename"] for image in images))
        annotations = write_annotations(tmp_path, images)
        streamed = load(annotations, tmp_path / "images", "all", streaming=True)
        assert isinstance(streamed, datasets.IterableDataset)
        rows = [{**row, "image": row["image"].size} for row in streamed]
        assert rows == [{**row, "image": row["image"].size} for row in load(annotations, tmp_path / "images", "all")]

    def test_is_picklable_and_writes_no_cache(self, tmp_path, load):
        streamed = load(write_annotations(tmp_path, [entry(1)]), streaming=True)
        assert ids(pickle.loads(pickle.dumps(streamed))) == [1]
        assert not list((tmp_path / "cache").rglob("*.arrow"))

    def test_is_sharded_for_workers(self, tmp_path, load):
        images = [entry(number) for number in range(2500)]
        assert load(write_annotations(tmp_path, images), streaming=True).num_shards == 3


class TestCache:
    """A built table is used again until a source changes: `datasets` alone would not notice."""

    def test_edited_annotations(self, tmp_path, load):
        assert ids(load(write_annotations(tmp_path, [entry(1)]))) == [1]
        assert ids(load(write_annotations(tmp_path, [entry(1), entry(2)]))) == [1, 2]

    def test_picture_deleted_and_back(self, tmp_path, load):
        write_images(tmp_path / "images" / "a", "1.png", "2.png")
        annotations = write_annotations(tmp_path, [entry(1, filepath="a"), entry(2, filepath="a")])
        assert ids(load(annotations, tmp_path / "images")) == [1, 2]
        (tmp_path / "images" / "a" / "1.png").unlink()
        with pytest.raises(FileNotFoundError, match="1 of 2 image files are missing"):
            load(annotations, tmp_path / "images")
        assert ids(load(annotations, tmp_path / "images", bad_rows=BadRows("skip"))) == [2]
        write_images(tmp_path / "images" / "a", "1.png")
        assert ids(load(annotations, tmp_path / "images", bad_rows=BadRows("skip"))) == [1, 2]

    def test_other_image_root(self, tmp_path, load):
        annotations = write_annotations(tmp_path, [entry(1)])
        for root in (tmp_path / "one", tmp_path / "two"):
            write_images(root, "1.png")
            dataset = load(annotations, root).cast_column("image", datasets.Image(decode=False))
            assert dataset[0]["image"]["path"] == str(root / "1.png")

    def test_edited_annotations_of_the_same_size_and_time(self, tmp_path, load):
        annotations = write_annotations(tmp_path, [entry(1)])
        before = annotations.stat()
        assert ids(load(annotations)) == [1]
        write_annotations(tmp_path, [entry(2)])
        os.utime(annotations, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert annotations.stat().st_size == before.st_size
        assert ids(load(annotations)) == [2]

    def test_unchanged_sources_are_not_read_again(self, tmp_path, load, monkeypatch):
        annotations = write_annotations(tmp_path, [entry(1)])
        load(annotations)
        monkeypatch.setattr("hf_captioners.data.captions.karpathy.read_rows", None)
        assert ids(load(annotations)) == [1]


class TestMissingPictures:
    @pytest.fixture
    def annotations(self, tmp_path):
        write_images(tmp_path / "images", "0.png")
        return write_annotations(tmp_path, [entry(number, filepath="train2014") for number in range(9)])

    @pytest.mark.parametrize("streaming", [False, True])
    def test_error_names_the_first_and_the_rule(self, tmp_path, annotations, load, streaming):
        with pytest.raises(FileNotFoundError) as error:
            load(annotations, tmp_path / "images", streaming=streaming)
        message = str(error.value)
        assert "8 of 9 image files are missing" in message
        assert str(tmp_path / "images" / "1.png") in message
        assert "and 3 more" in message
        assert "image_root/filepath/filename if the folder image_root/filepath exists, else" in message

    @pytest.mark.parametrize("streaming", [False, True])
    def test_drop(self, tmp_path, annotations, load, streaming, caplog):
        assert ids(load(annotations, tmp_path / "images", bad_rows=BadRows("skip"), streaming=streaming)) == [0]
        assert sum("is missing" in message for message in caplog.messages) == 8

    def test_every_bad_image_is_left_out_and_counted_each_time(self, tmp_path, load):
        """From the cache of `datasets`, too."""
        bad = [{**entry(2), "sentences": [{"raw": 7}]}, {**entry(3), "filename": "../3.png"}, 5, entry(1)]
        annotations = write_annotations(tmp_path, [entry(1), *bad])
        with pytest.raises(ValueError, match=r"images\[1\] .*: sentences\[0\]: field 'raw' is 7, expected a string"):
            load(annotations)
        for _ in range(2):
            bad_rows = BadRows("skip")
            assert ids(load(annotations, bad_rows=bad_rows)) == [1]
            assert bad_rows.count == 4
            assert "image id 1 is already that of images[0]" in bad_rows.messages[-1]

    def test_drop_does_not_drop_all(self, tmp_path, annotations, load):
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match="9 of 9 image files are missing"):
            load(annotations, tmp_path / "empty", bad_rows=BadRows("skip"))

    def test_pictures_of_other_splits_are_not_needed(self, tmp_path, load):
        write_images(tmp_path / "images", "2.png")
        annotations = write_annotations(tmp_path, [entry(1, "train"), entry(2, "test")])
        assert ids(load(annotations, tmp_path / "images", "test")) == [2]

    def test_a_folder_is_no_picture(self, tmp_path, load):
        (tmp_path / "images" / "1.png").mkdir(parents=True)
        with pytest.raises(FileNotFoundError, match="1 of 1"):
            load(write_annotations(tmp_path, [entry(1)]), tmp_path / "images")

    def test_no_such_file_or_folder(self, tmp_path, annotations, load):
        with pytest.raises(FileNotFoundError, match=r"none\.json: no such annotation file"):
            load(tmp_path / "none.json")
        with pytest.raises(FileNotFoundError, match="none: no such folder"):
            load(annotations, tmp_path / "none")


class TestMalformedFiles:
    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", "not JSON"),
            (b'{"images": [', "not JSON"),
            (b"\xff\xfe\xfd", "not JSON"),
            (b"[" * 100_000, "not JSON"),
            (gzip.compress(b'{"images": []}', mtime=0)[:-9], "not a readable gzip file"),
            (b"\x1f\x8bnot gzip", "not a readable gzip file"),
            (b"[]", "no list 'images'"),
            (b'{"annotations": []}', "no list 'images'"),
            (b'{"images": {}}', "no list 'images'"),
            (b'{"images": []}', "its splits are: none, the file has no images"),
        ],
    )
    def test_file(self, tmp_path, load, content, message):
        path = tmp_path / "dataset.json"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as error:
            load(path)
        assert str(path) in str(error.value)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"sentences": None}, "field 'sentences' is None"),
            ({"sentences": []}, "field 'sentences' is []"),
            ({"sentences": "A dog ."}, "field 'sentences' is 'A dog .'"),
            ({"sentences": ["A dog ."]}, "field 'sentences[0]' is 'A dog .'"),
            ({"sentences": [{"raw": "a"}, {"tokens": []}]}, "sentences[1]: field 'raw' is None"),
            ({"sentences": [{"raw": 5}]}, "sentences[0]: field 'raw' is 5"),
            ({"sentences": [{"raw": "\ud800"}]}, "sentences[0]: field 'raw' is '\\ud800', which is not Unicode text"),
            ({"sentences": [{"raw": "a", "sentid": "5"}]}, "sentences[0]: field 'sentid' is '5'"),
            ({"split": None}, "field 'split' is None"),
            ({"split": "dev"}, "field 'split' is 'dev', expected one of train, restval, val, test"),
            ({"imgid": None}, "fields 'cocoid' and 'imgid' are both missing"),
            ({"imgid": True}, "field 'imgid' is True"),
            ({"cocoid": "391895"}, "field 'cocoid' is '391895'"),
            ({"filename": None}, "field 'filename' is None"),
            ({"filename": ""}, "field 'filename' is empty"),
            ({"filename": "../../etc/passwd"}, "field 'filename' is '../../etc/passwd', expected a path inside"),
            ({"filename": "..\\x.png"}, "field 'filename' is '../x.png', expected a path inside"),
            ({"filename": "/etc/passwd"}, "field 'filename' is '/etc/passwd', expected a path inside"),
            ({"filename": "C:\\x.png"}, "field 'filename' is 'C:/x.png', expected a path inside"),
            ({"filename": "http://host/x.png"}, "field 'filename' is 'http://host/x.png', expected a path inside"),
            ({"filename": "a\0.png"}, "field 'filename' is 'a\\x00.png', expected a path inside"),
            ({"filepath": ".."}, "field 'filepath' is '..', expected a path inside"),
            ({"filepath": 3}, "field 'filepath' is 3"),
        ],
    )
    def test_image(self, tmp_path, load, fields, message):
        path = write_annotations(tmp_path, [entry(1), {**entry(2, filename="second.png"), **fields}])
        with pytest.raises(ValueError) as error:
            load(path)
        assert str(error.value).startswith(f"{path}: images[1] (imgid ")
        assert message in str(error.value)

    def test_image_is_no_object(self, tmp_path, load):
        with pytest.raises(ValueError, match=r"images\[1\]: is 'x.png', expected an object"):
            load(write_annotations(tmp_path, [entry(1), "x.png"]))

    def test_image_id_twice(self, tmp_path, load):
        path = write_annotations(tmp_path, [entry(1), entry(2), entry(1, "val", filename="copy.png")])
        with pytest.raises(ValueError) as error:
            load(path)
        assert "images[2] (imgid 1, filename 'copy.png'): image id 1 is already that of images[0]" in str(error.value)


def test_builder_writes_parquet_with_the_pictures_inside(tmp_path):
    write_images(tmp_path / "images", "1.png")
    annotations = write_annotations(tmp_path, [entry(1)])
    builder = KarpathyBuilder(
        cache_dir=str(tmp_path / "cache"), annotations=str(annotations), image_root=str(tmp_path / "images")
    )
    builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
    (tmp_path / "images" / "1.png").unlink()
    (row,) = datasets.Dataset.from_parquet(str(next((tmp_path / "out").glob("*.parquet"))), cache_dir=tmp_path / "c")
    assert row["image"].size == (4, 3)


@pytest.mark.parametrize(
    ("name", "counts", "first"),
    [
        ("flickr8k_mini", {"train": 2600, "val": 500, "test": 500}, (1, "A little baby plays croquet .")),
        ("coco_mini", {"restval": 202, "val": 26, "test": 31}, (73, None)),
    ],
)
def test_real_data(shared_data, load, name, counts, first):
    folder = shared_data / name
    dataset = load(folder / "dataset_karpathy.json", folder / "images", "all")
    assert collections.Counter(dataset["split"]) == counts
    for split, count in counts.items():
        assert len(load(folder / "dataset_karpathy.json", folder / "images", split)) == count
    source = json.loads((folder / "dataset_karpathy.json").read_text(encoding="utf-8"))["images"]
    expected = {image.get("cocoid", image["imgid"]): [s["raw"] for s in image["sentences"]] for image in source}
    assert dict(zip(dataset["image_id"], dataset["captions"], strict=True)) == expected
    assert min(len(captions) for captions in dataset["captions"]) >= 5
    row = dataset[0]
    assert row["image_id"] == first[0]
    assert first[1] in (None, row["captions"][0])
    row["image"].load()
