"""Document frequencies: in how many images' references an n-gram occurs, the idf of CIDEr.

They come from the references that are scored, as on a test split, or from another corpus, as in rewards: there it is
the training split (Rennie et al., 2017), counted once and kept in a file. COCO's has millions of n-grams, so they are
two arrays and not a dictionary.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import reprlib
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from ..._version import __version__
from ...data.files import write_whole
from ..inputs import MetricInputError, check_image_ids
from ..ngrams import count_ngrams, find, number_keys, pack, read_words, sort_words
from ..signature import hash_captions
from ..tokens import Tokenizer, tokenizer_name
from .caption_words import CaptionWords
from .frequency_tree import DocumentFrequencyError, check_n, check_tree, prefix_tree

FORMAT = "hf_captioners.document_frequencies.1"


class DocumentFrequencies:
    """Numbers of images in which n-grams occur. Made by [`from_references`], [`from_counts`], [`load`] or [`cached`].

    Args:
        words (`Sequence[str]`): the vocabulary, sorted by code point; a word's number is its position.
        keys (`np.ndarray`): int64 of shape (n-grams + 1,), a tree (see `ngrams`) under the one root 0, whose key is
            -1; shorter n-grams first.
        counts (`np.ndarray`): integers of shape (n-grams + 1,): images with each n-gram; 0 for the root and for n-grams
            that are there as beginnings of longer ones only.
        number_of_images (`int`): the size of the corpus.
        n (`int`, defaults to 4): the longest n-grams that were counted.
        tokenizer (`str`, *optional*): [`tokenizer_name`] of what cut the references into words; `None` where that is
            not known, as of token ids, of tokens, and in files of earlier versions.

    Raises:
        DocumentFrequencyError: the arrays do not fit together.

    Example:

    ```python
    >>> from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
    >>> references = [["a dog runs", "a dog"], ["a cat"], ["the cat"]]
    >>> frequencies = DocumentFrequencies.from_references(references, tokenized=True)
    >>> frequencies
    DocumentFrequencies(10 n-grams of up to 4 words in 3 images)
    >>> frequencies.count("a"), frequencies.count("a dog"), frequencies.count("a bird")
    (2, 1, 0)

    ```
    """

    def __init__(
        self,
        words: Sequence[str],
        keys: np.ndarray,
        counts: np.ndarray,
        number_of_images: int,
        n: int = 4,
        tokenizer: str | None = None,
    ) -> None:
        check_tree(words, keys, counts, number_of_images, n)
        self.words = tuple(words)
        self.keys = keys
        self.counts = counts.astype(np.int32)
        self.number_of_images = number_of_images
        self.n = n
        self.tokenizer = tokenizer

    @classmethod
    def from_references(
        cls,
        references: Sequence[Sequence[Any]],
        *,
        tokenized: bool = False,
        eos: str | int | None = None,
        token_ids: bool = False,
        eos_token_id: int | None = None,
        tokenizer: Tokenizer = "ptb",
        n: int = 4,
        image_ids: Sequence[Any] | None = None,
    ) -> DocumentFrequencies:
        """Count the n-grams of references.

        Args:
            references (`Sequence[Sequence[str]]`): the references of each image; lists of ids with `token_ids`.
            tokenized (`bool`), eos (`str` or `int`), token_ids (`bool`), eos_token_id (`int`), tokenizer (`str` or
                `Callable`): what is a word, see [`CaptionWords`]. By default the PTB tokens, without the end of the
                caption.
            n (`int`, defaults to 4): the longest n-grams to count.
            image_ids (`Sequence`, *optional*): names of the images for messages; by default positions.

        Returns:
            `DocumentFrequencies`

        Raises:
            MetricInputError: no images, or an image without references.
        """
        if not references:
            raise MetricInputError("no references to count document frequencies in; expected at least one image")
        check_n(n)
        names = range(len(references)) if image_ids is None else image_ids
        check_image_ids(names, len(references))
        captions = CaptionWords(tokenized, eos, token_ids, eos_token_id, tokenizer).of_references(references, names)
        vocabulary, words = sort_words(read_words(captions, {}))
        image = np.repeat(np.arange(len(references)), [len(image_references) for image_references in references])
        keys, counts = [np.array([-1])], [np.array([0])]
        node = np.zeros(len(references), np.int64)  # of each n-gram of an image: at first the root
        below = 1
        for level in count_ngrams(words, image, len(references), n):
            keys_of_order, number = number_keys(pack(node[level.parent], level.word))
            node = number + below
            below += len(keys_of_order)
            keys.append(keys_of_order)
            counts.append(np.bincount(number))
        name = None if tokenized or token_ids else _recorded(tokenizer)
        return cls(vocabulary, np.concatenate(keys), np.concatenate(counts), len(references), n, name)

    @classmethod
    def from_counts(
        cls, counts: Mapping[tuple[str, ...], float], number_of_images: int, n: int = 4
    ) -> DocumentFrequencies:
        """Make document frequencies of existing counts.

        Args:
            counts (`Mapping[tuple[str, ...], float]`): n-gram -> number of images; whole numbers.
            number_of_images (`int`): the size of the corpus.
            n (`int`, defaults to 4): the longest n-grams that were counted.

        Returns:
            `DocumentFrequencies`

        Raises:
            DocumentFrequencyError: an n-gram of another kind or an impossible count.

        Example:

        ```python
        >>> from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
        >>> DocumentFrequencies.from_counts({("a",): 3, ("a", "dog"): 1}, number_of_images=3)
        DocumentFrequencies(2 n-grams of up to 4 words in 3 images)

        ```
        """
        check_n(n)
        by_length: list[tuple[list[tuple[str, ...]], list[int]]] = [([], []) for _ in range(n)]
        for ngram, count in counts.items():
            if not isinstance(ngram, tuple) or not 1 <= len(ngram) <= n or not all(isinstance(w, str) for w in ngram):
                text = reprlib.repr(ngram)
                raise DocumentFrequencyError(f"{text} is no n-gram; expected a tuple of 1 to {n} strings")
            if not 0 <= count <= number_of_images or count != int(count):
                raise DocumentFrequencyError(
                    f"{reprlib.repr(ngram)} occurs in {count} images; expected a whole number, at most the "
                    f"{number_of_images} images of the corpus"
                )
            if count:
                by_length[len(ngram) - 1][0].append(ngram)
                by_length[len(ngram) - 1][1].append(int(count))
        vocabulary = sorted({word for ngrams, _ in by_length for ngram in ngrams for word in ngram})
        number = {word: position for position, word in enumerate(vocabulary)}
        words = [  # per length, (n-grams, length)
            np.array([number[word] for ngram in ngrams for word in ngram], np.int64).reshape(-1, length)
            for length, (ngrams, _) in enumerate(by_length, start=1)
        ]
        keys, tree_counts = prefix_tree(words, [np.array(values, np.int64) for _, values in by_length])
        return cls(vocabulary, keys, tree_counts, number_of_images, n)

    @classmethod
    def load(cls, path: str | Path) -> DocumentFrequencies:
        """Read what [`save`] wrote.

        Args:
            path (`str` or `Path`): a safetensors file.

        Returns:
            `DocumentFrequencies`

        Raises:
            FileNotFoundError: there is no such file.
            DocumentFrequencyError: it holds something else, or not the content that its hash was made of.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"document frequencies not found: {path}")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise DocumentFrequencyError(f"its format is {metadata.get('format')!r}, expected {FORMAT!r}")
                words = json.loads(file.get_tensor("words").tobytes())
                keys, counts = file.get_tensor("keys"), file.get_tensor("counts")
                images, n = int(metadata["number_of_images"]), int(metadata["n"])
                loaded = cls(words, keys, counts, images, n, metadata.get("tokenizer"))
            if loaded.content_hash != metadata["sha256"]:
                raise DocumentFrequencyError(f"its content hash is {loaded.content_hash}, not {metadata['sha256']}")
        except (SafetensorError, ValueError, KeyError) as error:  # DocumentFrequencyError is a ValueError
            raise DocumentFrequencyError(f"{path}: not a file of document frequencies: {error}") from error
        return loaded

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all.

        Args:
            path (`str` or `Path`): the file; an older one is replaced.
        """
        tensors = {"words": np.frombuffer(_words_json(self.words), np.uint8), "keys": self.keys, "counts": self.counts}
        metadata = {
            "format": FORMAT,
            "n": str(self.n),
            "number_of_images": str(self.number_of_images),
            "sha256": self.content_hash,
            **({} if self.tokenizer is None else {"tokenizer": self.tokenizer}),
        }
        write_whole(Path(path), lambda temporary: save_file(tensors, temporary, metadata))

    @classmethod
    def cached(cls, folder: str | Path, references: Sequence[Sequence[Any]], **options: Any) -> DocumentFrequencies:
        """Load the frequencies of these references from a folder, or count them and keep them there.

        The file is named by a hash of the references, the options and the version of this library. Several processes
        may do this at once: each writes a file of its own and moves it to the name.

        Args:
            folder (`str` or `Path`): made if it is not there.
            references (`Sequence[Sequence[str]]`): see [`from_references`].
            options: of [`from_references`].

        Returns:
            `DocumentFrequencies`

        Raises:
            MetricInputError: see [`from_references`].
            DocumentFrequencyError: the file is damaged; delete it.
        """
        words = {"references": _hash_references(references), "version": __version__, "format": FORMAT}
        settings = words | {name: value for name, value in options.items() if name != "image_ids"}
        settings["tokenizer"] = tokenizer_name(options.get("tokenizer", "ptb"))
        name = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        path = Path(folder) / f"document_frequencies-{name}.safetensors"
        if path.is_file():
            return cls.load(path)
        counted = cls.from_references(references, **options)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{path.suffix}")
        counted.save(temporary)
        temporary.replace(path)
        return counted

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of the n-grams, their counts and the number of images, in hexadecimal digits."""
        digest = hashlib.sha256(f"{FORMAT} {self.n} {self.number_of_images}\n".encode())
        for content in (
            _words_json(self.words),
            self.keys.astype("<i8").tobytes(),
            self.counts.astype("<i4").tobytes(),
        ):
            digest.update(b"%d\n" % len(content))
            digest.update(content)
        return digest.hexdigest()

    @functools.cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each word."""
        return {word: number for number, word in enumerate(self.words)}

    @property
    def token_ids(self) -> bool:
        """True where all words are numbers, because token ids were counted; False without any words."""
        return bool(self.words) and all(word.isdecimal() for word in self.words)

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Refuse captions that are cut into other words than those that were counted.

        Args:
            tokenizer (`str` or `Callable`): what cuts the captions; see [`tokenize`].

        Raises:
            ValueError: another one than that of the references, as far as both have names.

        Example:

        ```python
        >>> from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
        >>> DocumentFrequencies.from_references([["a dog"], ["a cat"]]).check_tokenizer("unicode")
        Traceback (most recent call last):
            ...
        ValueError: document frequencies of the tokenizer 'ptb-lowercase-nopunct' do not fit captions that are cut by \
'unicode-lowercase-nopunct'; count them with the same one

        ```
        """
        name = _recorded(tokenizer)
        if None not in (self.tokenizer, name) and name != self.tokenizer:
            raise ValueError(
                f"document frequencies of the tokenizer {self.tokenizer!r} do not fit captions that are cut by "
                f"{name!r}; count them with the same one"
            )

    def count(self, ngram: str) -> int:
        """The number of images whose references have an n-gram.

        Args:
            ngram (`str`): its words, separated by spaces.

        Returns:
            `int`
        """
        node = np.zeros(1, np.int64)
        for word in ngram.split():
            node = self.find(node, np.array([self.numbers.get(word, len(self.words))]))
        return int(self.counts[node[0]]) if node[0] > 0 else 0

    def find(self, parent: np.ndarray, word: np.ndarray) -> np.ndarray:
        """The nodes of n-grams by those of their beginnings (0 for 1-grams, -1 for unknown) and their last words."""
        return find(self.keys, parent, word)

    def idf(self, node: np.ndarray) -> np.ndarray:
        """The idf log(number of images) - log(max(1, count)) of nodes, float64; highest for -1, an unknown n-gram."""
        return idf(np.where(node < 0, 1, self.counts[node]), self.number_of_images)

    def __len__(self) -> int:
        return int(np.count_nonzero(self.counts))

    def __repr__(self) -> str:
        return f"DocumentFrequencies({len(self)} n-grams of up to {self.n} words in {self.number_of_images} images)"


def idf(counts: np.ndarray, number_of_images: int) -> np.ndarray:
    """The idf log(number of images) - log(max(1, count)) of counts.

    Args:
        counts (`np.ndarray`): in how many images' references n-grams occur.
        number_of_images (`int`): the size of the corpus.

    Returns:
        `np.ndarray`: float64 of the same shape.
    """
    return np.log(float(number_of_images)) - np.log(np.maximum(1.0, counts))


def _recorded(tokenizer: Tokenizer) -> str | None:
    """The name of a tokenizer; `None` of a function without one, such as a lambda."""
    with contextlib.suppress(ValueError):
        return tokenizer_name(tokenizer)
    return None


def _words_json(words: Iterable[str]) -> bytes:
    return json.dumps(list(words)).encode("ascii")  # escaped, because UTF-8 has no lone surrogates


def _hash_references(references: Sequence[Sequence[Any]]) -> str:
    """A hash of references as they are: texts, or lists of ids in any container."""
    return hash_captions(
        [
            [
                caption if isinstance(caption, str) else json.dumps(np.asarray(caption).tolist())
                for caption in image_references
            ]
            for image_references in references
        ]
    )
