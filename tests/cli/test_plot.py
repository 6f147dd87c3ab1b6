"""`hf-captioners plot`: the path on stdout, names of runs, and mistakes in the arguments."""

import json
import sys

import pytest

from hf_captioners.cli.main import build_parser, main
from hf_captioners.reports import run_plots


@pytest.fixture(autouse=True)
def matplotlib():
    return pytest.importorskip("matplotlib")


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """Makes a run in the working folder."""
    monkeypatch.chdir(tmp_path)

    def make(name, logs=None):
        path = tmp_path / name
        path.mkdir(parents=True)
        logs = [{"loss": 2.0 / step, "eval_cider_d": 0.4, "step": step} for step in (1, 2, 3)] if logs is None else logs
        (path / "trainer_state.json").write_text(json.dumps({"log_history": logs}))
        return name

    return make


@pytest.fixture()
def asked(monkeypatch):
    """Arguments with which the verb asks for a drawing."""
    calls = []
    draw = run_plots.plot_runs

    def spy(runs, path, smooth=None, keys=None):
        calls.append(([run.name for run in runs], smooth, keys))
        return draw(runs, path, smooth=smooth, keys=keys)

    monkeypatch.setattr(run_plots, "plot_runs", spy)
    return calls


def test_one_run(folder, tmp_path, capsys):
    assert main(["plot", folder("run")]) == 0
    assert capsys.readouterr().out == "run/training.png\n"
    assert (tmp_path / "run/training.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "logs",
    [
        [{"step": 1, "reward": 1}, {"step": 2, "reward_std": 0.1}],
        [{"step": 1, "loss": 10**400}, {"step": 2, "loss": 1e308, "grad_norm": -1e308, "reward": 1e308}],
        [{"step": 0, "loss": 1.0, "epoch": 10**400}],
    ],
    ids=["band of other steps", "large values", "a large epoch"],
)
def test_odd_logs(folder, tmp_path, logs, capsys):
    assert main(["plot", folder("run", logs)]) == 0
    assert (tmp_path / "run/training.png").read_bytes().startswith(b"\x89PNG")


def test_a_running_one(folder, tmp_path, capsys):
    folder("run/checkpoint-2")
    assert main(["plot", "run"]) == 0
    assert capsys.readouterr().out == "run/training.png\n"


def test_a_file(folder, tmp_path, capsys):
    folder("run")
    assert main(["plot", "run/trainer_state.json"]) == 0
    assert capsys.readouterr().out == "run/training.png\n"


def test_options(folder, asked, tmp_path, capsys):
    arguments = [
        "plot",
        folder("scst"),
        folder("dico"),
        "--out",
        "new/both.svg",
        "--smooth",
        "3",
        "--keys",
        "loss",
        "eval_*",
    ]
    assert main(arguments) == 0
    assert capsys.readouterr().out == "new/both.svg\n"
    assert asked == [(["scst", "dico"], 3, ["loss", "eval_*"])]
    assert b"<svg" in (tmp_path / "new/both.svg").read_bytes()


@pytest.mark.parametrize(
    ("runs", "names"),
    [
        (["a/x", "b/x"], ["a/x", "b/x"]),
        (["a/x", "b/x", "y"], ["a/x", "b/x", "y"]),
        (["1/a/x", "2/a/x", "3/b/x"], ["1/a/x", "2/a/x", "b/x"]),
        (["a/checkpoint-5", "a/checkpoint-6"], ["a/checkpoint-5", "a/checkpoint-6"]),
    ],
)
def test_runs_of_the_same_name(folder, asked, runs, names):
    assert main(["plot", *map(folder, runs), "--out", "out.png"]) == 0
    assert asked[0][0] == names


def test_the_same_run_twice(folder, asked):
    assert main(["plot", folder("run"), "run", "--out", "out.png"]) == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["missing"], "missing: no such folder or file"),
        (["."], ".: no trainer_state.json"),
        (["good", "missing", "--out", "x.png"], "missing: no such folder or file"),
        (["good", "good"], "several runs go into one file; say which with --out"),
        (["empty"], "empty/trainer_state.json: nothing to draw was logged yet"),
        (["broken.json"], "broken.json: not JSON"),
        (["good", "--out", "x.gif"], "x.gif: a plot is written as one of .png, .svg, .pdf"),
        (["good", "--keys", "rewrad"], "nothing to draw is named 'rewrad'; there are eval_cider_d, loss"),
        (["good", "--out", "broken.json/x.png"], "broken.json"),
    ],
)
def test_mistakes(folder, tmp_path, arguments, words, capsys):
    folder("good")
    folder("empty", [])
    (tmp_path / "broken.json").write_text('{"log_history": [')
    assert main(["plot", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hf-captioners plot: error: ") and words in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.rglob("*.png"))


def test_without_matplotlib(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["plot", folder("run")]) == 2
    assert 'pip install -e ".[plot]"' in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["run", "--smooth", "0"], ["run", "--smooth", "some"], ["run", "--keys"]])
def test_arguments_that_cannot_be_read(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["plot", *arguments])
    assert caught.value.code == 2
    assert "usage: hf-captioners plot" in capsys.readouterr().err
