"""Sentences of pictures as a column of rows: retrieved ones, a first stage's captions, a teacher's.

A file has the layouts of [`distill`]: what `hf-captioners retrieval lookup` and `hf-captioners caption --annotations`
write, a record with `image_id` and `captions` or `caption` per line, or a JSON object from image id to captions.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence

from ...extras import of_extra
from ..bad_rows import BadRows
from ..files import regular_file
from .distill import read_captions_by_image
from .records import CaptionFileError, ImageId, id_of

with of_extra():
    import datasets

_SHOWN = 5


def parse_sentences(options: Sequence[str]) -> dict[str, str]:
    """Columns and their files, of options like `retrieved=retrieved.jsonl`.

    Args:
        options (`Sequence[str]`): a column, `=` and a file each.

    Returns:
        `dict[str, str]`

    Raises:
        ValueError: another text, or a column twice.
        OSError: there is no such file.

    Example:

    ```python
    >>> from hf_captioners.data.captions.attached import parse_sentences
    >>> parse_sentences(["retrieved=flickr8k.jsonl"])  # doctest: +SKIP
    {'retrieved': 'flickr8k.jsonl'}

    ```
    """
    files: dict[str, str] = {}
    for option in options:
        column, sign, file = option.partition("=")
        if not (column.isidentifier() and sign and file):
            raise ValueError(f"sentences {option!r}: expected COLUMN=FILE, as retrieved=retrieved.jsonl.")
        if column in files:
            raise ValueError(f"sentences: the column {column!r} has two files, {files[column]} and {file}.")
        files[column] = os.fspath(regular_file(file, "file of sentences"))
    return files


def attach_sentences(
    dataset: datasets.Dataset, path: str | os.PathLike[str], column: str, *, bad_rows: BadRows | None = None
) -> datasets.Dataset:
    """Give rows the sentences of their pictures.

    Args:
        dataset (`datasets.Dataset`): rows with `image_id`.
        path (`str` or `os.PathLike`): the sentences, best first; see the top of this module. Empty ones stay: a first
            stage may have nothing to say.
        column (`str`): its name, as the captioner's processor knows it.
        bad_rows ([`BadRows`], *optional*): gets records that cannot be used, and rows whose picture has no sentence; by
            default they are errors.

    Returns:
        `datasets.Dataset`: the same rows with a list of sentences each.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: the file is not like that, pictures have no sentence in it (some are named), or the rows have
            such a column.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> import datasets
    >>> from hf_captioners.data.captions.attached import attach_sentences
    >>> path = Path(tempfile.mkdtemp()) / "retrieved.jsonl"
    >>> _ = path.write_text('{"image_id": 42, "captions": ["a dog runs", "a dog"]}')
    >>> rows = datasets.Dataset.from_list([{"image_id": 42}])
    >>> attach_sentences(rows, path, "retrieved")[0]
    {'image_id': 42, 'retrieved': ['a dog runs', 'a dog']}

    ```
    """
    if column in dataset.column_names:
        raise CaptionFileError(f"{path}: the rows have a column {column!r} already.")
    feature = datasets.List(datasets.Value("string"))
    bad_rows = bad_rows or BadRows()
    ids, sentences = _by_image(dataset["image_id"][:], path, bad_rows)
    if bad_rows.skips and any(image_id in sentences for image_id in ids):
        for image_id in ids:
            if image_id not in sentences:
                bad_rows.add(CaptionFileError(f"{path}: image {image_id!r}: no sentence"))
        dataset = dataset.select([index for index, image_id in enumerate(ids) if image_id in sentences])
        ids = [image_id for image_id in ids if image_id in sentences]
    return dataset.add_column(column, _complete(ids, sentences, path), feature=feature)


def _by_image(
    image_ids: Iterable[ImageId], path: str | os.PathLike[str], bad_rows: BadRows | None = None
) -> tuple[list[ImageId], dict[ImageId, list[str]]]:
    """Ids of images, and the sentences of those that have some."""
    read = read_captions_by_image(path, bad_rows)
    sentences = {image_id: texts for image_id, texts in read.items() if texts}
    return [id_of(image_id, "image_id") for image_id in image_ids], sentences


def _complete(
    ids: Sequence[ImageId], sentences: Mapping[ImageId, list[str]], path: str | os.PathLike[str]
) -> list[list[str]]:
    absent = [image_id for image_id in ids if image_id not in sentences]
    if absent:
        raise CaptionFileError(
            f"{path}: no sentence for {len(absent)} of {len(ids)} images: {', '.join(map(repr, absent[:_SHOWN]))}; "
            "look up those of all splits that are read."
        )
    return [sentences[image_id] for image_id in ids]


def sentences_of(image_ids: Iterable[ImageId], path: str | os.PathLike[str]) -> list[list[str]]:
    """Sentences of pictures from a file, in the order of the pictures.

    Args:
        image_ids (`Iterable[int | str]`): of the pictures.
        path (`str` or `os.PathLike`): the sentences, best first; see the top of this module.

    Returns:
        `list[list[str]]`: one sentence or more for each.

    Raises:
        FileNotFoundError, CaptionFileError: see [`attach_sentences`].
    """
    return _complete(*_by_image(image_ids, path), path)


def has_sentences(dataset: datasets.Dataset, path: str | os.PathLike[str], bad_rows: BadRows | None = None) -> bool:
    """Tell whether a file has a sentence for any picture of rows: guides are of training pictures alone."""
    ids, sentences = _by_image(dataset["image_id"][:], path, bad_rows)
    return any(image_id in sentences for image_id in ids)
