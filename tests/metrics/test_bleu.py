from __future__ import annotations

import math
import random

import numpy as np
import pytest
from contracts.metric import ReferenceContract

from hf_captioners.metrics.bleu import EffectiveLength, bleu, bleu_from_counts, count_matches
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.pair_counts import PairCounts


class TestContract(ReferenceContract):
    name = "bleu"
    pooled = {f"bleu_{n}" for n in range(1, 5)}
    in_fixtures = {f"bleu_{n}": f"Bleu_{n}" for n in range(1, 5)}
    relative_per_image = 1e-9


def hostile_captions(seed: int, images: int) -> tuple[list[str], list[list[str]]]:
    """Captions over few words, so that n-grams repeat and match; empty, of one token, with odd white space, long."""
    rng = random.Random(seed)

    def caption() -> str:
        kind = rng.random()
        if kind < 0.1:
            return rng.choice(["", " ", "a", "é", "\t", "a\u2003b", "  a  b ", "a\u00a0b c", "a\x1cb", "日本 語"])
        length = rng.randrange(60, 200) if kind > 0.97 else rng.randrange(1, 13)
        return " ".join(rng.choice(["a", "a", "b", "c", "dog", "é"]) for _ in range(length))

    return [caption() for _ in range(images)], [[caption() for _ in range(rng.randrange(1, 7))] for _ in range(images)]


def reference_bleu(
    predictions: list[str], references: list[list[str]], option: str = "closest"
) -> tuple[list[float], list[list[float]]]:
    """pycocoevalcap's BLEU: of the corpus, and of each image."""
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer", reason="needs pycocoevalcap").BleuScorer(n=4)
    for prediction, several in zip(predictions, references, strict=True):
        scorer += (prediction, several)
    return scorer.compute_score(option=option, verbose=0)


class TestReferenceTool:
    @pytest.mark.parametrize("option", ["closest", "shortest", "average"])
    @pytest.mark.parametrize("seed", range(3))
    def test_hostile_captions_score_as_in_the_reference_tool(self, seed: int, option: EffectiveLength) -> None:
        predictions, references = hostile_captions(seed, images=150)
        scores = bleu(predictions, references, effective_length=option, tokenized=True)
        corpus, per_image = reference_bleu(predictions, references, option)
        np.testing.assert_allclose(list(scores.corpus.values()), corpus, rtol=1e-12, atol=0)
        for n in range(1, 5):
            np.testing.assert_allclose(scores.per_image[f"bleu_{n}"], per_image[n - 1], rtol=1e-12, atol=0)

    @pytest.mark.parametrize("seed", range(5))
    def test_small_corpora_score_as_in_the_reference_tool(self, seed: int) -> None:
        for images in (1, 2, 3):  # where the smoothing shows in the corpus too
            predictions, references = hostile_captions(100 * seed + images, images)
            corpus, _ = reference_bleu(predictions, references)
            scores = bleu(predictions, references, tokenized=True)
            np.testing.assert_allclose(list(scores.corpus.values()), corpus, rtol=1e-12, atol=0)


class TestDefinition:
    def test_a_count_is_clipped_at_the_most_of_one_reference(self) -> None:
        # Papineni et al., 2002, example 2: "the" occurs twice in the first reference, once in the second.
        references = ["the cat is on the mat", "there is a cat on the mat"]
        scores = bleu(["the the the the the the the"], [references], max_n=1, tokenized=True)
        assert scores.corpus["bleu_1"] == pytest.approx(2 / 7, abs=1e-9)

    def test_brevity_penalty(self) -> None:
        scores = bleu(["a dog"], [["a dog runs fast", "a dog runs very fast"]], tokenized=True)
        assert scores.corpus["bleu_1"] == pytest.approx(math.exp(1 - 4 / 2), abs=1e-9)

    def test_orders_above_4(self) -> None:
        # one of 8 words wrong, the last: 8 - n of 9 - n n-grams match, and the product telescopes
        scores = bleu(["a b c d e f g h"], [["a b c d e f g x"]], max_n=7, tokenized=True)
        for n in range(1, 8):
            assert scores.corpus[f"bleu_{n}"] == pytest.approx(((8 - n) / 8) ** (1 / n), abs=1e-8)

    def test_of_two_references_as_close_the_shorter_counts(self) -> None:
        scores = bleu(["a dog runs"], [["a dog runs fast", "a dog"]], tokenized=True)
        assert scores.corpus["bleu_3"] == pytest.approx(1.0, abs=1e-8)

    @pytest.mark.parametrize(("which", "length"), [("closest", 4), ("shortest", 3), ("average", 13 / 3)])
    def test_effective_length(self, which: EffectiveLength, length: float) -> None:
        references = ["a a a a a a", "a a a a", "b b b"]
        counts = count_matches(PairCounts([["a a a a"]], [references]), effective_length=which)
        assert counts.reference_length.tolist() == [pytest.approx(length)]

    def test_a_caption_shorter_than_n_has_a_tiny_precision(self) -> None:
        scores = bleu(["dog"], [["dog"]], tokenized=True)
        for n in range(1, 5):
            assert scores.corpus[f"bleu_{n}"] == pytest.approx(1e-6 ** ((n - 1) / n), rel=1e-8)

    @pytest.mark.parametrize("reference", ["", "a dog"])
    def test_an_empty_caption_scores_0(self, reference: str) -> None:
        scores = bleu(["", "a dog"], [[reference], ["a dog"]], tokenized=True)
        assert [scores.per_image[f"bleu_{n}"][0] for n in range(1, 5)] == [0.0] * 4
        assert bleu([""], [[reference]], tokenized=True).corpus == {f"bleu_{n}": 0.0 for n in range(1, 5)}

    def test_a_caption_of_empty_references_has_no_match(self) -> None:
        assert bleu(["a dog runs off"], [["", ""]], tokenized=True).corpus["bleu_4"] < 1e-14

    def test_the_corpus_has_the_bleu_of_summed_counts(self) -> None:
        scores = bleu(["a", "a b b b b b b b b"], [["a"], ["a c c c c c c c c"]], max_n=1, tokenized=True)
        assert scores.corpus["bleu_1"] == pytest.approx(2 / 10, abs=1e-9)
        # 1e-9 in both denominators takes 2e-9 from the caption of one token
        assert scores.per_image["bleu_1"].tolist() == pytest.approx([1 - 2e-9, 1 / 9], abs=1e-9)

    def test_an_image_scores_the_same_alone_and_among_others(self) -> None:
        predictions, references = hostile_captions(7, images=30)
        scores = bleu(predictions, references, tokenized=True)
        for image, (prediction, several) in enumerate(zip(predictions, references, strict=True)):
            alone = bleu([prediction], [several[::-1]], tokenized=True)
            for name, values in scores.per_image.items():
                assert alone.per_image[name].tolist() == [values[image]]

    def test_several_captions_of_an_image_score_as_one_by_one(self) -> None:
        predictions, references = hostile_captions(8, images=20)
        groups = [predictions[start : start + 4] for start in range(0, 20, 4)]
        together = bleu_from_counts(count_matches(PairCounts(groups, references[:5])))
        apart = bleu(predictions, [references[image // 4] for image in range(20)], tokenized=True)
        assert together.T.tolist() == [values.tolist() for values in apart.per_image.values()]


class TestRefusals:
    def test_an_image_without_references_is_named(self) -> None:
        with pytest.raises(MetricInputError, match=r"image dog\.jpg: no references"):
            bleu(["a dog"], [[]], tokenized=True, image_ids=["dog.jpg"])

    def test_unknown_effective_length(self) -> None:
        with pytest.raises(ValueError, match="effective_length is 'longest', expected one of"):
            bleu(["a dog"], [["a dog"]], effective_length="longest", tokenized=True)  # type: ignore[arg-type]

    def test_order_must_be_positive(self) -> None:
        with pytest.raises(ValueError, match="max_n is 0"):
            bleu(["a dog"], [["a dog"]], max_n=0, tokenized=True)
