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
from collections.abc import Iterable

from tokenizers import Regex, normalizers, pre_tokenizers

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


@functools.lru_cache(maxsize=1)
def word_rule() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """What brings text to one form, and what cuts it into words.

    Returns:
        `tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]`
    """
    one_form = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace("\u2019", "'"), normalizers.NFC()]
    )
    return one_form, pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)


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
    one_form, splitter = word_rule()
    pieces = (splitter.pre_tokenize_str(one_form.normalize_str(caption)) for caption in captions)
    return [[word for word, _ in caption] for caption in pieces]
