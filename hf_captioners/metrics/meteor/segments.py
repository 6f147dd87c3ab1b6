"""The statistics of captions and their best references, from which METEOR is computed.

The references of an image are not all aligned: the search that picks the best matches takes longer than all the rest.
From the matches that are possible follows a score that no alignment exceeds. The reference with the highest one is
aligned first, and then those that could be as good as it.
"""

from __future__ import annotations

import numpy as np

from ..ngrams import changes, spans
from .matches import EXACT, PARAPHRASE, STEM, SYNONYM, Matches, Sentences
from .search import certain_matches, search

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
WEIGHTS = (1.0, 0.6, 0.8, 0.6)  # of matches by form, stem, synonym and paraphrase

NUM_STATISTICS = 23  # of a segment; meteor_statistics says which
CHUNKS = 20  # the place of the chunks; the matched words of both sides follow
_KINDS = 4  # the first place of the counts by kind

_BEST_FIRST = np.array([EXACT, SYNONYM, STEM, PARAPHRASE])  # by weight
_PLACE = np.argsort(_BEST_FIRST)
_PAIRS_AT_ONCE = 4096
_ROUNDING = 1e-9  # by how much, at most, a computed score is off


def meteor_scores(statistics: np.ndarray) -> np.ndarray:
    """The scores of segments, or of sums of their statistics.

    Args:
        statistics (`np.ndarray`): float64 of shape (segments, 23), see [`meteor_statistics`].

    Returns:
        `np.ndarray`: float64 of shape (segments,), 0 to 1.
    """
    words, reference_words, function, reference_function = statistics[:, :_KINDS].T
    matched, reference_matched = np.zeros(len(statistics)), np.zeros(len(statistics))
    for kind, weight in enumerate(WEIGHTS):
        start = _KINDS + 4 * kind
        content, reference_content, functional, reference_functional = statistics[:, start : start + 4].T
        matched += weight * _weigh(content, functional)
        reference_matched += weight * _weigh(reference_content, reference_functional)
    some = (matched != 0) & (reference_matched != 0)
    one = np.ones(len(statistics))
    precision = np.divide(matched, _weigh(words - function, function), out=one.copy(), where=some)
    recall = np.divide(
        reference_matched, _weigh(reference_words - reference_function, reference_function), out=one.copy(), where=some
    )
    mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
    size = (statistics[:, CHUNKS + 1] + statistics[:, CHUNKS + 2]) / 2
    fragmentation = np.divide(chunks_that_count(statistics), size, out=one.copy(), where=some)
    # Python's power, as elsewhere: numpy's own may differ in the last digit
    values, place = np.unique(fragmentation, return_inverse=True)
    penalty = GAMMA * np.array([value**BETA for value in values.tolist()])[place]
    return np.where(some, mean * (1 - penalty), 0.0)


def chunks_that_count(statistics: np.ndarray) -> np.ndarray:
    """The chunks of each segment; 0 where every word of both is matched in one chunk, which is no fragmentation.

    Args:
        statistics (`np.ndarray`): float64 of shape (segments, 23).

    Returns:
        `np.ndarray`: float64 of shape (segments,).
    """
    chunks, matched, reference_matched = statistics[:, CHUNKS:].T
    whole = (chunks == 1) & (matched == statistics[:, 0]) & (reference_matched == statistics[:, 1])
    return np.where(whole, 0.0, chunks)


def _weigh(content: np.ndarray, function: np.ndarray) -> np.ndarray:
    return DELTA * content + (1 - DELTA) * function


def best_statistics(
    sentences: Sentences, hypotheses: np.ndarray, references: np.ndarray, number: np.ndarray
) -> np.ndarray:
    """The statistics of each caption and its best reference; of references with equal scores, the first.

    Args:
        sentences ([`Sentences`]): all captions.
        hypotheses (`np.ndarray`): int64 of shape (images,), the sentence of each image's caption.
        references (`np.ndarray`): int64 of shape (references,), the sentences of the references, image by image.
        number (`np.ndarray`): int64 of shape (images,), of references, at least 1.

    Returns:
        `np.ndarray`: float64 of shape (images, 23).
    """
    ends = np.cumsum(number)
    rows = [np.empty((0, NUM_STATISTICS))]
    start = 0
    while start < len(number):
        done = ends[start] - number[start]
        end = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        image = np.repeat(np.arange(end - start), number[start:end])
        rows.append(_best(sentences, hypotheses[start:end][image], references[done : ends[end - 1]], image))
        start = end
    return np.concatenate(rows)


def _best(sentences: Sentences, hypotheses: np.ndarray, references: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The statistics of the best pair of each image."""
    matches = sentences.matches(hypotheses, references)
    certain = certain_matches(matches, len(image))
    bound = meteor_scores(_best_imaginable(sentences, hypotheses, references, matches, certain))
    statistics = np.zeros((len(image), NUM_STATISTICS))
    score = np.full(len(image), -1.0)
    promising = _first_of_the_highest(bound, image)
    for _ in range(2):
        some, rows = matches.of_pairs(promising)
        hypothesis, reference = hypotheses[promising], references[promising]
        chosen = some.take(search(some, certain[rows], sentences.length[reference]))
        statistics[promising] = _count(sentences, hypothesis, reference, chosen)
        score[promising] = meteor_scores(statistics[promising])
        highest = np.maximum.reduceat(score, np.flatnonzero(changes(image)))
        promising = np.flatnonzero((score < 0) & (bound >= highest[image] - _ROUNDING))
    return statistics[_first_of_the_highest(score, image)]


def _first_of_the_highest(score: np.ndarray, image: np.ndarray) -> np.ndarray:
    """For each image, the first pair with the highest score."""
    highest = np.maximum.reduceat(score, np.flatnonzero(changes(image)))
    pairs = np.flatnonzero(score == highest[image])
    return pairs[changes(image[pairs])]


def _count(sentences: Sentences, hypotheses: np.ndarray, references: np.ndarray, matches: Matches) -> np.ndarray:
    """The statistics of pairs, of the matches that were chosen."""
    statistics = _count_words(sentences, hypotheses, references)
    _, reference_start, reference_length, hypothesis_start, hypothesis_length, kind = matches
    row = matches.pair * NUM_STATISTICS
    sides = ((hypotheses, hypothesis_start, hypothesis_length), (references, reference_start, reference_length))
    counts = statistics.reshape(-1)
    for side, (sentence, start, length) in enumerate(sides):
        functional = sentences.function_words(sentence[matches.pair], start, length)
        by_kind = row + _KINDS + 4 * kind + side
        counts += np.bincount(by_kind, length - functional, minlength=len(counts))
        counts += np.bincount(by_kind + 2, functional, minlength=len(counts))
        counts += np.bincount(row + CHUNKS + 1 + side, length, minlength=len(counts))
    new = changes(matches.pair)  # a chunk begins
    new[1:] |= reference_start[1:] != (reference_start + reference_length)[:-1]
    new[1:] |= hypothesis_start[1:] != (hypothesis_start + hypothesis_length)[:-1]
    counts += np.bincount(row[new] + CHUNKS, minlength=len(counts))
    return statistics


def _count_words(sentences: Sentences, hypotheses: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Statistics of pairs without the matches."""
    statistics = np.zeros((len(hypotheses), NUM_STATISTICS))
    for side, sentence in enumerate((hypotheses, references)):
        length = sentences.length[sentence]
        statistics[:, side] = length
        statistics[:, 2 + side] = sentences.function_words(sentence, np.zeros(len(sentence), np.int64), length)
    return statistics


def _best_imaginable(
    sentences: Sentences, hypotheses: np.ndarray, references: np.ndarray, matches: Matches, certain: np.ndarray
) -> np.ndarray:
    """Statistics of pairs whose score is as high as that of any alignment.

    Every word that some match covers is matched, by the kind that weighs most, and there are only the chunks that the
    certain matches make.
    """
    statistics = _count_words(sentences, hypotheses, references)
    counts = statistics.reshape(-1)
    coverage = []
    for side, (sentence, (start, length)) in enumerate(((hypotheses, matches[3:5]), (references, matches[1:3]))):
        words = sentences.length[sentence]
        first = np.cumsum(words) - words  # (pairs,), of the words of all pairs
        match = np.repeat(np.arange(len(start)), length)
        best = np.full(words.sum(), len(WEIGHTS))  # (words,), place of the best kind
        np.minimum.at(best, first[matches.pair[match]] + spans(start, length), _PLACE[matches.kind[match]])
        covered = np.flatnonzero(best < len(WEIGHTS))
        functional = sentences.functional[spans(sentences.first[sentence], words)[covered]]
        row = np.repeat(np.arange(len(words)), words)[covered] * NUM_STATISTICS
        by_kind = row + _KINDS + 4 * _BEST_FIRST[best[covered]] + 2 * functional + side
        counts += np.bincount(by_kind, minlength=len(counts))
        counts += np.bincount(row + CHUNKS + 1 + side, minlength=len(counts))
        coverage.append((first, np.concatenate([np.zeros(1, np.int64), np.cumsum(best < len(WEIGHTS))])))
    statistics[:, CHUNKS] = 1 + _breaks(matches.take(np.flatnonzero(certain)), len(statistics), *coverage)
    return statistics


def _breaks(
    certain: Matches, pairs: int, hypothesis: tuple[np.ndarray, np.ndarray], reference: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """The number of chunks that end between certain matches, for each pair.

    Two matches are in one chunk only if they are neighbours on both sides, or if other matches can fill the gap on both
    sides. Of both sides are given the first word of each pair, and the number of words before each that can be matched.
    """
    same_pair = np.flatnonzero(certain.pair[1:] == certain.pair[:-1])
    left, right = certain.take(same_pair), certain.take(same_pair + 1)
    ends = np.zeros(len(same_pair), bool)
    gaps = []
    for (first, covered_before), start in ((hypothesis, 3), (reference, 1)):
        begin, end = left[start] + left[start + 1], right[start]
        covered = covered_before[first[left.pair] + end] - covered_before[first[left.pair] + begin]
        gaps.append(end - begin)
        ends |= (end < begin) | (covered != end - begin)
    ends |= (gaps[0] > 0) != (gaps[1] > 0)
    return np.bincount(left.pair[ends], minlength=pairs)
