"""CIDEr-D of each completion as a reward for TRL's `GRPOTrainer` and relatives (Rennie et al., 2017).

The document frequencies are those of the training split. The originals count different things as words, so this is an
option: ExpansionNet v2 scores words and SATIC token ids, and both count the end of the caption as a word, in the
references and in the completions that have one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch

from ..data.rows import captions_by_image
from ..metrics.cider.caption_words import CaptionWords
from ..metrics.cider.cider import CiderD
from ..metrics.cider.document_frequency import DocumentFrequencies
from ..metrics.cider.references import PreparedReferences, join_references
from ..metrics.inputs import MetricInputError
from ..metrics.tokens import Tokenizer

END = "</s>"  # the end of a caption as a word of the default reward


class CiderDReward:
    """CIDEr-D of a caption against the references of its image.

    The number is the one that [`cider_d`] gives for the image with the same document frequencies and the same words.
    The references of an image are prepared once and kept for later calls, as many images as `cache_images` says; the
    oldest leave first.

    Args:
        document_frequencies ([`DocumentFrequencies`]): of the training split, with words as below.
        tokenized (`bool`, defaults to `False`): completions and references are tokens joined by spaces already;
            otherwise they are tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`]; the same as
            for the document frequencies.
        eos (`str` or `int`, *optional*): the end of a caption, counted as a word. With texts it is put after the
            references and the finished completions; with token ids both are cut after the first one, and those that
            have none are left as they are. By default the end is not counted.
        token_ids (`bool`, defaults to `False`): score `completion_ids` and not texts; the references are lists of
            token ids, too.
        eos_token_id (`int`, *optional*): the id at the end of `completion_ids`. With texts it tells which completions
            are finished and get `eos`; without it all do. With `token_ids` and without `eos`, captions are cut before
            it.
        n (`int`, defaults to 4), sigma (`float`, defaults to 6.0): see [`CiderD`].
        cache_images (`int`, defaults to 120,000): images whose prepared references are kept, about 5 kB each. COCO's
            training split has 113,287.

    Raises:
        ValueError: arguments that contradict each other, or document frequencies of other words: without `eos`, of
            words instead of ids, of ids instead of words, of another tokenizer.

    Example:

    ```python
    >>> from hf_captioners.metrics import DocumentFrequencies
    >>> from hf_captioners.rewards.cider import CiderDReward
    >>> references = [["a dog runs", "a dog"], ["two cats"], ["a red bus"]]
    >>> frequencies = DocumentFrequencies.from_references(references, tokenized=True, eos="</s>")
    >>> reward = CiderDReward(frequencies, tokenized=True, eos="</s>")
    >>> rewards = reward(["a dog runs", "a dog", "two dogs"], captions=[references[0], references[0], references[1]])
    >>> [round(value, 4) for value in rewards]
    [6.4023, 5.1523, 1.25]

    ```
    """

    __name__ = "cider_d"  # what TRL logs the reward under

    def __init__(
        self,
        document_frequencies: DocumentFrequencies,
        *,
        tokenized: bool = False,
        eos: str | int | None = None,
        token_ids: bool = False,
        eos_token_id: int | None = None,
        tokenizer: Tokenizer = "ptb",
        n: int = 4,
        sigma: float = 6.0,
        cache_images: int = 120_000,
    ) -> None:
        if cache_images < 0:
            raise ValueError(f"cache_images is {cache_images}, expected a number of images, at least 0")
        self.words = CaptionWords(tokenized, eos, token_ids, eos_token_id, tokenizer)
        self.tokenizer = tokenizer
        _check_frequencies(document_frequencies, self.words)
        self.scorer = CiderD(document_frequencies, n=n, sigma=sigma)
        self.cache_images = cache_images
        self.needs_ids = token_ids or (eos is not None and eos_token_id is not None)
        # references of an image -> their vectors: the images that were prepared with it, and its position among them
        self._prepared: dict[Hashable, tuple[PreparedReferences, int]] = {}

    def __call__(
        self,
        completions: Sequence[Any],
        captions: Sequence[Sequence[Any]],
        completion_ids: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> list[float]:
        """The reward of each completion.

        Args:
            completions (`Sequence[str]`): generated captions; or conversations, of which the last message counts.
            captions (`Sequence[Sequence[str]]`): for each completion the references of its image, at least one: the
                column `captions` of the data set, repeated by TRL. With `token_ids` they are lists of ids.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): the token ids, needed where they are used.
            kwargs: what else TRL gives (prompts, other columns); not used.

        Returns:
            `list[float]`: between 0 and 10, one per completion.

        Raises:
            MetricInputError: a completion or reference of another kind, or one without references. The message gives
                its position in the batch as the image.
        """
        if len(captions) != len(completions):
            raise MetricInputError(f"{len(captions)} captions for {len(completions)} completions; expected one each")
        if self.needs_ids and (completion_ids is None or len(completion_ids) != len(completions)):
            count = "no" if completion_ids is None else len(completion_ids)
            raise MetricInputError(f"{count} completion_ids for {len(completions)} completions; expected one each")
        if not completions:
            return []
        predictions = self._predictions(completions, completion_ids)
        keys = [self._key(row, references) for row, references in enumerate(captions)]
        first_row: dict[Hashable, int] = {}  # references of an image -> where they first occur
        for row, key in enumerate(keys):
            first_row.setdefault(key, row)
        prepared = self._prepare(first_row, captions)
        position = {key: image for image, key in enumerate(first_row)}
        return self.scorer.score(predictions, prepared, [position[key] for key in keys]).tolist()

    def _predictions(self, completions: Sequence[Any], ids: Sequence[Sequence[int]] | None) -> list[str]:
        if self.words.token_ids:
            return self.words.of_ids([] if ids is None else ids)
        finished = None
        if self.needs_ids and ids is not None:
            finished = [self.words.eos_token_id in list(token_ids) for token_ids in ids]
        return self.words.of_texts([_text(row, completion) for row, completion in enumerate(completions)], finished)

    def _key(self, row: int, references: Any) -> Hashable:
        """A key of references, equal for equal ones."""
        self.words.check_references(references, row)
        if not self.words.token_ids:
            return tuple(references)
        arrays = [np.asarray(reference) for reference in references]
        return tuple((array.dtype.str, array.tobytes()) for array in arrays)

    def _prepare(self, first_row: Mapping[Hashable, int], captions: Sequence[Sequence[Any]]) -> PreparedReferences:
        """The vectors of each image's references."""
        new = [(key, row) for key, row in first_row.items() if key not in self._prepared]
        if new:
            references = [captions[row] for _, row in new]
            flat = iter(self.words.of_references(references, [row for _, row in new], checked=True))
            prepared = self.scorer.prepare(
                [list(islice(flat, len(image_references))) for image_references in references]
            )
            self._prepared.update((key, (prepared, position)) for position, (key, _) in enumerate(new))
        together = self._together(list(first_row))
        for oldest in list(islice(self._prepared, max(len(self._prepared) - self.cache_images, 0))):
            del self._prepared[oldest]
        return together

    def _together(self, keys: Sequence[Hashable]) -> PreparedReferences:
        """The vectors of images, which are cut out of those that they were prepared with if these are others."""
        entries = [self._prepared[key] for key in keys]
        whole = entries[0][0]
        as_prepared = all(part is whole and place == position for position, (part, place) in enumerate(entries))
        if as_prepared and len(keys) == len(whole.roots):
            return whole
        for key in keys:
            prepared, position = self._prepared[key]
            if len(prepared.roots) > 1:
                self._prepared[key] = prepared.image(position), 0
        return join_references([self._prepared[key][0] for key in keys])


def _text(row: int, completion: Any) -> str:
    if isinstance(completion, list) and completion and isinstance(completion[-1], dict):  # a conversation
        completion = completion[-1].get("content")
    if not isinstance(completion, str):
        raise MetricInputError(f"image {row}: the completion is a {type(completion).__name__}, expected a string")
    return completion


def _check_frequencies(frequencies: DocumentFrequencies, words: CaptionWords) -> None:
    if words.eos is not None and not frequencies.count(str(words.eos)):
        raise ValueError(
            f"the document frequencies have no {words.eos!r}, so they were counted without the end of captions; count "
            "them with eos=, too, or leave eos away"
        )
    if frequencies.words and frequencies.token_ids != words.token_ids:
        kind = "token ids" if frequencies.token_ids else "words"
        raise ValueError(f"the document frequencies are of {kind}, but token_ids={words.token_ids}")
    if not (words.tokenized or words.token_ids):
        frequencies.check_tokenizer(words.tokenizer)


def default_reward(dataset: Any, eos_token_id: int | None = None, tokenizer: Tokenizer = "ptb") -> CiderDReward:
    """CIDEr-D with the document frequencies of a data set's captions, tokenised, the end counted as a word.

    Without the end among the words, captions that stop in the middle of a phrase would be paid like finished ones.

    Args:
        dataset (`Dataset` or `list[dict]`): rows with `captions`.
        eos_token_id (`int`, *optional*): the end of a caption; by default all captions count as finished.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts captions into words, see [`tokenize`].

    Returns:
        [`CiderDReward`]

    Raises:
        ValueError: a data set without length, whose captions cannot be counted beforehand.
    """
    if dataset is None or isinstance(dataset, torch.utils.data.IterableDataset):
        raise ValueError(
            "the default reward, CIDEr-D, counts words in the captions of train_dataset beforehand; give a data set "
            "with a length, or reward_funcs=CiderDReward(document_frequencies)."
        )
    frequencies = DocumentFrequencies.from_references(captions_by_image(dataset), eos=END, tokenizer=tokenizer)
    return CiderDReward(frequencies, eos=END, eos_token_id=eos_token_id, tokenizer=tokenizer)
