"""Data for SCD-Net's authors' code, written as it reads them: `hf-captioners scdnet export`.

- Annotations, `mscoco_caption_anno_{train,val,test}.pkl`: a list of `{"image_id", "tokens_ids", "target_ids"}`; each
  row of tokens is 0, words, then zeros; each row of targets words, 0, then -1.
- References of the training pictures for its CIDEr-D, `mscoco_train_gts.pkl`: `{image id: [words, 0]}`; and how many
  pictures have an n-gram, `mscoco_train_cider.pkl`, with the logarithm of the number of pictures.
- Retrieved sentences, `mscoco_clip_ret_sents.pkl`; captions of a first stage or a teacher, `{image id: (1, L)}`.
- Region features, `<image id>.npz` with `feat`.

`scdnet_files`, `scdnet_sentences`, `document_frequency` and `hf-captioners features --regions` read them.
"""

from __future__ import annotations

import math
import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..data.captions.distill import read_captions_by_image
from ..data.captions.karpathy import load_karpathy
from ..data.features.store import FeatureStore
from ..data.files import write_whole
from ..data.progress import progress
from .scdnet_sentences import IDS, MASK
from .scdnet_words import build_tokenizer, read_words
from .writing import ConversionError

MAX_N = 4
SPLITS = {"train": ("train", "restval"), "val": ("val",), "test": ("test",)}


class TokenRows:
    """Token ids of sentences as the authors' code has them.

    Args:
        vocabulary (`str`, `Path` or `Sequence[str]`): `vocabulary.txt`, or its words.
        length (`int`, defaults to 20): tokens of a sentence, its end included; the others are cut off.

    Example:

    ```python
    >>> from hf_captioners.conversion.scdnet_export import TokenRows
    >>> rows = TokenRows(["a", "dog", "UNK"], length=5)
    >>> rows("A dog barks.", "image 7")
    [1, 2, 3, 0]

    ```
    """

    def __init__(self, vocabulary: str | Path | Sequence[str], length: int = 20) -> None:
        words, self.unknown = read_words(vocabulary)
        self.words, self.length = set(words), length
        self.tokenizer = build_tokenizer(words, self.unknown, length + 1)

    def __call__(self, text: str, where: str) -> list[int]:
        """Words and the end.

        Args:
            text (`str`): a sentence.
            where (`str`): it is, for messages.

        Returns:
            `list[int]`: at most `length`.

        Raises:
            ConversionError: the vocabulary lacks a word and has no unknown word.
        """
        lacking = [] if self.unknown is not None else [word for word in text.split() if word not in self.words]
        if lacking:
            raise ConversionError(f"{where}: the vocabulary lacks {lacking[0]!r}")
        return list(self.tokenizer(text, truncation=True).input_ids[1:])


def export_annotations(rows: Iterable[Mapping[str, Any]], tokens: TokenRows, out: str | Path) -> int:
    """Write annotations.

    Args:
        rows (`Iterable[Mapping]`): `image_id` and `captions` of each picture; one without captions has its id alone.
        tokens ([`TokenRows`]): makes the rows of ids.
        out (`str` or `Path`): the pickle to write, whole or not at all.

    Returns:
        `int`: pictures.

    Raises:
        ConversionError: the vocabulary lacks a word and has no unknown word.
    """
    entries = []
    for row in rows:
        ids = [tokens(text, f"image {row['image_id']!r}") for text in row["captions"]]
        entry: dict[str, Any] = {"image_id": str(row["image_id"])}
        if ids:
            entry["tokens_ids"] = _padded([[0, *line[:-1]] for line in ids], tokens.length, 0)
            entry["target_ids"] = _padded(ids, tokens.length, -1)
        entries.append(entry)
    _write_pickle(out, entries)
    return len(entries)


def export_references(
    rows: Iterable[Mapping[str, Any]], tokens: TokenRows, references: str | Path, frequencies: str | Path
) -> int:
    """Write the references of training pictures and how many of the pictures have an n-gram, for CIDEr-D.

    Args:
        rows, tokens: see [`export_annotations`].
        references, frequencies (`str` or `Path`): the pickles to write.

    Returns:
        `int`: pictures.

    Raises:
        ConversionError: the vocabulary lacks a word and has no unknown word; no picture has captions.
    """
    by_image = {
        str(row["image_id"]): [tokens(text, f"image {row['image_id']!r}") for text in row["captions"]] for row in rows
    }
    by_image = {image: ids for image, ids in by_image.items() if ids}
    if not by_image:
        raise ConversionError("there are no captions of training pictures")
    counts: defaultdict[tuple[int, ...], float] = defaultdict(float)  # their code asks for n-grams that are not in it
    for lines in by_image.values():
        for ngram in {
            tuple(line[at : at + n]) for line in lines for n in range(1, MAX_N + 1) for at in range(len(line) + 1 - n)
        }:
            counts[ngram] += 1.0
    _write_pickle(references, by_image)
    _write_pickle(frequencies, {"document_frequency": counts, "ref_len": math.log(len(by_image))})
    return len(by_image)


def export_retrieved(sentences: str | Path, tokens: TokenRows, out: str | Path) -> int:
    """Write retrieved sentences.

    Args:
        sentences (`str` or `Path`): as `hf-captioners retrieval lookup` writes them.
        tokens, out: see [`export_annotations`].

    Returns:
        `int`: pictures.

    Raises:
        FileNotFoundError, CaptionFileError: the sentences cannot be read.
        ConversionError: a picture has none; the vocabulary lacks a word and has no unknown word.
    """
    exported = {}
    for image_id, texts in read_captions_by_image(sentences).items():
        if not texts:
            raise ConversionError(f"{sentences}: image {image_id!r} has no sentence")
        lines = [[0, *tokens(text, f"{sentences}: image {image_id!r}")[:-1]] for text in texts]
        mask = _padded([[1] * len(line) for line in lines], tokens.length, 0)
        exported[str(image_id)] = {IDS: _padded(lines, tokens.length, 0), MASK: mask}
    _write_pickle(out, exported)
    return len(exported)


def export_sentences(captions: str | Path, tokens: TokenRows, out: str | Path) -> int:
    """Write captions as the authors' code reads a cascade's input and a teacher's captions.

    Args:
        captions (`str` or `Path`): as `hf-captioners caption --annotations` writes them; of several the first one.
        tokens, out: see [`export_annotations`].

    Returns:
        `int`: pictures.

    Raises:
        FileNotFoundError, CaptionFileError: the captions cannot be read.
        ConversionError: the vocabulary lacks a word and has no unknown word.
    """
    exported = {}
    for image_id, texts in read_captions_by_image(captions).items():
        line = tokens(texts[0] if texts else "", f"{captions}: image {image_id!r}")
        exported[str(image_id)] = _padded([line], tokens.length, 0)
    _write_pickle(out, exported)
    return len(exported)


def export_features(store: FeatureStore, folder: str | Path) -> int:
    """Write the features of a store, a file for each picture.

    Args:
        store ([`FeatureStore`]): the features.
        folder (`str` or `Path`): where `<image id>.npz` are written.

    Returns:
        `int`: pictures.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    for image_id in progress(store.ids, desc="features"):
        features = store[image_id].float().numpy()
        write_whole(Path(folder) / f"{image_id}.npz", lambda path, array=features: _save_npz(path, array))
    return len(store)


def export_data(
    annotations: str | Path,
    vocabulary: str | Path,
    out_dir: str | Path,
    captions: Mapping[str, str | Path] | None = None,
    retrieved: str | Path | None = None,
    features: str | Path | None = None,
    length: int = 20,
    retrieved_length: int = 40,
) -> dict[str, int]:
    """Write a folder of data for the authors' code; see the top of this module.

    Args:
        annotations (`str` or `Path`): JSON file in Karpathy's layout.
        vocabulary (`str` or `Path`): `vocabulary.txt`, a word on each line.
        out_dir (`str` or `Path`): the folder; files of these names are replaced.
        captions (`Mapping[str, str | Path]`, *optional*): name of a pickle, without its ending -> captions of a first
            stage or a teacher.
        retrieved (`str` or `Path`, *optional*): sentences of the pictures.
        features (`str` or `Path`, *optional*): a feature store, which becomes a folder `features`.
        length (`int`, defaults to 20): tokens of a caption.
        retrieved_length (`int`, defaults to 40): tokens of a retrieved sentence.

    Returns:
        `dict[str, int]`: file or folder -> pictures in it.

    Raises:
        ValueError, OSError: what cannot be read, by file.
    """
    folder, tokens = Path(out_dir), TokenRows(vocabulary, length)
    rows = load_karpathy(annotations, split="all").select_columns(["image_id", "captions", "split"])
    folder.mkdir(parents=True, exist_ok=True)
    by_split = {name: rows.filter(lambda row, of=parts: row["split"] in of) for name, parts in SPLITS.items()}
    written: dict[str, int] = {}
    for split, own in by_split.items():
        if len(own):
            name = f"mscoco_caption_anno_{split}.pkl"
            written[name] = export_annotations(own, tokens, folder / name)
    if len(by_split["train"]):
        references, frequencies = "mscoco_train_gts.pkl", "mscoco_train_cider.pkl"
        number = export_references(by_split["train"], tokens, folder / references, folder / frequencies)
        written |= dict.fromkeys((references, frequencies), number)
    if retrieved is not None:
        name = "mscoco_clip_ret_sents.pkl"
        written[name] = export_retrieved(retrieved, TokenRows(vocabulary, retrieved_length), folder / name)
    for name, file in (captions or {}).items():
        written[f"{name}.pkl"] = export_sentences(file, tokens, folder / f"{name}.pkl")
    if features is not None:
        written["features"] = export_features(FeatureStore(features), folder / "features")
    return written


def _padded(rows: Sequence[Sequence[int]], length: int, value: int) -> np.ndarray:
    """(rows, length) of int64."""
    array = np.full((len(rows), length), value, dtype=np.int64)
    for place, row in enumerate(rows):
        array[place, : len(row)] = row
    return array


def _save_npz(path: Path, features: np.ndarray) -> None:
    with path.open("wb") as file:  # numpy would append its suffix to a name
        np.savez_compressed(file, feat=features)


def _write_pickle(path: str | Path, content: Any) -> None:
    write_whole(Path(path), lambda file: file.write_bytes(pickle.dumps(content)))
