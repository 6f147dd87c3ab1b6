"""Processor of SCD-Net: pictures or region features, the sentence that was retrieved for each, and captions."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers.feature_extraction_utils import BatchFeature

from .captioner_retriever import FOLDER, CaptionRetriever, find_retriever
from .image_processing_captioner import open_for_processor
from .processing_captioner import CaptionerProcessor

TOP = 20
"""Sentences that are retrieved for a picture, as many as the authors kept."""
_MAX_SEED = 2**62
_Sentences: TypeAlias = str | Sequence[str] | Sequence[Sequence[str]]


class ScdnetProcessor(CaptionerProcessor):
    """Prepare pictures, retrieved sentences and captions for SCD-Net, and turn token ids into text.

    Args:
        image_processor (`BaseImageProcessor`): for pictures.
        tokenizer (`PreTrainedTokenizerBase`): of words (`build_word_tokenizer`).

    Columns of a row beside `image` or `image_features`, see `__call__`: `retrieved`, `previous`, `guide`.

    Attributes:
        retriever ([`CaptionRetriever`], *optional*): finds the sentences of pictures that come without; never captions
            of a picture with the same `image_id`. It is saved in the folder `retrieval` of the processor's and loaded
            from there.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import CaptionerImageProcessor, ScdnetProcessor, build_word_tokenizer
    >>> tokenizer = build_word_tokenizer(["EOS", "PAD", "SOS", "UNK", "barks", "dog", "the"])
    >>> processor = ScdnetProcessor(CaptionerImageProcessor(), tokenizer)
    >>> batch = processor(image_features=torch.zeros(1, 3, 8), retrieved=["The dog."])
    >>> batch["retrieved_ids"].tolist(), batch["retrieved_mask"].tolist()
    ([[2, 6, 5]], [[1, 1, 1]])

    ```
    """

    image_columns = {
        **CaptionerProcessor.image_columns,
        "retrieved": "retrieved",
        "previous": "previous",
        "guide": "guide",
    }

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        super().__init__(image_processor, tokenizer)
        self.retriever: CaptionRetriever | None = None

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
        return_tensors: str = "pt",
        retrieved: _Sentences | None = None,
        previous: _Sentences | None = None,
        guide: _Sentences | None = None,
        seeds: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a model's inputs; see [`CaptionerProcessor.__call__`].

        Args:
            images, text, text_target, image_features, return_tensors, kwargs: as there.
            retrieved (`str`, `Sequence[str]` or `Sequence[Sequence[str]]`, *optional*): for every picture, or for every
                caption, the sentence that was retrieved, or a list of them, best first. Of a list the first one is
                taken; with `seeds`, which is in training, every caption of a picture gets another one of the
                picture's list, at random. With a `retriever` those of `images` are retrieved.
            previous (`str`, `Sequence[str]` or `Sequence[Sequence[str]]`, *optional*): for every picture or caption
                what the first stage wrote, for a second stage; of a list the first one.
            guide (`str`, `Sequence[str]` or `Sequence[Sequence[str]]`, *optional*): for every picture the sentence that
                guides self-critical training; of a list the first one.
            seeds (`Sequence[int]`, *optional*): for every caption what the chance of its training step depends on.

        Returns:
            `BatchFeature`: beside the entries there, `retrieved_ids` and `retrieved_mask` `(R, T)`, start token first;
            `previous_ids` and `guide_ids` `(R, T)`, words, end token, padding; `seeds` `(N,)`.
        """
        batch = super().__call__(images, text, text_target, image_features, return_tensors, **kwargs)
        if retrieved is None and images is not None and self.retriever is not None:
            retrieved = self.retriever(images if isinstance(images, (list, tuple)) else [images], TOP)
        if retrieved is not None:
            sentences = _first(retrieved) if seeds is None else _drawn(retrieved, seeds)
            batch["retrieved_ids"], batch["retrieved_mask"] = self._retrieved(sentences)
        for name, captions in (("previous_ids", previous), ("guide_ids", guide)):
            if captions is not None:
                labels = self._labels(_first(captions))
                batch[name] = labels.masked_fill(labels == -100, self.tokenizer.pad_token_id)
        if seeds is not None:
            batch["seeds"] = torch.as_tensor(seeds)
        return batch

    def open_row(self, row: Mapping[str, Any], **limits: Any) -> dict[str, Any]:
        """Open as [`CaptionerProcessor`] does; a row without `retrieved` gets it of its image, with a `retriever`."""
        if self.retriever is not None and "retrieved" not in row and row.get("image") is not None:
            image = open_for_processor(row["image"], self.image_processor, **limits)
            sentences = self.retriever([image], TOP, [row.get("image_id")])[0]
            row = {**row, "image": image, "retrieved": sentences}
        return super().open_row(row, **limits)

    def _retrieved(self, sentences: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Start token and words of sentences, and the mask of what is no padding, both (R, T)."""
        encoded = self._encode(sentences, truncation=True)
        rows = [torch.tensor(ids[:-1]) for ids in encoded]  # without the end token
        lengths = torch.tensor([len(row) for row in rows])
        pad: int = self.tokenizer.pad_token_id
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()

    def training_extras(
        self, shown: Sequence[Sequence[str]], captions: Sequence[Sequence[str]], draws: Sequence[random.Random]
    ) -> dict[str, Any]:
        """For every caption what its time, its noise and the self-conditioning are drawn from."""
        return {"seeds": [draw.randrange(_MAX_SEED) for mine, draw in zip(shown, draws, strict=True) for _ in mine]}

    def candidate_extras(self, num_candidates: int, draws: Sequence[random.Random]) -> dict[str, Any]:
        """For every candidate what its retrieved sentence is drawn from."""
        return {"seeds": [draw.randrange(_MAX_SEED) for draw in draws for _ in range(num_candidates)]}

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, trust_remote_code: bool = False, **kwargs: Any
    ) -> Any:
        """Load as [`CaptionerProcessor`] does, with the retriever that is in the folder.

        Raises:
            RetrieverError: the retriever is broken.
        """
        processor = super().from_pretrained(
            pretrained_model_name_or_path, *args, trust_remote_code=trust_remote_code, **kwargs
        )
        folder = find_retriever(pretrained_model_name_or_path, **kwargs)
        if folder is not None:
            processor.retriever = CaptionRetriever.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return processor

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        """Save as [`CaptionerProcessor`] does, with the retriever."""
        if self.retriever is not None:
            self.retriever.save_pretrained(Path(save_directory) / FOLDER)
        return super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return [*super().model_input_names, "retrieved_ids", "retrieved_mask", "previous_ids", "guide_ids", "seeds"]


def _first(sentences: _Sentences) -> list[str]:
    """The sentence of each picture, the first one of a list; an empty one where a list has none."""
    entries = [sentences] if isinstance(sentences, str) else sentences
    return [entry if isinstance(entry, str) else entry[0] if entry else "" for entry in entries]


def _drawn(sentences: _Sentences, seeds: Sequence[int]) -> list[str]:
    """A sentence for each caption, those of a picture drawn from its list without repetition as long as it lasts."""
    if all(isinstance(entry, str) for entry in sentences) or len(seeds) % len(sentences):
        return _first(sentences)
    number = len(seeds) // len(sentences)
    drawn: list[str] = []
    for place, entry in enumerate(sentences):
        pool = [entry] if isinstance(entry, str) else list(entry) or [""]
        order = random.Random(int(seeds[place * number])).sample(pool, len(pool))
        drawn += [order[index % len(order)] for index in range(number)]
    return drawn
