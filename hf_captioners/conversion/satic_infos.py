"""The file beside a checkpoint of SATIC: `infos.pkl` with the options of its training and its words.

It is a pickle with an `argparse.Namespace` inside, which is read without running anything (`safe_load.OPTIONS`). Word
ids count from 1; id 0, which has no word, is start, end and padding at once; the last word is `UNK`, unless no word of
the training captions was rare. The original avoids the last word in its beam search only if it is called `UNK`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .pickle_limits import show
from .safe_load import load_plain_pickle
from .stand_ins import OPTIONS, OptionBag
from .writing import ConversionError, raise_problems

END = "<end>"  # the name of id 0 here
UNKNOWN = "UNK"
AUTOREGRESSIVE = "transformer"  # the caption model of a teacher; SATIC is "sat"


@dataclass(frozen=True)
class Infos:
    """The content of an infos file.

    Attributes:
        path (`Path`): the file, for messages.
        options (`dict[str, Any]`): every option of the training under its original name.
        words (`list[str]`): index = id; the first one is start, end and padding.
        group_size (`int`): words of a step, K; 1 for an autoregressive teacher.
    """

    path: Path
    options: dict[str, Any]
    words: list[str]
    group_size: int

    @property
    def unknown(self) -> int | None:
        """Id of the unknown word; `None` if there is none."""
        return len(self.words) - 1 if self.words[-1] == UNKNOWN else None

    def number(self, name: str, default: int | None = None) -> int:
        """An option that is a whole number.

        Args:
            name (`str`): the option.
            default (`int`, *optional*): its value when it is missing.

        Returns:
            `int`

        Raises:
            ConversionError: it is missing without a default, or something else.
        """
        value = self.options.get(name, default)
        if type(value) is not int:
            raise ConversionError(f"{self.path}: option {name} is {show(value)}, expected a whole number")
        return value


def read_infos(path: str | Path) -> Infos:
    """Read an infos file without running anything that is inside.

    Args:
        path (`str` or `Path`): `infos_<id>.pkl` or `infos_<id>-best.pkl`.

    Returns:
        [`Infos`]

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError, ConversionError: it refers to a name that is not expected, holds something else, is of another
            model, or has words that are not numbered from 1.
    """
    content = load_plain_pickle(path, stand_ins=OPTIONS, encoding="latin-1")
    opt = content.get("opt") if isinstance(content, dict) else None
    vocab = content.get("vocab") if isinstance(content, dict) else None
    if not isinstance(opt, OptionBag) or not isinstance(vocab, dict):
        raise ConversionError(
            f"{path}: expected a dict with 'opt', an argparse.Namespace, and 'vocab', a dict of words"
        )
    options, words, problems = dict(vars(opt)), *_words(vocab)
    if options.get("vocab_size", len(words) - 1) != len(words) - 1:
        problems.append(f"vocab has {len(words) - 1} words, but option vocab_size is {show(options['vocab_size'])}")
    group_size = 1 if options.get("caption_model") == AUTOREGRESSIVE else options.get("K")
    if options.get("caption_model") not in ("sat", AUTOREGRESSIVE):
        caption_model = show(options.get("caption_model"))
        problems.append(f"option caption_model is {caption_model}, expected 'sat' or 'transformer'")
    elif type(group_size) is not int or group_size < 1:
        problems.append(f"option K is {show(group_size)}, expected the number of words of a step")
    raise_problems(str(path), problems)
    return Infos(Path(path), options, words, int(group_size or 1))


def _words(vocab: Mapping[Any, Any]) -> tuple[list[str], list[str]]:
    """The words in the order of their ids with the one of id 0 before them, and problems with them."""
    by_id = {str(index): word for index, word in vocab.items()}
    words = [by_id.get(str(index)) for index in range(1, len(by_id) + 1)]
    gaps = [index for index, word in enumerate(words, start=1) if not isinstance(word, str) or not word]
    if gaps or not words:
        return [END], [f"vocab has no word for id {gaps[0] if gaps else 1}; expected ids from 1 to {len(by_id)}"]
    texts = [END, *map(str, words)]
    repeated_words = sorted(word for word, count in Counter(texts).items() if count > 1)
    return texts, [f"vocab has {show(repeated_words[0])} twice"] if repeated_words else []


def build_tokenizer(
    words: Sequence[str], model_max_length: int, unknown_word: str | None = None
) -> PreTrainedTokenizerFast:
    """Make the tokenizer of an infos file's words.

    The original learns from Karpathy's tokens, which are the runs of letters and digits of a caption in lower case; so
    are the tokens here. If some words of the vocabulary are not of that kind, captions are split at white space only.

    Args:
        words (`Sequence[str]`): see [`Infos`]. If the last one is not `UNK`, the tokenizer has no unknown word, and a
            caption with a word that is not in the vocabulary is an error.
        model_max_length (`int`): longest caption in tokens, start and end included.
        unknown_word (`str`, *optional*): the unknown word, if it is another one.

    Returns:
        `PreTrainedTokenizerFast`: `tokenizer(caption).input_ids` is 0, words, 0; pad, bos and eos are one token.

    Example:

    ```python
    >>> from hf_captioners.conversion.satic_infos import build_tokenizer
    >>> tokenizer = build_tokenizer(["<end>", "a", "t", "shirt", "UNK"], model_max_length=18)
    >>> tokenizer("A red T-shirt.").input_ids
    [0, 1, 4, 2, 3, 0]

    ```
    """
    unknown_word = UNKNOWN if unknown_word is None and words[-1] == UNKNOWN else unknown_word
    ids = {word: index for index, word in enumerate(words)}
    backend = Tokenizer(
        models.WordLevel(ids) if unknown_word is None else models.WordLevel(ids, unk_token=unknown_word)
    )
    ordinary = [word for word in words[1:] if word != unknown_word]
    if all(re.fullmatch(r"\w+", word) and word == word.lower() for word in ordinary):
        backend.normalizer = normalizers.Lowercase()
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\p{L}\p{N}_]+"), behavior="removed", invert=True)
    else:
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = words[0]
    backend.post_processor = processors.TemplateProcessing(single=f"{end} $A {end}", special_tokens=[(end, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=end,
        bos_token=end,
        eos_token=end,
        unk_token=unknown_word,
        model_max_length=model_max_length,
        padding_side="right",
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
