"""All matches of captions and references: by form, by stem, by synonym and by paraphrase, of many pairs at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..ngrams import changes, spans
from .data import MeteorData
from .relation import Items, Relation

EXACT, STEM, SYNONYM, PARAPHRASE = range(4)


class Matches(NamedTuple):
    """Words of references matched with words of hypotheses, int64 arrays of shape (matches,).

    Attributes:
        pair: the reference and hypothesis; ascending.
        reference_start, reference_length: first word in the reference, and number of words; starts ascend in a pair.
        hypothesis_start, hypothesis_length: first word in the hypothesis, and number of words.
        kind: `EXACT` 0, `STEM` 1, `SYNONYM` 2 or `PARAPHRASE` 3.
    """

    pair: np.ndarray
    reference_start: np.ndarray
    reference_length: np.ndarray
    hypothesis_start: np.ndarray
    hypothesis_length: np.ndarray
    kind: np.ndarray

    def take(self, rows: np.ndarray) -> Matches:
        """Some of the matches."""
        return Matches(*(column[rows] for column in self))

    def of_pairs(self, pairs: np.ndarray) -> tuple[Matches, np.ndarray]:
        """The matches of some pairs, which are numbered anew, and their positions.

        Args:
            pairs (`np.ndarray`): int64, ascending.

        Returns:
            `tuple[Matches, np.ndarray]`
        """
        first = np.searchsorted(self.pair, pairs)
        number = np.searchsorted(self.pair, pairs, side="right") - first
        rows = spans(first, number)
        return self.take(rows)._replace(pair=np.repeat(np.arange(len(pairs)), number)), rows


class Sentences:
    """Captions as numbers, with what is known of their words and phrases.

    Args:
        data ([`MeteorData`]): the tables.
        texts (`Iterable[str]`): the captions.

    Attributes:
        number (`dict[str, int]`): text -> its sentence.
        first (`np.ndarray`): int64 of shape (sentences + 1,), the first word of each sentence among all words.
        length (`np.ndarray`): int64 of shape (sentences,), the number of words of each.
        functional (`np.ndarray`): bool of shape (words,), whether a word is a function word.
    """

    def __init__(self, data: MeteorData, texts: Iterable[str]) -> None:
        self.number = {text: number for number, text in enumerate(dict.fromkeys(texts))}
        flat: list[str] = []
        lengths = []
        for text in self.number:
            line = data.normalizer(text)
            flat += line
            lengths.append(len(line))
        self.length = np.array(lengths, np.int64)
        self.first = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.length)])
        numbers = {word: number for number, word in enumerate(dict.fromkeys(flat))}
        words = list(numbers)
        word = np.fromiter(map(numbers.__getitem__, flat), np.int64, len(flat))
        self.functional = np.array([word in data.function_words for word in words], bool)[word]
        self._functional_before = np.concatenate([np.zeros(1, np.int64), np.cumsum(self.functional)])
        self._words = Items(word, self.first)
        self._kind, self._related_words = _word_relation(words, data)
        self._phrases = data.paraphrases.among(words, word, self.length)
        self._phrase_items = Items(self._phrases.phrase, np.searchsorted(self._phrases.position, self.first))
        self._backward, self._entry, self._related_phrases = _phrase_relation(
            self._phrases.source, self._phrases.target
        )

    def function_words(self, sentence: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        """The number of function words in parts of sentences, all int64 of shape (parts,)."""
        begin = self.first[sentence] + start
        return self._functional_before[begin + length] - self._functional_before[begin]

    def matches(self, hypotheses: np.ndarray, references: np.ndarray) -> Matches:
        """Find all matches.

        Args:
            hypotheses, references (`np.ndarray`): int64 of shape (pairs,), the sentences of each pair.

        Returns:
            [`Matches`]: those of one place in the reference are in the order in which the search considers them.
        """
        pair, left, right, row = self._related_words.join(self._words, references, hypotheses)
        kind = self._kind[row]
        one = np.ones(len(pair), np.int64)
        by_word = Matches(
            pair, left - self.first[references[pair]], one, right - self.first[hypotheses[pair]], one, kind
        )
        by_phrase, backward = self._by_phrase(hypotheses, references)
        matches = Matches(*map(np.concatenate, zip(by_word, by_phrase, strict=True)))
        longest = int(np.diff(self.first).max(initial=1))
        order = (matches.pair * longest + matches.reference_start) * 5 + matches.kind
        order[len(pair) :] += backward
        return matches.take(np.argsort(order, kind="stable"))

    def _by_phrase(self, hypotheses: np.ndarray, references: np.ndarray) -> tuple[Matches, np.ndarray]:
        """The matches by paraphrase, and whether the table has them as one of the hypothesis."""
        pair, left, right, row = self._related_phrases.join(self._phrase_items, references, hypotheses)
        matches = Matches(
            pair,
            self._phrases.position[left] - self.first[references[pair]],
            self._phrases.length[left],
            self._phrases.position[right] - self.first[hypotheses[pair]],
            self._phrases.length[right],
            np.full(len(pair), PARAPHRASE),
        )
        backward, entry = self._backward[row], self._entry[row]
        # the phrases of the side that the table starts from, one after another, each with its paraphrases in the
        # order of the table
        place = np.where(backward, matches.hypothesis_start, matches.reference_start)
        length = np.where(backward, matches.hypothesis_length, matches.reference_length)
        other_place = np.where(backward, matches.reference_start, matches.hypothesis_start)
        order = np.lexsort([other_place, entry, length, place, backward, pair])
        return matches.take(order), backward[order]


def _word_relation(words: Sequence[str], data: MeteorData) -> tuple[np.ndarray, Relation]:
    """The kind of each row, and the words that match."""
    same = np.arange(len(words))
    stems = _partners({word: [data.stem(word)] for word in words})
    synonyms = _partners({word: data.synonyms.of(word) for word in words})
    left, right = np.concatenate([np.stack([same, same]), stems, synonyms], axis=1)
    kind = np.repeat([EXACT, STEM, SYNONYM], [len(same), stems.shape[1], synonyms.shape[1]])
    rows = np.unique((left * len(words) + right) * 4 + kind)  # words may share several sets of synonyms
    left, right = np.divmod(rows >> 2, max(len(words), 1))
    return rows & 3, Relation(left, right, len(words))


def _partners(groups: Mapping[str, Iterable[str]]) -> np.ndarray:
    """Pairs of different words that share a group, int64 of shape (2, pairs), of the groups of each word."""
    names: dict[str, int] = {}
    entries = [
        (names.setdefault(name, len(names)), word) for word, of_word in enumerate(groups.values()) for name in of_word
    ]
    group, word = np.array(sorted(entries), np.int64).reshape(-1, 2).T
    start = np.flatnonzero(changes(group)) if len(group) else group
    size = np.diff(start, append=len(group))
    partners = np.repeat(size, size)  # of each entry, itself among them
    left, right = np.repeat(word, partners), word[spans(np.repeat(start, size), partners)]
    return np.stack([left, right])[:, left != right]


def _phrase_relation(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray, Relation]:
    """For each row whether the table has it from the hypothesis, and its place there; and the relation of phrases."""
    number = int(max(source.max(initial=-1), target.max(initial=-1))) + 1
    _, entry = np.unique(source * number + target, return_index=True)  # the first of equals
    source, target = source[entry], target[entry]
    left, right = np.concatenate([source, target]), np.concatenate([target, source])
    order = np.lexsort([right, left])
    backward = np.repeat([0, 1], len(entry))
    return backward[order], np.tile(entry, 2)[order], Relation(left[order], right[order], number)
