"""Rows of cross-entropy training: data sets, cached features, broken pictures."""

import logging

import datasets
import pytest
import torch
from contracts.reward_policies import assert_close, assert_same, weights

from hf_captioners import FeatureStore, ImageError
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features


class TestRows:
    def test_data_sets_of_pictures_stay_closed_until_the_collator(self, trainer, rows):
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        dataset = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
        run = trainer(train=dataset, evaluation=dataset, max_steps=2, per_device_train_batch_size=4)
        assert run.train_dataset.features["image"].decode is False
        assert dataset.features["image"].decode is True
        run.train()
        plain = trainer(evaluation=rows, max_steps=2, per_device_train_batch_size=4)
        plain.train()
        assert_same(weights(run.model), weights(plain.model))
        assert run.evaluate(dataset)["eval_loss"] == plain.evaluate(rows)["eval_loss"]

    def test_cached_features_equal_the_frozen_backbone(self, trainer, new_model, rows, tmp_path, processor):
        model = new_model().eval()
        with FeatureWriter(tmp_path / "features", dtype=torch.float32) as writer:
            for row in rows:
                writer.add(
                    row["image_id"], model.extract_image_features(processor(images=row["image"]).pixel_values)[0]
                )
        columns = {name: [row[name] for row in rows] for name in ("image_id", "captions")}
        cached = attach_features(datasets.Dataset.from_dict(columns), FeatureStore(tmp_path / "features"))
        options = {"max_steps": 8, "per_device_train_batch_size": 4, "optim": "sgd", "learning_rate": 0.005}
        runs = [
            trainer(train=train, evaluation=train, eval_with_generation=True, **options) for train in (cached, rows)
        ]
        for run in runs:
            run.train()
        assert_close(*[weights(run.model) for run in runs], weights(model))
        assert runs[0].generate_captions(cached) == runs[1].generate_captions(rows)

    def test_gradient_elements_are_clamped(self, trainer, new_model):
        """With plain gradient descent a step moves no weight by more than rate times limit."""
        model = new_model()
        before = weights(model)
        options = {"max_steps": 1, "per_device_train_batch_size": 4, "optim": "sgd", "lr_scheduler_type": "constant"}
        trainer(model, learning_rate=1.0, max_grad_value=1e-4, max_grad_norm=0.0, **options).train()
        moved = torch.cat([(value - before[name]).abs().flatten() for name, value in weights(model).items()])
        assert moved.max() == pytest.approx(1e-4, rel=1e-2)
        assert (moved > 0.99e-4).sum() > 10

    def test_broken_pictures(self, trainer, rows, tmp_path, caplog):
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        train = [*rows[:7], {**rows[7], "image": str(tmp_path / "broken.jpg")}]
        options = {"num_train_epochs": 1, "per_device_train_batch_size": 4}
        with pytest.raises(ImageError, match=r"broken\.jpg"):
            trainer(train=train, **options).train()
        with caplog.at_level(logging.WARNING, logger="hf_captioners"):
            run = trainer(train=train, skip_broken_images=True, **options)
            run.train()
        assert run.state.global_step == 2
        assert [record for record in caplog.records if "broken.jpg" in record.getMessage()]
        with pytest.raises(ImageError, match=r"broken\.jpg"):  # captions and references would not match
            run.evaluate(train)
