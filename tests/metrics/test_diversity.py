from __future__ import annotations

import random

import numpy as np
import pytest
from contracts.metric import MetricContract

from hf_captioners.metrics.diversity import diversity
from hf_captioners.metrics.inputs import MetricInputError


class TestContract(MetricContract):
    name = "diversity"
    pooled = {"repetition_1"}  # the longer n-grams of these captions repeat nowhere


def ngrams(caption: str, order: int) -> list[tuple[str, ...]]:
    words = caption.split()
    return list(zip(*(words[shift:] for shift in range(order)), strict=False))


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_definitions(seed: int) -> None:
    rng = random.Random(seed)
    captions = [" ".join(rng.choice("abcdé") for _ in range(rng.randrange(12))) for _ in range(80)]
    scores = diversity(captions, tokenized=True)
    for order in range(1, 5):
        of_images = [ngrams(caption, order) for caption in captions]
        everything = [one for of_image in of_images for one in of_image]
        assert scores.corpus[f"distinct_{order}"] == pytest.approx(len(set(everything)) / len(everything))
        repeated = [sum(one in of_image[:i] for i, one in enumerate(of_image)) for of_image in of_images]
        assert scores.corpus[f"repetition_{order}"] == pytest.approx(sum(repeated) / len(everything))
        shares = [number / len(own) if own else 0.0 for number, own in zip(repeated, of_images, strict=True)]
        np.testing.assert_allclose(scores.per_image[f"repetition_{order}"], shares, rtol=1e-12)
    words = " ".join(captions).split()
    assert scores.corpus["vocabulary_size"] == len(set(words))
    assert scores.corpus["mean_length"] == pytest.approx(len(words) / 80)
    assert scores.corpus["unique_captions"] == len(set(captions)) / 80
    assert scores.per_image["length"].tolist() == [len(caption.split()) for caption in captions]


def test_one_caption_for_every_image_shows() -> None:
    scores = diversity(["a man on a bench"] * 100, tokenized=True).corpus
    assert scores["unique_captions"] == 1 / 100
    assert scores["distinct_1"] == 4 / 500
    assert scores["distinct_4"] == 2 / 200
    assert scores["repetition_4"] == 0.0  # each caption in itself is fine


def test_a_stutter_shows() -> None:
    scores = diversity(["a dog on a dog on a dog on a dog"], tokenized=True)
    assert scores.corpus["repetition_4"] == pytest.approx(5 / 8)
    assert scores.per_image["repetition_1"].tolist() == [pytest.approx(8 / 11)]


def test_without_ngrams_the_shares_are_0() -> None:
    scores = diversity(["", "  "], tokenized=True)
    assert scores.corpus.pop("unique_captions") == 1 / 2
    assert set(scores.corpus.values()) == {0.0}
    for values in scores.per_image.values():
        assert values.tolist() == [0.0, 0.0]


def test_short_captions_have_no_long_ngrams() -> None:
    scores = diversity(["a dog", "a cat"], tokenized=True).corpus
    assert (scores["distinct_2"], scores["distinct_3"], scores["distinct_4"]) == (1.0, 0.0, 0.0)


def test_names_and_types() -> None:
    scores = diversity(["a dog"], max_n=2, tokenized=True)
    shares = ["distinct_1", "distinct_2", "repetition_1", "repetition_2"]
    assert list(scores.corpus) == [*shares, "vocabulary_size", "mean_length", "unique_captions"]
    assert {type(value) for value in scores.corpus.values()} == {float}
    assert list(scores.per_image) == ["repetition_1", "repetition_2", "length"]
    assert {values.dtype for values in scores.per_image.values()} == {np.dtype(np.float64)}


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ("a dog", "predictions: expected a list"),
        (iter(["a dog"]), "predictions: expected a list"),
        ([], "no images to score"),
        (["a dog", 3], "image 1: the prediction is 3"),
    ],
    ids=["string", "iterator", "none", "number"],
)
def test_what_is_no_list_of_captions_is_refused(predictions: object, message: str) -> None:
    with pytest.raises(MetricInputError, match=message):
        diversity(predictions, tokenized=True)  # type: ignore[arg-type]


def test_the_same_image_twice_is_refused() -> None:
    with pytest.raises(MetricInputError, match="image 7: occurs twice"):
        diversity(["a dog", "a cat"], tokenized=True, image_ids=[7, 7])
