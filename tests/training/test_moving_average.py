"""The moving average: its values, what is evaluated and saved, and that it goes on to the last bit."""

from __future__ import annotations

import shutil

import pytest
import torch
from contracts.reward_policies import (
    assert_same,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_processor,
    tiny_rows,
    weights,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, TrainerCallback

from hf_captioners import SCSTConfig, XEConfig, XETrainer

DECAY = 0.7


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


class Spy(TrainerCallback):
    """The weights that learn after each step, and at each evaluation."""

    def __init__(self, model):
        self.model, self.steps, self.evaluated = model, [weights(model)], []

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(weights(self.model))

    def on_prediction_step(self, args, state, control, **kwargs):
        self.evaluated.append(weights(self.model))


@pytest.fixture()
def trainer(tmp_path, rows):
    def make(folder="run", **options):
        model = tiny_policy("scdnet", dropout=0.2)
        usual = {
            "report_to": "none", "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 4,
            "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2,
            "learning_rate": 1e-2, "moving_average_decay": DECAY,
        }  # fmt: skip
        args = XEConfig(output_dir=str(tmp_path / folder), **{**usual, **options})
        spy = Spy(model)
        run = XETrainer(model, args, rows, rows[:2], processing_class=tiny_processor("scdnet"), callbacks=[spy])
        return run, spy

    return make


def averages(steps):
    """The same by the definition, in a loop."""
    average = steps[0]
    every = [average]
    for values in steps[1:]:
        average = {name: DECAY * average[name] + (1 - DECAY) * value for name, value in values.items()}
        every.append(average)
    return every


def near(one, other):
    learned = [name for name in one if "backbone" not in name]
    torch.testing.assert_close({name: one[name] for name in learned}, {name: other[name] for name in learned})


def test_what_is_evaluated_and_saved(trainer, tmp_path):
    run, spy = trainer()
    run.train()
    expected = averages(spy.steps)
    near(spy.evaluated[0], expected[2])
    near(weights(run.model), expected[4])
    run.evaluate()
    near(spy.evaluated[-1], expected[4])
    run.save_model()
    for folder, there in ((tmp_path / "run", expected[4]), (tmp_path / "run" / "raw", spy.steps[4])):
        near(weights(AutoModelForImageTextToText.from_pretrained(folder)), there)
        assert (folder / "processor_config.json").is_file()
    saved = load_file(tmp_path / "run" / "checkpoint-2" / "moving_average.safetensors")
    assert saved.keys() == {name for name, weight in run.model.named_parameters() if weight.requires_grad}
    near(weights(AutoModelForImageTextToText.from_pretrained(tmp_path / "run" / "checkpoint-2")), spy.steps[2])


def test_captions_are_of_the_average(trainer):
    """With the default options, whose beams this captioner does not have."""
    run, spy = trainer(eval_with_generation=True, generation_max_length=8)
    run.train()
    assert [entry for entry in run.state.log_history if "eval_cider_d" in entry]
    captions = run.generate_captions(run.eval_dataset)
    run.average.exchange()
    assert run.generate_captions(run.eval_dataset) == captions  # exchanged for them
    near(weights(run.model), spy.steps[4])


def test_going_on_is_bit_exact(trainer, tmp_path):
    whole, _ = trainer()
    whole.train()
    shutil.copytree(tmp_path / "run", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "checkpoint-4")
    again, _ = trainer("cut")
    again.train(resume_from_checkpoint=True)
    assert_same(weights(again.model), weights(whole.model))
    for run in (whole, again):
        run.average.exchange()
    assert_same(weights(again.model), weights(whole.model))


def test_a_training_that_has_ended(trainer, tmp_path):
    run, _ = trainer(save_strategy="no")
    run.train()
    run.save_model()
    run.save_state()
    ended, _ = trainer(save_strategy="no")
    ended.train(resume_from_checkpoint=True)
    ended.save_model(str(tmp_path / "again"))
    for name in ("model.safetensors", "raw/model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    assert (tmp_path / "again/model.safetensors").read_bytes() != (
        tmp_path / "again/raw/model.safetensors"
    ).read_bytes()


def test_the_average_of_the_best_checkpoint(trainer, tmp_path):
    run, spy = trainer(load_best_model_at_end=True, metric_for_best_model="loss", greater_is_better=True)
    run.train()
    best = run.state.best_global_step
    near(weights(run.model), averages(spy.steps)[best])
    run.average.exchange()
    near(weights(run.model), spy.steps[best])


def test_a_checkpoint_without_it_is_not_gone_on_with(trainer, tmp_path, caplog):
    run, _ = trainer()
    run.train()
    (tmp_path / "run/checkpoint-4/moving_average.safetensors").unlink()
    again, _ = trainer()
    assert again._newest_whole(tmp_path / "run").name == "checkpoint-2"
    assert "moving_average.safetensors is missing" in caplog.text
    save_file({"nothing": torch.zeros(1)}, tmp_path / "run/checkpoint-4/moving_average.safetensors")
    with pytest.raises(ValueError, match="is of other weights than those that learn here"):
        again.train(resume_from_checkpoint=True)


def test_self_critical_training_has_one_too(rows, tmp_path):
    options = {"candidate_strategy": "sample", "moving_average_decay": 0.5, "save_strategy": "steps", "save_steps": 1}
    run = reward_trainer(SCSTConfig, tmp_path / "scst", rows, kind="scdnet", evaluation=rows[:2], **options)
    run.train()
    assert run.average.is_in_model
    assert (tmp_path / "scst/checkpoint-1/moving_average.safetensors").is_file()


@pytest.mark.parametrize("decay", [0.0, 1.0, -1])
def test_decays_that_are_none(tmp_path, decay):
    with pytest.raises(ValueError, match="moving_average_decay must be between 0 and 1"):
        XEConfig(output_dir=str(tmp_path), moving_average_decay=decay, use_cpu=True)
