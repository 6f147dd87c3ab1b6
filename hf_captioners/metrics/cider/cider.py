"""CIDEr and CIDEr-D: how much a caption agrees with the consensus of the references (Vedantam et al., 2015).

For each order of n-grams, caption and reference are vectors of tf-idf weights, and CIDEr is ten times their cosine,
averaged over orders 1 to 4 and over the references (section 4). CIDEr-D, the one that papers report, clips the
caption's weights at the reference's and punishes another length by a Gaussian (section 8). What the reference tools do
beyond the paper is done here, too:

1. The length is the number of 2-grams, so an empty caption and a caption of one word are equally long.
2. The term frequency is the count itself, not divided by the caption's length.
3. An n-gram that no reference of the corpus has counts as one that a single image has.
4. A vector of length 0 (an empty caption; a caption whose n-grams are in all images) agrees with nothing.

One difference: a single image without document frequencies is refused, where the tools give 0 for every caption.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inputs import MetricInputError
from ..ngrams import Words, count_ngrams, number_keys, pack, read_words, spans
from ..pair_counts import PairCounts
from ..scores import Scores
from ..tokens import Tokenizer, prepare_pairs, tokenizer_setting
from .document_frequency import DocumentFrequencies, idf
from .frequency_tree import check_n
from .references import PreparedReferences, prepare_references

CAPTIONS_AT_ONCE = 8192


@dataclass(frozen=True)
class _Agreement:
    """CIDEr's way to compare a caption with a reference."""

    def products(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        """The summands of the dot product: one for each n-gram that caption and reference share, from both weights."""
        return prediction * reference

    def penalty(self, difference: np.ndarray) -> np.ndarray:
        """The factor for each difference of lengths."""
        return np.ones(len(difference))


@dataclass(frozen=True)
class _ClippedAgreement(_Agreement):
    """CIDEr-D's."""

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma is {self.sigma}, expected a positive number of words")

    def products(self, prediction: np.ndarray, reference: np.ndarray) -> np.ndarray:
        return np.minimum(prediction, reference) * reference

    def penalty(self, difference: np.ndarray) -> np.ndarray:
        return np.exp(-(difference**2) / (2 * self.sigma**2))


class Cider:
    """Plain CIDEr of any number of captions against references that are prepared once.

    Args:
        document_frequencies ([`DocumentFrequencies`]): of the corpus that makes n-grams rare or common.
        n (`int`, defaults to 4): the highest order of n-grams.

    Raises:
        ValueError: `n` is below 1 or above the order of the document frequencies.
        MetricInputError: the document frequencies are those of a single image.

    Example:

    ```python
    >>> from hf_captioners.metrics.cider.cider import CiderD
    >>> from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
    >>> references = [["a dog runs", "a dog"], ["two cats"], ["a red bus"]]
    >>> scorer = CiderD(DocumentFrequencies.from_references(references, tokenized=True))
    >>> prepared = scorer.prepare(references)
    >>> scorer.score(["a dog runs", "a dog", "two cats"], prepared, image_index=[0, 0, 1]).round(4)
    array([5.5207, 4.2707, 5.    ])

    ```
    """

    def __init__(self, document_frequencies: DocumentFrequencies, *, n: int = 4) -> None:
        _check_frequencies(document_frequencies, n)
        self.document_frequencies = document_frequencies
        self.agreement = _Agreement()
        self.n = n
        # Words that only references have get the next free numbers in `prepare`. They are few.
        self._numbers = dict(document_frequencies.numbers)

    def prepare(self, references: Sequence[Sequence[str]]) -> PreparedReferences:
        """The vectors of the references of images.

        Args:
            references (`Sequence[Sequence[str]]`): the references of each image, at least one, as tokens joined by
                spaces.

        Returns:
            [`PreparedReferences`]: for this scorer only.
        """
        words = read_words(
            [reference for image_references in references for reference in image_references], self._numbers
        )
        self._numbers.update(words.new)
        counts = np.array([len(image_references) for image_references in references], np.int64)
        return prepare_references(words, counts, self.document_frequencies, self.n, self._numbers)

    def score(
        self, predictions: Sequence[str], references: PreparedReferences, image_index: Sequence[int] | None = None
    ) -> np.ndarray:
        """Score captions.

        Args:
            predictions (`Sequence[str]`): tokens joined by spaces.
            references ([`PreparedReferences`]): what `prepare` gave.
            image_index (`Sequence[int]`, *optional*): for each caption the position of its image; images may come
                several times or never. By default a caption per image, in order.

        Returns:
            `np.ndarray`: float64 of shape (captions,), 0 to 10.

        Raises:
            ValueError: a caption without an image, or references that another scorer prepared.
        """
        if references.numbers is not self._numbers:
            raise ValueError("the references were prepared by another scorer; expected what prepare() of this one gave")
        images = len(references.roots)
        image = np.arange(images) if image_index is None else np.asarray(image_index, np.int64)
        if len(image) != len(predictions) or (len(image) and not 0 <= image.min() <= image.max() < images):
            raise ValueError(
                f"{len(predictions)} predictions, {len(image)} image positions; expected one each, 0 to {images - 1}"
            )
        scores = [
            self._score(read_words(predictions[start:end], self._numbers), image[start:end], references)
            for start in range(0, len(predictions), CAPTIONS_AT_ONCE)
            for end in [start + CAPTIONS_AT_ONCE]
        ]
        return np.concatenate([np.empty(0), *scores])

    def _score(self, words: Words, image: np.ndarray, references: PreparedReferences) -> np.ndarray:
        captions = np.arange(len(image))
        first_reference = references.first_reference[image]
        reference_counts = references.first_reference[image + 1] - first_reference  # (captions,)
        # A pair is a caption and a reference of its image; `first_pair` has the first pair of each caption.
        caption_of_pair = np.repeat(captions, reference_counts)  # (pairs,)
        reference_of_pair = spans(first_reference, reference_counts)  # (pairs,)
        first_pair = np.cumsum(reference_counts) - reference_counts  # (captions,)
        similarity = np.zeros(len(caption_of_pair))  # (pairs,)
        frequency_node = np.zeros(len(image), np.int64)  # (captions,), then (n-grams of captions,)
        reference_node = references.roots[image]  # (captions,), then (n-grams of captions,)
        for order, level in enumerate(count_ngrams(words, captions, len(captions), self.n)):
            frequency_node = self.document_frequencies.find(frequency_node[level.parent], level.word)
            reference_node = references.find(reference_node[level.parent], level.word)
            weight = level.count * self.document_frequencies.idf(frequency_node)  # (n-grams of captions,)
            norm = np.sqrt(np.bincount(level.group, weight**2, minlength=len(captions)))  # (captions,)
            ngram, entry = references.entries(reference_node)  # (matches,) each
            product = self.agreement.products(weight[ngram], references.weight[entry])  # (matches,)
            pair = first_pair[level.group[ngram]] + references.reference[entry]  # (matches,)
            norms = norm[caption_of_pair] * references.norm[reference_of_pair, order]  # (pairs,)
            dot = np.bincount(pair, product, minlength=len(similarity))  # (pairs,)
            similarity += np.divide(dot, norms, out=np.zeros(len(dot)), where=norms > 0)
        bigrams = np.maximum(words.length - 1, 0)
        similarity *= self.agreement.penalty(bigrams[caption_of_pair] - references.bigrams[reference_of_pair])
        return 10 * np.bincount(caption_of_pair, similarity, minlength=len(captions)) / (self.n * reference_counts)


class CiderD(Cider):
    """CIDEr-D of any number of captions against references that are prepared once. See [`Cider`].

    Args:
        document_frequencies ([`DocumentFrequencies`]): of the corpus that makes n-grams rare or common.
        n (`int`, defaults to 4): the highest order of n-grams.
        sigma (`float`, defaults to 6.0): the standard deviation of the length penalty, in words.

    Raises:
        ValueError: `n` as above, or `sigma` is not positive.
    """

    def __init__(self, document_frequencies: DocumentFrequencies, *, n: int = 4, sigma: float = 6.0) -> None:
        super().__init__(document_frequencies, n=n)
        self.agreement = _ClippedAgreement(sigma)


def cider(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    document_frequencies: DocumentFrequencies | None = None,
    n: int = 4,
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
    counts: PairCounts | None = None,
) -> Scores:
    """Plain CIDEr, without clipping and length penalty.

    Args:
        predictions (`Sequence[str]`): a caption per image.
        references (`Sequence[Sequence[str]]`): the references of each image, at least one.
        document_frequencies ([`DocumentFrequencies`], *optional*): of a corpus; by default of the references.
        n (`int`, defaults to 4): the highest order of n-grams.
        tokenized (`bool`, defaults to `False`): captions are tokens joined by spaces already.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; `"unicode"`
            for other languages than English.
        image_ids (`Sequence`, *optional*): names of the images for messages; by default positions.
        counts ([`PairCounts`], *optional*): of the tokens, with the words of the document frequencies, where other
            metrics have had them counted.

    Returns:
        [`Scores`]: `cider`, 0 to 10; papers print 100 times that. The corpus score is the mean over the images.

    Raises:
        MetricInputError: captions that cannot be scored, among them a single image without document frequencies.
        ValueError: `n` is below 1 or above the order of the document frequencies, or these were counted with another
            tokenizer.
    """
    _check_tokenizer(document_frequencies, tokenizer, tokenized)
    tokens = prepare_pairs(predictions, references, tokenized, image_ids, tokenizer=tokenizer)
    settings = {"n": n, **_source(document_frequencies), **tokenizer_setting(tokenizer, tokenized)}
    return _scores("cider", _Agreement(), tokens, document_frequencies, settings, image_ids, counts)


def cider_d(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    document_frequencies: DocumentFrequencies | None = None,
    n: int = 4,
    sigma: float = 6.0,
    tokenized: bool = False,
    tokenizer: Tokenizer = "ptb",
    image_ids: Sequence[Any] | None = None,
    counts: PairCounts | None = None,
) -> Scores:
    """CIDEr-D, which papers and the COCO server call CIDEr.

    Args:
        predictions (`Sequence[str]`): a caption per image.
        references (`Sequence[Sequence[str]]`): the references of each image, at least one.
        document_frequencies ([`DocumentFrequencies`], *optional*): of a corpus; by default of the references.
        n (`int`, defaults to 4): the highest order of n-grams.
        sigma (`float`, defaults to 6.0): the standard deviation of the length penalty, in words.
        tokenized (`bool`, defaults to `False`): captions are tokens joined by spaces already.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; `"unicode"`
            for other languages than English.
        image_ids (`Sequence`, *optional*): names of the images for messages; by default positions.
        counts ([`PairCounts`], *optional*): of the tokens, with the words of the document frequencies, where other
            metrics have had them counted.

    Returns:
        [`Scores`]: `cider_d`, 0 to 10; papers print 100 times that. The corpus score is the mean over the images.

    Raises:
        MetricInputError: captions that cannot be scored, among them a single image without document frequencies.
        ValueError: `n` or `sigma` out of range, or document frequencies that another tokenizer's words were counted in.

    Example:

    ```python
    >>> from hf_captioners.metrics.cider.cider import cider_d
    >>> references = [["a dog runs on the grass"], ["two cats on a chair"]]
    >>> cider_d(["a dog runs on the grass", "two dogs"], references, tokenized=True).per_image["cider_d"].round(4)
    array([10.    ,  0.9007])

    ```
    """
    _check_tokenizer(document_frequencies, tokenizer, tokenized)
    tokens = prepare_pairs(predictions, references, tokenized, image_ids, tokenizer=tokenizer)
    settings = {
        "n": n,
        "sigma": float(sigma),
        **_source(document_frequencies),
        **tokenizer_setting(tokenizer, tokenized),
    }
    return _scores("cider_d", _ClippedAgreement(sigma), tokens, document_frequencies, settings, image_ids, counts)


def _check_tokenizer(document_frequencies: DocumentFrequencies | None, tokenizer: Tokenizer, tokenized: bool) -> None:
    if document_frequencies is not None and not tokenized:
        document_frequencies.check_tokenizer(tokenizer)


def _check_frequencies(document_frequencies: DocumentFrequencies, n: int) -> None:
    if not 1 <= n <= document_frequencies.n:
        raise ValueError(f"n is {n}, expected 1 to {document_frequencies.n}, the order of the document frequencies")
    if document_frequencies.number_of_images == 1:
        raise MetricInputError("the document frequencies are of one image, so all words weigh 0; expected more")


def _source(document_frequencies: DocumentFrequencies | None) -> dict[str, str]:
    """The origin of the document frequencies, for the settings."""
    if document_frequencies is None:
        return {"df": "references"}
    return {"df": "corpus", "df_hash": document_frequencies.content_hash[:12]}


def _scores(
    name: str,
    agreement: _Agreement,
    tokens: tuple[list[str], list[list[str]]],
    document_frequencies: DocumentFrequencies | None,
    settings: dict[str, Any],
    image_ids: Sequence[Any] | None,
    counts: PairCounts | None,
) -> Scores:
    n = settings["n"]
    if document_frequencies is not None:
        _check_frequencies(document_frequencies, n)
    elif len(tokens[0]) == 1:
        image = 0 if image_ids is None else image_ids[0]
        raise MetricInputError(
            f"image {image}: a single image says nothing about how rare words are, so its score would be 0; give "
            "document_frequencies=DocumentFrequencies.from_references(…) of a corpus, such as the training split"
        )
    check_n(n)
    if counts is None:
        known = None if document_frequencies is None else document_frequencies.numbers
        counts = PairCounts([[prediction] for prediction in tokens[0]], tokens[1], known)
    per_image = _score_pairs(counts, agreement, list(_idf_levels(counts, document_frequencies, n)))
    return Scores({name: float(per_image.mean())}, {name: per_image}, settings=settings)


def _idf_levels(counts: PairCounts, document_frequencies: DocumentFrequencies | None, n: int) -> Iterator[np.ndarray]:
    """The idf of the n-grams of each image, float64 of shape (nodes,), order by order."""
    node = np.zeros(counts.images, np.int64)  # of each n-gram of an image, in a tree of all n-grams: at first the root
    for level in counts.levels(n):
        if document_frequencies is not None:
            node = document_frequencies.find(node[level.parent], level.word)
            yield document_frequencies.idf(node)
            continue
        _, node = number_keys(pack(node[level.parent], level.word))
        of_references = np.zeros(len(level.word), bool)
        of_references[level.node[~counts.predicted[level.caption]]] = True
        yield idf(np.bincount(node, of_references)[node], counts.images)


def _score_pairs(counts: PairCounts, agreement: _Agreement, idf_levels: Sequence[np.ndarray]) -> np.ndarray:
    """The score of each image's one caption: [`Cider.score`] where captions and references are counted together."""
    captions, predicted = len(counts.predicted), counts.predicted
    references = np.flatnonzero(~predicted)
    prediction = np.flatnonzero(predicted)[counts.image[references]]  # (references,): the caption of the same image
    similarity = np.zeros(len(references))
    n = len(idf_levels)
    for idf_of_node, level in zip(idf_levels, counts.levels(n), strict=True):
        weight = level.count * idf_of_node[level.node]  # (entries,)
        norm = np.sqrt(np.bincount(level.caption, weight**2, minlength=captions))
        is_predicted = predicted[level.caption]
        of_prediction = np.zeros(len(level.word))  # (nodes,): the weight that the caption gives the n-gram
        of_prediction[level.node[is_predicted]] = weight[is_predicted]
        product = agreement.products(of_prediction[level.node], weight)
        dot = np.bincount(level.caption, np.where(is_predicted, 0.0, product), minlength=captions)[references]
        norms = norm[prediction] * norm[references]
        similarity += np.divide(dot, norms, out=np.zeros(len(dot)), where=norms > 0)
    bigrams = np.maximum(counts.words.length - 1, 0)
    similarity *= agreement.penalty(bigrams[prediction] - bigrams[references])
    image = counts.image[references]
    return 10 * np.bincount(image, similarity, minlength=counts.images) / (n * np.bincount(image))
