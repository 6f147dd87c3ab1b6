"""Words that a captioner does not know: counted, and added to every captioner that has words."""

from __future__ import annotations

import pytest
import torch
from contracts.tiny_clip_gpt2 import bpe_tokenizer
from transformers import AutoModelForImageTextToText, AutoProcessor, MobileNetV2Config

from hf_captioners import (
    CaptionerImageProcessor,
    ClipGpt2Config,
    ClipGpt2ForImageCaptioning,
    ClipGpt2Processor,
    DicoCaptionerConfig,
    DicoForImageCaptioning,
    DicoProcessor,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    ExpansionNetV2Processor,
    SaticConfig,
    SaticForImageCaptioning,
    SaticProcessor,
    build_vocabulary,
    build_word_tokenizer,
    extend_vocabulary,
    special_token_ids,
)
from hf_captioners.conversion.satic_infos import build_tokenizer
from hf_captioners.modeling.captioner_vocabulary import has_words, unknown_words

CAPTIONS = ["a red wave on a blue sea", "a blue wave"]
OTHER_WORLD = ["A tractor on a field.", "a red tractor", "the tractor-field"]
SMALL = {"d_model": 16, "num_attention_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 16}
DICO = {f"{part}_{what}": value for part in ("encoder", "decoder")
        for what, value in {"attention_heads": 2, "ffn_dim": 16, "layers": 1}.items()}  # fmt: skip
GPT2 = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


def captioner(name):
    """A tiny captioner of features of width 8 with a vocabulary of the captions' words, and its processor."""
    tokenizer = build_word_tokenizer(build_vocabulary(CAPTIONS, min_count=1), model_max_length=12)
    if name == "satic":  # one token for start, end and padding, as in converted checkpoints
        words = sorted({word for caption in CAPTIONS for word in caption.split()})
        tokenizer = build_tokenizer(["<end>", *words, "UNK"], model_max_length=12)
    torch.manual_seed(0)
    shared = {"features_only": True, "feature_size": 8, **special_token_ids(tokenizer)}
    sized = {**shared, "vocab_size": len(tokenizer)}
    model, kind = {
        "expansionnet_v2": lambda: (
            ExpansionNetV2ForImageCaptioning(ExpansionNetV2Config(encoder_expansion_groups=[4], **SMALL, **sized)),
            ExpansionNetV2Processor,
        ),
        "satic": lambda: (SaticForImageCaptioning(SaticConfig(**SMALL, **sized)), SaticProcessor),
        "dico": lambda: (DicoForImageCaptioning(DicoCaptionerConfig(d_model=16, **DICO, **sized)), DicoProcessor),
        "clip_gpt2": lambda: (
            ClipGpt2ForImageCaptioning(ClipGpt2Config(text_config={**GPT2, "vocab_size": len(tokenizer)}, **shared)),
            ClipGpt2Processor,
        ),
    }[name]()
    return model.eval(), kind(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)


NAMES = ("expansionnet_v2", "satic", "dico", "clip_gpt2")


def test_the_share_is_that_of_the_ids():
    _, processor = captioner("expansionnet_v2")
    unknown = unknown_words(processor.tokenizer, OTHER_WORLD)
    ids = [one for row in processor.tokenizer(OTHER_WORLD, add_special_tokens=False).input_ids for one in row]
    assert unknown.total == len(ids) == 11
    assert unknown.words.total() == ids.count(processor.tokenizer.unk_token_id)
    assert unknown.words == {"tractor": 3, "field": 2, "the": 1}


def test_nothing_is_unknown_to_pieces():
    assert not has_words(bpe_tokenizer())
    model, processor = captioner("dico")
    processor.tokenizer = bpe_tokenizer()
    with pytest.raises(ValueError, match="pieces of words"):
        extend_vocabulary(model, processor, OTHER_WORLD)


@pytest.mark.parametrize("name", NAMES)
def test_old_words_stay_as_they_are(name):
    model, processor = captioner(name)
    inputs = processor(image_features=torch.randn(2, 5, 8), text_target=CAPTIONS)
    words, labels = processor.tokenizer.get_vocab(), inputs["labels"]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        before = model(**inputs).logits
    assert extend_vocabulary(model, processor, OTHER_WORLD, min_count=2) == ["tractor", "field"]

    size = len(words) + 2
    assert model.config.get_text_config().vocab_size == size == model.get_input_embeddings().num_embeddings
    assert processor.tokenizer.get_vocab() == {**words, "tractor": len(words), "field": len(words) + 1}
    assert torch.equal(processor(text_target=CAPTIONS)["labels"], labels)
    for key, value in model.state_dict().items():
        assert torch.equal(value[: len(state[key])] if state[key].ndim else value, state[key]), key
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits[..., : len(words)], before, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_it_learns_the_new_words_and_keeps_them_in_its_folder(name, tmp_path):
    model, processor = captioner(name)
    extend_vocabulary(model, processor, OTHER_WORLD, min_count=1)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (name in ("dico", "clip_gpt2"))
    inputs = processor(image_features=torch.randn(1, 5, 8), text_target=["the tractor on a field"])
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    loaded, again = AutoModelForImageTextToText.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)
    assert again.tokenizer.special_tokens_map == processor.tokenizer.special_tokens_map
    assert again.tokenizer.model_max_length == 12
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    ids = loaded.generate(image_features=inputs["image_features"], num_beams=1, max_length=10)
    assert again.batch_decode(ids) == ["the tractor on a field"]


def test_behind_a_vision_tower_that_knows_no_embeddings():
    vision = MobileNetV2Config(image_size=32, depth_multiplier=0.25, min_depth=4, finegrained_output=False)
    _, processor = captioner("expansionnet_v2")
    ids = {"vocab_size": len(processor.tokenizer), **special_token_ids(processor.tokenizer)}
    config = ExpansionNetV2Config(encoder_expansion_groups=[4], vision_config=vision, feature_size=320, **SMALL, **ids)
    model = ExpansionNetV2ForImageCaptioning(config)
    assert extend_vocabulary(model, processor, OTHER_WORLD, min_count=2) == ["tractor", "field"]
    assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == ids["vocab_size"] + 2


def test_known_words_change_nothing():
    model, processor = captioner("expansionnet_v2")
    tokenizer = processor.tokenizer
    assert extend_vocabulary(model, processor, OTHER_WORLD, min_count=9) == []
    assert processor.tokenizer is tokenizer
    assert len(model.get_input_embeddings().weight) == len(tokenizer)


def test_a_tokenizer_of_another_model():
    model, processor = captioner("expansionnet_v2")
    processor.tokenizer = build_word_tokenizer(build_vocabulary([*CAPTIONS, *OTHER_WORLD], 1))
    with pytest.raises(ValueError, match=r"the tokenizer has the id \d+, but the model only \d+ words"):
        extend_vocabulary(model, processor, ["a plough"], 1)
