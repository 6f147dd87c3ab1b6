"""Files of captions as checked records: bytes, JSON and JSONL, and the one record of each layout.

`predictions` builds on this; see there for the layouts. Whatever could give a wrong number is an error that names the
file, the place in it and the value.
"""

import json
import os
import re
import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ..bad_rows import BadRows
from ..limits import read_bytes

ImageId: TypeAlias = int | str
Entry: TypeAlias = tuple[ImageId, str | None, list[str]]
"""An image's id, the name of its picture if the file has one, and its captions (one, of a prediction)."""
Located: TypeAlias = tuple[str, Any]
"""A place in a file, for messages, and what is there."""

_SHOWN = 5
_DIGITS = re.compile(r"(-?[0-9]{1,18})(?:\.0+)?")  # 42.0 is what pandas makes of a column of numbers with a gap
_OF_WORDS = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "So"))
_SMALLEST, _LARGEST = -(2**63), 2**63 - 1  # of the int64 that ids are kept as
_PREDICTION = "expected an object with 'image_id' (or 'image') and 'caption'"
_REFERENCE = "expected an object with 'image_id' (or 'file_name') and 'captions'"


class CaptionFileError(ValueError):
    """A file of captions that cannot be used, or two that do not fit. The message names file, place and value."""


def read_content(path: str | os.PathLike[str], bad_rows: BadRows | None = None) -> dict[str, Any] | list[Located]:
    """The object of a JSON file, or the records of a JSON list or of JSONL, each with its place.

    Args:
        path (`str` or `os.PathLike`): UTF-8, with or without a BOM, plain or gzipped (told by its first bytes).
        bad_rows ([`BadRows`], *optional*): gets lines of JSONL that are cut off or broken; by default the first is an
            error.

    Returns:
        `dict[str, Any]` or `list[tuple[str, Any]]`: one object that is a record itself is a list of one.

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: it is empty, cut off, not UTF-8, not JSON, or an object in it has a key twice.
    """
    return parse_content(path, read_text(path), bad_rows)


def parse_content(
    path: str | os.PathLike[str], text: str, bad_rows: BadRows | None = None
) -> dict[str, Any] | list[Located]:
    """Parse the text of a file as [`read_content`] does."""
    # U+2028 and its kin may stand in a JSON string, so splitlines() would be wrong
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    if not lines:
        raise CaptionFileError(f"{path}: is empty, expected JSON or JSONL")
    if len(lines) > 1 and lines[0][1].lstrip().startswith("{") and any(_is_object(line) for _, line in lines[:2]):
        return list(_records_of_lines(path, lines, bad_rows or BadRows()))
    content = _loads(text, f"{path}")
    if isinstance(content, list):
        return [(f"[{index}]", record) for index, record in enumerate(content)]
    if not isinstance(content, dict):
        raise CaptionFileError(f"{path}: holds {reprlib.repr(content)}, expected a JSON object, a list or JSONL")
    is_record = {"image_id", "image", "file_name"} & set(content) and {"caption", "captions", "error"} & set(content)
    return [(f"line {lines[0][0]}", content)] if is_record else content


def _records_of_lines(
    path: str | os.PathLike[str], lines: list[tuple[int, str]], bad_rows: BadRows
) -> Iterator[Located]:
    for number, line in lines:
        try:
            record = _loads(line, f"{path}: line {number}")
        except CaptionFileError as error:
            bad_rows.add(error)
            continue
        yield f"line {number}", record


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file, plain or gzipped (told by its first bytes), within limits.

    Args:
        path (`str` or `os.PathLike`): UTF-8, with or without a BOM.

    Returns:
        `str`

    Raises:
        FileNotFoundError: there is no such file.
        CaptionFileError: it is a folder, a FIFO or a device, cut off, over the limit, or not UTF-8.
    """
    if Path(path).is_dir():
        raise CaptionFileError(f"{path}: is a folder, expected a file of captions")
    try:
        content = read_bytes(path, "file of captions")
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        raise CaptionFileError(str(error)) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = " (it is UTF-16, which '>' of PowerShell writes)" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        raise CaptionFileError(
            f"{path}: line {line}: not UTF-8: byte 0x{error.object[error.start]:02x}; expected UTF-8 text{hint}"
        ) from error


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _loads(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object)
    except CaptionFileError as error:
        raise CaptionFileError(f"{where}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise CaptionFileError(f"{where}: not JSON: {error}") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; Python's own reader would keep the last of equal keys."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in content if keys.count(key) > 1)
        raise CaptionFileError(f"the key {twice!r} occurs twice in one object; keys must be unique")
    return content


def parse_records(
    path: str, places: Iterable[Located], parse: Callable[[Any], Entry], bad_rows: BadRows | None = None
) -> list[Entry]:
    """The entries of a file, each image once.

    Args:
        path (`str`): the file, for messages.
        places (`Iterable[tuple[str, Any]]`): what is where, from [`read_content`].
        parse (`Callable`): makes an entry of it; a ValueError of it gets file and place put before.
        bad_rows ([`BadRows`], *optional*): gets those that cannot be parsed, and images that are there already; by
            default they are errors.

    Returns:
        `list[Entry]`: at least one.

    Raises:
        CaptionFileError: there is none, one cannot be parsed, or an image occurs twice.
    """
    bad_rows = bad_rows or BadRows()
    entries: list[Entry] = []
    first: dict[ImageId, str] = {}
    for where, value in places:
        try:
            entry = parse(value)
            if first.setdefault(entry[0], where) != where:
                raise ValueError(f"image {entry[0]!r} is already at {first[entry[0]]}; expected every image once")
        except ValueError as error:
            bad_rows.add(CaptionFileError(f"{path}: {where}: {error}"))
            continue
        entries.append(entry)
    if not entries:
        raise CaptionFileError(f"{path}: no captions in it, expected at least one")
    return entries


def refuse_failures(path: str, records: list[Located]) -> None:
    """Name the pictures that `hf-captioners caption` could not caption, which are not a captioner's words.

    Args:
        path (`str`): the file, for messages.
        records (`list[tuple[str, Any]]`): from [`read_content`].

    Raises:
        CaptionFileError: there are records with an `error`; the message says how to go on.
    """
    failed = [pair for pair in records if isinstance(pair[1], dict) and pair[1].get("error") is not None]
    if failed:
        shown = [f"{where} ({_one_line(record.get('image', record.get('image_id')))})" for where, record in failed]
        more = f" and {len(failed) - _SHOWN} more" if len(failed) > _SHOWN else ""
        raise CaptionFileError(
            f"{path}: {len(failed)} of {len(records)} pictures have an 'error' and no caption: "
            f"{', '.join(shown[:_SHOWN])}{more}; the first is {_one_line(failed[0][1]['error'])}. Caption these "
            "pictures again, or take their records out of the file and score the rest with subset=True"
        )


def _one_line(value: Any) -> str:
    return text if len(text := repr(value)) <= 200 else f"{text[:197]}..."


def prediction(record: Any) -> Entry:
    """A record of COCO results or of `hf-captioners caption`; ValueError says what is wrong with it."""
    image_id, image = _named(record, _PREDICTION)
    if "caption" not in record and "captions" in record:
        raise ValueError("has several 'captions', expected one 'caption' per image")
    return image_id, image, [caption_of(_field(record, "caption", _PREDICTION), "field 'caption'")]


def keyed_prediction(pair: tuple[str, Any]) -> Entry:
    """An id and its caption, or a list of one caption as the COCO tools want it."""
    image_id, value = id_of(pair[0], "the key"), pair[1]
    if not isinstance(value, list):
        return image_id, None, [caption_of(value, "the value")]
    if len(value) != 1:
        raise ValueError(f"has {len(value)} captions, expected one prediction per image")
    return image_id, None, captions_of(value, "the value")


def reference(record: Any) -> Entry:
    """A line of a `metadata.jsonl`, or a record of COCO results taken as the only reference of its image."""
    image_id, image = _named(record, _REFERENCE)
    if "captions" not in record and "caption" in record:
        return image_id, image, [caption_of(record["caption"], "field 'caption'")]
    return image_id, image, captions_of(_field(record, "captions", _REFERENCE), "field 'captions'")


def keyed_reference(pair: tuple[str, Any]) -> Entry:
    """An id and its caption or captions."""
    image_id, value = id_of(pair[0], "the key"), pair[1]
    return image_id, None, captions_of([value] if isinstance(value, str) else value, "the value")


def _named(record: Any, expected: str) -> tuple[ImageId, str | None]:
    """The id of a record, and the name of its picture where it has one."""
    if not isinstance(record, dict):
        raise ValueError(f"is {reprlib.repr(record)}, {expected}")
    of_file = next((name for name in ("file_name", "image") if record.get(name) is not None), "")
    image = file_name_of(record, of_file)
    if record.get("image_id") is not None:
        return id_of(record["image_id"], "field 'image_id'"), image
    if image is None:
        raise ValueError(f"no id of an image in {reprlib.repr(record)}, {expected}")
    return id_of(image, f"field {of_file!r}"), image


def _field(record: Mapping[str, Any], name: str, expected: str) -> Any:
    if name not in record:
        raise ValueError(f"no field {name!r} among {', '.join(map(repr, record))}; {expected}")
    return record[name]


def file_name_of(record: Mapping[str, Any], name: str) -> str | None:
    """The file name at the field `name`, `None` where it is absent or null; ValueError where it is something else."""
    value = record.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"field {name!r} is {reprlib.repr(value)}, expected the name of a file")
    return value


def id_of(value: Any, what: str) -> ImageId:
    """The id of an image: digits, also `42.0`, as an integer, other strings as they are; ValueError for others."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, str)) or value == "":
        raise ValueError(f"{what} is {reprlib.repr(value)}, expected an integer or a string")
    if isinstance(value, int):
        if not _SMALLEST <= value <= _LARGEST:
            raise ValueError(f"{what} is {reprlib.repr(value)}, expected an integer of 64 bits")
        return value
    digits = _DIGITS.fullmatch(value)
    return int(digits[1]) if digits else caption_of(value, what)


def has_word(text: str) -> bool:
    """Tell whether a text has more than spaces and punctuation.

    Args:
        text (`str`): a caption.

    Returns:
        `bool`: true for letters, digits, marks and emoji, of any script.

    Example:

    ```python
    >>> from hf_captioners.data.captions.records import has_word
    >>> [has_word(text) for text in ("a dog", "\u72d7", "", " . ", "?!")]
    [True, True, False, False, False]

    ```
    """
    return any(unicodedata.category(character) in _OF_WORDS for character in text)


def caption_of(value: Any, what: str) -> str:
    """A caption; ValueError for what is no Unicode string (null, NaN, a list, half a surrogate pair)."""
    if not isinstance(value, str):
        raise ValueError(f"{what} is {reprlib.repr(value)}, expected a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is {reprlib.repr(value)}, which is not Unicode text") from error
    return value


def captions_of(value: Any, what: str) -> list[str]:
    """The captions of one image, at least one; ValueError for anything else."""
    if not isinstance(value, list) or not value:
        raise ValueError(f"{what} is {reprlib.repr(value)}, expected a list with at least one caption")
    return [caption_of(caption, f"{what}[{index}]") for index, caption in enumerate(value)]


def coco(path: str, content: Mapping[str, Any], bad_rows: BadRows | None = None) -> list[Entry]:
    """COCO annotations, in the order of their `images` (of the annotations where there is no such list).

    Args:
        path (`str`): the file, for messages.
        content (`Mapping[str, Any]`): its object; `annotations` is a list.
        bad_rows ([`BadRows`], *optional*): gets entries that cannot be used; by default they are errors.

    Returns:
        `list[Entry]`: the images that somebody described.

    Raises:
        CaptionFileError: an entry is malformed, an id occurs twice, or an annotation is not of one of the images.
    """
    bad_rows = bad_rows or BadRows()
    images = content.get("images")
    if images is not None and not isinstance(images, list):
        raise CaptionFileError(f"{path}: field 'images' is {reprlib.repr(images)}, expected a list of images")
    places = [(f"images[{index}]", image) for index, image in enumerate(images or [])]
    described = parse_records(path, places, _coco_image, bad_rows) if places else []
    names = {image_id: name for image_id, name, _ in described}
    captions: dict[ImageId, list[str]] = {image_id: [] for image_id in names}
    first: dict[tuple[ImageId, ImageId], int] = {}
    for index, annotation in enumerate(content["annotations"]):
        try:
            image_id, caption = _coco_caption(annotation)
            if images is not None and image_id not in captions:
                raise ValueError(f"image_id {image_id!r} is not the id of one of the 'images'")
            number = annotation.get("id")
            key = (image_id, -1 if number is None else id_of(number, "field 'id'"))
            if number is not None and (other := first.setdefault(key, index)) != index:
                raise ValueError(
                    f"id {number!r} is already that of annotations[{other}], of the same image; expected unique ids"
                )
        except ValueError as error:
            bad_rows.add(CaptionFileError(f"{path}: annotations[{index}]: {error}"))
            continue
        captions.setdefault(image_id, []).append(caption)
    entries = [(image_id, names.get(image_id), texts) for image_id, texts in captions.items() if texts]
    if not entries:
        raise CaptionFileError(f"{path}: no captions in its 'annotations', expected at least one")
    return entries


def _coco_image(image: Any) -> Entry:
    if not isinstance(image, dict):
        raise ValueError(f"is {reprlib.repr(image)}, expected an object with 'id' and 'file_name'")
    return id_of(image.get("id"), "field 'id'"), file_name_of(image, "file_name"), []


def _coco_caption(annotation: Any) -> tuple[ImageId, str]:
    if not isinstance(annotation, dict):
        raise ValueError(f"is {reprlib.repr(annotation)}, expected an object with 'image_id' and 'caption'")
    image_id = id_of(annotation.get("image_id"), "field 'image_id'")
    return image_id, caption_of(annotation.get("caption"), "field 'caption'")
