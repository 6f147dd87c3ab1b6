"""The watch over reward training: what it stops, what it leaves alone, and that resuming changes nothing."""

import json
import logging
import math
import random

import pytest
import torch
from transformers import Trainer, TrainingArguments

from hf_captioners.training.watch.collapse import CollapseCallback

HEALTHY = {
    "loss": 0.1,
    "grad_norm": 1.0,
    "reward": 0.9,
    "reward_std": 0.3,
    "frac_reward_zero_std": 0.05,
    "kl": 0.2,
    "completions/mean_length": 10.0,
    "completions/clipped_ratio": 0.02,
    "completions/valid_ratio": 1.0,
    "completions/unique_ratio": 0.9,
    "completions/repetition": 0.02,
}


def run(*parts):
    """A log history of `(number of logs, what differs from healthy ones)`."""
    entries = [{**HEALTHY, **changes} for number, changes in parts for _ in range(number)]
    return [{**entry, "step": 10 * index} for index, entry in enumerate(entries, start=1)]


def first_stop(history, **limits):
    """Number of logs when the run is stopped, and the reason; `None` if it is not."""
    callback = CollapseCallback(**limits)
    for number in range(1, len(history) + 1):
        diagnosis = callback.diagnose(history[:number])
        if diagnosis is not None:
            return number, diagnosis
    return None


COLLAPSES = {
    "candidates alike": ({"frac_reward_zero_std": 0.97, "completions/unique_ratio": 0.2}, "They are the same captions"),
    "rewards alike": ({"frac_reward_zero_std": 0.97, "completions/unique_ratio": 1.0}, "a reward with finer steps"),
    "no end": ({"completions/clipped_ratio": 0.95}, "captions do not end any more"),
    "nobody": ({"completions/valid_ratio": 0.0}, "no candidate takes part: completions/valid_ratio is 0.00"),
    "too long": ({"completions/mean_length": 20.5}, "captions run away in length: 20.5 over"),
    "too short": ({"completions/mean_length": 4.5}, "captions shrink: 4.5 over"),
    "repetition": ({"completions/repetition": 0.4}, "captions repeat themselves: completions/repetition is 0.40"),
    "reward": ({"reward": 0.5}, "the reward has fallen: 0.500 over the last 5 logs, and 0.900 at its best"),
    "gradient": ({"grad_norm": math.nan}, "grad_norm is nan, and no number in the last 5 logs"),
}


class TestDiagnosis:
    @pytest.mark.parametrize("name", COLLAPSES)
    def test_after_five_logs(self, name):
        changes, words = COLLAPSES[name]
        number, diagnosis = first_stop(run((20, {}), (8, changes)))
        assert number == 25
        assert words in diagnosis
        assert "Try " in diagnosis

    @pytest.mark.parametrize("name", COLLAPSES)
    def test_patience(self, name):
        changes, _ = COLLAPSES[name]
        assert first_stop(run((20, {}), (8, changes)), patience=2)[0] == 22
        assert first_stop(run((20, {}), (8, changes)), patience=9) is None
        assert first_stop(run((20, {}), (8, changes)), patience=0) is None

    @pytest.mark.parametrize("name", COLLAPSES)
    def test_one_better_log_starts_the_count_again(self, name):
        changes, _ = COLLAPSES[name]
        assert first_stop(run((20, {}), (4, changes), (1, {}), (4, changes), (1, {}))) is None

    @pytest.mark.parametrize("name", COLLAPSES)
    def test_logs_of_evaluation_and_of_others_are_not_looked_at(self, name):
        changes, _ = COLLAPSES[name]
        history = run((20, {}), (8, changes))
        others = [
            {"eval_reward": math.nan, "eval_completions/mean_length": 100.0, "step": 200},
            {"train_runtime": 3.0, "train_loss": math.nan, "step": 200},
            {"kl": math.nan, "step": 200},  # a callback's own log
        ]
        assert first_stop([*history[:22], *others, *history[22:]])[0] == 28

    @pytest.mark.parametrize("key", ["loss", "reward", "kl"])
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_no_number_stops_at_once(self, key, value):
        number, diagnosis = first_stop(run((7, {}), (1, {key: value})))
        assert number == 8
        assert f"{key} is {value}" in diagnosis

    def test_all_that_has_collapsed_is_named(self):
        _, diagnosis = first_stop(
            run((9, {}), (5, {"completions/clipped_ratio": 1.0, "completions/mean_length": 30.0}))
        )
        assert "do not end" in diagnosis and "Also: captions run away in length" in diagnosis

    def test_healthy(self):
        assert first_stop(run((50, {}))) is None

    def test_captions_that_have_never_had_an_end(self):
        never = {"completions/clipped_ratio": 1.0}
        number, diagnosis = first_stop(run((60, never)))
        assert number == 50
        assert "captions have had no end since the start: completions/clipped_ratio is 1.00 or more" in diagnosis
        assert "Try the eos_token_id" in diagnosis
        assert first_stop(run((60, never)), patience=2)[0] == 20
        assert (
            first_stop(run((3, never), (1, {"completions/clipped_ratio": 0.99}), (60, never))) is None
        )  # it has fallen
        assert first_stop(run((60, {"completions/clipped_ratio": 0.85}))) is None

    def test_nobody_takes_part_from_the_first_log_on(self):
        """Then there are no rewards to log."""
        logs = [{"loss": 0.0, "completions/valid_ratio": 0.0, "step": step} for step in range(1, 9)]
        assert first_stop(logs)[0] == 5

    def test_cross_entropy_training(self):
        assert first_stop([{"loss": 5.0 / step, "grad_norm": 1.0, "step": step} for step in range(1, 40)]) is None

    def test_values_that_are_no_numbers_are_left_out(self):
        assert first_stop(run((30, {"reward": None, "completions/mean_length": "long"}))) is None


class TestWhatIsNoCollapse:
    def test_captions_that_never_ended(self):
        assert first_stop(run((40, {"completions/clipped_ratio": 1.0}))) is None
        assert (
            first_stop(run((5, {"completions/clipped_ratio": 0.8}), (40, {"completions/clipped_ratio": 1.0}))) is None
        )

    def test_learning_to_end(self):
        start = {"completions/clipped_ratio": 0.98, "completions/mean_length": 20.0}
        assert first_stop(run((10, start), (30, {"completions/mean_length": 9.0}))) is None

    def test_learning_to_speak(self):
        assert first_stop(run((10, {"completions/mean_length": 1.0}), (30, {"completions/mean_length": 9.5}))) is None

    def test_longer_captions(self):
        history = [{**HEALTHY, "completions/mean_length": 9 + step / 8, "step": step} for step in range(60)]
        assert first_stop(history) is None

    def test_one_candidate_against_a_greedy_baseline(self):
        alone = {"reward_std": 0.0, "frac_reward_zero_std": 1.0, "completions/unique_ratio": 1.0}
        assert first_stop(run((30, {**alone, "advantage_std": 0.4}))) is None
        assert first_stop(run((30, {**alone, "advantage_std": 0.0})))[0] == 5

    def test_a_fall_within_the_spread_of_candidates(self):
        assert first_stop(run((20, {}), (30, {"reward": 0.65}))) is None

    def test_a_fall_within_the_noise_of_the_logs(self):
        noisy = [{**HEALTHY, "reward": 0.9 + 0.4 * (-1) ** step, "reward_std": 0.1, "step": step} for step in range(60)]
        assert first_stop([*noisy, *run((6, {"reward": 0.4}))]) is None

    @pytest.mark.parametrize("seed", range(4))
    def test_noise_of_small_batches(self, seed):
        """Logs of eight pictures with five captions each: nothing changes, and nothing may be seen in it."""
        rng = random.Random(seed)

        def mean(draw, number):
            return sum(draw() for _ in range(number)) / number

        history = [
            {
                "loss": rng.gauss(0, 1),
                "reward": mean(lambda: rng.gammavariate(1.2, 0.5), 8),
                "reward_std": mean(lambda: abs(rng.gauss(0, 0.4)), 8),
                "frac_reward_zero_std": mean(lambda: rng.random() < 0.3, 8),
                "completions/mean_length": mean(lambda: rng.gauss(10, 2.5), 40),
                "completions/clipped_ratio": mean(lambda: rng.random() < 0.05, 40),
                "completions/repetition": mean(lambda: rng.random() ** 8, 40),
                "step": step,
            }
            for step in range(250)
        ]
        assert first_stop(history) is None


def test_a_slow_fall_is_seen_from_the_best_level():
    rising = [0.6 + 0.01 * step for step in range(50)]
    falling = [1.105 - 0.02 * step for step in range(1, 30)]
    history = [{**HEALTHY, "reward": reward, "step": step} for step, reward in enumerate(rising + falling)]
    number, diagnosis = first_stop(history)
    # at the top 1.07, 1.08, 1.09, 1.085, 1.065 with median 1.08; spread 0.3: below 0.78 from 1.105 - 0.02 * 17 on
    assert number == 50 + 17 + 4
    assert "1.080 at its best" in diagnosis


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"patience": -1}, "patience is -1"),
        ({"max_zero_std": 1.5}, "max_zero_std is 1.5, expected 0 to 1"),
        ({"max_clipped": 0.3}, "max_clipped is 0.3, expected 0.5 to 1"),
        ({"max_length_ratio": 0.5}, "max_length_ratio is 0.5"),
        ({"min_length_ratio": 2.0}, "min_length_ratio is 2.0"),
        ({"max_repetition": -0.1}, "max_repetition is -0.1"),
        ({"max_reward_drop": math.nan}, "max_reward_drop is nan"),
    ],
)
def test_impossible_limits(limits, words):
    with pytest.raises(ValueError, match=words):
        CollapseCallback(**limits)


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"frac_reward_zero_std": 0.6}, {"max_zero_std": 0.5}),
        ({"completions/clipped_ratio": 0.6}, {"max_clipped": 0.55}),
        ({"completions/mean_length": 16.0}, {"max_length_ratio": 1.5}),
        ({"completions/mean_length": 7.0}, {"min_length_ratio": 0.8}),
        ({"completions/repetition": 0.2}, {"max_repetition": 0.1}),
        ({"reward": 0.7}, {"max_reward_drop": 0.5}),
    ],
)
def test_limits(changes, limits):
    history = run((20, {}), (8, changes))
    assert first_stop(history) is None
    assert first_stop(history, **limits)[0] == 25


# --- in a Trainer ---------------------------------------------------------------------------------------------------


class Line(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels=None):
        return {"loss": ((self.weight * x - labels) ** 2).mean()}


class Scripted(Trainer):
    """Logs a collapse of length from step 6 on, as a reward trainer would."""

    changes: dict = {}

    def log(self, logs, start_time=None):
        if "loss" in logs:
            length = 10.0 if self.state.global_step < 6 else 30.0
            logs = {**logs, **HEALTHY, "loss": logs["loss"], "completions/mean_length": length, **self.changes}
        super().log(logs, start_time)


@pytest.fixture()
def trainer(tmp_path):
    def make(callback, folder="run", **options):
        usual = {
            "max_steps": 40, "logging_steps": 1, "report_to": "none", "use_cpu": True, "disable_tqdm": True,
            "save_strategy": "steps", "save_steps": 4, "learning_rate": 0.1, "per_device_train_batch_size": 2,
        }  # fmt: skip
        rows = [{"x": torch.tensor([float(row)]), "labels": torch.tensor([1.0])} for row in range(24)]
        args = TrainingArguments(output_dir=str(tmp_path / folder), **{**usual, **options})
        return Scripted(Line(), args, train_dataset=rows, eval_dataset=rows[:2], callbacks=[callback])

    return make


def checkpoints(trainer, tmp_path, folder="run"):
    return sorted(path.name for path in (tmp_path / folder).glob("checkpoint-*"))


class TestTraining:
    def test_stops_and_says_why(self, trainer, tmp_path, caplog):
        callback = CollapseCallback()
        run = trainer(callback)
        with caplog.at_level(logging.ERROR):
            run.train()
        assert run.state.global_step == 10  # the fifth log with long captions
        assert "captions run away in length" in callback.diagnosis
        (record,) = [one for one in caplog.records if one.name.endswith("training.watch.collapse")]
        assert record.getMessage().startswith(f"training stopped at step 10: {callback.diagnosis}")
        run.save_state()
        history = json.loads((tmp_path / "run/trainer_state.json").read_text())["log_history"]
        assert {"collapse": callback.diagnosis, "step": 10} in history

    def test_warns_once_of_captions_without_an_end(self, trainer, tmp_path, caplog):
        """After five logs, and not again when it is resumed; after fifty it would stop."""
        run, resumed = trainer(CollapseCallback()), trainer(CollapseCallback(), folder="resumed")
        for one in (run, resumed):
            one.changes = {"completions/clipped_ratio": 1.0, "completions/mean_length": 10.0}
        with caplog.at_level(logging.WARNING):
            run.train()
            warnings = [one for one in caplog.records if one.name.endswith("training.watch.collapse")]
            resumed.train(resume_from_checkpoint=str(tmp_path / "run/checkpoint-8"))
        (record,) = [one for one in caplog.records if one.name.endswith("training.watch.collapse")]
        assert warnings == [record] and record.levelno == logging.WARNING
        assert "eos_token_id" in record.getMessage() and "max_completion_length" in record.getMessage()
        assert (run.state.global_step, resumed.state.global_step) == (40, 40)

    def test_the_collapsed_step_is_not_saved(self, trainer, tmp_path):
        run = trainer(CollapseCallback(), save_steps=5, save_total_limit=1)
        run.train()
        assert run.state.global_step == 10
        assert checkpoints(run, tmp_path) == ["checkpoint-5"]

    def test_nor_at_the_end_of_the_epoch_that_the_stop_ends(self, trainer, tmp_path):
        run = trainer(CollapseCallback(), save_strategy="epoch", per_device_train_batch_size=6)
        run.train()
        assert run.state.global_step == 10  # in the third epoch of four steps
        assert checkpoints(run, tmp_path) == ["checkpoint-4", "checkpoint-8"]

    @pytest.mark.parametrize("checkpoint", [4, 8])
    def test_resume(self, trainer, tmp_path, checkpoint):
        """A run that is resumed before or within the collapse stops where the straight run does, with its words."""
        straight = CollapseCallback()
        trainer(straight).train()
        resumed = CollapseCallback()
        run = trainer(resumed, folder="resumed")
        run.train(resume_from_checkpoint=str(tmp_path / f"run/checkpoint-{checkpoint}"))
        assert run.state.global_step == 10
        assert resumed.diagnosis == straight.diagnosis

    def test_patience_0_lets_it_run(self, trainer):
        callback = CollapseCallback(patience=0)
        run = trainer(callback)
        run.train()
        assert (run.state.global_step, callback.diagnosis) == (40, None)

    def test_trains_again(self, trainer):
        callback = CollapseCallback()
        run = trainer(callback)
        run.train()
        callback.patience = 0
        run.train()
        assert (run.state.global_step, callback.diagnosis) == (40, None)

    def test_evaluation_in_between(self, trainer):
        run = trainer(CollapseCallback(), eval_strategy="steps", eval_steps=1)
        run.train()
        assert run.state.global_step == 10
