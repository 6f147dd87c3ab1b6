"""The words of SCD-Net: `vocabulary.txt`, a word on each line, with an implicit word 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from ..data.files import regular_file
from .pickle_limits import show
from .satic_infos import build_tokenizer as build_words
from .writing import ConversionError, raise_problems

END = "."  # the original's name of word 0, which is start, end and padding
UNKNOWN = ("unk", "<unk>", "[unk]")
MAX_BYTES = 64 * 1024 * 1024


def read_words(
    vocabulary: str | Path | Sequence[str], special: Mapping[str, int] | None = None
) -> tuple[list[str], int | None]:
    """Read the words.

    Args:
        vocabulary (`str`, `Path` or `Sequence[str]`): the file, or words 1, 2...
        special (`Mapping[str, int]`, *optional*): `{"UNK": id}`.

    Returns:
        `tuple[list[str], int | None]`: the words, word 0 included; the id of the unknown word, if there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ConversionError: it is no text of different words; `special` names something else, or no word.
    """
    where = str(vocabulary) if isinstance(vocabulary, str | Path) else "vocabulary"
    lines = _lines(Path(vocabulary)) if isinstance(vocabulary, str | Path) else list(vocabulary)
    line_of: dict[str, int] = {}
    problems = []
    for index, word in enumerate(lines, start=1):
        if not isinstance(word, str) or not word.strip() or word != word.strip():
            problems.append(f"word {index} is {show(word)}, expected a word without white space around it")
        elif word in line_of:
            problems.append(f"word {show(word)} stands in lines {line_of[word]} and {index}")
        else:
            line_of[word] = index
    raise_problems(where, problems if lines else ["has no words"])
    end = END if END not in line_of else "<end>"
    unknown = len(lines) if lines[-1].lower() in UNKNOWN else None
    if special:
        if set(special) != {"UNK"} or not 1 <= special["UNK"] <= len(lines):
            raise ConversionError(f"special={dict(special)!r} must be {{'UNK': id}} with an id from 1 to {len(lines)}")
        unknown = special["UNK"]
    return [end, *lines], unknown


def _lines(path: Path) -> list[str]:
    regular_file(path, "vocabulary")
    if path.stat().st_size > MAX_BYTES:
        raise ConversionError(f"{path}: is larger than {MAX_BYTES} bytes; expected a list of words")
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConversionError(f"{path}: is no text: {error}") from error


def build_tokenizer(words: Sequence[str], unknown: int | None, model_max_length: int) -> PreTrainedTokenizerFast:
    """Make the tokenizer; `tokenizer(caption).input_ids` is 0, words, 0, as in the original's annotations.

    Args:
        words (`Sequence[str]`), unknown (`int`, *optional*): see [`read_words`].
        model_max_length (`int`): longest caption in tokens, start and end included.

    Returns:
        `PreTrainedTokenizerFast`
    """
    return build_words(words, model_max_length, None if unknown is None else words[unknown])
