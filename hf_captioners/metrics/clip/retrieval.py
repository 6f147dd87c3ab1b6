"""Recall of image-text retrieval: of captions for pictures, and of pictures for captions.

Hodosh et al., 2013, "Framing Image Description as a Ranking Task", section 5: recall at k and the median rank, with
candidates ordered by the cosine of their features. Image to text: a picture is found if any of its captions is among
the first k of all captions. Text to image: a caption is found if its picture is among the first k of all pictures.

Of generated captions, one per picture, text to image says how distinctive they are (Cornia et al., 2024, "Revisiting
Image Captioning Training Paradigm via Direct CLIP-based Optimization", section 4).

Implementations differ in three places; here:

1. Ties count against the picture and the caption: a wrong candidate with the same similarity stands before the right
   one. So equal captions of two pictures do not find both, and features that are all the same find nothing. Cosines
   are computed in float64; those within 1e-9 of each other are the same.
2. The rank of a picture is that of its best caption among the captions of other pictures: its own do not compete.
3. The median of an even number of ranks is the mean of the two in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..inputs import MetricInputError, check_image_ids, check_pairs
from ..scores import Scores
from .features import ClipFeatures, Images

SAME = 1e-9  # cosines this near are equal: rounding of float64 stays below, whatever the order of summation
CELLS = 2**23  # similarities at a time: 64 MiB


def retrieval_recall(
    image_features: Tensor,
    text_features: Tensor,
    image_of_text: Sequence[int] | Tensor | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    image_ids: Sequence[Any] | None = None,
) -> Scores:
    """Recall at k and median rank from features, in both directions.

    Args:
        image_features (`torch.Tensor` of shape (images, width)): of the pictures; they need not have length 1.
        text_features (`torch.Tensor` of shape (texts, width)): of their captions.
        image_of_text (`Sequence[int]` or `torch.Tensor` of shape (texts,), *optional*): for each caption the row of its
            picture. By default every picture has as many captions, side by side.
        ks (`Sequence[int]`, defaults to (1, 5, 10)): how many candidates count. With no more candidates than k,
            recall is 1.
        image_ids (`Sequence`, *optional*): names of the pictures for messages.

    Returns:
        [`Scores`]: of the corpus `image_to_text_recall_at_{k}`, a share of the pictures, and
        `text_to_image_recall_at_{k}`, a share of the captions, both between 0 and 1, and `image_to_text_median_rank`
        and `text_to_image_median_rank`, 1 at best. Of each picture `image_to_text_rank` and `text_to_image_rank`, the
        mean over its captions.

    Raises:
        MetricInputError: shapes that don't fit, a picture without captions, a caption of no picture, features that are
            not finite or 0.
        ValueError: a k below 1, or none.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners.metrics.clip.retrieval import retrieval_recall
    >>> image_features = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> text_features = torch.tensor([[2.0, 1.0], [3.0, 1.0]])  # both lie nearer to the first picture
    >>> scores = retrieval_recall(image_features, text_features, ks=[1])
    >>> scores.corpus["text_to_image_recall_at_1"], scores.corpus["text_to_image_median_rank"]
    (0.5, 1.5)
    >>> scores.per_image["text_to_image_rank"]
    array([1., 2.])

    ```
    """
    _check_ks(ks)
    number = len(image_features)
    names: Sequence[Any] = range(number) if image_ids is None else image_ids
    check_image_ids(names, number)
    _check_shapes(image_features, text_features)
    owner = _owners(image_of_text, number, len(text_features))
    counts = torch.bincount(owner, minlength=number)
    if not counts.all():
        raise MetricInputError(f"image {names[int(counts.argmin())]}: no captions; every image needs at least one")
    images = _unit(image_features, [f"image {name}" for name in names])
    texts = _unit(text_features, [f"image {names[row]}: caption {text}" for text, row in enumerate(owner.tolist())])
    image_ranks, text_ranks = _ranks(images, texts, owner)
    mean_ranks = torch.zeros(number, dtype=torch.float64).index_add(0, owner, text_ranks.double()) / counts
    corpus = {}
    for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        corpus.update({f"{name}_recall_at_{k}": float((ranks <= k).double().mean()) for k in ks})
        corpus[f"{name}_median_rank"] = float(np.median(ranks.numpy()))
    per_image = {"image_to_text_rank": image_ranks.double().numpy(), "text_to_image_rank": mean_ranks.numpy()}
    return Scores(corpus, per_image, settings={"ks": list(ks)})


def clip_recall(
    images: Images,
    captions: Sequence[str] | Sequence[Sequence[str]],
    *,
    scorer: ClipFeatures,
    ks: Sequence[int] = (1, 5, 10),
    image_ids: Sequence[Any] | None = None,
) -> Scores:
    """Recall of captions, generated or written by people, with the features of a CLIP model.

    Args:
        images: pictures, `pixel_values` or features, see
            [`~hf_captioners.metrics.clip.features.ClipFeatures.image_features`].
        captions (`Sequence[str]` or `Sequence[Sequence[str]]`): a caption per picture, or a list of captions per
            picture, as they were written.
        scorer ([`~hf_captioners.metrics.clip.features.ClipFeatures`]): the model. A [`ClipScorer`] or [`PacScorer`]
            puts its prefix before each caption.
        ks (`Sequence[int]`, defaults to (1, 5, 10)), image_ids: see [`retrieval_recall`].

    Returns:
        [`Scores`]: see [`retrieval_recall`].

    Raises:
        MetricInputError: captions that are not strings, or not one entry per picture; see [`retrieval_recall`].
        ImageError: a picture that cannot be read; it is named.

    Example:

    ```python
    >>> from hf_captioners.metrics.clip.clip_score import ClipScorer
    >>> from hf_captioners.metrics.clip.retrieval import clip_recall
    >>> scorer = ClipScorer("openai/clip-vit-base-patch32")  # doctest: +SKIP
    >>> scores = clip_recall(["dog.jpg", "sea.jpg"], ["A dog runs.", "Waves."], scorer=scorer)  # doctest: +SKIP
    >>> scores.corpus["text_to_image_recall_at_1"]  # doctest: +SKIP

    ```
    """
    _check_ks(ks)
    captions_per_image = _lists(captions)
    check_pairs([""] * len(captions_per_image), captions_per_image, image_ids)
    if len(images) != len(captions_per_image):
        raise MetricInputError(
            f"{len(images)} images for {len(captions_per_image)} entries of captions; expected one each"
        )
    owner = [row for row, image_captions in enumerate(captions_per_image) for _ in image_captions]
    image_features = scorer.image_features(images, image_ids)
    text_features = scorer.text_features(
        [caption for image_captions in captions_per_image for caption in image_captions]
    )
    scores = retrieval_recall(image_features, text_features, owner, ks, image_ids=image_ids)
    return replace(scores, settings=scores.settings | scorer.settings)


def _ranks(images: Tensor, texts: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """The rank of each picture among the captions and of each caption among the pictures, from 1."""
    positive = (images[owner] * texts).sum(-1)  # (texts,): similarity to the own picture
    best = torch.full((len(images),), -2.0, dtype=positive.dtype)
    best = best.scatter_reduce(0, owner, positive, "amax")  # (images,)
    image_ranks, text_ranks = [], torch.ones(len(texts), dtype=torch.int64)
    rows = max(1, CELLS // len(texts))
    for start in range(0, len(images), rows):
        chunk = slice(start, start + rows)
        similarity = images[chunk] @ texts.T  # (rows, texts)
        similarity[
            owner == torch.arange(len(images))[chunk, None]
        ] = -torch.inf  # (rows, texts): own captions do not compete
        image_ranks.append(1 + (similarity >= best[chunk, None] - SAME).sum(1))  # (rows,)
        text_ranks += (similarity >= positive - SAME).sum(0)  # (texts,)
    return torch.cat(image_ranks), text_ranks


def _unit(features: Tensor, labels: Sequence[str]) -> Tensor:
    """The features with length 1, in float64 on the CPU."""
    features = features.detach().cpu().double()
    length = features.norm(dim=-1, keepdim=True)
    wrong = (~(length.isfinite() & (length > 0))).nonzero()
    if len(wrong):
        row = int(wrong[0, 0])
        raise MetricInputError(f"{labels[row]}: its features have the length {length[row].item():g}; no cosine")
    return features / length


def _owners(image_of_text: Sequence[int] | Tensor | None, images: int, texts: int) -> Tensor:
    """The row of the picture of each caption."""
    if image_of_text is None:
        if texts % images:
            raise MetricInputError(f"{texts} texts for {images} images: give image_of_text, or as many texts for each")
        return torch.arange(images).repeat_interleave(texts // images)
    owner = torch.as_tensor(image_of_text).cpu()
    if owner.shape != (texts,) or owner.is_floating_point() or owner.dtype == torch.bool:
        raise MetricInputError(
            f"image_of_text: {owner.dtype} of shape {tuple(owner.shape)}; expected {texts} row numbers"
        )
    wrong = ((owner < 0) | (owner >= images)).nonzero()
    if len(wrong):
        text = int(wrong[0])
        raise MetricInputError(f"image_of_text: caption {text} has the image {int(owner[text])} of {images}")
    return owner.long()


def _check_shapes(image_features: Tensor, text_features: Tensor) -> None:
    shapes = tuple(image_features.shape), tuple(text_features.shape)
    if image_features.dim() != 2 or text_features.dim() != 2 or shapes[0][1] != shapes[1][1]:
        raise MetricInputError(
            f"features of shapes {shapes[0]} and {shapes[1]}; expected (images, width), (texts, width)"
        )
    if 0 in (shapes[0][0], shapes[1][0]):
        raise MetricInputError(f"{shapes[0][0]} images and {shapes[1][0]} texts; expected at least one of each")


def _check_ks(ks: Sequence[int]) -> None:
    if not ks or any(k < 1 for k in ks):
        raise ValueError(f"ks is {ks!r}; expected one number or more, from 1")


def _lists(captions: Any) -> list[Any]:
    """The captions of each picture as a list; anything but strings is left to the check."""
    if isinstance(captions, (str, bytes)) or not isinstance(captions, Sequence):
        raise MetricInputError(f"captions: expected a list with one entry per image, not a {type(captions).__name__}")
    return [[entry] if isinstance(entry, str) else entry for entry in captions]
