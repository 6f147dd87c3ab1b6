"""The word tokenizer: a plain `PreTrainedTokenizerFast`, built from a vocabulary or from captions.

The rule is that of ExpansionNet v2 (specification of the original, section 11): lower case; white space stripped on the
right; every character that is no letter, digit or underscore stands alone; split at spaces; the nine marks ' ` . ? ! ,
: - ; vanish. So hyphens and apostrophes split words, while quotes, brackets and a line break inside a caption are
words. One difference: a capital sigma becomes σ everywhere, where Python writes ς at the end of a word.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS: dict[str, str] = {"PAD": "PAD", "SOS": "SOS", "EOS": "EOS", "UNK": "UNK"}


def _rule() -> tuple[normalizers.Normalizer, pre_tokenizers.PreTokenizer]:
    # Python's white space, which knows the four separators \x1c-\x1f
    strip_right = normalizers.Replace(Regex(r"[\s\x1c-\x1f]+\z"), "")
    normalizer = normalizers.Sequence([normalizers.Lowercase(), strip_right])
    # Python's \w, spelled out: the \w of the regular expressions of tokenizers counts combining marks and leaves out ½
    # and ²
    other = Regex(r"[^\p{L}\p{N}_]")
    pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"['`.?!,:\-; ]"), behavior="removed"),
            pre_tokenizers.Split(other, behavior="isolated"),
        ]
    )
    return normalizer, pre_tokenizer


def split_words(captions: Iterable[str]) -> list[list[str]]:
    """The words of each caption by the rule above, without special tokens.

    Args:
        captions (`Iterable[str]`): raw captions.

    Returns:
        `list[list[str]]`

    Example:

    ```python
    >>> from hf_captioners.modeling.tokenization_words import split_words
    >>> split_words(["A man's T-shirt (red) & a wave."])
    [['a', 'man', 's', 't', 'shirt', '(', 'red', ')', '&', 'a', 'wave']]

    ```
    """
    normalizer, pre_tokenizer = _rule()
    pieces = (pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(caption)) for caption in captions)
    return [[word for word, _ in caption] for caption in pieces]


def build_vocabulary(captions: Iterable[str], min_count: int = 5) -> list[str]:
    """The vocabulary of training captions: words seen often enough and the special tokens, sorted by code point.

    Args:
        captions (`Iterable[str]`): raw training captions.
        min_count (`int`, defaults to 5): words seen less often become the unknown word.

    Returns:
        `list[str]`: the index of a word is its id.

    Raises:
        ValueError: no word is seen `min_count` times.
    """
    counts = Counter(word for words in split_words(captions) for word in words)
    frequent = {word for word, count in counts.items() if count >= min_count}
    if not frequent:
        raise ValueError(
            f"no word of the captions is seen min_count={min_count} times ({len(counts)} different words)."
        )
    return sorted(frequent | set(SPECIAL_TOKENS.values()))


def build_word_tokenizer(
    vocabulary: Sequence[str],
    *,
    special: Mapping[str, int] | None = None,
    model_max_length: int = 74,
) -> PreTrainedTokenizerFast:
    """A tokenizer of words. `tokenizer(caption).input_ids` is start token, words, end token.

    Args:
        vocabulary (`Sequence[str]`): the words; the index is the id.
        special (`Mapping[str, int]`, *optional*): ids of "PAD", "SOS", "EOS" and "UNK" where the words at those ids
            have other names. By default they are looked up by name.
        model_max_length (`int`, defaults to 74): longest caption in tokens, start and end included.

    Returns:
        `PreTrainedTokenizerFast`: its special tokens are pad, bos ("SOS"), eos and unk. Words of a caption that look
        like a special token ("EOS", a camera) are words.

    Raises:
        ValueError: a word stands twice in the vocabulary, or a special token is missing or out of range.

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
    backend.normalizer, backend.pre_tokenizer = _rule()
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
