"""Files of captions: their layouts are told by what is in them, and load with the same ids whatever their place."""

import gzip
import json
import logging
from pathlib import Path

import datasets
import pytest
from PIL import Image

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.captions.layouts import EXPECTED, layout_of, read_annotations
from hf_captioners.data.captions.load import load_captions
from hf_captioners.data.captions.predictions import read_references
from hf_captioners.data.captions.records import CaptionFileError
from hf_captioners.modeling.captioner_image_limits import ImageError

CAPTIONS = {"1.jpg": ["a dog", "one dog"], "2.jpg": ["a cat", "one cat"]}


def karpathy() -> str:
    images = [
        {"filename": name, "imgid": int(name[0]), "split": split, "sentences": [{"raw": one} for one in captions]}
        for (name, captions), split in zip(CAPTIONS.items(), ("train", "val"), strict=True)
    ]
    return json.dumps({"images": images, "dataset": "tiny"})


def coco() -> str:
    images = [{"license": 3, "file_name": name, "id": int(name[0])} for name in CAPTIONS]
    annotations = [
        {"image_id": int(name[0]), "id": 10 * int(name[0]) + number, "caption": caption}
        for name, captions in CAPTIONS.items()
        for number, caption in enumerate(captions)
    ]
    return json.dumps({"info": {"year": 2017}, "images": images, "licenses": [], "annotations": annotations})


def lines(form: str, first: str = "") -> str:
    """A line per caption."""
    pairs = [(name, number, caption) for name, own in CAPTIONS.items() for number, caption in enumerate(own)]
    return first + "".join(form.format(name, number, caption) for name, number, caption in pairs)


TEXTS = {
    "karpathy": karpathy(),
    "coco": coco(),
    "records": "\n".join(json.dumps({"file_name": name, "captions": own}) for name, own in CAPTIONS.items()),
    "by id": json.dumps(CAPTIONS),
    "tokens": lines("{}#{}\t{}\n"),
    "bars": lines("{}| {}| {}\n", "image_name| comment_number| comment\n"),
    "csv": lines("{0},{2}\n", "image,caption\n"),
}
NUMBERED = ("karpathy", "coco")  # whose images have numbers for ids


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in CAPTIONS:
        Image.new("RGB", (8, 8), "red").save(folder / name)
    return folder


@pytest.fixture
def write(tmp_path):
    def write(content, name="captions.txt"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def ids_and_captions(rows) -> dict:
    return dict(zip(rows["image_id"][:], rows["captions"][:], strict=True))


class TestLayouts:
    @pytest.mark.parametrize("layout", TEXTS)
    @pytest.mark.parametrize("packed", [False, True])
    def test_told_by_content(self, write, layout, packed):
        content = TEXTS[layout].encode()
        path = write(gzip.compress(content) if packed else content)
        expected = {int(name[0]) if layout in NUMBERED else name: own for name, own in CAPTIONS.items()}
        assert layout_of(path) == layout
        assert ids_and_captions(load_captions(path, split="all")) == expected
        assert read_references(path).captions == expected

    @pytest.mark.parametrize("layout", sorted(set(TEXTS) - {"by id"}))
    def test_pictures_are_found_by_their_names(self, write, images, layout):
        rows = load_captions(write("\ufeff" + TEXTS[layout]), images, "all")  # with a BOM
        assert [Path(row["path"]).name for row in rows.cast_column("image", datasets.Image(decode=False))["image"]] == [
            *CAPTIONS
        ]
        assert rows[0]["image"].size == (8, 8)

    def test_parquet(self, tmp_path, images):
        rows = [{"file_name": name, "captions": own, "source": "x"} for name, own in CAPTIONS.items()]
        datasets.Dataset.from_list(rows).to_parquet(tmp_path / "captions")
        loaded = load_captions(tmp_path / "captions", images)
        assert ids_and_captions(loaded) == CAPTIONS and loaded["source"][:] == ["x", "x"]

    def test_parquet_with_the_pictures_inside(self, tmp_path, images):
        rows = {"image": [str(images / name) for name in CAPTIONS], "captions": [*CAPTIONS.values()]}
        table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
        table.to_parquet(tmp_path / "captions.parquet")
        loaded = load_captions(tmp_path / "captions.parquet")
        assert ids_and_captions(loaded) == CAPTIONS and loaded[0]["image"].size == (8, 8)

    def test_karpathys_default_is_what_is_learned_from(self, write):
        assert ids_and_captions(load_captions(write(TEXTS["karpathy"]))) == {1: CAPTIONS["1.jpg"]}

    def test_words_of_captions_are_no_header_of_a_table(self, write):
        """Karpathy's JSON is one line with all words of all captions, each in quotes between commas."""
        content = json.loads(TEXTS["karpathy"])
        content["images"][0]["sentences"][0]["tokens"] = ["an", "image", "with", "text", "in", "it"]
        assert layout_of(write(json.dumps(content))) == "karpathy"

    def test_the_line_of_flickr30k_that_lacks_a_bar(self, write):
        text = "image_name| comment_number| comment\n2199200615.jpg| 4   A dog runs across the grass .\n"
        assert read_annotations(write(text))[0]["captions"] == ["A dog runs across the grass ."]

    def test_columns_of_ones_own_and_ids(self, write):
        rows = load_captions(write('file_name;text;image_id;source\na.jpg;"a dog; running";7;x\nb.jpg;a cat;8.0;y\n'))
        assert ids_and_captions(rows) == {7: ["a dog; running"], 8: ["a cat"]}
        assert rows["source"][:] == ["x", "y"]

    def test_a_folder(self, images):
        (images / "1.txt").write_text("a dog\n\none dog\r\n")
        (images / "2.txt").write_text("a cat")
        assert ids_and_captions(load_captions(images)) == {"1.jpg": ["a dog", "one dog"], "2.jpg": ["a cat"]}
        with pytest.raises(ValueError, match="images: pictures and captions are both in it; leave image_root=x out"):
            load_captions(images, "x")


class TestSplits:
    @pytest.mark.parametrize(
        ("layout", "listed"),
        [("tokens", "2.jpg"), ("tokens", "2"), ("coco", "000002"), ("coco", "2.jpg"), ("bars", "2.jpg\n")],
    )
    def test_a_file_of_names(self, write, layout, listed):
        rows = load_captions(write(TEXTS[layout]), split=str(write(listed, "names")))
        assert rows["captions"][:] == [CAPTIONS["2.jpg"]]

    def test_names_that_are_not_there(self, write):
        path, names = write(TEXTS["tokens"]), write("2.jpg\n3.jpg\n", "names")
        with pytest.raises(CaptionFileError, match=r"names: 1 of 2 pictures are not in .*captions\.txt: 3\.jpg"):
            load_captions(path, split=str(names))
        with pytest.raises(CaptionFileError, match="split='val': only files in Karpathy's layout and folders have"):
            load_captions(path, split="val")
        with pytest.raises(CaptionFileError, match="names: is empty, expected names or ids of pictures"):
            load_captions(path, split=str(write("\n", "names")))


MISTAKES = {
    "no layout": ("once upon a time\n", rf"begins with 'once upon a time', .* expected {EXPECTED[:20]}"),
    "empty": (" \n", "is empty"),
    "cut off": (TEXTS["coco"][:-9], "not JSON"),
    "a token line": (TEXTS["tokens"] + "3.jpg a dog\n", "line 5: is '3.jpg a dog', expected NAME#NUMBER, a tab and"),
    "an empty caption": (TEXTS["tokens"] + "3.jpg#0\t \n", "line 5: field 'caption' is '', expected a caption with a"),
    "outside": ("../3.jpg#0\ta dog\n", r"line 1: field 'file_name' is '\.\./3\.jpg', expected a path inside"),
    "fields": ("image,caption\na.jpg,a dog,x\n", "line 2: has not the 2 fields of the first line"),
    "ids": ("image,caption,image_id\na.jpg,a dog,1\nb.jpg,a cat,1\n", "a.jpg and b.jpg have the same image_id 1"),
    "no URL": ("a dog\thttp://x.org/1.jpg\na cat\n", "1 lines cannot be used: line 2: is 'a cat', expected a caption"),
    "cocotalk": (json.dumps({"ix_to_word": {"1": "a"}, "images": []}), "a label file .* belong together"),
}


class TestMistakes:
    @pytest.mark.parametrize("name", MISTAKES)
    def test_message_names_file_and_place(self, write, name):
        content, message = MISTAKES[name]
        with pytest.raises(ValueError, match=message) as caught:
            load_captions(path := write(content))
        assert str(caught.value).startswith(f"{path}: ")

    def test_missing_pictures(self, write, images, caplog):
        (images / "2.jpg").unlink()
        path = write(TEXTS["tokens"])
        with pytest.raises(FileNotFoundError, match=r"1 of 2 image files are missing: .*2\.jpg"):
            load_captions(path, images)
        assert len(load_captions(path, images, bad_rows=BadRows("skip"))) == 1 and "left out" in caplog.text
        with pytest.raises(CaptionFileError, match=r"image '1\.jpg' has no file name"):
            load_captions(write(TEXTS["by id"]), images)
        with pytest.raises(FileNotFoundError, match=r"image_root=.*nowhere: no such folder"):
            load_captions(path, images / "nowhere")


class TestUrls:
    """The pictures are fetched once; the opener has its own tests in `test_captioner_image_url.py`."""

    @pytest.fixture
    def asked(self, monkeypatch, images):
        asked = []

        def read_url(url, max_bytes, timeout):
            asked.append(url)
            if "gone" in url:
                raise ImageError("HTTP status 404 (Not Found)")
            return b"<html>" if "page" in url else (images / "1.jpg").read_bytes()

        monkeypatch.setattr("hf_captioners.data.captions.fetched_images.read_url", read_url)
        return asked

    @pytest.mark.parametrize("first", ["", "url\tcaption\n"])
    def test_failures_are_counted_and_not_asked_for_again(self, tmp_path, write, asked, caplog, first):
        caplog.set_level(logging.WARNING)
        urls = [f"http://x.org/{name}" for name in ("1.jpg", "gone.jpg", "page")]
        text = first + "".join(f"{url}\ta dog\n" if first else f"a dog\t{url}\n" for url in urls)
        path = write(text)
        rows = load_captions(path, tmp_path / "fetched")
        assert ids_and_captions(rows) == {urls[0]: ["a dog"]} and rows[0]["image"].size == (8, 8)
        assert sorted(asked) == sorted(urls) and "2 of 3 pictures could not be fetched and are left out" in caplog.text
        failures = [json.loads(line) for line in (tmp_path / "fetched" / "failures.jsonl").read_text().splitlines()]
        assert [one["url"] for one in failures] == urls[1:] and "404" in failures[0]["error"]
        load_captions(path, tmp_path / "fetched")
        assert len(asked) == 3

    def test_nothing_to_learn_from(self, tmp_path, write, asked):
        with pytest.raises(FileNotFoundError, match="none of 1 pictures could be fetched"):
            load_captions(write("a dog\thttp://x.org/gone\n"), tmp_path / "fetched")


@pytest.mark.slow
def test_coco_in_every_layout_it_comes_in(tmp_path, shared_data):
    """The same rows from Karpathy's JSON and from COCO's annotations with lists of ids."""
    mini, captions = shared_data / "coco_mini", shared_data / "coco_captions"
    annotations = captions / "captions_val2014.json.gz"
    rows = load_captions(mini / "dataset_karpathy.json", mini / "images", "all")
    listed = tmp_path / "ids.txt"
    listed.write_text("\n".join(map(str, rows["image_id"][:])))
    again = load_captions(annotations, mini / "images" / "val2014", str(listed))
    assert len(rows) == 259
    assert {key: sorted(own) for key, own in ids_and_captions(again).items()} == {
        key: sorted(own) for key, own in ids_and_captions(rows).items()
    }
    both = load_captions(captions / "dataset_coco_karpathy_val_test_10k.json.gz", split="val")
    listed_rows = load_captions(annotations, split=str(captions / "karpathy_val_image_ids.txt"))
    assert len(both) == len(listed_rows) == 5000
    assert set(both["image_id"][:]) == set(listed_rows["image_id"][:])
