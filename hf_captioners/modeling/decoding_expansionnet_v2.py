"""The beam search of ExpansionNet v2's published numbers (arXiv 2208.06551; specification of the original, section 13).

It differs from transformers' beam search in two points: finished captions stay in the beam (there is no pool of
finished ones beside it, so a finished caption can be pushed out), and the final score divides by a length that counts
the start token. The two can return different captions of the same model.
"""

from __future__ import annotations

from .captioner_beam_search import FinishedStay


class ExpansionNetV2Beams(FinishedStay):
    """Candidates survive by their sum; the length in the final score counts the start token and the end token."""
