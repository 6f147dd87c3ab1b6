"""The table of metrics: what computes each, what it reads, and how papers print its scores.

A new metric is a function that gives [`Scores`] with its settings, and an entry here; the suite, the signature, the
command line and the reports read the rest from both.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Printed:
    """Format in which papers print a score.

    Attributes:
        label (`str`): its name in papers; `{n}` stands for an order of n-grams.
        factor (`int`, defaults to 1): what papers multiply it by.
        decimals (`int`, defaults to 4): places after the point.
    """

    label: str
    factor: int = 1
    decimals: int = 4

    @property
    def full_label(self) -> str:
        """The name with the factor: `CIDEr-D x 100`."""
        return self.label if self.factor == 1 else f"{self.label} x {self.factor}"

    def text(self, value: float) -> str:
        """A score as papers print it.

        Args:
            value (`float`): on the metric's own scale.

        Returns:
            `str`
        """
        return f"{value * self.factor:.{self.decimals}f}"


@dataclass(frozen=True)
class Metric:
    """An entry of the table.

    Attributes:
        function (`str`): the function, `module:name` from `metrics/` on. It is imported when it is needed.
        summary (`str`): what it measures, for `--help`.
        reads (`tuple[str, ...]`): what the suite gives it by name: `"predictions"`, `"references"`, `"images"`,
            `"document_frequencies"` (only where the user has some). What else the function takes is an option.
        counts (`bool`, defaults to `False`): it reads n-grams; the suite gives it `counts`, the [`PairCounts`] of all
            metrics.
        as_written (`bool`, defaults to `False`): it reads captions as they were written, and not their tokens.
        scorer (`str`, *optional*): the class of its option `scorer`, a model, `module:name`.
        needs (`str`, *optional*): what is needed besides this package, for `--help`.
        printed (`Mapping[str, Printed]`): score -> how papers print it. `bleu_{n}` stands for every n.
    """

    function: str
    summary: str
    reads: tuple[str, ...] = ("predictions", "references")
    counts: bool = False
    as_written: bool = False
    scorer: str | None = None
    needs: str | None = None
    printed: Mapping[str, Printed] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """Import the function."""
        return _load(self.function)

    def load_scorer(self) -> Callable[..., Any]:
        """Import the class of the option `scorer`.

        Raises:
            ValueError: the metric has no such option.
        """
        if self.scorer is None:
            raise ValueError(f"{self.function} has no scorer")
        return _load(self.scorer)

    def options(self) -> dict[str, inspect.Parameter]:
        """The options of the function by name: all that it takes beyond captions and what the suite gives it."""
        parameters = inspect.signature(self.load()).parameters
        return {name: value for name, value in parameters.items() if name not in (*self.reads, *_OF_THE_SUITE)}


_OF_THE_SUITE = ("predictions", "references", "tokenized", "tokenizer", "image_ids", "counts")


def _load(path: str) -> Callable[..., Any]:
    module, name = path.split(":")
    return getattr(importlib.import_module(f"{__package__}.metrics.{module}"), name)


_ON_IMAGES = ("images", "predictions", "references")
_ON_CORPUS = ("predictions", "references", "document_frequencies")

METRICS: dict[str, Metric] = {
    "bleu": Metric(
        "bleu:bleu",
        "n-grams shared with the references",
        counts=True,
        printed={"bleu_{n}": Printed("BLEU-{n}", 100, 2)},
    ),
    "meteor": Metric(
        "meteor.meteor:meteor",
        "words matched by form, stem, synonym and paraphrase; English",
        needs="the extra eval",
        printed={"meteor": Printed("METEOR", 100, 2)},
    ),
    "rouge_l": Metric("rouge_l:rouge_l", "longest common subsequence", printed={"rouge_l": Printed("ROUGE-L", 100, 2)}),
    "cider": Metric(
        "cider.cider:cider",
        "tf-idf of n-grams",
        _ON_CORPUS,
        counts=True,
        printed={"cider": Printed("CIDEr", 100, 2)},
    ),
    "cider_d": Metric(
        "cider.cider:cider_d",
        "the same, clipped and with a length penalty: what papers call CIDEr",
        _ON_CORPUS,
        counts=True,
        printed={"cider_d": Printed("CIDEr-D", 100, 2)},
    ),
    "spice": Metric(
        "spice.spice:spice",
        "objects, attributes and relations; English",
        needs="Java 8 to 14 and the SPICE jars",
        printed={"spice": Printed("SPICE", 100, 2)},
    ),
    "clip_s": Metric(
        "clip.clip_score:clip_score",
        "how well a caption fits its image to CLIP",
        _ON_IMAGES,
        as_written=True,
        scorer="clip.clip_score:ClipScorer",
        needs="images and a CLIPModel",
        printed={"clip_s": Printed("CLIP-S"), "ref_clip_s": Printed("RefCLIP-S")},
    ),
    "pac_s": Metric(
        "clip.pac_score:pac_score",
        "the same with the weights of PAC-S",
        _ON_IMAGES,
        as_written=True,
        scorer="clip.pac_score:PacScorer",
        needs="images and converted PAC-S weights",
        printed={"pac_s": Printed("PAC-S"), "ref_pac_s": Printed("RefPAC-S")},
    ),
    "diversity": Metric("diversity:diversity", "how varied the captions are", ("predictions",)),
}
"""Name -> metric."""

DEFAULT_METRICS = ("bleu", "rouge_l", "cider_d")


def printed(score: str) -> Printed | None:
    """Format in which papers print a score.

    Args:
        score (`str`): its name in [`Scores`], such as `"bleu_4"`.

    Returns:
        [`Printed`], or `None` for a score that papers have no custom for.

    Example:

    ```python
    >>> from hf_captioners.metric_table import printed
    >>> printed("bleu_4").full_label, printed("bleu_4").text(0.37861)
    ('BLEU-4 x 100', '37.86')

    ```
    """
    order = re.search(r"[0-9]+\Z", score)
    family = score if order is None else f"{score[: order.start()]}{{n}}"
    for metric in METRICS.values():
        if family in metric.printed:
            entry = metric.printed[family]
            label = entry.label if order is None else entry.label.format(n=order[0])
            return Printed(label, entry.factor, entry.decimals)
    return None
