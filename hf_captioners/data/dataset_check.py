"""The check of a data set of captioned pictures before anybody trains on it: what is in it, and what is wrong with it.

Problems make a training fail or a score a lie: pictures that cannot be opened, captions that are none, pictures of one
split in another. Remarks are worth knowing: the same picture twice, captions with line breaks, COCO scaled down.
"""

from __future__ import annotations

import hashlib
import reprlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..modeling.captioner_words import split_unicode_words
from .fingerprint import SCALED_DOWN, DataFingerprint, fingerprint_of_splits, is_scaled_down
from .image_check import byte_length, read_headers
from .progress import progress
from .rows import MAX_CAPTION, caption_fault, undecoded

MANY_WORDS = 100
"""More words of a caption are remarked on."""

FEW_WORDS = 20
"""Fewer different words in all captions are a problem: nothing can be learned from them."""

_SHOWN = 5
_TRAINING = ("train", "restval")  # one split in two parts: what is in both is no leak


@dataclass
class Finding:
    """Something that was found in a data set.

    Attributes:
        what (`str`): what it is, to follow a number.
        count (`int`): how often.
        examples (`list[str]`): the first five.
        is_problem (`bool`): or else a remark.
    """

    what: str
    count: int
    examples: list[str]
    is_problem: bool


@dataclass
class DataReport:
    """The result of a check.

    Attributes:
        source (`str`): name of the data.
        splits (`dict[str, dict[str, int]]`): split -> numbers of `images` and `captions`.
        sizes (`dict[str, list[int]]`): `smallest`, `mean` and `largest` width and height; empty without pictures.
        captions (`dict[str, float]`): `words` a caption on average, `longest` in words, `vocabulary`.
        findings (`list[Finding]`): problems first.
        fingerprint ([`DataFingerprint`]): of all splits.
    """

    source: str
    splits: dict[str, dict[str, int]]
    sizes: dict[str, list[int]]
    captions: dict[str, float]
    findings: list[Finding]
    fingerprint: DataFingerprint

    @property
    def problems(self) -> list[Finding]:
        """Findings that are more than remarks."""
        return [finding for finding in self.findings if finding.is_problem]

    def as_json(self) -> dict[str, Any]:
        """The report as values of JSON."""
        return asdict(self)


@dataclass
class _Findings:
    """Examples by what is wrong."""

    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def listed(self) -> list[Finding]:
        return [
            Finding(what, len(examples), list(dict.fromkeys(examples[:_SHOWN])), kind is self.problems)
            for kind in (self.problems, self.remarks)
            for what, examples in kind.items()
        ]


def check_dataset(source: str, splits: Mapping[str, Any], unreadable: Sequence[str] = ()) -> DataReport:
    """Check captioned pictures; reads the headers of all, and the bytes of those that another has as many of.

    Args:
        source (`str`): name of the data, for the report.
        splits (`Mapping[str, datasets.Dataset]`): split -> rows with `captions`, `image_id`, and `image` and
            `file_name` if there are.
        unreadable (`Sequence[str]`): what the reader of the file has left out, as messages.

    Returns:
        [`DataReport`]

    Example:

    ```python
    >>> import datasets
    >>> from hf_captioners.data.dataset_check import check_dataset
    >>> rows = datasets.Dataset.from_list([{"image_id": 7, "captions": ["a dog", " . "]}])
    >>> report = check_dataset("dogs", {"train": rows})
    >>> [(finding.what, finding.examples) for finding in report.problems][0]
    ('captions without a word', ["train: image 7: ' . '"])

    ```
    """
    found = _Findings()
    if unreadable:
        found.problems["rows that cannot be read"] += unreadable
    counts = {}
    for name, rows in splits.items():
        captions = rows["captions"][:]
        counts[name] = {"images": len(rows), "captions": sum(len(texts or ()) for texts in captions)}
        _check_captions(name, rows["image_id"][:], captions, found)
    _check_ids(splits, found)
    sizes = _check_images(splits, found)
    words = _check_words(splits, found)
    return DataReport(source, counts, sizes, words, found.listed(), fingerprint_of_splits(splits))


def _texts(captions: Iterable[Any] | None) -> list[str]:
    return [caption for caption in captions or () if isinstance(caption, str)]


def _names(rows: Any) -> list[Any]:
    """File names of rows, or their ids."""
    ids = rows["image_id"][:]
    if "file_name" not in rows.column_names:
        return ids
    return [image_id if name is None else name for image_id, name in zip(ids, rows["file_name"][:], strict=True)]


def _check_captions(split: str, ids: Sequence[Any], captions: Sequence[Any], found: _Findings) -> None:
    for image_id, texts in zip(ids, captions, strict=True):
        where = f"{split}: image {image_id!r}"
        if not texts:
            found.problems["pictures without a caption"].append(where)
        for text in texts or ():
            example = f"{where}: {reprlib.repr(text)}"
            fault = caption_fault(text)
            if fault is not None:
                found.problems[f"captions {fault}"].append(example)
            elif "\n" in text.strip() or "\r" in text.strip():
                found.remarks["captions with line breaks in them, which are read as spaces"].append(example)


def _check_ids(splits: Mapping[str, Any], found: _Findings) -> None:
    """Ids that are there twice, in one split or, which is a leak, in two."""
    first: dict[Any, str] = {}
    for split, rows in splits.items():
        ids = rows["image_id"][:]
        for image_id in dict.fromkeys(ids):
            other = first.setdefault(image_id, split)
            if _part(other) != _part(split):
                found.problems["image ids in several splits"].append(f"{image_id!r}: {other} and {split}")
        seen: set[Any] = set()
        for image_id in ids:
            if image_id in seen:
                found.problems["image ids that a split has twice"].append(f"{split}: {image_id!r}")
            seen.add(image_id)


def _part(split: str) -> str:
    return _TRAINING[0] if split in _TRAINING else split


def _check_words(splits: Mapping[str, Any], found: _Findings) -> dict[str, float]:
    """Numbers of words, by the rule of word tokenizers."""
    vocabulary: set[str] = set()
    total, count, longest = 0, 0, 0
    for split, rows in splits.items():
        for image_id, captions in zip(rows["image_id"][:], rows["captions"][:], strict=True):
            for words in split_unicode_words([text[:MAX_CAPTION] for text in _texts(captions)]):
                vocabulary.update(words)
                total, count, longest = total + len(words), count + 1, max(longest, len(words))
                if len(words) > MANY_WORDS:
                    found.remarks[f"captions of more than {MANY_WORDS} words"].append(
                        f"{split}: image {image_id!r}: {len(words)} words"
                    )
    if len(vocabulary) < FEW_WORDS:
        found.problems[f"different words in all captions, fewer than {FEW_WORDS}"] += sorted(vocabulary)
    return {"words": round(total / max(count, 1), 2), "longest": longest, "vocabulary": len(vocabulary)}


# --- pictures -------------------------------------------------------------------------------------------------------


def _check_images(splits: Mapping[str, Any], found: _Findings) -> dict[str, list[int]]:
    """Sizes of pictures; those that cannot be opened, and those with the same bytes."""
    sizes: list[tuple[int, int]] = []
    by_length: dict[int, list[tuple[str, str, Any]]] = defaultdict(list)  # split, name, picture
    names: list[str] = []
    total = sum(len(rows) for rows in splits.values())
    with progress(total=total, desc="headers", unit="picture") as bar:
        for split, rows in splits.items():
            if "image" not in rows.column_names:
                continue
            images = undecoded(rows)["image"]
            for name, image, header in zip(_names(rows), images, read_headers(images), strict=True):
                bar.update()
                if header.fault is not None:
                    found.problems["pictures that cannot be opened"].append(f"{split}: {header.fault}")
                    continue
                names.append(Path(str(name)).name)
                if header.size is not None:
                    sizes.append(header.size)
                    by_length[byte_length(image)].append((split, str(name), image))
    _check_duplicates([members for members in by_length.values() if len(members) > 1], found)
    if is_scaled_down(names, sizes):
        mean = sum(max(size) for size in sizes) / len(sizes)
        found.remarks[SCALED_DOWN] += [f"their longer side is {mean:.0f} pixels on average"] * len(sizes)
    if not sizes:
        return {}
    columns = list(zip(*sizes, strict=True))
    return {
        "smallest": [min(side) for side in columns],
        "mean": [round(sum(side) / len(sizes)) for side in columns],
        "largest": [max(side) for side in columns],
    }


def _check_duplicates(groups: Iterable[Sequence[tuple[str, str, Any]]], found: _Findings) -> None:
    """Pictures of equal length, read and compared."""
    for group in groups:
        same: dict[bytes, list[tuple[str, str]]] = defaultdict(list)
        for split, name, image in group:
            content = image["bytes"] if image["bytes"] is not None else Path(image["path"]).read_bytes()
            same[hashlib.sha256(content).digest()].append((split, name))
        for (split, name), *others in same.values():
            for other_split, other in others:
                example = f"{split}: {name} and {other_split}: {other}"
                if _part(split) != _part(other_split):
                    found.problems["pictures with the same bytes in several splits"].append(example)
                else:
                    found.remarks["pictures with the same bytes"].append(example)
