r"""A word in any language: the rule that word tokenizers and metrics share, after Unicode Standard Annex #29.

Text is brought to one form first: composed (NFC), in lower case, with straight apostrophes. Then:

- a word is a run of letters, digits and underscores; a combining mark (category M) and a joiner belong to the letter
  before them, so that `कुत्ता` and a decomposed `chó` are one word each;
- an apostrophe, a middle dot, a geresh or gershayim between letters, and a point or a comma between digits, belong to
  the word (`l'homme`, `3.5`);
- in scripts that put no spaces between words (Chinese characters, Hiragana, Thai, Lao, Khmer, Burmese, Tai) each
  letter with its marks is a word of its own, as the annex has it where no dictionary is at hand; Katakana is taken in
  runs;
- everything else separates words and vanishes: spaces, punctuation, symbols, emoji.

One deviation from the annex: a point or a colon between letters separates (`grass.Two`).
"""

from __future__ import annotations

import functools
import importlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from tokenizers import Regex, decoders, normalizers, pre_tokenizers

Segmenter: TypeAlias = Callable[[str], Sequence[str]]

# scripts without spaces between words, inside of [...]
SPACELESS = r"\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tai_Le}\p{New_Tai_Lue}\p{Tai_Tham}\p{Tai_Viet}"
# what belongs to the letter before: marks, the vowel am of Thai and Lao (a letter by category), joiners
ATTACHED = r"[\p{M}\u0e33\u0eb3\u200c\u200d]"

_KATAKANA = r"\p{Katakana}\u30fc"
_LETTER = rf"(?![{SPACELESS}{_KATAKANA}])[\p{{L}}\p{{N}}_]{ATTACHED}*"
_JOINED = r"(?:(?<=\p{N})[.,](?=\p{N})|['\u00b7\u05f3\u05f4](?=\p{L}))"

WORD = "|".join(
    [
        rf"(?=[\p{{L}}\p{{N}}])[{SPACELESS}]{ATTACHED}*",
        rf"(?:[{_KATAKANA}]{ATTACHED}*)+",
        rf"(?:{_LETTER})+(?:{_JOINED}(?:{_LETTER})+)*",
    ]
)
"""The rule as a regular expression of the `tokenizers` library (Oniguruma), for text in one form."""

_RUN = rf"(?=[\p{{L}}\p{{N}}])(?:[{SPACELESS}]{ATTACHED}*)+"
_NO_SPACE = rf"(?<=[{SPACELESS}\p{{M}}]) (?=[{SPACELESS}{_KATAKANA}])|(?<=[{_KATAKANA}]) (?=[{SPACELESS}])"


@functools.lru_cache(maxsize=1)
def word_rule() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """Parts that bring text to one form and that cut it into words.

    Returns:
        `tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]`
    """
    normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace("\u2019", "'"), normalizers.NFC()]
    )
    return normalizer, pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)


def split_unicode_words(captions: Iterable[str]) -> list[list[str]]:
    """The words of captions in any language.

    Args:
        captions (`Iterable[str]`): as they were written.

    Returns:
        `list[list[str]]`

    Example:

    ```python
    >>> from hf_captioners.modeling.captioner_words import split_unicode_words
    >>> split_unicode_words(["L’homme court (3,5 km) !", "एक कुत्ता दौड़ रहा है।", "一只狗。"])
    [["l'homme", 'court', '3,5', 'km'], ['एक', 'कुत्ता', 'दौड़', 'रहा', 'है'], ['一', '只', '狗']]

    ```
    """
    normalizer, splitter = word_rule()
    pieces = (splitter.pre_tokenize_str(normalizer.normalize_str(caption)) for caption in captions)
    return [[word for word, _ in caption] for caption in pieces]


def known_word_rule(vocabulary: Iterable[str]) -> pre_tokenizers.PreTokenizer:
    """Pre-tokenizer that cuts normalised text into words, those of a vocabulary being known: in scripts without spaces
    the longest known word is taken, and a single letter where none begins.

    Args:
        vocabulary (`Iterable[str]`): the words.

    Returns:
        `pre_tokenizers.PreTokenizer`

    Example:

    ```python
    >>> from hf_captioners.modeling.captioner_words import known_word_rule
    >>> [word for word, _ in known_word_rule(["小狗", "草地"]).pre_tokenize_str("一只小狗在草地上。")]
    ['一', '只', '小狗', '在', '草地', '上']

    ```
    """
    _, splitter = word_rule()
    by_letter: dict[str, list[str]] = defaultdict(list)
    for word in sorted(vocabulary, key=len, reverse=True):
        pieces = [piece for piece, _ in splitter.pre_tokenize_str(word)]
        if len(pieces) > 1 and "".join(pieces) == word:
            by_letter[word[0]].append(re.escape(word[1:]))
    known = [f"{re.escape(letter)}(?:{'|'.join(rest)})(?!{ATTACHED})" for letter, rest in by_letter.items()]
    return pre_tokenizers.Split(Regex("|".join([*known, WORD])), behavior="removed", invert=True)


def word_decoder() -> decoders.Decoder:
    """Decoder that joins words to text: with spaces, but for scripts that have none.

    Returns:
        `decoders.Decoder`
    """
    with_spaces = decoders.WordPiece(prefix="\0", cleanup=False)  # the prefix is in no word
    return decoders.Sequence([with_spaces, decoders.Fuse(), decoders.Replace(Regex(_NO_SPACE), "")])


def segment_words(captions: Iterable[str], segmenter: Segmenter) -> list[list[str]]:
    """The words of captions where a function finds those of scripts without spaces; elsewhere the rule does.

    Args:
        captions (`Iterable[str]`): as they were written.
        segmenter (`Callable`): text in one form to words, such as `jieba.lcut`.

    Returns:
        `list[list[str]]`

    Raises:
        TypeError: the function gives something else than words.
    """
    normalizer, _ = word_rule()
    splitter = pre_tokenizers.Split(Regex(f"{_RUN}|{WORD}"), behavior="removed", invert=True)
    words: list[list[str]] = []
    for caption in captions:
        pieces: Any = segmenter(normalizer.normalize_str(caption))
        if isinstance(pieces, str) or not all(isinstance(piece, str) for piece in pieces):
            raise TypeError(f"segmenter {segmenter!r} makes {pieces!r:.80} of {caption!r:.80}, expected words.")
        words.append([word for piece in pieces for word, _ in splitter.pre_tokenize_str(piece)])
    return words


def load_function(name: str, what: str, others: str) -> Callable[..., Any]:
    """Import a function by its name.

    Args:
        name (`str`): `module:function`.
        what (`str`): what it is for, for messages.
        others (`str`): what else would be right, for messages.

    Returns:
        `Callable`

    Raises:
        ValueError: it is no such name, or there is no such function.

    Example:

    ```python
    >>> from hf_captioners.modeling.captioner_words import load_function
    >>> load_function("shlex:split", "tokenizer", "'ptb'")("a dog")
    ['a', 'dog']

    ```
    """
    module, colon, path = name.partition(":")
    if not (module and colon and path):
        raise ValueError(f"no {what} {name!r}; expected {others} or 'module:function'")
    try:
        value: Any = importlib.import_module(module)
        for part in path.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{what} {name!r} cannot be imported: {error}") from error
    if not callable(value):
        raise ValueError(f"{what} {name!r} is a {type(value).__name__}, expected a function of a caption")
    return value
