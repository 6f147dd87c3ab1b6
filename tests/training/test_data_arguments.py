"""Where the training examples get their rows."""

import json
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image

from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import training_captions
from hf_captioners.training.data_arguments import DataArguments, data_set_name, has_splits, load_rows


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def annotations(tmp_path):
    """Two training pictures and one to validate on, in Karpathy's layout."""
    images = [
        {"filename": f"{i}.png", "imgid": i, "split": split, "sentences": [{"raw": f"a dog {i}"}, {"raw": f"dogs {i}"}]}
        for i, split in enumerate(("train", "restval", "val"))
    ]
    path = tmp_path / "karpathy.json"
    path.write_text(json.dumps({"images": images}))
    return str(path)


@pytest.fixture
def features(tmp_path):
    with FeatureWriter(tmp_path / "features", dtype=torch.float32) as writer:
        for i in range(3):
            writer.add(i, torch.full((2, 4), float(i)))
    return str(tmp_path / "features")


def test_without_a_split_to_evaluate_on(annotations, features):
    """Nothing is evaluated, unless the split was asked for."""
    rows = json.loads(Path(annotations).read_text())["images"]
    Path(annotations).write_text(json.dumps({"images": rows[:2]}))
    train, evaluation = load_rows(DataArguments(annotations=annotations, features=features))
    assert len(train) == 2 and evaluation is None
    for asked in ({"eval_split": "val"}, {"eval_annotations": annotations}):
        with pytest.raises(ValueError, match="no image of split val; its splits are: "):
            load_rows(DataArguments(annotations=annotations, features=features, **asked))


def test_captions_and_features(annotations, features):
    train, evaluation = load_rows(DataArguments(annotations=annotations, features=features))
    assert [row["image_id"] for row in (train[0], train[1], evaluation[0])] == [0, 1, 2]
    assert train[1]["image_features"].tolist() == [[1.0] * 4] * 2
    assert training_captions(train) == ["a dog 0", "dogs 0", "a dog 1", "dogs 1"]


def test_a_teachers_captions_replace_those_of_the_training_split(annotations, features, tmp_path):
    path = tmp_path / "teacher.jsonl"
    lines = [{"image_id": i, "captions": [f"teacher {i}", "the same"]} for i in range(2)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train, evaluation = load_rows(DataArguments(annotations=annotations, features=features, distilled=str(path)))
    assert train[1]["captions"] == ["teacher 1", "the same"]
    assert evaluation[0]["captions"] == ["a dog 2", "dogs 2"]
    path.write_text(json.dumps(lines[0]) + "\n")
    with pytest.raises(ValueError, match="1"):
        load_rows(DataArguments(annotations=annotations, features=features, distilled=str(path)))
    kept, _ = load_rows(
        DataArguments(annotations=annotations, features=features, distilled=str(path), missing_distilled="keep")
    )
    assert kept[1]["captions"] == ["a dog 1", "dogs 1"]
    path.write_text(f"{json.dumps(lines[0])}\n{json.dumps({'image_id': 1, 'captions': ['a dog', ' . ']})}\n")
    with pytest.raises(ValueError, match=r"teacher\.jsonl: 1 of 2 pictures .* without a word: image 1: ' \. '"):
        load_rows(DataArguments(annotations=annotations, features=features, distilled=str(path)))


def test_labels_of_the_satic_code(features, tmp_path):
    h5py = pytest.importorskip("h5py", reason="needs h5py: the extra h5")
    images = [{"split": split, "file_path": f"{i}.png", "id": i} for i, split in enumerate(("train", "restval", "val"))]
    (tmp_path / "cocotalk.json").write_text(
        json.dumps({"ix_to_word": {"1": "a", "2": "dog", "3": "UNK"}, "images": images})
    )
    with h5py.File(tmp_path / "labels.h5", "w") as file:
        file["labels"] = torch.tensor([[1, 2, 0], [2, 0, 0], [1, 3, 2]], dtype=torch.uint32).numpy()
        file["label_start_ix"] = torch.tensor([1, 2, 3], dtype=torch.uint32).numpy()
        file["label_end_ix"] = torch.tensor([1, 2, 3], dtype=torch.uint32).numpy()
        file["label_length"] = torch.tensor([2, 1, 3], dtype=torch.uint32).numpy()
    options = {"annotations": str(tmp_path / "cocotalk.json"), "labels": str(tmp_path / "labels.h5")}
    train, evaluation = load_rows(DataArguments(features=features, **options))
    assert training_captions(train) == ["a dog", "dog"]
    assert evaluation[0]["captions"] == ["a UNK dog"]
    with pytest.raises(ValueError, match="--labels needs --features"):
        load_rows(DataArguments(**options))


def test_a_folder_with_features_by_the_ids_of_its_pictures(tmp_path):
    for split in ("train", "validation"):
        (tmp_path / "data" / split).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / split / "a.png")
        line = json.dumps({"file_name": "a.png", "captions": [f"a picture to {split}"]})
        (tmp_path / "data" / split / "metadata.jsonl").write_text(line)
    with FeatureWriter(tmp_path / "features", dtype=torch.float32) as writer:
        for number, split in enumerate(("train", "validation")):
            writer.add(f"{split}/a.png", torch.full((2, 4), float(number)))
    options = {"data_dir": str(tmp_path / "data"), "features": str(tmp_path / "features")}
    train, evaluation = load_rows(DataArguments(**options))
    assert train[0]["image_features"].tolist() == [[0.0] * 4] * 2
    assert evaluation[0]["image_features"].tolist() == [[1.0] * 4] * 2
    teacher = tmp_path / "teacher.json"
    teacher.write_text(json.dumps([{"image_id": "train/a.png", "caption": "a black square"}]))
    train, _ = load_rows(DataArguments(**options, distilled=str(teacher)))
    assert train[0]["captions"] == ["a black square"]


def test_a_folder_in_an_archive(tmp_path, monkeypatch):
    """The rows of the folder that was packed, with pictures that can be opened."""
    monkeypatch.setattr("hf_captioners.data.archive.constants.HF_HOME", str(tmp_path / "hf"))
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / "data" / split / "a.png")
        (tmp_path / "data" / split / "metadata.csv").write_text("file_name,text\na.png,a red square\n")
    plain = load_rows(DataArguments(data_dir=str(tmp_path / "data")))
    packed = load_rows(DataArguments(data_dir=shutil.make_archive(str(tmp_path / "x"), "zip", tmp_path / "data")))
    for rows, other in zip(plain, packed, strict=True):
        assert rows.remove_columns("image")[:] == other.remove_columns("image")[:]
        assert other[0]["image"].getpixel((0, 0)) == (255, 0, 0)


def test_broken_pictures_are_named_before_the_first_step(annotations, tmp_path, caplog):
    for i in range(3):
        Image.new("RGB", (4, 4)).save(tmp_path / f"{i}.png")
    options = {"annotations": annotations, "image_root": str(tmp_path)}
    train, _ = load_rows(DataArguments(**options))
    assert len(train) == 2 and "1 picture to evaluate on" in caplog.text
    (tmp_path / "2.png").write_text("no picture")
    message = r"validation: 1 of 1 pictures cannot be opened: .*2\.png \(not a readable .* --check_images false"
    with pytest.raises(ValueError, match=message):
        load_rows(DataArguments(**options))
    assert len(load_rows(DataArguments(**options, check_images=False))[0]) == 2


@pytest.mark.parametrize("caption", ["", " . "])
def test_captions_without_a_word(annotations, features, caption):
    content = json.loads(Path(annotations).read_text())
    content["images"][1]["sentences"][0]["raw"] = caption
    Path(annotations).write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"karpathy\.json: 1 of 2 pictures .* without a word: image 1: '{caption}'"):
        load_rows(DataArguments(annotations=annotations, features=features))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"give --annotations .*, --data_dir .* or --dataset_name .*, one of them"),
        ({"annotations": "a", "eval_image_root": "b"}, "--eval_image_root b has no effect with no --eval_annotations"),
        ({"annotations": "a", "data_dir": "b"}, "one of them"),
        ({"data_dir": "b", "labels": "c"}, "--labels c has no effect with --data_dir; leave it out"),
        ({"data_dir": "nowhere"}, "--data_dir nowhere: no such folder"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ValueError, match=message):
        load_rows(DataArguments(**options))


class TestFilesWithoutSplits:
    """COCO's own annotations and token files: what is evaluated on is another file, or a list of names."""

    @pytest.fixture
    def files(self, tmp_path):
        for number in range(3):
            Image.new("RGB", (4, 4)).save(tmp_path / f"{number}.png")
        for name, numbers in (("train", (0, 1)), ("val", (2,))):
            (tmp_path / f"{name}.token").write_text("".join(f"{one}.png#0\ta dog {one}\n" for one in numbers))
        (tmp_path / "all.token").write_text(
            "".join((tmp_path / f"{one}.token").read_text() for one in ("train", "val"))
        )
        (tmp_path / "names.txt").write_text("2.png\n")
        return tmp_path

    def test_another_file(self, files):
        options = {"annotations": f"{files}/train.token", "image_root": str(files)}
        train, evaluation = load_rows(DataArguments(**options))
        assert train["image_id"][:] == ["0.png", "1.png"] and evaluation is None
        train, evaluation = load_rows(DataArguments(**options, eval_annotations=f"{files}/val.token"))
        assert evaluation["image_id"][:] == ["2.png"] and evaluation[0]["image"].size == (4, 4)

    def test_a_list_of_names(self, files):
        arguments = DataArguments(
            annotations=f"{files}/all.token", image_root=str(files), eval_split=f"{files}/names.txt"
        )
        train, evaluation = load_rows(arguments)
        assert len(train) == 3 and evaluation["image_id"][:] == ["2.png"]
        with pytest.raises(ValueError, match=r"--eval_split val: .*give a file with the names"):
            load_rows(DataArguments(annotations=f"{files}/all.token", image_root=str(files), eval_split="val"))

    def test_which_data_has_splits(self, files, annotations):
        assert has_splits(DataArguments(annotations=annotations)) and has_splits(DataArguments(data_dir="mine"))
        assert not has_splits(DataArguments(annotations=f"{files}/all.token"))

    def test_the_name_on_the_card(self):
        assert data_set_name(DataArguments(annotations="x/dataset_coco.json")) == ("dataset_coco", "val")
        assert data_set_name(DataArguments(data_dir="mine")) == ("mine", "validation")
        assert data_set_name(DataArguments(annotations="a.json", eval_annotations="b.json")) == ("b", None)


def test_other_splits_of_a_folder(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / split / "a.png")
        (tmp_path / split / "a.txt").write_text(f"a picture to {split}\n")
    train, evaluation = load_rows(DataArguments(data_dir=str(tmp_path), train_split="train+test", eval_split="test"))
    assert train["captions"][:] == [["a picture to train"], ["a picture to test"]]
    assert evaluation["image_id"][:] == ["test/a.png"]
    with pytest.raises(ValueError, match=r"--eval_split dev: .*no split 'validation' in it, but train, test"):
        load_rows(DataArguments(data_dir=str(tmp_path), eval_split="dev"))


BAD_LINES = {
    "missing": {"captions": ["a dog"]},
    "broken": {"captions": ["a dog"]},
    "number": {"captions": [5]},
    "empty": {"captions": [" "]},
    "nul": {"captions": ["a\0dog"]},
    "long": {"captions": ["a dog" * 2000]},
    "good": {"captions": ["the same picture again"]},
}


def test_bad_rows_are_errors_or_left_out(tmp_path, caplog):
    (tmp_path / "train").mkdir()
    lines = [{"file_name": "good.png", "captions": ["a dog", "two\nlines"]}]
    for name, record in BAD_LINES.items():
        lines.append({"file_name": f"{name}.png", **record})
        if name != "missing":
            Image.effect_noise((9, 8), 90).save(tmp_path / "train" / f"{name}.png")
    (tmp_path / "train" / "broken.png").write_bytes(b"\x89PNG")
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(
        ValueError, match=r"metadata\.jsonl: 3 of 8 lines cannot be used: line 4: field 'captions'\[0\]"
    ):
        load_rows(DataArguments(data_dir=str(tmp_path)))
    train, _ = load_rows(DataArguments(data_dir=str(tmp_path), on_bad_row="skip"))
    assert [row["image_id"] for row in train] == ["train/good.png"]
    assert f"{tmp_path}: {len(BAD_LINES)} rows left out that cannot be used" in caplog.text
    for name in ("missing.png", "broken.png", "nul.png", "long.png", "line 4: ", "line 5: ", "line 8: "):
        assert sum(name in message for message in caplog.messages if message.startswith("left out: ")) == 1
    with pytest.raises(ValueError, match="on_bad_row='drop', expected 'error' or 'skip'"):
        load_rows(DataArguments(data_dir=str(tmp_path), on_bad_row="drop"))


def test_images_without_features(annotations, features, tmp_path, caplog):
    with FeatureWriter(tmp_path / "more", dtype=torch.float32) as writer:
        writer.add(8, torch.full((2, 4), 8.0))
    content = json.loads(Path(annotations).read_text())
    more = [{**content["images"][0], "filename": f"{number}.png", "imgid": number} for number in (8, 9)]
    Path(annotations).write_text(json.dumps({"images": content["images"] + more}))
    stores = [features, str(tmp_path / "more")]
    with pytest.raises(ValueError, match="1 of 4 images have no features: 9"):
        load_rows(DataArguments(annotations=annotations, features=stores))
    train, _ = load_rows(DataArguments(annotations=annotations, features=stores, on_bad_row="skip"))
    assert sorted(train[index]["image_features"][0, 0].item() for index in range(len(train))) == [0.0, 1.0, 8.0]
    assert "1 rows left out" in caplog.text
