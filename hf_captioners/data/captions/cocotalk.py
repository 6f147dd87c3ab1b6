"""Captions in the layout of SATIC and its relatives: `cocotalk.json` and `cocotalk_label.h5`.

The layout is that of Karpathy's NeuralTalk2, which ImageCaptioning.pytorch and SATIC (arXiv 2106.09436) took over:

- `cocotalk.json`: `{"ix_to_word": {"1": "a", …, "9487": "UNK"}, "images": [{"id": 42, "split": "train",
  "file_path": "train2014/COCO_train2014_000000000042.jpg"}, …]}`;
- `cocotalk_label.h5`: integers `labels` `(M, L)`, a caption a row, word ids from 1, zeros behind the last word;
  `label_length` `(M,)`; `label_start_ix` and `label_end_ix`, one each per entry of `images`: its first and its last
  row, counted from 1. The file of distilled captions has the same layout and goes with the same `cocotalk.json`.

What is decided here:

1. Captions become text: words joined by single spaces. Words that the vocabulary lacks are the word `UNK`, as in the
   file; a tokenizer that knows the vocabulary gives them the id of `UNK` again, and so every id its own.
2. `train` means `train` and `restval`, as in the original; with `train_only=True` it means `train` alone. Any other
   name of a split, which the original learns from as well, is an error.
3. Both files are checked whole before a row is made; errors name the file, the place and the value.
"""

from __future__ import annotations

import os
import reprlib
from collections.abc import Container, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np

from ...extras import of_extra
from ..bad_rows import BadRows
from ..hdf5 import names_in, open_hdf5, read_array
from .karpathy_file import SPLITS, EmptySplitError
from .records import caption_of, id_of, read_content

with of_extra():
    import datasets

_Path: TypeAlias = str | os.PathLike[str]
_DIMENSIONS = {"labels": 2, "label_start_ix": 1, "label_end_ix": 1, "label_length": 1}
_FEATURES = datasets.Features(
    {
        "image_id": datasets.Value("int64"),
        "file_name": datasets.Value("string"),
        "split": datasets.Value("string"),
        "captions": datasets.List(datasets.Value("string")),
    }
)


class CocotalkError(ValueError):
    """Files that are not in this layout, or do not fit each other. The message names file, place and value."""


class _EmptySplitError(CocotalkError, EmptySplitError):
    """A split without images."""


def load_cocotalk(
    cocotalk: _Path,
    labels: _Path,
    split: str = "train",
    *,
    train_only: bool = False,
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Load the captions of images from `cocotalk.json` and a label file.

    Args:
        cocotalk (`str` or `os.PathLike`): `cocotalk.json`: images, their splits and the vocabulary.
        labels (`str` or `os.PathLike`): `cocotalk_label.h5`, or one with distilled captions.
        split (`str`, defaults to `"train"`): names of `train`, `restval`, `val`, `test` joined by `+`, or `"all"`.
        train_only (`bool`, defaults to `False`): whether `train` leaves `restval` out.
        bad_rows ([`BadRows`], *optional*): gets images and captions that cannot be used, of any split; by default they
            are errors.

    Returns:
        `datasets.Dataset`: rows in the order of the file, with `image_id` (`int`), `file_name` (`str`, `None` where the
        file has none), `split` (`str`, as in the file) and `captions` (`list[str]`), like those of [`load_karpathy`].

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: h5py is not installed.
        ValueError: one of the files is not in this layout, they do not fit each other, or there is no such split.

    Source: SATIC, https://arxiv.org/abs/2106.09436

    Example:

    ```python
    >>> import json, tempfile
    >>> from pathlib import Path
    >>> import h5py
    >>> from hf_captioners.data.captions.cocotalk import load_cocotalk
    >>> folder = Path(tempfile.mkdtemp())
    >>> content = {"ix_to_word": {"1": "a", "2": "dog", "3": "UNK"}, "images": [{"id": 42, "split": "restval"}]}
    >>> _ = (folder / "cocotalk.json").write_text(json.dumps(content))
    >>> with h5py.File(folder / "cocotalk_label.h5", "w") as file:
    ...     file["labels"] = [[1, 2, 0], [1, 3, 2]]
    ...     file["label_length"] = [2, 3]
    ...     file["label_start_ix"], file["label_end_ix"] = [1], [2]
    >>> load_cocotalk(folder / "cocotalk.json", folder / "cocotalk_label.h5")[0]["captions"]
    ['a dog', 'a UNK dog']

    ```
    """
    wanted, bad_rows = _parse_split(split, train_only), bad_rows or BadRows()
    content = _read(cocotalk)
    words = _words(cocotalk, content)
    images = _images(cocotalk, content, bad_rows)
    arrays = _read_labels(labels)
    bad_captions = _bad_captions(labels, arrays, len(words), bad_rows)
    for index in _bad_pointers(labels, arrays, cocotalk, len(images), bad_rows):
        images[index] = None
    usable = {index: image for index, image in enumerate(images) if image is not None}
    wanted_images = [index for index, image in usable.items() if image["split"] in wanted]
    captions = _decode(arrays, words, wanted_images, bad_captions)
    chosen = [index for index in wanted_images if captions[index]]
    for index in sorted(set(wanted_images) - set(chosen)):
        error = f"{labels}: image {usable[index]['image_id']}: none of its captions can be used"
        bad_rows.add(CocotalkError(error))
    if not chosen:
        occurring = ", ".join(name for name in SPLITS if any(image["split"] == name for image in usable.values()))
        raise _EmptySplitError(
            f"{cocotalk}: no image of split {'+'.join(wanted)}; its splits are: {occurring or 'none'}"
        )
    rows = {name: [usable[index][name] for index in chosen] for name in ("image_id", "file_name", "split")}
    rows["captions"] = [captions[index] for index in chosen]
    return datasets.Dataset.from_dict(rows, features=_FEATURES)


def read_cocotalk_vocabulary(cocotalk: _Path) -> list[str]:
    """The vocabulary of a `cocotalk.json`.

    Args:
        cocotalk (`str` or `os.PathLike`): the file.

    Returns:
        `list[str]`: the words in the order of their ids. Ids count from 1: the first word has id 1, since id 0 is
        start, end and padding. The last word is `UNK` where the original replaced rare words.

    Raises:
        FileNotFoundError: there is no such file.
        CocotalkError: `ix_to_word` is not in this layout.
    """
    return _words(cocotalk, _read(cocotalk))


def _parse_split(split: str, train_only: bool) -> tuple[str, ...]:
    names = SPLITS if split == "all" else tuple(name.strip() for name in split.split("+"))
    for name in names:
        if name not in SPLITS:
            raise ValueError(
                f"split={split!r}: {name!r} is not a split; expected 'all' or names of {', '.join(SPLITS)} joined "
                "by '+'"
            )
    return (*names, "restval") if "train" in names and not train_only and "restval" not in names else names


# --- cocotalk.json --------------------------------------------------------------------------------------------------


def _read(path: _Path) -> Mapping[str, Any]:
    content = read_content(path)
    if not isinstance(content, dict):
        raise CocotalkError(f"{path}: is a list, expected an object with 'ix_to_word' and 'images'")
    return content


def _words(path: _Path, content: Mapping[str, Any]) -> list[str]:
    by_id = content.get("ix_to_word")
    if not isinstance(by_id, dict) or not by_id:
        raise CocotalkError(f"{path}: field 'ix_to_word' is {reprlib.repr(by_id)}, expected an object from id to word")
    words: list[str] = []
    first: dict[str, int] = {}
    for number in range(1, len(by_id) + 1):
        word = by_id.get(str(number))
        if not isinstance(word, str) or not _is_word(word):
            raise CocotalkError(
                f"{path}: ix_to_word[{str(number)!r}] is {reprlib.repr(word)}, expected a word for every id from 1 to "
                f"{len(by_id)}"
            )
        if first.setdefault(word, number) != number:
            raise CocotalkError(f"{path}: ix_to_word: {word!r} has the ids {first[word]} and {number}, expected one")
        words.append(word)
    return words


def _is_word(word: str) -> bool:
    """White space would make two words of it, and half a surrogate pair is no Unicode text."""
    return word.split() == [word] and not any("\ud800" <= character <= "\udfff" for character in word)


def _images(path: _Path, content: Mapping[str, Any], bad_rows: BadRows) -> list[dict[str, Any] | None]:
    """The entries of `images`; `None` of those that cannot be used."""
    entries = content.get("images")
    if not isinstance(entries, list):
        raise CocotalkError(f"{path}: field 'images' is {reprlib.repr(entries)}, expected a list of images")
    images: list[dict[str, Any] | None] = []
    first: dict[int, int] = {}
    for index, entry in enumerate(entries):
        image: dict[str, Any] | None = None
        try:
            image = _image(entry)
            if (other := first.setdefault(image["image_id"], index)) != index:
                image_id, image = image["image_id"], None
                raise ValueError(f"id {image_id} is already that of images[{other}]")
        except ValueError as error:
            bad_rows.add(CocotalkError(f"{path}: images[{index}]: {error}"))
        images.append(image)
    return images


def _image(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise ValueError(f"is {reprlib.repr(entry)}, expected an object with 'id' and 'split'")
    image_id, file_name, split = entry.get("id"), entry.get("file_path"), entry.get("split")
    if isinstance(image_id, (int, float)):
        image_id = id_of(image_id, "field 'id'")
    if type(image_id) is not int:
        raise ValueError(f"field 'id' is {reprlib.repr(image_id)}, expected an integer")
    if file_name is not None:
        caption_of(file_name, "field 'file_path'")
    if split not in SPLITS:
        raise ValueError(f"field 'split' is {reprlib.repr(split)}, expected one of {', '.join(SPLITS)}")
    return {"image_id": image_id, "file_name": file_name, "split": split}


# --- cocotalk_label.h5 ----------------------------------------------------------------------------------------------


def _read_labels(path: _Path) -> dict[str, np.ndarray]:
    with open_hdf5(path) as file:
        names = names_in(file)
        absent = [name for name in _DIMENSIONS if name not in names]
        if absent:
            raise CocotalkError(
                f"{path}: no data set {absent[0]!r}, but {', '.join(map(repr, names[:8])) or 'nothing'}; expected "
                f"{', '.join(_DIMENSIONS)}"
            )
        arrays = {name: read_array(file, name) for name in _DIMENSIONS}
    for name, array in arrays.items():
        if array.dtype.kind not in "iu" or array.ndim != _DIMENSIONS[name]:
            raise CocotalkError(
                f"{path}: data set {name!r} is {array.dtype} of shape {list(array.shape)}, expected integers in "
                f"{_DIMENSIONS[name]} dimension{'s' if _DIMENSIONS[name] > 1 else ''}"
            )
        if array.dtype == np.uint64 and array.size and int(array.max()) >= 2**63:
            place = ", ".join(map(str, np.unravel_index(int(array.argmax()), array.shape)))
            raise CocotalkError(f"{path}: {name}[{place}] is {array.max()}, expected an integer below 2^63")
    return {name: array if name == "labels" else array.astype(np.int64) for name, array in arrays.items()}


def _bad_captions(path: _Path, arrays: Mapping[str, np.ndarray], num_words: int, bad_rows: BadRows) -> frozenset[int]:
    """Numbers of the rows that have not `label_length` word ids, at least one, and then zeros."""
    labels, lengths = arrays["labels"], arrays["label_length"]
    if len(labels) != len(lengths):
        raise CocotalkError(f"{path}: labels has {len(labels)} captions, but label_length {len(lengths)}")
    unknown = (labels < 0) | (labels > num_words)
    has_unknown = unknown.any(axis=1)
    for row in has_unknown.nonzero()[0].tolist():
        column = int(unknown[row].argmax())
        expected = f"expected a word id from 1 to {num_words}, or 0"
        bad_rows.add(CocotalkError(f"{path}: labels[{row}, {column}] is {labels[row, column]}, {expected}"))
    inside = np.arange(labels.shape[1]) < lengths[:, None]
    wrong = (lengths < 1) | (lengths > labels.shape[1]) | ((labels != 0) != inside).any(axis=1)
    for row in (wrong & ~has_unknown).nonzero()[0].tolist():
        found = f"label_length[{row}] is {lengths[row]}, but labels[{row}] is {labels[row].tolist()}"
        bad_rows.add(CocotalkError(f"{path}: {found}; expected so many word ids, at least one, and then zeros"))
    return frozenset((wrong | has_unknown).nonzero()[0].tolist())


def _bad_pointers(
    path: _Path, arrays: Mapping[str, np.ndarray], cocotalk: _Path, num_images: int, bad_rows: BadRows
) -> list[int]:
    """Places of the images that have no rows of their own."""
    start, end, num_rows = arrays["label_start_ix"], arrays["label_end_ix"], len(arrays["labels"])
    for name in ("label_start_ix", "label_end_ix"):
        if len(arrays[name]) != num_images:
            raise CocotalkError(
                f"{path}: {name} is for {len(arrays[name])} images, but {cocotalk} has {num_images}; expected two "
                "files of the same data set"
            )
    wrong = (start < 1) | (end < start) | (end > num_rows)
    bad: list[int] = wrong.nonzero()[0].tolist()
    for index in bad:
        found = f"label_start_ix[{index}] is {start[index]} and label_end_ix[{index}] is {end[index]}"
        expected = f"expected the first and the last caption of the image, counted from 1 to {num_rows}"
        bad_rows.add(CocotalkError(f"{path}: {found}; {expected}"))
    last: int | None = None
    for index in np.argsort(start, kind="stable").tolist():
        if wrong[index]:
            continue
        if last is not None and start[index] <= end[last]:
            found = f"label_start_ix[{index}] is {start[index]}, but label_end_ix[{last}] is {end[last]}"
            bad_rows.add(CocotalkError(f"{path}: {found}; expected every caption to belong to one image"))
            bad.append(index)
        else:
            last = index
    return bad


def _decode(
    arrays: Mapping[str, np.ndarray], words: list[str], chosen: Iterable[int], bad_captions: Container[int]
) -> dict[int, list[str]]:
    """The captions of images by their places, without those that cannot be used."""
    labels, lengths = arrays["labels"], arrays["label_length"].tolist()
    starts, ends = arrays["label_start_ix"].tolist(), arrays["label_end_ix"].tolist()
    text = ["", *words]

    def caption(row: int) -> str:
        return " ".join([text[word] for word in labels[row, : lengths[row]].tolist()])

    return {
        image: [caption(row) for row in range(starts[image] - 1, ends[image]) if row not in bad_captions]
        for image in chosen
    }
