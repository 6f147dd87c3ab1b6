"""Collators: rows of a data set become a batch that a captioner learns from, by cross-entropy or by reward."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.processing_utils import ProcessorMixin

from ..data.printable import printable
from ..data.row_stream import StreamedRow
from ..families import CaptionFamily
from ..modeling.captioner_image_io import ImageError
from ..modeling.captioner_layers import check_features
from ..modeling.processing_captioner import CaptionerProcessor, CheckedRow, open_row
from .rows import captions_of, chance, row_name

logger = logging.getLogger(__name__)

_OF_THE_TRAINER = (  # what reward functions are called with besides the columns
    "prompts",
    "completions",
    "completion_ids",
    "trainer_state",
    "log_extra",
    "log_metric",
    "pixel_values",
)


class ImageCollator:
    """Open the pictures of rows; what a batch holds besides them is a subclass's matter.

    Args:
        processor ([`CaptionerProcessor`] or `ProcessorMixin`): makes the tensors.
        skip_broken (`bool`, defaults to `False`): while `training`, leave out pictures that cannot be opened, with a
            warning, instead of raising. A batch in which nothing is left raises all the same.
        seed (`int`, defaults to 0): of what is chosen.
        family ([`CaptionFamily`], *optional*): how the captioner takes images; by default as those of this package.

    Attributes:
        epoch (`int`): set by the trainer; workers of a `DataLoader` see it change.
        training (`bool`): set by the trainer; `False` during evaluation.

    Raises:
        TypeError: a processor without an image processor.
    """

    def __init__(
        self,
        processor: CaptionerProcessor | ProcessorMixin,
        skip_broken: bool = False,
        seed: int = 0,
        family: CaptionFamily | None = None,
    ) -> None:
        try:
            self.image_processor = processor.image_processor
        except AttributeError as error:
            raise TypeError(
                f"{type(self).__name__}: processor is a {type(processor).__name__}, which has no image_processor; give "
                "CaptionerProcessor(image_processor, tokenizer), or another processor with both."
            ) from error
        self.processor: Any = processor
        self.family = CaptionFamily() if family is None else family
        self.skip_broken = skip_broken
        self.seed = seed
        self.training = True
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers keep their first copy

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    @epoch.setter
    def epoch(self, value: int) -> None:
        self._epoch.fill_(value)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of some rows: `pixel_values`, or `image_features` and `image_attention_mask`, a row per picture,
        and what the subclass adds.

        Raises:
            ValueError: a row lacks `captions`, or `image` and `image_features` both, or what another row has of them.
            ImageError: a picture cannot be opened.
        """
        good: list[Mapping[str, Any]] = []
        opened: list[Mapping[str, Any]] = []
        for row in rows:
            try:
                opened.append(self._opened(row))
                good.append(row)
            except ImageError as error:
                if not (self.skip_broken and self.training):  # scores of fewer pictures would not compare
                    raise
                logger.warning("left out: %s", error)
        if not good:
            raise ImageError(f"none of the {len(rows)} pictures of a batch can be opened; see the warnings.")
        return self.batch(good, opened)

    def batch(self, rows: Sequence[Mapping[str, Any]], opened: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The batch of rows, which are also there with their images open."""
        raise NotImplementedError

    def _random(self, row: Mapping[str, Any], *what: str) -> random.Random:
        """Chance that depends on the seed, the epoch and the picture alone."""
        epoch = row.position.epoch if isinstance(row, StreamedRow) else self.epoch
        return chance(" ".join([f"{self.seed} {epoch} {row.get('image_id')}", *what]))

    def _opened(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A row whose image is open, at the processor's size if it is large, or whose features are numbers."""
        if "image_features" in row and not isinstance(row, CheckedRow):
            check_features(torch.as_tensor(row["image_features"]), f"{row_name(row)}: image_features")
        elif not {"image", "image_features"} & row.keys():
            raise ValueError(f"a row needs 'image' or 'image_features'; this one has {sorted(row)}.")
        return open_row(self.processor, row)

    @staticmethod
    def column_of(row: Mapping[str, Any], name: str) -> Any:
        """Value of a row in a column that another row of its batch has."""
        if name not in row:
            raise ValueError(
                f"{row_name(row)}: the row lacks {name!r}, which another row of the batch has; give "
                "all rows the same columns, with None where there is nothing to say."
            )
        return row[name]


class CaptionCollator(ImageCollator):
    """Open pictures, choose captions and pad: batches that teach by cross-entropy.

    Which captions of a picture are chosen is a function of the seed, the epoch and the picture's id alone: the same in
    any batch size, under gradient accumulation, in any number of processes, after resuming, and from whatever files the
    picture comes with that id.

    Args:
        processor ([`CaptionerProcessor`]): makes the tensors. While `training` its `training_extras` say what else a
            model learns from, such as anchors; chance for that is also a function of seed, epoch and picture.
        captions_per_image (`int`, defaults to 1): captions of each picture in a batch, drawn without repetition; a
            picture that has fewer gives some of them again. The picture itself is encoded once.
        eval_captions_per_image (`int`, defaults to 5): the same while `training` is `False`, where the first ones are
            taken.
        seed (`int`, defaults to 0): of the choice.
        skip_broken (`bool`, defaults to `False`): while `training`, leave out pictures that cannot be opened, with a
            warning, instead of raising. A batch in which nothing is left raises all the same.
        vocab_size (`int`, *optional*): words that the model knows, to refuse labels beyond.
        family ([`CaptionFamily`], *optional*): see [`ImageCollator`].

    Attributes:
        epoch, training: see [`ImageCollator`].

    Raises:
        ValueError: a row lacks `captions`, or `image` and `image_features` both; a caption is no text, has no words, or
            has a word beyond `vocab_size`.
        ImageError: a picture cannot be opened.

    Example:

    ```python
    >>> import torch
    >>> from hf_captioners import CaptionCollator
    >>> collator = CaptionCollator(processor)  # doctest: +SKIP
    >>> batch = collator([{"image_id": 1, "image": "cat.jpg", "captions": ["a cat", "a grey cat"]}])  # doctest: +SKIP
    >>> sorted(batch)  # doctest: +SKIP
    ['labels', 'pixel_values']

    ```
    """

    def __init__(
        self,
        processor: CaptionerProcessor,
        captions_per_image: int = 1,
        eval_captions_per_image: int = 5,
        seed: int = 0,
        skip_broken: bool = False,
        vocab_size: int | None = None,
        family: CaptionFamily | None = None,
    ) -> None:
        for name, value in (
            ("captions_per_image", captions_per_image),
            ("eval_captions_per_image", eval_captions_per_image),
        ):
            if value < 1:
                raise ValueError(f"CaptionCollator: {name} must be at least 1, not {value}.")
        super().__init__(processor, skip_broken, seed, family)
        self.captions_per_image = captions_per_image
        self.eval_captions_per_image = eval_captions_per_image
        self.vocab_size = vocab_size

    def batch(self, rows: Sequence[Mapping[str, Any]], opened: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate as [`ImageCollator`] does; and `labels`, rows of one picture side by side."""
        shown = [self._choose(row) for row in rows]
        extras: dict[str, Any] = {}
        if self.training and isinstance(self.processor, CaptionerProcessor):
            draws = [self._random(row, "extras") for row in rows]
            extras = self.processor.training_extras(shown, [row["captions"] for row in rows], draws)
        captions = [caption for chosen in shown for caption in chosen]
        batch = self.family.training_batch(self.processor, opened, captions, **extras)
        self._check_labels(batch["labels"], captions, rows)
        return batch

    def _check_labels(self, labels: torch.Tensor, captions: list[str], rows: Sequence[Mapping[str, Any]]) -> None:
        """Refuse captions of which a model would learn nothing, or could not."""
        beyond = torch.zeros_like(labels) if self.vocab_size is None else labels >= self.vocab_size
        for row in (
            ((labels != -100).sum(dim=1).eq(1) | beyond.any(dim=1)).nonzero().flatten().tolist()
        ):  # the end alone
            where = f"{row_name(rows[row * len(rows) // len(labels)])}: the caption {printable(repr(captions[row]))}"
            if not beyond[row].any():
                raise ValueError(
                    f"{where} has no words that the tokenizer knows of; a caption of nothing teaches nothing."
                )
            token, tokenizer = int(labels[row].max()), self.processor.tokenizer
            raise ValueError(
                f"{where} has the token {token}, {tokenizer.convert_ids_to_tokens(token)!r}, but the model knows "
                f"{self.vocab_size} tokens, counted from 0; it needs as many as its tokenizer."
            )

    def _choose(self, row: Mapping[str, Any]) -> list[str]:
        order = captions_of(row)
        count = self.captions_per_image if self.training else self.eval_captions_per_image
        if self.training:
            self._random(row).shuffle(order)
        return [order[index % len(order)] for index in range(count)]


class RewardCollator(ImageCollator):
    """Open pictures and keep the other columns: batches whose captions are the model's own.

    Args:
        processor ([`CaptionerProcessor`]): makes the tensors. While `training` its `candidate_extras` say what else the
            candidates depend on.
        skip_broken, seed: see [`ImageCollator`].
        num_candidates (`int`, defaults to 1): captions that the model is to write of each picture.
        family ([`CaptionFamily`], *optional*): see [`ImageCollator`].

    Raises:
        ValueError: see [`ImageCollator`]; rows of a batch that have not the same columns; a column whose name is that
            of something else that reward functions are given, such as `completions`.
    """

    def __init__(
        self,
        processor: CaptionerProcessor | ProcessorMixin,
        skip_broken: bool = False,
        seed: int = 0,
        num_candidates: int = 1,
        family: CaptionFamily | None = None,
    ) -> None:
        super().__init__(processor, skip_broken, seed, family)
        self.num_candidates = num_candidates

    def batch(self, rows: Sequence[Mapping[str, Any]], opened: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate as [`ImageCollator`] does; and `columns`, the rows' other columns by name, `captions` among them."""
        columns: dict[str, list[Any]] = {}
        for name in dict.fromkeys(name for row in rows for name in row if name != "image_features"):
            if name in _OF_THE_TRAINER:
                raise ValueError(f"the column {name!r} has the name of what the trainer gives to rewards; rename it.")
            columns[name] = [captions_of(row) if name == "captions" else self.column_of(row, name) for row in rows]
        extras: dict[str, Any] = {}
        if self.training and isinstance(self.processor, CaptionerProcessor):
            extras = self.processor.candidate_extras(self.num_candidates, [self._random(row, "extras") for row in rows])
        return {**self.family.prepare_rows(self.processor, opened, **extras), "columns": columns}
