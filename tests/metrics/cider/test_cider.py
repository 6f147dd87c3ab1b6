"""CIDEr and CIDEr-D: the reference tools' numbers, the formula written with dictionaries, closed forms."""

from __future__ import annotations

import gzip
import importlib
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contracts.metric import MetricCase, ReferenceContract

from hf_captioners.metrics import ngrams as ngrams_module
from hf_captioners.metrics.cider.cider import Cider, CiderD, cider, cider_d
from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
from hf_captioners.metrics.cider.references import join_references
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.suite import CaptionMetrics
from hf_captioners.metrics.tokens import prepare_pairs

module = importlib.import_module("hf_captioners.metrics.cider.cider")  # the package has a function of this name

FUNCTIONS = {"cider": cider, "cider_d": cider_d}
Pairs = tuple[list[str], list[list[str]]]


def ngrams(caption: str) -> Counter[tuple[str, ...]]:
    words = caption.split()
    return Counter(tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))


def by_formula(
    predictions: list[str],
    references: list[list[str]],
    corpus: list[list[str]] | None = None,
    clipped: bool = True,
    n: int = 4,
    sigma: float = 6.0,
) -> list[float]:
    """The paper's formula, n-gram by n-gram; `clipped` is CIDEr-D."""
    corpus = references if corpus is None else corpus
    frequency = Counter(ngram for several in corpus for ngram in set().union(*map(ngrams, several)))

    def vector(caption: str, order: int) -> dict[tuple[str, ...], float]:
        counts = {ngram: count for ngram, count in ngrams(caption).items() if len(ngram) == order}
        return {ngram: count * math.log(len(corpus) / max(1, frequency[ngram])) for ngram, count in counts.items()}

    def agreement(caption: str, reference: str, order: int) -> float:
        c, r = vector(caption, order), vector(reference, order)
        lengths = math.hypot(*c.values()) * math.hypot(*r.values())
        product = sum((min(c[ngram], r[ngram]) if clipped else c[ngram]) * r[ngram] for ngram in c.keys() & r.keys())
        return product / lengths if lengths else 0.0

    def penalty(caption: str, reference: str) -> float:
        difference = max(len(caption.split()) - 1, 0) - max(len(reference.split()) - 1, 0)
        return math.exp(-(difference**2) / (2 * sigma**2)) if clipped else 1.0

    return [
        10 * np.mean([[agreement(c, r, order) * penalty(c, r) for order in range(1, n + 1)] for r in several])
        for c, several in zip(predictions, references, strict=True)
    ]


def random_pairs(seed: int, images: int = 30) -> Pairs:
    """Captions of 0 to 14 words of which some are frequent and some are in a single caption."""
    chance = random.Random(seed)
    words = [f"w{int(chance.paretovariate(0.7)) % 60}" for _ in range(500)]

    def caption() -> str:
        return " ".join(chance.choices(words, k=chance.choice([0, 1, 2, 3, 5, 8, 14])))

    references = [[caption() for _ in range(chance.randint(1, 6))] for _ in range(images)]
    predictions = [chance.choice([caption(), several[0], several[-1] + " w1"]) for several in references]
    return predictions, references


class TestCider(ReferenceContract):
    name = "cider"
    in_fixtures = {"cider": "CIDEr_plain_ruotianluo"}
    absolute = 1e-9


class TestCiderD(ReferenceContract):
    name = "cider_d"
    in_fixtures = {"cider_d": "CIDErD_ruotianluo"}
    absolute = 1e-9


def coco_captions(shared_data: Path) -> dict[int, list[str]]:
    with gzip.open(shared_data / "coco_captions" / "captions_val2014.json.gz", "rt", encoding="utf-8") as file:
        annotations = json.load(file)["annotations"]
    captions: dict[int, list[str]] = {}
    for one in annotations:
        captions.setdefault(one["image_id"], []).append(one["caption"])
    return captions


def test_document_frequencies_of_other_images(
    shared_parity: Path, shared_data: Path, metric_case: Callable[[str], MetricCase]
) -> None:
    expected = json.loads((shared_parity / "metrics" / "ciderd_external_df.json").read_text("utf-8"))
    captions = coco_captions(shared_data)
    images = expected["df_image_ids"]
    _, corpus = prepare_pairs([""] * len(images), [captions[image] for image in images])
    frequencies = DocumentFrequencies.from_references(corpus, tokenized=True)
    pairs = metric_case(expected["system"]).tokens
    # The tool's dictionary also holds, with 0, what it was asked for while it scored.
    asked = [[one, *several] for one, several in zip(*pairs, strict=True)]
    assert len(DocumentFrequencies.from_references([*corpus, *asked], tokenized=True)) == expected["n_ngrams"]
    scores = cider_d(*pairs, tokenized=True, document_frequencies=frequencies)
    assert scores.corpus["cider_d"] == pytest.approx(expected["CIDErD"], abs=1e-9)
    np.testing.assert_allclose(scores.per_image["cider_d"], expected["per_image"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("seed", range(4))
class TestFormula:
    @pytest.mark.parametrize("metric", FUNCTIONS)
    def test_frequencies_of_the_references(self, seed: int, metric: str) -> None:
        pairs = random_pairs(seed)
        expected = by_formula(*pairs, clipped=metric == "cider_d")
        scores = FUNCTIONS[metric](*pairs, tokenized=True)
        np.testing.assert_allclose(scores.per_image[metric], expected, rtol=0, atol=1e-12)
        assert scores.corpus == {metric: pytest.approx(np.mean(expected), abs=1e-12)}
        assert max(expected) > 1

    @pytest.mark.parametrize("metric", FUNCTIONS)
    def test_frequencies_of_a_corpus(self, seed: int, metric: str) -> None:
        predictions, references = random_pairs(seed)
        _, corpus = random_pairs(seed + 100, images=7)  # lacks words of the predictions and of the references
        expected = by_formula(predictions, references, corpus, clipped=metric == "cider_d")
        frequencies = DocumentFrequencies.from_references(corpus, tokenized=True)
        scores = FUNCTIONS[metric](predictions, references, tokenized=True, document_frequencies=frequencies)
        np.testing.assert_allclose(scores.per_image[metric], expected, rtol=0, atol=1e-12)

    @pytest.mark.parametrize(("n", "sigma"), [(1, 6.0), (2, 1.5), (3, 20.0)])
    def test_order_and_sigma(self, seed: int, n: int, sigma: float) -> None:
        pairs = random_pairs(seed)
        scores = cider_d(*pairs, tokenized=True, n=n, sigma=sigma).per_image["cider_d"]
        np.testing.assert_allclose(scores, by_formula(*pairs, n=n, sigma=sigma), rtol=0, atol=1e-12)
        frequencies = DocumentFrequencies.from_references(pairs[1], tokenized=True)  # of higher order than needed
        again = cider_d(*pairs, tokenized=True, n=n, sigma=sigma, document_frequencies=frequencies)
        np.testing.assert_allclose(again.per_image["cider_d"], scores, rtol=0, atol=1e-12)

    def test_pycocoevalcap(self, seed: int) -> None:
        reference_tool = pytest.importorskip("pycocoevalcap.cider.cider", reason="the oracle pycocoevalcap is not here")
        predictions, references = random_pairs(seed, images=60)
        corpus, per_image = reference_tool.Cider().compute_score(
            dict(enumerate(references)), {image: [one] for image, one in enumerate(predictions)}
        )
        scores = cider_d(predictions, references, tokenized=True)
        np.testing.assert_allclose(scores.per_image["cider_d"], per_image, rtol=0, atol=1e-12)
        assert scores.corpus["cider_d"] == pytest.approx(corpus, abs=1e-12)


class TestClosedForms:
    OTHERS = [["p q"], ["r s t u"]]

    def both(self, prediction: str, *references: str) -> tuple[float, float]:
        pairs = [prediction, "", ""], [list(references), *self.OTHERS]
        scores = [FUNCTIONS[name](*pairs, tokenized=True).per_image[name] for name in FUNCTIONS]
        assert scores[0][1:].tolist() == scores[1][1:].tolist() == [0, 0]  # empty captions
        return scores[0][0], scores[1][0]

    def test_the_reference_itself(self) -> None:
        assert self.both("a b c d e", "a b c d e") == pytest.approx((10, 10), abs=1e-12)
        assert self.both("a b", "a b") == pytest.approx((5, 5), abs=1e-12)  # it has no 3-grams

    def test_one_of_several_references(self) -> None:
        assert self.both("a b c d", "a b c d", "k l m n o") == pytest.approx((5, 5), abs=1e-12)

    def test_another_length(self) -> None:
        plain = 10 / 4 / math.sqrt(2)
        assert self.both("x", "x y") == pytest.approx((plain, plain * math.exp(-1 / 72)), abs=1e-12)

    def test_length_counts_bigrams(self) -> None:  # "x" has as many as nothing has; a prediction of 3 words has 2
        plain = 10 / 4 / math.sqrt(3)
        assert self.both("x y z", "x") == pytest.approx((plain, plain * math.exp(-4 / 72)), abs=1e-12)

    def test_clipping(self) -> None:
        plain = 10 / 4 / math.sqrt(2)
        assert self.both("x x", "x y") == pytest.approx((plain, plain / 2), abs=1e-12)

    def test_nothing_in_common(self) -> None:
        assert self.both("unknown words", "x y z") == (0, 0)

    def test_words_of_all_images_weigh_nothing(self) -> None:
        references = [["a"], ["a b"], ["c a"]]
        assert cider_d(["a", "a a", "c"], references, tokenized=True).per_image["cider_d"][:2].tolist() == [0, 0]

    def test_any_white_space_separates_words(self) -> None:
        assert self.both("  a\tb c\u00a0d\n", "a b c d") == pytest.approx((10, 10), abs=1e-12)


class TestProperties:
    def test_permuted_images_and_references(self) -> None:
        predictions, references = random_pairs(0)
        scores = cider_d(predictions, references, tokenized=True).per_image["cider_d"]
        order = random.Random(1).sample(range(len(predictions)), len(predictions))
        permuted = [predictions[i] for i in order], [references[i][::-1] for i in order]
        again = cider_d(*permuted, tokenized=True).per_image["cider_d"]
        np.testing.assert_allclose(again, scores[order], rtol=0, atol=1e-12)

    def test_every_image_twice(self) -> None:  # idf is log(N / df): the same
        _, references = random_pairs(0)
        frequencies = DocumentFrequencies.from_references(references * 2, tokenized=True)
        known = [several[0] for several in references]  # unknown n-grams have df 1 in both
        once = cider_d(known, references, tokenized=True).per_image["cider_d"]
        twice = cider_d(known, references, tokenized=True, document_frequencies=frequencies).per_image["cider_d"]
        np.testing.assert_allclose(twice, once, rtol=0, atol=1e-12)

    def test_a_reference_twice_counts_twice(self) -> None:
        references = [["a b c", "a b c", "d e"], ["f"], ["g"]]
        others = [["a b c", "d e"], ["f"], ["g"]]
        scores = [cider_d(["a b c", "", ""], r, tokenized=True).per_image["cider_d"][0] for r in (references, others)]
        assert scores == pytest.approx([7.5 * 2 / 3, 7.5 / 2], abs=1e-12)

    def test_bounds(self) -> None:
        for metric, function in FUNCTIONS.items():
            scores = function(*random_pairs(3, images=200), tokenized=True).per_image[metric]
            assert 0 <= scores.min() <= scores.max() <= 10 + 1e-12


class TestScorer:
    @pytest.mark.parametrize("kind", [Cider, CiderD])
    def test_images_several_times_or_never(self, kind: type[Cider]) -> None:
        predictions, references = random_pairs(5)
        scorer = kind(DocumentFrequencies.from_references(references, tokenized=True))
        prepared = scorer.prepare(references)
        image_index = [3, 3, 0, 7, 29, 3, 7, 1]
        captions = predictions[:8]
        chosen = [references[i] for i in image_index]
        frequencies = scorer.document_frequencies
        name = "cider" if kind is Cider else "cider_d"
        expected = FUNCTIONS[name](captions, chosen, tokenized=True, document_frequencies=frequencies).per_image[name]
        np.testing.assert_allclose(scorer.score(captions, prepared, image_index), expected, rtol=0, atol=1e-12)

    def test_no_captions(self) -> None:
        _, references = random_pairs(5)
        scorer = CiderD(DocumentFrequencies.from_references(references, tokenized=True))
        scores = scorer.score([], scorer.prepare(references), [])
        assert scores.shape == (0,) and scores.dtype == np.float64

    def test_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pairs = random_pairs(6)
        whole = cider_d(*pairs, tokenized=True).per_image["cider_d"]
        monkeypatch.setattr(module, "CAPTIONS_AT_ONCE", 7)
        monkeypatch.setattr(ngrams_module, "CAPTIONS_AT_ONCE", 4)
        np.testing.assert_array_equal(cider_d(*pairs, tokenized=True).per_image["cider_d"], whole)

    def test_split_and_joined_references(self) -> None:
        predictions, references = random_pairs(7)
        _, corpus = random_pairs(8, images=5)
        scorer = CiderD(DocumentFrequencies.from_references(corpus, tokenized=True))
        prepared = scorer.prepare(references)
        parts = [prepared.image(position) for position in range(len(references))]
        order = random.Random(2).sample(range(len(parts)), len(parts))
        joined = join_references([parts[i] for i in order])
        scores = scorer.score(predictions, prepared)
        np.testing.assert_array_equal(scorer.score([predictions[i] for i in order], joined), scores[order])
        for name in ("keys", "roots", "first_entry", "reference", "weight", "norm", "bigrams", "first_reference"):
            np.testing.assert_array_equal(getattr(join_references(parts), name), getattr(prepared, name))

    def test_references_prepared_later_do_not_disturb(self) -> None:
        predictions, references = random_pairs(9)
        scorer = CiderD(DocumentFrequencies.from_references(references[:10], tokenized=True))
        prepared = scorer.prepare(references)
        before = scorer.score(predictions, prepared)
        scorer.prepare([["many new words", "w59 new"]])
        np.testing.assert_array_equal(scorer.score(predictions, prepared), before)

    def test_refuses_references_of_another_scorer(self) -> None:
        predictions, references = random_pairs(5)
        frequencies = DocumentFrequencies.from_references(references, tokenized=True)
        one, two = CiderD(frequencies), CiderD(frequencies, n=2)
        with pytest.raises(ValueError, match="prepared by another scorer"):
            two.score(predictions, one.prepare(references))

    @pytest.mark.parametrize("image_index", [[0], [0, 30], [-1, 0], [0, 1, 2]])
    def test_refuses_captions_without_an_image(self, image_index: list[int]) -> None:
        _, references = random_pairs(5)
        scorer = CiderD(DocumentFrequencies.from_references(references, tokenized=True))
        with pytest.raises(ValueError, match=r"2 predictions, \d image positions"):
            scorer.score(["a", "b"], scorer.prepare(references), image_index)


class TestRefusals:
    @pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS)
    def test_a_single_image(self, function: Any) -> None:
        with pytest.raises(MetricInputError, match=r"image 42: a single image.*document_frequencies="):
            function(["a dog"], [["a dog"]], tokenized=True, image_ids=[42])
        frequencies = DocumentFrequencies.from_references([["a dog"], ["a cat"]], tokenized=True)
        scores = function(["a dog"], [["a dog"]], tokenized=True, document_frequencies=frequencies)
        assert next(iter(scores.corpus.values())) == pytest.approx(5)

    def test_frequencies_of_a_single_image(self) -> None:
        frequencies = DocumentFrequencies.from_references([["a dog"]], tokenized=True)
        with pytest.raises(MetricInputError, match="of one image"):
            cider_d(["a", "b"], [["a"], ["b"]], tokenized=True, document_frequencies=frequencies)

    @pytest.mark.parametrize("n", [0, 5])
    def test_order(self, n: int) -> None:
        frequencies = DocumentFrequencies.from_references([["a dog"], ["a cat"]], tokenized=True)
        with pytest.raises(ValueError, match=f"n is {n}, expected 1 to 4"):
            cider_d(["a", "b"], [["a"], ["b"]], tokenized=True, n=n, document_frequencies=frequencies)

    @pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan])
    def test_sigma(self, sigma: float) -> None:
        with pytest.raises(ValueError, match="sigma is"):
            cider_d(["a", "b"], [["a"], ["b"]], tokenized=True, sigma=sigma)

    def test_images_are_named(self) -> None:
        with pytest.raises(MetricInputError, match="image x: no references"):
            cider(["a", "b"], [["a"], []], tokenized=True, image_ids=["w", "x"])


@pytest.mark.parametrize("metric", [cider, cider_d])
def test_document_frequencies_of_another_tokenizer_are_refused(metric: Any) -> None:
    """As far as it is known: not of tokens."""
    references = [["a dog"], ["two cats"]]
    of_unicode = DocumentFrequencies.from_references(references, tokenizer="unicode")
    of_tokens = DocumentFrequencies.from_references(references, tokenized=True)
    given = (["a dog", "a cat"], references)
    with pytest.raises(ValueError, match="'unicode-lowercase-nopunct' do not fit captions that are cut by 'ptb-"):
        metric(*given, document_frequencies=of_unicode)
    with pytest.raises(ValueError, match="'unicode-lowercase-nopunct' do not fit"):
        CaptionMetrics([metric.__name__], of_unicode)
    expected = metric(*given, document_frequencies=of_tokens).corpus
    assert metric(*given, document_frequencies=of_unicode, tokenizer="unicode").corpus == expected
    assert metric(*given, document_frequencies=of_unicode, tokenized=True).corpus == expected
