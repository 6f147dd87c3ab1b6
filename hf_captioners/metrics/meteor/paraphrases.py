"""METEOR's paraphrase table, 5 million pairs of English phrases, as arrays that load in a moment.

The table comes as a compressed text of three lines per entry: a probability (not used by the alignment), a phrase and
its paraphrase. Reading it takes many seconds, so the first reading leaves the entries in a cache file. Scoring needs
only those whose phrases can occur in the captions at hand, a hundredth of all ([`ParaphraseTable.among`]).
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import logging
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ...data.files import regular_file, write_whole
from ...data.progress import progress

logger = logging.getLogger(__name__)

_FORMAT = 2  # of the cache file; part of its name


class MeteorDataError(RuntimeError):
    """Missing or wrong tables of METEOR. The message says what to install."""


@dataclass(frozen=True)
class ParaphraseTable:
    """Pairs of phrases that mean the same.

    Attributes:
        words (`list[str]`): all words, each once.
        phrase_words (`np.ndarray`): the words of all phrases, one phrase after the other, as positions in `words`.
        phrase_lengths (`np.ndarray`): number of words of each phrase.
        sources, targets (`np.ndarray`): the two phrases of each entry, in the order of the file.
    """

    words: list[str]
    phrase_words: np.ndarray
    phrase_lengths: np.ndarray
    sources: np.ndarray
    targets: np.ndarray

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[str, str]]) -> ParaphraseTable:
        """Make a table of pairs.

        Args:
            pairs (`Iterable[tuple[str, str]]`): phrase and paraphrase, words joined by single spaces.

        Returns:
            [`ParaphraseTable`]
        """
        phrases: dict[str, int] = {}
        sources, targets = array("i"), array("i")
        for source, target in pairs:
            sources.append(phrases.setdefault(source, len(phrases)))
            targets.append(phrases.setdefault(target, len(phrases)))
        words: dict[str, int] = {}
        phrase_words, lengths = array("i"), array("i")
        for phrase in phrases:
            parts = phrase.split(" ")
            lengths.append(len(parts))
            phrase_words.extend([words.setdefault(word, len(words)) for word in parts])
        small = np.uint16 if len(words) <= 2**16 else np.int32
        return cls(
            list(words),
            np.asarray(phrase_words, np.int32).astype(small),
            np.asarray(lengths, np.int32),
            np.asarray(sources, np.int32),
            np.asarray(targets, np.int32),
        )

    def among(self, sentences: Iterable[Sequence[str]]) -> dict[str, dict[str, int]]:
        """The entries that can match in the sentences, and few more.

        Args:
            sentences (`Iterable[Sequence[str]]`): their words.

        Returns:
            `dict[str, dict[str, int]]`: phrase -> paraphrase -> its place in the table. An entry is here if all words
            of both its phrases, and all their pairs of neighbouring words, occur in the sentences.

        Example:

        ```python
        >>> from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable
        >>> table = ParaphraseTable.from_pairs([("a lot of", "many"), ("a lot of", "much"), ("much", "a lot of")])
        >>> table.among([["a", "lot", "of", "people"], ["many", "people"]])
        {'a lot of': {'many': 0}}

        ```
        """
        if not len(self.sources):
            return {}
        occurs, neighbours = self._occurring(sentences)
        keep = self._possible_phrases(occurs, neighbours)
        entries = np.flatnonzero(keep[self.sources] & keep[self.targets])
        phrases = np.unique(np.concatenate([self.sources[entries], self.targets[entries]]))
        texts = dict(zip(phrases.tolist(), self._texts(phrases), strict=True))
        paraphrases: dict[str, dict[str, int]] = {}
        columns = (column.tolist() for column in (self.sources[entries], self.targets[entries], entries))
        for source, target, entry in zip(*columns, strict=True):
            paraphrases.setdefault(texts[source], {}).setdefault(texts[target], entry)
        return paraphrases

    def _occurring(self, sentences: Iterable[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
        """The words that occur, bool of shape (words,), and the pairs of neighbours as sorted keys."""
        numbers = {word: number for number, word in enumerate(self.words)}
        occurs = np.zeros(len(self.words), bool)
        neighbours: set[tuple[int, int]] = set()
        for sentence in sentences:
            line = [numbers.get(word, -1) for word in sentence]
            occurs[[number for number in line if number >= 0]] = True
            neighbours.update(itertools.pairwise(line))
        keys = [left * len(self.words) + right for left, right in neighbours if left >= 0 and right >= 0]
        return occurs, np.array(sorted(keys), np.int64)

    def _possible_phrases(self, occurs: np.ndarray, neighbours: np.ndarray) -> np.ndarray:
        """The phrases whose words and pairs of neighbours all occur, bool of shape (phrases,)."""
        ends = np.cumsum(self.phrase_lengths, dtype=np.int64)
        keep = np.logical_and.reduceat(occurs[self.phrase_words], ends - self.phrase_lengths)
        inside = np.repeat(keep, self.phrase_lengths)  # positions of words that have a neighbour in such a phrase
        inside[ends - 1] = False
        left = np.flatnonzero(inside)
        keys = self.phrase_words[left].astype(np.int64) * len(self.words) + self.phrase_words[left + 1]
        missing = left[~_is_in(keys, neighbours)]
        keep[np.searchsorted(ends, missing, side="right")] = False
        return keep

    def _texts(self, phrases: np.ndarray) -> Iterator[str]:
        ends = np.cumsum(self.phrase_lengths, dtype=np.int64)[phrases].tolist()
        for end, length in zip(ends, self.phrase_lengths[phrases].tolist(), strict=True):
            yield " ".join(self.words[number] for number in self.phrase_words[end - length : end].tolist())


def _is_in(keys: np.ndarray, ordered: np.ndarray) -> np.ndarray:
    if not len(ordered):
        return np.zeros(len(keys), bool)
    place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return ordered[place] == keys


def load_paraphrases(source: Path, cache_dir: Path | None = None) -> ParaphraseTable:
    """Read a paraphrase table, from its cache file if there is one; otherwise leave a cache file.

    Args:
        source (`Path`): the table as METEOR has it, `paraphrase-en.gz`.
        cache_dir (`Path`, *optional*): where the cache file is; by default `hf_captioners/meteor` in the folder of the
            Hugging Face caches (`HF_HOME`). Where it cannot be written, nothing is kept.

    Returns:
        [`ParaphraseTable`]

    Raises:
        MeteorDataError: the table is missing or is not one.
    """
    folder = Path(constants.HF_HOME, "hf_captioners", "meteor") if cache_dir is None else cache_dir
    try:
        facts = source.stat()
    except OSError as error:
        raise MeteorDataError(f"{source}: METEOR's paraphrase table is not there: {error}") from error
    stamp = f"{source.resolve()} {facts.st_size} {facts.st_mtime_ns}"
    cached = folder / f"{source.stem}-v{_FORMAT}-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.safetensors"
    try:
        return _read_cache(cached)
    except FileNotFoundError:
        pass
    except (SafetensorError, KeyError, OSError, ValueError) as error:
        logger.warning("%s: cannot be used, reading the paraphrase table once more: %s", cached, error)
    table = ParaphraseTable.from_pairs(_read_pairs(source))
    try:
        _keep(table, cached)
    except OSError as error:
        logger.warning("%s: cannot be written, so the next run reads the paraphrase table again: %s", cached, error)
    return table


def _read_pairs(source: Path) -> Iterator[tuple[str, str]]:
    size = source.stat().st_size
    with progress(total=size, unit="B", unit_scale=True, desc="METEOR's paraphrases, once") as bar:
        try:
            with source.open("rb") as raw, gzip.open(raw, "rt", encoding="utf-8", newline="\n") as lines:
                stripped = (line.rstrip("\n") for line in lines)
                for number, (probability, phrase, paraphrase) in enumerate(zip(*[stripped] * 3, strict=True)):
                    float(probability)  # raises where the lines of entries are out of step
                    yield phrase, paraphrase
                    if number % 2**16 == 0:
                        bar.update(raw.tell() - bar.n)
                bar.update(size - bar.n)
        except (OSError, EOFError, zlib.error, ValueError) as error:
            raise MeteorDataError(f"{source}: not a paraphrase table, three lines per entry: {error}") from error


def _read_cache(path: Path) -> ParaphraseTable:
    with safe_open(regular_file(path, "cache of METEOR"), "np") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        checksum = (file.metadata() or {}).get("sha256")
    if checksum != _checksum(arrays):
        raise ValueError("its content is not what was written (SHA-256)")
    words = arrays.pop("words").tobytes().decode("utf-8").split("\n")
    return ParaphraseTable(words, *(arrays[name] for name in ("phrase_words", "phrase_lengths", "sources", "targets")))


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype.str} {arrays[name].shape}\n".encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return digest.hexdigest()


def _keep(table: ParaphraseTable, path: Path) -> None:
    """Write the cache file, with a checksum of its content; other processes may do the same."""
    arrays = {
        "words": np.frombuffer("\n".join(table.words).encode("utf-8"), np.uint8),
        "phrase_words": table.phrase_words,
        "phrase_lengths": table.phrase_lengths,
        "sources": table.sources,
        "targets": table.targets,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: save_file(arrays, temporary, {"sha256": _checksum(arrays)}))
