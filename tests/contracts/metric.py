"""The contract of every metric. A metric's test module subclasses `MetricContract`, or `ReferenceContract` where
there are numbers of the reference tools."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, PreTrainedTokenizerFast

from hf_captioners.metric_table import METRICS, printed
from hf_captioners.metrics import CaptionMetrics, DocumentFrequencies, Evaluation, MetricInputError
from hf_captioners.metrics.scores import Scores

PREDICTIONS = ["A dog runs on a lawn.", "two cats on a chair", "the sea", ""]
REFERENCES = [["The dog runs over a lawn.", "a dog, a dog"], ["cats sit on the chair"], ["the blue sea"], ["a red bus"]]
SETS = ("satic_500", "fakecap_1000", "adversarial_60")


@dataclass(frozen=True)
class MetricCase:
    """A parity set: captions, their tokens, and what the reference tools make of them.

    `expected` has `corpus` and `per_image`, score -> number or list; `order` are the images, in the order of the rest.
    """

    predictions: list[str]
    references: list[list[str]]
    tokens: tuple[list[str], list[list[str]]]
    expected: dict[str, Any]


def load_case(folder: Path) -> MetricCase:
    """Read a parity set."""
    hyps, refs, tokens, expected = (
        json.loads((folder / f"{part}.json").read_text("utf-8")) for part in ("hyps", "refs", "tokenized", "expected")
    )
    captions = {str(row["image_id"]): row["caption"] for row in hyps}
    order = [str(image) for image in expected["order"]]
    predicted = [tokens["hyps"][image] for image in order]
    return MetricCase(
        [captions[image] for image in order],
        [refs[image] for image in order],
        ([one if isinstance(one, str) else one[0] for one in predicted], [tokens["refs"][image] for image in order]),
        expected,
    )


def tiny_clip(captions: Sequence[str]) -> dict[str, Any]:
    """The arguments of a CLIP scorer that knows the words of some captions."""
    words = ["[UNK]", *sorted({word for caption in captions for word in caption.split()}), "A", "photo", "depicts"]
    words += ["<s>", "</s>"]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(word, words.index(word)) for word in ("<s>", "</s>")]
    )
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    vision = {**size, "image_size": 32, "patch_size": 16}
    return {
        "model": CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)).eval(),
        "tokenizer": PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="</s>", model_max_length=77),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }


def random_images(number: int) -> list[Image.Image]:
    """Small pictures of noise."""
    pixels = (np.random.default_rng(seed).integers(0, 256, (40, 36, 3), np.uint8) for seed in range(number))
    return [Image.fromarray(one) for one in pixels]


class MetricContract:
    """Subclass with the name, and with `options` where the metric needs some."""

    name: ClassVar[str]  # in the table of metrics
    pooled: ClassVar[set[str]] = set()  # scores of the corpus that are computed from sums over the images: no means

    @pytest.fixture()
    def options(self) -> dict[str, Any]:
        return {}

    @pytest.fixture()
    def suite(self, options: dict[str, Any]) -> CaptionMetrics:
        frequencies = None
        if "document_frequencies" in METRICS[self.name].reads:
            frequencies = DocumentFrequencies.from_references(REFERENCES)
        return CaptionMetrics([self.name], frequencies, options={self.name: options})

    def score(self, suite: CaptionMetrics, images: Sequence[int] = (0, 1, 2, 3)) -> Evaluation:
        """Some of the captions above, in some order."""
        pictures = random_images(4)
        captions = [PREDICTIONS[i] for i in images], [REFERENCES[i] for i in images]
        return suite(*captions, image_ids=list(images), images=[pictures[i] for i in images])

    def test_scores_have_their_types(self, suite: CaptionMetrics) -> None:
        scores = self.score(suite)
        assert scores.corpus and {type(value) for value in scores.corpus.values()} == {float}
        for values in scores.per_image.values():
            assert (values.dtype, values.shape) == (np.float64, (4,)) and np.isfinite(values).all()

    def test_function_and_suite_agree(self, suite: CaptionMetrics, options: dict[str, Any]) -> None:
        metric = METRICS[self.name]
        given = {"predictions": PREDICTIONS, "references": REFERENCES, "images": random_images(4)}
        given["document_frequencies"] = suite.document_frequencies
        scores = metric.load()(**{name: given[name] for name in metric.reads}, **options)
        assert isinstance(scores, Scores)
        evaluation = self.score(suite)
        assert scores.corpus == evaluation.corpus
        settings = dict(scores.settings)
        if not metric.as_written:  # a suite cuts captions once, and says so once
            assert settings.pop("tokenizer") == evaluation.signature["tokenizer"]
        assert evaluation.settings == {self.name: settings}

    def test_table_knows_how_to_print(self, suite: CaptionMetrics) -> None:
        scores = self.score(suite)
        known = [name for name in scores.corpus if printed(name) is not None]
        assert known == (list(scores.corpus) if METRICS[self.name].printed else [])
        assert len(scores.table()) == len(scores.corpus)

    def test_an_image_alone(self, suite: CaptionMetrics) -> None:
        scores = self.score(suite)
        for image in range(4):
            alone = self.score(suite, [image])
            for name, values in scores.per_image.items():
                assert alone.per_image[name] == pytest.approx(values[image], rel=1e-5, abs=1e-6), name
                if name in alone.corpus:
                    assert alone.corpus[name] == pytest.approx(values[image], rel=1e-5, abs=1e-6), name

    def test_corpus_is_the_mean_or_is_not(self, suite: CaptionMetrics) -> None:
        scores = self.score(suite)
        both = scores.corpus.keys() & scores.per_image.keys()
        means = {name for name in both if abs(scores.corpus[name] - scores.per_image[name].mean()) < 1e-12}
        assert both - means == self.pooled

    def test_order_of_images(self, suite: CaptionMetrics) -> None:
        order = [2, 0, 3, 1]
        scores, permuted = self.score(suite), self.score(suite, order)
        assert permuted.corpus == pytest.approx(scores.corpus, rel=1e-5, abs=1e-6)
        for name, values in scores.per_image.items():
            np.testing.assert_allclose(permuted.per_image[name], values[order], rtol=1e-5, atol=1e-6)

    def test_pickling(self, suite: CaptionMetrics) -> None:
        scores = self.score(suite)
        for again in (pickle.loads(pickle.dumps(scores)), self.score(pickle.loads(pickle.dumps(suite)))):
            assert again.corpus == scores.corpus
            assert again.signature_text == scores.signature_text
            for name, values in scores.per_image.items():
                np.testing.assert_array_equal(again.per_image[name], values)

    def test_refusals(self, suite: CaptionMetrics, options: dict[str, Any]) -> None:
        pictures = random_images(2)
        for predictions, references, images, message in [
            ([], [], [], "no images to score"),
            (["a dog", None], [["a"], ["b"]], pictures, r"image y: the prediction is None \(NoneType\)"),
            (["a dog", "a"], [["a"], []], pictures, "image y: no references"),
            (["a dog", "a"], [["a"], ["b", 3]], pictures, r"image y: reference 1 is 3 \(int\)"),
        ]:
            with pytest.raises(MetricInputError, match=message):
                suite(predictions, references, ["x", "y"][: len(images)], images)
            metric = METRICS[self.name]
            if "references" not in metric.reads and "reference" in message:
                continue
            given = {"predictions": predictions, "references": references, "images": images}
            given["document_frequencies"] = suite.document_frequencies
            own = {name: given[name] for name in metric.reads}
            with pytest.raises(MetricInputError, match=message.replace("image y", "image 1")):
                metric.load()(**own, **options)


class ReferenceContract(MetricContract):
    """Besides, the numbers of the reference tools, from tokens and from captions as they were written."""

    in_fixtures: ClassVar[dict[str, str]]  # our score -> its name in the parity sets
    absolute: ClassVar[float] = 1e-12
    relative_per_image: ClassVar[float | None] = None  # instead of the absolute tolerance

    @pytest.mark.parametrize(("case", "form"), [*((case, "tokens") for case in SETS), ("adversarial_60", "written")])
    def test_equals_the_reference(
        self, metric_case: Callable[[str], MetricCase], case: str, form: str, options: dict[str, Any]
    ) -> None:
        captions = metric_case(case)
        if form == "tokens":
            scores = METRICS[self.name].load()(*captions.tokens, tokenized=True, **options)
        else:
            suite = CaptionMetrics([self.name], options={self.name: options})
            scores = suite(captions.predictions, captions.references, captions.expected["order"])
        tolerance = {"rtol": 0, "atol": self.absolute}
        if self.relative_per_image is not None:
            tolerance = {"rtol": self.relative_per_image, "atol": 0}
        assert list(scores.corpus) == list(self.in_fixtures)
        for ours, theirs in self.in_fixtures.items():
            assert scores.corpus[ours] == pytest.approx(captions.expected["corpus"][theirs], rel=0, abs=self.absolute)
            expected = captions.expected["per_image"][theirs]
            np.testing.assert_allclose(scores.per_image[ours], expected, **tolerance)
