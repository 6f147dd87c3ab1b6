"""Several metrics at once: whole corpora, signature, scales and errors."""

import json

import numpy as np
import pytest

from hf_captioners.data.captions.predictions import match, read_predictions, read_references
from hf_captioners.metrics import METRICS, CaptionMetrics, DocumentFrequencies, MetricInputError, cider_d
from hf_captioners.metrics.suite import Evaluation

NAMES = {
    **{f"bleu_{n}": f"Bleu_{n}" for n in (1, 2, 3, 4)},
    "rouge_l": "ROUGE_L",
    "cider_d": "CIDEr",
    "cider": "CIDEr_plain_ruotianluo",
}


@pytest.mark.slow
@pytest.mark.parametrize("system", ["satic_karpathy_test", "satic_val2014_full"])
def test_whole_corpora(shared_parity, shared_data, system):
    expected = json.loads((shared_parity / "metrics/corpus_level_large.json").read_text())[system]["corpus"]
    folder = shared_data / "coco_captions"
    predictions = read_predictions(folder / "results_satic_val2014.json.gz")
    references = read_references(folder / "captions_val2014.json.gz")
    ids, captions, several = match(predictions, references)
    kept = range(len(ids))
    if system == "satic_karpathy_test":
        test = set(map(int, (folder / "karpathy_test_image_ids.txt").read_text().split()))
        kept = [index for index in kept if ids[index] in test]
    kept = sorted(kept, key=lambda index: ids[index])
    evaluation = CaptionMetrics(["bleu", "rouge_l", "cider_d", "cider", "meteor"], in_sequence=True)(
        [captions[index] for index in kept], [several[index] for index in kept]
    )
    for ours, theirs in {**NAMES, "meteor": "METEOR"}.items():
        assert evaluation.corpus[ours] == pytest.approx(expected[theirs], abs=1e-9), ours


def test_in_sequence_is_in_the_signature():
    signature = CaptionMetrics(["bleu"], in_sequence=True)(["a"], [["a"]]).signature
    assert signature["tokenizer"].endswith("-in-sequence")


class TestSignature:
    captions = ["a dog runs", "a cat"], [["the dog runs", "a dog"], ["the cat sits"]]

    def test_says_what_was_scored(self):
        signature = CaptionMetrics(["bleu", "cider_d"])(*self.captions).signature
        assert signature["metrics"] == ["bleu", "cider_d"]
        assert (signature["images"], signature["references"]) == (2, 3)
        assert signature["bleu"] == {"max_n": 4, "effective_length": "closest"}
        assert signature["cider_d"] == {"n": 4, "sigma": 6.0, "df": "references"}
        assert {"tokenizer", "references_hash", "version"} <= signature.keys()
        json.dumps(signature)

    def test_differs_where_the_numbers_are_not_comparable(self):
        frequencies = DocumentFrequencies.from_references([["a dog"], ["a cat"], ["the sea"]])
        predictions, references = self.captions
        texts = [
            CaptionMetrics(["cider_d"])(*self.captions).signature_text,
            CaptionMetrics(["cider_d"], document_frequencies=frequencies)(*self.captions).signature_text,
            CaptionMetrics(["cider_d"], options={"cider_d": {"sigma": 5.0}})(*self.captions).signature_text,
            CaptionMetrics(["cider_d"])(predictions, [references[0], ["another cat"]]).signature_text,
        ]
        assert len(set(texts)) == 4
        assert "df:corpus" in texts[1]

    def test_the_same_for_other_predictions(self):
        _, references = self.captions
        texts = {CaptionMetrics(["bleu"])(one, references).signature_text for one in (["x", "y"], ["z", ""])}
        assert len(texts) == 1


def test_given_document_frequencies_are_used():
    corpus = [["a dog"], ["a cat on grass"], ["the sea and a dog"]]
    frequencies = DocumentFrequencies.from_references(corpus)
    predictions, references = ["a dog", "the sea"], [["a dog runs"], ["the blue sea"]]
    suite = CaptionMetrics(["cider_d"], document_frequencies=frequencies)
    assert (
        suite(predictions, references).corpus
        == cider_d(predictions, references, document_frequencies=frequencies).corpus
    )
    assert suite(predictions[:1], references[:1]).corpus["cider_d"] > 0  # one image is enough then


def test_table_is_on_the_scale_of_papers():
    scores = {"bleu_4": 0.37861, "cider_d": 1.27184, "clip_s": 0.7512, "vocabulary_size": 812.0}
    table = dict(Evaluation(scores, {}, [], {}).table())
    assert table == {"BLEU-4 x 100": "37.86", "CIDEr-D x 100": "127.18", "CLIP-S": "0.7512", "vocabulary size": "812"}


class TestErrors:
    def test_unknown_metric(self):
        with pytest.raises(ValueError, match=f"no metric 'blue'; expected some of {', '.join(METRICS)}"):
            CaptionMetrics(["blue"])
        with pytest.raises(ValueError, match="no metric 'x'"):
            CaptionMetrics(["bleu"], options={"x": {}})

    def test_options_without_effect(self):
        with pytest.raises(ValueError, match=r"options of 'cider_d', which is none of the metrics \('cider',\)"):
            CaptionMetrics(["cider"], options={"cider_d": {"n": 2}})
        with pytest.raises(ValueError, match=r"cider has no option 'sigma'; expected some of n$"):
            CaptionMetrics(["cider"], options={"cider": {"sigma": 5.0}})
        with pytest.raises(ValueError, match="document_frequencies are read by cider and cider_d, not by"):
            CaptionMetrics(["bleu"], DocumentFrequencies.from_references([["a"], ["b"]]))

    def test_one_image_alone_has_no_document_frequencies(self):
        with pytest.raises(MetricInputError, match=r"cat\.jpg"):
            CaptionMetrics(["cider_d"])(["a cat"], [["a cat"]], ["cat.jpg"])

    def test_bad_captions_are_named(self):
        with pytest.raises(MetricInputError, match=r"image b\.jpg: the prediction is nan"):
            CaptionMetrics(["bleu"])(["a", float("nan")], [["a"], ["b"]], ["a.jpg", "b.jpg"])
        with pytest.raises(MetricInputError, match=r"image b\.jpg: occurs twice"):
            CaptionMetrics(["bleu"])(["a", "b"], [["a"], ["b"]], ["b.jpg", "b.jpg"])

    def test_clip_s_needs_pictures(self):
        suite = CaptionMetrics(["clip_s"], options={"clip_s": {"scorer": None}})
        with pytest.raises(MetricInputError, match="clip_s looks at the pictures; give images="):
            suite(["a"], [["b"]])
        with pytest.raises(MetricInputError, match="1 images for 2 predictions"):
            suite(["a", "b"], [["b"], ["c"]], images=["a.jpg"])

    def test_clip_s_needs_a_model(self):
        with pytest.raises(ValueError, match=r"pac_s needs a CLIP model; .* \{'scorer': PacScorer\(...\)\}"):
            CaptionMetrics(["pac_s"])

    def test_empty_captions_have_scores(self):
        evaluation = CaptionMetrics(["bleu", "rouge_l", "cider_d", "diversity"])(["", "a cat"], [["a dog"], ["a cat"]])
        assert all(np.isfinite(list(evaluation.corpus.values())))
        assert evaluation.per_image["cider_d"][0] == 0
