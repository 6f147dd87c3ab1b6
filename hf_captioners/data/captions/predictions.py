"""Captions of a captioner and references of people from files, and which of them belong to the same image.

A layout is recognised by what is in the file, never by its name; gzip is told by the first bytes. Both readers take

- JSONL, an object a line, or one JSON list of such objects. A prediction is `{"image_id": 42, "caption": "…"}` (COCO
  results) or what `hf-captioners caption` writes, `{"image": "a.jpg", "caption": "…"}`. References are
  `{"file_name": "a.jpg", "captions": ["…", "…"]}`, as in the `metadata.jsonl` of an image folder, with `image` or
  `image_id` in the place of `file_name`;
- one JSON object from image id to a caption or to a list of captions (of one, for predictions).

References may also be in any other layout of annotations; see `layouts`.

What is decided here:

1. An integer and a string of its digits are one id: `42`, `"42"` and `"000042"`.
2. Whatever could give a wrong number is an error that names the file, the place and the value: an image or a key twice,
   a caption that is no text, a picture that could not be captioned. An empty caption is a caption.
3. A prediction belongs to the references with its id. An id that is a file name is looked for among the file names of
   the references, too, by its last part; where several of them have that, the folders have to tell them apart.
"""

import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any, TypeAlias

from ..archive import archive_suffix
from . import records
from .folder_files import chosen_splits, is_folder, read_folder
from .layouts import is_annotated, read_annotations, splits_of
from .records import CaptionFileError, ImageId

_Path: TypeAlias = str | os.PathLike[str]
_SHOWN = 5
_URL = re.compile(r"https?://", re.IGNORECASE)


@dataclass(frozen=True)
class Predictions:
    """Captions of a captioner.

    Attributes:
        path (`str`): the file.
        captions (`dict[int | str, str]`): image id -> caption, in the order of the file.
        image_paths (`dict[int | str, str]`): image id -> the picture as the file calls it, where it does.
    """

    path: str
    captions: dict[ImageId, str]
    image_paths: dict[ImageId, str] = field(default_factory=dict)


@dataclass(frozen=True)
class References:
    """Captions of people.

    Attributes:
        path (`str`): the file.
        captions (`dict[int | str, list[str]]`): image id -> captions, at least one, in the order of the file.
        file_names (`dict[int | str, str]`): image id -> the picture as the file calls it, where it does.
    """

    path: str
    captions: dict[ImageId, list[str]]
    file_names: dict[ImageId, str] = field(default_factory=dict)


# --- reading --------------------------------------------------------------------------------------------------------


def read_predictions(path: _Path) -> Predictions:
    """Read one caption per image.

    Args:
        path (`str` or `os.PathLike`): COCO results, JSONL of `hf-captioners caption`, or a JSON object from id to
            caption; plain or gzipped. See the top of this module.

    Returns:
        [`Predictions`]: captions as they are in the file; ids as integers where they are digits.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: the file is none of these, has an image twice, a caption that is no text, or pictures without
            a caption (`{"image": …, "error": …}`).

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.captions.predictions import read_predictions
    >>> path = Path(tempfile.mkdtemp()) / "captions.jsonl"
    >>> _ = path.write_text('{"image": "photos/a.jpg", "caption": "a dog"}')
    >>> read_predictions(path).captions
    {'photos/a.jpg': 'a dog'}

    ```
    """
    name, content = os.fspath(path), records.read_content(path)
    if isinstance(content, list):
        records.refuse_failures(name, content)
        entries = records.parse_records(name, content, records.prediction)
    elif is_annotated(content):
        raise CaptionFileError(f"{name}: holds annotated images ('images'), which are references; expected predictions")
    else:
        entries = records.parse_records(name, _by_key(content), records.keyed_prediction)
    return Predictions(name, {image_id: captions[0] for image_id, _, captions in entries}, _image_paths(entries))


def read_references(path: _Path, split: str | None = None) -> References:
    """Read the captions that people gave to images.

    Args:
        path (`str` or `os.PathLike`): a folder of captioned pictures, a file in one of the layouts of `layouts`, or
            tars in WebDataset's layout.
        split (`str`, *optional*): names of splits joined by `+`, or of layouts without splits a file with the names or
            ids of pictures. By default, and with `"all"`, every image.

    Returns:
        [`References`]: captions as they are in the file, ids as integers where they are digits. Images of COCO
        annotations that nobody described are left out.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: the file is none of these, has an image twice, a caption that is no text, an image with an
            empty list of captions, or no image of this split.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.data.captions.predictions import read_references
    >>> path = Path(tempfile.mkdtemp()) / "metadata.jsonl"
    >>> _ = path.write_text('{"file_name": "a.jpg", "captions": ["a dog", "a brown dog"]}')
    >>> read_references(path).captions
    {'a.jpg': ['a dog', 'a brown dog']}

    ```
    """
    if are_tars(path):
        return _of_tars(path, split)
    if is_folder(path):
        return _of_folder(path, split)
    rows = read_annotations(path, split)
    captions = {row["image_id"]: row["captions"] for row in rows}
    names = {row["image_id"]: row["file_name"] for row in rows if row["file_name"] is not None}
    return References(os.fspath(path), captions, names)


def read_splits(path: _Path) -> list[str]:
    """The names of the splits of a file or folder of captions.

    Args:
        path (`str` or `os.PathLike`): as [`read_references`] takes it.

    Returns:
        `list[str]`: in the order of their use, train first; empty for layouts without splits.

    Raises:
        FileNotFoundError, CaptionFileError: as [`read_references`].
    """
    if are_tars(path):
        return []
    if is_folder(path):
        return list(read_folder(path))
    return splits_of(path)


def _by_key(content: dict[str, Any]) -> Iterator[records.Located]:
    return ((f"key {key!r}", (key, value)) for key, value in content.items())


def _image_paths(entries: Sequence[records.Entry]) -> dict[ImageId, str]:
    return {image_id: path for image_id, path, _ in entries if path is not None}


def are_tars(path: _Path) -> bool:
    """Tell whether it is tars in WebDataset's layout.

    Args:
        path (`str` or `os.PathLike`): of anything; libraries for tars are loaded for names of tars only.

    Returns:
        `bool`
    """
    if not archive_suffix(path).startswith(".t"):
        return False
    from .tar_shards import tar_shards

    return bool(tar_shards(path))


def _of_tars(path: _Path, split: str | None) -> References:
    from .load import load_captions

    rows = load_captions(path, split=split)
    ids = rows["image_id"][:]
    names = dict(zip(ids, rows["file_name"][:], strict=True))
    return References(os.fspath(path), dict(zip(ids, rows["captions"][:], strict=True)), names)


def _of_folder(path: _Path, split: str | None) -> References:
    """A folder of captioned pictures; its file names are whole paths."""
    splits = read_folder(path)
    rows = [row for name in chosen_splits(path, split or "all", splits) for row in splits[name]]
    captions = {row["image_id"]: row["captions"] for row in rows}
    if len(captions) < len(rows):
        raise CaptionFileError(f"{path}: pictures of different splits have the same image_id; name one with split=")
    return References(os.fspath(path), captions, {row["image_id"]: row["image"] for row in rows})


# --- what belongs together ------------------------------------------------------------------------------------------


def match(
    predictions: Predictions, references: References, subset: bool = False
) -> tuple[list[ImageId], list[str], list[list[str]]]:
    """Put predictions beside the references of the same image.

    Args:
        predictions ([`Predictions`]): see [`read_predictions`].
        references ([`References`]): see [`read_references`].
        subset (`bool`, defaults to `False`): take the images that have both, and leave out predictions without
            references and references without prediction, as for predictions of all of val2014 beside one split of it.

    Returns:
        `tuple[list[int | str], list[str], list[list[str]]]`: image ids (those of the references), captions and lists of
        references, all in the order of the references, so that the order of predictions changes no score.

    Raises:
        CaptionFileError: images without a partner (up to five are named), a file name that could be several images,
            two predictions for one image.

    Example:

    ```python
    >>> from hf_captioners.data.captions.predictions import Predictions, References, match
    >>> references = References("r.json", {7: ["a cat"], 42: ["a dog", "one dog"]}, {42: "val/dog.jpg"})
    >>> match(Predictions("p.json", {"photos/dog.jpg": "the dog"}), references, subset=True)
    ([42], ['the dog'], [['a dog', 'one dog']])

    ```
    """
    partners, unknown = _partners(predictions, references)
    missing = [image_id for image_id in references.captions if image_id not in partners]
    problems = []
    if unknown and not (subset and partners):
        names = {} if isinstance(unknown[0], int) else references.file_names
        known = _listing([names.get(image_id, image_id) for image_id in references.captions])
        problems.append(
            f"{len(unknown)} of {len(predictions.captions)} predictions have no references in {references.path}: "
            f"{_listing(unknown)} (there it has {known})"
        )
    if missing and not subset:
        problems.append(
            f"{len(missing)} of {len(references.captions)} images of {references.path} have no prediction: "
            f"{_listing(missing)} (read the split that was captioned, or score the images that have both with "
            "subset=True)"
        )
    if problems:
        raise CaptionFileError(f"{predictions.path}: {'; '.join(problems)}")
    ids = [image_id for image_id in references.captions if image_id in partners]
    captions = [predictions.captions[partners[image_id]] for image_id in ids]
    return ids, captions, [references.captions[image_id] for image_id in ids]


def image_paths(
    predictions: Predictions,
    references: References,
    image_ids: Iterable[ImageId],
    image_root: _Path | None = None,
) -> dict[ImageId, Path]:
    """Files that the pictures of matched images should be in.

    Args:
        predictions ([`Predictions`]), references ([`References`]): what was matched.
        image_ids (`Iterable[int | str]`): the ids that [`match`] gave.
        image_root (`str` or `os.PathLike`, *optional*): folder of the pictures. One is `image_root/file_name`, or, if
            there is only that, `image_root` and the last part of `file_name`; a name with `..` or from the root of a
            disk never leads out of the folder. Without it pictures are where the predictions say.

    Returns:
        `dict[int | str, Path]`: image id -> path, which need not exist. Images that no file names, and those that have
        a URL, are left out.

    Raises:
        CaptionFileError: as in [`match`].
    """
    partners, _ = _partners(predictions, references)
    paths: dict[ImageId, Path] = {}
    for image_id in image_ids:
        name = predictions.image_paths.get(partners.get(image_id, image_id))
        if image_root is not None:
            name = references.file_names.get(image_id, name)
        if name is not None and not _URL.match(name):
            paths[image_id] = Path(name) if image_root is None else _below(Path(image_root), name)
    return paths


def _below(root: Path, name: str) -> Path:
    parts = _parts(name)
    leads_out = PureWindowsPath(name).anchor or ".." in parts
    whole, last = root.joinpath(*parts), root / parts[-1]
    # os.path.exists is False, not an error, for a name that is too long for this file system
    only_last = not os.path.exists(whole) and os.path.exists(last)  # noqa: PTH110
    return last if leads_out or only_last else whole


def _parts(name: str) -> list[str]:
    """Folders and file of a path of any system, without disk and root."""
    path = PureWindowsPath(name)
    return list(path.relative_to(path.anchor).parts) or [name]


def _partners(predictions: Predictions, references: References) -> tuple[dict[ImageId, ImageId], list[ImageId]]:
    """Id among the references -> id among the predictions, and the predictions that have no references."""
    by_last_part: dict[str, list[ImageId]] = {}
    for image_id in references.captions:
        if parts := _name_parts(references, image_id):
            by_last_part.setdefault(parts[-1], []).append(image_id)
    partners: dict[ImageId, ImageId] = {}
    unknown: list[ImageId] = []
    for predicted in predictions.captions:
        partner = _partner(predictions, predicted, references, by_last_part)
        if partner is None:
            unknown.append(predicted)
        elif (other := partners.setdefault(partner, predicted)) != predicted:
            raise CaptionFileError(
                f"{predictions.path}: {other!r} and {predicted!r} are both image {partner!r} of {references.path}; "
                "expected one prediction per image"
            )
    return partners, unknown


def _partner(
    predictions: Predictions, predicted: ImageId, references: References, by_last_part: dict[str, list[ImageId]]
) -> ImageId | None:
    """The id that the references have for a predicted image, `None` if they do not know it."""
    if predicted in references.captions:
        return predicted
    if not isinstance(predicted, str):
        return None
    parts = _parts(unicodedata.normalize("NFC", predicted))
    candidates = by_last_part.get(parts[-1], [])
    if len(candidates) < 2:
        return candidates[0] if candidates else None
    names = {image_id: _name_parts(references, image_id) for image_id in candidates}
    fitting = [image_id for image_id, other in names.items() if _same_end(parts, other)]
    if len(fitting) != 1:
        raise CaptionFileError(
            f"{predictions.path}: {predicted!r} could be any of {len(candidates)} images of {references.path}: "
            f"{_listing(['/'.join(names[image_id]) for image_id in candidates])}; expected an 'image_id', or a path "
            "whose folders tell them apart"
        )
    return fitting[0]


def _name_parts(references: References, image_id: ImageId) -> list[str]:
    """Folders and file of an image's file name, accents in one of the two ways to write them; empty if unnamed."""
    name = references.file_names.get(image_id, image_id)
    return _parts(unicodedata.normalize("NFC", name)) if isinstance(name, str) else []


def _same_end(parts: list[str], other: list[str]) -> bool:
    length = min(len(parts), len(other))
    return parts[-length:] == other[-length:]


def _listing(values: Sequence[ImageId]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return f"{', '.join(map(repr, values[:_SHOWN]))}{more}"
