"""METEOR 1.5: statistics, scores and corpus scores of the published program."""

import json

import numpy as np
import pytest
from contracts.metric import ReferenceContract

from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.meteor.data import MeteorData, MeteorDataError
from hf_captioners.metrics.meteor.meteor import meteor, meteor_score, meteor_statistics


@pytest.fixture(scope="module")
def data():
    pytest.importorskip("pycocoevalcap", reason="METEOR's tables are an extra")
    return MeteorData.load()


@pytest.fixture(scope="module")
def segments(shared_parity):
    """600 captions with one or all references, and what the program makes of them."""
    return json.loads((shared_parity / "metrics" / "meteor_segments.json").read_text("utf-8"))


class TestContract(ReferenceContract):
    name = "meteor"
    pooled = {"meteor"}
    in_fixtures = {"meteor": "METEOR"}
    absolute = 1e-9

    @pytest.fixture()
    def options(self, data):
        return {"data": data}


def program_statistics(segments):
    return np.array([[float(word) for word in segment["stats"].split()] for segment in segments])


def test_statistics_of_segments(segments, data):
    hypotheses, references = [segment["hyp"] for segment in segments], [segment["refs"] for segment in segments]
    statistics = meteor_statistics(hypotheses, references, tokenized=True, data=data)
    assert np.array_equal(statistics, program_statistics(segments))


def test_scores_of_the_statistics_of_segments(segments):
    scores = [meteor_score(row) for row in program_statistics(segments).tolist()]
    assert np.allclose(scores, [segment["score"] for segment in segments], rtol=0, atol=1e-12)


# Statistics given to the program, and the score it answered (EVAL).
@pytest.mark.parametrize(
    ("statistics", "score"),
    [
        ([2, 3, 0, 0, 2, 2, *[0] * 14, 1, 2, 2], 0.33520678036654417),
        ([3, 2, 0, 0, 2, 2, *[0] * 14, 1, 2, 2], 0.4443438716486749),
        ([2, 2, 0, 0, 2, 2, *[0] * 14, 2, 2, 2], 0.4),
        ([2, 2, 0, 0, *[0] * 4, 2, 2, *[0] * 10, 1, 2, 2], 0.6),
        ([3, 2, 0, 0, *[0] * 12, 3, 2, 0, 0, 1, 3, 2], 0.6),
        ([3, 3, 3, 3, 0, 0, 3, 3, *[0] * 12, 1, 3, 3], 1.0),
        ([3, 3, 0, 0, 3, 0, *[0] * 14, 1, 3, 0], 0.0),
        ([2, 3, 0, 0, 2, 1, *[0] * 14, 1, 2, 1], 0.16545750115220867),
        ([2, 2, 1, 1, *[0] * 19], 0.0),
        ([0] * 23, 0.0),
    ],
)
def test_score_of_statistics(statistics, score):
    assert meteor_score(statistics) == pytest.approx(score, abs=1e-12)


def test_corpus_score_counts_no_chunks_of_whole_matches(data):
    """The program's answer to EVAL with both segments."""
    scores = meteor(
        ["a man rides a horse", "a cat"], [["a man riding a brown horse"], ["a cat"]], tokenized=True, data=data
    )
    assert scores.corpus["meteor"] == pytest.approx(0.4190935564647469, abs=1e-12)
    assert scores.per_image["meteor"].tolist() == pytest.approx([0.3619621505887075, 1.0], abs=1e-12)


def test_best_reference_counts_the_first_of_equals(data):
    statistics = meteor_statistics(["w", "a b"], [["x", "y z"], ["a b c", "a b", "b a"]], tokenized=True, data=data)
    assert statistics[:, 1].tolist() == [1, 2]
    assert statistics[1].tolist() == [2, 2, 1, 1, 1, 1, 1, 1, *[0] * 12, 1, 2, 2]


def test_captions_without_words_score_0(data):
    scores = meteor(["", "...", "a dog"], [["a dog"], ["a cat"], ["", " "]], tokenized=True, data=data)
    assert scores.per_image["meteor"].tolist() == [0.0, 0.0, 0.0]
    assert scores.corpus["meteor"] == 0.0


def test_separator_and_line_breaks_do_no_harm(data):
    plain = meteor(["a dog runs"], [["a dog ran", "a cat"]], tokenized=True, data=data)
    odd = meteor(["a dog ||| runs"], [["a dog\nran", "a\r\ncat|||"]], tokenized=True, data=data)
    assert plain.per_image["meteor"].tolist() == odd.per_image["meteor"].tolist()
    assert 0 < plain.corpus["meteor"] < 1


def test_tokenizes_raw_captions(data):
    raw = meteor(["A dog (brown) runs."], [["The dog's run!", "Dogs, running"]], data=data)
    tokens = meteor(["a dog -lrb- brown -rrb- runs"], [["the dog 's run", "dogs running"]], tokenized=True, data=data)
    assert raw.per_image["meteor"].tolist() == tokens.per_image["meteor"].tolist()


def test_names_the_image_without_references():
    with pytest.raises(MetricInputError, match="image 7: no references"):
        meteor(["a dog"], [[]], image_ids=[7])


def test_says_what_to_install_where_the_tables_are_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_CAPTIONERS_METEOR", str(tmp_path))
    with pytest.raises(MeteorDataError, match=r"meteor-1\.5\.jar: METEOR's tables are not there"):
        meteor(["a dog"], [["a dog"]], tokenized=True)
