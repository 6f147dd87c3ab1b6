"""Cross-entropy training: what must not depend on how it is run, what learns, evaluation, files, errors."""

import json
import logging
import random
import subprocess
import sys

import datasets
import numpy as np
import pytest
import torch
from contracts.hanging import HANGING_S
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, EarlyStoppingCallback
from transformers.trainer_utils import get_last_checkpoint

from hf_captioners import (
    CaptionCollator,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    FeatureStore,
    ImageError,
    XEConfig,
    XETrainer,
)
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features
from hf_captioners.metrics import CaptionMetrics
from hf_captioners.training.schedules import SCHEDULES, RectifiedAdam

DROPOUTS = [f"{name}_dropout" for name in ("encoder", "decoder", "encoder_input", "decoder_input", "other")]
WORDS = ["a", "red", "circle", "above", "blue", "square", "two", "small", "green", "stars", "large", "star", "left"]


@pytest.fixture(autouse=True)
def one_thread():
    """Sums of several threads differ from run to run in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def processor(tiny_captioner_dir):
    return AutoProcessor.from_pretrained(tiny_captioner_dir)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Sixteen pictures on disk, each with five captions of one to nine words."""
    folder, rng, noise = tmp_path_factory.mktemp("rows"), random.Random(0), np.random.default_rng(0)
    rows = []
    for index in range(16):
        path = folder / f"{index}.png"
        Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(path)
        captions = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(5)]
        rows.append({"image_id": index, "image": str(path), "captions": captions})
    return rows


@pytest.fixture()
def new_model(tiny_captioner_dir):
    """The tiny captioner with one dropout rate everywhere."""

    def make(dropout=0.0):
        config = ExpansionNetV2Config.from_pretrained(tiny_captioner_dir)
        for name in DROPOUTS:
            setattr(config, name, dropout)
        config.vision_config.drop_path_rate = dropout
        return ExpansionNetV2ForImageCaptioning.from_pretrained(tiny_captioner_dir, config=config)

    return make


@pytest.fixture()
def trainer(tmp_path, rows, processor, new_model):
    """A trainer on the sixteen rows; options of `XEConfig` and of `XETrainer` by name."""

    def make(model=None, train=rows, evaluation=None, folder="run", **options):
        extra = {
            name: options.pop(name)
            for name in ("peft_config", "compute_caption_metrics", "callbacks")
            if name in options
        }
        usual = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "seed": 1}
        args = XEConfig(output_dir=str(tmp_path / folder), **{**usual, **options})
        model = new_model() if model is None else model
        return XETrainer(model, args, train, evaluation, processing_class=processor, **extra)

    return make


def weights(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(before, model):
    """Names of the weights that differ, to the last bit, from what they were."""
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def assert_close(one, other, start):
    """Equal but for rounding, and moved much farther than that from where both started."""
    moved = max(float((one[name] - start[name]).abs().max()) for name in one)
    apart = max(float((one[name] - other[name]).abs().max()) for name in one)
    assert moved > 1e-3
    assert apart < 1e-4 * moved


def words_of(collator, batch):
    return collator.processor.batch_decode(batch["labels"].clamp(min=0))


class TestLoss:
    def test_falls(self, trainer, rows):
        run = trainer(
            train=rows[:4], evaluation=rows[:4], max_steps=40, learning_rate=5e-3, captions_per_image=5,
            per_device_train_batch_size=4, logging_steps=10, label_smoothing_factor=0.0,
        )  # fmt: skip
        before = run.evaluate()["eval_loss"]
        run.train()
        assert run.evaluate()["eval_loss"] < 0.5 * before
        logged = [entry["loss"] for entry in run.state.log_history if "loss" in entry]
        assert logged == sorted(logged, reverse=True)

    @pytest.mark.parametrize("smoothing", [None, 0.0, 0.3])
    def test_label_smoothing_reaches_the_model(self, trainer, rows, smoothing):
        run = trainer(label_smoothing_factor=smoothing)
        run.model.eval()
        batch = run.data_collator(rows[:3])
        logits, labels = run.model(**batch).logits, batch["labels"]
        mass, size = run.model.config.label_smoothing if smoothing is None else smoothing, logits.shape[-1]
        q = torch.full_like(logits, mass / (size - 1)).scatter(-1, labels.clamp(min=0)[..., None], 1 - mass)
        divergence = (torch.special.xlogy(q, q) - q * logits.log_softmax(-1)).sum(-1)  # specification, section 14
        expected = divergence[labels != -100].mean()
        torch.testing.assert_close(run.compute_loss(run.model, batch), expected)
        total = run.compute_loss(run.model, batch, num_items_in_batch=torch.tensor(1))
        torch.testing.assert_close(total, divergence[labels != -100].sum())

    def test_the_loss_in_the_log_is_the_mean_over_words(self, trainer, rows):
        run = trainer(
            train=rows[:8], max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=4, logging_steps=1
        )
        model = run.model
        batch = CaptionCollator(run.processing_class, seed=1)(rows[:8])
        expected = float(model.train()(**batch).loss.detach())
        run.train()
        assert run.state.log_history[0]["loss"] == pytest.approx(expected, abs=2e-4)  # logs are rounded

    def test_evaluation_loss_is_of_the_first_captions(self, trainer, rows):
        run = trainer(evaluation=rows[:4], eval_captions_per_image=2, per_device_eval_batch_size=4)
        batch = run.processing_class(
            images=[row["image"] for row in rows[:4]], text_target=[c for row in rows[:4] for c in row["captions"][:2]]
        )
        expected = float(run.model.eval()(**batch).loss.detach())
        assert run.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)
        assert run.data_collator.training

    def test_evaluation_loss_is_a_mean_over_words_whatever_the_batches(self, trainer, rows):
        """Also where the last batch is incomplete and `dataloader_drop_last` leaves it out of the training."""
        model, sums, words = trainer().model.eval(), 0.0, 0
        for row in rows[:7]:
            batch = trainer().processing_class(images=row["image"], text_target=row["captions"])
            sums += float(model(**batch, num_items_in_batch=1).loss.detach())
            words += int((batch["labels"] != -100).sum())
        for size in (1, 3, 7, 9):
            run = trainer(evaluation=rows[:7], per_device_eval_batch_size=size, dataloader_drop_last=True)
            assert run.evaluate()["eval_loss"] == pytest.approx(sums / words, rel=1e-5)
            assert run.predict(rows[:7]).metrics["test_loss"] == pytest.approx(sums / words, rel=1e-5)


class TestAccumulation:
    @pytest.mark.parametrize(("captions", "backbone"), [(1, "none"), (5, "all")])
    def test_is_exact(self, trainer, new_model, captions, backbone):
        start = weights(new_model())
        ends = []
        for size, accumulation in ((8, 1), (4, 2), (2, 4)):
            run = trainer(
                max_steps=6, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation, optim="sgd",
                learning_rate=0.005, captions_per_image=captions, train_backbone=backbone, lr_scheduler_type="constant",
            )  # fmt: skip
            run.train()
            ends.append(weights(run.model))
        assert_close(ends[0], ends[1], start)
        assert_close(ends[0], ends[2], start)


class TestCaptions:
    def test_other_ones_in_each_epoch_the_same_ones_again(self, trainer, rows):
        seen = []

        class Spy(CaptionCollator):
            def __call__(self, batch_rows):
                batch = super().__call__(batch_rows)
                words = words_of(self, batch)
                seen.append((self.epoch, dict(zip([row["image_id"] for row in batch_rows], words, strict=True))))
                return batch

        run = trainer(num_train_epochs=3, per_device_train_batch_size=4)
        spy = Spy(run.processing_class, seed=1)
        again = XETrainer(run.model, run.args, rows, processing_class=run.processing_class, data_collator=spy)
        again.train()
        assert [epoch for epoch, _ in seen] == [0] * 4 + [1] * 4 + [2] * 4
        epochs = [{}, {}, {}]
        for epoch, captions in seen:
            epochs[epoch].update(captions)
        assert [len(one) for one in epochs] == [16, 16, 16]
        assert epochs[0] != epochs[1] != epochs[2]
        plain = CaptionCollator(run.processing_class, seed=1)
        for plain.epoch, captions in enumerate(epochs):
            assert words_of(plain, plain(rows)) == [captions[row["image_id"]] for row in rows]

    def test_data_seed(self, trainer):
        assert trainer().data_collator.seed == 1
        assert trainer(data_seed=7).data_collator.seed == 7


class TestResume:
    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_is_bit_exact_in_the_middle_of_an_epoch(self, trainer, new_model, rows, accumulation, workers):
        options = {
            "dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0, "num_train_epochs": 3,
            "per_device_train_batch_size": 4 // accumulation, "save_strategy": "steps",
            "gradient_accumulation_steps": accumulation, "save_steps": 6, "logging_steps": 1, "learning_rate": 1e-2,
            "train_backbone": "all", "lr_scheduler_type": "custom_warmup_anneal", "eval_strategy": "steps",
            "lr_scheduler_kwargs": {"warmup_iters": 3}, "eval_steps": 5, "optim": "radam",
        }  # fmt: skip
        whole = trainer(new_model(0.3), evaluation=rows[:2], folder="whole", **options)
        whole.train()
        assert whole.state.global_step == 12  # four in each epoch, so 6 is in the middle of the second
        checkpoint = f"{whole.args.output_dir}/checkpoint-6"
        torch.manual_seed(99)
        resumed = trainer(new_model(0.3), evaluation=rows[:2], folder="resumed", **options)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert_same(weights(whole.model), weights(resumed.model))
        logs = [
            [
                (entry["step"], entry["loss"], entry["learning_rate"])
                for entry in run.state.log_history
                if "loss" in entry
            ]
            for run in (whole, resumed)
        ]
        assert logs[0] == logs[1]
        assert changed(weights(whole.model), new_model(0.3))


class TestWhatLearns:
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2}

    def test_a_frozen_backbone_stays_to_the_last_bit(self, trainer):
        run = trainer(**self.options)
        before = weights(run.model)
        run.train()
        names = changed(before, run.model)
        assert names
        assert not [name for name in names if name.startswith("backbone.")]
        assert not run.model.backbone.training

    def test_a_part_of_the_backbone(self, trainer):
        run = trainer(train_backbone=r"layers\.1\.", **self.options)
        before = weights(run.model)
        run.train()
        names = {name for name in changed(before, run.model) if name.startswith("backbone.")}
        learnt = {name for name, one in run.model.named_parameters() if one.requires_grad and "backbone" in name}
        assert names == learnt
        assert all("layers.1." in name for name in names)

    def test_the_whole_backbone(self, trainer):
        run = trainer(train_backbone="all", **self.options)
        assert all(one.requires_grad for one in run.model.parameters())
        before = weights(run.model)
        run.train()
        assert {name for name, _ in run.model.backbone.named_parameters(prefix="backbone")} <= changed(
            before, run.model
        )

    def test_adapters_alone(self, trainer, new_model, rows, tmp_path):
        from peft import LoraConfig, PeftModel

        run = trainer(peft_config=LoraConfig(r=2), save_strategy="steps", save_steps=3, **self.options)
        before = weights(run.model)
        run.train()
        names = changed(before, run.model)
        assert names
        assert all("lora_" in name for name in names)
        assert not [name for name in names if "backbone" in name]
        checkpoint = get_last_checkpoint(run.args.output_dir)
        files = {path.name for path in (tmp_path / "run" / "checkpoint-3").iterdir()}
        assert {"adapter_model.safetensors", "adapter_config.json", "processor_config.json"} <= files
        assert "model.safetensors" not in files
        loaded = PeftModel.from_pretrained(new_model(), checkpoint).eval()
        batch = run.data_collator(rows[:3])
        run.model.eval()
        assert torch.equal(loaded(**batch).logits, run.model(**batch).logits)
        assert not torch.equal(loaded(**batch).logits, new_model().eval()(**batch).logits)

    def test_adapters_and_accumulation(self, trainer, new_model):
        from peft import LoraConfig

        ends = []
        for size, accumulation in ((8, 1), (2, 4)):
            torch.manual_seed(5)
            run = trainer(
                peft_config=LoraConfig(r=2), max_steps=6, per_device_train_batch_size=size, optim="sgd",
                gradient_accumulation_steps=accumulation, learning_rate=0.1, lr_scheduler_type="constant",
            )  # fmt: skip
            start = weights(run.model)
            run.train()
            ends.append(weights(run.model))
        assert_close(ends[0], ends[1], start)


class TestOptimizer:
    @pytest.mark.parametrize("schedule", sorted(SCHEDULES))
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_schedules_count_batches(self, trainer, schedule, accumulation):
        options = {
            "custom_warmup_anneal": {"anneal_coeff": 0.5, "anneal_every_epoch": 1.0, "min_lr": 6e-4},
            "annealing": {"anneal_every_epoch": 1.0},
            "noam": {},
        }[schedule] | {"warmup_iters": 5}
        run = trainer(
            num_train_epochs=3, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
            learning_rate=2e-3, lr_scheduler_type=schedule, lr_scheduler_kwargs=options, logging_steps=1,
        )  # fmt: skip
        run.train()
        rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
        options |= {"lr": 2e-3, "batches_per_epoch": 8}
        assert rates == pytest.approx([SCHEDULES[schedule](step, **options) for step in range(0, 24, accumulation)])
        assert len(set(rates)) > 3

    @pytest.mark.parametrize(("drop", "batches"), [(False, 4), (True, 3)])
    def test_batches_of_an_epoch(self, trainer, drop, batches):
        run = trainer(per_device_train_batch_size=5, dataloader_drop_last=drop)
        assert run._batches_per_epoch() == len(run.get_train_dataloader()) == batches

    def test_radam(self, trainer):
        run = trainer(optim="radam", max_steps=5, per_device_train_batch_size=2, lr_scheduler_type="constant")
        before = weights(run.model)
        run.train()
        assert isinstance(run.optimizer.optimizer, RectifiedAdam)
        assert changed(before, run.model) == set()  # the first five steps
        longer = trainer(optim="radam", max_steps=6, per_device_train_batch_size=2, lr_scheduler_type="constant")
        longer.train()
        assert changed(before, longer.model)
        assert sum(len(group["params"]) for group in longer.optimizer.param_groups) == len(
            [one for one in longer.model.parameters() if one.requires_grad]
        )

    def test_by_default_those_of_transformers(self, trainer):
        run = trainer(max_steps=1, per_device_train_batch_size=2, optim="adafactor", lr_scheduler_type="cosine")
        run.train()
        assert type(run.optimizer.optimizer).__name__ == "Adafactor"


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


class TestEvaluation:
    def expected(self, model, processor, rows, **options):
        ids = [model.eval().generate(**processor(images=row["image"]), **options)[0] for row in rows]
        return [processor.decode(one) for one in ids]

    def test_captions_in_the_order_of_the_data_set(self, trainer, rows, processor):
        calls = []

        def metrics(captions, references):
            calls.append((captions, references))
            return {"words": float(len(captions[0].split()))}

        run = trainer(
            evaluation=rows[:7], eval_with_generation=True, per_device_eval_batch_size=3, generation_num_beams=2,
            generation_max_length=9, compute_caption_metrics=metrics,
        )  # fmt: skip
        scores = run.evaluate()
        ((captions, references),) = calls
        assert captions == self.expected(run.model, processor, rows[:7], num_beams=2, max_length=9)
        assert len(set(captions)) > 1
        assert references == [row["captions"] for row in rows[:7]]
        assert scores["eval_words"] == len(captions[0].split())
        assert scores["eval_caption_words"] == sum(len(one.split()) for one in captions) / 7
        assert run.data_collator.training
        run.model.train()
        assert run.generate_captions(rows[:7]) == captions
        assert run.model.training
        assert {"eval_words", "eval_loss"} <= set().union(*run.state.log_history)

    def test_during_training(self, trainer, rows, tmp_path):
        seen = []
        run = trainer(
            evaluation=rows[:3], max_steps=4, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2,
            save_strategy="steps", save_steps=2, eval_with_generation=True, generation_max_length=6,
            compute_caption_metrics=lambda captions, _: {"made_up": float(seen.append(captions) or -len(seen))},
            metric_for_best_model="made_up", greater_is_better=True, load_best_model_at_end=True, train_backbone="all",
            learning_rate=1e-2,
        )  # fmt: skip
        run.train()
        assert [entry["eval_made_up"] for entry in run.state.log_history if "eval_made_up" in entry] == [-1.0, -2.0]
        assert run.state.best_model_checkpoint.endswith("checkpoint-2")
        best, last = (AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / f"checkpoint-{n}") for n in (2, 4))
        assert_same(weights(run.model), weights(best))
        assert any(name.startswith("backbone.") for name in changed(weights(best), last))

    def test_captions_are_scored_by_default(self, trainer, rows):
        run = trainer(evaluation=rows[:5], eval_with_generation=True, generation_max_length=9)
        scores = run.evaluate()
        expected = CaptionMetrics(["bleu", "rouge_l", "cider_d"])(
            run.generate_captions(rows[:5]), [row["captions"] for row in rows[:5]]
        ).corpus
        assert {name: scores[f"eval_{name}"] for name in expected} == expected
        assert {"bleu_4", "cider_d"} <= expected.keys()

    def test_early_stopping_by_cider_d(self, trainer, rows):
        run = trainer(
            evaluation=rows[:4], max_steps=9, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=1,
            save_strategy="steps", save_steps=1, eval_with_generation=True, generation_max_length=9, learning_rate=0.0,
            caption_metrics=["cider_d"], metric_for_best_model="cider_d", greater_is_better=True,
            load_best_model_at_end=True, callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
        )  # fmt: skip
        run.train()
        assert run.state.global_step == 3  # the same captions at every step: two without improvement
        assert run.state.best_model_checkpoint.endswith("checkpoint-1")
        assert run.state.best_metric == run.state.log_history[0]["eval_cider_d"]

    def test_without_generation_nothing_is_generated(self, trainer, rows):
        run = trainer(evaluation=rows[:3], compute_caption_metrics=lambda *_: pytest.fail("called"))
        assert "eval_caption_words" not in run.evaluate()

    def test_several_data_sets(self, trainer, rows):
        run = trainer(
            evaluation={"one": rows[:3], "two": rows[3:5]}, eval_with_generation=True, generation_max_length=6,
            compute_caption_metrics=lambda captions, _: {"count": float(len(captions))},
        )  # fmt: skip
        scores = run.evaluate()
        assert (scores["eval_one_count"], scores["eval_two_count"]) == (3, 2)
        assert {"eval_one_loss", "eval_two_loss"} <= scores.keys()

    def test_some_captions_are_logged(self, trainer, rows, caplog):
        run = trainer(evaluation=rows[:5], eval_with_generation=True, generation_max_length=6, num_logged_captions=2)
        with caplog.at_level(logging.INFO, logger="hf_captioners"):
            run.evaluate()
        lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("generated: ")]
        assert len(lines) == 2
        assert lines[1].endswith(f"| reference: {rows[1]['captions'][0]}")


class TestFiles:
    def test_a_checkpoint_is_a_captioner(self, trainer, tmp_path, rows):
        run = trainer(max_steps=2, per_device_train_batch_size=4, save_strategy="steps", save_steps=2)
        run.train()
        folder = tmp_path / "run" / "checkpoint-2"
        assert not list(folder.rglob("*.py"))
        run.save_model()
        for place in (folder, tmp_path / "run"):
            assert json.loads((place / "training_args.json").read_text())["max_steps"] == 2
            assert not (place / "training_args.bin").exists()
        assert "auto_map" not in (folder / "config.json").read_text()
        model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
        assert_same(weights(run.model), weights(model))
        assert type(processor) is type(run.processing_class)
        assert processor.image_processor.to_dict() == run.processing_class.image_processor.to_dict()
        assert model.generation_config.to_dict() == run.model.generation_config.to_dict()
        captions = processor.batch_decode(model.generate(**processor(images=[row["image"] for row in rows[:3]])))
        assert run.generate_captions(rows[:3]) == TestEvaluation().expected(
            model, processor, rows[:3], num_beams=3, max_length=20
        )
        assert len(captions) == 3


class TestErrors:
    def test_no_processor(self, new_model, tmp_path):
        with pytest.raises(ValueError, match="give the captioner's processor as processing_class"):
            XETrainer(new_model(), XEConfig(output_dir=str(tmp_path)), [])

    def test_metrics_of_predictions(self, new_model, processor, tmp_path):
        with pytest.raises(ValueError, match="evaluation keeps no predictions; give compute_caption_metrics"):
            args = XEConfig(output_dir=str(tmp_path))
            XETrainer(new_model(), args, processing_class=processor, compute_metrics=lambda _: {})

    def test_a_backbone_that_is_not_there(self, trainer):
        config = ExpansionNetV2Config(
            vocab_size=19, d_model=16, num_attention_heads=2, ffn_dim=16, encoder_layers=1, decoder_layers=1,
            encoder_expansion_groups=[2], decoder_expansion_size=2, features_only=True, feature_size=8,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, unk_token_id=3,
        )  # fmt: skip
        with pytest.raises(ValueError, match="no backbone to train, but 'all' of it was asked for"):
            trainer(ExpansionNetV2ForImageCaptioning(config), train_backbone="all")
        assert trainer(ExpansionNetV2ForImageCaptioning(config)).model.backbone is None

    @pytest.mark.parametrize("adapted", [False, True])
    def test_a_backbone_beside_adapters(self, trainer, new_model, adapted):
        from peft import LoraConfig, get_peft_model

        adapters = LoraConfig(r=2, target_modules=ExpansionNetV2ForImageCaptioning.LORA_TARGET_MODULES)
        model = get_peft_model(new_model(), adapters) if adapted else new_model()
        options = {} if adapted else {"peft_config": adapters}
        with pytest.raises(ValueError, match=r"train_backbone='all' and adapters \(lora_rank, peft_config\) exclude"):
            trainer(model, train_backbone="all", **options)
        assert trainer(model, **options).model.peft_config

    def test_fewer_rows_than_a_batch_that_is_dropped(self, trainer, rows):
        run = trainer(train=rows[:5], per_device_train_batch_size=6, dataloader_drop_last=True, max_steps=1)
        with pytest.raises(ValueError, match="dataloader_drop_last=True leaves nothing to learn from: 5 training rows"):
            run.train()
        run = trainer(train=rows[:5], per_device_train_batch_size=5, dataloader_drop_last=True, max_steps=1)
        assert run.train().global_step == 1

    @pytest.mark.parametrize("kind", ["list", "dataset", "store"])
    @pytest.mark.parametrize("part", ["train", "evaluation"])
    def test_features_of_another_width(self, trainer, new_model, rows, tmp_path, kind, part):
        model = new_model()
        wide = model.config.feature_size + 1
        some = [{"image_id": row["image_id"], "captions": row["captions"]} for row in rows[:2]]
        if kind == "store":
            with FeatureWriter(tmp_path / "store", metadata={}) as writer:
                for row in some:
                    writer.add(row["image_id"], torch.zeros(3, wide))
            given = attach_features(datasets.Dataset.from_list(some), FeatureStore(tmp_path / "store"))
        else:
            given = [{**row, "image_features": [[0.0] * wide] * 3} for row in some]
            given = datasets.Dataset.from_list(given) if kind == "dataset" else given
        source = tmp_path / "store" if kind == "store" else "image_features of the first row"
        with pytest.raises(ValueError, match=f"{source} are {wide} wide, but .*reads {wide - 1} "):
            trainer(model, **{part: given})

    def test_an_expression_that_matches_nothing(self, trainer):
        with pytest.raises(ValueError, match=r"no backbone parameter matches 'layers\.9'"):
            trainer(train_backbone="layers.9")

    def test_captions_longer_than_the_model_knows(self, trainer):
        with pytest.raises(
            ValueError, match="generation_max_length=21 is beyond the model's max_position_embeddings=20"
        ):
            trainer(eval_with_generation=True, generation_max_length=21)

    def test_rows_without_pictures(self, trainer):
        with pytest.raises(ValueError, match="needs 'image' or 'image_features'"):
            trainer(train=[{"captions": ["a"], "image_id": 0}], max_steps=1).train()


TWO_PROCESSES = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoProcessor
from hf_captioners import ExpansionNetV2ForImageCaptioning, XEConfig, XETrainer

folder, rows, out = sys.argv[1:]
rows = json.loads(Path(rows).read_text())
model, processor = ExpansionNetV2ForImageCaptioning.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
scored = []
args = XEConfig(output_dir=out, per_device_train_batch_size=4, per_device_eval_batch_size=2, **json.loads(OPTIONS))
trainer = XETrainer(
    model, args, rows, rows[:7], processing_class=processor,
    compute_caption_metrics=lambda captions, references: scored.append([captions, references]) or {},
)
trainer.train()
assert args.world_size == 2
metrics = trainer.evaluate()
rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
if trainer.is_world_process_zero():
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out + "/end.safetensors")
Path(out, f"result{args.process_index}.json").write_text(json.dumps([scored, metrics["eval_loss"], rates]))
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_equal_one(trainer, new_model, rows, tmp_path, processor):
    from safetensors.torch import load_file

    options = {
        "max_steps": 6, "optim": "sgd", "learning_rate": 0.005, "lr_scheduler_type": "custom_warmup_anneal",
        "lr_scheduler_kwargs": {"warmup_iters": 2, "anneal_every_epoch": 1.0},
        "logging_steps": 1, "captions_per_image": 2, "train_backbone": "all", "seed": 1,
        "eval_with_generation": True, "generation_max_length": 9, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "save_strategy": "no",
    }  # fmt: skip
    start, out = new_model(), tmp_path / "two"
    start.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "script.py").write_text(TWO_PROCESSES.replace("OPTIONS", repr(json.dumps(options))))
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    run = subprocess.run(
        [*command, "start", "rows.json", str(out)], cwd=tmp_path, capture_output=True, text=True, timeout=HANGING_S
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads((out / f"result{rank}.json").read_text()) for rank in range(2)]
    scored = []
    one = trainer(
        evaluation=rows[:7], per_device_train_batch_size=8, per_device_eval_batch_size=4,
        compute_caption_metrics=lambda captions, references: scored.append([captions, references]) or {}, **options,
    )  # fmt: skip
    one.train()
    loss = one.evaluate()["eval_loss"]
    assert_close(weights(one.model), load_file(out / "end.safetensors"), weights(start))
    rates = [entry["learning_rate"] for entry in one.state.log_history if "learning_rate" in entry]
    for found, found_loss, found_rates in results:
        assert found == scored  # every process scores every picture once, in order
        assert found_rates == pytest.approx(rates)
        assert found_loss == pytest.approx(loss, rel=1e-5)
