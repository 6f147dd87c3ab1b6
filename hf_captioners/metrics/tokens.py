"""The words of captions, as metrics compare them.

Three ways to cut a caption into words, all in lower case and without punctuation, after the text was brought to the
composed form of Unicode (NFC), so that the same letters in other bytes are the same word:

- `"ptb"`, the default, is that of the COCO evaluation, made for English ([`ptb_tokenize`]). Where the reference would
  lose letters of a caption or tear marks off them (scripts or characters that it does not know), the caption is cut by
  the next rule instead.
- `"unicode"` is for any language: words after Unicode Standard Annex #29, single characters in scripts without spaces
  (see `modeling/captioner_words.py`).
- a function of your own or of a library, `str -> list of words`, or its name: `"jieba:lcut"`,
  `"pythainlp:word_tokenize"`. It gets text in one form; what has neither letter nor digit is left out of its words.

The choice is in the evaluation signature.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.metadata
import inspect
import itertools
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any, TypeAlias

from .inputs import MetricInputError, check_captions, check_pairs, describe
from .ptb.characters import LETTERS, MARKS
from .ptb.tokenizer import ptb_tokenize

Tokenizer: TypeAlias = str | Callable[[str], Sequence[str]]

_JOINERS = "\u200c\u200d"
_KNOWN_LETTER = re.compile(f"[A-Za-z{LETTERS}]")
_KNOWN_MARK = re.compile(f"[{MARKS}\ufe00-\ufe0f]")  # selectors of variants change no letter
# Chinese and Japanese; Thai, Lao, Burmese and Khmer: longer runs than words are
_UNCUT = re.compile("[\u3041-\u3096\u3400-\u4dbf\u4e00-\u9fff]{8,}|[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]{16,}")


def tokenize(captions: Sequence[str], tokenizer: Tokenizer = "ptb", *, in_sequence: bool = False) -> list[str]:
    """Cut captions into words.

    Args:
        captions (`Sequence[str]`): as they were written.
        tokenizer (`str` or `Callable`, defaults to `"ptb"`): `"ptb"`, `"unicode"`, or a function or its name as
            `module:function`.
        in_sequence (`bool`, defaults to `False`): with `"ptb"`, see [`ptb_tokenize`].

    Returns:
        `list[str]`: for each caption its words joined by single spaces.

    Raises:
        MetricInputError: a caption that is not a string, or a function that gives no words.
        ValueError: an unknown tokenizer, or `in_sequence` with another one than `"ptb"`.

    Example:

    ```python
    >>> from hf_captioners.metrics import tokenize
    >>> tokenize(["A dog's bone (new).", "බල්ලා දුවනවා."])
    ["a dog 's bone -lrb- new -rrb-", 'බල්ලා දුවනවා']
    >>> tokenize(["一只狗。", "L'homme est là."], "unicode")
    ['一 只 狗', "l'homme est là"]
    >>> tokenize(["Two-word caption"], lambda text: text.split("-"))
    ['two word caption']

    ```
    """
    check_captions(captions)
    if in_sequence and tokenizer != "ptb":
        raise ValueError(f"in_sequence=True is about the tokenizer 'ptb', not {tokenizer!r}")
    if tokenizer == "ptb":
        return _ptb_or_unicode([unicodedata.normalize("NFC", caption) for caption in captions], in_sequence)
    if tokenizer == "unicode":
        return _unicode(captions)
    function = _function(tokenizer)
    return [_words(function(_composed_lower(caption)), caption, tokenizer) for caption in captions]


def tokenizer_name(tokenizer: Tokenizer = "ptb", *, in_sequence: bool = False) -> str:
    """The name of a tokenizer in evaluation signatures.

    Args:
        tokenizer (`str` or `Callable`), in_sequence (`bool`): see [`tokenize`].

    Returns:
        `str`: of a function `module:function`, with the version of the package that it comes from.

    Raises:
        ValueError: an unknown tokenizer; a function without a name of its own, such as a lambda: its numbers could not
            be told from those of another one.

    Example:

    ```python
    >>> from hf_captioners.metrics.tokens import tokenizer_name
    >>> tokenizer_name("ptb"), tokenizer_name("shlex:split")
    ('ptb-lowercase-nopunct', 'shlex:split')

    ```
    """
    if in_sequence and tokenizer != "ptb":
        raise ValueError(f"in_sequence=True is about the tokenizer 'ptb', not {tokenizer!r}")
    if tokenizer == "ptb":
        return "ptb-lowercase-nopunct" + ("-in-sequence" if in_sequence else "")
    if tokenizer == "unicode":
        return "unicode-lowercase-nopunct"
    name = tokenizer if isinstance(tokenizer, str) else _name_of(tokenizer)
    _function(name)
    package = name.split(":")[0].split(".")[0]
    if package == "__main__":
        return f"{name}-{_hash_source(name)}"
    try:
        return f"{name}-{importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return name


def prepare_pairs(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenized: bool = False,
    image_ids: Sequence[Any] | None = None,
    in_sequence: bool = False,
    tokenizer: Tokenizer = "ptb",
) -> tuple[list[str], list[list[str]]]:
    """The captions checked and as tokens joined by spaces, the form in which the reference tools score them.

    Args:
        predictions (`Sequence[str]`), references (`Sequence[Sequence[str]]`), image_ids: see [`check_pairs`].
        tokenized (`bool`, defaults to `False`): they are tokens joined by spaces already.
        in_sequence (`bool`, defaults to `False`), tokenizer (`str` or `Callable`, defaults to `"ptb"`): see
            [`tokenize`].

    Returns:
        `tuple[list[str], list[list[str]]]`: predictions and references.

    Raises:
        MetricInputError: see [`check_pairs`].
        ValueError: see [`tokenize`].
    """
    check_pairs(predictions, references, image_ids)
    if tokenized:
        return list(predictions), [list(image_references) for image_references in references]
    flat = iter(
        tokenize(
            [reference for image_references in references for reference in image_references],
            tokenizer,
            in_sequence=in_sequence,
        )
    )
    tokens = [list(itertools.islice(flat, len(image_references))) for image_references in references]
    return tokenize(predictions, tokenizer, in_sequence=in_sequence), tokens


def tokenizer_setting(tokenizer: Tokenizer, tokenized: bool) -> dict[str, str]:
    """The entry of a metric's settings that says how captions were cut; none where they came as tokens."""
    return {} if tokenized else {"tokenizer": tokenizer_name(tokenizer)}


def _ptb_or_unicode(captions: list[str], in_sequence: bool) -> list[str]:
    lines = ptb_tokenize(captions, in_sequence=in_sequence)
    foreign = [position for position, caption in enumerate(captions) if not caption.isascii()]
    lost = [position for position in foreign if _loses_letters(captions[position])]
    for position, line in zip(lost, _unicode([captions[position] for position in lost]), strict=True):
        lines[position] = line
    for position in foreign:
        uncut = _UNCUT.search(lines[position])
        if uncut is not None:
            warnings.warn(
                f"captions such as {describe(captions[position])} have no spaces between words, so that {uncut[0]!r} "
                "counts as one word; give tokenizer='unicode' for single characters, or a function that finds words, "
                "such as tokenizer='jieba:lcut'",
                stacklevel=2,
            )
            break
    return lines


def _unicode(captions: Sequence[str]) -> list[str]:
    from ..modeling.captioner_words import split_unicode_words

    return [" ".join(words) for words in split_unicode_words(captions)]


def _loses_letters(caption: str) -> bool:
    """Tell whether the reference drops letters of a caption, or marks and joiners behind letters."""
    after_letter = False
    for character in caption:
        kind = unicodedata.category(character)[0]
        if kind == "L":
            if not _is_known(character):
                return True
            after_letter = True
        elif after_letter and (character in _JOINERS or (kind == "M" and not _KNOWN_MARK.match(character))):
            return True
        else:
            after_letter = after_letter and kind == "M"
    return False


@functools.lru_cache(maxsize=1 << 14)
def _is_known(letter: str) -> bool:
    """Tell whether a letter is left to the reference, as are styled letters (mathematical bold), even lost ones."""
    return bool(_KNOWN_LETTER.match(letter)) or unicodedata.decomposition(letter).startswith("<")


def _composed_lower(caption: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", caption).lower())


def _function(tokenizer: Tokenizer) -> Callable[[str], Sequence[str]]:
    if not isinstance(tokenizer, str):
        return tokenizer
    from ..modeling.captioner_words import load_function

    return load_function(tokenizer, "tokenizer", "'ptb', 'unicode'")


def _name_of(function: Callable[[str], Sequence[str]]) -> str:
    """The name `module:function` by which a function can be imported."""
    if isinstance(function, (FunctionType, BuiltinFunctionType)):
        name = f"{function.__module__}:{function.__qualname__}"
        with contextlib.suppress(ValueError):
            if _function(name) is function:
                return name
    raise ValueError(
        f"tokenizer {function!r} has no name by which the evaluation signature could tell it from others; give a "
        "function of a module, or its name as 'module:function'"
    )


def _hash_source(name: str) -> str:
    """A hash of the source of a function of a script or notebook, where the same name may later be another function."""
    try:
        return hashlib.sha256(inspect.getsource(_function(name)).encode()).hexdigest()[:12]
    except (OSError, TypeError) as error:
        raise ValueError(f"tokenizer {name!r}: {error}; put the function into a module") from error


def _words(words: Any, caption: str, tokenizer: Tokenizer) -> str:
    if isinstance(words, str) or not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
        raise MetricInputError(
            f"tokenizer {tokenizer!r} makes {describe(words)} of {describe(caption)}, expected words"
        )
    pieces = (piece for word in words for piece in word.split())
    return " ".join(piece for piece in pieces if any(map(str.isalnum, piece)))
