"""The table of metrics."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hf_captioners
from hf_captioners.metric_table import DEFAULT_METRICS, METRICS, printed
from hf_captioners.metrics.scores import Scores


@pytest.mark.parametrize("name", METRICS)
def test_functions_exist_and_read_what_the_table_says(name):
    metric = METRICS[name]
    assert set(metric.reads) <= {"predictions", "references", "images", "document_frequencies"}
    assert metric.load().__annotations__["return"] == Scores.__name__
    assert (metric.scorer is not None) == ("scorer" in metric.options())
    if metric.scorer is not None:
        assert metric.load_scorer().name == name


def test_default_metrics_need_nothing():
    assert [name for name in DEFAULT_METRICS if METRICS[name].needs is not None] == []


def test_scorer_of_none():
    with pytest.raises(ValueError, match="bleu:bleu has no scorer"):
        METRICS["bleu"].load_scorer()


@pytest.mark.parametrize(
    ("score", "label", "text"),
    [
        ("bleu_4", "BLEU-4 x 100", "37.86"),
        ("bleu_7", "BLEU-7 x 100", "37.86"),
        ("cider_d", "CIDEr-D x 100", "37.86"),
        ("ref_clip_s", "RefCLIP-S", "0.3786"),
    ],
)
def test_printed(score, label, text):
    entry = printed(score)
    assert (entry.full_label, entry.text(0.37861)) == (label, text)


def test_scores_of_no_custom():
    assert printed("distinct_2") is printed("length") is printed("") is printed("bleu") is None


def test_only_scores_by_clip_need_torch():
    """`hf_captioners` itself registers models; its sub-package is imported here without it."""
    code = """
        import sys, types
        package = types.ModuleType("hf_captioners")
        package.__path__ = [sys.argv[1]]
        sys.modules["hf_captioners"] = package
        from hf_captioners.metrics import METRICS, CaptionMetrics
        captions = ["a dog", "a cat"], [["a dog runs"], ["two cats"]]
        CaptionMetrics(["bleu", "rouge_l", "cider", "cider_d", "diversity"])(*captions)
        print(sorted({"torch", "transformers"} & set(sys.modules)))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(Path(hf_captioners.__file__).parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
