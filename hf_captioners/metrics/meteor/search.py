"""The beam search of METEOR's aligner ([`search_pair`]) for many pairs at once, with the same result.

All pairs go through their references in step, and their paths are rows of arrays. Two paths of a pair that stand at the
same place, with the same open chunk and the same words taken among those that later matches want, have the same future:
the later one in the beam's order never gets past the earlier one, so only the earlier one goes on, and counts for both.
No beam is cut. So a path that has been among the first `BEAM_SIZE` at every place, all paths counted, is one that the
beam search keeps, and if it is the best of all, it is the one that the search gives. Where this is not sure, and for
pairs that do not fit the packed numbers below, the search itself is run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..ngrams import changes, spans
from .matches import EXACT, Matches
from .pair_search import BEAM_SIZE, search_pair

# The key of a path: its pair, and its rank by the three criteria, the most important first
_CHUNK_BIT, _WORD_BIT, _PAIR_BIT = 24, 32, 42
_CHUNK = 1 << _CHUNK_BIT
_NO_RANK = 1 << (_PAIR_BIT - 1)  # ranks are negative
_MOST_WORDS = 60  # the words taken are bits of an integer
_MOST_PATHS = 128  # of a pair
_MANY = 64  # more than the beam holds
_FAR_BIT = 20
_NEAR_MASK = (1 << _FAR_BIT) - 1


def certain_matches(matches: Matches, pairs: int) -> np.ndarray:
    """Tell which matches are certain: no other match has a word of theirs.

    Args:
        matches ([`Matches`]): of the pairs.
        pairs (`int`): their number.

    Returns:
        `np.ndarray`: bool of shape (matches,).
    """
    certain = np.ones(len(matches.pair), bool)
    for start, length in (matches[1:3], matches[3:5]):
        words = np.zeros(pairs, np.int64)
        np.maximum.at(words, matches.pair, start + length)
        first = np.cumsum(words) - words
        match = np.repeat(np.arange(len(start)), length)
        place = first[matches.pair[match]] + spans(start, length)
        certain[match[np.bincount(place)[place] > 1]] = False
    return certain


def search(matches: Matches, certain: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Choose the best matches that don't overlap.

    Args:
        matches ([`Matches`]): of the pairs, in order.
        certain (`np.ndarray`): bool of shape (matches,), see [`certain_matches`].
        length (`np.ndarray`): int64 of shape (pairs,), number of words of the references.

    Returns:
        `np.ndarray`: int64, ascending, the matches chosen.
    """
    contested = np.unique(matches.pair[~certain])
    fits = _fits(matches, length)[contested]
    some, rows = matches.of_pairs(contested[fits])
    found, sure = _search(some, certain[rows], length[contested[fits]])
    uncontested = np.ones(len(length), bool)
    uncontested[contested] = False
    chosen = [np.flatnonzero(uncontested[matches.pair]), rows[found[sure[some.pair[found]]]]]
    for pair in [*contested[~fits].tolist(), *contested[fits][~sure].tolist()]:
        some, rows = matches.of_pairs(np.array([pair]))
        chosen.append(rows[search_pair(some, certain[rows], int(length[pair]))])
    return np.sort(np.concatenate(chosen))


def _distance(matches: Matches) -> np.ndarray:
    return np.abs(matches.hypothesis_start - matches.reference_start)


def _fits(matches: Matches, length: np.ndarray) -> np.ndarray:
    """Tell which pairs fit the packed numbers, bool of shape (pairs,)."""
    words = length.copy()
    np.maximum.at(words, matches.pair, matches.hypothesis_start + matches.hypothesis_length)
    distance = np.bincount(matches.pair, _distance(matches), minlength=len(length))
    return (words <= _MOST_WORDS) & (distance < _CHUNK)


class _Options(NamedTuple):
    """The ways on from each place of each pair: its certain match, or its other matches and then none of them.

    Attributes:
        first: (pairs * width + 1,) the first option of each place.
        match: (options,) the match, or -1.
        gain: (options,) what is added to the rank for words.
        words: (options,) contested words of the hypothesis, as bits.
        distance: (options,) what is added to the rank of those that leave the option aside.
        start: (options,) one more than the place in the hypothesis, or -1.
        state: (options,) see [`_Paths`], afterwards.
    """

    first: np.ndarray
    match: np.ndarray
    gain: np.ndarray
    words: np.ndarray
    distance: np.ndarray
    start: np.ndarray
    state: np.ndarray


class _Paths(NamedTuple):
    """Paths of the search, in the order of the beam, pair by pair.

    Attributes:
        key: (paths,) pair and rank.
        state: (paths,) place in the reference from which it goes on, and one more than the end of the open chunk in the
            hypothesis or 0, a byte.
        taken: (paths,) contested words of the hypothesis that are taken, as bits.
        crowd: (paths,) the number of paths that this one stands for, those with as many words and those with fewer.
        safe: (paths,) whether the beam search is sure to keep this path.
    """

    key: np.ndarray
    state: np.ndarray
    taken: np.ndarray
    crowd: np.ndarray
    safe: np.ndarray

    def take(self, rows: np.ndarray) -> _Paths:
        return _Paths(*(column[rows] for column in self))


def _options(matches: Matches, certain: np.ndarray, pairs: int, width: int) -> _Options:
    at = matches.pair * width + matches.reference_start
    sure = np.zeros(pairs * width, bool)
    sure[at[certain]] = True
    number = np.bincount(at, minlength=pairs * width) + ~sure
    first = np.concatenate([np.zeros(1, np.int64), np.cumsum(number)])
    place = first[at] + np.arange(len(at)) - np.searchsorted(at, at)  # of each match among the options

    def of_matches(values: np.ndarray, other: int) -> np.ndarray:
        column = np.full(first[-1], other)
        column[place] = values
        return column

    value = np.where(matches.kind == EXACT, 2, matches.reference_length // 2 + matches.hypothesis_length // 2)
    words = ((1 << matches.hypothesis_length) - 1) << matches.hypothesis_start
    state = np.repeat((np.arange(pairs * width) % width + 1) << 8, number)
    end = matches.hypothesis_start + matches.hypothesis_length
    state[place] = ((matches.reference_start + matches.reference_length) << 8) + end + 1
    return _Options(
        first,
        of_matches(np.arange(len(at)), -1),
        of_matches(np.where(certain, 0, -(value << _WORD_BIT)), 0),
        of_matches(np.where(certain, 0, words), 0),
        of_matches(np.where(certain, 0, _distance(matches)), 0),
        of_matches(matches.hypothesis_start + 1, -1),
        state,
    )


def _wanted(options: _Options, pairs: int, width: int) -> np.ndarray:
    """The words of the hypothesis that matches from each place on want, as bits, of shape (pairs * width + 1,)."""
    of_place = np.bitwise_or.reduceat(options.words, options.first[:-1]).reshape(pairs, width)
    wanted = np.bitwise_or.accumulate(of_place[:, ::-1], axis=1)[:, ::-1].ravel()
    return np.append(wanted, 0)


def _search(matches: Matches, certain: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The matches chosen, and bool of shape (pairs,), whether the beam search is sure to choose the same."""
    pairs, width = len(length), int(length.max(initial=0)) + 1
    options = _options(matches, certain, pairs, width)
    wanted = _wanted(options, pairs, width)
    zeros = np.zeros(pairs, np.int64)
    paths = _Paths((np.arange(pairs) << _PAIR_BIT) + _NO_RANK, zeros, zeros, zeros + 1, np.ones(pairs, bool))
    last, sure = np.empty(pairs, np.int64), np.ones(pairs, bool)
    history = []
    for place in range(width - 1):
        paths, parent, option = _grow(paths, options, width, place)
        keep = _merge(paths, wanted[place + 1 :], width)
        sure[keep.cut] = False
        paths, parent, option = keep.paths, parent[keep.rows], option[keep.rows]
        pair = paths.key >> _PAIR_BIT
        ends = length[pair] == place + 1
        best = _best(paths, np.flatnonzero(ends))
        last[pair[best]] = best
        sure[pair[best]] &= paths.safe[best]
        going = np.flatnonzero(~ends)
        history.append((parent, options.match[option], going))
        paths = paths.take(going)
    return _trace(history, last, length), sure


def _grow(paths: _Paths, options: _Options, width: int, place: int) -> tuple[_Paths, np.ndarray, np.ndarray]:
    """Extend each path by each option that it can take; the paths, those they come from and the options."""
    at = (paths.key >> _PAIR_BIT) * width + place
    first = options.first[at]
    number = options.first[at + 1] - first
    inside = np.flatnonzero(paths.state >> 8 > place)  # a longer match
    number[inside] = 1
    parent = np.repeat(np.arange(len(at)), number)
    option = spans(first, number)
    taken, words = paths.taken[parent], options.words[option]
    free = (taken & words) == 0
    distance = np.where(free, options.distance[option], 0)
    passed = np.cumsum(distance) - distance  # of the options before, of all paths
    begin = np.cumsum(number) - number
    end, start = paths.state[parent] & 255, options.start[option]
    closed = (end > 0) & (end != start)
    key = paths.key[parent] + options.gain[option] + (passed - passed[begin][parent]) + closed * _CHUNK
    state = options.state[option]
    if len(inside):
        rows = begin[inside]
        key[rows], state[rows], free[rows] = paths.key[inside], paths.state[inside], True
        taken[rows] = paths.taken[inside]
        words[rows] = 0
        option[rows] = -1
    grown = _Paths(key, state, taken | words, paths.crowd[parent], paths.safe[parent])
    rows = np.flatnonzero(free)
    rows = rows[np.argsort(key[rows], kind="stable")]
    return grown.take(rows), parent[rows], option[rows]


class _Kept(NamedTuple):
    """The paths that go on, their positions, and the pairs that have too many."""

    paths: _Paths
    rows: np.ndarray
    cut: np.ndarray


def _merge(paths: _Paths, wanted: np.ndarray, width: int) -> _Kept:
    """Leave out the paths that an earlier one stands for."""
    pair = paths.key >> _PAIR_BIT
    first = changes(pair)
    rows = np.arange(len(first))
    if first.all():
        return _Kept(paths, rows, rows[:0])
    paths = _mark_safe(paths, first)._replace(taken=paths.taken & wanted[pair * width])
    begin = np.maximum.accumulate(np.where(first, rows, 0))
    excess = rows - begin >= _MOST_PATHS
    alone = first & np.append(first[1:], True)
    several = np.flatnonzero(~(alone | excess))
    lead, crowd = _leaders(paths.take(several))
    paths.crowd[several[lead]] = crowd
    alone[several[lead]] = True
    rows = np.flatnonzero(alone)
    return _Kept(paths.take(rows), rows, pair[excess])


def _mark_safe(paths: _Paths, first: np.ndarray) -> _Paths:
    """Mark the paths before which there may be too many for the beam."""
    words = changes(paths.key >> _WORD_BIT)  # another pair or another number of words
    near, far = paths.crowd & _NEAR_MASK, paths.crowd >> _FAR_BIT
    before_near, before_far = np.cumsum(near) - near, np.cumsum(far) - far
    # of the paths that others stand for, those with fewer words come before none with as many
    before = before_near + before_far[np.flatnonzero(words)][np.cumsum(words) - 1]
    before -= (before_near + before_far)[np.flatnonzero(first)][np.cumsum(first) - 1]
    return paths._replace(safe=paths.safe & (before < BEAM_SIZE))


def _leaders(paths: _Paths) -> tuple[np.ndarray, np.ndarray]:
    """The first of the paths that are alike, and how many paths they stand for."""
    pair, words = paths.key >> _PAIR_BIT, paths.key >> _WORD_BIT
    mixed = pair * 0x1E3779B97F4A7C15 + paths.state * 0x165667B19E3779F9 + paths.taken * 0x42B2AE3D27D4EB4F
    order = np.argsort(mixed, kind="stable")  # alike are neighbours, in the order of the beam
    new = changes(pair[order]) | changes(paths.state[order]) | changes(paths.taken[order])
    start = np.flatnonzero(new)
    lead = order[start]
    fewer = words[order] > words[lead][np.cumsum(new) - 1]
    near, far = paths.crowd[order] & _NEAR_MASK, paths.crowd[order] >> _FAR_BIT
    far = np.add.reduceat(np.where(fewer, near + far, far), start)
    near = np.add.reduceat(np.where(fewer, 0, near), start)
    return lead, np.minimum(near, _MANY) | np.minimum(far, _MANY) << _FAR_BIT


def _best(paths: _Paths, rows: np.ndarray) -> np.ndarray:
    """The best path of each pair among some, whose references are at their ends: the first of equals."""
    key = paths.key[rows] + (paths.state[rows] & 255 > 0) * _CHUNK  # the open chunk is closed
    order = np.argsort(key, kind="stable")
    return rows[order[changes(key[order] >> _PAIR_BIT)]]


def _trace(
    history: list[tuple[np.ndarray, np.ndarray, np.ndarray]], last: np.ndarray, length: np.ndarray
) -> np.ndarray:
    """The matches of the paths that end in `last`, from the paths of each place."""
    path = np.full(len(length), -1)
    chosen = []
    for place in reversed(range(len(history))):
        parent, match, going = history[place]
        further = np.flatnonzero(length > place + 1)
        path[further] = going[path[further]]
        ends = length == place + 1
        path[ends] = last[ends]
        here = np.flatnonzero(length > place)
        chosen.append(match[path[here]])
        path[here] = parent[path[here]]
    found = np.concatenate([np.empty(0, np.int64), *chosen])
    return np.sort(found[found >= 0])
