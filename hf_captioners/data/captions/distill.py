"""Sequence-level knowledge distillation: a teacher's captions in the place of the references.

Kim & Rush, "Sequence-Level Knowledge Distillation" (2016); SATIC (arXiv 2106.09436) learns from the five beams that its
autoregressive teacher finds for every training image. Any captioner can be the teacher and any the student:

    hf-captioners caption --model teacher --annotations dataset_coco.json --features features --split train+restval \
        --num-beams 5 --num-return-sequences 5 > teacher.jsonl

and `distill_captions(load_karpathy("dataset_coco.json"), "teacher.jsonl")`. What is decided here:

1. A file has records with `image_id` and `captions` (what the command above writes) or `caption` (a list, as in SATIC's
   JSON, or one caption, as in COCO results), or is one JSON object from image id to captions. Ids are compared as in
   `predictions`: `42` and `"42"` are one.
2. Captions stay as they are and in their order, best first. Repeated ones stay: the original trains on all five beams.
3. An empty caption is left out, with a warning: learning it would teach to say nothing, and the original's label files
   have none. An image with nothing but empty captions, or with an `error`, has no captions of the teacher.
4. Images of the file that the data set has not are passed over: one file serves a part of a data set as well.
"""

from __future__ import annotations

import logging
import os
import reprlib
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

from ...extras import of_extra
from ..bad_rows import BadRows
from . import records
from .records import CaptionFileError, ImageId

with of_extra():
    import datasets

logger = logging.getLogger(__name__)

_Path: TypeAlias = str | os.PathLike[str]
_SHOWN = 5
_EXPECTED = "expected an object with 'image_id' and 'captions', as `hf-captioners caption --annotations` writes it"


def distill_captions(
    dataset: datasets.Dataset,
    path: _Path,
    *,
    missing: Literal["error", "keep"] = "error",
    bad_rows: BadRows | None = None,
) -> datasets.Dataset:
    """Put a teacher's captions in the place of a data set's.

    Args:
        dataset (`datasets.Dataset`): rows with `image_id` and `captions`, such as those of [`load_karpathy`].
        path (`str` or `os.PathLike`): the teacher's captions, plain or gzipped. See the top of this module.
        missing (`str`, defaults to `"error"`): `"keep"` leaves their own captions to rows whose image the teacher has
            not captioned, with a warning, where `"error"` raises.
        bad_rows ([`BadRows`], *optional*): gets records that cannot be used, and, unless they are kept, rows whose
            image the teacher has not captioned; by default they are errors.

    Returns:
        `datasets.Dataset`: the same rows with other `captions`, without `sentence_ids`, which count the references.
        Nothing is copied but the captions, unless the data set is a selection of rows.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the data set is a streaming one.
        ValueError: images have no captions of the teacher (up to five are named), none has with `"keep"` either, the
            file is not like that or has an image twice, or the data set lacks a column.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> import datasets
    >>> from hf_captioners.data.captions.distill import distill_captions
    >>> path = Path(tempfile.mkdtemp()) / "teacher.jsonl"
    >>> _ = path.write_text('{"image_id": 42, "captions": ["a dog runs", "a dog"]}')
    >>> rows = datasets.Dataset.from_list([{"image_id": 42, "captions": ["Two dogs ."]}])
    >>> distill_captions(rows, path)[0]["captions"]
    ['a dog runs', 'a dog']

    ```
    """
    if missing not in ("error", "keep"):
        raise ValueError(f'missing={missing!r}, expected "error" or "keep"')
    if not isinstance(dataset, datasets.Dataset):
        raise TypeError(
            f"the captions of a {type(dataset).__name__} cannot be replaced, expected a datasets.Dataset: load it "
            "without streaming, and attach features afterwards"
        )
    absent = [name for name in ("image_id", "captions") if name not in dataset.column_names]
    if absent:
        raise ValueError(f"the data set has no column {absent[0]!r} among {', '.join(dataset.column_names)}")
    bad_rows = bad_rows or BadRows()
    taught = read_teacher_captions(path, bad_rows)
    ids = [records.id_of(image_id, "image_id") for image_id in dataset["image_id"][:]]
    absent = [image_id for image_id in ids if image_id not in taught]
    if absent and missing == "error" and bad_rows.skips and len(absent) < len(ids):
        for image_id in absent:
            bad_rows.add(CaptionFileError(f"{path}: image {image_id!r}: no captions of the teacher"))
        dataset = dataset.select([index for index, image_id in enumerate(ids) if image_id in taught])
        ids, absent = [image_id for image_id in ids if image_id in taught], []
    _check_missing(path, absent, len(ids), missing)
    own = dataset["captions"][:]  # read at once: row by row takes ten times as long
    captions = [taught.get(image_id, own[index]) for index, image_id in enumerate(ids)]
    return _with_captions(dataset, captions)


def read_teacher_captions(path: _Path, bad_rows: BadRows | None = None) -> dict[ImageId, list[str]]:
    """Read the captions of a teacher.

    Args:
        path (`str` or `os.PathLike`): see the top of this module.
        bad_rows ([`BadRows`], *optional*): see [`read_captions_by_image`].

    Returns:
        `dict[int | str, list[str]]`: image id -> captions that are not empty, at least one, best first. Images without
        one are left out.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: the file is not in one of the layouts, or has an image twice.
    """
    read = read_captions_by_image(path, bad_rows)
    taught = {image_id: [caption for caption in captions if caption.strip()] for image_id, captions in read.items()}
    empty = sum(map(len, read.values())) - sum(map(len, taught.values()))
    if empty:
        shortened = [image_id for image_id, captions in read.items() if len(taught[image_id]) < len(captions)]
        logger.warning("%s: %d empty captions are left out, of images %s", path, empty, _listing(shortened))
    return {image_id: captions for image_id, captions in taught.items() if captions}


def read_captions_by_image(path: _Path, bad_rows: BadRows | None = None) -> dict[ImageId, list[str]]:
    """Read captions in any of the layouts, empty ones included.

    Args:
        path (`str` or `os.PathLike`): see the top of this module.
        bad_rows ([`BadRows`], *optional*): gets records that cannot be used, and images that are there twice; by
            default they are errors.

    Returns:
        `dict[int | str, list[str]]`: image id -> captions in their order; none of an image with an `error`.

    Raises:
        FileNotFoundError, CaptionFileError: see [`read_teacher_captions`].
    """
    name, content = os.fspath(path), records.read_content(path, bad_rows)
    if isinstance(content, dict):
        places = [(f"key {key!r}", (key, value)) for key, value in content.items()]
        entries = records.parse_records(name, places, records.keyed_reference, bad_rows)
    else:
        entries = records.parse_records(name, content, _teacher_record, bad_rows)
    return {image_id: captions for image_id, _, captions in entries}


def _teacher_record(record: Any) -> records.Entry:
    """A line of `hf-captioners caption --annotations`, or an entry of SATIC's JSON or of COCO results."""
    if not isinstance(record, dict) or record.get("image_id") is None:
        raise ValueError(f"no 'image_id' in {reprlib.repr(record)}, {_EXPECTED}")
    image_id = records.id_of(record["image_id"], "field 'image_id'")
    if record.get("error") is not None:
        return image_id, None, []
    field = "captions" if "captions" in record else "caption"
    if field not in record:
        raise ValueError(f"image {image_id!r}: no field 'captions' among {', '.join(record)}, {_EXPECTED}")
    value = record[field]
    captions = [value] if field == "caption" and isinstance(value, str) else value
    return image_id, None, records.captions_of(captions, f"field {field!r}")


def _check_missing(path: _Path, absent: Sequence[ImageId], num_rows: int, missing: str) -> None:
    if not absent:
        return
    problem = f"{path}: no captions of the teacher for {len(absent)} of {num_rows} images: {_listing(absent)}"
    if missing == "error" or len(absent) == num_rows:
        raise CaptionFileError(
            f'{problem}; caption the split that is learned from, or leave a few images their own with missing="keep"'
        )
    logger.warning("%s; they keep their own", problem)


def _with_captions(dataset: datasets.Dataset, captions: list[list[str]]) -> datasets.Dataset:
    feature = dataset.features["captions"]
    names = [name for name in dataset.column_names if name != "sentence_ids"]
    rest = dataset.remove_columns([name for name in ("captions", "sentence_ids") if name in dataset.column_names])
    return rest.add_column("captions", captions, feature=feature).select_columns(names)


def _listing(ids: Sequence[ImageId]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return f"{', '.join(map(repr, ids[:_SHOWN]))}{more}"
