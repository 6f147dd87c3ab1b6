"""N-grams of captions and references that are counted together, against those that are counted alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from hf_captioners.metrics import CaptionMetrics, DocumentFrequencies, bleu, cider, cider_d, pair_counts
from hf_captioners.metrics.cider.cider import CiderD
from hf_captioners.metrics.pair_counts import PairCounts


def corpus(seed: int) -> tuple[list[str], list[list[str]]]:
    """Captions with words that no reference has."""
    chance = random.Random(seed)

    def caption(letters: str) -> str:
        return " ".join(chance.choices(letters, k=chance.randint(0, 9)))

    return [caption("abcdefxyz") for _ in range(40)], [
        [caption("abcdefgh") for _ in range(chance.randint(1, 4))] for _ in range(40)
    ]


def test_captions_stand_image_by_image() -> None:
    predictions, references = [["d a", "b"], [], ["a"]], [["c"], ["b b", "a"], ["e"]]
    counts = PairCounts(predictions, references)
    text = "abce"
    captions = ["d a", "b", "c", "b b", "a", "a", "e"]
    assert counts.words.length.tolist() == [len(caption.split()) for caption in captions]
    words = "".join(captions).replace(" ", "")
    assert ["d" if number == 4 else text[number] for number in counts.words.word] == list(words)
    assert counts.image.tolist() == [0, 0, 0, 1, 1, 2, 2]
    assert counts.predicted.tolist() == [True, True, False, False, False, True, False]


@pytest.mark.parametrize("at_once", [8192, 7])
@pytest.mark.parametrize("seed", range(3))
def test_the_same_as_with_prepared_references(monkeypatch: pytest.MonkeyPatch, seed: int, at_once: int) -> None:
    monkeypatch.setattr(pair_counts, "PREDICTIONS_AT_ONCE", at_once)
    predictions, references = corpus(seed)
    for frequencies in (references, corpus(seed + 10)[1]):
        counted = DocumentFrequencies.from_references(frequencies, tokenized=True)
        scorer = CiderD(counted)
        expected = scorer.score(predictions, scorer.prepare(references))
        options = {} if frequencies is references else {"document_frequencies": counted}
        scores = cider_d(predictions, references, tokenized=True, **options).per_image["cider_d"]
        np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("own", [True, False])
def test_metrics_of_a_suite_score_as_alone(own: bool) -> None:
    predictions, references = corpus(5)
    frequencies = None if own else DocumentFrequencies.from_references(corpus(6)[1], tokenizer="unicode")
    suite = CaptionMetrics(
        ["cider", "bleu", "cider_d"], frequencies, tokenizer="unicode", options={"bleu": {"max_n": 6}}
    )
    together = suite(predictions, references)
    options = {"document_frequencies": frequencies, "tokenizer": "unicode"}
    alone = [
        bleu(predictions, references, max_n=6, tokenizer="unicode"),
        cider(predictions, references, **options),
        cider_d(predictions, references, **options),
    ]
    for scores in alone:
        for name, values in scores.per_image.items():
            np.testing.assert_array_equal(together.per_image[name], values)


def test_orders_are_counted_when_they_are_asked_for() -> None:
    counts = PairCounts([["a b c"]], [["a b d"]])
    assert [len(level.word) for level in counts.levels(2)] == [4, 3]
    assert [len(level.word) for level in counts.levels(5)] == [4, 3, 2, 0, 0]
    assert counts.levels(1)[0] is counts.levels(5)[0]
