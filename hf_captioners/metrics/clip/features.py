"""Pictures and captions through a CLIP model: the features that CLIP-S and PAC-S compare.

Radford et al., 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from transformers import (
    BaseImageProcessor,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from ...data.progress import progress
from ...modeling.captioner_dual_encoder import (
    DualEncoder,
    check_dual_encoder,
    embed_images,
    embed_texts,
    load_dual_encoder,
)
from ...modeling.captioner_image_io import ImageError
from ...modeling.image_processing_captioner import open_for_processor
from ..inputs import MetricInputError

Captions: TypeAlias = Sequence[str] | Sequence[Sequence[int]] | Tensor
Images: TypeAlias = Sequence[Any] | Tensor

SHOWN_DIGITS = 12  # of hashes in settings


def fill_ids(
    rows: Captions,
    *,
    fill_token_id: int,
    bos_token_id: int,
    eos_token_id: int,
    pad_token_id: int | None = None,
    length: int = 77,
) -> Tensor:
    """Token ids of a captioner as a CLIP text tower takes them: from BOS on, filled to the tower's length.

    This is what the DiCO code does with generated ids (it fills with 0 for PAC-S, with EOS for CLIP-S), except for
    captions that are too long, where it stops: here they end like a text that the CLIP tokenizer truncates.

    Args:
        rows (`Sequence[Sequence[int]]` or `torch.Tensor` of shape (captions, tokens)): the ids. A row that does not
            begin with BOS gets one.
        fill_token_id (`int`): replaces each PAD, also between two words, and fills up a row.
        bos_token_id, eos_token_id (`int`): of the CLIP model.
        pad_token_id (`int`, *optional*): PAD of the captioner; `None` if no row has any.
        length (`int`, defaults to 77): tokens per row; a longer caption is cut and ends with EOS.

    Returns:
        `torch.Tensor` of shape (captions, length): int64, on the CPU.

    Example:

    ```python
    >>> from hf_captioners.metrics.clip.features import fill_ids
    >>> fill_ids([[7, 3, 9, 9]], fill_token_id=0, bos_token_id=6, eos_token_id=7, pad_token_id=9, length=6).tolist()
    [[6, 7, 3, 0, 0, 0]]

    ```
    """
    filled = torch.full((len(rows), length), fill_token_id)
    for row, ids in enumerate(rows.tolist() if isinstance(rows, Tensor) else rows):
        tokens = [int(token) for token in ids]
        while tokens and tokens[-1] == pad_token_id:
            tokens.pop()
        if tokens[:1] != [bos_token_id]:
            tokens.insert(0, bos_token_id)
        if len(tokens) > length:
            tokens = [*tokens[: length - 1], eos_token_id]
        tokens = [fill_token_id if token == pad_token_id else token for token in tokens]
        filled[row, : len(tokens)] = torch.tensor(tokens)
    return filled


class ClipFeatures:
    """A CLIP model with its tokenizer and image processor.

    Args:
        model (`str`, `Path`, `CLIPModel` or `VisionTextDualEncoderModel`): the model, or its folder or Hub name. An
            object is put into eval mode, and moved if `device` or `dtype` says so.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): for captions as text; by default from the model's folder.
        image_processor (`BaseImageProcessor`, *optional*): for pictures; by default from the model's folder. Like the
            tokenizer it may be missing where nothing needs it: features, `pixel_values` and token ids are scored.
        pad_token_id (`int`, *optional*): PAD in the token ids of the captioner, for captions as ids.
        fill_token_id (`int`, *optional*): the id that takes the place of PAD there, see [`fill_ids`]; by default EOS.
        batch_size (`int`, defaults to 64): pictures or captions at a time.
        device (`str` or `torch.device`, *optional*): by default the CPU, or where the model object is.
        dtype (`torch.dtype`, *optional*): of the computation, by default float32, or that of the model object.
            Features come back in float32 in any case.
        show_progress (`bool`, defaults to `False`): a progress bar for the pictures on a terminal.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with the model's folder may run.

    Raises:
        TypeError: another kind of model.
    """

    def __init__(
        self,
        model: str | Path | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        image_processor: BaseImageProcessor | None = None,
        *,
        pad_token_id: int | None = None,
        fill_token_id: int | None = None,
        batch_size: int = 64,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        show_progress: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        if isinstance(model, (str, Path)):
            model, tokenizer, image_processor = load_dual_encoder(
                model, trust_remote_code, dtype or torch.float32, tokenizer, image_processor
            )
        encoder = check_dual_encoder(model)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}, expected at least 1")
        encoder.to(device or encoder.device, dtype or encoder.dtype)  # type: ignore[arg-type]
        self.model: DualEncoder = encoder.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.pad_token_id = pad_token_id
        self.fill_token_id = fill_token_id
        self.batch_size = batch_size
        self.show_progress = show_progress

    @functools.cached_property
    def _weights(self) -> str:
        return _hash_weights(self.model)

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that features depend on: model, dtype, hashes of weights, image processor and tokenizer."""
        return {
            "model": self.model.config.name_or_path,
            "weights": self._weights,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "image_processor": _hash_image_processor(self.image_processor),
            "tokenizer": _hash_tokenizer(self.tokenizer),
        }

    @torch.no_grad()
    def image_features(self, images: Images, names: Sequence[Any] | None = None) -> Tensor:
        """Features of pictures.

        Args:
            images: pictures (paths, URLs, bytes, PIL pictures: what `open_image` takes, or tensors of shape (3, height,
                width)), of which one that occurs several times is encoded once; or `pixel_values` of shape (images, 3,
                height, width); or features of shape (images, width), which are returned as they are.
            names (`Sequence`, *optional*): of the pictures, for messages; by default positions.

        Returns:
            `torch.Tensor` of shape (images, width): float32, projected, not normalised.

        Raises:
            ImageError: a picture that cannot be read; its name and its source are given.
            ValueError: no image processor, or a tensor of another shape.
        """
        if isinstance(images, Tensor):
            return self._prepared_images(images)
        if not len(images):
            raise MetricInputError("no images to score; expected at least one")
        first_position: dict[Any, int] = {}  # a picture -> where it occurs first
        keys = [os.fspath(image) if isinstance(image, (str, os.PathLike)) else id(image) for image in images]
        for position, key in enumerate(keys):
            first_position.setdefault(key, position)
        labels = range(len(keys)) if names is None else names
        positions = list(first_position.values())
        if self.show_progress:
            positions = progress(positions, desc="pictures", unit="image")
        prepare = (self._open(images[position], labels[position]) for position in positions)
        features = self._in_batches(prepare, lambda batch: self._encode_pixels(torch.stack(batch)))
        place = {key: row for row, key in enumerate(first_position)}
        return features[[place[key] for key in keys]]

    @torch.no_grad()
    def text_features(self, captions: Captions) -> Tensor:
        """Features of captions.

        Args:
            captions (`Sequence[str]`, `Sequence[Sequence[int]]` or `torch.Tensor` of shape (captions, tokens)): texts,
                truncated to the length of the model, of which equal ones are encoded once; or token ids, see
                [`fill_ids`].

        Returns:
            `torch.Tensor` of shape (captions, width): float32, projected, not normalised.

        Raises:
            ValueError: no tokenizer for texts; ids outside the model's vocabulary, or given to a model whose text tower
                is not CLIP's.
        """
        if not len(captions):
            raise MetricInputError("no captions to score; expected at least one")
        if isinstance(captions[0], str):
            distinct = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
            return self._in_batches(distinct, self._encode_texts)[[distinct[caption] for caption in captions]]
        return self._in_batches(self.fill_ids(captions), lambda batch: self._encode_ids(torch.stack(batch)))

    def fill_ids(self, captions: Captions) -> Tensor:
        """The ids of captions as inputs of the text tower, see [`fill_ids`].

        Args:
            captions (`Sequence[Sequence[int]]` or `torch.Tensor` of shape (captions, tokens)): token ids.

        Returns:
            `torch.Tensor` of shape (captions, length of the model): int64.

        Raises:
            ValueError: see [`~ClipFeatures.text_features`].
        """
        if not isinstance(self.model, CLIPModel):
            raise ValueError(f"a {type(self.model).__name__} takes captions as text; token ids need a CLIPModel")
        text: Any = self.model.config.text_config
        # Configurations from before transformers 4.32 hold 0 and 2; in CLIP's vocabulary BOS and EOS are the last two.
        bos = text.vocab_size - 2 if text.bos_token_id in (None, 0) else text.bos_token_id
        eos = text.vocab_size - 1 if text.eos_token_id in (None, 2) else text.eos_token_id
        filled = fill_ids(
            captions,
            fill_token_id=eos if self.fill_token_id is None else self.fill_token_id,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=self.pad_token_id,
            length=text.max_position_embeddings,
        )
        wrong = ((filled < 0) | (filled >= text.vocab_size)).nonzero()
        if len(wrong):
            row, column = wrong[0].tolist()
            raise ValueError(
                f"caption {row}: token id {int(filled[row, column])} is not in the CLIP model's vocabulary of "
                f"{text.vocab_size}; if it is the captioner's PAD, give pad_token_id"
            )
        return filled

    def _prepared_images(self, images: Tensor) -> Tensor:
        width = self.model.config.projection_dim
        if images.dim() == 4:
            return self._in_batches(images, lambda batch: self._encode_pixels(torch.stack(batch)))
        if images.dim() != 2 or images.shape[1] != width:
            raise ValueError(
                f"images of shape {tuple(images.shape)}; expected pixel_values (images, 3, height, width) or features "
                f"(images, {width})"
            )
        return images.to(self.model.device, torch.float32)

    def _open(self, image: Any, name: Any) -> Tensor:
        if isinstance(image, Tensor):
            return image
        if self.image_processor is None:
            raise ValueError(
                "no image_processor to prepare pictures with: the model's folder has no preprocessor_config.json; give "
                "image_processor=, or prepared pixel_values"
            )
        try:
            opened_image = open_for_processor(image, self.image_processor)
        except ImageError as error:
            raise ImageError(f"image {name}: {error}") from error
        return self.image_processor(images=opened_image, return_tensors="pt")["pixel_values"][0]

    def _encode_pixels(self, pixel_values: Tensor) -> Tensor:
        return embed_images(self.model, pixel_values)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        if self.tokenizer is None:
            raise ValueError("no tokenizer for captions as text: the model's folder has none; give tokenizer=")
        return embed_texts(self.model, self.tokenizer, texts)

    def _encode_ids(self, ids: Tensor) -> Tensor:
        # The tower is causal and pools at the first EOS: of the filling behind the longest caption, one token counts.
        differ = (ids != ids[:, -1:]).any(0).nonzero()  # (columns with anything but the filling, 1)
        length = int(differ.max()) + 2 if len(differ) else 1
        return self.model.get_text_features(input_ids=ids[:, :length].to(self.model.device)).pooler_output

    def _in_batches(self, inputs: Iterable[Any], encode: Callable[[list[Any]], Tensor]) -> Tensor:
        """Features of all inputs, (inputs, width) in float32; inputs are read batch by batch."""
        features: list[Tensor] = []
        batch: list[Any] = []
        for item in inputs:
            batch.append(item)
            if len(batch) == self.batch_size:
                features.append(encode(batch).float())
                batch = []
        if batch:
            features.append(encode(batch).float())
        return torch.cat(features)


def _hash_weights(model: PreTrainedModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:SHOWN_DIGITS]


def _hash_tokenizer(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    if tokenizer is None:
        return None
    if isinstance(tokenizer, PreTrainedTokenizerFast):
        content: Any = json.loads(tokenizer.backend_tokenizer.to_str())
        content.update(padding=None, truncation=None)  # of the last call
    else:
        content = sorted(tokenizer.get_vocab().items())
    text = json.dumps([type(tokenizer).__name__, tokenizer.model_max_length, content])
    return hashlib.sha256(text.encode()).hexdigest()[:SHOWN_DIGITS]


def _hash_image_processor(image_processor: BaseImageProcessor | None) -> str | None:
    if image_processor is None:
        return None
    return hashlib.sha256(image_processor.to_json_string().encode()).hexdigest()[:SHOWN_DIGITS]
