"""The result of every metric."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Scores:
    """The scores of a metric.

    Attributes:
        corpus (`dict[str, float]`): name -> score of the whole corpus. Not always the mean over the images.
        per_image (`dict[str, np.ndarray]`): name -> float64 of shape (number of images,), in the order of the captions.
        settings (`dict[str, Any]`): every option by which the numbers could be others, with the value that was used;
            the evaluation signature is made of these.
    """

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]
    settings: dict[str, Any] = field(default_factory=dict, kw_only=True)
