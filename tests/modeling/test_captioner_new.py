"""A new captioner of every kind by one call: what it is made of, that it captions, learns and is loaded again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    SwinConfig,
    SwinModel,
)

from hf_captioners import (
    CaptionerImageProcessor,
    ClipGpt2ForImageCaptioning,
    DicoForImageCaptioning,
    ExpansionNetV2ForImageCaptioning,
    SaticForImageCaptioning,
    ScdnetForImageCaptioning,
    build_vocabulary,
    build_word_tokenizer,
)
from hf_captioners.captioner_table import CAPTIONERS, captioner_classes

CAPTIONS = ["a red circle", "a blue square", "a red square above a circle", "two rare stars"]
WORDS = {"PAD", "SOS", "EOS", "UNK", *" ".join(CAPTIONS).split()}
SIZES: dict[Any, dict[str, Any]] = {
    ExpansionNetV2ForImageCaptioning: {
        "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1,
        "encoder_expansion_groups": [4], "decoder_expansion_size": 2, "max_position_embeddings": 12,
    },
    SaticForImageCaptioning: {
        "group_size": 2, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16, "encoder_layers": 1,
        "decoder_layers": 1, "max_position_embeddings": 12,
    },
    DicoForImageCaptioning: {
        "tokenizer": "words", "d_model": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
        "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16,
        "max_position_embeddings": 12, "max_image_tokens": 32,
    },
    ClipGpt2ForImageCaptioning: {"text_config": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 13}},
    ScdnetForImageCaptioning: {
        "retrieval": "none", "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "visual_layers": 1,
        "semantic_layers": 1, "decoder_layers": 1, "time_frequencies": 4, "max_position_embeddings": 12,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of 16 numbers, whose grid is 24 wide and whose embedding is 8."""
    tower = {"hidden_size": 24, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**tower, "vocab_size": 20},
        vision_config={**tower, "image_size": 16, "patch_size": 8, "projection_dim": 8},
        projection_dim=8,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    build_word_tokenizer(build_vocabulary(CAPTIONS, 1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture():
    return Image.new("RGB", (20, 16), "red")


def test_every_captioner_is_here():
    assert {captioner_classes(model_type)[1] for model_type in CAPTIONERS} == set(SIZES)


@pytest.mark.parametrize("captioner", SIZES)
class TestEveryCaptioner:
    def test_with_a_backbone(self, captioner, clip, picture, tmp_path):
        torch.manual_seed(0)
        model, processor = captioner.new(CAPTIONS, clip, min_count=1, **SIZES[captioner])
        tower = CLIPModel.from_pretrained(clip).vision_model.embeddings.patch_embedding.weight
        assert any(torch.equal(one, tower) for one in model.backbone.parameters() if one.shape == tower.shape)
        assert isinstance(processor.image_processor, type(AutoImageProcessor.from_pretrained(clip, backend="pil")))
        ids = model.eval().generate(**processor(images=picture))
        batch = processor(images=[picture], text_target=["a red circle"])
        model(**batch).loss.backward()
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        again = captioner.from_pretrained(tmp_path).eval()
        assert torch.equal(again.generate(**AutoProcessor.from_pretrained(tmp_path)(images=picture)), ids)

    def test_of_cached_features(self, captioner):
        options = {**SIZES[captioner], "min_count": 2}
        model, processor = captioner.new(CAPTIONS, features=8, **options)
        store, _ = captioner.new(iter(CAPTIONS), features=SimpleNamespace(feature_size=8), **options)
        assert model.config.to_dict() == store.config.to_dict()
        assert (model.backbone, model.config.feature_size, model.config.features_only) == (None, 8, True)
        known = set(processor.tokenizer.get_vocab())
        assert known == {"PAD", "SOS", "EOS", "UNK", "a", "red", "circle", "square"}
        assert model.config.vocab_size == len(known)
        unknown = None if captioner is ScdnetForImageCaptioning else [processor.tokenizer.unk_token_id]
        assert model.generation_config.suppress_tokens == unknown  # SCD-Net cannot rule out words
        special = ("pad_token_id", "bos_token_id", "eos_token_id", "unk_token_id")
        assert all(vars(model.config)[name] == getattr(processor.tokenizer, name) for name in special)
        assert processor.tokenizer.model_max_length in (12, 13)
        model.eval().generate(**processor(image_features=torch.randn(2, 1, 8)), max_length=8)

    def test_features_and_backbone_must_agree(self, captioner, clip):
        width = 8 if captioner is ClipGpt2ForImageCaptioning else 24
        model, _ = captioner.new(CAPTIONS, clip, width, **SIZES[captioner], min_count=1)
        assert model.config.feature_size == width
        with pytest.raises(ValueError, match=f"features are 5 wide, but the backbone's {width}"):
            captioner.new(CAPTIONS, clip, 5, **SIZES[captioner], min_count=1)

    def test_rates_of_the_backbone(self, captioner, clip):
        options = {**SIZES[captioner], "min_count": 1, "vision_config": {"attention_dropout": 0.25}}
        model, _ = captioner.new(CAPTIONS, clip, **options)
        assert model.config.vision_config.attention_dropout == 0.25
        assert {one.dropout for one in model.backbone.modules() if "CLIPAttention" in type(one).__name__} == {0.25}
        with pytest.raises(ValueError, match="vision_config depth: no field of CLIPVisionConfig"):
            captioner.new(CAPTIONS, clip, **{**options, "vision_config": {"depth": 3}})

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "new: give backbone or features"),
            ({"features": 8, "dmodel": 7}, "new: dmodel: no field of "),
            ({"features": 8, "dtype": "float16"}, "new: dtype: no field of "),
            ({"backbone": "nowhere", "features": 8}, "backbone='nowhere': there is no such file or folder"),
            ({"tokenizer": "nowhere", "features": 8}, "tokenizer='nowhere': there is no such file or folder"),
            ({"min_count": 9, "features": 8}, "no word of the captions is seen min_count=9 times"),
            ({"word_rule": "space", "features": 8}, "no rule of words 'space'; expected 'spaces', 'unicode'"),
            ({"word_rule": "os:system", "features": 8}, "'os:system' names a function, which runs only with"),
        ],
    )
    def test_mistakes(self, captioner, options, message):
        with pytest.raises(ValueError, match=message):
            captioner.new(CAPTIONS, **{"min_count": 1, **SIZES[captioner], **options})

    def test_rule_of_words(self, captioner):
        options = {**SIZES[captioner], "features": 8, "min_count": 1}
        _, processor = captioner.new(["一只小狗。", "l'homme"], word_rule="unicode", **options)
        assert set(processor.tokenizer.get_vocab()) >= {"一", "只", "小", "狗", "l'homme"}
        _, processor = captioner.new(["一只小狗。"], word_rule=lambda text: ["一只", "小狗"], **options)
        assert processor.tokenizer.tokenize("小狗") == ["小狗"]
        named = {"word_rule": "shlex:split", "trust_remote_code": True}
        assert "dog" in captioner.new(["a dog"], **named, **options)[1].tokenizer.get_vocab()
        with pytest.raises(ValueError, match="word_rule='unicode' is of tokenizer='words'"):
            captioner.new(CAPTIONS, word_rule="unicode", **{**options, "tokenizer": processor.tokenizer})


def test_a_fresh_backbone():
    swin = {"model_type": "swin", "image_size": 16, "patch_size": 4, "embed_dim": 8, "depths": [1], "num_heads": [2]}
    for captioner in (ExpansionNetV2ForImageCaptioning, SaticForImageCaptioning):
        model, processor = captioner.new(CAPTIONS, vision_config=swin, min_count=1, **SIZES[captioner])
        assert (model.config.vision_config.model_type, model.config.feature_size) == ("swin", 8)
        assert isinstance(processor.image_processor, CaptionerImageProcessor)
        assert processor(images=Image.new("RGB", (20, 30)))["pixel_values"].shape == (1, 3, 16, 16)


def test_a_backbone_that_is_a_model():
    tower = SwinModel(SwinConfig(image_size=16, patch_size=4, embed_dim=8, depths=[1], num_heads=[2], window_size=2))
    sizes = SIZES[SaticForImageCaptioning]
    with pytest.raises(ValueError, match="give image_processor beside a SwinModel"):
        SaticForImageCaptioning.new(CAPTIONS, tower, min_count=1, **sizes)
    mine = CaptionerImageProcessor(size={"height": 16, "width": 16})
    model, processor = SaticForImageCaptioning.new(CAPTIONS, tower, image_processor=mine, min_count=1, **sizes)
    assert processor.image_processor is mine and model.config.feature_size == 8


class TestScdnet:
    sizes = SIZES[ScdnetForImageCaptioning]

    @pytest.mark.parametrize("extra", [{}, {"sees_previous": True}])
    def test_learns_with_retrieved_sentences(self, extra):
        options = {**self.sizes, "retrieval": "sentence", "min_count": 1, **extra}
        model, processor = ScdnetForImageCaptioning.new(CAPTIONS, features=8, **options)
        assert (model.config.vocab_size, model.config.num_bits) == (13, 4)  # 9 words and 4 special ones
        assert model.token_embed.embeddings.in_features == (12 if extra else 8)
        columns = {"retrieved": ["a blue square"], **({"previous": ["a circle"]} if extra else {})}
        batch = processor(image_features=torch.randn(1, 3, 8), text_target=["a red circle"], **columns)
        model(**batch).loss.backward()
        assert all(one.grad is not None for one in model.parameters())
        with pytest.raises(ValueError, match="give retrieved_ids"):
            model.generate(**processor(image_features=torch.randn(1, 3, 8)))

    def test_more_bits_for_words_to_come(self):
        model, _ = ScdnetForImageCaptioning.new(CAPTIONS, features=8, min_count=1, num_bits=6, **self.sizes)
        assert model.codec.table.shape == (13, 6)

    def test_no_cascade(self):
        with pytest.raises(ValueError, match="first_stage: stages are trained one by one"):
            ScdnetForImageCaptioning.new(CAPTIONS, features=8, sees_previous=True, first_stage={}, **self.sizes)


class TestDico:
    def test_has_the_tokenizer_of_its_backbone(self, clip):
        sizes = {name: value for name, value in SIZES[DicoForImageCaptioning].items() if name != "tokenizer"}
        model, processor = DicoForImageCaptioning.new(CAPTIONS[:1], clip, **sizes)
        assert set(processor.tokenizer.get_vocab()) == WORDS  # of the folder, not of the caption
        assert model.config.vocab_size == len(WORDS)
        model, processor = DicoForImageCaptioning.new(CAPTIONS[:1], features=8, tokenizer=clip, **sizes)
        assert set(processor.tokenizer.get_vocab()) == WORDS
        assert isinstance(processor.image_processor, CLIPImageProcessorPil)

    def test_of_a_backbone_without_one(self, clip, tmp_path):
        sizes = {name: value for name, value in SIZES[DicoForImageCaptioning].items() if name != "tokenizer"}
        for part in (CLIPModel.from_pretrained(clip), SwinModel(SwinConfig(embed_dim=8, depths=[1], num_heads=[2]))):
            folder = tmp_path / type(part).__name__
            part.save_pretrained(folder)
            CLIPImageProcessorPil().save_pretrained(folder)
            with pytest.raises(ValueError, match="there is no tokenizer in this folder; give --tokenizer"):
                DicoForImageCaptioning.new(CAPTIONS, folder, **sizes)

    def test_needs_one(self):
        with pytest.raises(
            ValueError, match=r'give tokenizer \(--tokenizer\), the name of a CLIP or "words" .*, or a CLIP as backbone'
        ):
            DicoForImageCaptioning.new(CAPTIONS, features=8)


class TestClipGpt2:
    @pytest.fixture(scope="class")
    def gpt2(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("gpt2")
        tokenizer = build_word_tokenizer(build_vocabulary(CAPTIONS, 1))
        ends = dict.fromkeys(("bos_token_id", "eos_token_id"), tokenizer.eos_token_id)
        sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    def test_pretrained(self, clip, gpt2):
        model, processor = ClipGpt2ForImageCaptioning.new(CAPTIONS[:1], clip, gpt2=gpt2)
        saved = GPT2LMHeadModel.from_pretrained(gpt2).transformer
        assert torch.equal(model.gpt.transformer.wte.weight, saved.wte.weight)
        assert isinstance(processor.tokenizer, PreTrainedTokenizerFast)
        assert set(processor.tokenizer.get_vocab()) == WORDS

    def test_pretrained_with_words_of_the_captions(self, clip, gpt2):
        model, processor = ClipGpt2ForImageCaptioning.new(CAPTIONS[:1], clip, gpt2=gpt2, tokenizer="words", min_count=1)
        saved = GPT2LMHeadModel.from_pretrained(gpt2).transformer
        assert torch.equal(model.gpt.transformer.wpe.weight, saved.wpe.weight)
        assert model.gpt.transformer.wte.weight.shape[0] == len(processor.tokenizer) == 7

    def test_tags(self, clip):
        sizes = SIZES[ClipGpt2ForImageCaptioning]
        model, processor = ClipGpt2ForImageCaptioning.new(5 * CAPTIONS, clip, num_tags=3, min_count=1, **sizes)
        assert len(processor.tags) == len(model.config.tag_token_ids) == model.tag_head.out_features == 3

    def test_sizes_of_a_pretrained_one(self, clip, gpt2):
        with pytest.raises(ValueError, match="text_config is of a fresh GPT-2; gpt2="):
            ClipGpt2ForImageCaptioning.new(CAPTIONS, clip, gpt2=gpt2, text_config={"n_layer": 2})
