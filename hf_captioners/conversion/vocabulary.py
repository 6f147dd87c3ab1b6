"""Word vocabularies as the original projects keep them, and the ids of their special tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .pickle_limits import show
from .safe_load import load_json, load_plain_pickle
from .stand_ins import DEFAULTDICT, NUMBERS
from .writing import ConversionError

SPECIAL_NAMES = ("PAD", "SOS", "EOS", "UNK")
_NAMED_BY = (("SOS", "sos_str"), ("EOS", "eos_str"))  # entries of the original pickle with the name of the word
_STAND_INS = {**DEFAULTDICT, **NUMBERS}

Vocabulary = str | Path | Sequence[str] | Mapping[str, Any]


@dataclass(frozen=True)
class WordVocabulary:
    """Words in the order of their ids, and which of them are special.

    Attributes:
        words (`list[str]`): index = id.
        special (`dict[str, int]`): ids of `PAD`, `SOS` (start), `EOS` (end) and `UNK` (unknown word).
    """

    words: list[str]
    special: dict[str, int]

    @property
    def special_tokens(self) -> dict[str, tuple[int, str]]:
        """The id and the word of each special token, by its name."""
        return {name: (index, self.words[index]) for name, index in self.special.items()}


def read_vocabulary(
    source: Vocabulary, special: Mapping[str, int] | None = None, default_special: Mapping[str, int] | None = None
) -> WordVocabulary:
    """Read a vocabulary and find its special tokens.

    Args:
        source (`str`, `Path`, `Sequence[str]` or `Mapping`):
            The words, index = id; or a file: a `.json` list of words, a `.json` object
            `{"vocab": [...], "special": {...}}`, or a pickle of plain values with `idx2word_list` and `word2idx_dict`
            (the exact inverse), and optionally `sos_str` and `eos_str`.
        special (`Mapping[str, int]`, *optional*):
            Ids of PAD, SOS, EOS and UNK; missing ones are looked up. Overrides the ids in the file.
        default_special (`Mapping[str, int]`, *optional*):
            The ids when `special` is `None` and the words have none of the four names.

    Returns:
        [`WordVocabulary`]

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError or CheckpointError: the file cannot be read, the words are not distinct strings, or the special
            tokens are unknown, missing, equal or out of range.

    Example:

    ```python
    >>> from hf_captioners.conversion.vocabulary import read_vocabulary
    >>> read_vocabulary(["EOS", "PAD", "SOS", "UNK", "dog"]).special
    {'PAD': 1, 'SOS': 2, 'EOS': 0, 'UNK': 3}
    >>> read_vocabulary(["</s>", "<pad>", "<s>", "<unk>", "dog"], {"PAD": 1, "SOS": 2, "EOS": 0, "UNK": 3}).words[1]
    '<pad>'

    ```
    """
    where = str(source) if isinstance(source, str | Path) else "vocabulary"
    content: Any = source
    if isinstance(source, str | Path):
        is_json = Path(source).suffix == ".json"
        content = load_json(source) if is_json else load_plain_pickle(source, stand_ins=_STAND_INS)
    names = {name: name for name in SPECIAL_NAMES}
    if isinstance(content, Mapping):
        special = content.get("special") if special is None else special
        names |= {name: content[key] for name, key in _NAMED_BY if isinstance(content.get(key), str)}
    words = _words(content, where)
    return WordVocabulary(words, _special_ids(words, special, default_special, names, where))


def _words(content: Any, where: str) -> list[str]:
    if isinstance(content, Mapping) and "idx2word_list" in content:
        words = content["idx2word_list"]
        _check_inverse(words, content.get("word2idx_dict"), where)
    elif isinstance(content, Mapping):
        if "vocab" not in content:
            key_list = ", ".join(show(key) for key in list(content)[:8])
            raise ConversionError(
                f"{where}: found {key_list}; expected 'vocab', or 'idx2word_list' and 'word2idx_dict'"
            )
        words = content["vocab"]
    else:
        words = content
    if not isinstance(words, list | tuple) or not words:
        raise ConversionError(f"{where}: expected a list of words, found {type(words).__name__} {show(words)}")
    ids: dict[str, int] = {}
    for index, word in enumerate(words):
        if not isinstance(word, str):
            raise ConversionError(f"{where}: word {index} is {show(word)}, expected a string")
        if word in ids:
            raise ConversionError(f"{where}: word {show(word)} has the ids {ids[word]} and {index}; each needs one id")
        ids[word] = index
    return list(words)


def _check_inverse(words: Any, ids: Any, where: str) -> None:
    if not isinstance(words, list) or not isinstance(ids, dict):
        raise ConversionError(f"{where}: idx2word_list must be a list and word2idx_dict a dict")
    if len(words) != len(ids):
        raise ConversionError(f"{where}: idx2word_list has {len(words)} words and word2idx_dict {len(ids)}")
    for index, word in enumerate(words):
        if not isinstance(word, str) or ids.get(word) != index:
            inverse = ids.get(word) if isinstance(word, str) else None
            raise ConversionError(
                f"{where}: idx2word_list[{index}] is {show(word)}, but word2idx_dict gives it {show(inverse)}; "
                "expected the inverse"
            )


def _special_ids(
    words: list[str],
    special: Any,
    default: Mapping[str, int] | None,
    names: Mapping[str, str],
    where: str,
) -> dict[str, int]:
    if special is not None and not isinstance(special, Mapping):
        raise ConversionError(f"special must map PAD, SOS, EOS and UNK to ids, found {show(special)}")
    unknown_names = sorted(set(special or {}) - set(SPECIAL_NAMES), key=str)
    if unknown_names:
        raise ConversionError(f"special names {show(unknown_names[0])}; expected only {', '.join(SPECIAL_NAMES)}")
    ids = {word: index for index, word in enumerate(words)}
    named_ids = {name: ids[word] for name, word in names.items() if word in ids}
    if default and not named_ids and not special and max(default.values()) < len(words):
        named_ids = dict(default)
    merged = {**named_ids, **(special or {})}
    missing = [name for name in SPECIAL_NAMES if name not in merged]
    if missing:
        raise ConversionError(
            f"{where}: no word is called {' or '.join(show(names[name]) for name in missing)}; "
            f"give the ids of {', '.join(missing)} as special"
        )
    for name, index in merged.items():
        if type(index) is not int or not 0 <= index < len(words):
            raise ConversionError(f"special {name}={show(index)} must be an id from 0 to {len(words) - 1}")
    if len(set(merged.values())) < len(SPECIAL_NAMES):
        raise ConversionError(f"special tokens share an id: {merged}")
    return {name: merged[name] for name in SPECIAL_NAMES}
