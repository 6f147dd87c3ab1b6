"""Sentences of SCD-Net's authors' code: pickles of token ids by image, as text in JSON lines.

- Retrieved sentences, `mscoco_clip_ret_sents.pkl`: `{image id: {"r_tokens_ids": (K, L), "r_tokens_mask": (K, L)}}`,
  best first, each row with a 0 in front.
- The export of a first stage, and a teacher's captions: `{image id: (1, L)}`, words, then zeros.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..data.captions.records import id_of
from ..data.files import write_whole
from .pickle_limits import show
from .pickled_arrays import ARRAYS, MAX_BYTES, PickledArray
from .safe_load import MAX_SHARED_BYTES, CheckpointError, load_plain_pickle
from .scdnet_words import read_words

IDS, MASK = "r_tokens_ids", "r_tokens_mask"


def convert_sentences(path: str | Path, vocabulary: str | Path | Sequence[str], out: str | Path) -> int:
    """Write the sentences of a pickle as `hf-captioners retrieval lookup` writes its own, whole or not at all.

    Args:
        path (`str` or `Path`): the pickle.
        vocabulary (`str`, `Path` or `Sequence[str]`): `vocabulary.txt`, or its words.
        out (`str` or `Path`): JSON lines, `{"image_id": id, "captions": [sentence, ...]}`.

    Returns:
        `int`: number of images.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the pickle is none of these, or has words that the vocabulary lacks.
        ConversionError: the vocabulary cannot be used.
    """
    words, _ = read_words(vocabulary)
    count = 0

    def write(temporary: Path) -> None:
        nonlocal count
        with temporary.open("w", encoding="utf-8") as file:
            for image_id, sentences in read_sentences(path, words):
                file.write(json.dumps({"image_id": image_id, "captions": sentences}, ensure_ascii=False) + "\n")
                count += 1

    write_whole(Path(out), write)
    return count


def read_sentences(path: str | Path, words: Sequence[str]) -> Iterator[tuple[int | str, list[str]]]:
    """Read the sentences of each image of a pickle, without running code from it.

    Args:
        path (`str` or `Path`): the pickle.
        words (`Sequence[str]`): of the vocabulary, word 0 included.

    Returns:
        `Iterator[tuple[int | str, list[str]]]`: ids, and one sentence or more.

    Raises:
        FileNotFoundError, CheckpointError: see [`convert_sentences`].
    """
    content = load_plain_pickle(path, MAX_BYTES, ARRAYS, encoding="latin-1")
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{path}: holds {show(content)}; expected sentences by image id")
    limit, total = Path(path).stat().st_size + MAX_SHARED_BYTES, 0
    for key, value in content.items():
        arrays = value if isinstance(value, dict) else {IDS: value}
        total += sum(array.nbytes for array in arrays.values() if isinstance(array, PickledArray))
        if total > limit:
            raise CheckpointError(f"{path}: its arrays share what is in the file; the limit is {limit} bytes of copies")
        try:
            yield id_of(key, "the key"), _texts(arrays, words)
        except ValueError as error:
            raise CheckpointError(f"{path}: image {show(key)}: {error}") from error


def _texts(arrays: dict[Any, Any], words: Sequence[str]) -> list[str]:
    """The sentences of an image; ValueError if they are none."""
    ids = whole_numbers(arrays.get(IDS), IDS)
    shown = (ids != 0).cumprod(1) if MASK not in arrays else whole_numbers(arrays[MASK], MASK)
    if shown.shape != ids.shape or not ids.numel():
        raise ValueError(f"{IDS} of shape {tuple(ids.shape)} and {MASK} of shape {tuple(shown.shape)}")
    return join_words(ids, shown, words)


def join_words(ids: torch.Tensor, shown: torch.Tensor, words: Sequence[str]) -> list[str]:
    """Join the words of sentences.

    Args:
        ids (`torch.LongTensor` of shape `(K, L)`): of words.
        shown (`torch.LongTensor` of shape `(K, L)`): other than 0 for those that count; word 0 never does.
        words (`Sequence[str]`): of the vocabulary, word 0 included.

    Returns:
        `list[str]`: K sentences.

    Raises:
        ValueError: there are no such words.
    """
    if ids.min() < 0 or ids.max() >= len(words):
        raise ValueError(
            f"token ids from {int(ids.min())} to {int(ids.max())}, but the vocabulary has {len(words)} words"
        )
    rows = zip(ids.tolist(), shown.tolist(), strict=True)
    return [" ".join(words[token] for token, is_shown in zip(*row, strict=True) if is_shown and token) for row in rows]


def whole_numbers(value: Any, name: str) -> torch.Tensor:
    """Read token ids.

    Args:
        value ([`PickledArray`]): of a pickle.
        name (`str`): for messages.

    Returns:
        `torch.LongTensor` of shape `(sentences, tokens)`

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, PickledArray):
        raise ValueError(f"{name} is {show(value)}, expected an array")
    try:
        tensor = value.tensor()
    except AttributeError as error:  # an array without state
        raise ValueError(f"{name} is an array without content") from error
    if tensor.ndim == 1:
        tensor = tensor[None]
    if tensor.ndim != 2 or tensor.is_floating_point():
        raise ValueError(
            f"{name} is {tensor.dtype} of shape {tuple(tensor.shape)}, expected integers (sentences, tokens)"
        )
    return tensor.long()
