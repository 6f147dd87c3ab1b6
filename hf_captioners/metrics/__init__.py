"""Caption metrics on lists of strings, equal to the COCO reference tools and without Java.

Every metric is a function `metric(predictions, references)` that gives [`Scores`]; [`CaptionMetrics`] runs several.
Captions are tokenised as the reference tools do, or taken as tokens with `tokenized=True`.
"""

from pathlib import Path

from .bleu import bleu
from .cider.cider import cider, cider_d
from .cider.document_frequency import DocumentFrequencies
from .clip.clip_score import ClipScorer, clip_score
from .clip.pac_score import PacScorer, pac_score
from .clip.retrieval import clip_recall, retrieval_recall
from .diversity import diversity
from .inputs import MetricInputError
from .meteor.meteor import meteor
from .ptb.tokenizer import ptb_tokenize
from .rouge_l import rouge_l
from .scores import Scores
from .spice.cache import SpiceError
from .spice.spice import spice
from .suite import DEFAULT_METRICS, METRICS, CaptionMetrics, Evaluation

EVALUATE_MODULE = str(Path(__file__).with_name("evaluate_module.py"))
"""What to give to `evaluate.load`: `evaluate.load(EVALUATE_MODULE, "cider_d")`."""

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
]
