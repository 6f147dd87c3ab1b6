"""Charts of training runs: what a Trainer logged over the optimizer steps, several runs laid over each other.

A chart holds values that are read together, such as a mean and its spread; every logged value is in one chart. Lines
are means over neighbouring logs, with the single logs pale behind them; logs that are not finite, or beyond 1e100, are
red crosses below. The same runs give the same bytes. matplotlib (the extra `plot`) draws.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..data.files import write_whole
from ..extras import explained
from .score_report_page import label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")

_STATE, _CHECKPOINT = "trainer_state.json", re.compile(r"checkpoint-([0-9]+)")
_NOT_DRAWN = re.compile("step|epoch|collapse|total_flos|train_loss|.*num_(input_)?tokens.*|.*((run|_)time|_per_second)")
_EVAL, _LARGEST = "eval_", 1e100  # far beyond float32, and far below where axes and sums overflow

_INK, _GREY, _LINE, _GRID, _MARK = "#1a1c21", "#5c5f66", "#b9b9b4", "#e6e6e2", "#b3391f"
_COLORS = ("#2f6fb0", "#d0692c", "#3a8f6f", "#8a5aa8", "#a8842c", "#4d5560", "#c2568b", "#4aa3c0")
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (6, 1.2, 1, 1.2)))
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 4.3, 2.8, 0.65, 0.2, 0.65, 0.5  # of a chart and its margins, inches
_MAX_COLUMNS, _DPI, _TICKS = 4, 150, (1, 2, 2.5, 5, 10)
_FEW = 25  # points that are drawn one by one; a line of n times as many is a mean over n logs
_FITS = 46  # letters above a chart

Points: TypeAlias = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class RunLog:
    """The logs of a training run.

    Args:
        name (`str`): its name in the legend.
        folder (`Path`): the folder that was read.
        values (`dict[str, tuple[np.ndarray, np.ndarray]]`): each logged quantity, as steps (rising, each once) and
            values, both of shape (number of logs,); NaN for what is not finite, or beyond 1e100.
        epochs (`float`): passes over its data.
        stop (`tuple[int, str]`, *optional*): the step at which a collapse stopped it, and the diagnosis.
    """

    name: str
    folder: Path
    values: dict[str, Points]
    epochs: float = 0.0
    stop: tuple[int, str] | None = None

    @property
    def last_step(self) -> int:
        """The last step with a log."""
        return max(int(steps[-1]) for steps, _ in self.values.values())


def read_run(path: str | Path) -> RunLog:
    """Read the logs of a run.

    Args:
        path (`str` or `Path`): the `output_dir` of a Trainer, with a `trainer_state.json` or, while it trains,
            checkpoints, of which the newest is read; or a checkpoint; or a `trainer_state.json`.

    Returns:
        [`RunLog`]

    Raises:
        FileNotFoundError: there is no such folder, or no log in it.
        ValueError: the file is no log of a Trainer, or holds nothing to draw.
    """
    file = _state_file(Path(path))
    try:
        state = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise ValueError(f"{file}: has no list `log_history`, so no Trainer wrote it")
    logs: dict[str, dict[int, float]] = {}  # name -> step -> value
    epochs, stop = 0.0, None
    for index, entry in enumerate(history):
        step = entry.get("step") if isinstance(entry, dict) else None
        if type(step) is not int or not 0 <= step < 2**53:  # a bool is no step
            raise ValueError(f"{file}: log_history[{index}] has no whole number `step` from 0 on")
        numeric = {name: value for name, value in entry.items() if type(value) in (int, float)}  # a bool is no number
        numbers = {name: math.nan if abs(value) > _LARGEST else float(value) for name, value in numeric.items()}
        epochs = max(epochs, numbers.get("epoch", 0.0))
        for name in numbers:
            if not _NOT_DRAWN.fullmatch(name):
                logs.setdefault(name, {})[step] = numbers[name]  # of two logs of a step the later one counts
        if isinstance(entry.get("collapse"), str):
            stop = step, entry["collapse"]
    if not logs:
        raise ValueError(f"{file}: nothing to draw was logged yet; `logging_steps` says how often that is")
    values = {key: (np.array(sorted(log)), np.array([log[step] for step in sorted(log)])) for key, log in logs.items()}
    folder = Path(path) if Path(path).is_dir() else file.parent
    names = folder.resolve().parts[-2:]
    return RunLog("/".join(names) if _CHECKPOINT.fullmatch(names[-1]) else names[-1], folder, values, epochs, stop)


def _state_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder or file")
    numbered = [(int(match[1]), folder) for folder in path.iterdir() if (match := _CHECKPOINT.fullmatch(folder.name))]
    for folder in (path, *(checkpoint for _, checkpoint in sorted(numbered, reverse=True))):
        if (folder / _STATE).is_file():
            return folder / _STATE
    raise FileNotFoundError(f"{path}: no {_STATE}, neither there nor in a checkpoint-N below")


@dataclass(frozen=True)
class _Chart:
    title: str
    note: str  # the unit, and the meaning of a band
    lines: dict[str, str]  # logged name -> the label of its line where there is more than one
    spread: str = ""  # logged name of a deviation to both sides of the first line
    reach: tuple[str, ...] = ()  # logged names of the lower and the upper end of a band
    share: bool = False  # percents of a whole


_MEAN, _BAND = "completions/mean_length", ("completions/min_length", "completions/max_length")
_FIRST = (
    _Chart("Loss", "training objective", {"loss": "training"}),
    _Chart("Reward", "mean; band: spread of candidates", {"reward": "reward", "baseline": "baseline"}, "reward_std"),
)
_NEXT = (
    _Chart("Pictures without a signal", "all candidates get the same reward", {"frac_reward_zero_std": ""}, share=True),
    _Chart("Candidates that take part", "have a reward, not left out", {"completions/valid_ratio": ""}, share=True),
    _Chart("Caption length", "tokens; band: shortest to longest", {_MEAN: "training"}, reach=_BAND),
    _Chart("Captions without an end", "cut off at the length limit", {"completions/clipped_ratio": ""}, share=True),
    _Chart("Repetition", "word pairs said before in the caption", {"completions/repetition": ""}, share=True),
    _Chart("Distinct candidates", "different texts for a picture", {"completions/unique_ratio": ""}, share=True),
    _Chart("Distance from the start", "log-ratio to the reference, nats per caption", {"kl": ""}),
    _Chart("Entropy", "of the next word, nats", {"entropy": ""}),
    _Chart("Preference", "chosen captions preferred to the others", {"rewards/accuracies": ""}, share=True),
    _Chart("Margin", "implicit reward, chosen less rejected", {"rewards/margins": ""}),
    _Chart("Implicit reward", "β × log-ratio", {"rewards/chosen": "chosen", "rewards/rejected": "rejected"}),
    _Chart("Log-probability", "of a caption, nats", {"logps/chosen": "chosen", "logps/rejected": "rejected"}),
    _Chart("Reward gap", "best candidate less the others", {"reward_gap": ""}),
    _Chart("Largest weight", "of a rejected candidate", {"gamma_max": ""}, share=True),
    _Chart("Advantages", "standard deviation", {"advantage_std": ""}),
    _Chart("CIDEr-D", "evaluation, scale of 0 to 10", {"eval_cider_d": ""}),
    _Chart("BLEU-1 to 4", "evaluation, scale of 0 to 1", {f"eval_bleu_{n}": f"{n}" for n in (1, 2, 3, 4)}),
    _Chart("Words per caption", "evaluation", {"eval_caption_words": ""}),
)
_LAST = (
    _Chart("Gradient norm", "before clipping", {"grad_norm": ""}),
    _Chart("Learning rate", "of the optimizer", {"learning_rate": ""}),
)


def _charts(keys: set[str]) -> Iterator[_Chart]:
    """The charts of logged values, so that each logged value is in one of them."""
    means = sorted(key for key in keys if re.fullmatch("rewards/.+/mean", key))
    rewards = [_Chart(mean[8:-5], "mean; band: deviation", {mean: "reward"}, f"{mean[:-4]}std") for mean in means]
    if len(rewards) == 1 and "reward" in keys:  # the only reward is the total reward
        keys = keys - {means[0], rewards[0].spread, f"{_EVAL}{means[0]}", f"{_EVAL}{rewards[0].spread}"}
    known_charts = [*_FIRST, *rewards, *_NEXT, *_LAST]
    charted = {key for chart in known_charts for key in (*chart.lines, chart.spread, *chart.reach)}
    uncharted = sorted(key for key in keys if key not in charted and key.removeprefix(_EVAL) not in charted)
    notes = {True: "evaluation", False: "as logged"}
    extra = [_Chart(label(key.removeprefix(_EVAL)), notes[key.startswith(_EVAL)], {key: ""}) for key in uncharted]
    for chart in (*known_charts[: -len(_LAST)], *extra, *_LAST):
        trained = {key: name or "training" for key, name in chart.lines.items() if key in keys}
        evaluated = {f"{_EVAL}{key}": name for key, name in chart.lines.items() if f"{_EVAL}{key}" in keys}
        is_single = len(evaluated) == 1
        lines = {**trained, **{key: "evaluation" if is_single else f"eval. {name}" for key, name in evaluated.items()}}
        if lines:
            yield replace(chart, lines=lines)


def _matching(charts: Sequence[_Chart], patterns: Sequence[str], logged: set[str]) -> list[_Chart]:
    """The charts with lines whose names match, reduced to those lines."""
    names = {key for chart in charts for key in chart.lines}
    charts = [*charts, *(_Chart(key, "as logged", {key: ""}) for key in patterns if key in logged - names)]
    for pattern in patterns:
        if pattern not in logged and not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(f"nothing to draw is named {pattern!r}; there are {', '.join(sorted(names))}")
    selected = {name for name in names | logged if any(fnmatchcase(name, pattern) for pattern in patterns)}
    fewer = [{key: name for key, name in chart.lines.items() if key in selected} for chart in charts]
    return [replace(chart, lines=lines) for chart, lines in zip(charts, fewer, strict=True) if lines]


def plot_runs(
    runs: Sequence[RunLog], path: str | Path, smooth: int | None = None, keys: Sequence[str] | None = None
) -> list[str]:
    """Draw runs into a file.

    Args:
        runs (`Sequence[RunLog]`): one, or several to lay over each other.
        path (`str` or `Path`): a `.png`, `.svg` or `.pdf`; folders above it are made, and the file appears whole or not
            at all.
        smooth (`int`, *optional*): logs in the mean that a line shows; 1 for the logs themselves. By default one for
            every 25 logs of the line. Evaluations are shown as they are.
        keys (`Sequence[str]`, *optional*): only logged values of these names, such as `"reward"` or `"eval_*"`.

    Returns:
        `list[str]`: the titles of the charts.

    Raises:
        ValueError: no runs, another suffix, `smooth` below 1, or a name that no run has logged.
        ImportError: matplotlib is not installed.

    Example:

    ```python
    >>> from hf_captioners.reports.run_plots import plot_runs, read_run
    >>> plot_runs([read_run("scst"), read_run("dico")], "scst_dico.png", keys=["reward"])  # doctest: +SKIP
    ['Reward']

    ```
    """
    path = Path(path)
    if not runs:
        raise ValueError("runs is empty; there is nothing to draw")
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{path}: a plot is written as one of {', '.join(SUFFIXES)}")
    if smooth is not None and smooth < 1:
        raise ValueError(f"smooth is {smooth}; it counts logs, and 1 leaves them as they are")
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError(f"matplotlib draws the plots: {explained(error)}") from error

    logged = {key for run in runs for key in run.values}
    all_charts = list(_charts(logged))
    charts = all_charts if keys is None else _matching(all_charts, keys, logged)
    form = path.suffix.lower().removeprefix(".")
    undated: Any = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(form)
    with matplotlib.rc_context():  # independent of the user's settings and reproducible; names are no formulas
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": "hf_captioners", "text.parse_math": False, "font.size": 8.5})
        figure = _figure(runs, charts, smooth)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda temporary: figure.savefig(temporary, format=form, dpi=_DPI, metadata=undated))
    return [chart.title for chart in charts]


@dataclass(frozen=True)
class _Words:
    """A piece of text, with a line of that colour in front of it if `dashes` are given."""

    text: str
    color: str = _GREY
    size: float = 8.5
    weight: str = "normal"
    dashes: Any = None


def _figure(runs: Sequence[RunLog], charts: Sequence[_Chart], smooth: int | None) -> Figure:
    from matplotlib.figure import Figure  # without pyplot there is no display and no state

    columns, heading = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(charts)))), 0.2 + 0.24 * len(runs)
    width, height = columns * _WIDTH, math.ceil(len(charts) / columns) * _HEIGHT + heading
    figure = Figure(figsize=(width, height))
    heads = [_about(run, _COLORS[index % len(_COLORS)] if len(runs) > 1 else None) for index, run in enumerate(runs)]
    figure.add_artist(_text(heads, "upper left", (0.15 / width, 1 - 0.12 / height), figure.transFigure))
    for index, chart in enumerate(charts):
        left, bottom = index % columns * _WIDTH + _LEFT, height - heading - (index // columns + 1) * _HEIGHT + _BOTTOM
        inner = (_WIDTH - _LEFT - _RIGHT) / width, (_HEIGHT - _TOP - _BOTTOM) / height
        axes = figure.add_axes((left / width, bottom / height, *inner))
        _draw(axes, chart, runs, smooth)
        axes.set_xlim(0, 1.02 * max(1, *(run.last_step for run in runs)))
        if index + columns >= len(charts):
            axes.set_xlabel("optimizer steps", color=_GREY)
    return figure


def _about(run: RunLog, color: str | None) -> list[_Words]:
    """A line of the heading; with several runs it is their legend."""
    about = f"{run.last_step:,} steps" + (f", {run.epochs:.3g} epochs" if run.epochs else "")
    words = [_Words(run.name, color or _INK, 11, "bold", None if color is None else "-"), _Words(about, size=9)]
    if run.stop is not None:
        words.append(_Words(f"stopped at step {run.stop[0]:,}: {run.stop[1].split(':')[0]}", _MARK, 9))
    return words


def _text(lines: Iterable[Sequence[_Words]], side: str, corner: tuple[float, float], transform: Any) -> Any:
    """Lines of words in several colours as one artist."""
    from matplotlib.lines import Line2D
    from matplotlib.offsetbox import AnchoredOffsetbox, DrawingArea, HPacker, TextArea, VPacker

    rows: list[Any] = []
    for line in lines:
        pieces: list[Any] = []
        for word in line:
            if word.dashes is not None:
                pieces.append(DrawingArea(18, 6))
                pieces[-1].add_artist(Line2D([0, 18], [3, 3], color=word.color, linestyle=word.dashes, linewidth=1.6))
            style = {"color": word.color, "size": word.size, "weight": word.weight}
            pieces.append(TextArea(word.text, textprops=style))
        rows.append(HPacker(children=pieces, align="center", pad=0, sep=5))
    box = VPacker(children=rows, align="left", pad=0, sep=2.5)
    place = {"bbox_to_anchor": corner, "bbox_transform": transform, "pad": 0, "borderpad": 0.25, "frameon": False}
    return AnchoredOffsetbox(side, child=box, **place)


def _draw(axes: Axes, chart: _Chart, runs: Sequence[RunLog], smooth: int | None) -> None:
    many_runs, banded, ends, lost = len(runs) > 1, False, [], 0
    for row, run in enumerate(runs):
        for index, (key, name) in enumerate(chart.lines.items()):
            if key not in run.values:
                continue
            color, evaluated = _COLORS[(row if many_runs else index) % len(_COLORS)], key.startswith(_EVAL)
            window = 1 if evaluated or key == "learning_rate" else smooth or max(1, len(run.values[key][0]) // _FEW)
            if not evaluated and key == next(iter(chart.lines)) and len(runs) < 3:
                banded |= _draw_band(axes, chart, run, key, color, window)
            end = _draw_line(axes, run.values[key], color, _DASHES[index % 4] if many_runs else "-", window, evaluated)
            text = f"{name if len(chart.lines) > 1 else ''} {_number(end, chart.share, 3)}"
            ends.append(_Words(text.strip(), color, weight="bold"))
            lost += int((~np.isfinite(run.values[key][1])).sum())
        if run.stop is not None:
            color = _COLORS[row % len(_COLORS)] if many_runs else _MARK
            axes.axvline(run.stop[0], color=color, linewidth=1, linestyle=(0, (2, 2)))
    if many_runs and len(chart.lines) > 1:
        ends = [_Words(name, dashes=_DASHES[index % 4]) for index, name in enumerate(chart.lines.values())]
    elif sum(len(end.text) + 2 for end in ends) > _FITS:
        ends = [] if many_runs else [replace(end, text=end.text.rsplit(" ", 1)[0]) for end in ends]
    if lost:
        ends.append(_Words(f"× {lost} not finite", _MARK))
    _dress(axes, chart)
    note = chart.note if banded else chart.note.split("; band")[0]
    head = [[_Words(chart.title, _INK, 10, "bold")], [_Words(note or " ", size=8)], ends or [_Words(" ")]]
    axes.add_artist(_text(head, "lower left", (0, 1), axes.transAxes))


def _draw_band(axes: Axes, chart: _Chart, run: RunLog, key: str, color: str, window: int) -> bool:
    names = (key, chart.spread) if chart.spread else chart.reach
    if not names or any(name not in run.values for name in names):
        return False
    (first_steps, first_values), (second_steps, second_values) = (run.values[name] for name in names)
    common_steps, first_index, second_index = np.intersect1d(first_steps, second_steps, return_indices=True)
    if not len(common_steps):
        return False
    first, second = first_values[first_index], second_values[second_index]
    low, high = (first - second, first + second) if chart.spread else (first, second)
    axes.fill_between(common_steps, _mean(low, window), _mean(high, window), color=color, alpha=0.15, linewidth=0)
    return True


def _draw_line(axes: Axes, points: Points, color: str, dashes: Any, window: int, evaluated: bool) -> float:
    """Draw a quantity of a run; return the last value of its line."""
    steps, values = points
    finite, mean = np.isfinite(values), _mean(values, window)
    if window > 1:
        axes.plot(steps, np.where(finite, values, np.nan), color=color, alpha=0.25, linewidth=0.7)
    alone = finite & ~np.r_[False, finite[:-1]] & ~np.r_[finite[1:], False]
    dots = (finite if evaluated or len(steps) <= _FEW else alone).tolist()
    axes.plot(steps, mean, color=color, linestyle=dashes, linewidth=1.5, marker="o", markersize=3, markevery=dots)
    lost, at = steps[~finite], axes.get_xaxis_transform()
    axes.plot(lost, np.full(len(lost), 0.04), "x", color=_MARK, markersize=3, transform=at)
    return float(mean[finite][-1]) if finite.any() else math.nan


def _mean(values: np.ndarray, window: int) -> np.ndarray:
    """The means of the finite values among `window` neighbours, fewer at the ends; NaN where a value is not finite."""
    finite, box = np.isfinite(values), np.ones(min(window, len(values)))
    total, count = (np.convolve(part, box, "same") for part in (np.where(finite, values, 0.0), finite.astype(float)))
    return np.where(finite, total / np.maximum(count, 1), np.nan)


def _number(value: float, share: bool, digits: int) -> str:
    text = f"{100 * value:.{digits}g}\N{NO-BREAK SPACE}%" if share else f"{value:.{digits}g}"
    return text.replace("-", "−").replace("e−0", "e−").replace("e+0", "e")


def _dress(axes: Axes, chart: _Chart) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator, NullFormatter

    axes.grid(color=_GRID, linewidth=0.8)
    axes.tick_params(which="both", colors=_GREY, length=0)
    for side, spine in axes.spines.items():
        spine.set(color=_LINE, visible=side == "bottom")
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=_TICKS))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    low, high = axes.dataLim.intervaly
    if "grad_norm" in chart.lines and 0 < 100 * low < high:
        axes.set_yscale("log")
        axes.yaxis.set_minor_formatter(NullFormatter())
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=_TICKS))
    if chart.share or ("learning_rate" in chart.lines and high > 0):
        top = min(1.03, max(1.05 * high, 0.02)) if chart.share else 1.05 * high
        axes.set_ylim(-0.02 * top, top)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _number(value, chart.share, 6)))
