"""Rows of training by reward: data sets, cached features, broken pictures, missing columns."""

from __future__ import annotations

import logging
from pathlib import Path

import datasets
import pytest
import torch
from contracts.reward_policies import arbitrary, assert_close, assert_same, tiny_policy, tiny_processor, weights
from contracts.reward_runs import SGD, Spy, logged
from PIL import Image

from hf_captioners import DiCOConfig, FeatureStore, ImageError
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features


class TestRows:
    def test_pictures_of_a_data_set_stay_closed(self, trainer, rows, clip_reward):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        runs = [trainer(train=train, reward=clip_reward(), evaluation=train) for train in (rows, dataset)]
        for run in runs:
            run.train()
        assert_same(*[weights(run.model) for run in runs])
        assert logged(runs[0], "reward") == logged(runs[1], "reward")
        assert runs[0].evaluate()["eval_reward"] == runs[1].evaluate()["eval_reward"]

    def test_pictures_in_the_file_of_a_data_set(self, trainer, rows, clip_reward):
        """Bytes without a path, as from parquet."""
        pictures = [{"path": None, "bytes": Path(row["image"]).read_bytes()} for row in rows]
        columns = {"image": pictures, **{name: [row[name] for row in rows] for name in ("image_id", "captions")}}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        spy = Spy()
        run = trainer(train=dataset, reward=[clip_reward(), spy])
        run.train()
        image, images = spy.calls[0]["image"], spy.calls[0]["images"]
        assert image.closed[0] == pictures[spy.calls[0]["image_id"][0]]
        with Image.open(rows[spy.calls[0]["image_id"][0]]["image"]) as picture:
            assert image[0].tobytes() == images[0].tobytes() == picture.convert("RGB").tobytes()
        plain = trainer(reward=[clip_reward(), arbitrary])
        plain.train()
        assert_same(weights(run.model), weights(plain.model))

    def test_the_captioners_own_pixels(self, trainer, clip_reward):
        """Prepared alike, they are the same pictures."""
        runs = [trainer(reward=clip_reward(use_pixel_values=own), max_steps=1) for own in (False, True)]
        for run in runs:
            run.train()
        assert logged(runs[0], "reward") == pytest.approx(logged(runs[1], "reward"), abs=1e-6)

    @pytest.mark.parametrize("keep_images", [False, True])
    def test_cached_features(self, trainer, rows, tmp_path, clip_reward, keep_images):
        model, processor = tiny_policy("satic"), tiny_processor("satic")
        with FeatureWriter(tmp_path / "features", dtype=torch.float32) as writer:
            for row in rows:
                pixels = processor(images=row["image"])["pixel_values"]
                writer.add(row["image_id"], model.extract_image_features(pixels)[0])
        columns = {name: [row[name] for row in rows] for name in ("image_id", "captions", "image")}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        cached = attach_features(dataset, FeatureStore(tmp_path / "features"), keep_images=keep_images)
        rewards = [arbitrary, clip_reward()] if keep_images else arbitrary
        runs = [trainer(train=train, evaluation=train, reward=rewards, **SGD) for train in (rows, cached)]
        for run in runs:
            run.train()
        assert_close(*[weights(run.model) for run in runs], weights(model))
        assert runs[0].evaluate()["eval_reward"] == pytest.approx(runs[1].evaluate()["eval_reward"], abs=1e-6)

    def test_features_of_different_lengths(self, trainer):
        """Padded ones, whatever stands beside them in a micro-batch."""
        torch.manual_seed(0)
        rows = [{"image_id": i, "image_features": torch.randn(2 + i % 4, 16), "captions": ["a"]} for i in range(8)]
        start, ends = weights(tiny_policy("satic")), []
        for size, accumulation in ((8, 1), (3, 3)):
            run = trainer(
                train=rows, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, **SGD
            )  # fmt: skip
            run.train()
            ends.append(weights(run.model))
        assert_close(*ends, start)

    def test_a_vision_encoder_decoder_refuses_features(self, trainer):
        rows = [{"image_id": 0, "image_features": torch.randn(2, 16), "captions": ["a"]}]
        with pytest.raises(ValueError, match="does not read image_attention_mask, image_features of a batch"):
            trainer(train=rows, kind="vision-encoder-decoder").train()

    def test_broken_pictures(self, trainer, rows, tmp_path, caplog):
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        train = [*rows[:7], {**rows[7], "image": str(tmp_path / "broken.jpg")}]
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            trainer(train=train).train()
        with caplog.at_level(logging.WARNING, logger="hf_captioners"):
            run = trainer(train=train, skip_broken_images=True)
            seen = Spy(run)
            run.train()
        assert sorted(len(one.rewards) for one in seen.rollouts) == [3, 4]
        assert "broken.jpg" in caplog.text
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            run.evaluate(train)

    def test_rows_without_names(self, trainer, rows):
        """Beams need none; what is drawn is drawn by the captions, or not at all."""
        bare = [{"image": row["image"]} for row in rows]
        trainer(DiCOConfig, train=bare).train()
        with pytest.raises(ValueError, match=r"rows need an image_id to draw captions by; these have only \['image'\]"):
            trainer(train=bare).train()
        trainer(train=[{**row, "captions": rows[i]["captions"]} for i, row in enumerate(bare)]).train()

    def test_captions_must_be_a_list(self, trainer, rows):
        with pytest.raises(ValueError, match=r"image_id 3 \(.*\): 'captions' must be a list of captions, not 'a star'"):
            trainer(train=[{**rows[3], "captions": "a star"}]).train()
