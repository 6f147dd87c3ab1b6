"""PAC-S and RefPAC-S: CLIP-S with the weights of a CLIP that was fine-tuned for judging captions, and w = 2.

Sarto et al., 2023, "Positive-Augmented Contrastive Learning for Image and Video Captioning Evaluation". The published
weights become a folder for `PacScorer` with `hf_captioners.conversion.convert("pac_score", …)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..scores import Scores
from .clip_score import ClipScorer
from .features import Images


class PacScorer(ClipScorer):
    """PAC-S of captions: a [`ClipScorer`] that is published with w = 2, its numbers in float32 on any device.

    Token ids are filled with 0, as in the reward of the DiCO code, which is
    `PacScorer(folder, prefix="", clip_negative=False, pad_token_id=49408)`.

    Args:
        args, options: see [`ClipScorer`].
    """

    name = "pac_s"
    published_w = 2.0

    def __init__(self, *args: Any, fill_token_id: int = 0, **options: Any) -> None:
        super().__init__(*args, fill_token_id=fill_token_id, **options)


def pac_score(
    images: Images,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    *,
    scorer: PacScorer,
    image_ids: Sequence[Any] | None = None,
) -> Scores:
    """PAC-S and, with references, RefPAC-S.

    Args:
        images, predictions, references, image_ids: see [`~hf_captioners.metrics.clip.clip_score.clip_score`].
        scorer ([`PacScorer`]): the converted weights and the variant.

    Returns:
        [`Scores`]: `pac_s` and, with references, `ref_pac_s`. The corpus has the means over the pictures.

    Raises:
        TypeError: the scorer is not one of PAC-S; its w would be another.
        MetricInputError, ImageError: see [`~hf_captioners.metrics.clip.clip_score.clip_score`].
    """
    if not isinstance(scorer, PacScorer):
        raise TypeError(f"a {type(scorer).__name__} does not compute PAC-S; give a PacScorer")
    return scorer(images, predictions, references, image_ids)
