"""Words that a captioner does not know, and how it comes to know them.

A captioner with a vocabulary of words reads every other word of its training captions as the unknown word. On pictures
of another world that can be half of all words. `unknown_words` counts them; `extend_vocabulary` gives a captioner new
words, with rows of their own in its word vectors and in the layer that scores words, and leaves the old rows as they
are.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedModel

from .captioner_base import CaptionerPreTrainedModel


@dataclass(frozen=True)
class UnknownWords:
    """Words and characters of captions that a vocabulary lacks.

    Attributes:
        words (`Counter[str]`): the unknown words and how often each is there.
        total (`int`): number of all words, known or not.
    """

    words: Counter[str]
    total: int

    @property
    def share(self) -> float:
        """Share of the unknown words, from 0 to 1."""
        return self.words.total() / self.total if self.total else 0.0


def has_words(tokenizer: Any) -> bool:
    """Tell whether a tokenizer has a vocabulary of words; those of CLIP and GPT-2 have pieces, which make any word.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): any.
    """
    return bool(tokenizer.is_fast) and isinstance(tokenizer.backend_tokenizer.model, models.WordLevel)


def unknown_words(tokenizer: Any, captions: Iterable[str]) -> UnknownWords:
    """Count the words of captions that a tokenizer of words does not know.

    Args:
        tokenizer (`PreTrainedTokenizerFast`): with a vocabulary of words, see [`has_words`].
        captions (`Iterable[str]`): as they were written.

    Returns:
        [`UnknownWords`]

    Example:

    ```python
    >>> from hf_captioners import build_vocabulary, build_word_tokenizer
    >>> from hf_captioners.modeling.captioner_vocabulary import unknown_words
    >>> tokenizer = build_word_tokenizer(build_vocabulary(["a red wave", "a blue wave"], min_count=1))
    >>> unknown = unknown_words(tokenizer, ["a tractor", "a red tractor"])
    >>> unknown.share, unknown.words
    (0.4, Counter({'tractor': 2}))

    ```
    """
    backend = tokenizer.backend_tokenizer
    counts: Counter[str] = Counter()
    for caption in captions:
        text = caption if backend.normalizer is None else backend.normalizer.normalize_str(caption)
        counts.update(word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text))
    known = backend.get_vocab(with_added_tokens=False)
    return UnknownWords(Counter({word: n for word, n in counts.items() if word not in known}), counts.total())


@torch.no_grad()
def extend_vocabulary(
    model: CaptionerPreTrainedModel, processor: Any, captions: Iterable[str], min_count: int = 5
) -> list[str]:
    """Give a captioner the words of captions that it does not know.

    They get the ids behind the old ones, in the order of their frequency. A new row of the word vectors and of the
    layer that scores words starts as the mean of the old rows, so that a new word is at first as likely as words are on
    average; old rows stay bit for bit. The configuration and the processor's tokenizer follow; save both.

    Args:
        model ([`CaptionerPreTrainedModel`]): the captioner, without adapters. Changed in place.
        processor ([`CaptionerProcessor`]): its processor. Gets a new tokenizer.
        captions (`Iterable[str]`): raw captions.
        min_count (`int`, defaults to 5): new words seen less often stay unknown.

    Returns:
        `list[str]`: the new words.

    Raises:
        ValueError: the captioner's vocabulary is none of words, or its tokenizer has more ids than the model.

    Example:

    ```python
    >>> from hf_captioners import SaticForImageCaptioning, extend_vocabulary
    >>> extend_vocabulary(model, processor, ["a tractor", "a red tractor"], min_count=2)  # doctest: +SKIP
    ['tractor']

    ```
    """
    if not has_words(processor.tokenizer):
        raise ValueError("the captioner's tokenizer has pieces of words, which make any word; nothing is unknown.")
    first = len(cast(nn.Linear, model.get_output_embeddings()).weight)
    known = processor.tokenizer.get_vocab()
    if max(known.values()) >= first:
        raise ValueError(f"the tokenizer has the id {max(known.values())}, but the model only {first} words.")
    counts = unknown_words(processor.tokenizer, captions).words
    words = sorted(
        (word for word, count in counts.items() if count >= min_count), key=lambda word: (-counts[word], word)
    )
    if words:
        processor.tokenizer = _with_words(processor.tokenizer, words, first)
        _add_rows(model, len(words))
    return words


def _with_words(tokenizer: Any, words: list[str], first: int) -> Any:
    """A tokenizer that also has these words, with ids from `first` on."""
    rules = json.loads(tokenizer.backend_tokenizer.to_str())
    rules["model"]["vocab"].update({word: index for index, word in enumerate(words, first)})
    settings = {name: value for name, value in tokenizer.init_kwargs.items() if not name.startswith("tokenizer_")}
    return type(tokenizer)(tokenizer_object=Tokenizer.from_str(json.dumps(rules)), **settings)


def _add_rows(model: CaptionerPreTrainedModel, count: int) -> None:
    embedding, scores = cast(nn.Embedding, model.get_input_embeddings()), cast(Any, model.get_output_embeddings())
    tied = scores.weight is embedding.weight
    embedding.weight = _longer(embedding.weight, count)
    scores.weight = embedding.weight if tied else _longer(scores.weight, count)
    if scores.bias is not None:
        scores.bias = _longer(scores.bias, count)
    embedding.num_embeddings = scores.out_features = size = len(embedding.weight)
    seeing = set() if model.backbone is None else set(model.backbone.modules())  # some of which know no embeddings
    for part in model.modules():  # a GPT-2 inside has its own numbers
        if isinstance(part, PreTrainedModel) and part not in seeing and part.get_input_embeddings() is embedding:
            part.config.get_text_config().vocab_size = size


def _longer(values: torch.Tensor, count: int) -> nn.Parameter:
    """(V, …) -> (V + count, …), the new rows being the mean of the old ones."""
    mean = values.float().mean(dim=0, keepdim=True).to(values.dtype)
    return nn.Parameter(torch.cat([values, mean.expand(count, *values.shape[1:])]), values.requires_grad)
