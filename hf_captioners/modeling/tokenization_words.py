"""The word tokenizer: a plain `PreTrainedTokenizerFast`, built from a vocabulary or from captions.

How captions are cut into words is said by a rule, and stands in the tokenizer's file:

- `"spaces"`, the default, cuts at white space. Lower case; white space stripped on the right; every character that is
  no letter, digit or underscore stands alone; the nine marks ' ` . ? ! , : - ; vanish. So hyphens and apostrophes split
  words, while quotes, brackets and a line break inside a caption are words. Text is composed first (NFC), and a
  combining mark or joiner belongs to the character before it, so that words of any script with spaces stay whole.
- `"unicode"` is the rule of the metrics' `tokenizer="unicode"`, for any language (see `captioner_words.py`): without
  punctuation, with apostrophes inside words, and in scripts without spaces (Chinese, Japanese, Thai, …) single
  characters. Their captions are written without spaces, too.
- a function of a library that finds words in scripts without spaces, or its name, as `"jieba:lcut"`. It makes the
  vocabulary; as a function cannot be saved, the tokenizer then takes the longest word of its vocabulary, from left to
  right, and the rule `"unicode"` for the rest.
- `"expansionnet_v2"` is the original's for converted checkpoints (specification of the original, section 11):
  `"spaces"` without the composed form, where combining marks stand alone. One difference from the original: a capital
  sigma becomes σ everywhere, where Python writes ς at the end of a word.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .captioner_words import (
    ATTACHED,
    Segmenter,
    known_word_rule,
    load_function,
    segment_words,
    split_unicode_words,
    word_decoder,
    word_rule,
)

logger = logging.getLogger(__name__)

WordRule: TypeAlias = str | Segmenter
RULES = ("spaces", "unicode", "expansionnet_v2")
SPECIAL_TOKENS: dict[str, str] = {"PAD": "PAD", "SOS": "SOS", "EOS": "EOS", "UNK": "UNK"}
WORD_ORDERS = ("code_point", "frequency")
MANY_UNKNOWN = 0.05
"""Share of unknown words above which `build_vocabulary` warns."""
_ADVICE = "lower min_count, or choose another rule of words (scripts without spaces need word_rule 'unicode')"


def _spaces_rule(original: bool) -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    """The rule `"spaces"`, or the original's."""
    # Python's white space, which knows the four separators \x1c-\x1f
    strip_right = normalizers.Replace(Regex(r"[\s\x1c-\x1f]+\z"), "")
    steps = [normalizers.Lowercase(), strip_right]
    # Python's \w, spelled out: the \w of the regular expressions of tokenizers counts combining marks and leaves out ½
    # and ²
    words = Regex(r"[^\p{L}\p{N}_]")
    if not original:
        steps = [normalizers.NFC(), normalizers.Lowercase(), normalizers.NFC(), strip_right]
        words = Regex(rf"[\p{{L}}\p{{N}}_](?:[\p{{L}}\p{{N}}_]|{ATTACHED})*|[^\p{{L}}\p{{N}}_]{ATTACHED}*")
    return normalizers.Sequence(steps), pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"['`.?!,:\-; ]"), behavior="removed"),
            pre_tokenizers.Split(words, behavior="isolated"),
        ]
    )


def _segmenter(rule: WordRule) -> Segmenter | None:
    """The function that a rule is or names; `None` for a rule of this module."""
    if not isinstance(rule, str):
        return rule
    return None if rule in RULES else load_function(rule, "rule of words", ", ".join(map(repr, RULES)))


def split_words(captions: Iterable[str], rule: WordRule = "spaces") -> list[list[str]]:
    """The words of each caption, without special tokens.

    Args:
        captions (`Iterable[str]`): raw captions.
        rule (`str` or `Callable`, defaults to `"spaces"`): see above.

    Returns:
        `list[list[str]]`

    Raises:
        ValueError: an unknown rule.

    Example:

    ```python
    >>> from hf_captioners.modeling.tokenization_words import split_words
    >>> split_words(["A man's T-shirt (red) & a wave."])
    [['a', 'man', 's', 't', 'shirt', '(', 'red', ')', '&', 'a', 'wave']]
    >>> split_words(["एक कुत्ता"]), split_words(["一只狗。"], "unicode")
    ([['एक', 'कुत्ता']], [['一', '只', '狗']])

    ```
    """
    segmenter = _segmenter(rule)
    if segmenter is not None:
        return segment_words(captions, segmenter)
    if rule == "unicode":
        return split_unicode_words(captions)
    normalizer, pre_tokenizer = _spaces_rule(rule == "expansionnet_v2")
    pieces = (pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(caption)) for caption in captions)
    return [[word for word, _ in caption] for caption in pieces]


def build_vocabulary(
    captions: Iterable[str], min_count: int = 5, rule: WordRule = "spaces", order: str = "code_point"
) -> list[str]:
    """The vocabulary of training captions: words seen often enough and the special tokens, sorted.

    The share of the captions' words that become the unknown word is logged, as a warning above 5 %.

    Args:
        captions (`Iterable[str]`): raw training captions.
        min_count (`int`, defaults to 5): words seen less often become the unknown word.
        rule (`str` or `Callable`, defaults to `"spaces"`): what a word is, see above. Give [`build_word_tokenizer`] the
            same one.
        order (`str`, defaults to `"code_point"`): of the ids; or `"frequency"`, special tokens first and then the most
            frequent word, for models to which a word's number means something (the bits of SCD-Net).

    Returns:
        `list[str]`: the index of a word is its id.

    Raises:
        ValueError: no word is seen `min_count` times; an unknown rule or order.

    Example:

    ```python
    >>> from hf_captioners import build_vocabulary
    >>> build_vocabulary(["a wave", "a zebra", "a zebra"], min_count=1, order="frequency")[4:]
    ['a', 'zebra', 'wave']

    ```
    """
    if order not in WORD_ORDERS:
        raise ValueError(f"order must be one of {', '.join(WORD_ORDERS)}, not {order!r}.")
    counts = Counter(word for words in split_words(captions, rule) for word in words)
    frequent = {word for word, count in counts.items() if count >= min_count}
    if not frequent:
        raise ValueError(
            f"no word of the captions is seen min_count={min_count} times ({len(counts)} different words); {_ADVICE}."
        )
    unknown = 1 - sum(counts[word] for word in frequent) / counts.total()
    many = unknown > MANY_UNKNOWN
    logger.log(
        logging.WARNING if many else logging.INFO,
        "vocabulary of %d words seen %d times or more; %.1f %% of the %d words of the captions are unknown%s",
        len(frequent),
        min_count,
        100 * unknown,
        counts.total(),
        f"; {_ADVICE}" if many else "",
    )
    special = set(SPECIAL_TOKENS.values())
    if order == "frequency":
        return [*sorted(special), *sorted(frequent - special, key=lambda word: (-counts[word], word))]
    return sorted(frequent | special)


def build_word_tokenizer(
    vocabulary: Sequence[str],
    *,
    special: Mapping[str, int] | None = None,
    model_max_length: int = 74,
    rule: WordRule = "spaces",
) -> PreTrainedTokenizerFast:
    """A tokenizer of words. `tokenizer(caption).input_ids` is start token, words, end token.

    Args:
        vocabulary (`Sequence[str]`): the words; the index is the id.
        special (`Mapping[str, int]`, *optional*): ids of "PAD", "SOS", "EOS" and "UNK" where the words at those ids
            have other names. By default they are looked up by name.
        model_max_length (`int`, defaults to 74): longest caption in tokens, start and end included.
        rule (`str` or `Callable`, defaults to `"spaces"`): how captions are cut into words, see above.

    Returns:
        `PreTrainedTokenizerFast`: its special tokens are pad, bos ("SOS"), eos and unk. Words of a caption that look
        like a special token ("EOS", a camera) are words.

    Raises:
        ValueError: a word stands twice in the vocabulary, or a special token is missing or out of range; an
            unknown rule.

    Example:

    ```python
    >>> from hf_captioners import build_vocabulary, build_word_tokenizer
    >>> tokenizer = build_word_tokenizer(build_vocabulary(["a red wave", "a blue wave"], min_count=1))
    >>> tokenizer.decode(tokenizer("A blue WAVE!").input_ids, skip_special_tokens=True)
    'a blue wave'

    ```
    """
    ids = {word: index for index, word in enumerate(vocabulary)}
    if len(ids) != len(vocabulary):
        twice = [word for word, count in Counter(vocabulary).items() if count > 1]
        raise ValueError(f"the vocabulary has words that stand twice: {twice[:10]}.")
    names = {role: _special_word(role, vocabulary, ids, special) for role in SPECIAL_TOKENS}
    if len(set(names.values())) != len(names):
        raise ValueError(f"the special tokens must be four different words, not {names}.")
    backend = Tokenizer(models.WordLevel(ids, unk_token=names["UNK"]))
    if rule == "unicode" or _segmenter(rule) is not None:
        backend.normalizer, backend.pre_tokenizer = word_rule()[0], known_word_rule(vocabulary)
        backend.decoder = word_decoder()
    else:
        backend.normalizer, backend.pre_tokenizer = _spaces_rule(rule == "expansionnet_v2")
    sos, eos = names["SOS"], names["EOS"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{sos} $A {eos}", special_tokens=[(sos, ids[sos]), (eos, ids[eos])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=names["PAD"],
        bos_token=sos,
        eos_token=eos,
        unk_token=names["UNK"],
        model_max_length=model_max_length,
        padding_side="right",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )


def special_token_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """The fields of a captioner's configuration that name a tokenizer's special tokens.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): see `build_word_tokenizer`.

    Returns:
        `dict[str, int]`: `pad_token_id`, `bos_token_id`, `eos_token_id` and `unk_token_id`.
    """
    return {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "unk_token_id": tokenizer.unk_token_id,
    }


def _special_word(
    role: str, vocabulary: Sequence[str], ids: Mapping[str, int], special: Mapping[str, int] | None
) -> str:
    if special is None:
        if SPECIAL_TOKENS[role] not in ids:
            raise ValueError(
                f"the vocabulary has no word {SPECIAL_TOKENS[role]!r}; give special={{{role!r}: id, …}} with the ids "
                f"of {', '.join(SPECIAL_TOKENS)}."
            )
        return SPECIAL_TOKENS[role]
    if role not in special:
        raise ValueError(f"special has no id for {role!r}; it needs {', '.join(SPECIAL_TOKENS)}.")
    if not 0 <= special[role] < len(vocabulary):
        raise ValueError(f"special[{role!r}]={special[role]} is not an id of the {len(vocabulary)} words.")
    return vocabulary[special[role]]
