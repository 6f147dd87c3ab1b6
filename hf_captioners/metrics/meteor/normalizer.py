"""The words of an English caption as METEOR 1.5 cuts them (its option `-norm`).

The scorer tokenises its input once more, PTB tokens included: "well-known" becomes two words, "'s" becomes "'"
and "s". The rules are like those of the tokenizer of the Moses toolkit (Koehn et al., 2007); they were established by
comparing words with those of the published program, on COCO captions and on random strings. A rule consumes the
characters on both sides of its mark, so that of two marks around one character only the first is treated ("a-b-c"
becomes "a b-c"); the order of the rules matters too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Latin to U+017E, Cyrillic, phonetic extensions: anything else but digits and a few marks is a word of its own
_LETTER = "A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017e\u0400-\u0527\u1d00-\u1d7f\ua640-\ua66e\ua67e-\ua697"
_SPACE = " \t\n\f\r"
_UNICODE_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
_CONTROL = "".join(map(chr, range(33)))

_SIMPLE = re.compile("[a-z0-9 ]*")  # what no rule changes, as nearly all PTB-tokenised captions
_MARKS = (("“", '"'), ("”", '"'), ("‘", "'"), ("’", "'"), ("`", "'"), ("''", '"'), ("–", " - "))
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"([^{_LETTER}0-9{_SPACE}\v.',-])", r" \1 "),
        (r"([^0-9]),([^0-9])", r"\1 , \2"),
        (r"([0-9]),([^0-9])", r"\1 , \2"),
        (r"([^0-9]),([0-9])", r"\1 , \2"),
        (r"--", "-"),
        (r"(\.\.+)", r" \1 "),
        (rf"([{_LETTER}0-9.])-([{_LETTER}0-9])", r"\1 \2"),
        (rf"([^{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([^{_LETTER}0-9])'([{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([^{_LETTER}])", r"\1 ' \2"),
        (rf"([{_LETTER}])'([{_LETTER}])", r"\1 '\2"),
        (r"([0-9])'(s)", r"\1 '\2"),
    )
)
_WORDS = re.compile(f"[^{_SPACE}]+")
_ENDS_WITH_POINT = re.compile(r".*[^.].*\.", re.DOTALL)
_HAS_LETTER = re.compile(f"[{_LETTER}]")


class MeteorNormalizer:
    """The tokenizer that cuts captions into the words METEOR compares.

    Args:
        abbreviations (`Iterable[str]`): words that keep a final point, such as `"Mr"`; the case counts.
        before_numbers (`Iterable[str]`): words that keep it before a number only, such as `"No"`.

    Example:

    ```python
    >>> from hf_captioners.metrics.meteor.normalizer import MeteorNormalizer
    >>> normalizer = MeteorNormalizer(["Mr"], ["No"])
    >>> normalizer("Mr. Smith's well-known U.S. cat (50% off)...")
    ['mr.', 'smith', "'s", 'well', 'known', 'us', 'cat', '(', '50', '%', 'off', ')', '...']

    ```
    """

    def __init__(self, abbreviations: Iterable[str] = (), before_numbers: Iterable[str] = ()) -> None:
        self.abbreviations = frozenset(abbreviations)
        self.before_numbers = frozenset(before_numbers)

    def __call__(self, text: str) -> list[str]:
        """The words of a caption.

        Args:
            text (`str`): a caption; line breaks count as spaces.

        Returns:
            `list[str]`: its words in lower case, maybe none.
        """
        if _SIMPLE.fullmatch(text):
            return text.split()
        for mark, replacement in _MARKS:
            text = text.replace(mark, replacement)
        text = f" {text} "
        for rule, replacement in _RULES:
            text = rule.sub(replacement, text)
        words = _WORDS.findall(text)
        words = [self._final_point(word, following) for word, following in zip(words, [*words, ""][1:], strict=True)]
        text = _UNICODE_SPACE.sub(" ", " ".join(words).lower()).strip(_CONTROL)
        return _WORDS.findall(text)

    def _final_point(self, word: str, following: str) -> str:
        """A word with its final point as it is, cut off, or gone with the other points of an acronym."""
        if not _ENDS_WITH_POINT.fullmatch(word):
            return word
        stem = word[:-1]
        if "." in stem and _HAS_LETTER.search(stem):
            return word.replace(".", "")  # u.s. -> us
        first = following[:1]
        keeps = stem in self.abbreviations or "a" <= first <= "z"
        keeps = keeps or (stem in self.before_numbers and "0" <= first <= "9")
        return word if keeps else f"{stem} ."
