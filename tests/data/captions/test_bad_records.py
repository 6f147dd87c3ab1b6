"""Records that cannot be used, in each layout of captions: an error that names file, place and value, or left out."""

import json

import datasets
import pytest

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.captions.attached import attach_sentences
from hf_captioners.data.captions.distill import distill_captions
from hf_captioners.data.captions.folder import load_folder
from hf_captioners.data.captions.load import load_captions

CASES = {  # name and content of a file with one good picture; what is said of each bad record, and of the first one
    "tokens": (
        "t.token",
        "a.jpg#0\ta dog\nb.jpg a cat\nc.jpg#0\t...\n",
        ["line 2: is 'b.jpg a cat', expected NAME#NUMBER", "line 3: field 'caption' is '...'"],
    ),
    "bars": (
        "results.csv",
        "image_name| comment_number| comment\na.jpg| 0| a dog\nb.jpg, 0, a cat\n",
        ["line 3: is 'b.jpg, 0, a cat', expected NAME| NUMBER| CAPTION"],
    ),
    "urls": (
        "gcc.tsv",
        "a dog\thttp://example.org/a.jpg\na cat\tno address\n \thttp://example.org/b.jpg\n",
        ["line 2: is 'a cat\\tno address'", "line 3: field 'caption' is ''"],
    ),
    "csv": (
        "c.csv",
        'file_name,caption\na.jpg,a dog\nb.jpg\nc.jpg,""\n../d.jpg,a cow\n',
        ["line 3: has not the 2 fields", "line 4: field 'caption' is ''", "line 5: field 'file_name' is '../d.jpg'"],
    ),
    "records": (
        "r.jsonl",
        '{"file_name": "a.jpg", "captions": ["a dog"]}\n{"file_name": "b.jpg", "captions": [null]}\n'
        '{"captions": ["x"]}\n{"file_name": "a.jpg", "captions": ["again"]}\n',
        ["line 2: field 'captions'[0] is None", "line 3: no id of an image", "line 4: image 'a.jpg' is already at"],
    ),
    "cut lines": (
        "cut.jsonl",
        '{"file_name": "b.jpg", "captions\n{"file_name": "a.jpg", "captions": ["a dog"]}\n'
        '{"file_name": "c.jpg", "file_name": "d.jpg"}\n{"file_name": "e.jpg", "cap',
        ["line 1: not JSON: Unterminated string", "line 3: the key 'file_name' occurs twice", "line 4: not JSON"],
    ),
    "coco": (
        "captions_val2017.json",
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": None}],
                "annotations": [
                    {"id": 1, "image_id": 1, "caption": "a dog"},
                    {"id": 2, "image_id": 7, "caption": "a cat"},
                    {"id": 3, "image_id": 2, "caption": 5},
                ],
            }
        ),
        ["images[2]: field 'id' is None", "annotations[1]: image_id 7 is not", "annotations[2]: field 'caption' is 5"],
    ),
    "by id": ("b.json", json.dumps({"a.jpg": ["a dog"], "b.jpg": [], "c.jpg": 3}), ["key 'b.jpg'", "key 'c.jpg'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_of_files(tmp_path, name):
    file, content, said = CASES[name]
    path = tmp_path / file
    path.write_text(f"\ufeff{content}", encoding="utf-8")  # with a BOM
    with pytest.raises(ValueError, match=r"line|images\[|key") as caught:
        load_captions(path)
    assert str(caught.value).startswith(f"{path}: ") and said[0] in str(caught.value)
    bad_rows = BadRows("skip")
    rows = load_captions(path, bad_rows=bad_rows)
    assert rows["captions"][:] == [["a dog"]]
    assert len(bad_rows.messages) == len(said)
    for message, expected in zip(sorted(bad_rows.messages), sorted(said), strict=True):
        assert message.startswith(f"{path}: ") and expected in message


def test_of_text_files(tmp_path):
    (tmp_path / "train").mkdir()
    for name, text in {"a": b"a dog", "b": b"\xff\xfe", "c": b"\n", "d": b"a cat"}.items():
        (tmp_path / "train" / f"{name}.png").touch()
        (tmp_path / "train" / f"{name}.txt").write_bytes(text)
    (tmp_path / "train" / "d.jpg").touch()
    with pytest.raises(ValueError, match=r"train.b\.txt: line 1: not UTF-8"):
        load_folder(tmp_path)
    bad_rows = BadRows("skip")
    assert load_folder(tmp_path, bad_rows)["train"]["image_id"][:] == ["train/a.png"]
    assert [any(name in message for message in bad_rows.messages) for name in ("b.txt", "c.txt", "d.txt")] == 3 * [True]


def test_of_a_table_in_a_folder(tmp_path):
    (tmp_path / "train").mkdir()
    for name in "ab":
        (tmp_path / "train" / f"{name}.png").touch()
    (tmp_path / "train" / "metadata.csv").write_text("file_name,caption\na.png,a dog\nb.png\n")
    with pytest.raises(ValueError, match=r"train.metadata\.csv: line 3: has not the 2 fields of the first line"):
        load_folder(tmp_path)
    bad_rows = BadRows("skip")
    assert load_folder(tmp_path, bad_rows)["train"]["image_id"][:] == ["train/a.png"] and bad_rows.count == 1


def test_of_a_cut_off_file_in_a_folder(tmp_path):
    (tmp_path / "train").mkdir()
    for name in "ab":
        (tmp_path / "train" / f"{name}.png").touch()
    lines = ['{"file_name": "a.png", "captions": ["a dog"]}', '{"file_name": "b.png", "captions": ["a c']
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"train.metadata\.jsonl: line 2: not JSON"):
        load_folder(tmp_path)
    bad_rows = BadRows("skip")
    assert load_folder(tmp_path, bad_rows)["train"]["image_id"][:] == ["train/a.png"] and bad_rows.count == 1


class TestOfSentences:
    """Teachers' captions and retrieved sentences: of lines that cannot be used, pictures are left out."""

    LINES = (
        '{"image_id": 1, "captions": ["a dog"]}\n{"image_id": 2, "captions": [7]}\n'
        '{"image_id": 1, "captions": ["another"]}\n{"image_id": 3, "captions": ["a c'
    )
    SAID = ("line 2: field 'captions'[0] is 7", "line 3: image 1 is already at line 1", "line 4: not JSON")

    @pytest.fixture
    def path(self, tmp_path):
        path = tmp_path / "sentences.jsonl"
        path.write_text(self.LINES)
        return path

    @pytest.fixture
    def rows(self):
        return datasets.Dataset.from_dict({"image_id": [1, 2, 3], "captions": [["one"], ["two"], ["three"]]})

    def check(self, bad_rows, ids):
        assert ids == [1] and bad_rows.count == 5
        for said in (*self.SAID, "image 2: no", "image 3: no"):
            assert sum(said in message for message in bad_rows.messages) == 1

    def test_taught(self, path, rows):
        with pytest.raises(ValueError, match=r"sentences\.jsonl: line 4: not JSON"):
            distill_captions(rows, path)
        bad_rows = BadRows("skip")
        taught = distill_captions(rows, path, bad_rows=bad_rows)
        assert taught["captions"][:] == [["a dog"]]
        self.check(bad_rows, taught["image_id"][:])

    def test_taught_or_their_own(self, path, rows):
        bad_rows = BadRows("skip")
        taught = distill_captions(rows, path, missing="keep", bad_rows=bad_rows)
        assert taught["captions"][:] == [["a dog"], ["two"], ["three"]] and bad_rows.count == 3

    def test_attached(self, path, rows):
        with pytest.raises(ValueError, match=r"sentences\.jsonl: line 4: not JSON"):
            attach_sentences(rows, path, "retrieved")
        bad_rows = BadRows("skip")
        attached = attach_sentences(rows, path, "retrieved", bad_rows=bad_rows)
        assert attached["retrieved"][:] == [["a dog"]]
        self.check(bad_rows, attached["image_id"][:])

    def test_of_other_pictures(self, path, rows):
        other = rows.remove_columns("image_id").add_column("image_id", [7, 8, 9])
        with pytest.raises(ValueError, match="no captions of the teacher for 3 of 3 images"):
            distill_captions(other, path, bad_rows=BadRows("skip"))
        with pytest.raises(ValueError, match="no sentence for 3 of 3 images"):
            attach_sentences(other, path, "retrieved", bad_rows=BadRows("skip"))
