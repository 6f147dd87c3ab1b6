"""The beam search of METEOR's aligner for one pair of sentences, as the published program does it.

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
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple, TypeAlias

import numpy as np

from .matches import EXACT, Matches

BEAM_SIZE = 40

# A path of the search: rank (lower is better), end of the open chunk in the hypothesis or -1, words of the hypothesis
# taken (bits), place in the reference from which it goes on, its last match and the matches before that.
_Chain: TypeAlias = "tuple[_Match, _Chain] | None"
_Path: TypeAlias = tuple[int, int, int, int, _Chain]

# The three criteria in one number, most important first: distances stay below a chunk, chunks below a word
_CHUNK = 2**40
_WORD = 2**60
_rank = itemgetter(0)


class _Match(NamedTuple):
    reference_start: int
    reference_end: int
    hypothesis_start: int
    hypothesis_end: int
    row: int


def search_pair(matches: Matches, certain: np.ndarray, length: int) -> list[int]:
    """Choose the best matches that don't overlap.

    Args:
        matches ([`Matches`]): of one pair, in order.
        certain (`np.ndarray`): bool of shape (matches,), those that no other match has a word of.
        length (`int`): number of words of the reference.

    Returns:
        `list[int]`: the matches chosen, ascending.
    """
    certain_at, rivals = _by_place(matches, certain)
    paths: list[_Path] = [(0, -1, 0, 0, None)]
    for place in range(length):
        grown: list[_Path] = []
        for path in paths:
            if path[3] > place:  # inside a longer match
                grown.append(path)
            elif place in certain_at:
                grown.append(_take(path, certain_at[place], 0, path[0]))
            else:
                _grow(path, place, rivals.get(place, ()), grown)
        grown.sort(key=_rank)  # stable
        paths = grown[:BEAM_SIZE]
    best = min(paths, key=lambda path: path[0] + (_CHUNK if path[1] >= 0 else 0))
    chosen, chain = [], best[4]
    while chain is not None:
        match, chain = chain
        chosen.append(match.row)
    return chosen[::-1]


def _by_place(
    matches: Matches, certain: np.ndarray
) -> tuple[dict[int, _Match], dict[int, list[tuple[_Match, int, int]]]]:
    """Certain matches, and the other ones with their value and words (bits), both by their start in the reference."""
    certain_at = {}
    rivals: dict[int, list[tuple[_Match, int, int]]] = defaultdict(list)
    for row, (columns, alone) in enumerate(zip(zip(*(c.tolist() for c in matches), strict=True), certain, strict=True)):
        _, start, size, hypothesis_start, hypothesis_size, kind = columns
        match = _Match(start, start + size, hypothesis_start, hypothesis_start + hypothesis_size, row)
        if alone:
            certain_at[start] = match
        else:
            value = 2 if kind == EXACT else size // 2 + hypothesis_size // 2
            rivals[start].append((match, value * _WORD, ((1 << hypothesis_size) - 1) << hypothesis_start))
    return certain_at, rivals


def _grow(path: _Path, place: int, rivals: Iterable[tuple[_Match, int, int]], grown: list[_Path]) -> None:
    """Extend the path by each of the matches that it can take at this place, and by none."""
    rank, end, taken, _, chain = path
    for match, value, words in rivals:
        if not taken & words:
            grown.append(_take(path, match, words, rank - value))
            rank += abs(match.hypothesis_start - place)
    grown.append((rank if end < 0 else rank + _CHUNK, -1, taken, place, chain))


def _take(path: _Path, match: _Match, words: int, rank: int) -> _Path:
    _, end, taken, _, chain = path
    if end not in (-1, match.hypothesis_start):
        rank += _CHUNK  # the open chunk is closed
    return rank, match.hypothesis_end, taken | words, match.reference_end, (match, chain)
