"""Charts of training runs: what is read, what is drawn of it, and that the same runs give the same file."""

from __future__ import annotations

import itertools
import json
import math
import re
import sys

import numpy as np
import pytest

from hf_captioners.reports.run_plots import plot_runs, read_run

STEPS = range(10, 1010, 10)


def wave(step, level, size):
    return level + size * math.sin(step / 37) + size * math.sin(step * 1.7) / 3


def of_rewards(step):
    return {
        "loss": wave(step, 0.2, 0.1),
        "grad_norm": wave(step, 2.0, 1.0),
        "learning_rate": 5e-6,
        "reward": wave(step, 0.9, 0.1),
        "reward_std": 0.3,
        "frac_reward_zero_std": wave(step, 0.04, 0.03),
        "entropy": wave(step, 1.5, 0.2),
        "kl": step / 1000,
        "completions/mean_length": wave(step, 10, 0.4),
        "completions/min_length": 7.0,
        "completions/max_length": 16.0,
        "completions/clipped_ratio": 0.0,
        "completions/valid_ratio": 1.0,
        "completions/unique_ratio": 1.0,
        "completions/repetition": wave(step, 0.03, 0.01),
        "num_tokens": 100.0 * step,
        "epoch": step / 200,
        "step": step,
    }


def scst(step):
    one = {"rewards/CiderDReward/mean": wave(step, 0.9, 0.1), "rewards/CiderDReward/std": 0.8}
    return {**of_rewards(step), **one, "baseline": wave(step, 1.0, 0.1), "advantage_std": wave(step, 0.3, 0.01)}


def dico(step):
    each = {
        f"rewards/{name}/{part}": 0.5
        for name in ("PacScoreReward", "RepetitionPenaltyReward")
        for part in ("mean", "std")
    }
    pairs = {
        f"{kind}/{side}": wave(step, level, 0.5)
        for kind, level in (("rewards", 0.5), ("logps", -20.0))
        for side in ("chosen", "rejected")
    }
    rest = {"rewards/margins": 0.4, "rewards/accuracies": 0.7, "reward_gap": 0.02, "gamma_max": 0.6}
    return {**of_rewards(step), **each, **pairs, **rest}


def xe(step):
    return {"loss": 5 / step, "grad_norm": 1.0, "learning_rate": 1e-3 / step, "epoch": step / 200, "step": step}


def evaluation(step):
    scores = {"loss": 2.5, "bleu_1": 0.6, "bleu_2": 0.4, "bleu_3": 0.3, "bleu_4": 0.2, "rouge_l": 0.4, "cider_d": 0.5}
    times = {"runtime": 3.0, "samples_per_second": 40.0, "steps_per_second": 2.0, "model_preparation_time": 0.1}
    named = {f"eval_{name}": value for name, value in {**scores, **times, "caption_words": 9.5}.items()}
    return {**named, "epoch": step / 200, "step": step}


END = {"train_loss": 1.0, "train_runtime": 3.0, "train_samples_per_second": 2.0, "total_flos": 0.0, "step": 1000}


def history(*kinds):
    """The logs of a run, with evaluations every 200 steps."""
    logs = []
    for step in STEPS:
        logs.append({name: value for kind in kinds for name, value in kind(step).items()})
        if step % 200 == 0:
            logs.append(evaluation(step))
    return [*logs, END]


def write(folder, logs):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": logs, "global_step": 1000}))
    return folder


@pytest.fixture()
def run(tmp_path):
    return lambda logs, name="run": read_run(write(tmp_path / name, logs))


@pytest.fixture()
def drawn(tmp_path, monkeypatch):
    """Draw runs, and give the titles and the charts by title."""
    figure_class = pytest.importorskip("matplotlib.figure").Figure
    seen = []

    def spy(self, path, **options):  # rendering takes most of the time
        seen.append(self)
        path.write_bytes(b"")

    monkeypatch.setattr(figure_class, "savefig", spy)

    def draw(runs, **options):
        titles = plot_runs(runs, tmp_path / "out.png", **options)
        return dict(zip(titles, seen[-1].axes, strict=True))

    return draw


def texts(artist):
    """Texts on an axes or a figure."""
    from matplotlib.text import Text

    found = [one.get_text() for one in artist.findobj(Text) if one.get_visible() and one.get_text().strip()]
    return "\n".join(found)


def lines(axes):
    """The lines with points of a chart: x, y and colour; the mean lines, without the pale logs."""
    found = [
        line for line in axes.lines if len(line.get_xdata()) and line.get_alpha() is None and line.get_marker() == "o"
    ]
    return [(list(line.get_xdata()), np.array(line.get_ydata(), float), line.get_color()) for line in found]


class TestRead:
    def test_values(self, run):
        one = run(history(scst))
        steps, values = one.values["reward"]
        assert steps.tolist() == list(STEPS)
        assert values.tolist() == [wave(step, 0.9, 0.1) for step in STEPS]
        assert one.values["eval_cider_d"][0].tolist() == [200, 400, 600, 800, 1000]
        assert (one.name, one.last_step, one.epochs, one.stop) == ("run", 1000, 5.0, None)

    def test_what_is_no_metric_is_left_out(self, run):
        metrics = {name for name in evaluation(1) if not name.endswith(("_second", "time", "epoch", "step"))}
        assert set(run(history(xe)).values) == metrics | {"loss", "grad_norm", "learning_rate"}

    def test_of_two_logs_of_a_step_the_later_one_counts(self, run):
        one = run([{"loss": 3.0, "step": 20}, {"loss": 1.0, "step": 10}, {"loss": 2.0, "step": 20, "note": "text"}])
        assert [part.tolist() for part in one.values["loss"]] == [[10, 20], [1.0, 2.0]]
        assert list(one.values) == ["loss"]

    def test_newest_checkpoint(self, tmp_path):
        for step in (9, 100, 20):
            write(tmp_path / f"run/checkpoint-{step}", [{"loss": 1.0, "step": step}])
        for name in ("checkpoint-300", "checkpoint-400x", "other-500"):  # one that is just being written, and others
            (tmp_path / "run" / name).mkdir()
        one = read_run(tmp_path / "run")
        assert (one.name, one.last_step, one.folder) == ("run", 100, tmp_path / "run")
        write(tmp_path / "run", [{"loss": 1.0, "step": 7}])
        assert read_run(tmp_path / "run").last_step == 7

    def test_checkpoint_and_file(self, tmp_path):
        folder = write(tmp_path / "run/checkpoint-5", [{"loss": 1.0, "step": 5}])
        for path in (folder, folder / "trainer_state.json", str(folder)):
            assert read_run(path).name == "run/checkpoint-5"

    def test_the_folder_that_one_is_in(self, tmp_path, monkeypatch):
        monkeypatch.chdir(write(tmp_path / "here", [{"loss": 1.0, "step": 5}]))
        assert read_run(".").name == "here"

    def test_stop(self, run):
        assert run([{"loss": 1.0, "step": 5}, {"collapse": "why", "step": 5}]).stop == (5, "why")

    @pytest.mark.parametrize("name", ["missing", "empty"])
    def test_no_log(self, tmp_path, name):
        (tmp_path / "empty").mkdir()
        with pytest.raises(FileNotFoundError, match=f"{name}: no "):
            read_run(tmp_path / name)

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            ("{", "not JSON"),
            ("[" * 100_000, "not JSON"),
            ("\ufeff\x00", "not JSON"),
            ("[]", "no list `log_history`"),
            ('{"log_history": {}}', "no list `log_history`"),
            ('{"log_history": [{"loss": 1.0}]}', r"log_history\[0\] has no whole number `step`"),
            ('{"log_history": [{"loss": 1.0, "step": 1}, 3]}', r"log_history\[1\] has no whole number `step`"),
            ('{"log_history": [{"loss": 1.0, "step": true}]}', "no whole number `step` from 0 on"),
            ('{"log_history": [{"loss": 1.0, "step": -1}]}', "no whole number `step` from 0 on"),
            ('{"log_history": [{"loss": 1.0, "step": 1' + "0" * 400 + "}]}", "no whole number `step` from 0 on"),
            ('{"log_history": [{"loss": true, "step": 1}]}', "nothing to draw was logged yet"),
            ('{"log_history": [{"collapse": 5, "step": 1}]}', "nothing to draw was logged yet"),
            ('{"log_history": []}', "nothing to draw was logged yet"),
            ('{"log_history": [{"train_loss": 1.0, "epoch": 1.0, "step": 1}]}', "nothing to draw was logged yet"),
        ],
    )
    def test_no_log_of_a_trainer(self, tmp_path, content, words):
        path = tmp_path / "trainer_state.json"
        path.write_text(content, "utf-8")
        with pytest.raises(ValueError, match=words) as caught:
            read_run(path)
        assert str(path) in str(caught.value)


class TestCharts:
    def test_of_self_critical_training(self, run, drawn):
        assert list(drawn([run(history(scst))])) == [
            "Loss", "Reward", "Pictures without a signal", "Candidates that take part", "Caption length",
            "Captions without an end", "Repetition", "Distinct candidates",
            "Distance from the start", "Entropy", "Advantages", "CIDEr-D", "BLEU-1 to 4",
            "Words per caption", "ROUGE-L", "Gradient norm", "Learning rate",
        ]  # fmt: skip

    def test_of_dico(self, run, drawn):
        titles = list(drawn([run(history(dico))]))
        assert titles[1:4] == ["Reward", "PacScoreReward", "RepetitionPenaltyReward"]
        assert titles[11:18] == [
            "Entropy", "Preference", "Margin", "Implicit reward", "Log-probability", "Reward gap", "Largest weight"
        ]  # fmt: skip

    def test_of_cross_entropy(self, run, drawn):
        charts = drawn([run(history(xe))])
        assert list(charts) == [
            "Loss", "CIDEr-D", "BLEU-1 to 4", "Words per caption", "ROUGE-L", "Gradient norm", "Learning rate",
        ]  # fmt: skip
        assert [len(lines(axes)) for axes in charts.values()] == [2, 1, 4, 1, 1, 1, 1]

    def test_values_without_a_place_of_their_own(self, run, drawn):
        logs = [
            {"loss": 1.0, "my/own_metric": step, "eval_odd": 2.0, "eval_kl": 0.5, "kl": 1.0, "step": step}
            for step in (1, 2)
        ]
        charts = drawn([run(logs)])
        assert list(charts) == ["Loss", "Distance from the start", "odd", "my/own metric"]
        assert "evaluation" in texts(charts["odd"])
        assert len(lines(charts["Distance from the start"])) == 2

    def test_lines_of_evaluation_in_reward_training(self, run, drawn):
        names = [name for name in dico(1) if name not in ("epoch", "step", "num_tokens", "learning_rate", "grad_norm")]
        logs = history(dico)
        titles = list(drawn([run(logs)]))
        logs += [{f"eval_{name}": 0.5 for name in names} | {"step": 1000}]
        charts = drawn([run(logs)])
        assert list(charts) == titles
        assert len(lines(charts["Log-probability"])) == 4
        assert len(lines(charts["Entropy"])) == 2
        assert re.search(r"^training 1\.\d+\nevaluation 0\.5$", texts(charts["Entropy"]), re.MULTILINE)

    def test_the_only_reward_is_the_reward(self, run, drawn):
        logs = [{"reward": 1.0, "rewards/a/mean": 1.0, "rewards/a/std": 0.1, "step": 1}]
        assert list(drawn([run(logs)])) == ["Reward"]
        assert list(drawn([run([{**logs[0], "rewards/b/mean": 2.0}])])) == ["Reward", "a", "b"]

    def test_several_runs(self, run, drawn):
        runs = [run(history(scst), "scst"), run(history(dico), "dico")]
        charts = drawn(runs)
        assert set(charts) == set(drawn(runs[:1])) | set(drawn(runs[1:])) | {"CiderDReward"}
        loss = lines(charts["Loss"])
        colors = {color for _, _, color in loss}
        assert len(loss) == 4 and len(colors) == 2  # training and evaluation, a colour per run
        assert {color for _, _, color in lines(charts["Advantages"])} == {loss[0][2]}
        heading = texts(charts["Loss"].figure)
        assert "scst\n1,000 steps, 5 epochs\ndico\n1,000 steps, 5 epochs" in heading


class TestLines:
    @pytest.mark.parametrize("smooth", [None, 1, 2, 4, 7, 1000])
    def test_are_means_over_neighbours(self, run, drawn, smooth):
        (steps, mean, _), _ = lines(drawn([run(history(scst))], smooth=smooth)["Loss"])
        values = [wave(step, 0.2, 0.1) for step in STEPS]
        window = 4 if smooth is None else min(smooth, 100)  # 100 logs, a 25th of which are 4
        expected = []
        for index in range(100):
            first = index - window // 2
            near = [values[at] for at in range(first, first + window) if 0 <= at < 100]
            expected.append(sum(near) / len(near))
        assert steps == list(STEPS)
        np.testing.assert_allclose(mean, expected, rtol=1e-12)

    def test_the_last_mean_is_written(self, run, drawn):
        axes = drawn([run(history(scst))])["Caption length"]
        (_, mean, _) = lines(axes)[0]
        assert f"{mean[-1]:.3g}" in texts(axes).splitlines()

    def test_evaluations_and_the_learning_rate_are_not_averaged(self, run, drawn):
        logs = [
            {"loss": float(step), "eval_loss": float(step % 3), "learning_rate": step % 5 / 10, "step": step}
            for step in range(1, 101)
        ]
        charts = drawn([run(logs)])
        assert lines(charts["Loss"])[1][1].tolist() == [step % 3 for step in range(1, 101)]
        assert lines(charts["Learning rate"])[0][1].tolist() == [step % 5 / 10 for step in range(1, 101)]

    def test_bands(self, run, drawn):
        charts = drawn([run(history(scst))], smooth=1)
        edges = charts["Reward"].collections[0].get_paths()[0].get_extents()
        rewards = [wave(step, 0.9, 0.1) for step in STEPS]
        assert (edges.y0, edges.y1) == pytest.approx((min(rewards) - 0.3, max(rewards) + 0.3))
        edges = charts["Caption length"].collections[0].get_paths()[0].get_extents()
        assert (edges.y0, edges.y1) == (7.0, 16.0)
        assert "band: shortest to longest" in texts(charts["Caption length"])

    def test_a_band_without_its_ends_is_not_spoken_of(self, run, drawn):
        axes = drawn([run([{"completions/mean_length": 9.0, "step": 1}])])["Caption length"]
        assert len(axes.collections) == 0
        assert "band" not in texts(axes)

    def test_values_that_are_not_finite(self, run, drawn):
        logs = [{"kl": float(step), "step": step} for step in range(1, 60)]
        for step, value in ((10, math.nan), (11, math.inf), (13, -math.inf)):
            logs[step - 1]["kl"] = value
        axes = drawn([run(logs)], smooth=3)["Distance from the start"]
        assert "× 3 not finite" in texts(axes)
        ((_, mean, _),) = lines(axes)
        assert np.flatnonzero(np.isnan(mean)).tolist() == [9, 10, 12]
        assert (mean[8], mean[11], mean[13]) == (8.5, 12.0, 14.5)  # of 8 and 9; of 12 alone; of 14 and 15
        marks = [line for line in axes.lines if line.get_marker() == "x"]
        assert marks[0].get_xdata().tolist() == [10, 11, 13]

    def test_a_band_of_other_steps_than_its_mean(self, run, drawn):
        axes = drawn([run([{"step": 1, "reward": 1.0}, {"step": 2, "reward_std": 0.1}])])["Reward"]
        assert len(axes.collections) == 0
        assert "band" not in texts(axes)

    def test_a_band_where_both_were_logged(self, run, drawn):
        logs = [
            {"step": 1, "reward": 9.0},
            {"step": 2, "reward_std": 7.0},
            {"step": 3, "reward": 1.0, "reward_std": 0.5},
        ]
        edges = drawn([run(logs)])["Reward"].collections[0].get_paths()[0].get_extents()
        assert (edges.x0, edges.x1, edges.y0, edges.y1) == (3.0, 3.0, 0.5, 1.5)

    @pytest.mark.parametrize("value", [10**400, -(10**400), 1e308, -1e308])
    def test_values_too_large_to_draw(self, run, drawn, value):
        one = run([{"loss": 1.0, "step": 1}, {"loss": value, "step": 2}])
        assert np.isnan(one.values["loss"][1]).tolist() == [False, True]
        assert "× 1 not finite" in texts(drawn([one])["Loss"])

    @pytest.mark.parametrize("value", [1e100, 1e38])
    def test_large_values_are_drawn(self, run, tmp_path, value):
        pytest.importorskip("matplotlib")
        logs = [{"loss": (-1) ** step * value, "step": step} for step in range(40)]
        assert plot_runs([run(logs)], tmp_path / "out.png", smooth=7) == ["Loss"]

    def test_nothing_finite(self, run, drawn):
        axes = drawn([run([{"kl": math.nan, "grad_norm": math.nan, "step": step} for step in (1, 2)])])
        assert all("× 2 not finite" in texts(one) for one in axes.values())

    def test_one_point(self, run, drawn):
        axes = drawn([run([{"loss": 0.5, "step": 1}])])["Loss"]
        assert lines(axes)[0][:2] == ([1], [0.5])
        (line,) = (line for line in axes.lines if line.get_marker() == "o")
        assert line.get_markevery() == [True]

    def test_a_gradient_that_explodes_has_a_logarithmic_axis(self, run, drawn):
        def scale(norms):
            logs = [{"grad_norm": norm, "step": step} for step, norm in enumerate(norms, start=1)]
            return drawn([run(logs)])["Gradient norm"].get_yscale()

        assert scale([1.0, 2.0, 500.0]) == "log"
        assert scale([1.0, 2.0, 50.0]) == "linear"
        assert scale([0.0, 2.0, 500.0]) == "linear"

    def test_where_a_collapse_stopped_the_run(self, run, drawn):
        logs = [*history(scst), {"collapse": "captions shrink: 3.0. Try", "step": 640}]
        charts = drawn([run(logs)])
        assert "stopped at step 640: captions shrink" in texts(charts["Loss"].figure)
        for axes in charts.values():
            assert [640, 640] in [list(line.get_xdata()) for line in axes.lines]


class TestKeys:
    def test_only_these(self, run, drawn):
        charts = drawn([run(history(scst))], keys=["eval_bleu_[34]", "kl", "reward"])
        assert list(charts) == ["Reward", "Distance from the start", "BLEU-1 to 4"]
        assert [len(lines(axes)) for axes in charts.values()] == [1, 1, 2]

    def test_one_that_is_otherwise_only_a_band_or_the_same_as_another(self, run, drawn):
        charts = drawn([run(history(scst))], keys=["reward_std", "rewards/CiderDReward/mean"])
        assert list(charts) == ["reward_std", "rewards/CiderDReward/mean"]

    @pytest.mark.parametrize("key", ["rewrad", "num_tokens", "rewards/*/nothing"])
    def test_one_that_is_not_there(self, run, key, tmp_path):
        pytest.importorskip("matplotlib")
        with pytest.raises(ValueError, match=r"nothing to draw is named .*; there are .*kl, .*reward"):
            plot_runs([run(history(scst))], tmp_path / "out.png", keys=["kl", key])
        assert not (tmp_path / "out.png").exists()


RUNS = {
    "dico": [history(dico)],
    "xe": [history(xe)],
    "four": [history(scst), history(dico), history(xe), history(scst)],
    "one point": [[{**scst(1), "loss": -0.0189}]],
    "large and small": [
        [{"loss": -123456.0 * step, "kl": 1e-9 * step, "entropy": 1e9, "step": 10**6 * step} for step in (1, 2)]
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_no_two_texts_overlap(name, run, drawn):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    charts = drawn([run(logs, f"a_rather_long_name_of_run_{index}") for index, logs in enumerate(RUNS[name])])
    figure = next(iter(charts.values())).figure
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    texts = {id(one): one for one in figure.findobj(Text) if one.get_visible() and one.get_text().strip()}
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            for tick in axis.get_major_ticks():
                if not low <= tick.get_loc() <= high:  # matplotlib has a few in reserve, and does not draw them
                    texts.pop(id(tick.label1), None)
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts.values()]
    assert len(boxes) > 5 * len(charts)
    page = figure.bbox
    for said, box in boxes:
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1, said
    for (one, first), (other, second) in itertools.combinations(boxes, 2):
        across = min(first.x1, second.x1) - max(first.x0, second.x0)
        down = min(first.y1, second.y1) - max(first.y0, second.y0)
        assert min(across, down) < 1.0, (one, other)


class TestFile:
    @pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".PDF", b"%PDF")])
    def test_the_same_every_time(self, run, tmp_path, suffix, start, monkeypatch):
        matplotlib = pytest.importorskip("matplotlib")
        one = run([*history(scst), {"collapse": "captions shrink: 3.0. Try", "step": 640}])
        first, second = tmp_path / f"a{suffix}", tmp_path / f"new/b{suffix}"
        plot_runs([one], first, keys=["reward", "eval_*"])
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
        with matplotlib.rc_context({"lines.linewidth": 9, "text.usetex": True, "savefig.dpi": 30}):
            plot_runs([one], second, keys=["reward", "eval_*"])
            assert matplotlib.rcParams["lines.linewidth"] == 9
        assert first.read_bytes().startswith(start)
        assert first.read_bytes() == second.read_bytes()
        assert [path.name for path in second.parent.iterdir()] == [second.name]

    @pytest.mark.parametrize("name", ["out.jpg", "out", "png"])
    def test_other_suffixes(self, run, tmp_path, name):
        with pytest.raises(ValueError, match=r"is written as one of \.png, \.svg, \.pdf"):
            plot_runs([run(history(xe))], tmp_path / name)

    def test_no_runs(self, tmp_path):
        with pytest.raises(ValueError, match="runs is empty"):
            plot_runs([], tmp_path / "out.png")

    def test_smooth_below_1(self, run, tmp_path):
        with pytest.raises(ValueError, match="smooth is 0"):
            plot_runs([run(history(xe))], tmp_path / "out.png", smooth=0)

    def test_without_matplotlib(self, run, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r'pip install -e "\.\[plot\]"'):
            plot_runs([run(history(xe))], tmp_path / "out.png")

    def test_names_are_no_formulas(self, run, tmp_path):
        pytest.importorskip("matplotlib")
        logs = [{"rewards/a_$x$_b/mean": 2.0, "loss": 1.0, "$\\frac{1$": 1.0, "step": 1}]
        assert plot_runs([run(logs, "run $\\alpha")], tmp_path / "out.svg") == ["Loss", "a_$x$_b", "$\\frac{1$"]
