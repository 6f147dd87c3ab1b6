"""SATIC's label files: captions come back word by word, and nothing inconsistent is read."""

from __future__ import annotations

import collections
import json
import re

import numpy as np
import pytest

from hf_captioners.conversion.satic_infos import build_tokenizer
from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.captions.cocotalk import load_cocotalk, read_cocotalk_vocabulary
from hf_captioners.data.captions.karpathy import load_karpathy

h5py = pytest.importorskip("h5py")

WORDS = ["a", "dog", "runs", "cat", "UNK"]
# id -> split, file, captions
IMAGES = {
    30: ("train", "train2014/30.jpg", ["a dog runs", "a UNK"]),
    10: ("val", "val2014/10.jpg", ["a cat"]),
    20: ("restval", "val2014/20.jpg", ["cat", "a a a a", "dog dog"]),
    40: ("test", "val2014/40.jpg", ["UNK runs"]),
}


CAPTIONS = [several for *_, several in IMAGES.values()]


def content(words=WORDS, images=IMAGES):
    return {
        "ix_to_word": {str(number): word for number, word in enumerate(words, start=1)},
        "images": [{"split": split, "file_path": name, "id": key} for key, (split, name, _) in images.items()],
    }


def arrays(words=WORDS, captions=CAPTIONS, width=4):
    """The four data sets, written down from the definition of the layout."""
    ids = {word: number for number, word in enumerate(words, start=1)}
    flat = [caption.split()[:width] for several in captions for caption in several]
    labels = np.zeros((len(flat), width), dtype=np.uint32)
    for row, caption in enumerate(flat):
        labels[row, : len(caption)] = [ids[word] for word in caption]
    ends = np.cumsum([len(several) for several in captions])
    return {
        "labels": labels,
        "label_length": np.array([len(caption) for caption in flat], dtype=np.uint32),
        "label_start_ix": np.array([1, *(ends[:-1] + 1)], dtype=np.uint32),
        "label_end_ix": ends.astype(np.uint32),
    }


@pytest.fixture
def write(tmp_path):
    """Writes the two files, and gives their paths."""

    def write_files(described=None, datasets=None):
        paths = tmp_path / "cocotalk.json", tmp_path / "cocotalk_label.h5"
        paths[0].write_text(json.dumps(content() if described is None else described))
        with h5py.File(paths[1], "w") as file:
            for name, value in (arrays() if datasets is None else datasets).items():
                file[name] = value
        return paths

    return write_files


class TestRows:
    def test_train_has_restval_as_in_the_original(self, write):
        rows = load_cocotalk(*write())
        assert rows.column_names == ["image_id", "file_name", "split", "captions"]
        assert rows.to_list() == [
            {"image_id": key, "file_name": IMAGES[key][1], "split": IMAGES[key][0], "captions": IMAGES[key][2]}
            for key in (30, 20)
        ]

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({"train_only": True}, [30]),
            ({"split": "train+restval"}, [30, 20]),
            ({"split": "restval"}, [20]),
            ({"split": "val"}, [10]),
            ({"split": "val + test"}, [10, 40]),
            ({"split": "test+val"}, [10, 40]),
            ({"split": "all", "train_only": True}, [30, 10, 20, 40]),
        ],
    )
    def test_splits(self, write, options, expected):
        assert load_cocotalk(*write(), **options)["image_id"][:] == expected

    def test_columns_are_those_of_karpathys_layout(self, write, tmp_path):
        image = {"filename": "a.jpg", "imgid": 7, "split": "train", "sentences": [{"raw": "A dog ."}]}
        (tmp_path / "dataset.json").write_text(json.dumps({"images": [image]}))
        theirs = load_karpathy(tmp_path / "dataset.json", cache_dir=tmp_path / "cache").features
        ours = load_cocotalk(*write()).features
        assert dict(ours) == {name: feature for name, feature in theirs.items() if name != "sentence_ids"}

    def test_captions_of_an_image_may_lie_anywhere(self, write):
        datasets = arrays()
        datasets["labels"] = np.roll(datasets["labels"], 1, axis=0)  # the last caption comes first
        datasets["label_length"] = np.roll(datasets["label_length"], 1)
        datasets["label_start_ix"], datasets["label_end_ix"] = [2, 4, 5, 1], [3, 4, 7, 1]
        rows = load_cocotalk(*write(datasets=datasets), "all")
        assert rows["captions"][:] == CAPTIONS

    def test_distilled_labels_go_with_the_same_json(self, write):
        taught = [["a dog"] * 5, ["a cat"], ["cat", "cat runs", "a", "a", "a"], ["UNK runs"]]
        rows = load_cocotalk(*write(datasets=arrays(captions=taught)))
        assert rows["captions"][:] == [taught[0], taught[2]]

    @pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8, ">u4"])
    def test_any_integers(self, write, dtype):
        datasets = {name: value.astype(dtype) for name, value in arrays().items()}
        assert load_cocotalk(*write(datasets=datasets))["captions"][0] == IMAGES[30][2]

    def test_without_file_names(self, write):
        described = content()
        for image in described["images"]:
            del image["file_path"]
        assert load_cocotalk(*write(described))["file_name"][:] == [None, None]


class TestVocabulary:
    def test_order_is_that_of_the_ids(self, write):
        described = content()
        described["ix_to_word"] = dict(reversed(described["ix_to_word"].items()))
        assert read_cocotalk_vocabulary(write(described)[0]) == WORDS

    def test_a_tokenizer_of_it_gives_the_labels_again(self, write):
        paths = write()
        tokenizer = build_tokenizer(["<end>", *read_cocotalk_vocabulary(paths[0])], model_max_length=18)
        captions = [caption for several in load_cocotalk(*paths, "all")["captions"] for caption in several]
        ids = tokenizer(captions, padding="max_length", max_length=6).input_ids
        assert np.array_equal(np.array(ids)[:, 1:5], arrays()["labels"])


def test_a_real_data_set_written_in_this_layout(write, shared_data):
    """Against Karpathy's JSON of Flickr8k: rare words become UNK, captions end at 16 words."""
    source = json.loads((shared_data / "flickr8k_mini/dataset_karpathy.json").read_text("utf-8"))["images"]
    counts = collections.Counter(word for image in source for s in image["sentences"] for word in s["tokens"])
    words = [word for word, count in counts.items() if count > 5] + ["UNK"]
    known = set(words)
    captions = [
        [" ".join([word if word in known else "UNK" for word in s["tokens"]][:16]) for s in image["sentences"]]
        for image in source
    ]
    images = {image["imgid"]: (image["split"], image["filename"], None) for image in source}
    ids = {word: number for number, word in enumerate(words, start=1)}

    paths = write(content(words, images), arrays(words, captions, width=16))
    rows = load_cocotalk(*paths, "val")
    expected = {image["imgid"]: several for image, several in zip(source, captions, strict=True)}
    assert len(rows) == sum(image["split"] == "val" for image in source)
    assert {row["image_id"]: row["captions"] for row in rows} == {key: expected[key] for key in rows["image_id"]}
    tokenizer = build_tokenizer(["<end>", *read_cocotalk_vocabulary(paths[0])], model_max_length=18)
    for several in rows["captions"]:
        for caption in several:
            assert tokenizer(caption).input_ids == [0, *(ids[word] for word in caption.split()), 0]


def replaced(name, index, value):
    changed = arrays()
    changed[name] = changed[name].astype(np.int64)
    changed[name][index] = value
    return changed


class TestRefused:
    @pytest.mark.parametrize(
        ("datasets", "message"),
        [
            (replaced("labels", (1, 1), 6), r"labels\[1, 1\] is 6, expected a word id from 1 to 5, or 0"),
            (replaced("labels", (1, 1), -1), r"labels\[1, 1\] is -1"),
            (replaced("labels", (0, 1), 0), r"label_length\[0\] is 3, but labels\[0\] is \[1, 0, 3, 0\]"),
            (replaced("labels", (0, 3), 1), r"label_length\[0\] is 3, but labels\[0\] is \[1, 2, 3, 1\]"),
            (replaced("label_length", 1, 1), r"label_length\[1\] is 1, but labels\[1\] is \[1, 5, 0, 0\]"),
            (replaced("label_length", 1, -2), r"label_length\[1\] is -2"),
            (replaced("label_length", 4, 5), r"label_length\[4\] is 5, but labels\[4\] is \[1, 1, 1, 1\]"),
            ({**replaced("labels", 3, 0), "label_length": [3, 2, 2, 0, 4, 2, 2]}, r"at least one"),
            (replaced("label_start_ix", 0, 0), r"label_start_ix\[0\] is 0 .* counted from 1 to 7"),
            (replaced("label_end_ix", 3, 8), r"label_end_ix\[3\] is 8"),
            (replaced("label_end_ix", 2, 3), r"label_start_ix\[2\] is 4 and label_end_ix\[2\] is 3"),
            (replaced("label_start_ix", 1, 2), r"label_start_ix\[1\] is 2, but label_end_ix\[0\] is 2"),
            (replaced("label_start_ix", 3, 3), r"label_start_ix\[3\] is 3, but label_end_ix\[1\] is 3"),
            ({**arrays(), "label_length": [3, 2]}, r"labels has 7 captions, but label_length 2"),
            ({**arrays(), "label_start_ix": [1, 3]}, r"label_start_ix is for 2 images, but .*cocotalk\.json has 4"),
            ({**arrays(), "label_end_ix": [1, 3]}, r"label_end_ix is for 2 images"),
            ({**arrays(), "labels": arrays()["labels"].astype(float)}, r"'labels' is float64 of shape \[7, 4\], expec"),
            ({**arrays(), "labels": [1, 2]}, r"'labels' is int64 of shape \[2\], expected integers in 2 dimensions"),
            ({**arrays(), "label_length": [[1]]}, r"'label_length' is int64 of shape \[1, 1\], .* in 1 dimension$"),
            ({**arrays(), "labels": ["a dog"]}, r"'labels' is object"),
            ({**arrays(), "label_start_ix": np.array([1, 2**63, 4, 5], np.uint64)}, r"label_start_ix\[1\] is 9223372"),
            ({"labels": [[1]]}, r"no data set 'label_start_ix', but 'labels'; expected labels, label_start_ix"),
            ({}, r"no data set 'labels', but nothing"),
        ],
    )
    def test_labels(self, write, datasets, message):
        with pytest.raises(ValueError, match=message) as error:
            load_cocotalk(*write(datasets=datasets))
        assert "cocotalk_label.h5: " in str(error.value)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ix_to_word": None}, "field 'ix_to_word' is None"),
            ({"ix_to_word": {}}, "field 'ix_to_word' is {}"),
            ({"ix_to_word": {"0": "a", "1": "b"}}, "ix_to_word['2'] is None, expected a word for every id from 1 to 2"),
            ({"ix_to_word": {"1": "a", "2": 3}}, "ix_to_word['2'] is 3"),
            ({"ix_to_word": {"1": "a b"}}, "ix_to_word['1'] is 'a b'"),
            ({"ix_to_word": {"1": "\ud800"}}, "ix_to_word['1'] is '\\ud800'"),
            ({"images": [{"id": 2**63, "split": "val"}]}, "images[0]: field 'id' is 9223372036854775808, expected"),
            (
                {"images": [{"id": 1, "split": "val", "file_path": "\udfff"}]},
                "images[0]: field 'file_path' is '\\udfff'",
            ),
            ({"ix_to_word": {"1": ""}}, "ix_to_word['1'] is ''"),
            ({"ix_to_word": {"1": "a", "2": "a"}}, "'a' has the ids 1 and 2"),
            ({"images": {}}, "field 'images' is {}, expected a list"),
            ({"images": [3]}, "images[0]: is 3, expected an object"),
            ({"images": [{"id": 1}]}, "images[0]: field 'split' is None, expected one of train, restval, val, test"),
            ({"images": [{"id": 1, "split": "dev"}]}, "images[0]: field 'split' is 'dev'"),
            ({"images": [{"id": "1", "split": "val"}]}, "images[0]: field 'id' is '1', expected an integer"),
            ({"images": [{"id": True, "split": "val"}]}, "images[0]: field 'id' is True"),
            ({"images": [{"split": "val"}]}, "images[0]: field 'id' is None"),
            ({"images": [{"id": 1, "split": "val", "file_path": 2}]}, "images[0]: field 'file_path' is 2"),
            ({"images": [{"id": 1, "split": "val"}] * 2}, "images[1]: id 1 is already that of images[0]"),
        ],
    )
    def test_json(self, write, change, message):
        with pytest.raises(ValueError, match=re.escape(message)) as error:
            load_cocotalk(*write({**content(), **change}))
        assert "cocotalk.json: " in str(error.value)

    def test_splits(self, write):
        paths = write()
        with pytest.raises(ValueError, match=r"split='train\+dev': 'dev' is not a split"):
            load_cocotalk(*paths, "train+dev")
        only_train = {key: value for key, value in IMAGES.items() if value[0] == "train"}
        paths = write(content(images=only_train), arrays(captions=[IMAGES[30][2]]))
        with pytest.raises(ValueError, match=r"cocotalk\.json: no image of split val; its splits are: train$"):
            load_cocotalk(*paths, "val")

    def test_left_out(self, write):
        """An entry without an id, a caption with a word that there is not, one without end, and pointers to nowhere."""
        described, datasets = content(), arrays()
        described["images"][1]["id"] = None
        datasets["labels"][1, 0] = 99  # the second caption of image 30
        datasets["label_length"][2 + 1] = 9  # of 20
        datasets["label_end_ix"][3] = 77  # of 40
        paths, bad_rows = write(described, datasets), BadRows("skip")
        rows = load_cocotalk(*paths, "all", bad_rows=bad_rows)
        assert rows["image_id"][:] == [30, 20]
        assert rows["captions"][:] == [["a dog runs"], ["a a a a", "dog dog"]]
        said = ["images[1]: field 'id'", "labels[1, 0] is 99", "label_length[3] is 9", "label_start_ix[3] is 7 and"]
        assert [any(text in message for message in bad_rows.messages) for text in said] == [True] * 4
        assert bad_rows.count == 4

    def test_left_out_with_their_captions(self, write):
        datasets = arrays()
        datasets["label_length"][2] = 0  # the caption of image 10
        datasets["label_start_ix"][3] = 6  # of 40, a caption of 20
        paths, bad_rows = write(None, datasets), BadRows("skip")
        assert load_cocotalk(*paths, "all", bad_rows=bad_rows)["image_id"][:] == [30, 20]
        assert "image 10: none of its captions can be used" in bad_rows.messages[-1]
        assert any("label_start_ix[3] is 6, but label_end_ix[2] is 6" in message for message in bad_rows.messages)

    def test_files(self, write, tmp_path):
        described, labels = write()
        with pytest.raises(FileNotFoundError):
            load_cocotalk(tmp_path / "none.json", labels)
        with pytest.raises(FileNotFoundError, match=r"none\.h5"):
            load_cocotalk(described, tmp_path / "none.h5")
        with pytest.raises(ValueError, match=r"cocotalk\.json: not a readable HDF5 file"):
            load_cocotalk(described, described)
        with pytest.raises(ValueError, match=r"cocotalk_label\.h5"):
            load_cocotalk(labels, labels)
        described.write_text("[1]")
        with pytest.raises(ValueError, match=r"cocotalk\.json: is a list"):
            read_cocotalk_vocabulary(described)
