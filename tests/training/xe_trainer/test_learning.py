"""What cross-entropy training learns, from which captions, and with which optimizer."""

import pytest
import torch
from contracts.reward_policies import assert_close, changed, weights
from transformers.trainer_utils import get_last_checkpoint

from hf_captioners import CaptionCollator, XETrainer
from hf_captioners.training.schedules import SCHEDULES, RectifiedAdam


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
