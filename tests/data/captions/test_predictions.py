"""Captions from files: every layout, everything that can be wrong in one, and who belongs to whom."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from hf_captioners.data.captions.predictions import (
    CaptionFileError,
    Predictions,
    References,
    image_paths,
    match,
    read_predictions,
    read_references,
)


def lines(*records: Any) -> str:
    return "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)


def karpathy(**splits: str) -> dict[str, Any]:
    """A file with one image per keyword, such as `a="test"`, in Flickr's layout."""
    images = [
        {
            "filename": f"{name}.jpg",
            "imgid": index,
            "split": split,
            "sentences": [{"raw": f" {name} 1 ."}, {"raw": name}],
        }
        for index, (name, split) in enumerate(splits.items())
    ]
    return {"images": images, "dataset": "flickr8k"}


@pytest.fixture
def write(tmp_path: Path):
    """Writes text, bytes or anything JSON into a file whose name says nothing, and gives its path."""

    def write_file(content: Any, name: str = "captions") -> Path:
        path = tmp_path / name
        if not isinstance(content, (str, bytes)):
            content = json.dumps(content, ensure_ascii=False)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return path

    return write_file


PREDICTIONS = {
    "COCO results": ([{"image_id": 42, "caption": "a dog"}, {"image_id": "7", "caption": ""}], {42: "a dog", 7: ""}),
    "results with more": ([{"image_id": 42, "caption": "a dog", "id": 1, "score": 0.5}], {42: "a dog"}),
    "caption verb": (
        lines({"image": "p/a.jpg", "caption": "a\u2028dog"}, {"image": "p/ü.jpg", "caption": "犬"}),
        {"p/a.jpg": "a\u2028dog", "p/ü.jpg": "犬"},
    ),
    "one line": ('{"image": "a.jpg", "caption": "x", "error": null}', {"a.jpg": "x"}),
    "blank lines and CRLF": (
        '\r\n{"image_id": 1, "caption": "x"}\r\n\r\n{"image_id": 2, "caption": "y"}',
        {1: "x", 2: "y"},
    ),
    "both ids": ([{"image_id": 5, "image": "a.jpg", "caption": "x"}], {5: "x"}),
    "by key": ({"000042": "a dog", "a.jpg": "a cat"}, {42: "a dog", "a.jpg": "a cat"}),
    "lists of one by key": ({"42": ["a dog"], "-1": ["a cat"]}, {42: "a dog", -1: "a cat"}),
    "indented": (json.dumps({"42": "a dog"}, indent=2), {42: "a dog"}),
    "long digits are a name": ({"1" * 5000: "a dog"}, {"1" * 5000: "a dog"}),
}

REFERENCES = {
    "metadata.jsonl": (
        lines({"file_name": "a.jpg", "captions": ["x", "y"]}, {"file_name": "s/b.jpg", "captions": ["z"]}),
        {"a.jpg": ["x", "y"], "s/b.jpg": ["z"]},
    ),
    "image": (lines({"image": "a.jpg", "captions": ["x"]}, {"image": "b.jpg", "captions": ["y"]}), None),
    "image_id": ([{"image_id": "42", "file_name": "a.jpg", "captions": ["x", "x"]}], {42: ["x", "x"]}),
    "results as references": ([{"image_id": 42, "caption": "x"}], {42: ["x"]}),
    "by key": ({"42": ["x", "y"], "b": "z"}, {42: ["x", "y"], "b": ["z"]}),
    "an image called images": ({"images": ["x"], "annotations": ["y"]}, {"images": ["x"], "annotations": ["y"]}),
    "COCO": (
        {
            "images": [{"id": 9, "file_name": "9.jpg"}, {"id": 3, "file_name": "3.jpg"}, {"id": 4}],
            "annotations": [
                {"id": 1, "image_id": 3, "caption": "x"},
                {"id": 2, "image_id": 9, "caption": "y"},
                {"id": 3, "image_id": "3", "caption": "z"},
            ],
        },
        {9: ["y"], 3: ["x", "z"]},
    ),
    "COCO without images": ({"annotations": [{"image_id": 3, "caption": "x"}]}, {3: ["x"]}),
    "Karpathy": (karpathy(a="test", b="train"), {0: [" a 1 .", "a"], 1: [" b 1 .", "b"]}),
}


class TestLayouts:
    @pytest.mark.parametrize("name", PREDICTIONS)
    @pytest.mark.parametrize("packed", [False, True])
    def test_predictions(self, write, name: str, packed: bool) -> None:
        content, expected = PREDICTIONS[name]
        path = write(content)
        if packed:
            path.write_bytes(gzip.compress(b"\xef\xbb\xbf" + path.read_bytes()))
        assert read_predictions(path).captions == expected
        assert list(read_predictions(str(path)).captions) == list(expected)  # and in this order

    @pytest.mark.parametrize("image_id", [42, 42.0, "42", "42.0", "0042"])
    def test_ways_to_write_a_number(self, write, image_id) -> None:
        assert read_predictions(write([{"image_id": image_id, "caption": "x"}])).captions == {42: "x"}
        assert read_predictions(write({str(image_id): "x"})).captions == {42: "x"}

    def test_annotations_numbered_within_their_image(self, write) -> None:
        rows = [
            {"id": number, "image_id": image, "caption": f"{image} {number}"} for image in (7, 8) for number in (0, 1)
        ]
        path = write({"images": [{"id": 7}, {"id": 8}], "annotations": rows})
        assert read_references(path).captions == {7: ["7 0", "7 1"], 8: ["8 0", "8 1"]}

    @pytest.mark.parametrize("name", REFERENCES)
    @pytest.mark.parametrize("packed", [False, True])
    def test_references(self, write, name: str, packed: bool) -> None:
        content, expected = REFERENCES[name]
        path = write(content)
        if packed:
            path.write_bytes(gzip.compress(path.read_bytes()))
        expected = expected or {"a.jpg": ["x"], "b.jpg": ["y"]}
        assert read_references(path).captions == expected
        assert list(read_references(path, split="all").captions) == list(expected)

    def test_names_of_pictures(self, write) -> None:
        predictions = read_predictions(write([{"image_id": 5, "image": "p/a.jpg", "caption": "x"}]))
        assert predictions.image_paths == {5: "p/a.jpg"}
        assert read_references(write(REFERENCES["COCO"][0])).file_names == {9: "9.jpg", 3: "3.jpg"}
        assert read_references(write(REFERENCES["Karpathy"][0])).file_names == {0: "a.jpg", 1: "b.jpg"}
        assert read_references(write(REFERENCES["by key"][0])).file_names == {}

    def test_splits(self, write) -> None:
        path = write(karpathy(a="test", b="train", c="val", d="test"))
        assert list(read_references(path, "test").captions) == [0, 3]
        assert list(read_references(path, "val+test").captions) == [0, 2, 3]
        with pytest.raises(CaptionFileError, match=r"no image of split restval; its splits are: train, val, test"):
            read_references(path, "restval")
        with pytest.raises(CaptionFileError, match=r"'dev' is not a split; expected names of train"):
            read_references(path, "val+dev")

    def test_other_layouts_have_no_splits(self, write) -> None:
        with pytest.raises(CaptionFileError, match=r"split='test': only files in Karpathy's layout"):
            read_references(write({"42": ["x"]}), "test")

    def test_cocoid_is_the_id(self, write) -> None:
        content = karpathy(a="test")
        content["images"][0] |= {"cocoid": 391895, "filepath": "val2014"}
        references = read_references(write(content))
        assert (list(references.captions), references.file_names) == ([391895], {391895: "val2014/a.jpg"})


NAN = float("nan")
BAD_PREDICTIONS = {
    "null caption": ([{"image_id": 1, "caption": None}], r"\[0\]: field 'caption' is None, expected a string"),
    "NaN": ('[{"image_id": 1, "caption": NaN}]', r"\[0\]: field 'caption' is nan, expected a string"),
    "NaN id": (
        '{"image_id": NaN, "caption": "x"}',
        r"line 1: field 'image_id' is nan, expected an integer or a string",
    ),
    "number": ([{"image_id": 1, "caption": 3}], r"\[0\]: field 'caption' is 3"),
    "list": ([{"image_id": 1, "caption": ["x"]}], r"\[0\]: field 'caption' is \['x'\]"),
    "float id": ([{"image_id": 1.5, "caption": "x"}], r"\[0\]: field 'image_id' is 1.5"),
    "large id": ([{"image_id": 2**63, "caption": "x"}], r"\[0\]: field 'image_id' is 9223372036854775808, expected"),
    "surrogate id": ('[{"image_id": "\\ud800", "caption": "x"}]', r"\[0\]: field 'image_id' is .* not Unicode text"),
    "float id twice": ([{"image_id": 1.0, "caption": "x"}, {"image_id": 1, "caption": "x"}], r"image 1 is already"),
    "bool id": ([{"image_id": True, "caption": "x"}], r"\[0\]: field 'image_id' is True"),
    "no id": (lines({"caption": "x"}, {"caption": "y"}), r"line 1: no id of an image in .*'image_id' \(or 'image'\)"),
    "image is no name": ([{"image": {"path": "x"}, "caption": "x"}], r"\[0\]: field 'image' is .*name of a file"),
    "references": ([{"image_id": 1, "captions": ["x"]}], r"\[0\]: has several 'captions', expected one 'caption'"),
    "no caption": ([{"image_id": 1, "text": "x"}], r"\[0\]: no field 'caption' among 'image_id', 'text'; expected an"),
    "no object": ([{"image_id": 1, "caption": "x"}, "y"], r"\[1\]: is 'y', expected an object with 'image_id'"),
    "twice": (
        lines({"image_id": 1, "caption": "x"}, {"image_id": 2, "caption": "y"}, {"image_id": "01", "caption": "z"}),
        r"line 3: image 1 is already at line 1; expected every image once",
    ),
    "a path twice": ([{"image": "a", "caption": "x"}, {"image": "a", "caption": "x"}], r"\[1\]: image 'a' is already"),
    "key twice": ('{"1": "x", "2": "y", "1": "z"}', r"the key '1' occurs twice"),
    "field twice": ('[{"image_id": 1, "caption": "x", "caption": "y"}]', r"the key 'caption' occurs twice"),
    "keys of one id": ({"1": "x", "001": "y"}, r"key '001': image 1 is already at key '1'"),
    "empty key": ({"": "x"}, r"key '': the key is ''"),
    "many captions by key": ({"1": ["x", "y"]}, r"key '1': has 2 captions, expected one prediction per image"),
    "null by key": ({"1": None}, r"key '1': the value is None, expected a string"),
    "number by key": ({"1": [3]}, r"key '1': the value\[0\] is 3"),
    "half a surrogate pair": ('[{"image_id": 1, "caption": "\\ud800"}]', r"\[0\]: field 'caption' is .*not Unicode"),
    "COCO annotations": (REFERENCES["COCO"][0], r"which are references; expected predictions"),
    "Karpathy": (REFERENCES["Karpathy"][0], r"which are references; expected predictions"),
    "nothing": (" \n ", r"is empty, expected JSON or JSONL"),
    "no records": ([], r"no captions in it"),
    "no keys": ({}, r"no captions in it"),
    "a number": ("3", r"holds 3, expected a JSON object, a list or JSONL"),
    "CSV": ("image,caption\na.jpg,x\n", r"not JSON: Expecting value: line 1 column 1"),
    "bad line": (lines({"image_id": 1, "caption": "x"}) + '{"image_id": 2', r"line 2: not JSON: .*column 15"),
    "line is a list": (lines({"image_id": 1, "caption": "x"}, ["y"]), r"line 2: is \['y'\], expected an object"),
    "deep": ("[" * 200_000, r"not JSON"),
    "Latin 1": ('{"image_id": 1, "caption": "x"}\n{"é"}'.encode("latin-1"), r"line 2: not UTF-8: byte 0xe9"),
    "UTF-16": (lines({"image_id": 1, "caption": "x"}).encode("utf-16"), r"line 1: not UTF-8.*PowerShell"),
    "cut gzip": (gzip.compress(lines({"image_id": 1, "caption": "x"}).encode())[:-9], r"not a readable gzip file"),
    "bad gzip": (b"\x1f\x8b\x08" + b"x" * 30, r"not a readable gzip file"),
}

BAD_REFERENCES = {
    "empty list": ({"1": []}, r"key '1': the value is \[\], expected a list with at least one caption"),
    "null in list": (lines({"image": "a", "captions": ["x", None]}), r"line 1: field 'captions'\[1\] is None"),
    "string for list": ([{"image": "a", "captions": "x"}], r"\[0\]: field 'captions' is 'x', expected a list"),
    "no captions": (lines({"image": "a"}, {"image": "b"}), r"line 1: no field 'captions' among 'image'"),
    "failed": (lines({"image": "a", "error": "e"}), r"line 1: no field 'captions'"),
    "twice": ([{"image_id": 1, "caption": "x"}] * 2, r"\[1\]: image 1 is already at \[0\]"),
    "COCO image twice": ({"images": [{"id": 1}, {"id": "1"}], "annotations": []}, r"images\[1\]: image 1 is already"),
    "COCO image without id": ({"images": [{"file_name": "a"}], "annotations": []}, r"images\[0\]: field 'id' is None"),
    "COCO no images": (
        {"images": [], "annotations": [{"image_id": 3, "caption": "x"}]},
        r"annotations\[0\]: image_id 3 is not the id of one of the 'images'",
    ),
    "COCO instances": (
        {"images": [{"id": 1}], "annotations": [{"id": 5, "image_id": 1, "bbox": []}]},
        r"annotations\[0\]: field 'caption' is None, expected a string",
    ),
    "COCO annotation twice": (
        {"annotations": [{"id": 5, "image_id": 1, "caption": "x"}, {"id": 5, "image_id": 1, "caption": "x"}]},
        r"annotations\[1\]: id 5 is already that of annotations\[0\]",
    ),
    "COCO annotation twice, as 5.0": (
        {"annotations": [{"id": 5, "image_id": 1, "caption": "x"}, {"id": 5.0, "image_id": 1, "caption": "y"}]},
        r"annotations\[1\]: id 5.0 is already that of annotations\[0\], of the same image",
    ),
    "COCO nothing": ({"images": [{"id": 1}], "annotations": []}, r"no captions in its 'annotations'"),
    "COCO images is no list": ({"images": 3, "annotations": []}, r"field 'images' is 3"),
    "Karpathy image": ({"images": [{"filename": "a.jpg"}]}, r"images\[0\] .*field 'split' is None"),
    "Karpathy nothing": ({"images": []}, r"no image of split .* none, it has no images"),
}


class TestMistakes:
    @pytest.mark.parametrize("name", BAD_PREDICTIONS)
    def test_predictions(self, write, name: str) -> None:
        content, message = BAD_PREDICTIONS[name]
        with pytest.raises(CaptionFileError, match=message) as caught:
            read_predictions(path := write(content))
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value)) < len(str(path)) + 400

    @pytest.mark.parametrize("name", BAD_REFERENCES)
    def test_references(self, write, name: str) -> None:
        content, message = BAD_REFERENCES[name]
        with pytest.raises(CaptionFileError, match=message) as caught:
            read_references(path := write(content))
        assert str(caught.value).startswith(f"{path}: ")

    def test_failed_pictures_are_named_with_what_to_do(self, write) -> None:
        failed = [{"image": f"{index}.jpg", "error": f"{index}.jpg: no such file"} for index in range(7)]
        with pytest.raises(CaptionFileError) as caught:
            read_predictions(write(lines({"image": "ok.jpg", "caption": "x"}, *failed)))
        message = str(caught.value)
        assert "7 of 8 pictures have an 'error' and no caption: line 2 ('0.jpg')" in message
        assert "line 6 ('4.jpg') and 2 more" in message and "5.jpg" not in message
        assert "'0.jpg: no such file'" in message and "subset=True" in message

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nothing\.json"):
            read_predictions(tmp_path / "nothing.json")
        with pytest.raises(CaptionFileError, match=r"no train/ with pictures and a metadata\.jsonl in it"):
            read_references(tmp_path)


def named(*names: str) -> References:
    """References of images 0, 1, ... whose pictures have these names; the caption is the name."""
    return References("r.json", {i: [name] for i, name in enumerate(names)}, dict(enumerate(names)))


def said(*ids: int | str) -> Predictions:
    return Predictions("p.json", {one: f"caption of {one}" for one in ids}, {i: i for i in ids if isinstance(i, str)})


class TestMatch:
    def test_order_is_that_of_the_references(self) -> None:
        references = References("r", {3: ["x"], "b": ["y", "z"], 1: ["w"]})
        expected = ([3, "b", 1], ["caption of 3", "caption of b", "caption of 1"], [["x"], ["y", "z"], ["w"]])
        assert match(said(1, "b", 3), references) == match(said("b", 3, 1), references) == expected

    def test_integers_and_their_digits_match(self, write) -> None:
        predictions = read_predictions(
            write([{"image_id": "42", "caption": "x"}, {"image_id": 7, "caption": "y"}], "p")
        )
        assert match(predictions, read_references(write({"0007": ["b"], "42": ["a"]}, "r")))[1] == ["y", "x"]

    @pytest.mark.parametrize(
        ("predicted", "name"),
        [
            ("COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"),
            ("/data/coco/val2014/COCO_val2014_000000000042.jpg", "val2014/COCO_val2014_000000000042.jpg"),
            ("C:\\photos\\a.jpg", "a.jpg"),
            ("https://example.org/x/a.jpg", "train/a.jpg"),
            ("photos/a b.jpg", "./a b.jpg"),
            ("photos/e\u0301.jpg", "\u00e9.jpg"),
        ],
        ids=["name", "path", "windows", "url", "blank", "accent"],
    )
    def test_last_part_of_a_file_name(self, predicted: str, name: str) -> None:
        assert match(said(predicted), named(name)) == ([0], [f"caption of {predicted}"], [[name]])
        by_name = References("r", {name: ["x"]}, {name: name})
        assert match(said(predicted), by_name)[0] == [name]

    def test_last_parts_are_compared_exactly(self) -> None:
        for predicted in ("A.jpg", "a.png", "a", "xa.jpg", 7):
            with pytest.raises(CaptionFileError, match=r"1 of 1 predictions have no references in r\.json"):
                match(said(predicted), named("a.jpg"))

    def test_folders_tell_equal_names_apart(self) -> None:
        references = named("red/1.jpg", "blue/1.jpg")
        assert match(said("in/blue/1.jpg", "in/red/1.jpg"), references)[1] == [
            "caption of in/red/1.jpg",
            "caption of in/blue/1.jpg",
        ]

    @pytest.mark.parametrize("predicted", ["1.jpg", "green/1.jpg"])
    def test_an_ambiguous_name(self, predicted: str) -> None:
        with pytest.raises(CaptionFileError, match=r"could be any of 2 images of r\.json: 'red/1\.jpg', 'blue/1\.jpg'"):
            match(said(predicted), named("red/1.jpg", "blue/1.jpg"), subset=True)

    @pytest.mark.parametrize("subset", [False, True])
    def test_two_predictions_for_one_image(self, subset: bool) -> None:
        with pytest.raises(CaptionFileError, match=r"'x/1\.jpg' and 'y/1\.jpg' are both image 0 of r\.json"):
            match(said("x/1.jpg", "y/1.jpg"), named("1.jpg", "2.jpg"), subset)
        with pytest.raises(CaptionFileError, match=r"0 and '1\.jpg' are both image 0"):
            match(said(0, "1.jpg"), named("1.jpg", "2.jpg"), subset)

    def test_images_without_a_prediction(self) -> None:
        references = References("r.json", {index: ["x"] for index in range(20, 30)})
        with pytest.raises(CaptionFileError) as caught:
            match(said(21, 29, 22), references)
        assert "7 of 10 images of r.json have no prediction: 20, 23, 24, 25, 26 and 2 more" in str(caught.value)
        assert match(said(29, 22), references, subset=True) == (
            [22, 29],
            ["caption of 22", "caption of 29"],
            [["x"]] * 2,
        )

    def test_predictions_without_references(self) -> None:
        references = References("r.json", {1: ["x"]})
        assert match(said(*range(100, 107), 1), references, subset=True) == ([1], ["caption of 1"], [["x"]])
        with pytest.raises(CaptionFileError, match="7 of 7 predictions have no references"):  # nothing left to score
            match(said(*range(100, 107)), references, subset=True)
        with pytest.raises(CaptionFileError) as caught:
            match(said(*range(100, 107), 1), references)
        expected = (
            "7 of 8 predictions have no references in r.json: 100, 101, 102, 103, 104 and 2 more (there it has 1)"
        )
        assert str(caught.value) == f"p.json: {expected}"

    def test_both_are_counted(self) -> None:
        with pytest.raises(CaptionFileError, match=r"1 of 1 predictions .*; 2 of 2 images"):
            match(said("c.jpg"), named("a.jpg", "b.jpg"))


class TestPicturePaths:
    def test_where_the_predictions_say(self) -> None:
        references = named("a.jpg", "b.jpg", "c.jpg")
        predictions = said("photos/b.jpg", "https://example.org/a.jpg", 2)
        ids = match(predictions, references)[0]
        assert image_paths(predictions, references, ids) == {1: Path("photos/b.jpg")}

    def test_below_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "val").mkdir()
        (tmp_path / "val" / "a.jpg").touch()
        (tmp_path / "b.jpg").touch()
        references = named("val/a.jpg", "val/b.jpg", "val/c.jpg", "../../b.jpg", "/etc/d", "C:\\e", "x" * 5000)
        expected = {0: "val/a.jpg", 1: "b.jpg", 2: "val/c.jpg", 3: "b.jpg", 4: "d", 5: "e", 6: "x" * 5000}
        found = image_paths(said(*range(7)), references, range(7), tmp_path)
        assert found == {index: tmp_path / name for index, name in expected.items()}


class TestRealFiles:
    def test_metric_fixtures(self, shared_parity: Path) -> None:
        folder = shared_parity / "metrics" / "satic_500"
        order = json.loads((folder / "expected.json").read_text("utf-8"))["order"]
        ids, captions, references = match(read_predictions(folder / "hyps.json"), read_references(folder / "refs.json"))
        assert ids == order
        assert captions[0] == "a man on skis with a dog in the snow" and len(references[0]) == 5

    def test_equals_the_reader_of_the_coco_tools(self, shared_data: Path, tmp_path: Path) -> None:
        coco = pytest.importorskip("pycocotools.coco", reason="needs pycocotools")
        path = shared_data / "coco_captions" / "captions_val2014.json.gz"
        plain = tmp_path / "captions_val2014.json"
        plain.write_bytes(gzip.decompress(path.read_bytes()))
        theirs = coco.COCO(str(plain))
        ours = read_references(path)
        assert ours.captions == {
            image_id: [annotation["caption"] for annotation in theirs.imgToAnns[image_id]] for image_id in theirs.imgs
        }
        assert ours.file_names == {image_id: image["file_name"] for image_id, image in theirs.imgs.items()}
        ids, captions, _ = match(read_predictions(path.with_name("results_satic_val2014.json.gz")), ours)
        assert ids == theirs.getImgIds() and len(captions) == 40_504

    def test_karpathy_test_split(self, shared_data: Path) -> None:
        folder = shared_data / "coco_captions"
        test = read_references(folder / "dataset_coco_karpathy_val_test_10k.json.gz", "test")
        ids = [int(line) for line in (folder / "karpathy_test_image_ids.txt").read_text("utf-8").split()]
        assert sorted(test.captions) == sorted(ids)
        everything = read_references(folder / "captions_val2014.json.gz")
        assert all(sorted(test.captions[one]) == sorted(everything.captions[one]) for one in ids)

    def test_captioned_folder_against_karpathy(self, shared_data: Path, write) -> None:
        pictures = sorted((shared_data / "coco_mini" / "images").rglob("*.jpg"))
        references = read_references(shared_data / "coco_mini" / "dataset_karpathy.json")
        predictions = read_predictions(write(lines(*({"image": str(path), "caption": path.stem} for path in pictures))))
        ids, captions, _ = match(predictions, references)
        assert captions == [f"COCO_val2014_{image_id:012d}" for image_id in ids]
        assert set(image_paths(predictions, references, ids).values()) == set(pictures)
        root = shared_data / "coco_mini" / "images"
        assert set(image_paths(predictions, references, ids, root).values()) == set(pictures)
