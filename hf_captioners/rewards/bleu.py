"""BLEU of each completion as a reward for TRL's `GRPOTrainer` and relatives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..metrics.bleu import bleu_from_counts, count_matches
from ..metrics.inputs import check_pairs
from ..metrics.pair_counts import PairCounts
from ..metrics.tokens import Tokenizer, prepare_pairs


class BleuReward:
    """BLEU-n of a caption against the references of its image.

    The number is the one that [`bleu`] gives for the image. Captions of the same image, that is with the same
    references, are scored together: the references are counted once per call. Tokenised references are kept for later
    calls, as many as `cache_images` says; the oldest leave first.

    Args:
        n (`int`, defaults to 4): order of BLEU.
        tokenized (`bool`, defaults to `False`): completions and references are tokens joined by spaces already.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`].
        cache_images (`int`, defaults to 120,000): images whose tokenised references are kept, about 1.3 kB each with
            five references. COCO's training split has 113,287.

    Raises:
        ValueError: `n` below 1 or `cache_images` below 0.

    Example:

    ```python
    >>> from hf_captioners.rewards.bleu import BleuReward
    >>> reward = BleuReward(n=1, tokenized=True)
    >>> reward.__name__
    'bleu_1'
    >>> captions = ["a dog runs", "the dog is running"]
    >>> [round(value, 6) for value in reward(["a dog runs", "a cat sits"], captions=[captions, captions])]
    [1.0, 0.333333]

    ```
    """

    def __init__(
        self, n: int = 4, *, tokenized: bool = False, tokenizer: Tokenizer = "ptb", cache_images: int = 120_000
    ) -> None:
        if n < 1:
            raise ValueError(f"n is {n}, expected an order of BLEU, at least 1")
        if cache_images < 0:
            raise ValueError(f"cache_images is {cache_images}, expected a number of images, at least 0")
        self.n = n
        self.tokenized = tokenized
        self.tokenizer = tokenizer
        self.cache_images = cache_images
        self._prepared: dict[tuple[str, ...], list[str]] = {}  # references of an image -> the same tokenised

    @property
    def __name__(self) -> str:
        """The name that TRL logs the reward under."""
        return f"bleu_{self.n}"

    def __call__(self, completions: Sequence[str], captions: Sequence[Sequence[str]], **kwargs: Any) -> list[float]:
        """The reward of each completion.

        Args:
            completions (`Sequence[str]`): generated captions.
            captions (`Sequence[Sequence[str]]`): for each completion the references of its image, at least one: the
                column `captions` of the data set, repeated by TRL.
            kwargs: what else TRL gives (prompts, token ids, other columns); not used.

        Returns:
            `list[float]`: between 0 and 1, one per completion.

        Raises:
            MetricInputError: a completion that is not a string, or one without references. The message gives its
                position in the batch as the image.
        """
        check_pairs(completions, captions)
        rows: dict[tuple[str, ...], list[int]] = {}  # references of an image -> its completions
        for row, references in enumerate(captions):
            rows.setdefault(tuple(references), []).append(row)
        tokens, _ = prepare_pairs(completions, [[""]] * len(completions), self.tokenized, tokenizer=self.tokenizer)
        predictions = [[tokens[row] for row in image_rows] for image_rows in rows.values()]
        counts = count_matches(PairCounts(predictions, self._prepare(list(rows))), self.n)
        rewards = np.empty(len(completions))
        rewards[np.concatenate(list(rows.values()))] = bleu_from_counts(counts)[:, -1]  # back from image by image
        return rewards.tolist()

    def _prepare(self, images: list[tuple[str, ...]]) -> list[list[str]]:
        """The tokenised references of each image."""
        new = [references for references in images if references not in self._prepared]
        if new:
            _, tokens = prepare_pairs([""] * len(new), new, self.tokenized, tokenizer=self.tokenizer)
            self._prepared.update(zip(new, tokens, strict=True))
        prepared = [self._prepared[references] for references in images]
        for oldest in list(islice(self._prepared, max(len(self._prepared) - self.cache_images, 0))):
            del self._prepared[oldest]
        return prepared
