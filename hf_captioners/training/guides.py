"""The sentences that guide self-critical training of SCD-Net (arXiv 2212.03099), and their update between rounds."""

from __future__ import annotations

import json
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..data.captions.distill import read_captions_by_image
from ..data.captions.records import id_of
from ..data.files import write_whole
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


def merge_guide_files(
    guides: str | os.PathLike[str],
    predictions: str | os.PathLike[str],
    rows: Any,
    tokenizer: Any,
    out: str | os.PathLike[str],
) -> tuple[int, int]:
    """Write the guides of the next round: those so far, with what a newly trained model says better.

    Captions are compared as the captioner's token ids.

    Args:
        guides, predictions (`str` or `os.PathLike`): captions of each image, as `hf-captioners caption --annotations`
            writes them; of several of an image the first one.
        rows (`Dataset`): training rows with `image_id` and `captions`.
        tokenizer (`PreTrainedTokenizerBase`): of the captioner.
        out (`str` or `os.PathLike`): JSON lines to write, whole or not at all.

    Returns:
        `tuple[int, int]`: how many guides there are, and how many of them are new.

    Raises:
        ValueError: see [`merge_guides`]; files in another layout.
        OSError: a file cannot be read or written.
    """
    old, new = (_first_captions(path) for path in (guides, predictions))
    captions = {
        id_of(image, "image_id"): texts for image, texts in zip(rows["image_id"][:], rows["captions"][:], strict=True)
    }

    def ids(texts: Any) -> list[list[int]]:
        return [row[1:] for row in tokenizer(list(texts)).input_ids]  # words and end token

    encoded, said = (dict(zip(texts, ids(texts.values()), strict=True)) for texts in (old, new))
    references = {image: ids(texts) for image, texts in captions.items()}
    merged = merge_guides(encoded, said, references, tokenizer.eos_token_id)
    taken = {image for image, caption in merged.items() if caption != encoded[image]}
    lines = [{"image_id": image, "caption": (new if image in taken else old)[image]} for image in old]
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    write_whole(Path(out), lambda file: file.write_text(text, encoding="utf-8"))
    return len(old), len(taken)


def _first_captions(path: str | os.PathLike[str]) -> dict[Any, str]:
    """The first caption of each image of a file."""
    return {image: captions[0] for image, captions in read_captions_by_image(path).items() if captions}
