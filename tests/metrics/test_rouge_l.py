from __future__ import annotations

import random

import numpy as np
import pytest
from contracts.metric import ReferenceContract

from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.rouge_l import rouge_l


class TestContract(ReferenceContract):
    name = "rouge_l"
    in_fixtures = {"rouge_l": "ROUGE_L"}


def hostile_captions(seed: int, images: int) -> tuple[list[str], list[list[str]]]:
    """Captions over few words; empty, of spaces, with odd white space, long."""
    rng = random.Random(seed)

    def caption() -> str:
        kind = rng.random()
        if kind < 0.15:
            return rng.choice(["", " ", "  ", "a", "é", "\t", "a\tb", "  a  b ", "a\u00a0b c", "日本 語"])
        length = rng.randrange(60, 150) if kind > 0.98 else rng.randrange(1, 13)
        return " ".join(rng.choice(["a", "a", "b", "c", "dog", "é"]) for _ in range(length))

    return [caption() for _ in range(images)], [[caption() for _ in range(rng.randrange(1, 7))] for _ in range(images)]


def common_length_by_table(first: list[str], second: list[str]) -> int:
    """The textbook's table, row by row."""
    above = [0] * (len(second) + 1)
    for token in first:
        row = [0]
        for column, other in enumerate(second):
            row.append(above[column] + 1 if token == other else max(above[column + 1], row[column]))
        above = row
    return above[-1]


class TestReferenceTool:
    @pytest.mark.parametrize("seed", range(3))
    def test_hostile_captions_score_as_in_the_reference_tool(self, seed: int) -> None:
        reference = pytest.importorskip("pycocoevalcap.rouge.rouge", reason="needs pycocoevalcap").Rouge()
        predictions, references = hostile_captions(seed, images=100)
        corpus, per_image = reference.compute_score(
            dict(enumerate(references)), {image: [prediction] for image, prediction in enumerate(predictions)}
        )
        scores = rouge_l(predictions, references, tokenized=True)
        assert scores.corpus["rouge_l"] == pytest.approx(corpus, rel=0, abs=1e-12)
        np.testing.assert_allclose(scores.per_image["rouge_l"], per_image, rtol=0, atol=1e-12)


class TestDefinition:
    @pytest.mark.parametrize(("alphabet", "longest"), [("ab", 12), ("abcdefgh", 40), ("abc", 300)])
    def test_common_subsequence_is_that_of_the_table(self, alphabet: str, longest: int) -> None:
        rng = random.Random(longest)
        for _ in range(50):
            one, two = ([rng.choice(alphabet) for _ in range(rng.randrange(1, longest))] for _ in range(2))
            scores = rouge_l([" ".join(one)], [[" ".join(two)]], beta=0, tokenized=True)  # beta 0: the precision
            common = scores.corpus["rouge_l"] * len(one)
            assert common == pytest.approx(common_length_by_table(one, two), abs=1e-9)

    def test_precision_and_recall_may_come_from_different_references(self) -> None:
        # precision 4/4 and recall 4/8 of the first, precision 1/4 and recall 1/1 of the second
        scores = rouge_l(["a b c d"], [["a b c d e f g h", "a"]], tokenized=True)
        assert scores.corpus["rouge_l"] == pytest.approx(1.0)

    def test_beta_weighs_recall(self) -> None:
        precision, recall = 2 / 2, 2 / 4
        for beta in (0.5, 1.0, 1.2, 3.0):
            expected = 1 / ((1 / (1 + beta**2)) / precision + (beta**2 / (1 + beta**2)) / recall)  # weighted harmonic
            scores = rouge_l(["a dog"], [["a very big dog"]], beta=beta, tokenized=True)
            assert scores.corpus["rouge_l"] == pytest.approx(expected)

    def test_order_matters(self) -> None:
        assert rouge_l(["b a"], [["a b"]], tokenized=True).corpus["rouge_l"] == pytest.approx(1 / 2)

    def test_an_empty_caption_is_one_empty_token(self) -> None:
        scores = rouge_l(["", "", "a"], [["a dog"], [""], [""]], tokenized=True)
        assert scores.per_image["rouge_l"].tolist() == [0.0, 1.0, 0.0]

    def test_the_corpus_has_the_mean(self) -> None:
        scores = rouge_l(["a", "b", "c"], [["a"], ["x"], ["y"]], tokenized=True)
        assert scores.corpus["rouge_l"] == pytest.approx(1 / 3)
        assert scores.per_image["rouge_l"].dtype == np.float64


class TestRefusals:
    @pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
    def test_beta_must_weigh(self, beta: float) -> None:
        with pytest.raises(ValueError, match=r"beta is .* expected a finite number"):
            rouge_l(["a dog"], [["a dog"]], beta=beta, tokenized=True)

    def test_a_caption_that_is_no_string_is_named(self) -> None:
        with pytest.raises(MetricInputError, match="image 1: the prediction is None"):
            rouge_l(["a dog", None], [["a dog"], ["a cat"]], tokenized=True)  # type: ignore[list-item]
