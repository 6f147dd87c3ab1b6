"""Annotations of SCD-Net's authors' code, read without running what is in them.

`mscoco_caption_anno_train.pkl` is a list of `{"image_id": id, "tokens_ids": (k, L), ...}`, each row 0, words, then
zeros. Those of val and test may have ids alone. `scdnet_sentences` reads pickles of sentences, `scdnet_export` writes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.captions.records import id_of
from ..data.files import write_whole
from .pickle_limits import show
from .pickled_arrays import ARRAYS, MAX_BYTES
from .safe_load import CheckpointError, load_plain_pickle
from .scdnet_sentences import join_words, whole_numbers
from .scdnet_words import read_words

TOKENS = "tokens_ids"


def convert_annotations(
    files: Mapping[str, str | Path], vocabulary: str | Path | Sequence[str], out: str | Path
) -> dict[str, int]:
    """Write pickled annotations in Karpathy's layout, whole or not at all.

    Args:
        files (`Mapping[str, str | Path]`): split -> pickle.
        vocabulary (`str`, `Path` or `Sequence[str]`): `vocabulary.txt`, or its words.
        out (`str` or `Path`): the JSON file, which [`load_karpathy`] reads; without names of picture files, for cached
            region features.

    Returns:
        `dict[str, int]`: how many images of each split are in it; images without captions are left out.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a pickle is none of these, or has words that the vocabulary lacks.
        ConversionError: the vocabulary cannot be used.
    """
    words, _ = read_words(vocabulary)
    images: list[dict[str, Any]] = []
    counts = dict.fromkeys(files, 0)
    sentence = 0
    for split, path in files.items():
        for image_id, captions in _read_annotations(path, words):
            sentences = []
            for caption in captions:
                sentences.append({"raw": caption, "tokens": caption.split(), "sentid": sentence})
                sentence += 1
            images.append({"imgid": image_id, "filename": f"{image_id}.jpg", "split": split, "sentences": sentences})
            counts[split] += 1
    text = json.dumps({"dataset": "scdnet", "images": images}, ensure_ascii=False)
    write_whole(Path(out), lambda file: file.write_text(text, encoding="utf-8"))
    return counts


def _read_annotations(path: str | Path, words: Sequence[str]) -> list[tuple[int | str, list[str]]]:
    """The ids of images that have captions, and these."""
    content = load_plain_pickle(path, MAX_BYTES, ARRAYS, encoding="latin-1")
    if not isinstance(content, list) or not content:
        raise CheckpointError(f"{path}: holds {show(content)}; expected a list of annotations")
    found = []
    for index, entry in enumerate(content):
        try:
            if not isinstance(entry, dict) or "image_id" not in entry:
                raise ValueError(f"is {show(entry)}, expected a dict with 'image_id'")
            if TOKENS in entry:
                ids = whole_numbers(entry[TOKENS], TOKENS)[:, 1:]  # without the start
                captions = join_words(ids, (ids != 0).cumprod(1), words) if ids.numel() else []
                found.append((id_of(entry["image_id"], "'image_id'"), [text for text in captions if text]))
        except ValueError as error:
            raise CheckpointError(f"{path}: annotation {index}: {error}") from error
    return [(image_id, captions) for image_id, captions in found if captions]
