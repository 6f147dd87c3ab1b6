"""A clone of the repository after `make quickstart`, in which the blocks of the documents run.

Hub names are folders with small models here, and so are the files that the pages say come from others: the authors'
checkpoint and the detector.
"""

from __future__ import annotations

from pathlib import Path

import torch
from contracts import colour_detector, tiny_retriever
from contracts.documents import ROOT
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, SwinConfig, SwinModel, ViTImageProcessor

from hf_captioners import (
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    ScdnetForImageCaptioning,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.conversion.expansionnet_v2 import original_name
from hf_captioners.inference.build_retriever import build_retriever
from hf_captioners.modeling.captioner_retriever import CaptionRetriever
from hf_captioners.modeling.tokenization_words import SPECIAL_TOKENS

SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}


def write_place(folder: Path, quickstart: Path) -> None:
    """Fill a folder with what the quickstart has left, and with small models under the names of the Hub."""
    (folder / "quickstart").symlink_to(quickstart)
    (folder / "examples").symlink_to(ROOT / "examples")
    backbone = folder / "microsoft/swin-tiny-patch4-window7-224"
    SwinModel(SwinConfig(**SWIN)).save_pretrained(backbone)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(backbone)
    for part in colour_detector.build(min_proposal_size=0.0):  # the drawn pictures are small
        part.save_pretrained(folder / "bottom-up")
    write_clip(folder / "openai/clip-vit-base-patch32")
    write_original_checkpoint(folder)
    write_scdnet(folder, backbone)


def write_scdnet(folder: Path, backbone: Path) -> None:
    """A small SCD-Net with its retriever, and a photograph."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "time_frequencies": 4}
    captions = [caption for captions in tiny_retriever.CAPTIONS for caption in captions]
    model, processor = ScdnetForImageCaptioning.new(captions, backbone=backbone, min_count=1, **sizes)
    model.generation_config.num_inference_steps = 2
    clip = tiny_retriever.save_clip(folder / "clip")
    build_retriever(tiny_retriever.rows(), clip, folder / "retrieval", device="cpu")
    processor.retriever = CaptionRetriever.from_pretrained(folder / "retrieval")
    for part in (model, processor):
        part.save_pretrained(folder / "your-name/scdnet")
    tiny_retriever.rows()[0]["image"].save(folder / "photo.jpg")


def write_clip(folder: Path) -> None:
    """A small CLIP with the words of the drawn world."""
    words = ["a", "red", "green", "blue", "circle", "square", "star", *SPECIAL_TOKENS.values()]
    tokenizer = build_word_tokenizer(words, model_max_length=40)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 40, **special_token_ids(tokenizer)}
    del text["unk_token_id"]
    vision = {**size, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False).save_pretrained(folder)


def write_original_checkpoint(folder: Path) -> None:
    """A small stand-in for the authors' files, with the head count and groups that a checkpoint does not show."""
    import pickle

    words = sorted({"EOS", "PAD", "SOS", "UNK", "a", "dog", "red"})
    config = ExpansionNetV2Config(
        vocab_size=len(words), d_model=16, ffn_dim=16, encoder_layers=1, vision_config={"model_type": "swin", **SWIN},
        eos_token_id=0, pad_token_id=1, bos_token_id=2, unk_token_id=3,
    )  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    for name, value in ExpansionNetV2ForImageCaptioning(config).state_dict().items():
        theirs = original_name(name)
        state[theirs] = torch.cat((state[theirs], value)) if theirs in state else value
    windows = (SWIN["image_size"] // SWIN["patch_size"] // SWIN["window_size"] // 2) ** 2
    state["swin_transf.layers.1.blocks.1.attn_mask"] = torch.zeros(windows, 16, 16)
    torch.save({"model_state_dict": state}, folder / "rf_model.pth")
    vocabulary = {
        "word2idx_dict": {word: index for index, word in enumerate(words)},
        "idx2word_list": words,
        "sos_str": "SOS",
        "eos_str": "EOS",
    }
    (folder / "demo_coco_tokens.pickle").write_bytes(pickle.dumps(vocabulary))
