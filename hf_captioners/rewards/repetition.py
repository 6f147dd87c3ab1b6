"""A reward against captions that stutter: "a dog on a dog on a dog"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics.diversity import diversity
from ..metrics.tokens import Tokenizer


class RepetitionReward:
    """Minus the share of a caption's n-grams that stand earlier in the same caption.

    The share is `repetition_n` of [`~hf_captioners.metrics.diversity`] (Welleck et al., 2020, seq-rep-n). Beside a
    reward that does not see repetition, such as CLIP-S, it keeps a captioner from repeating what scores well.

    Args:
        n (`int`, defaults to 2): order of the n-grams.
        tokenized (`bool`, defaults to `False`): completions are tokens joined by spaces; otherwise they are
            tokenised.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): what cuts them into words, see [`tokenize`].

    Raises:
        ValueError: `n` below 1.

    Example:

    ```python
    >>> from hf_captioners.rewards.repetition import RepetitionReward
    >>> reward = RepetitionReward(n=2)
    >>> reward.__name__
    'repetition'
    >>> reward(["A dog on a dog on a dog.", "A dog on a sofa."])
    [-0.5714285714285714, 0.0]

    ```
    """

    __name__ = "repetition"  # what TRL logs the reward under

    def __init__(self, n: int = 2, *, tokenized: bool = False, tokenizer: Tokenizer = "ptb") -> None:
        if n < 1:
            raise ValueError(f"n is {n}, expected an order of n-grams, at least 1")
        self.n = n
        self.tokenized = tokenized
        self.tokenizer = tokenizer

    def __call__(self, completions: Sequence[str], **kwargs: Any) -> list[float]:
        """The reward of each completion.

        Args:
            completions (`Sequence[str]`): generated captions.
            kwargs: what else a trainer gives; not used.

        Returns:
            `list[float]`: one per completion, 0 without repetition, also where a caption is shorter than n words, and
            above -1.

        Raises:
            MetricInputError: a completion that is not a string. The message gives its position as the image.
        """
        scores = diversity(completions, max_n=self.n, tokenized=self.tokenized, tokenizer=self.tokenizer)
        return (0.0 - scores.per_image[f"repetition_{self.n}"]).tolist()  # not -x, which makes -0.0
