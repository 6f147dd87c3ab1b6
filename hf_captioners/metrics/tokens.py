"""The words of captions, as metrics compare them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from .inputs import check_pairs
from .ptb.tokenizer import ptb_tokenize


def prepare_pairs(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenized: bool = False,
    image_ids: Sequence[Any] | None = None,
    in_sequence: bool = False,
) -> tuple[list[str], list[list[str]]]:
    """The captions checked and as tokens joined by spaces, the form in which the reference tools score them.

    Args:
        predictions (`Sequence[str]`), references (`Sequence[Sequence[str]]`), image_ids: see [`check_pairs`].
        tokenized (`bool`, defaults to `False`): they are tokens joined by spaces already.
        in_sequence (`bool`, defaults to `False`): see [`~hf_captioners.metrics.ptb_tokenize`].

    Returns:
        `tuple[list[str], list[list[str]]]`: predictions and references.

    Raises:
        MetricInputError: see [`check_pairs`].
    """
    check_pairs(predictions, references, image_ids)
    if tokenized:
        return list(predictions), [list(several) for several in references]
    flat = iter(ptb_tokenize([one for several in references for one in several], in_sequence=in_sequence))
    tokens = [list(itertools.islice(flat, len(several))) for several in references]
    return ptb_tokenize(predictions, in_sequence=in_sequence), tokens
