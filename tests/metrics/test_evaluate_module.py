"""The metrics through the `evaluate` library, from a local path."""

import evaluate
import numpy as np
import pytest

from hf_captioners.metrics import EVALUATE_MODULE, CaptionMetrics

CAPTIONS = ["A dog runs.", "two cats"], [["The dog runs fast.", "a dog"], ["Two cats sit."]]


@pytest.fixture
def load(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    return lambda name=None: evaluate.load(EVALUATE_MODULE, name, cache_dir=str(tmp_path))


@pytest.mark.parametrize("name", ["bleu", "rouge_l", "cider", "cider_d", "diversity"])
def test_results_are_identical(load, name):
    result = load(name).compute(predictions=CAPTIONS[0], references=CAPTIONS[1])
    expected = CaptionMetrics([name])(*CAPTIONS)
    assert {key: result[key] for key in expected.corpus} == expected.corpus
    assert result["signature"] == expected.signature_text
    for key, values in expected.per_image.items():
        np.testing.assert_array_equal(result["per_image"][key], values)


def test_default_is_several(load):
    metric = load()
    metric.add(prediction=CAPTIONS[0][0], reference=CAPTIONS[1][0])
    metric.add_batch(predictions=CAPTIONS[0][1:], references=CAPTIONS[1][1:])
    result = metric.compute()
    expected = CaptionMetrics()(*CAPTIONS)
    assert {key: result[key] for key in expected.corpus} == expected.corpus


def test_options(load):
    result = load("cider_d").compute(predictions=CAPTIONS[0], references=CAPTIONS[1], options={"sigma": 5.0})
    assert "cider_d.sigma:5.0" in result["signature"]


def test_tokenizer(load):
    result = load("bleu").compute(predictions=["一只狗"], references=[["一只猫"]], tokenizer="unicode")
    assert result["bleu_1"] == pytest.approx(2 / 3)
    assert "|tokenizer:unicode-lowercase-nopunct|" in result["signature"]


def test_unknown_name(load):
    with pytest.raises(ValueError, match="no metric 'blue'; expected 'default' or one of bleu"):
        load("blue")
