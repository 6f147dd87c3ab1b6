"""Processor of the DiCO captioner: CLIP's image processor and tokenizer, the latter with a token for padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoImageProcessor

from .processing_captioner import CaptionerProcessor
from .tokenization_limits import load_tokenizer

PAD_TOKEN = "<|pad|>"


class DicoProcessor(CaptionerProcessor):
    """Prepare pictures and captions for DiCO, and turn token ids into text.

    Captions keep their punctuation and are lower-cased by CLIP's tokenizer. They are cut to its `model_max_length`, 77
    tokens with start and end (the original let longer captions widen the batch). Special tokens written out in a
    caption are ordinary text.

    Args:
        image_processor (`BaseImageProcessor`): CLIP's, or that of another backbone.
        tokenizer (`PreTrainedTokenizerBase`): CLIP's, or one of words (`build_word_tokenizer`). A tokenizer without
            padding of its own, as CLIP's, is given `<|pad|>` as its last token.

    Raises:
        ValueError: a tokenizer that does not put a start token and an end token around a caption.

    Example:

    ```python
    >>> from hf_captioners import CaptionerImageProcessor, DicoProcessor, build_word_tokenizer
    >>> tokenizer = build_word_tokenizer(["EOS", "PAD", "SOS", "UNK", "dog", "the"])
    >>> processor = DicoProcessor(CaptionerImageProcessor(), tokenizer)
    >>> processor(text_target=["The dog", "the"])["labels"].tolist()
    [[5, 4, 0], [5, 0, -100]]

    ```
    """

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        ids = tokenizer("a").input_ids
        if None in (tokenizer.bos_token_id, tokenizer.eos_token_id) or (ids[0], ids[-1]) != (
            tokenizer.bos_token_id,
            tokenizer.eos_token_id,
        ):
            raise ValueError(
                "DicoProcessor: the tokenizer must put a start token (bos_token) before a caption and an end token "
                f"(eos_token) behind it, as CLIP's does; this {type(tokenizer).__name__} makes {ids} of 'a'."
            )
        super().__init__(image_processor, tokenizer)

    @classmethod
    def from_backbone(
        cls, backbone: str | Path, tokenizer: str | Path | None = None, trust_remote_code: bool = False
    ) -> DicoProcessor:
        """The processor for [`DicoForImageCaptioning.from_backbone`].

        Args:
            backbone (`str` or `Path`): folder or Hub name of a CLIP, or of another vision model.
            tokenizer (`str` or `Path`, *optional*): where the tokenizer is; by default with the backbone.
            trust_remote_code (`bool`, defaults to `False`): whether code that comes with them may run.

        Returns:
            [`DicoProcessor`]
        """
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
        image_processor = AutoImageProcessor.from_pretrained(backbone, backend="pil", **options)
        return cls(image_processor, load_tokenizer(tokenizer or backbone, **options))

    def batch_decode(self, token_ids: Any, sentences: bool = False, **kwargs: Any) -> list[str]:
        """Captions of [`CaptionerProcessor.batch_decode`], without the spaces of CLIP's words before punctuation."""
        captions = super().batch_decode(token_ids, sentences, **kwargs)
        return [self.tokenizer.clean_up_tokenization(caption) for caption in captions]

    def _labels(self, captions: list[str]) -> torch.Tensor:
        encoded = self.tokenizer(captions, truncation=True, split_special_tokens=True)
        targets = [torch.tensor(ids[1:]) for ids in encoded.input_ids]  # without the start token
        return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)
