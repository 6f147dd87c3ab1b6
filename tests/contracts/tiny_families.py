"""A tiny captioner of transformers of every family, and what transformers alone makes of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipProcessor,
    Kosmos2Config,
    Kosmos2ForConditionalGeneration,
    Kosmos2Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    SiglipImageProcessorPil,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    ViTImageProcessorPil,
)

from hf_captioners import CaptionerProcessor
from hf_captioners.families.images_alone import images_alone

from .reward_policies import SIDE, WORDS, tiny_policy

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "<image>", "[INST]", "<boi>", "<eoi>"]
SPECIAL += ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
SPECIAL += ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
VOCABULARY = {word: index for index, word in enumerate([*SPECIAL, *WORDS, "photo", "of", "describe", "this"])}
SIZE = len(VOCABULARY) + 24  # with the tokens that some processors add
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
        start (`int`, *optional*): tokens before the first word in what `generate` returns; `None`: of a prompt.
        clean (`Callable`): what transformers documents to be done with a decoded text.
        lora (`list[str]`): layers for adapters where peft knows none.
    """

    make: Callable[[], Any]
    processor: Callable[[], Any]
    loss: Callable[[Any, Any, list, list[str]], torch.Tensor]
    inputs: Callable[[Any, list], dict[str, Any]]
    writer: Callable[[Any], Any] = lambda model: model
    start: int | None = 1
    clean: Callable[[Any, str], str] = lambda processor, text: text
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
    text = {**WIDE, **ids, "vocab_size": SIZE, "encoder_hidden_size": 16, "max_position_embeddings": 24}
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
    return GitForCausalLM(GitConfig(**WIDE, **ids, **rates, vocab_size=SIZE, vision_config=VISION))


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


# -- BLIP-2, InstructBLIP ----------------------------------------------------------------------------------------------

OPT = {
    "model_type": "opt", "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "word_embed_proj_dim": 16, "vocab_size": SIZE, "max_position_embeddings": 64, "bos_token_id": CLS,
    "eos_token_id": SEP, "pad_token_id": PAD, "init_std": 0.5, "dropout": 0.0,
}  # fmt: skip
T5 = {
    "model_type": "t5", "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2,
    "vocab_size": SIZE, "decoder_start_token_id": PAD, "eos_token_id": SEP, "pad_token_id": PAD, "dropout_rate": 0.0,
}  # fmt: skip


def queried(model_class: Any, config_class: Any, text: dict[str, Any]) -> Callable[[], Any]:
    """A ViT, two queries and a language model."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    qformer = {**WIDE, **rates, "vocab_size": SIZE, "cross_attention_frequency": 1, "pad_token_id": PAD}

    parts = {"vision_config": VISION, "qformer_config": qformer, "text_config": text}

    def make() -> Any:
        model = model_class(config_class(**parts, num_query_tokens=2, image_token_index=IMAGE))
        torch.nn.init.normal_(model.query_tokens)
        return model

    return make


def blip2_processor() -> Any:
    image_processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return Blip2Processor(image_processor, words_tokenizer("[CLS]"), num_query_tokens=2)


def instructblip_processor() -> Any:
    image_processor = BlipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    return InstructBlipProcessor(
        image_processor, words_tokenizer("[CLS]"), words_tokenizer("[CLS]"), num_query_tokens=2
    )


def asked(prompt: str, nested: bool = False) -> Callable[[Any, list], dict[str, Any]]:
    """Inputs of images and a prompt, as processors of transformers make them."""

    def inputs(processor: Any, images: list) -> dict[str, Any]:
        given = [[image] for image in images] if nested else images
        padding = {"padding": True, "padding_side": "left"} if nested else {}
        made = processor(images=given, text=[prompt] * len(images), return_tensors="pt", **padding)
        return {name: value for name, value in made.items() if name != "labels"}

    return inputs


def loss_behind(inputs: Callable[[Any, list], dict[str, Any]], **types: int) -> Any:
    """The loss of a decoder that reads prompt and caption as one text, of which the prompt has no labels."""

    def loss(model: Any, processor: Any, images: list, captions: list[str]) -> torch.Tensor:
        made, rows = inputs(processor, images), ids_of(processor, captions)
        labels = padded(rows, -100)
        ids = torch.cat([made["input_ids"], padded(rows, PAD)], dim=1)
        made["attention_mask"] = torch.cat([made["attention_mask"], (labels != -100).long()], dim=1)
        for name, value in types.items():
            made[name] = torch.cat([made[name], torch.full_like(labels, value).to(made[name])], dim=1)
        silent = torch.full_like(made["input_ids"], -100)
        return model(**{**made, "input_ids": ids}, labels=torch.cat([silent, labels], dim=1)).loss

    return loss


def loss_of_decoder(inputs: Callable[[Any, list], dict[str, Any]], *start: int) -> Any:
    """The loss of an encoder-decoder, whose labels are the caption's ids."""

    def loss(model: Any, processor: Any, images: list, captions: list[str]) -> torch.Tensor:
        return model(**inputs(processor, images), labels=padded(ids_of(processor, captions, *start), -100)).loss

    return loss


# -- Florence-2 --------------------------------------------------------------------------------------------------------


def florence2() -> Any:
    vision = {
        "embed_dim": [8, 8], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2], "patch_size": [7, 3],
        "patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 2,
        "projection_dim": 16, "drop_path_rate": 0.0, "initializer_range": 0.5,
    }  # fmt: skip
    text = {
        "model_type": "bart", "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "vocab_size": SIZE, "dropout": 0.0,
        "max_position_embeddings": 64, "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD, "init_std": 0.5,
        "decoder_start_token_id": SEP, "forced_eos_token_id": None,
    }  # fmt: skip
    config = Florence2Config(vision_config=vision, text_config=text, image_token_id=IMAGE)
    return Florence2ForConditionalGeneration(config)


def florence2_processor() -> Any:
    image_processor = CLIPImageProcessorPil(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    image_processor.image_seq_length = 5  # the mean, and a grid of 2 x 2
    return Florence2Processor(
        image_processor, words_tokenizer("[CLS]", extra_special_tokens={"image_token": "<image>"})
    )


# -- PaliGemma, Kosmos-2 -----------------------------------------------------------------------------------------------

LLAMA = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
    "num_key_value_heads": 2, "vocab_size": SIZE, "max_position_embeddings": 128, "initializer_range": 0.5,
    "bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": PAD,
}  # fmt: skip
SIGLIP = {"model_type": "siglip_vision_model", **SMALL, "image_size": SIDE, "patch_size": 8, "vision_use_head": False}


def paligemma() -> Any:
    text = {"model_type": "gemma", **LLAMA}
    config = PaliGemmaConfig(
        text_config=text, vision_config=SIGLIP, image_token_index=IMAGE, projection_dim=16, hidden_size=16,
        vocab_size=SIZE,
    )  # fmt: skip
    return louder(PaliGemmaForConditionalGeneration(config), "multi_modal_projector")


def louder(model: Any, *parts: str) -> Any:
    """A model whose image features differ more, so that its captions do."""
    for name, parameter in model.named_parameters():
        if any(part in name for part in parts) and parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=2.0)
    return model


def paligemma_processor() -> Any:
    image_processor = SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})
    image_processor.image_seq_length = 4
    return PaliGemmaProcessor(
        image_processor, words_tokenizer("[CLS]", extra_special_tokens={"image_token": "<image>"})
    )


def kosmos2() -> Any:
    text = {
        "vocab_size": SIZE, "max_position_embeddings": 128, "embed_dim": 16, "layers": 1, "ffn_dim": 16,
        "attention_heads": 2, "dropout": 0.0, "attention_dropout": 0.0, "init_std": 0.5, "pad_token_id": PAD,
        "bos_token_id": CLS, "eos_token_id": SEP,
    }  # fmt: skip
    return Kosmos2ForConditionalGeneration(Kosmos2Config(text_config=text, vision_config=VISION, latent_query_num=2))


def kosmos2_processor() -> Any:
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    processor = Kosmos2Processor(CLIPImageProcessorPil(**size), words_tokenizer("[CLS]"), 8)
    processor.num_image_tokens = 2
    return processor


# -- chat models -------------------------------------------------------------------------------------------------------

TEMPLATE = (
    "{% for message in messages %}[INST] {% for part in message['content'] %}{% if part['type'] == 'image' %}IMAGE "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% if message['role'] == 'assistant' %}[SEP]{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[INST] {% endif %}"
)
QUESTION = "[INST] IMAGE Describe this image in one short sentence. [INST] "


def llava() -> Any:
    vision = {"model_type": "clip_vision_model", **VISION, "projection_dim": 16}
    config = LlavaConfig(
        vision_config=vision, text_config={"model_type": "llama", **LLAMA}, image_token_index=IMAGE,
        image_seq_length=4, vision_feature_layer=-1,
    )  # fmt: skip
    return asking(louder(LlavaForConditionalGeneration(config), "multi_modal_projector"))


def asking(model: Any) -> Any:
    model.generation_config.update(eos_token_id=SEP, pad_token_id=PAD)
    return model


def llava_processor() -> Any:
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    return LlavaProcessor(
        CLIPImageProcessorPil(**size), words_tokenizer("[CLS]", extra_special_tokens={"image_token": "<image>"}),
        patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip


def idefics3(model_class: Any, config_class: Any) -> Callable[[], Any]:
    def make() -> Any:
        vision, text = {**VISION, "patch_size": 4}, {"model_type": "llama", **LLAMA}
        config = config_class(
            vision_config=vision, text_config=text, image_token_id=IMAGE, scale_factor=2, pad_token_id=PAD
        )
        return asking(louder(model_class(config), "connector"))

    return make


def idefics3_processor() -> Any:
    edge = {"longest_edge": SIDE}
    image_processor = Idefics3ImageProcessorPil(size=edge, max_image_size=edge, do_image_splitting=False)
    template = TEMPLATE.replace("IMAGE", "<image>")
    return Idefics3Processor(image_processor, words_tokenizer("[CLS]"), image_seq_len=4, chat_template=template)


QWEN_IDS = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>",
            "vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}  # fmt: skip
QWEN_VISION = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 16,
    "spatial_merge_size": 2, "initializer_range": 0.5,
}  # fmt: skip


def qwen(model_class: Any, config_class: Any, **vision: Any) -> Callable[[], Any]:
    def make() -> Any:
        text = {**LLAMA, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
        ids = {name: VOCABULARY[token] for name, token in QWEN_IDS.items()}
        return asking(model_class(config_class(text_config=text, vision_config={**QWEN_VISION, **vision}, **ids)))

    return make


QWEN_TEMPLATE = TEMPLATE.replace("IMAGE", "<|vision_start|> <|image_pad|> <|vision_end|>")
QWEN_IMAGES = {
    "patch_size": 4, "merge_size": 2, "temporal_patch_size": 2, "size": {"shortest_edge": 64, "longest_edge": 1024}
}  # fmt: skip


def qwen_processor(processor_class: Any) -> Callable[[], Any]:
    tokens = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokens |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}

    def make() -> Any:
        tokenizer = words_tokenizer("[CLS]", extra_special_tokens=tokens)
        image_processor = Qwen2VLImageProcessorPil(**QWEN_IMAGES)
        return images_alone(processor_class)(image_processor, tokenizer, chat_template=QWEN_TEMPLATE)

    return make


def gemma3() -> Any:
    text = {**LLAMA, "sliding_window": 64, "layer_types": ["full_attention"], "query_pre_attn_scalar": 8}
    config = Gemma3Config(
        text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4, image_token_index=IMAGE,
        boi_token_index=VOCABULARY["<boi>"], eoi_token_index=VOCABULARY["<eoi>"], tie_word_embeddings=False,
    )  # fmt: skip
    model = Gemma3ForConditionalGeneration(config)
    model.get_input_embeddings().weight.data.mul_(0.1)  # each word would be followed by itself
    return asking(louder(model, "multi_modal_projector"))


def gemma3_processor() -> Any:
    tokens = {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        words_tokenizer("[CLS]", extra_special_tokens=tokens), chat_template=TEMPLATE.replace("IMAGE", "<boi>"),
        image_seq_length=4,
    )  # fmt: skip


def chat(make: Callable[[], Any], processor: Callable[[], Any], image: str = "<image>", **types: int) -> Kind:
    """A chat model, asked as its template has it."""
    return behind(make, processor, asked(QUESTION.replace("IMAGE", image), nested=True), **types)


# -- all of them -------------------------------------------------------------------------------------------------------

INSTRUCTION, TASK, CAPTION_EN = "Write a short description for the image.", "<CAPTION>", "<image>caption en"
QWEN_IMAGE = "<|vision_start|> <|image_pad|> <|vision_end|>"


def language_model(model: Any) -> Any:
    return model.language_model


def grounded(processor: Any, text: str) -> str:
    return processor.post_process_generation(text)[0]


def behind(
    make: Callable[[], Any],
    processor: Callable[[], Any],
    inputs: Any,
    parts: dict[str, Any] | None = None,
    **types: int,
) -> Kind:
    """A decoder that reads prompt and caption as one text; `parts` are of [`Kind`]."""
    loss = loss_behind(inputs, **types)
    return Kind(make, processor, loss, inputs, start=None, lora=["q_proj", "v_proj"], **(parts or {}))


KINDS = {
    "blip": Kind(
        blip, blip_processor, blip_loss, images_only, lambda model: model.text_decoder, lora=["query", "value"]
    ),
    "git": Kind(git, git_processor, git_loss, images_only, lora=["query", "value"]),
    "vision-encoder-decoder": Kind(
        lambda: tiny_policy("vision-encoder-decoder"), pair_processor, pair_loss, images_only, lora=["c_attn", "q_attn"]
    ),
    "blip-2": behind(
        queried(Blip2ForConditionalGeneration, Blip2Config, OPT), blip2_processor, asked(""),
        {"writer": language_model},
    ),
    "blip-2-t5": Kind(
        queried(Blip2ForConditionalGeneration, Blip2Config, T5), blip2_processor, loss_of_decoder(asked("")), asked(""),
        language_model,
    ),
    "instructblip": behind(
        queried(InstructBlipForConditionalGeneration, InstructBlipConfig, OPT), instructblip_processor,
        asked(INSTRUCTION), {"writer": language_model},
    ),
    "florence2": Kind(
        florence2, florence2_processor, loss_of_decoder(asked(TASK)), asked(TASK), lora=["q_proj", "v_proj"]
    ),
    "paligemma": behind(paligemma, paligemma_processor, asked(CAPTION_EN, nested=True), token_type_ids=1),
    "kosmos-2": behind(
        kosmos2, kosmos2_processor, asked("An image of"),
        {"writer": lambda model: model.text_model, "clean": grounded}, image_embeds_position_mask=0,
    ),
    "llava": chat(llava, llava_processor),
    "idefics3": chat(idefics3(Idefics3ForConditionalGeneration, Idefics3Config), idefics3_processor),
    "smolvlm": chat(idefics3(SmolVLMForConditionalGeneration, SmolVLMConfig), idefics3_processor),
    "qwen2_5_vl": chat(
        qwen(Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig, window_size=16, fullatt_block_indexes=[0]),
        qwen_processor(Qwen2_5_VLProcessor), QWEN_IMAGE, mm_token_type_ids=0,
    ),
    "qwen3_vl": chat(
        qwen(Qwen3VLForConditionalGeneration, Qwen3VLConfig, deepstack_visual_indexes=[0], num_position_embeddings=16),
        qwen_processor(Qwen3VLProcessor), QWEN_IMAGE, mm_token_type_ids=0,
    ),
    "gemma3": chat(gemma3, gemma3_processor, "<boi>", token_type_ids=0),
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
