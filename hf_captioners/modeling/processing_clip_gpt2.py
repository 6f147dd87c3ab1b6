"""Processor of CLIP-GPT2: an image processor, GPT-2's tokenizer or one of words, and anchors."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, CLIPImageProcessorPil
from transformers.feature_extraction_utils import BatchFeature

from .processing_captioner import CaptionerProcessor
from .tags_clip_gpt2 import content_words
from .tokenization_limits import load_tokenizer

ANCHOR_RATE = 0.5  # of training captions that show their anchors, so that the model also works without


class ClipGpt2Processor(CaptionerProcessor):
    """Prepare pictures, captions and anchors for CLIP-GPT2, and turn token ids into text.

    Args:
        image_processor (`BaseImageProcessor`): for pictures, such as CLIP's.
        tokenizer (`PreTrainedTokenizerBase`): GPT-2's, or one of words (`build_word_tokenizer`). A tokenizer without
            padding or start token, as GPT-2's, is given its end token for both.
        caption_length (`int`, defaults to 20): captions to learn are cut to so many tokens, the end token not counted.
        tags (`list[str]`, *optional*): content words, see `build_tags`. With them, training captions get anchors.
        max_anchors (`int`, defaults to 5): most anchors of a picture. With 0, training only makes tag targets.

    Raises:
        ValueError: a tokenizer without end token; a `caption_length` below 1, or `max_anchors` below 0.

    Example:

    ```python
    >>> from hf_captioners import ClipGpt2Processor, CaptionerImageProcessor, build_word_tokenizer
    >>> tokenizer = build_word_tokenizer(["EOS", "PAD", "SOS", "UNK", "barks", "dog", "the"])
    >>> processor = ClipGpt2Processor(CaptionerImageProcessor(), tokenizer)
    >>> batch = processor(text_target=["The dog barks."], anchors=[["dog"]])
    >>> batch["labels"].tolist(), batch["anchor_ids"].tolist()
    ([[6, 5, 4, 0]], [[5]])

    ```
    """

    image_columns = {**CaptionerProcessor.image_columns, "anchors": "anchors"}
    padding_values = {**CaptionerProcessor.padding_values, "anchor_ids": -100}

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        caption_length: int = 20,
        tags: list[str] | None = None,
        max_anchors: int = 5,
    ) -> None:
        for name, value, least in (("caption_length", caption_length, 1), ("max_anchors", max_anchors, 0)):
            if value < least:
                raise ValueError(f"ClipGpt2Processor: {name} must be at least {least}, not {value}.")
        if tokenizer.eos_token is None:
            raise ValueError("ClipGpt2Processor: the tokenizer has no end token (eos_token), and captions need one.")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        if tokenizer.bos_token is None:
            tokenizer.bos_token = tokenizer.eos_token
        self.caption_length = caption_length
        self.tags = tags
        self.max_anchors = max_anchors
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_encoder_decoder_pretrained(
        cls,
        encoder_pretrained_model_name_or_path: str | Path | None,
        decoder_pretrained_model_name_or_path: str | Path,
        trust_remote_code: bool = False,
        **kwargs: Any,
    ) -> ClipGpt2Processor:
        """The processor for [`ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained`].

        Args:
            encoder_pretrained_model_name_or_path (`str` or `Path`): where the image processor is. `None` for a model
                of cached embeddings, which has nothing to do for one.
            decoder_pretrained_model_name_or_path (`str` or `Path`): where the tokenizer is.
            trust_remote_code (`bool`, defaults to `False`): whether code that comes with them may run.
            kwargs: `caption_length`, `tags` or `max_anchors`.

        Returns:
            [`ClipGpt2Processor`]
        """
        image_processor: Any = CLIPImageProcessorPil()
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        if encoder_pretrained_model_name_or_path is not None:
            image_processor = AutoImageProcessor.from_pretrained(
                encoder_pretrained_model_name_or_path, backend="pil", **options
            )
        tokenizer = load_tokenizer(decoder_pretrained_model_name_or_path, **options)
        return cls(image_processor, tokenizer, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        image_features: Any = None,
        return_tensors: str = "pt",
        anchors: Sequence[Sequence[str]] | None = None,
        tag_captions: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a model's inputs; see [`CaptionerProcessor.__call__`].

        Args:
            images, text, text_target, return_tensors, kwargs: as there.
            image_features (`torch.Tensor` or `Sequence[torch.Tensor]`, *optional*): cached embeddings `(B, D)` or
                `(B, 1, D)`, regions `(B, N, D)`, or a list of `(D,)` or `(N_i, D)`. In contrast to other captioners, a
                tensor of two dimensions is a batch of embeddings, not the regions of one picture.
            anchors (`Sequence[Sequence[str]]`, *optional*): for every picture (or every caption) the words that its
                caption should be about: `[["dog", "bark"], []]`. An empty list is no anchors, also where the model
                would predict some.
            tag_captions (`Sequence[Sequence[str]]`, *optional*): for every picture all its captions, to make the tag
                predictor's targets of.

        Returns:
            `BatchFeature`: beside the entries there, `anchor_ids` `(R, L)`, tokens of the anchors, then -100, and
            `tag_targets` `(B, len(tags))`, 1.0 for words of a picture's captions.

        Raises:
            ValueError: as there; anchors that are no lists of known words, or more than `max_anchors`; `tag_captions`
                without `tags`.
        """
        if image_features is not None:
            image_features = _rows_of_features(image_features)
        batch = super().__call__(images, text, text_target, image_features, return_tensors, **kwargs)
        if anchors is not None:
            batch["anchor_ids"] = self._anchor_ids(anchors)
        if tag_captions is not None:
            batch["tag_targets"] = self._tag_targets(tag_captions)
        return batch

    def tag_token_ids(self) -> list[list[int]]:
        """The tokens of each tag, for `ClipGpt2Config(tag_token_ids=…)`: a model with a tag predictor.

        Raises:
            ValueError: the processor has no tags, or one is not in the vocabulary.
        """
        if not self.tags:
            raise ValueError("this processor has no tags: make it with tags=build_tags(captions).")
        return [self._word_tokens(tag, "tags") for tag in self.tags]

    def training_extras(
        self, shown: Sequence[Sequence[str]], captions: Sequence[Sequence[str]], draws: Sequence[random.Random]
    ) -> dict[str, Any]:
        """With `tags`: anchors for each caption of a training batch, and the captions that make tag targets.

        Anchors are content words of the caption itself, at most `max_anchors` of them and in random order; with
        probability 1/2 a caption has none.
        """
        if not self.tags:
            return {}
        known = frozenset(self.tags)
        anchors = [self._draw(text, known, draw) for texts, draw in zip(shown, draws, strict=True) for text in texts]
        return {"anchors": anchors, "tag_captions": captions}

    def _draw(self, caption: str, tags: frozenset[str], draw: random.Random) -> list[str]:
        words = content_words(caption, tags)
        keep = draw.random() < ANCHOR_RATE
        return draw.sample(words, min(len(words), self.max_anchors)) if keep else []

    def _prompts(self, texts: list[str]) -> torch.Tensor:
        # BPE spaces belong to the word behind them: after "a photo of " no word could follow as it was learned
        return super()._prompts([text.rstrip() for text in texts])

    def _labels(self, captions: list[str]) -> torch.Tensor:
        length = min(self.caption_length, self.tokenizer.model_max_length - 2)
        texts = [" ".join(caption.split()) for caption in captions]
        encoded = self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        targets = [torch.tensor([*ids[:length], self.tokenizer.eos_token_id]) for ids in encoded]
        return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)

    def _anchor_ids(self, anchors: Sequence[Sequence[str]]) -> torch.Tensor:
        rows = []
        for index, words in enumerate(anchors):
            where = f"anchors[{index}]"
            if isinstance(words, str) or isinstance(anchors, str):
                raise ValueError(f"{where} must be a list of words, as in anchors=[['dog', 'bark']], not {words!r}.")
            if len(words) > self.max_anchors:
                raise ValueError(f"{where} has {len(words)} words, more than max_anchors={self.max_anchors}.")
            rows.append(torch.tensor([i for word in words for i in self._word_tokens(word, where)], dtype=torch.long))
        if not rows:
            raise ValueError("anchors is empty: give a list of words for every picture, [] for none.")
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)

    def _word_tokens(self, word: str, where: str) -> list[int]:
        # with a space in front, as BPE knows words inside a sentence; the word rule drops it
        text = " " + " ".join(word.split())
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        if not text.strip() or not ids or self.tokenizer.unk_token_id in ids:
            raise ValueError(f"{where}: {word!r} is not in the tokenizer's vocabulary.")
        return ids

    def _tag_targets(self, captions: Sequence[Sequence[str]]) -> torch.Tensor:
        if not self.tags:
            raise ValueError("tag_captions need a processor with tags: make it with tags=build_tags(captions).")
        column = {tag: index for index, tag in enumerate(self.tags)}
        targets = torch.zeros(len(captions), len(self.tags))
        for row, texts in enumerate(captions):
            for caption in texts:
                targets[row, [column[word] for word in content_words(caption, column)]] = 1.0
        return targets

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "anchor_ids", "tag_targets"]


def _rows_of_features(features: Any) -> Any:
    """Embeddings as pictures of one row; features of several rows stay."""
    if isinstance(features, (torch.Tensor, np.ndarray)):
        tensor = torch.as_tensor(features)
        return tensor.view(1, 1, -1) if tensor.ndim == 1 else tensor[:, None] if tensor.ndim == 2 else tensor
    rows = [torch.as_tensor(image) for image in features]
    return [row[None] if row.ndim == 1 else row for row in rows]
