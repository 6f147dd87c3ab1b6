"""A reward for captions of the right length that come to an end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..metrics.diversity import diversity
from ..metrics.inputs import MetricInputError
from ..metrics.tokens import Tokenizer


class LengthReward:
    """Minus the number of words by which a caption is shorter than `minimum` or longer than `maximum`.

    Equal limits set a length to aim at. Give it a small weight among `reward_weights`; with 0.1 ten words too many
    cost 1. A word is a token of the metrics, so punctuation does not count.

    Args:
        minimum (`int`, defaults to 0): fewest words.
        maximum (`int`, *optional*): most words; by default any number.
        unfinished_penalty (`float`, defaults to 0.0): taken off, besides, for a caption that does not end: whose
            `completion_ids` have no `eos_token_id`.
        eos_token_id (`int`, *optional*): the id of the end; needed by `unfinished_penalty`.
        tokenized (`bool`, defaults to `False`): completions are tokens joined by spaces; otherwise they are
            tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`].

    Raises:
        ValueError: limits that no caption can keep, or that every caption keeps; a penalty below 0; a penalty
            without `eos_token_id` or the other way round.

    Example:

    ```python
    >>> from hf_captioners.rewards.length import LengthReward
    >>> reward = LengthReward(minimum=3, maximum=4, unfinished_penalty=5.0, eos_token_id=2)
    >>> reward.__name__
    'length'
    >>> reward(["A dog runs.", "A dog.", "A dog and a dog and"], completion_ids=[[5, 6, 7, 2], [5, 6, 2], [5, 6, 8]])
    [0.0, -1.0, -7.0]

    ```
    """

    __name__ = "length"  # what TRL logs the reward under

    def __init__(
        self,
        minimum: int = 0,
        maximum: int | None = None,
        *,
        unfinished_penalty: float = 0.0,
        eos_token_id: int | None = None,
        tokenized: bool = False,
        tokenizer: Tokenizer = "ptb",
    ) -> None:
        if minimum < 0 or (maximum is not None and maximum < minimum):
            raise ValueError(f"minimum={minimum}, maximum={maximum}: expected 0 <= minimum <= maximum")
        if not 0 <= unfinished_penalty < float("inf"):
            raise ValueError(f"unfinished_penalty={unfinished_penalty}: expected what is taken off, at least 0")
        if bool(unfinished_penalty) != (eos_token_id is not None):
            raise ValueError(
                f"unfinished_penalty={unfinished_penalty}, eos_token_id={eos_token_id}: expected both or neither"
            )
        if minimum == 0 and maximum is None and not unfinished_penalty:
            raise ValueError("a reward of 0 for every caption: give minimum, maximum or unfinished_penalty")
        self.minimum = minimum
        self.maximum = maximum
        self.unfinished_penalty = unfinished_penalty
        self.eos_token_id = eos_token_id
        self.tokenized = tokenized
        self.tokenizer = tokenizer

    def __call__(
        self, completions: Sequence[str], completion_ids: Sequence[Sequence[int]] | None = None, **kwargs: Any
    ) -> list[float]:
        """The reward of each completion.

        Args:
            completions (`Sequence[str]`): generated captions.
            completion_ids (`Sequence[Sequence[int]]`, *optional*): their token ids; needed for `unfinished_penalty`.
            kwargs: what else a trainer gives; not used.

        Returns:
            `list[float]`: at most 0, one per completion.

        Raises:
            MetricInputError: a completion that is not a string, or no token ids where they are needed.
        """
        scores = diversity(completions, max_n=1, tokenized=self.tokenized, tokenizer=self.tokenizer)
        words = scores.per_image["length"]  # (completions,)
        most = np.inf if self.maximum is None else self.maximum
        outside = np.maximum(self.minimum - words, 0.0) + np.maximum(words - most, 0.0)
        if self.eos_token_id is not None:
            outside += self.unfinished_penalty * self._unfinished(completion_ids, len(words))
        return (0.0 - outside).tolist()  # not -x, which makes -0.0

    def _unfinished(self, completion_ids: Sequence[Sequence[int]] | None, number: int) -> np.ndarray:
        """1 for each completion that lacks its end, otherwise 0, (completions,)."""
        if completion_ids is None or len(completion_ids) != number:
            count = "no" if completion_ids is None else len(completion_ids)
            raise MetricInputError(f"{count} completion_ids for {number} completions; expected one each")
        return np.array([self.eos_token_id not in list(ids) for ids in completion_ids], dtype=np.float64)
