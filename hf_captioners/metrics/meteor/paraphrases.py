"""METEOR's paraphrase table, 5 million pairs of English phrases, as arrays that load in a moment.

The table comes as a compressed text of three lines per entry: a probability (not used by the alignment), a phrase and
its paraphrase. Reading it takes many seconds, so the first reading leaves the entries in a cache file, as a tree of
phrases. Scoring looks only at those that begin with words of the captions at hand ([`ParaphraseTable.among`]).
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import itertools
import logging
import zlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ...data.files import regular_file, write_whole
from ...data.progress import progress
from ..ngrams import build_tree, find, spans

logger = logging.getLogger(__name__)

_FORMAT = 3  # of the cache file; part of its name


class MeteorDataError(RuntimeError):
    """Missing or wrong tables of METEOR. The message says what to install."""


@dataclass(frozen=True)
class ParaphraseTable:
    """Pairs of phrases that mean the same.

    Attributes:
        words (`list[str]`): all words, each once.
        keys (`np.ndarray`): int64 of shape (nodes,), the tree of the phrases and their beginnings (see `ngrams`) under
            the one root 0; a phrase is named by its node.
        first_entry (`np.ndarray`): int32 of shape (nodes + 1,). The entries of a node are the paraphrases of a phrase.
        paraphrases (`np.ndarray`): int32 of shape (entries,), the other phrase of each entry; those of one phrase stand
            in the order of the file.
    """

    words: list[str]
    keys: np.ndarray
    first_entry: np.ndarray
    paraphrases: np.ndarray

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
        keys, node = _tree(np.asarray(phrase_words, np.int64), np.asarray(lengths, np.int64))
        nodes, other_nodes = node[np.asarray(sources, np.int32)], node[np.asarray(targets, np.int32)]
        by_node = np.argsort(nodes, kind="stable")
        first_entry = np.searchsorted(nodes[by_node], np.arange(len(keys) + 1))
        return cls(list(words), keys, first_entry.astype(np.int32), other_nodes[by_node].astype(np.int32))

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of the table, in hexadecimal digits."""
        digest = hashlib.sha256()
        for name, content in sorted(self.arrays().items()):
            digest.update(f"{name} {content.dtype.str} {content.shape}\n".encode())
            digest.update(np.ascontiguousarray(content).data)
        return digest.hexdigest()

    def arrays(self) -> dict[str, np.ndarray]:
        """The content of the cache file, by name."""
        return {
            "words": np.frombuffer("\n".join(self.words).encode("utf-8", "surrogatepass"), np.uint8),
            "keys": self.keys,
            "first_entry": self.first_entry,
            "paraphrases": self.paraphrases,
        }

    def among(self, words: Sequence[str], word: np.ndarray, length: np.ndarray) -> Phrases:
        """The phrases of sentences that are paraphrases of phrases of sentences.

        Args:
            words (`Sequence[str]`): the words of the sentences, each once.
            word (`np.ndarray`): int64, the words of all sentences, one after another, as positions in `words`.
            length (`np.ndarray`): int64 of shape (sentences,), the number of words of each.

        Returns:
            [`Phrases`]

        Example:

        ```python
        >>> import numpy as np
        >>> from hf_captioners.metrics.meteor.paraphrases import ParaphraseTable
        >>> table = ParaphraseTable.from_pairs([("a lot of", "many"), ("a lot of", "much"), ("much", "a lot of")])
        >>> phrases = table.among(["a", "lot", "of", "many"], np.array([0, 1, 2, 3, 3]), np.array([3, 2]))
        >>> phrases.position, phrases.length, phrases.phrase
        (array([0, 3, 4]), array([3, 1, 1]), array([1, 0, 0]))
        >>> phrases.source, phrases.target  # a lot of -> many
        (array([1]), array([0]))

        ```
        """
        position, phrase_length, node = self._occurrences(words, word, length)
        occurs = np.zeros(len(self.keys), bool)
        occurs[node] = True
        source = np.flatnonzero(occurs)
        number = self.first_entry[source + 1] - self.first_entry[source]
        target = self.paraphrases[spans(self.first_entry[source], number)]
        possible = np.flatnonzero(occurs[target])
        source, target = np.repeat(source, number)[possible], target[possible]
        nodes, phrases = np.unique(np.concatenate([source, target]), return_inverse=True)
        occurs[:] = False
        occurs[nodes] = True
        used = np.flatnonzero(occurs[node])
        used = used[np.argsort(position[used], kind="stable")]
        return Phrases(
            position[used],
            phrase_length[used],
            np.searchsorted(nodes, node[used]),
            phrases[: len(source)],
            phrases[len(source) :],
        )

    def _occurrences(
        self, words: Sequence[str], word: np.ndarray, length: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The phrases of the tree in sentences: first word of all words, number of words, node."""
        numbers = {text: number for number, text in enumerate(self.words)}
        word = np.array([numbers.get(text, -1) for text in words], np.int64)[word]
        end = np.repeat(np.cumsum(length), length)  # (words,): of the sentence
        position = np.arange(len(word))
        node = np.zeros(len(word), np.int64)
        found = [(position[:0], position[:0], position[:0])]
        for order in itertools.count():
            longer = np.flatnonzero(position + order < end[position])
            longer = longer[word[position[longer] + order] >= 0]
            node = find(self.keys, node[longer], word[position[longer] + order])
            position = position[longer[node >= 0]]
            node = node[node >= 0]
            if not len(node):
                break
            found.append((position, np.full(len(node), order + 1), node))
        positions, lengths, nodes = zip(*found, strict=True)
        return np.concatenate(positions), np.concatenate(lengths), np.concatenate(nodes)


class Phrases(NamedTuple):
    """Phrases in sentences, and which of them are paraphrases.

    Attributes:
        position (`np.ndarray`): int64 of shape (occurrences,), ascending, the first word among the words of all
            sentences.
        length (`np.ndarray`): int64 of shape (occurrences,), number of words.
        phrase (`np.ndarray`): int64 of shape (occurrences,), the number of the phrase.
        source, target (`np.ndarray`): int64 of shape (entries,), a phrase and its paraphrase; the entries of a phrase
            stand in the order of the table.
    """

    position: np.ndarray
    length: np.ndarray
    phrase: np.ndarray
    source: np.ndarray
    target: np.ndarray


def _tree(words: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The tree over phrases and the node of each, of their words, one phrase after another, and their lengths."""
    start = np.cumsum(length) - length
    by_length = [np.flatnonzero(length == size) for size in range(1, length.max(initial=0) + 1)]
    keys, nodes = build_tree(
        [words[start[rows][:, None] + np.arange(size)] for size, rows in enumerate(by_length, start=1)]
    )
    node = np.empty(len(length), np.int64)
    for rows, nodes_of_length in zip(by_length, nodes, strict=True):
        node[rows] = nodes_of_length
    return keys, node


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
    words = arrays.pop("words").tobytes().decode("utf-8", "surrogatepass").split("\n")
    table = ParaphraseTable(words, *(arrays[name] for name in ("keys", "first_entry", "paraphrases")))
    if checksum != table.checksum:
        raise ValueError("its content is not what was written (SHA-256)")
    return table


def _keep(table: ParaphraseTable, path: Path) -> None:
    """Write the cache file, with a checksum of its content; other processes may do the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda temporary: save_file(table.arrays(), temporary, {"sha256": table.checksum}))
