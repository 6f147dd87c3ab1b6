"""The collator: which captions are chosen, pictures of every source, features, broken pictures."""

import collections
import copy
import io
import logging

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, TrOCRProcessor, ViTImageProcessor

from hf_captioners import CaptionCollator, ImageError
from hf_captioners.training.collator import RewardCollator

WORDS = ["a", "red", "circle", "above", "blue"]  # of the tiny captioner; each is a caption here


@pytest.fixture(scope="module")
def processor(tiny_captioner_dir):
    return AutoProcessor.from_pretrained(tiny_captioner_dir)


def row(image_id=0, captions=WORDS, **columns):
    return {"image_id": image_id, "image": Image.new("RGB", (8, 6), "red"), "captions": captions, **columns}


def chosen(collator, rows):
    """The captions in a batch's labels."""
    return collator.processor.batch_decode(collator(rows)["labels"].clamp(min=0))


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(file, "PNG")
    return file.getvalue()


class TestChoice:
    def test_depends_on_seed_epoch_and_picture_alone(self, processor):
        rows = [row(image_id) for image_id in range(40)]
        collator = CaptionCollator(processor, seed=3)
        together = chosen(collator, rows)
        random_state = torch.get_rng_state()
        assert [chosen(CaptionCollator(processor, seed=3), [one])[0] for one in rows] == together
        assert chosen(collator, rows[::-1]) == together[::-1]
        assert chosen(copy.deepcopy(collator), rows) == together
        assert torch.equal(torch.get_rng_state(), random_state)

    @pytest.mark.parametrize("change", ["epoch", "seed", "picture"])
    def test_changes_with_each_of_them(self, processor, change):
        def draws(value):
            collator = CaptionCollator(processor, seed=value if change == "seed" else 0)
            collator.epoch = value if change == "epoch" else 0
            start = 1000 * value if change == "picture" else 0
            return chosen(collator, [row(start + index) for index in range(40)])

        same = sum(one == other for one, other in zip(draws(0), draws(1), strict=True))
        assert same < 20  # 8 are expected by chance, standard deviation 2.5

    def test_every_caption_has_its_turn(self, processor):
        collator, seen = CaptionCollator(processor), collections.Counter()
        for epoch in range(200):
            collator.epoch = epoch
            seen.update(chosen(collator, [row()]))
        assert set(seen) == set(WORDS)
        assert min(seen.values()) > 20  # 40 are expected, standard deviation 5.7

    def test_several_without_repetition_side_by_side(self, processor):
        collator = CaptionCollator(processor, captions_per_image=3)
        captions = chosen(collator, [row(1), row(2)])
        assert len(captions) == 6
        assert len(set(captions[:3])) == len(set(captions[3:])) == 3
        assert captions == chosen(collator, [row(1)]) + chosen(collator, [row(2)])

    def test_a_picture_with_fewer_captions_gives_some_again(self, processor):
        captions = chosen(CaptionCollator(processor, captions_per_image=5), [row(captions=["a", "red"])])
        assert sorted(collections.Counter(captions).values()) == [2, 3]
        assert chosen(CaptionCollator(processor, captions_per_image=3), [row(captions=["a"])]) == ["a"] * 3

    def test_evaluation_takes_the_first_ones(self, processor):
        collator = CaptionCollator(processor, captions_per_image=1, eval_captions_per_image=3, seed=5)
        collator.training = False
        for epoch in range(3):
            collator.epoch = epoch
            assert chosen(collator, [row(1), row(2, WORDS[:2])]) == ["a", "red", "circle", "a", "red", "a"]

    def test_workers_that_stay_see_the_epoch(self, processor):
        collator = CaptionCollator(processor)
        rows = [row(image_id) for image_id in range(12)]
        loader = torch.utils.data.DataLoader(
            rows, batch_size=4, collate_fn=collator, num_workers=1, persistent_workers=True
        )
        for epoch in range(3):
            collator.epoch = epoch
            words = [word for batch in loader for word in processor.batch_decode(batch["labels"].clamp(min=0))]
            fresh = CaptionCollator(processor)
            fresh.epoch = epoch
            assert words == chosen(fresh, rows)


class TestBatch:
    def test_pictures(self, processor):
        batch = CaptionCollator(processor, captions_per_image=2)([row(1), row(2), row(3)])
        assert batch.keys() == {"pixel_values", "labels"}
        assert batch["pixel_values"].shape == (3, 3, 32, 32)
        assert batch["labels"].shape == (6, 2)

    def test_sources(self, processor, tmp_path):
        (tmp_path / "a.png").write_bytes(png())
        path = str(tmp_path / "a.png")
        sources = [Image.new("RGB", (8, 6), "red"), path, png(), {"path": path, "bytes": None}, {"bytes": png()}]
        pixels = CaptionCollator(processor)([row(image=source) for source in sources])["pixel_values"]
        assert torch.equal(pixels, pixels[:1].expand(len(sources), -1, -1, -1))
        expected = processor(images=sources[0]).pixel_values
        assert torch.equal(pixels[:1], expected)

    @pytest.mark.parametrize("decode", [True, False])
    def test_rows_of_a_data_set(self, processor, tmp_path, decode):
        (tmp_path / "a.png").write_bytes(png())
        columns = {"image": [str(tmp_path / "a.png")] * 2, "captions": [["a", "red"]] * 2, "image_id": [1, 2]}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=decode))
        batch = CaptionCollator(processor)([dataset[0], dataset[1]])
        assert torch.equal(batch["pixel_values"], CaptionCollator(processor)([row(1), row(2)])["pixel_values"])

    def test_features(self, processor):
        features = [torch.ones(3, 4), torch.ones(5, 4), torch.ones(1, 4)]
        rows = [row(index, image_features=one) for index, one in enumerate(features)]
        batch = CaptionCollator(processor, captions_per_image=2)(rows)
        assert batch.keys() == {"image_features", "image_attention_mask", "labels"}
        assert batch["image_features"].shape == (3, 5, 4)
        assert batch["image_attention_mask"].sum(1).tolist() == [3, 5, 1]
        assert len(batch["labels"]) == 6
        nested = [row(index, image_features=one.tolist()) for index, one in enumerate(features)]
        assert torch.equal(CaptionCollator(processor)(nested)["image_features"], batch["image_features"])

    def test_the_same_captions_for_features_as_for_pictures(self, processor):
        collator = CaptionCollator(processor)
        with_features = [row(index, image_features=torch.ones(3, 4)) for index in range(9)]
        assert chosen(collator, with_features) == chosen(collator, [row(index) for index in range(9)])


class TestBroken:
    def rows(self, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(png()[:40])
        return [row(1, ["a"]), row(2, ["red"], image=str(tmp_path / "broken.jpg")), row(3, ["circle"])]

    def test_raises_by_name(self, processor, tmp_path):
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            CaptionCollator(processor)(self.rows(tmp_path))

    def test_left_out_with_its_captions_and_a_warning(self, processor, tmp_path, caplog):
        collator = CaptionCollator(processor, captions_per_image=2, skip_broken=True)
        with caplog.at_level(logging.WARNING):
            batch = collator(self.rows(tmp_path))
        assert batch["pixel_values"].shape[0] == 2
        assert processor.batch_decode(batch["labels"]) == ["a", "a", "circle", "circle"]
        (record,) = caplog.records
        assert record.getMessage().startswith("left out: ")
        assert "broken.jpg" in record.getMessage()

    def test_never_in_evaluation(self, processor, tmp_path):
        collator = CaptionCollator(processor, skip_broken=True)
        collator.training = False
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            collator(self.rows(tmp_path))

    def test_nothing_left(self, processor, tmp_path):
        with pytest.raises(ImageError, match="none of the 2 pictures of a batch can be opened"):
            CaptionCollator(processor, skip_broken=True)([self.rows(tmp_path)[1]] * 2)


class TestErrors:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"captions": ["a"], "image_id": 1}], r"needs 'image' or 'image_features'; this one has \['captions', 'i"),
            ([row(7, [])], r"image_id 7: 'captions' must be a list of captions, not \[\]"),
            ([row(7, "a red circle")], "image_id 7: 'captions' must be a list of captions, not 'a red circle'"),
            ([row(7, None)], "image_id 7: 'captions' must be a list"),
            ([{"image": Image.new("RGB", (8, 6))}], "image_id None: 'captions' must be a list"),
            ([row(image_features=torch.ones(2, 3)), row(image_features=torch.ones(2, 4))], r"image_features\[1\] must"),
        ],
    )
    def test_rows(self, processor, rows, message):
        with pytest.raises(ValueError, match=message):
            CaptionCollator(processor)(rows)

    @pytest.mark.parametrize("name", ["captions_per_image", "eval_captions_per_image"])
    def test_options(self, processor, name):
        with pytest.raises(ValueError, match=f"CaptionCollator: {name} must be at least 1, not 0"):
            CaptionCollator(processor, **{name: 0})


class TestRewards:
    """Batches of reward training: the rows' columns beside the pictures."""

    def test_columns(self, processor):
        batch = RewardCollator(processor)([row(1, topic="a"), row(2, topic=None)])
        assert batch.keys() == {"pixel_values", "columns"}
        assert batch["columns"].keys() == {"image_id", "image", "captions", "topic"}
        assert (batch["columns"]["image_id"], batch["columns"]["topic"]) == ([1, 2], ["a", None])

    def test_features_are_no_column(self, processor):
        rows = [row(index, image_features=torch.ones(2, 3)) for index in range(2)]
        assert "image_features" not in RewardCollator(processor)(rows)["columns"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_rows_with_other_columns(self, processor, order):
        rows = [row(1, topic="a"), row(2)][::order]
        with pytest.raises(ValueError, match="image_id 2: the row lacks 'topic', which another row of the batch has"):
            RewardCollator(processor)(rows)

    @pytest.mark.parametrize("order", [1, -1])
    def test_a_row_without_captions(self, processor, order):
        other = {name: value for name, value in row(2).items() if name != "captions"}
        with pytest.raises(ValueError, match="image_id 2: 'captions' must be a list of captions, not None"):
            RewardCollator(processor)([row(1), other][::order])

    @pytest.mark.parametrize("collator", [CaptionCollator, RewardCollator])
    def test_a_row_without_features(self, processor, collator):
        with pytest.raises(ValueError, match="image_id 2: the row lacks 'image_features'"):
            collator(processor)([row(1, image_features=torch.ones(2, 3)), row(2)])

    @pytest.mark.parametrize(
        "name",
        ["prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "pixel_values"],
    )
    def test_columns_with_the_name_of_what_the_trainer_gives(self, processor, name):
        with pytest.raises(ValueError, match=f"the column '{name}' has the name of what the trainer gives to rewards"):
            RewardCollator(processor)([row(1, **{name: "mine"})])

    def test_a_processor_of_transformers(self, processor):
        """One that makes lists unless it is asked for tensors."""
        other = TrOCRProcessor(ViTImageProcessor(size={"height": 8, "width": 8}), processor.tokenizer)
        pixels = RewardCollator(other)([row(1), row(2)])["pixel_values"]
        assert isinstance(pixels, torch.Tensor) and pixels.shape == (2, 3, 8, 8)

    @pytest.mark.parametrize("collator", [CaptionCollator, RewardCollator])
    def test_no_image_processor(self, processor, collator):
        with pytest.raises(
            TypeError, match=rf"{collator.__name__}: processor is a .*, which has no image_processor; give"
        ):
            collator(processor.tokenizer)
