"""The sentences that guide self-critical training of SCD-Net (arXiv 2212.03099), and their update between rounds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from ..metrics import DocumentFrequencies
from ..rewards.cider import CiderDReward

Id = TypeVar("Id", bound=Hashable)


def merge_guides(
    guides: Mapping[Id, Sequence[int]],
    predictions: Mapping[Id, Sequence[int]],
    references: Mapping[Id, Sequence[Sequence[int]]],
    eos_token_id: int = 0,
) -> dict[Id, list[int]]:
    """Take the sentences of a newly trained model where CIDEr-D finds them strictly better than the guides so far.

    Args:
        guides (`Mapping[Hashable, Sequence[int]]`): token ids of the sentence of each image, with end token.
        predictions (`Mapping[Hashable, Sequence[int]]`): those of the new model; at least of the images of `guides`.
        references (`Mapping[Hashable, Sequence[Sequence[int]]]`): training captions of each image as token ids, end
            token included; document frequencies are counted in all of them.
        eos_token_id (`int`, defaults to 0): what ends a caption, and counts as a word.

    Returns:
        `dict[Hashable, list[int]]`: the guides, in their order, with what was replaced.

    Raises:
        ValueError: an image has no prediction, or sentences that differ and no references.

    Example:

    ```python
    >>> from hf_captioners.training.guides import merge_guides
    >>> references = {1: [[5, 6, 7, 8, 0]], 2: [[5, 9, 9, 4, 0]]}
    >>> merge_guides({1: [5, 6, 0], 2: [5, 9, 9, 4, 0]}, {1: [5, 6, 7, 8, 0], 2: [4, 0]}, references)
    {1: [5, 6, 7, 8, 0], 2: [5, 9, 9, 4, 0]}

    ```
    """
    lacking = [image for image in guides if image not in predictions]
    if lacking:
        raise ValueError(f"predictions has no sentence of image {lacking[0]!r}, nor of {len(lacking) - 1} more.")
    changed = [image for image, guide in guides.items() if list(guide) != list(predictions[image])]
    lacking = [image for image in changed if image not in references]
    if lacking:
        raise ValueError(f"references has no captions of image {lacking[0]!r}, nor of {len(lacking) - 1} more.")
    merged = {image: list(guide) for image, guide in guides.items()}
    if not changed:
        return merged
    frequencies = DocumentFrequencies.from_references(list(references.values()), token_ids=True, eos=eos_token_id)
    reward = CiderDReward(frequencies, token_ids=True, eos=eos_token_id)
    captions = [references[image] for image in changed]
    scores = [
        reward([""] * len(changed), captions=captions, completion_ids=[list(source[image]) for image in changed])
        for source in (guides, predictions)
    ]
    for image, old, new in zip(changed, *scores, strict=True):
        if new > old:
            merged[image] = list(predictions[image])
    return merged
