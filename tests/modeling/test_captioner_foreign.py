"""Captioners of other people: tiny ones of transformers, against what transformers alone makes of them."""

import json

import pytest
import torch
from contracts.reward_policies import SIDE, TOKENIZER, tiny_policy
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
    T5Config,
    T5ForConditionalGeneration,
    ViTImageProcessorPil,
)

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.inference.caption_files import caption_files
from hf_captioners.modeling.captioner_foreign import check_can_caption, load_processor

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
WORDS = [*SPECIAL, "a", "red", "cat", "two", "dog", "on", "the", "grass"]
SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SMALL |= {"initializer_range": 1.0}  # pictures look different
LONGEST = 10


def words_tokenizer(start):
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token=start, eos_token="[SEP]",
    )  # fmt: skip


def save_blip(folder):
    ids = {"bos_token_id": 5, "eos_token_id": 3, "sep_token_id": 3, "pad_token_id": 0}
    text = {**SMALL, **ids, "vocab_size": len(WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 16}
    sizes = {"projection_dim": 8, "image_text_hidden_size": 8}
    vision = {**SMALL, "image_size": SIDE, "patch_size": 8}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision, **sizes))
    BlipProcessor(
        BlipImageProcessorPil(size={"height": SIDE, "width": SIDE}), words_tokenizer("[DEC]")
    ).save_pretrained(folder)
    return model


def save_git(folder):
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    vision = {**SMALL, "image_size": SIDE, "patch_size": 8}
    model = GitForCausalLM(GitConfig(**SMALL, **ids, vocab_size=len(WORDS), vision_config=vision))
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    GitProcessor(CLIPImageProcessorPil(**size), words_tokenizer("[CLS]")).save_pretrained(folder)
    return model


def save_pair(folder):
    TOKENIZER.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return tiny_policy("vision-encoder-decoder")


@pytest.fixture(params=[save_blip, save_git, save_pair])
def foreign(request, tmp_path):
    """A folder as transformers leaves it, its model, its tokenizer."""
    torch.manual_seed(0)
    model = request.param(tmp_path / "captioner").eval()
    model.generation_config.max_length = LONGEST
    model.save_pretrained(tmp_path / "captioner")
    return tmp_path / "captioner", model, TOKENIZER if request.param is save_pair else words_tokenizer(None)


@pytest.fixture()
def paths(tmp_path):
    paths = [str(tmp_path / f"{index}.png") for index in range(4)]
    for path, colour in zip(paths, ("red", "lime", "blue", "white"), strict=True):
        Image.new("RGB", (SIDE, SIDE), colour).save(path)
    return paths


def alone(folder, model, tokenizer, paths):
    """Every picture's caption alone, by transformers: the words up to the first end token."""
    processor = load_processor(model, folder)
    captions = []
    for path in paths:
        ids = model.generate(**processor(images=[Image.open(path)], return_tensors="pt"))[0].tolist()[1:]
        ends = [index for index, token in enumerate(ids) if token == model.generation_config.eos_token_id]
        words = tokenizer.convert_ids_to_tokens(ids[: ends[0]] if ends else ids)
        captions.append(" ".join(word for word in words if word not in tokenizer.all_special_tokens))
    return captions


def test_captions_have_no_special_tokens_at_any_batch_size(foreign, paths, capfd):
    folder, model, tokenizer = foreign
    expected = alone(folder, model, tokenizer, paths)
    assert len(set(expected)) > 1
    processor = load_processor(model, folder)
    for size in (1, 4):
        assert [record["caption"] for record in caption_files(model, processor, paths, size)] == expected
    captioner = hf_captioners.pipeline(model=str(folder))
    assert [one[0]["generated_text"] for one in captioner(paths, batch_size=2)] == expected
    assert main(["caption", *paths, "--model", str(folder), "--batch-size", "3"]) == 0
    assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == expected


def test_other_classes_are_refused_by_name(tiny_captioner_dir, tmp_path):
    ours = hf_captioners.ExpansionNetV2ForImageCaptioning.from_pretrained(tiny_captioner_dir)
    check_can_caption(ours, "mine")
    small = T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, vocab_size=20, decoder_start_token_id=0)
    with pytest.raises(ValueError, match=r"theirs: a T5ForConditionalGeneration is not run here; .*: Blip"):
        check_can_caption(T5ForConditionalGeneration(small), "theirs")
