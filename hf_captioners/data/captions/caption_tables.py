"""Captions in tables of text: the token files and Kaggle's table of Flickr8k and Flickr30k, and URLs with captions.

- a token file (`Flickr8k.token.txt`, `results_20130124.token`) has lines `1000092795.jpg#0<TAB>Two men are outside .`;
- Kaggle's Flickr30k (`results.csv`) begins with `image_name| comment_number| comment`; one of its lines lacks the
  second bar, and is read all the same;
- Conceptual Captions have lines `caption<TAB>URL`, with or without a first line of these names in any order.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator

from ..bad_rows import BadRows
from .metadata_files import Records, Row
from .records import CaptionFileError, Located, has_word

_TOKEN = re.compile(r"(.+)#\d+\t(.*)")
_BARS = ("image_name", "comment_number", "comment")
_BAR_ROW = re.compile(r"([^|]+)\|\s*\d+\s*(?:\|\s*|\s)(.*)")
_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_SHOWN = 5


def is_token_line(line: str) -> bool:
    """Tell whether a line is one of a token file."""
    return _TOKEN.fullmatch(line.rstrip("\r")) is not None


def is_bar_header(line: str) -> bool:
    """Tell whether a line is the first one of Kaggle's Flickr30k."""
    return tuple(name.strip().lower() for name in line.split("|")) == _BARS


def is_url_line(line: str) -> bool:
    """Tell whether a line is one of a table of URLs, or its names."""
    return _url_columns(line) is not None or _url_row(line, (0, 1)) is not None


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """Lines with something in them, and their places."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"line {number}", line.rstrip("\r")


def token_records(path: str, text: str, bad_rows: BadRows | None = None) -> Records:
    """The records of a token file.

    Args:
        path (`str`): the file, for messages.
        text (`str`): its text.
        bad_rows ([`BadRows`], *optional*): gets lines that cannot be used; by default the first is an error.

    Returns:
        [`Records`]

    Raises:
        CaptionFileError: a line is none of a token file.

    Example:

    ```python
    >>> from hf_captioners.data.captions.caption_tables import token_records
    >>> token_records("Flickr8k.token.txt", "cat.jpg#0\\tA cat .").located
    [('line 1', {'file_name': 'cat.jpg', 'caption': 'A cat .'})]

    ```
    """
    return _matched(path, _lines(text), _TOKEN, "NAME#NUMBER, a tab and a caption", bad_rows or BadRows())


def bar_records(path: str, text: str, bad_rows: BadRows | None = None) -> Records:
    """The records of Kaggle's Flickr30k; arguments and errors are those of [`token_records`]."""
    rows = _lines(text)
    next(rows)  # the names
    return _matched(path, rows, _BAR_ROW, "NAME| NUMBER| CAPTION", bad_rows or BadRows())


def _matched(
    path: str, lines: Iterator[tuple[str, str]], pattern: re.Pattern[str], expected: str, bad_rows: BadRows
) -> Records:
    located: list[Located] = []
    for where, line in lines:
        match = pattern.fullmatch(line)
        if match is None:
            bad_rows.add(CaptionFileError(f"{path}: {where}: is {reprlib.repr(line)}, expected {expected}"))
            continue
        located.append((where, {"file_name": match[1].strip(), "caption": match[2].strip()}))
    return Records(path, located)


def _url_columns(line: str) -> tuple[int, int] | None:
    """Places of caption and URL in a first line of names."""
    names = [name.strip().lower() for name in line.rstrip("\r").split("\t")]
    captions = [index for index, name in enumerate(names) if name in ("caption", "text")]
    return (captions[0], names.index("url")) if captions and "url" in names else None


def _url_row(line: str, columns: tuple[int, int]) -> tuple[str, str] | None:
    """Caption and URL of a line; `None` where there is no URL."""
    fields = line.rstrip("\r").split("\t")
    if len(fields) <= max(columns):
        return None
    caption, url = (fields[index].strip() for index in columns)
    return (caption, url) if _URL.fullmatch(url) else None


def url_rows(path: str, text: str, bad_rows: BadRows | None = None) -> list[Row]:
    """The rows of a table of URLs, captions of one URL together.

    Args:
        path (`str`): the file, for messages.
        text (`str`): its text.
        bad_rows ([`BadRows`], *optional*): gets lines that cannot be used; by default they are one error.

    Returns:
        `list[dict]`: with `image_id` and `file_name`, both the URL, and `captions`.

    Raises:
        CaptionFileError: lines have no URL or no caption; some are named.

    Example:

    ```python
    >>> from hf_captioners.data.captions.caption_tables import url_rows
    >>> url_rows("train.tsv", "a cat\\thttp://example.org/1.jpg\\n")[0]["captions"]
    ['a cat']

    ```
    """
    rows: dict[str, Row] = {}
    problems: list[str] = []
    columns: tuple[int, int] | None = None
    for number, (where, line) in enumerate(_lines(text)):
        if number == 0 and (columns := _url_columns(line)) is not None:
            continue
        found = _url_row(line, columns or (0, 1))
        if found is None:
            problems.append(f"{where}: is {reprlib.repr(line)}, expected a caption, a tab and an http(s) URL")
        elif not has_word(found[0]):
            problems.append(f"{where}: field 'caption' is {found[0]!r}, expected a caption with a word in it")
        else:
            caption, url = found
            rows.setdefault(url, {"image_id": url, "file_name": url, "captions": []})["captions"].append(caption)
    if bad_rows is not None and bad_rows.skips:
        for problem in problems:
            bad_rows.add(CaptionFileError(f"{path}: {problem}"))
    elif problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise CaptionFileError(f"{path}: {len(problems)} lines cannot be used: {'; '.join(problems[:_SHOWN])}{more}")
    if not rows:
        raise CaptionFileError(f"{path}: no captions in it, expected at least one")
    return list(rows.values())
