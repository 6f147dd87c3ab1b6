"""The tokens of the COCO caption evaluation, without Java.

Equal to Stanford's `PTBTokenizer -preserveLines -lowerCase` (stanford-corenlp 3.4.1), and then to the removal of
punctuation, as coco-caption and pycocoevalcap do it. The rules are in `rules.py`. `-LRB-` is on the removal list of
the reference, but its tokens are in lower case by then: "-lrb-" stays here as there.

Where this deliberately differs:

1. A caption is one caption. The reference writes all captions into one file, a line each, and replaces "\\n" only:
   "\\r", "\\v", "\\f", U+2028 and U+2029 begin another line there, and a tag such as `<a b="` may swallow following
   lines; all later captions are then shifted. Here they are spaces, and no token is longer than its caption.
2. An abbreviation at the end of a caption ("t.v.", "plan B.") is read by the reference depending on the next line.
   Alone, a caption is read as if the next one began with "A ", as most captions do. `in_sequence=True` reads the
   next caption, as the reference does.

Known differences that remain: a capital sigma beside Chinese or Japanese characters or a digit may become the other
small sigma; letters that Unicode got after version 6 are upper or lower case by Python's tables; a lone surrogate,
which the reference refuses, is dropped.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from ..inputs import MetricInputError, check_captions
from .rules import Rule, Write, abbreviations, token_rules

REMOVED = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""The tokens that the evaluation leaves out."""

_USUAL_NEXT = "A "
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\v\f\u2028\u2029", " "))
_BEYOND = re.compile("[\U00010000-\U0010ffff]")  # one character here, two in the reference
_HALF = re.compile("[\ud800-\udfff]")
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "gimme": "gim me",
    "lemme": "lem me",
    "wanna": "wan na",
}
_PLAIN_CAPTION = re.compile(r"[A-Za-z, \t\n]*\.?[ \t\n]*")
_PLAIN_WORD = re.compile(r"[ \t]*([A-Za-z]+)(?=,?[ \n])")  # no rule goes on after a space that follows letters


def ptb_tokenize(captions: Sequence[str], *, in_sequence: bool = False) -> list[str]:
    """Tokenise captions as the COCO caption evaluation does: lower case, cut into tokens, without punctuation.

    Args:
        captions (`Sequence[str]`): the captions; line breaks inside of one are spaces.
        in_sequence (`bool`, defaults to `False`): read an abbreviation at the end of a caption depending on the next
            caption, as one run of the reference over these captions does. By default no caption influences another.

    Returns:
        `list[str]`: for each caption its tokens joined by single spaces.

    Raises:
        MetricInputError: a caption that is not a string, or one string in place of several.

    Example:

    ```python
    >>> from hf_captioners.metrics.ptb.tokenizer import ptb_tokenize
    >>> ptb_tokenize(["A dog's bone (new), isn't it?", "Two cats."])
    ["a dog 's bone -lrb- new -rrb- is n't it", 'two cats']

    ```
    """
    check_captions(captions)
    lines = []
    for position, caption in enumerate(captions):
        line = _plain_caption(caption)
        if line is None:
            line = _any_caption(caption, _following(captions, position) if in_sequence else f"\n{_USUAL_NEXT}")
        lines.append(line)
    return lines


def ptb_tokens(caption: str, next_caption: str | None = _USUAL_NEXT) -> list[str]:
    """All tokens of a caption, punctuation included.

    Args:
        caption (`str`): the caption.
        next_caption (`str`, *optional*, defaults to `"A "`): the next line, on which the reading of an abbreviation
            at the end depends; `None` where the text ends.

    Returns:
        `list[str]`: the tokens in lower case. A telephone number, a number with a fraction or a tag is one token;
            spaces within are U+00A0.

    Raises:
        MetricInputError: a caption that is not a string.

    Example:

    ```python
    >>> from hf_captioners.metrics.ptb.tokenizer import ptb_tokens
    >>> ptb_tokens('"Stop," says the U.S. sign.')
    ['``', 'stop', ',', "''", 'says', 'the', 'u.s.', 'sign', '.']

    ```
    """
    if not isinstance(caption, str):
        raise MetricInputError(f"caption: expected a string, not {caption!r} ({type(caption).__name__})")
    return _tokens(caption, "" if next_caption is None else f"\n{next_caption.translate(_LINE_BREAKS)}\n")


def _plain_caption(caption: str) -> str | None:
    """The tokens of a caption of words, commas and a final stop, whose outcome is certain; otherwise `None`."""
    if _PLAIN_CAPTION.fullmatch(caption) is None:
        return None
    words = caption.lower().replace(",", " ").split()
    if words and words[-1][-1] == ".":
        last_word = words.pop()[:-1]
        if _is_abbreviation(last_word):
            return None
        if last_word:
            words.append(last_word)
    if _SPLIT.keys().isdisjoint(words):
        return " ".join(words)
    return " ".join(_SPLIT.get(word, word) for word in words)


@functools.lru_cache(maxsize=1 << 14)
def _is_abbreviation(word: str) -> bool:
    return len(word) == 1 or abbreviations().fullmatch(word) is not None


@functools.lru_cache(maxsize=1 << 14)
def _any_caption(caption: str, following: str) -> str:
    line = " ".join(_tokens(caption, following)).rstrip()  # the reference strips the line before it removes
    return " ".join(token for token in line.split(" ") if token not in REMOVED)


def _following(captions: Sequence[str], position: int) -> str:
    """The text that the reference reads after a caption: the next lines up to one that is not blank."""
    text = ""
    for after in range(position + 1, len(captions)):
        text += "\n" + captions[after].translate(_LINE_BREAKS)
        if not text.isspace():
            return text + "\n" * (after + 1 < len(captions))
    return text


def _tokens(caption: str, following: str) -> list[str]:
    caption = _BEYOND.sub(_halves, caption.translate(_LINE_BREAKS))
    text, end, position = caption + following, len(caption), 0
    rules = [rule for rule in token_rules(text.isascii()) if rule.needs in text]
    tokens = []
    while position < end:
        word = _PLAIN_WORD.match(text, position, end + 1)
        if word and word[1].lower() not in _SPLIT:
            tokens.append(word[1].lower())
            position = word.end()
            continue
        stop, write = _longest(rules, text, position, end)
        token = write(text[position:stop]) if write else ""
        if token:
            tokens.append(_lower(token.replace(" ", "\u00a0")))
        position = stop
    if _HALF.search(caption):
        return [token.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass") for token in tokens]
    return tokens


def _halves(character: re.Match[str]) -> str:
    code = ord(character[0]) - 0x10000
    return chr(0xD800 + (code >> 10)) + chr(0xDC00 + (code & 0x3FF))


def _longest(rules: list[Rule], text: str, position: int, end: int) -> tuple[int, Write | None]:
    """The end of the token at `position`, and how it is written; a character that begins no token is dropped."""
    longest, stop, chosen = position, position + 1, None
    for _, pattern, write in rules:
        match = pattern.match(text, position)
        if match and match.end() > longest and match.end(pattern.groups) <= end:
            longest, stop, chosen = match.end(), match.end(pattern.groups), write
    return stop, chosen


def _lower(token: str) -> str:
    """The token in lower case; capital sigma becomes the final one if no letter with case follows in the token."""
    lowered = token.lower()
    if "\u03a3" not in token or len(lowered) != len(token):
        return lowered
    cased = [position for position, c in enumerate(token) if c.upper() != c.lower()]
    final = cased[-1] if len(cased) > 1 else -1
    return "".join(
        ("\u03c2" if position == final else "\u03c3") if token[position] == "\u03a3" else c
        for position, c in enumerate(lowered)
    )
