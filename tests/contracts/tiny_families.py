"""A tiny captioner of transformers of every family, and what transformers alone makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
)

from hf_captioners import CaptionerProcessor

from .reward_policies import SIDE, WORDS, tiny_policy

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "<image>", "[INST]"]
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS, "photo", "of", "describe", "this", ":"])}
PAD, CLS, SEP, DEC, IMAGE = (VOCABULARY[token] for token in ("[PAD]", "[CLS]", "[SEP]", "[DEC]", "<image>"))
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
WIDE = {**SMALL, "initializer_range": 0.5}  # images look different, and captions end
VISION = {**WIDE, "image_size": SIDE, "patch_size": 8}


def words_tokenizer(start: str | None, **extra: Any) -> PreTrainedTokenizerFast:
    """Words as tokens, in the manner of BERT's tokenizer; `[SEP]` ends captions."""
    backend = Tokenizer(models.WordLevel(VOCABULARY, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token=start, eos_token="[SEP]", model_max_length=64, **extra,
    )  # fmt: skip


@dataclass
class Kind:
    """How transformers documents a model of a family.

    Attributes:
        make (`Callable`): the model.
        processor (`Callable`): its processor.
        loss (`Callable`): of model, processor, images and captions, by `model(**inputs, labels=…)`.
        inputs (`Callable`): of processor and images, what `generate` takes.
        writer (`Callable`): the part of the model whose `compute_transition_scores` it is.
        start (`int`): tokens before the first word in what `generate` returns.
        tower (`Callable`): part of the vision tower that every look at images calls once.
        lora (`list[str]`): layers for adapters where peft knows none.
    """

    make: Callable[[], Any]
    processor: Callable[[], Any]
    loss: Callable[[Any, Any, list, list[str]], torch.Tensor]
    inputs: Callable[[Any, list], dict[str, Any]]
    writer: Callable[[Any], Any] = lambda model: model
    start: int = 1
    tower: Callable[[Any], Any] = lambda model: model.vision_model.embeddings
    lora: Sequence[str] | None = None


def images_only(processor: Any, images: list) -> dict[str, Any]:
    return dict(processor(images=images, return_tensors="pt"))


def padded(rows: list[list[int]], value: int) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def ids_of(processor: Any, captions: list[str], *start: int) -> list[list[int]]:
    return [[*start, *row, SEP] for row in processor.tokenizer(captions, add_special_tokens=False).input_ids]


# -- BLIP --------------------------------------------------------------------------------------------------------------


def blip() -> Any:
    ids = {"bos_token_id": DEC, "eos_token_id": SEP, "sep_token_id": SEP, "pad_token_id": PAD}
    text = {**WIDE, **ids, "vocab_size": len(VOCABULARY), "encoder_hidden_size": 16, "max_position_embeddings": 24}
    text |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BlipConfig(text_config=text, vision_config=VISION, projection_dim=8, image_text_hidden_size=8)
    return BlipForConditionalGeneration(config)


def blip_processor() -> Any:
    return BlipProcessor(BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), words_tokenizer("[DEC]"))


def blip_loss(model: Any, processor: Any, images: list, captions: list[str]) -> torch.Tensor:
    """As the notebooks that fine-tune BLIP, which use the ids as labels; with `[DEC]` before the words."""
    rows = ids_of(processor, captions, DEC)
    labels = padded(rows, -100)
    pixels = processor(images=images, return_tensors="pt").pixel_values
    return model(
        pixel_values=pixels, input_ids=padded(rows, PAD), attention_mask=(labels != -100).long(), labels=labels
    ).loss


# -- GIT ---------------------------------------------------------------------------------------------------------------


def git() -> Any:
    ids = {"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD}
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return GitForCausalLM(GitConfig(**WIDE, **ids, **rates, vocab_size=len(VOCABULARY), vision_config=VISION))


def git_processor() -> Any:
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return GitProcessor(CLIPImageProcessorPil(**size), words_tokenizer("[CLS]"))


def git_loss(model: Any, processor: Any, images: list, captions: list[str]) -> torch.Tensor:
    rows = ids_of(processor, captions, CLS)
    labels = padded(rows, -100)
    pixels = processor(images=images, return_tensors="pt").pixel_values
    mask = (labels != -100).long()
    return model(pixel_values=pixels, input_ids=padded(rows, PAD), attention_mask=mask, labels=labels).loss


# -- VisionEncoderDecoderModel -----------------------------------------------------------------------------------------


def pair_processor() -> Any:
    from .reward_policies import TOKENIZER

    return CaptionerProcessor(ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}), TOKENIZER)


def pair_loss(model: Any, processor: Any, images: list, captions: list[str]) -> torch.Tensor:
    return model(**processor(images=images, text_target=captions)).loss


KINDS = {
    "blip": Kind(
        blip, blip_processor, blip_loss, images_only, lambda model: model.text_decoder, lora=["query", "value"]
    ),
    "git": Kind(
        git, git_processor, git_loss, images_only, tower=lambda model: model.git.image_encoder.vision_model.embeddings,
        lora=["query", "value"],
    ),
    "vision-encoder-decoder": Kind(
        lambda: tiny_policy("vision-encoder-decoder"), pair_processor, pair_loss, images_only,
        tower=lambda model: model.encoder.embeddings, lora=["c_attn", "q_attn"],
    ),
}  # fmt: skip


def tiny_model(kind: str, seed: int = 0) -> Any:
    """A model of a few thousand parameters, the same one every time."""
    torch.manual_seed(seed)
    return KINDS[kind].make().eval()


def tiny_images(number: int = 3) -> list[Image.Image]:
    """Images that differ, of several sizes."""
    colours = ("red", "lime", "blue", "white", "black")
    images = [Image.new("RGB", (SIDE + 8 * (index % 2), SIDE), colour) for index, colour in enumerate(colours[:number])]
    for index, image in enumerate(images):
        image.putpixel((index, 2), (9, 99, 199))
    return images
