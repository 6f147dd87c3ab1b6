"""CLIP models, which bring pictures and texts into one space: loading them, and their embeddings.

Radford et al., 2021, "Learning Transferable Visual Models From Natural Language Supervision".
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderModel,
)

from .captioner_trust import load_pretrained

DualEncoder: TypeAlias = CLIPModel | VisionTextDualEncoderModel

TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer_config.json")
IMAGE_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


def check_dual_encoder(model: Any) -> DualEncoder:
    """Refuse another kind of model.

    Args:
        model (`PreTrainedModel`): expected to be a `CLIPModel` or a `VisionTextDualEncoderModel`.

    Returns:
        `CLIPModel` or `VisionTextDualEncoderModel`: the model.

    Raises:
        TypeError: it is something else.
    """
    if not isinstance(model, (CLIPModel, VisionTextDualEncoderModel)):
        raise TypeError(f"a {type(model).__name__} is no CLIPModel or VisionTextDualEncoderModel")
    return model


def load_dual_encoder(
    source: str | Path,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    tokenizer: PreTrainedTokenizerBase | None = None,
    image_processor: Any = None,
) -> tuple[DualEncoder, PreTrainedTokenizerBase | None, Any]:
    """Load a dual encoder with its tokenizer and its image processor.

    Args:
        source (`str` or `Path`): folder or Hub name.
        trust_remote_code (`bool`, defaults to `False`): whether code that comes with it may run.
        dtype (`torch.dtype`, defaults to `torch.float32`): of the model.
        tokenizer (`PreTrainedTokenizerBase`, *optional*), image_processor (`BaseImageProcessor`, *optional*): in the
            place of those of the source.

    Returns:
        `tuple`: the model in evaluation mode, the tokenizer and the image processor; `None` for what a folder lacks.

    Raises:
        TypeError: another kind of model.
        OSError, ValueError: it cannot be loaded.
    """
    model = check_dual_encoder(load_pretrained(AutoModel, source, trust_remote_code, dtype=dtype))
    if tokenizer is None and _has_any_file(source, TOKENIZER_FILES):
        tokenizer = load_pretrained(AutoTokenizer, source, trust_remote_code)
    if image_processor is None and _has_any_file(source, IMAGE_PROCESSOR_FILES):
        image_processor = load_pretrained(AutoImageProcessor, source, trust_remote_code, backend="pil")
    return model.eval(), tokenizer, image_processor


def _has_any_file(folder: str | Path, names: Sequence[str]) -> bool:
    """Tell whether files can be expected there: any Hub name, or a folder with one of them."""
    return not Path(folder).is_dir() or any((Path(folder) / name).exists() for name in names)


def embed_images(model: DualEncoder, pixel_values: torch.Tensor) -> torch.Tensor:
    """The projected embeddings of pictures, not normalised.

    Args:
        model (`CLIPModel` or `VisionTextDualEncoderModel`): the encoder.
        pixel_values (`torch.Tensor` of shape `(B, 3, height, width)`): preprocessed pictures.

    Returns:
        `torch.Tensor` of shape `(B, projection_dim)`: on the model's device, in its type.
    """
    return model.get_image_features(pixel_values=pixel_values.to(model.device, model.dtype)).pooler_output


def embed_texts(model: DualEncoder, tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> torch.Tensor:
    """The projected embeddings of texts, not normalised; texts are truncated to the length of the text tower.

    Args:
        model (`CLIPModel` or `VisionTextDualEncoderModel`): the encoder.
        tokenizer (`PreTrainedTokenizerBase`): of its texts.
        texts (`list[str]`): one batch.

    Returns:
        `torch.Tensor` of shape `(B, projection_dim)`: on the model's device, in its type.
    """
    settings: Any = model.config.text_config
    length = min(tokenizer.model_max_length, settings.max_position_embeddings)
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
    return model.get_text_features(**inputs.to(model.device)).pooler_output
