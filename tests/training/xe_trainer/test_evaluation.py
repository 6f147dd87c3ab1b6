"""Evaluation during cross-entropy training, and what is saved."""

import json
import logging

import pytest
from contracts.reward_policies import assert_same, changed, weights
from transformers import AutoModelForImageTextToText, AutoProcessor, EarlyStoppingCallback

from hf_captioners.metrics import CaptionMetrics


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

    @pytest.mark.parametrize(
        ("metric", "names"), [("cidre", "bleu_1, bleu_2, bleu_3, bleu_4, caption_words, cider_d, loss, rouge_l"),
                              ("eval_one_cider_d", "bleu_1, .*")],
    )  # fmt: skip
    def test_a_best_metric_that_there_will_not_be(self, trainer, rows, metric, names):
        run = trainer(
            evaluation=rows[:3], max_steps=1, eval_strategy="steps", eval_with_generation=True,
            metric_for_best_model=metric, compute_caption_metrics=None,
        )  # fmt: skip
        with pytest.raises(ValueError, match=f"metric_for_best_model='{metric}': evaluation has {names}"):
            run.train()
        assert run.state.global_step == 0

    def test_what_is_kept_is_said_and_that_training_has_improved_nothing(self, trainer, new_model, rows, caplog):
        options = {
            "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
            "load_best_model_at_end": True, "metric_for_best_model": "score", "greater_is_better": True,
            "eval_with_generation": True, "generation_max_length": 6, "evaluation": rows[:3], "warmup_steps": 1,
        }  # fmt: skip
        for number, scores in enumerate(([0.5, 0.5], [0.25, 0.5])):
            caplog.clear()
            values = iter(scores)
            run = trainer(
                new_model(), folder=str(number), compute_caption_metrics=lambda *_, of=values: {"score": next(of)},
                **options,
            )  # fmt: skip
            with caplog.at_level(logging.INFO, logger="hf_captioners"):
                run.train()
            (said,) = [line for line in caplog.messages if " is kept, " in line]
            checkpoint = f"{run.args.output_dir}/checkpoint-{number + 1}"
            assert said.startswith(f"{checkpoint} is kept, the best of 2 evaluations by eval_score: 0.5 at step ")
            assert said.endswith("1 of 2; the 1 later ones were no better, the last 0.5" if number == 0 else "2 of 2")
            unchanged = "the weights that are kept are those that training began with" in caplog.text
            assert unchanged == (number == 0) == (not changed(weights(new_model()), run.model))

    def test_looking_for_the_best_metric_leaves_no_trace(self, trainer, new_model, rows):
        options = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "eval_with_generation": True}
        runs = []
        for metric in ("loss", "rouge_l"):
            run = trainer(new_model(0.3), evaluation=rows[:3], metric_for_best_model=metric, logging_steps=1, **options)
            run.train()
            runs.append(run)
        assert_same(*[weights(run.model) for run in runs])
        logs = [[entry.get("loss", entry.get("eval_loss")) for entry in run.state.log_history] for run in runs]
        assert logs[0] == logs[1]

    def test_the_best_metric_of_one_of_several_data_sets(self, trainer, rows):
        run = trainer(
            evaluation={"one": rows[:3], "two": rows[3:5]}, max_steps=1, eval_strategy="steps", eval_steps=1,
            eval_with_generation=True, generation_max_length=6, metric_for_best_model="eval_two_rouge_l",
        )  # fmt: skip
        run.check_best_metric()

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
