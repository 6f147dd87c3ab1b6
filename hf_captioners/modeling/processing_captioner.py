"""The captioners' processor: pictures or features in, captions in and out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeGuard

import torch
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.processing_utils import ProcessorMixin

from .captioner_detector import CaptionerDetector
from .captioner_layers import check_features
from .captioner_shipping import registered
from .image_processing_captioner import open_for_processor, open_resized
from .tokenization_limits import check_tokenizer


def pad_features(features: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of features of different lengths.

    Args:
        features (`torch.Tensor` or `Sequence[torch.Tensor]`): one picture `(N, D)`, a batch `(B, N, D)`, or a list of
            `(N_i, D)`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: features `(B, max N_i, D)`, zeros behind the shorter ones, and the mask
        `(B, max N_i)` of int64, 1 for real rows.

    Raises:
        ValueError: features of another rank, of different widths, without rows, complex ones, or with NaN, infinity or
            numbers too large to compute with.
    """
    if isinstance(features, torch.Tensor):
        features = [features] if features.ndim == 2 else features
    rows = [torch.as_tensor(image) for image in features]
    if not rows:
        raise ValueError("image_features is empty: give at least one picture's features (tokens, width).")
    width = rows[0].shape[-1] if rows[0].ndim == 2 else "width"
    is_checked = isinstance(features, _Checked)
    for index, row in enumerate(rows):
        if row.ndim != 2 or row.shape[-1] != width or row.shape[0] == 0:
            raise ValueError(
                f"image_features[{index}] must be (tokens, {width}) with tokens > 0, not {tuple(row.shape)}."
            )
        if not is_checked:
            check_features(row, f"image_features[{index}]")
    batch = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    lengths = torch.tensor([len(row) for row in rows])
    return batch, (torch.arange(batch.shape[1]) < lengths[:, None]).long()


def _as_list(name: str, texts: str | Sequence[str]) -> list[str]:
    if not texts and not isinstance(texts, str):
        raise ValueError(f"{name} is empty: give at least one text.")
    return [texts] if isinstance(texts, str) else list(texts)


class CaptionerProcessor(ProcessorMixin):
    """Prepare pictures and captions for a captioner, and turn token ids into text.

    Args:
        image_processor (`BaseImageProcessor`): for pictures.
        tokenizer (`PreTrainedTokenizerBase`): for captions; `tokenizer(caption).input_ids` starts with the start token
            and ends with the end token.

    Attributes:
        detector ([`CaptionerDetector`], *optional*): makes features of pictures, for a captioner of regions; see
            [`use_detector`].
        image_columns (`dict[str, str]`): columns of a row that make an image for the captioner, and the arguments of a
            call that take them.
        padding_values (`dict[str, int]`): of inputs with rows of different lengths, where it is not 0.
    """

    image_columns: ClassVar[dict[str, str]] = {"image": "images", "image_features": "image_features"}
    padding_values: ClassVar[dict[str, int]] = {"labels": -100}

    def __init__(self, image_processor: Any = None, tokenizer: Any = None) -> None:
        super().__init__(image_processor, tokenizer)
        self.detector: CaptionerDetector | None = None

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        image_features: torch.Tensor | Sequence[torch.Tensor] | None = None,
        return_tensors: str = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Make a model's inputs.

        Args:
            images (picture or list, *optional*): PIL pictures of any mode, arrays, paths or URLs.
            text (`str` or `Sequence[str]`, *optional*): beginnings of the captions, all of the same length in tokens.
            text_target (`str` or `Sequence[str]`, *optional*): the captions to learn.
            image_features (`torch.Tensor` or `Sequence[torch.Tensor]`, *optional*): cached features; see
                `pad_features`.
            return_tensors (`str`, defaults to `"pt"`): only torch tensors are made.
            kwargs: options of the image processor.

        Returns:
            `BatchFeature`: of what was given, `pixel_values` `(B, 3, height, width)`; `image_features` `(B, N, D)` and
            `image_attention_mask` `(B, N)`; `decoder_input_ids` `(B, T)`; `labels` `(B, T)`, words and end token, then
            -100.

        Raises:
            ValueError: nothing or an empty list was given; pictures and features together; beginnings of different
                lengths.
        """
        if return_tensors != "pt":
            raise ValueError(f"return_tensors must be 'pt', not {return_tensors!r}: the captioners are torch models.")
        if images is None and image_features is None and text is None and text_target is None:
            raise ValueError("give images, image_features, text or text_target.")
        if images is not None and image_features is not None:
            raise ValueError("give images or image_features, not both.")
        batch: dict[str, torch.Tensor] = {}
        if images is not None and self.detector is not None:
            images = images if isinstance(images, (list, tuple)) else [images]
            image_features = [self.open_row({"image": image})["image_features"] for image in images]
        elif isinstance(images, _Prepared):
            batch["pixel_values"] = torch.stack(images)
        elif images is not None:
            batch["pixel_values"] = self.image_processor(images, return_tensors="pt", **kwargs)["pixel_values"]
        if image_features is not None:
            batch["image_features"], batch["image_attention_mask"] = pad_features(image_features)
        if text is not None:
            batch["decoder_input_ids"] = self._prompts(_as_list("text", text))
        if text_target is not None:
            batch["labels"] = self._labels(_as_list("text_target", text_target))
        return BatchFeature(batch)

    def open_row(self, row: Mapping[str, Any], **limits: Any) -> dict[str, Any]:
        """A row with its image open, at the processor's size if it is large, and with what else is read of an image.

        Args:
            row (`Mapping`): with `image`, as `open_image` takes it, or `image_features`, or both.
            limits: further arguments of `open_image`.

        Returns:
            `dict`: the row; an image beside features stays closed. With a `detector` an image gets its features.

        Raises:
            ImageError: the image cannot be opened.
        """
        if self.detector is not None and "image_features" not in row and row.get("image") is not None:
            image = open_for_processor(row["image"], self.image_processor, **limits)
            row = {**row, "image": image, "image_features": self.detector(image)}
        return _opened(row, self.image_processor, **limits)

    def prepare_rows(self, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> BatchFeature:
        """Make a model's inputs of rows, in training and in inference.

        Args:
            rows (`Sequence[Mapping]`): each with `image`, as `open_image` takes it, or `image_features`, which goes
                first; and with the captioner's other `image_columns`. Further columns are not read.
            kwargs: further arguments of a call, as `text_target`; what rows say goes first.

        Returns:
            `BatchFeature`: see `__call__`.

        Raises:
            ValueError: a row without an image; rows of which some have a column and others not; see `__call__`.
            ImageError: an image cannot be opened.
        """
        rows = [self.open_row(row) for row in rows]
        columns = self._image_columns_of(rows)
        arguments: dict[str, Any] = {self.image_columns[name]: [row[name] for row in rows] for name in columns}
        prepared = [row.pixel_values for row in rows if isinstance(row, _OpenedRow) and row.pixel_values is not None]
        if "image" in columns and len(prepared) == len(rows):
            arguments["images"] = _Prepared(prepared)
        if "image_features" in columns and all(isinstance(row, CheckedRow) for row in rows):
            arguments["image_features"] = _Checked(arguments["image_features"])
        return self(return_tensors="pt", **{**kwargs, **arguments})

    def _image_columns_of(self, rows: Sequence[Mapping[str, Any]]) -> list[str]:
        """The columns that make the images of rows."""
        columns = [name for name in self.image_columns if any(name in row for row in rows)]
        if "image_features" in columns and "image" in columns:
            columns.remove("image")
        if not {"image", "image_features"} & set(columns):
            raise ValueError(
                f"a row needs 'image' or 'image_features'; this one has {sorted(rows[0]) if rows else []}."
            )
        for name in columns:
            lacking = [row.get("image_id") for row in rows if name not in row]
            if lacking:
                raise ValueError(
                    f"image_id {lacking[0]!r}: the row lacks {name!r}, which another row of the batch has; give all "
                    "rows the same columns."
                )
        return columns

    def _prompts(self, texts: list[str]) -> torch.Tensor:
        ids = self._encode(texts, add_special_tokens=False)
        self._refuse_unknown_words(texts, ids)
        lengths = sorted({len(row) for row in ids})
        if len(lengths) > 1:
            raise ValueError(f"the beginnings in text must have the same number of tokens in a batch, not {lengths}.")
        return torch.tensor([[self.tokenizer.bos_token_id, *row] for row in ids])

    def _refuse_unknown_words(self, texts: list[str], ids: list[list[int]]) -> None:
        """Refuse beginnings that would show up in the caption as the unknown word."""
        wrong = [text for text, row in zip(texts, ids, strict=True) if self.tokenizer.unk_token_id in row]
        if wrong:
            known = self.tokenizer.get_vocab().keys() - {self.tokenizer.unk_token}
            unknown = sorted({word for text in wrong for word in self._split(text)} - known)
            raise ValueError(
                f"the captioner's vocabulary does not have {', '.join(map(repr, unknown[:5] or wrong[:1]))}: a caption "
                "can only begin with words that it has."
            )

    def _encode(self, texts: list[str], **options: Any) -> list[list[int]]:
        """Ids of texts, with a readable error where the vocabulary has no unknown word."""
        try:
            return self.tokenizer(texts, **options).input_ids
        except Exception as error:
            if "Missing [UNK]" not in str(error):  # tokenizers raises a bare Exception
                raise
            known = self.tokenizer.get_vocab()
            unknown = sorted({word for text in texts for word in self._split(text)} - known.keys())
            raise ValueError(
                f"the vocabulary has neither {', '.join(map(repr, unknown[:5]))} nor an unknown word to take its place."
            ) from error

    def _split(self, text: str) -> list[str]:
        """The words of a text as the tokenizer's rules make them."""
        backend = self.tokenizer.backend_tokenizer
        normal = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
        return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)]

    def _labels(self, captions: list[str]) -> torch.Tensor:
        encoded = self._encode(captions, truncation=True)
        targets = [torch.tensor(ids[1:]) for ids in encoded]  # without the start token
        return torch.nn.utils.rnn.pad_sequence(targets, batch_first=True, padding_value=-100)

    def training_extras(
        self, shown: Sequence[Sequence[str]], captions: Sequence[Sequence[str]], draws: Sequence[random.Random]
    ) -> dict[str, Any]:
        """Further arguments for a call on a training batch; none here. Used by [`CaptionCollator`].

        Args:
            shown (`Sequence[Sequence[str]]`): for every picture the captions that the batch teaches.
            captions (`Sequence[Sequence[str]]`): for every picture all captions that it has.
            draws (`Sequence[random.Random]`): for every picture what chance is taken from.

        Returns:
            `dict[str, Any]`
        """
        return {}

    def candidate_extras(self, num_candidates: int, draws: Sequence[random.Random]) -> dict[str, Any]:
        """Further arguments for a call on a batch of which captions are written to learn from; none here. Used by
        [`RewardCollator`].

        Args:
            num_candidates (`int`): captions of every picture.
            draws (`Sequence[random.Random]`): for every picture what chance is taken from.

        Returns:
            `dict[str, Any]`
        """
        return {}

    def batch_decode(self, token_ids: Any, sentences: bool = False, **kwargs: Any) -> list[str]:
        """Captions as text: the words up to the end token, without start token and padding. Unknown words stay visible.

        Args:
            token_ids (`torch.LongTensor` of shape `(N, T)` or nested lists): what `generate` returned.
            sentences (`bool`, defaults to `False`): with a capital letter and a full stop, for display.
            kwargs: not used; accepted because transformers' pipelines pass `skip_special_tokens`.

        Returns:
            `list[str]`: an empty string for a caption without words.
        """
        rows = token_ids.tolist() if isinstance(token_ids, torch.Tensor) else token_ids
        tokenizer: Any = self.tokenizer
        end = tokenizer.eos_token_id
        silent = {tokenizer.bos_token_id, tokenizer.pad_token_id, end}
        captions = [tokenizer.decode(self._words(row, end, silent)).strip() for row in rows]
        return (
            [caption.capitalize().rstrip(" .") + "." if caption else "" for caption in captions]
            if sentences
            else captions
        )

    def decode(self, token_ids: Any, **kwargs: Any) -> str:
        """A caption as text; see `batch_decode`."""
        return self.batch_decode([token_ids], **kwargs)[0]

    def _words(self, ids: Any, end: int | None, silent: set[int | None]) -> list[int]:
        """Ids of a caption up to the end token, without the silent ones."""
        ids = [int(token) for token in ids]
        if end in ids[1:]:  # some models start with their end token
            ids = ids[: ids.index(end, 1)]
        return [token for token in ids if token not in silent]

    def post_process_image_text_to_text(self, generated_outputs: Any, **kwargs: Any) -> list[str]:
        """Captions of `generate`'s output, for transformers' `image-text-to-text` pipeline."""
        return self.batch_decode(generated_outputs)

    @property
    def model_input_names(self) -> list[str]:
        return ["pixel_values", "image_features", "image_attention_mask", "decoder_input_ids", "labels"]

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: Any, *args: Any, trust_remote_code: bool = False, **kwargs: Any
    ) -> Any:
        """Load as in transformers; a foreign tokenizer's code runs with `trust_remote_code` only.

        Raises:
            ValueError: the rules of the tokenizer can explode (`tokenization_limits`).
        """
        check_tokenizer(pretrained_model_name_or_path, **kwargs)
        return super().from_pretrained(
            pretrained_model_name_or_path, *args, trust_remote_code=trust_remote_code, **kwargs
        )

    def save_pretrained(self, save_directory: Any, *args: Any, ship_code: bool = False, **kwargs: Any) -> Any:
        """Save as in transformers; with `ship_code=True` beside a model that ships its code too.

        Args:
            save_directory (`str` or `Path`): the folder.
            ship_code (`bool`, defaults to `False`): also save the processor's code, for `trust_remote_code=True`.
        """
        if self._auto_class is None:  # forget the code that an earlier save or the folder it came from had
            for settings in (vars(self), vars(self.image_processor), self.tokenizer.init_kwargs):
                settings.pop("auto_map", None)
        if not ship_code:
            return super().save_pretrained(save_directory, *args, **kwargs)
        classes: dict[Any, str] = {type(self): "AutoProcessor"}
        if type(self.image_processor).__module__.split(".")[0] != "transformers":  # theirs is everywhere already
            classes[type(self.image_processor)] = "AutoImageProcessor"
        with registered(classes):
            return super().save_pretrained(save_directory, *args, **kwargs)


class ExpansionNetV2Processor(CaptionerProcessor):
    """[`CaptionerProcessor`] under the name that folders of ExpansionNet v2 have in their `processor_config.json`."""


class SaticProcessor(CaptionerProcessor):
    """[`CaptionerProcessor`] under the name that folders of SATIC have in their `processor_config.json`."""


# --- any processor ----------------------------------------------------------------------------------------------------


def is_captioner_processor(processor: Any) -> TypeGuard[CaptionerProcessor]:
    """Tell whether a processor is a captioner's, be it of code that came with a checkpoint and was imported elsewhere.

    Such code is imported anew for each of its entries, so that there can be several classes of the name.

    Args:
        processor: any object.
    """
    return any(parent.__name__ == CaptionerProcessor.__name__ for parent in type(processor).__mro__)


def open_row(processor: Any, row: Mapping[str, Any], **limits: Any) -> dict[str, Any]:
    """Open the image of a row for any processor; see [`CaptionerProcessor.open_row`].

    Args:
        processor (`ProcessorMixin`): a captioner's, or another one with an image processor.
        row, limits: see there.

    Returns:
        `dict`
    """
    if is_captioner_processor(processor):
        return processor.open_row(row, **limits)
    return _opened(row, processor.image_processor, **limits)


class _OpenedRow(dict[str, Any]):
    """A row whose image was opened for an image processor, and need not be looked at once more for it.

    With `pixel_values` `(3, height, width)` it is prepared, too.
    """

    def __init__(self, row: Mapping[str, Any], image: Any, image_processor: Any) -> None:
        super().__init__({**row, "image": image})
        self.image, self.image_processor = image, image_processor
        self.pixel_values: torch.Tensor | None = None


class CheckedRow(dict[str, Any]):
    """A row whose `image_features` are known to be numbers to compute with, as those of a [`FeatureStore`] are."""


class _Checked(list[torch.Tensor]):
    """The features of checked rows."""


class _Prepared(list[torch.Tensor]):
    """Images that an image processor has prepared already, `(3, height, width)` each."""


def prepare_images(processor: Any, rows: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Prepare the images of open rows where they are opened, in a thread ahead of the model.

    Nothing is done, and `prepare_rows` does everything, for a processor that is not a captioner's, for one whose images
    are prepared in torch (with all threads, and best where nothing else runs), for images beside features, and for
    those that the image processor refuses.

    Args:
        processor (`ProcessorMixin`): the captioner's.
        rows (`Sequence[Mapping]`): of `open_row`; they get the images.
        device (`torch.device`): where the model is. For a CUDA device the images are in pinned memory, from which
            `move_images` copies them without waiting.
    """
    if not is_captioner_processor(processor) or not isinstance(processor.image_processor, PilBackend):
        return
    opened = [row for row in rows if isinstance(row, _OpenedRow) and row.image_processor is processor.image_processor]
    if not opened:
        return
    try:
        batch = processor.image_processor([row.image for row in opened], return_tensors="pt")["pixel_values"]
    except ValueError:
        return
    for row, pixel_values in zip(opened, batch.pin_memory() if device.type == "cuda" else batch, strict=True):
        row.pixel_values = pixel_values


def move_images(rows: Sequence[Mapping[str, Any]], device: torch.device) -> None:
    """Move the prepared images of rows to a device; they arrive before what is asked of it next."""
    for row in rows:
        if isinstance(row, _OpenedRow) and row.pixel_values is not None:
            row.pixel_values = row.pixel_values.to(device, non_blocking=True)


def _opened(row: Mapping[str, Any], image_processor: Any, **limits: Any) -> dict[str, Any]:
    if isinstance(row, CheckedRow):
        return row
    if "image_features" in row or "image" not in row:
        return dict(row)
    if isinstance(row, _OpenedRow) and row.image is row["image"] and row.image_processor is image_processor:
        return row
    return _OpenedRow(row, open_resized(row["image"], image_processor, **limits), image_processor)


def prepare_rows(processor: Any, rows: Sequence[Mapping[str, Any]], **kwargs: Any) -> BatchFeature:
    """Make a model's inputs of rows, with any processor; that of another library looks at images alone.

    Args:
        processor (`ProcessorMixin`): a captioner's, or another one with an image processor.
        rows, kwargs: see [`CaptionerProcessor.prepare_rows`].

    Returns:
        `BatchFeature`

    Raises:
        ValueError, ImageError: see there.
    """
    if is_captioner_processor(processor):
        return processor.prepare_rows(rows, **kwargs)
    if any("image" not in row for row in rows):
        raise ValueError(f"a {type(processor).__name__} looks at the 'image' of a row; one has {sorted(rows[0])}.")
    images = [_opened(row, processor.image_processor)["image"] for row in rows]
    return processor(images=images, return_tensors="pt", **kwargs)


def image_columns(processor: Any) -> Mapping[str, str]:
    """Prepare as [`CaptionerProcessor`] does; that of another library looks at images alone."""
    return processor.image_columns if is_captioner_processor(processor) else {"image": "images"}


def padding_values(processor: Any) -> Mapping[str, int]:
    """Prepare as [`CaptionerProcessor`] does."""
    return processor.padding_values if is_captioner_processor(processor) else {}
