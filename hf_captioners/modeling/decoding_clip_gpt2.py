"""The beam search that ClipCap's numbers were made with (arXiv 2111.09734): hypotheses compete by their mean.

It differs from transformers' beam search in two points: at every step the hypotheses are ranked by the mean
log-probability of their words, not by the sum, and finished captions stay in the beam, where a better one can push
them out. The two can return different captions of the same model.
"""

from __future__ import annotations

import torch

from .captioner_beam_search import FinishedStay


class ClipCapBeams(FinishedStay):
    """Candidates survive by their final score; the length counts the words written and the end token, no prompt."""

    def prompt_length(self) -> int:
        return 0

    def rank(self, sums: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return self.score(sums, lengths)
