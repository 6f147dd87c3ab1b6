"""Caption metrics on lists of strings, equal to the COCO reference tools and without Java.

Every metric is a function `metric(predictions, references)` that gives [`Scores`]; [`CaptionMetrics`] runs several.
Captions are tokenised as the reference tools do, or by `tokenizer=`, or taken as tokens with `tokenized=True`. What
needs torch, the scores by CLIP, is imported when it is asked for.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..metric_table import DEFAULT_METRICS, METRICS
from .bleu import bleu
from .cider.cider import cider, cider_d
from .cider.document_frequency import DocumentFrequencies
from .diversity import diversity
from .inputs import MetricInputError
from .meteor.meteor import meteor
from .ptb.tokenizer import ptb_tokenize
from .rouge_l import rouge_l
from .scores import Scores
from .spice.cache import SpiceError
from .spice.spice import spice
from .suite import CaptionMetrics, Evaluation
from .tokens import tokenize

if TYPE_CHECKING:
    from .clip.clip_score import ClipScorer, clip_score
    from .clip.pac_score import PacScorer, pac_score
    from .clip.retrieval import clip_recall, retrieval_recall

EVALUATE_MODULE = str(Path(__file__).with_name("evaluate_module.py"))
"""What to give to `evaluate.load`: `evaluate.load(EVALUATE_MODULE, "cider_d")`."""

_HOME = {
    "ClipScorer": "clip.clip_score",
    "PacScorer": "clip.pac_score",
    "clip_recall": "clip.retrieval",
    "clip_score": "clip.clip_score",
    "pac_score": "clip.pac_score",
    "retrieval_recall": "clip.retrieval",
}

__all__ = [
    "DEFAULT_METRICS",
    "EVALUATE_MODULE",
    "METRICS",
    "CaptionMetrics",
    "ClipScorer",
    "DocumentFrequencies",
    "Evaluation",
    "MetricInputError",
    "PacScorer",
    "Scores",
    "SpiceError",
    "bleu",
    "cider",
    "cider_d",
    "clip_recall",
    "clip_score",
    "diversity",
    "meteor",
    "pac_score",
    "ptb_tokenize",
    "retrieval_recall",
    "rouge_l",
    "spice",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
