"""Alignments of METEOR. Expected are those of the published program (`-writeAlignments`) with these small tables."""

import pytest

from hf_captioners.metrics.meteor.aligner import MeteorAligner
from hf_captioners.metrics.meteor.data import MeteorData, SynonymSets
from hf_captioners.metrics.meteor.normalizer import MeteorNormalizer
from hf_captioners.metrics.meteor.pair_search import BEAM_SIZE
from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable

PARAPHRASES = [
    ("a lot of", "many"),
    ("solo", "duo"),
    ("solo", "duo two"),
    ("so lo", "sing le"),
    ("no such", "such no"),
    ("both", "each"),
    ("each", "both"),
    ("kk ll", "papa"),
    ("kk ll", "qaqa"),
    ("sasa", "kk ll"),
    ("qu a d u p", "le le"),
]
STEMS = {"dogs": "dog", "sofas": "sofa"}


@pytest.fixture(scope="module")
def data():
    synonyms = SynonymSets({"sofa": "1", "couch": "1 2", "dog": "3"}, {})
    table = ParaphraseTable.from_pairs(PARAPHRASES)
    return MeteorData(MeteorNormalizer(), frozenset(), lambda word: STEMS.get(word, word), synonyms, table)


def align(data, hypothesis, reference):
    return [row[1:] for row in rows(MeteorAligner(data, [hypothesis, reference]).align([hypothesis], [reference]))]


def rows(matches):
    return list(zip(*(column.tolist() for column in matches), strict=True))


@pytest.mark.parametrize(
    ("hypothesis", "reference", "matches"),
    [
        ("", "a", []),
        ("a", "", []),
        ("a b c", "a b c", [(0, 1, 0, 1, 0), (1, 1, 1, 1, 0), (2, 1, 2, 1, 0)]),
        ("a", "a a", [(1, 1, 0, 1, 0)]),
        ("x a", "a a", [(0, 1, 1, 1, 0)]),
        ("x x a", "a y y a", [(0, 1, 2, 1, 0)]),
        ("a a", "a", [(0, 1, 0, 1, 0)]),
        ("a b", "a a b", [(1, 1, 0, 1, 0), (2, 1, 1, 1, 0)]),
        ("a b", "a y b a", [(2, 1, 1, 1, 0), (3, 1, 0, 1, 0)]),
        ("x a", "a y a", [(0, 1, 1, 1, 0)]),
        ("a y x a", "a u a", [(0, 1, 0, 1, 0), (2, 1, 3, 1, 0)]),
        ("a x a", "a u a a", [(0, 1, 0, 1, 0), (3, 1, 2, 1, 0)]),
        ("a b c d", "d c b a a b c d", [(4, 1, 0, 1, 0), (5, 1, 1, 1, 0), (6, 1, 2, 1, 0), (7, 1, 3, 1, 0)]),
        ("solo", "duo", [(0, 1, 0, 1, 3)]),
        ("solo", "duo duo", []),
        ("solo solo", "duo duo", []),
        ("solo", "duo two duo two", [(0, 2, 0, 1, 3)]),
        ("so lo", "sing le sing le", [(2, 2, 0, 2, 3)]),
        ("dogs", "dog", []),
        ("dogs", "dog dog", []),
        ("couch", "sofa", [(0, 1, 0, 1, 2)]),
        ("couch", "sofa sofas", []),
        ("no such", "such no", [(0, 1, 1, 1, 0), (1, 1, 0, 1, 0)]),
        ("both", "each", []),
        ("sasa papa qaqa", "kk ll", [(0, 2, 1, 1, 3)]),
        ("qaqa papa", "kk ll", [(0, 2, 1, 1, 3)]),
        ("sasa qaqa", "kk ll", [(0, 2, 1, 1, 3)]),
        (
            "many dogs on a couch",
            "a lot of dog on the sofa",
            [(0, 1, 3, 1, 0), (3, 1, 1, 1, 1), (4, 1, 2, 1, 0), (6, 1, 4, 1, 2)],
        ),
        ("le le x qu", "qu a d u p", [(0, 5, 0, 2, 3)]),
        ("le le x qu a d", "qu a d u p", [(0, 1, 3, 1, 0), (1, 1, 4, 1, 0), (2, 1, 5, 1, 0)]),
        (
            "a laptop computer sitting on top of a table",
            "an electronic device on a table next to a lamp",
            [(3, 1, 4, 1, 0), (4, 1, 7, 1, 0), (5, 1, 8, 1, 0), (8, 1, 0, 1, 0)],
        ),
        (
            "a dog and a dog and a cat",
            "the dog and a cat and a dog",
            [
                (1, 1, 4, 1, 0),
                (2, 1, 5, 1, 0),
                (3, 1, 6, 1, 0),
                (4, 1, 7, 1, 0),
                (5, 1, 2, 1, 0),
                (6, 1, 0, 1, 0),
                (7, 1, 1, 1, 0),
            ],
        ),
    ],
)
def test_matches_are_those_of_the_program(data, hypothesis, reference, matches):
    assert align(data, hypothesis, reference) == matches


def test_does_not_depend_on_the_other_captions(data):
    pairs = [
        ("many dogs on a couch", "a lot of dog on the sofa"),
        ("solo", "duo two duo two"),
        ("both", "each of a kind"),
    ]
    together = MeteorAligner(data, [text for pair in pairs for text in pair])
    alone = [(number, *match) for number, pair in enumerate(pairs) for match in align(data, *pair)]
    assert rows(together.align(*zip(*pairs, strict=True))) == alone


def test_no_pairs(data):
    assert rows(MeteorAligner(data, []).align([], [])) == []


def test_matches_never_overlap_where_the_beam_is_full(data):
    hypothesis = " ".join(["a", "dog", "a", "lot", "of"] * 12)
    reference = " ".join(["many", "a", "sofa", "dogs", "a", "of"] * 10)
    matches = align(data, hypothesis, reference)
    theirs = [place for match in matches for place in range(match[0], match[0] + match[1])]
    ours = [place for match in matches for place in range(match[2], match[2] + match[3])]
    assert len(set(theirs)) == len(theirs) > BEAM_SIZE / 2
    assert len(set(ours)) == len(ours)
