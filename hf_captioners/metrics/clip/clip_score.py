"""CLIP-S and RefCLIP-S: how well a caption fits its picture, and its references, by the features of CLIP.

Hessel et al., 2021, "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", equations 1 and 2. With unit
vectors v (picture), c (caption) and t_j (references):

    S = w max(cos(c, v), 0)        m = max_j cos(c, t_j)        Ref = 2 S m / (S + m)

The defaults are those of the published code: captions follow the prefix "A photo depicts ", w is 2.5. PAC-S is the same
with other weights and w = 2 (`pac_score`). What differs:

1. Equation 2 has max(m, 0), the published code m; the numbers are the code's. `clip_negative=False` is the variant
   of the DiCO code, in training and in its tables: S = w cos(c, v) as it is, max(m, 0). It has no prefix either:
   `prefix=""`. Where S + m is near 0, which CLIP's cosines do not come to, neither Ref is a mean.
2. Ref is 0 where S m is 0; the published code divides 0 by 0 where both are.
3. Pictures are prepared by transformers' CLIP image processor; where the part to crop is an odd number of pixels, its
   crop lies up to one pixel beside that of the published code. Of ftfy's repairs, which the published tokenizer makes
   first, captions get the two that occur in them, see `plain_characters`.
4. The computation is in float32 unless another `dtype` is asked for; the published code of CLIP-S takes float16 on a
   GPU.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from ..inputs import MetricInputError, check_pairs
from ..scores import Scores
from .features import Captions, ClipFeatures, Images

PREFIX = "A photo depicts "

_STRAIGHT_QUOTES = str.maketrans(
    dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'") | dict.fromkeys("\u201c\u201d\u201e\u201f", '"')
)


def plain_characters(caption: str) -> str:
    """A caption with HTML entities resolved and straight quotes, as the tokenizer of the published code makes it.

    Args:
        caption (`str`): as written.

    Returns:
        `str`

    Example:

    ```python
    >>> from hf_captioners.metrics.clip.clip_score import plain_characters
    >>> plain_characters("salt &amp;amp; pepper on the cook\u2019s table")
    "salt & pepper on the cook's table"

    ```
    """
    return html.unescape(html.unescape(caption)).translate(_STRAIGHT_QUOTES)


def scores_from_features(
    image_features: Tensor,
    text_features: Tensor,
    reference_features: Sequence[Tensor] | None = None,
    *,
    w: float = 2.5,
    clip_negative: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """S and Ref of captions from features.

    Args:
        image_features (`torch.Tensor` of shape (images, width)): of the pictures.
        text_features (`torch.Tensor` of shape (captions, width)): of as many captions for each picture, side by side.
        reference_features (`Sequence[torch.Tensor]`, *optional*): for each picture those of its references, of shape
            (references, width).
        w (`float`, defaults to 2.5): factor of the cosine.
        clip_negative (`bool`, defaults to `True`): S is at least 0, m as it is; `False`: S as it is, m at least 0.

    Returns:
        `tuple[torch.Tensor, torch.Tensor | None]`: S and, with references, Ref, each of shape (captions,), in float32.

    Raises:
        ValueError: a number of captions that is not a multiple of that of the pictures.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.metrics.clip.clip_score import scores_from_features
    >>> image, captions = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
    >>> score, with_references = scores_from_features(image, captions, [torch.tensor([[0.0, 1.0], [1.0, 0.0]])])
    >>> [round(value, 4) for value in score.tolist()], [round(value, 4) for value in with_references.tolist()]
    ([1.5, 0.0], [1.2, 0.0])

    ```
    """
    if not len(image_features) or len(text_features) % len(image_features):
        raise ValueError(f"{len(text_features)} captions for {len(image_features)} images; expected as many for each")
    images = _unit(image_features)[:, None]  # (images, 1, width)
    texts = _unit(text_features).unflatten(0, (len(images), -1))  # (images, captions of each, width)
    cosine = (texts * images).sum(-1)  # (images, captions of each)
    score = w * (cosine.clamp(min=0) if clip_negative else cosine)
    if reference_features is None:
        return score.flatten(), None
    pairs = zip(texts, map(_unit, reference_features), strict=True)  # (captions of each, width), (references, width)
    best = [(image_texts @ image_references.T).amax(1) for image_texts, image_references in pairs]
    best_cosine = torch.stack(best)  # (images, captions of each)
    best_cosine = best_cosine if clip_negative else best_cosine.clamp(min=0)
    product = score * best_cosine
    mean = torch.where(product == 0, product, 2 * product / (score + best_cosine))
    return score.flatten(), mean.flatten()  # (captions,)


class ClipScorer(ClipFeatures):
    """CLIP-S of captions, with a model that is loaded once.

    Args:
        model, tokenizer, image_processor, pad_token_id, fill_token_id, batch_size, device, dtype, show_progress:
            see [`~hf_captioners.metrics.clip.features.ClipFeatures`]. Published numbers are those of
            `"openai/clip-vit-base-patch32"`.
        w (`float`, *optional*): factor of the cosine, by default 2.5.
        prefix (`str`, defaults to `"A photo depicts "`): put before captions and references that are texts.
        clip_negative (`bool`, defaults to `True`): see [`scores_from_features`].

    Example:

    ```python
    >>> import torch
    >>> from transformers import CLIPConfig, CLIPModel
    >>> from hf_captioners.metrics.clip.clip_score import ClipScorer
    >>> size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    >>> config = CLIPConfig(text_config={**size, "vocab_size": 20, "bos_token_id": 18, "eos_token_id": 19},
    ...                     vision_config={**size, "image_size": 32, "patch_size": 16}, projection_dim=4)
    >>> scorer = ClipScorer(CLIPModel(config), pad_token_id=20)
    >>> score, _ = scorer.score(torch.zeros(1, 3, 32, 32), [[18, 3, 7, 19, 20], [18, 5, 19, 20, 20]])
    >>> score.shape
    torch.Size([2])

    ```
    """

    name = "clip_s"
    published_w = 2.5

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: BaseImageProcessor | None = None,
        *,
        w: float | None = None,
        prefix: str = PREFIX,
        clip_negative: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(model, tokenizer, image_processor, **options)
        self.w = self.published_w if w is None else w
        self.prefix = prefix
        self.clip_negative = clip_negative

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of [`ClipFeatures.settings`], with the factor and the variant."""
        variant = {"w": float(self.w), "prefix": self.prefix, "clip_negative": self.clip_negative}
        return super().settings | variant

    def text_features(self, captions: Captions) -> Tensor:
        """The features of [`ClipFeatures.text_features`], where texts get the prefix."""
        if len(captions) and isinstance(captions[0], str):
            captions = [self.prefix + plain_characters(str(caption)) for caption in captions]
        return super().text_features(captions)

    def score(
        self,
        images: Images,
        captions: Captions,
        references: Sequence[Captions] | None = None,
        names: Sequence[Any] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Score one or more captions of each picture. Each picture, and each reference, is encoded once.

        Args:
            images: pictures, `pixel_values` or features, see [`ClipFeatures.image_features`].
            captions: texts or token ids, see [`ClipFeatures.text_features`]; as many for each picture, side by side.
            references (`Sequence`, *optional*): for each picture its references, texts or token ids, at least one.
            names (`Sequence`, *optional*): of the pictures, for messages; by default positions.

        Returns:
            `tuple[torch.Tensor, torch.Tensor | None]`: S and, with references, Ref, each of shape (captions,), float32.

        Raises:
            ImageError: a picture that cannot be read.
            MetricInputError: a score that is not a number, such as from features that overflow float16.
            ValueError: captions or references that don't fit the pictures, or see [`ClipFeatures`].
        """
        image_features = self.image_features(images, names)
        if references is not None and len(references) != len(image_features):
            raise ValueError(
                f"{len(references)} lists of references for {len(image_features)} images; expected one each"
            )
        text_features = self.text_features(captions)
        reference_features = None if references is None else self._reference_features(references)
        scores = scores_from_features(
            image_features, text_features, reference_features, w=self.w, clip_negative=self.clip_negative
        )
        for values in scores:
            if values is not None:
                self._check(values, range(len(image_features)) if names is None else names)
        return scores

    def __call__(
        self,
        images: Images,
        predictions: Sequence[str],
        references: Sequence[Sequence[str]] | None = None,
        image_ids: Sequence[Any] | None = None,
    ) -> Scores:
        """Score the captions of a corpus, see [`clip_score`]."""
        if isinstance(predictions, Sequence) and not isinstance(predictions, (str, bytes)):
            check_pairs(predictions, [[""]] * len(predictions) if references is None else references, image_ids)
        else:
            check_pairs(predictions, [])  # raises the error
        if len(images) != len(predictions):
            raise MetricInputError(f"{len(images)} images for {len(predictions)} predictions; expected one each")
        values = self.score(images, predictions, references, image_ids)
        rows = dict(zip((self.name, f"ref_{self.name}"), values, strict=True))
        per_image = {name: row.double().cpu().numpy() for name, row in rows.items() if row is not None}
        corpus = {name: float(np.mean(row)) for name, row in per_image.items()}
        return Scores(corpus, per_image, settings=self.settings)

    def _check(self, values: Tensor, names: Sequence[Any]) -> None:
        wrong = (~values.isfinite()).nonzero()
        if len(wrong):
            caption = int(wrong[0])
            name = names[caption * len(names) // len(values)]
            raise MetricInputError(
                f"image {name}: caption {caption} has the score {values[caption]:g}; the model's features, in "
                f"{self.model.dtype}, overflow or are 0. Try dtype=torch.float32"
            )

    def _reference_features(self, references: Sequence[Captions]) -> list[Tensor]:
        counts = [len(image_references) for image_references in references]
        if 0 in counts:
            raise MetricInputError(f"image {counts.index(0)}: no references; every image needs at least one")
        rows = (reference for image_references in references for reference in image_references)
        flat: list[Any] = [reference.tolist() if isinstance(reference, Tensor) else reference for reference in rows]
        return list(self.text_features(flat).split(counts))


def clip_score(
    images: Images,
    predictions: Sequence[str],
    references: Sequence[Sequence[str]] | None = None,
    *,
    scorer: ClipScorer,
    image_ids: Sequence[Any] | None = None,
) -> Scores:
    """CLIP-S and, with references, RefCLIP-S.

    Args:
        images: a picture per caption: paths, URLs, bytes or PIL pictures; or `pixel_values` of shape (images, 3,
            height, width), or features of shape (images, width).
        predictions (`Sequence[str]`): a caption per picture, as it was written: not tokenised.
        references (`Sequence[Sequence[str]]`, *optional*): the references of each picture, at least one.
        scorer ([`ClipScorer`]): the model and the variant, such as `ClipScorer("openai/clip-vit-base-patch32")`.
        image_ids (`Sequence`, *optional*): names of the pictures for messages.

    Returns:
        [`Scores`]: `clip_s` and, with references, `ref_clip_s`. The corpus has the means over the pictures.

    Raises:
        MetricInputError: captions that cannot be scored; the picture is named.
        ImageError: a picture that cannot be read; it is named.

    Example:

    ```python
    >>> from hf_captioners.metrics.clip.clip_score import ClipScorer, clip_score
    >>> scorer = ClipScorer("openai/clip-vit-base-patch32")  # doctest: +SKIP
    >>> scores = clip_score(["dog.jpg"], ["A dog runs."], [["A running dog."]], scorer=scorer)  # doctest: +SKIP
    >>> scores.corpus["clip_s"], scores.corpus["ref_clip_s"]  # doctest: +SKIP

    ```
    """
    return scorer(images, predictions, references, image_ids)


def _unit(features: Tensor) -> Tensor:
    features = features.float()
    return features / features.norm(dim=-1, keepdim=True)
