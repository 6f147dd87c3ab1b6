"""The search of many pairs gives what that of each pair gives; the best reference is the best of all."""

import random

import numpy as np
import pytest

from hf_captioners.metrics.meteor import search as module
from hf_captioners.metrics.meteor import segments
from hf_captioners.metrics.meteor.data import MeteorData, SynonymSets
from hf_captioners.metrics.meteor.matches import Sentences
from hf_captioners.metrics.meteor.meteor import meteor_score, meteor_statistics
from hf_captioners.metrics.meteor.normalizer import MeteorNormalizer
from hf_captioners.metrics.meteor.pair_search import search_pair
from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable

WORDS = ["a", "the", "dog", "dogs", "cat", "cats", "run", "runs", "of", "lot"]


@pytest.fixture(scope="module")
def data():
    """Tables so dense that most words have several matches."""
    rng = random.Random(7)

    def phrase():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 4)))

    table = ParaphraseTable.from_pairs([(phrase(), phrase()) for _ in range(300)])
    synonyms = SynonymSets({"dog": "1", "cat": "1 2", "run": "2", "a": "3", "the": "3"}, {})
    return MeteorData(MeteorNormalizer(), frozenset({"a", "the", "of"}), lambda word: word.rstrip("s"), synonyms, table)


def caption(rng, longest):
    words = rng.sample(WORDS, rng.randint(1, len(WORDS))) + ["x", "y"] * rng.randint(0, 3)
    return " ".join(rng.choices(words, k=rng.randint(0, longest)))


@pytest.mark.parametrize(("longest", "number"), [(4, 400), (8, 400), (14, 300), (30, 60), (80, 15)])
def test_the_same_as_pair_by_pair(data, longest, number):
    rng = random.Random(longest)
    pairs = [(caption(rng, longest), caption(rng, longest)) for _ in range(number)]
    sentences = Sentences(data, [text for pair in pairs for text in pair])
    hypotheses, references = (np.array([sentences.number[text] for text in side]) for side in zip(*pairs, strict=True))
    matches = sentences.matches(hypotheses, references)
    certain = module.certain_matches(matches, number)
    chosen = module.search(matches, certain, sentences.length[references])
    for pair in range(number):
        some, rows = matches.of_pairs(np.array([pair]))
        expected = rows[search_pair(some, certain[rows], int(sentences.length[references[pair]]))]
        assert chosen[matches.pair[chosen] == pair].tolist() == expected.tolist(), pairs[pair]


def test_few_pairs_of_captions_need_the_search_of_one_pair(data, monkeypatch):
    rng = random.Random(1)
    searched = []
    monkeypatch.setattr(module, "search_pair", lambda *arguments: searched.append(1) or search_pair(*arguments))
    pairs = [(caption(rng, 8), caption(rng, 8)) for _ in range(300)]
    meteor_statistics(*zip(*((text, [other]) for text, other in pairs), strict=True), tokenized=True, data=data)
    assert len(searched) < 60


@pytest.mark.parametrize("at_once", [4096, 7])
def test_the_best_reference_is_the_first_of_the_best(data, monkeypatch, at_once):
    monkeypatch.setattr(segments, "_PAIRS_AT_ONCE", at_once)
    rng = random.Random(3)
    hypotheses = [caption(rng, 10) for _ in range(200)]
    lists = [[caption(rng, 10) for _ in range(rng.randint(1, 9))] for _ in hypotheses]
    together = meteor_statistics(hypotheses, lists, tokenized=True, data=data)
    for hypothesis, texts, row in zip(hypotheses, lists, together.tolist(), strict=True):
        each = meteor_statistics([hypothesis] * len(texts), [[text] for text in texts], tokenized=True, data=data)
        assert row == max(each.tolist(), key=meteor_score)


def test_no_alignment_scores_more_than_the_best_imaginable(data):
    rng = random.Random(4)
    pairs = [(caption(rng, 12), caption(rng, 12)) for _ in range(400)]
    sentences = Sentences(data, [text for pair in pairs for text in pair])
    hypotheses, references = (np.array([sentences.number[text] for text in side]) for side in zip(*pairs, strict=True))
    matches = sentences.matches(hypotheses, references)
    certain = module.certain_matches(matches, len(pairs))
    bound = segments.meteor_scores(segments._best_imaginable(sentences, hypotheses, references, matches, certain))
    statistics = meteor_statistics(*zip(*((a, [b]) for a, b in pairs), strict=True), tokenized=True, data=data)
    score = segments.meteor_scores(statistics)
    assert (bound >= score - 1e-12).all() and (bound > score).any() and (bound == score).any()
