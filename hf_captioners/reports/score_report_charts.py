"""The charts of a report: corpus scores as bars, and the distribution of a score over the images.

Drawn by matplotlib into SVG that is part of the page, once in dark ink and once in light ink, so that the page fits
the reader's screen. Without matplotlib (the extra `plot`) there are none.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIZE = (6.0, 3.6)  # inches; 432 x 259 CSS pixels
_MAX_BINS = 30


@dataclass(frozen=True)
class _Ink:
    text: str
    line: str
    bar: str
    mark: str


_DARK_INK = _Ink(text="#1a1c21", line="#b9b9b4", bar="#2f6fb0", mark="#b3391f")  # on a light page
_LIGHT_INK = _Ink(text="#e9e9e6", line="#555a62", bar="#6aa5de", mark="#ff9a80")


@dataclass(frozen=True)
class Chart:
    """A drawing for the page.

    Attributes:
        on_light (`str`), on_dark (`str`): SVG as data URIs.
        alt (`str`): what it shows, for those who cannot see it.
        caption (`str`): what stands below it, or nothing.
    """

    on_light: str
    on_dark: str
    alt: str
    caption: str = ""


def draw_bars(scores: Mapping[str, float]) -> Chart:
    """Draw the scores of the corpus.

    Args:
        scores (`Mapping[str, float]`): name to show -> score as computed; drawn times 100.

    Returns:
        [`Chart`]

    Raises:
        ImportError: matplotlib is not installed.

    Example:

    ```python
    >>> from hf_captioners.reports.score_report_charts import draw_bars
    >>> draw_bars({"BLEU-4": 0.379}).alt
    'Corpus scores × 100: BLEU-4 37.9'

    ```
    """
    numbers = ", ".join(f"{name} {100 * score:.1f}" for name, score in scores.items())
    return _chart(lambda axes, ink: _bars(axes, ink, scores), f"Corpus scores × 100: {numbers}")


def draw_histogram(values: np.ndarray, name: str, caption: str) -> Chart:
    """Draw how a score is spread over the images.

    Args:
        values (`np.ndarray`): the score of every image, as it is to be shown, shape (number of images,).
        name (`str`): the score's name.
        caption (`str`): the same in words.

    Returns:
        [`Chart`]

    Raises:
        ImportError: matplotlib is not installed.
    """
    return _chart(
        lambda axes, ink: _histogram(axes, ink, values, name), f"Histogram of {name}, in words below", caption
    )


def _chart(draw: Callable[[Axes, _Ink], None], alt: str, caption: str = "") -> Chart:
    return Chart(_svg(draw, _DARK_INK), _svg(draw, _LIGHT_INK), alt, caption)


def _svg(draw: Callable[[Axes, _Ink], None], ink: _Ink) -> str:
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot there is no display and no state

    # independent of the user's settings and reproducible; names are no formulas
    with matplotlib.rc_context(
        {
            "svg.hashsalt": "hf_captioners",
            "font.family": "DejaVu Sans",
            "font.size": 11.0,
            "text.usetex": False,
            "text.parse_math": False,
        }
    ):
        figure = Figure(figsize=_SIZE, layout="constrained")
        axes = figure.add_subplot()
        axes.tick_params(colors=ink.text, length=0)
        for side, spine in axes.spines.items():
            spine.set(color=ink.line, visible=side in ("left", "bottom"))
        draw(axes, ink)
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def _bars(axes: Axes, ink: _Ink, corpus: Mapping[str, float]) -> None:
    names, scores = list(corpus), [100 * score for score in corpus.values()]
    bars = axes.barh(names, scores, color=ink.bar, height=0.7)
    axes.bar_label(bars, fmt="%.1f", padding=3, color=ink.text)
    axes.set_xlim(min(0.0, *scores), 1.15 * max(1.0, *scores))
    axes.invert_yaxis()
    axes.set_xlabel("corpus score × 100", color=ink.text)


def _histogram(axes: Axes, ink: _Ink, values: np.ndarray, name: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.hist(
        values, bins=min(_MAX_BINS, 4 + math.isqrt(len(values))), color=ink.bar, edgecolor=ink.line, linewidth=0.5
    )
    median = float(np.median(values))
    axes.axvline(median, color=ink.mark, linestyle="--", label=f"median {median:.4g}")
    axes.legend(frameon=False, labelcolor=ink.text)
    axes.set_xlabel(f"{name} of one image", color=ink.text)
    axes.set_ylabel("images", color=ink.text)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
