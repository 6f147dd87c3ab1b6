"""Rows of captioned images: features attached, captions listed, images left closed."""

import io

import datasets
import pytest
import torch
from PIL import Image
from transformers import Trainer, TrainingArguments

from hf_captioners.data.bad_rows import BadRows
from hf_captioners.data.features.store import FeatureStore, FeatureWriter
from hf_captioners.data.rows import (
    FeatureDataset,
    attach_features,
    captions_by_image,
    check_captions,
    training_captions,
    undecoded,
)


def features_of(image_id, tokens=3, width=4):
    """Features that tell which image they belong to."""
    return torch.arange(tokens * width).reshape(tokens, width) / 16 + image_id


def write_store(folder, ids=(1, 2, 3)):
    with FeatureWriter(folder) as writer:
        for image_id in ids:
            writer.add(image_id, features_of(image_id))
    return folder


class Scorer(torch.nn.Module):
    """The smallest model that learns from features."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 1)

    def forward(self, image_features, labels):
        scores = self.linear(image_features.float()).mean((1, 2))
        return {"loss": ((scores - labels) ** 2).mean(), "logits": scores}


def collate(rows):
    features = torch.stack([row["image_features"] for row in rows])
    return {"image_features": features, "labels": torch.tensor([float(len(row["captions"])) for row in rows])}


class TestAttaching:
    @pytest.fixture
    def store(self, tmp_path):
        return FeatureStore(write_store(tmp_path / "store"))

    @pytest.fixture
    def rows(self):
        return datasets.Dataset.from_dict(
            {"image": ["never read"] * 3, "image_id": [3, 1, 2], "captions": [["a"], ["b", "c"], ["d"]]},
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "image_id": datasets.Value("int64"),
                    "captions": datasets.List(datasets.Value("string")),
                }
            ),
        )

    def test_rows(self, rows, store):
        attached = attach_features(rows, store)
        assert isinstance(attached, FeatureDataset)
        assert len(attached) == 3
        for index in (1, -2):
            row = attached[index]
            assert torch.equal(row.pop("image_features"), features_of(1).half())
            assert row == {"image_id": 1, "captions": ["b", "c"]}

    def test_batched_access_gives_the_same_rows(self, rows, store):
        attached = attach_features(rows, store)
        batch = attached.__getitems__([2, 0])
        for row, index in zip(batch, [2, 0], strict=True):
            expected = attached[index]
            assert torch.equal(row.pop("image_features"), expected.pop("image_features"))
            assert row == expected

    def test_missing(self, rows, tmp_path, caplog):
        store = FeatureStore(write_store(tmp_path, [1, 2]))
        with pytest.raises(ValueError, match="1 of 3 images have no features: 3; compute them"):
            attach_features(rows, store)
        attached = attach_features(rows, store, bad_rows=BadRows("skip"))
        assert [attached[index]["image_id"] for index in range(len(attached))] == [1, 2]
        assert "image 3 has no features" in caplog.text

    def test_missing_all(self, rows, tmp_path):
        store = FeatureStore(write_store(tmp_path, [8]))
        with pytest.raises(ValueError, match="3 of 3 images have no features: 3, 1, 2"):
            attach_features(rows, store, bad_rows=BadRows("skip"))

    def test_streaming_dataset(self, rows, store):
        with pytest.raises(TypeError, match="cannot be attached to a IterableDataset: load it without streaming"):
            attach_features(rows.to_iterable_dataset(), store)

    @pytest.mark.parametrize("workers", [0, 2])
    def test_trainer(self, rows, store, tmp_path, workers):
        args = TrainingArguments(
            output_dir=str(tmp_path / "run"),
            per_device_train_batch_size=2,
            max_steps=3,
            dataloader_num_workers=workers,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        model = Scorer()
        before = model.linear.weight.clone()
        trainer = Trainer(model, args, data_collator=collate, train_dataset=attach_features(rows, store))
        assert trainer.train().global_step == 3
        assert not torch.equal(model.linear.weight, before)


class TestCaptions:
    """The images of these rows cannot be opened, so that opening one is an error."""

    ROWS = [{"image": "nowhere.png", "captions": ["a", "b"]}, {"image": "nowhere.png", "captions": ["c"]}]

    @pytest.mark.parametrize("make", [list, datasets.Dataset.from_list])
    def test_of_rows(self, make):
        rows = make(self.ROWS)
        if not isinstance(rows, list):
            rows = rows.cast_column("image", datasets.Image())
        assert captions_by_image(rows) == [["a", "b"], ["c"]]
        assert training_captions(rows) == ["a", "b", "c"]


def test_undecoded_images_stay_closed():
    png = io.BytesIO()
    Image.new("RGB", (2, 2)).save(png, "png")
    rows = datasets.Dataset.from_dict({"image": [{"bytes": png.getvalue(), "path": None}], "image_id": [1]})
    rows = rows.cast_column("image", datasets.Image())
    assert isinstance(rows[0]["image"], Image.Image)
    assert undecoded(rows)[0] == {"image": {"bytes": png.getvalue(), "path": None}, "image_id": 1}


class TestCaptionsThatCannotBeLearnedFrom:
    @pytest.mark.parametrize(
        ("caption", "message"),
        [
            ("x" * 10_000, r"x\.json: 1 of 2 pictures have captions of more than 5000 characters: image 7: 'xxx"),
            ("a \0 dog", r"1 of 2 pictures have captions with a NUL character: image 7: 'a \\x00 dog'; mend them"),
            ("", r"1 of 2 pictures have captions without a word: image 7: ''"),
            (None, r"1 of 2 pictures have captions without a word: image 7: None"),
        ],
    )
    def test_are_named(self, caption, message):
        rows = [{"image_id": 7, "captions": ["a dog", caption]}, {"image_id": 8, "captions": ["a cat"]}]
        with pytest.raises(ValueError, match=message):
            check_captions(rows, "x.json")

    def test_line_breaks_are_spaces(self, caplog):
        """COCO's own annotations have some."""
        check_captions([{"image_id": 7, "captions": ["a dog\nruns", "a cat\n"]}], "x.json")
        assert "x.json: 1 of 1 pictures have captions with line breaks in them, read as spaces" in caplog.text
