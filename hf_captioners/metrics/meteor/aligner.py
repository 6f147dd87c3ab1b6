"""Alignment of the words of a caption with those of a reference, by METEOR 1.5.

Denkowski and Lavie (2014, "Meteor Universal", section 2) describe it: of all matches of four kinds, a beam
search picks those that (1) cover every word at most once, (2) cover the most words, (3) form the fewest chunks, (4) lie
closest. The published program was observed to do the following, which the paper leaves open, and which is done here too
because the score depends on it:

1. In (2), a word of an exact match counts 1, a match of another kind half its words on each side, rounded down. So an
   exact match is preferred to a paraphrase, and between words matched by stem or synonym, one by one, none is preferred
   to any. Certain matches, whose words occur in no other match, are always taken.
2. A match that occurs twice, such as a paraphrase that the table has in both directions, is not certain.
3. The search goes through the reference. (4) is no distance of the matches taken: a path that leaves a match aside, for
   one further down the list or for none, pays the distance between that match's two places.
4. The beam is sorted after every word; paths that are equal keep their order, matches before "no match here".
5. Stems and synonyms never match a word with itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import NamedTuple, TypeAlias

from .data import MeteorData

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)
BEAM_SIZE = 40


class Match(NamedTuple):
    """Words of the reference matched with words of the hypothesis.

    Attributes:
        reference_start, reference_length (`int`): first word in the reference, and number of words.
        hypothesis_start, hypothesis_length (`int`): first word in the hypothesis, and number of words.
        kind (`int`): `EXACT` 0, `STEM` 1, `SYNONYM` 2 or `PARAPHRASE` 3.
    """

    reference_start: int
    reference_length: int
    hypothesis_start: int
    hypothesis_length: int
    kind: int


@dataclass(frozen=True)
class Sentence:
    """A caption prepared for alignment.

    Attributes:
        words (`Sequence[str]`): its words.
        places (`dict[str, list[int]]`): word -> its positions.
        phrases (`list[tuple[int, int, dict[str, int]]]`): start, number of words and paraphrases of the phrases that
            have any.
        phrase_places (`dict[str, list[int]]`): phrase that is a paraphrase of another -> its starts.
    """

    words: Sequence[str]
    places: dict[str, list[int]]
    phrases: list[tuple[int, int, dict[str, int]]]
    phrase_places: dict[str, list[int]]


class MeteorAligner:
    """An aligner for captions of a known set: stems, synonyms and paraphrases of their words are looked up once.

    Args:
        data ([`MeteorData`]): the tables.
        texts (`Iterable[str]`): all captions that will be aligned.

    Example:

    ```python
    >>> from hf_captioners.metrics.meteor.aligner import MeteorAligner
    >>> from hf_captioners.metrics.meteor.data import MeteorData, SynonymSets
    >>> from hf_captioners.metrics.meteor.normalizer import MeteorNormalizer
    >>> from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable
    >>> paraphrases = ParaphraseTable.from_pairs([("a lot of", "many")])
    >>> synonyms = SynonymSets({"sofa": "7", "couch": "7"}, {})
    >>> data = MeteorData(MeteorNormalizer(), frozenset({"on", "the"}), lambda word: word[:4], synonyms, paraphrases)
    >>> aligner = MeteorAligner(data, ["a lot of cats on the sofa", "many cats on couch"])
    >>> hypothesis, reference = aligner.sentence("many cats on couch"), aligner.sentence("a lot of cats on the sofa")
    >>> for match in aligner.align(hypothesis, reference):
    ...     print(*match)
    0 3 0 1 3
    3 1 1 1 0
    4 1 2 1 0
    6 1 3 1 2

    ```
    """

    def __init__(self, data: MeteorData, texts: Iterable[str]) -> None:
        self._lines = {text: data.normalizer(text) for text in texts}
        paraphrases = data.paraphrases.among(self._lines.values())
        self._targets = {target for phrases in paraphrases.values() for target in phrases}
        # phrase -> its paraphrases; the beginnings of phrases have none
        self._phrases = _beginnings({*paraphrases, *self._targets}) | paraphrases
        words = {word for line in self._lines.values() for word in line}
        self._stems = _related({word: [data.stem(word)] for word in words})
        self._synonyms = _related({word: data.synonyms.of(word) for word in words})

    def sentence(self, text: str) -> Sentence:
        """A caption prepared for alignment.

        Args:
            text (`str`): one of the aligner's texts.

        Returns:
            [`Sentence`]
        """
        words = self._lines[text]
        places: dict[str, list[int]] = defaultdict(list)
        phrase_places: dict[str, list[int]] = defaultdict(list)
        phrases = []
        for start, word in enumerate(words):
            places[word].append(start)
            for end in range(start + 1, len(words) + 1):
                phrase = " ".join(words[start:end])
                paraphrases = self._phrases.get(phrase)
                if paraphrases is None:
                    break
                if paraphrases:
                    phrases.append((start, end - start, paraphrases))
                if phrase in self._targets:
                    phrase_places[phrase].append(start)
        return Sentence(words, places, phrases, phrase_places)

    def align(self, hypothesis: Sentence, reference: Sentence) -> list[Match]:
        """Align two captions.

        Args:
            hypothesis ([`Sentence`]): the caption.
            reference ([`Sentence`]): a reference of it.

        Returns:
            `list[Match]`: the matches, in the order of the reference.
        """
        return _resolve(self._matches(hypothesis, reference), len(reference.words))

    def _matches(self, hypothesis: Sentence, reference: Sentence) -> list[Match]:
        """All matches, in the order in which the search considers those of one place in the reference."""
        matches = []
        for reference_start, word in enumerate(reference.words):
            matches += [Match(reference_start, 1, start, 1, EXACT) for start in hypothesis.places.get(word, ())]
        for kind, related in ((STEM, self._stems), (SYNONYM, self._synonyms)):
            for reference_start, word in enumerate(reference.words):
                if word in related and (common := related[word] & hypothesis.places.keys()):
                    places = sorted(start for form in common for start in hypothesis.places[form])
                    matches += [Match(reference_start, 1, start, 1, kind) for start in places]
        for reference_start, length, hypothesis_length, starts in _paraphrased(reference, hypothesis):
            matches += [Match(reference_start, length, start, hypothesis_length, PARAPHRASE) for start in starts]
        for start, length, reference_length, starts in _paraphrased(hypothesis, reference):
            matches += [
                Match(reference_start, reference_length, start, length, PARAPHRASE) for reference_start in starts
            ]
        return matches


def _related(groups: dict[str, Iterable[str]]) -> dict[str, set[str]]:
    """The other words that share a group with each word; words without any are left out."""
    members: dict[str, set[str]] = defaultdict(set)
    for word, names in groups.items():
        for name in names:
            members[name].add(word)
    related = {word: set().union(*(members[name] for name in names)) - {word} for word, names in groups.items()}
    return {word: partners for word, partners in related.items() if partners}


def _beginnings(phrases: Iterable[str]) -> dict[str, dict[str, int]]:
    """The first words of each phrase, one, two, and so on to all, with no paraphrases yet."""
    beginnings: dict[str, dict[str, int]] = {}
    for phrase in phrases:
        words = phrase.split(" ")
        beginnings.update((" ".join(words[:end]), {}) for end in range(1, len(words) + 1))
    return beginnings


def _paraphrased(sentence: Sentence, other_sentence: Sentence) -> Iterable[tuple[int, int, int, list[int]]]:
    """Start and length of each phrase with a paraphrase in the other sentence, and its length and starts there."""
    for start, length, paraphrases in sentence.phrases:
        if common := paraphrases.keys() & other_sentence.phrase_places.keys():
            for paraphrase in sorted(common, key=paraphrases.__getitem__):
                yield start, length, paraphrase.count(" ") + 1, other_sentence.phrase_places[paraphrase]


# A path of the search: rank (lower is better), end of the open chunk in the hypothesis or -1, words of the hypothesis
# taken (bits), place in the reference from which it goes on, its last match and the matches before that.
_Chain: TypeAlias = "tuple[Match, _Chain] | None"
_Path: TypeAlias = tuple[int, int, int, int, _Chain]

# The three criteria in one number, most important first: distances stay below a chunk, chunks below a word
_CHUNK = 2**40
_WORD = 2**60
_rank = itemgetter(0)


def _resolve(matches: list[Match], length: int) -> list[Match]:
    """The best matches that don't overlap, for a reference of so many words."""
    certain, rivals = _sort_out(matches)
    if not rivals:
        return sorted(certain.values())
    paths: list[_Path] = [(0, -1, 0, 0, None)]
    for place in range(length):
        grown: list[_Path] = []
        for path in paths:
            if path[3] > place:  # inside a longer match
                grown.append(path)
            elif place in certain:
                grown.append(_take(path, certain[place], 0, path[0]))
            else:
                _grow(path, place, rivals.get(place, ()), grown)
        if len(grown) > 1:
            grown.sort(key=_rank)  # stable
            del grown[BEAM_SIZE:]
        paths = grown
    best = min(paths, key=lambda path: path[0] + (_CHUNK if path[1] >= 0 else 0))
    chosen, chain = [], best[4]
    while chain is not None:
        match, chain = chain
        chosen.append(match)
    return chosen[::-1]


def _sort_out(matches: list[Match]) -> tuple[dict[int, Match], dict[int, list[tuple[Match, int, int]]]]:
    """Certain matches, and the other ones with their value and words (bits), both by their start in the reference."""
    reference_cover: dict[int, int] = defaultdict(int)  # place -> matches that cover it
    hypothesis_cover: dict[int, int] = defaultdict(int)
    for start, size, hypothesis_start, hypothesis_size, _ in matches:
        for place in range(start, start + size):
            reference_cover[place] += 1
        for place in range(hypothesis_start, hypothesis_start + hypothesis_size):
            hypothesis_cover[place] += 1
    certain = {}
    rivals: dict[int, list[tuple[Match, int, int]]] = defaultdict(list)
    for match in matches:
        start, size, hypothesis_start, hypothesis_size, kind = match
        alone = all(reference_cover[place] == 1 for place in range(start, start + size))
        if alone and all(
            hypothesis_cover[place] == 1 for place in range(hypothesis_start, hypothesis_start + hypothesis_size)
        ):
            certain[start] = match
        else:
            value = 2 if kind == EXACT else size // 2 + hypothesis_size // 2
            rivals[start].append((match, value * _WORD, ((1 << hypothesis_size) - 1) << hypothesis_start))
    return certain, rivals


def _grow(path: _Path, place: int, rivals: Iterable[tuple[Match, int, int]], grown: list[_Path]) -> None:
    """Extend the path by each of the matches that it can take at this place, and by none."""
    rank, end, taken, _, chain = path
    for match, value, words in rivals:
        if not taken & words:
            grown.append(_take(path, match, words, rank - value))
            rank += abs(match[2] - place)
    grown.append((rank if end < 0 else rank + _CHUNK, -1, taken, place, chain))


def _take(path: _Path, match: Match, words: int, rank: int) -> _Path:
    _, end, taken, _, chain = path
    if end not in (-1, match[2]):
        rank += _CHUNK  # the open chunk is closed
    return rank, match[2] + match[3], taken | words, match[0] + match[1], (match, chain)
