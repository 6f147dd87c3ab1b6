"""The words of a caption for CIDEr-D rewards and document frequencies: text or ids, with the end of caption or without.

The originals differ here. ExpansionNet v2, SATIC and SCD-Net count the end of the caption as a word, in the references
and in every completion that has one; SATIC and SCD-Net score token ids. The metrics on test splits do neither.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..inputs import MetricInputError, describe, is_list_of_strings
from ..tokens import Tokenizer, tokenize


@dataclass(frozen=True)
class CaptionWords:
    """The definition of the words of a caption.

    Args:
        tokenized (`bool`, defaults to `False`): texts are tokens joined by spaces; otherwise they are tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts texts into words, see [`tokenize`].
        eos (`str` or `int`, *optional*): the end of a caption, counted as a word: a word that is put after texts, or
            the id after which lists of ids are cut. By default the end is not counted.
        token_ids (`bool`, defaults to `False`): captions are lists of token ids, words are their numbers.
        eos_token_id (`int`, *optional*): the id that ends a list of ids. With `token_ids` it and what follows is cut
            off, unless it is counted; without, it tells which completions are finished and get `eos`.

    Raises:
        ValueError: arguments that contradict each other; the message names them.

    Example:

    ```python
    >>> from hf_captioners.metrics.cider.caption_words import CaptionWords
    >>> CaptionWords(tokenized=True, eos="</s>").of_texts(["a dog"])
    ['a dog </s>']
    >>> CaptionWords(token_ids=True, eos=0).of_ids([[5, 7, 0, 0, 0]])
    ['5 7 0']
    >>> CaptionWords(token_ids=True, eos_token_id=0).of_ids([[5, 7, 0, 0, 0]])
    ['5 7']

    ```
    """

    tokenized: bool = False
    eos: str | int | None = None
    token_ids: bool = False
    eos_token_id: int | None = None
    tokenizer: Tokenizer = "ptb"

    def __post_init__(self) -> None:
        if self.tokenizer != "ptb" and (self.tokenized or self.token_ids):
            raise ValueError(
                f"tokenizer={self.tokenizer!r} is about texts that are not tokenized=True or token_ids=True"
            )
        if self.token_ids:
            if self.eos is None and self.eos_token_id is None:
                raise ValueError("token_ids=True needs eos= (the end is a word) or eos_token_id= (the end is cut off)")
            if self.eos is not None and (not isinstance(self.eos, int) or self.eos_token_id not in (None, self.eos)):
                raise ValueError(
                    f"eos={self.eos!r}, eos_token_id={self.eos_token_id}: expected the same id, or one of them"
                )
            if self.tokenized:
                raise ValueError("tokenized=True is about texts; token_ids=True needs no tokenizer")
        elif self.eos is not None and (not isinstance(self.eos, str) or self.eos.split() != [self.eos]):
            raise ValueError(f"eos={self.eos!r}: expected one word, such as '</s>', or an id with token_ids=True")

    def of_texts(self, texts: Sequence[str], finished: Sequence[bool] | None = None) -> list[str]:
        """The words of texts, joined by spaces.

        Args:
            texts (`Sequence[str]`): captions.
            finished (`Sequence[bool]`, *optional*): whether each caption has an end; by default all have. A text whose
                last word is `eos` stays as it is.

        Returns:
            `list[str]`
        """
        if not self.tokenized:
            texts = tokenize(list(texts), self.tokenizer)
        if self.eos is None:
            return list(texts)
        ended = [True] * len(texts) if finished is None else finished
        return [
            f"{text} {self.eos}" if end and text.split()[-1:] != [self.eos] else text
            for text, end in zip(texts, ended, strict=True)
        ]

    def of_ids(self, captions: Sequence[Any]) -> list[str]:
        """The words of lists of token ids, joined by spaces.

        Args:
            captions (`Sequence[Sequence[int]]`): lists, numpy arrays or tensors of one dimension. After the first end
                anything may follow; without an end the whole list counts.

        Returns:
            `list[str]`

        Raises:
            MetricInputError: something else than ids, such as padding by -1 before any end.
        """
        end = self.eos_token_id if self.eos is None else self.eos
        counted = int(self.eos is not None)
        words = []
        for caption in captions:
            ids = _id_list(caption)
            if end in ids:
                ids = ids[: ids.index(end) + counted]
            if ids and min(ids) < 0:
                raise MetricInputError(
                    f"token ids {describe(ids)}: a negative id before the end of the caption ({end})"
                )
            words.append(" ".join(map(str, ids)))
        return words

    def of_references(
        self, references: Sequence[Sequence[Any]], names: Sequence[Any], checked: bool = False
    ) -> list[str]:
        """The words of all references of all images, one after another.

        Args:
            references (`Sequence[Sequence[str]]` or `Sequence[Sequence[Sequence[int]]]`): the references of each image.
            names (`Sequence`): of the images, for messages.
            checked (`bool`, defaults to `False`): `check_references` has seen them.

        Returns:
            `list[str]`

        Raises:
            MetricInputError: an image without references, or one with something else than captions. It is named.
        """
        for name, image_references in zip(names, [] if checked else references, strict=not checked):
            self.check_references(image_references, name)
        if not self.token_ids:
            return self.of_texts([reference for image_references in references for reference in image_references])
        words = []
        for name, image_references in zip(names, references, strict=True):
            try:
                words += self.of_ids(image_references)
            except MetricInputError as error:
                raise MetricInputError(f"image {name}: {error}") from error
        return words

    def check_references(self, references: Any, name: Any) -> None:
        """Raise an error for anything but a list of references.

        Args:
            references (`Any`): the references of an image.
            name (`Any`): of the image.

        Raises:
            MetricInputError: no references, or one with something else than captions.
        """
        if is_list_of_strings(references) and not self.token_ids:
            return
        if isinstance(references, (str, bytes)) or not isinstance(references, Collection) or len(references) == 0:
            raise MetricInputError(f"image {name}: the references are {describe(references)}, expected a list of some")
        for reference in references:
            if isinstance(reference, str) == self.token_ids or not isinstance(reference, Collection):
                expected = "a list of token ids" if self.token_ids else "a string"
                raise MetricInputError(f"image {name}: a reference is {describe(reference)}, expected {expected}")


def _id_list(caption: Any) -> list[int]:
    ids = np.asarray(caption)
    if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
        raise MetricInputError(f"token ids {describe(caption)}: expected a list of integers")
    return ids.tolist()
