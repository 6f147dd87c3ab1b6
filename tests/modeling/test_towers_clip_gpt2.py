"""CLIP-GPT2 of pretrained towers: loaded from their folders, frozen, in other precisions, quantised, with adapters."""

from __future__ import annotations

import pytest
import torch
from contracts.tiny_clip_gpt2 import MAPPINGS, TINY_CLIP, TINY_GPT2, tiny_model, word_tokenizer
from transformers import (
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    MobileNetV2Config,
    MobileNetV2Model,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

from hf_captioners import ClipGpt2ForImageCaptioning, special_token_ids


@pytest.fixture(scope="module")
def gpt2_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("gpt2")
    GPT2LMHeadModel(GPT2Config(**TINY_GPT2)).save_pretrained(folder)
    return folder


def tiny_tower(kind: str) -> torch.nn.Module:
    torch.manual_seed(1)
    sizes = {name: value for name, value in TINY_CLIP.items() if name not in ("model_type", "projection_dim")}
    text = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    text |= {"num_attention_heads": 2, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "clip":
        return CLIPModel(CLIPConfig(text_config=text, vision_config={**sizes, "projection_dim": 12}, projection_dim=12))
    if kind == "clip vision":
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**sizes, projection_dim=12))
    if kind == "siglip":
        return SiglipModel(SiglipConfig(text_config={**text, "projection_size": 16}, vision_config=sizes))
    if kind == "vit":
        return ViTModel(ViTConfig(**sizes))
    return MobileNetV2Model(MobileNetV2Config(image_size=32, depth_multiplier=0.1, min_depth=8))


@pytest.mark.parametrize(
    ("kind", "width"), [("clip", 12), ("clip vision", 12), ("siglip", 16), ("vit", 16), ("mobilenet", 1280)]
)
def test_towers_of_any_kind_come_from_their_folders(kind, width, gpt2_dir, tmp_path):
    tower = tiny_tower(kind).eval()
    tower.save_pretrained(tmp_path / "vision")
    model = ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(
        tmp_path / "vision", str(gpt2_dir), prefix_length=3, mapping_type="mlp"
    ).eval()
    pixels = torch.randn(2, 3, 32, 32)
    whole = {"clip": lambda: tower.get_image_features(pixels), "siglip": lambda: tower.get_image_features(pixels)}
    with torch.no_grad():
        output = whole.get(kind, lambda: tower(pixel_values=pixels))()
        expected = output["image_embeds" if kind == "clip vision" else "pooler_output"]
        got = model.extract_image_features(pixels)
    assert got.shape == (2, 1, width) and model.config.feature_size == width
    torch.testing.assert_close(got[:, 0], expected)
    gpt = GPT2LMHeadModel.from_pretrained(gpt2_dir)
    assert all(torch.equal(value, model.gpt.state_dict()[name]) for name, value in gpt.state_dict().items())
    assert model.gpt.lm_head.weight is model.gpt.transformer.wte.weight
    captions = model.generate(pixel_values=pixels, num_beams=2)
    model.save_pretrained(tmp_path / "captioner")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "captioner")
    assert torch.equal(again.generate(pixel_values=pixels, num_beams=2), captions)


def test_gpt2_may_come_without_its_tied_head(tmp_path):
    """The file on the Hub is of GPT-2's body alone."""
    torch.manual_seed(0)
    body = GPT2Model(GPT2Config(**TINY_GPT2))
    body.save_pretrained(tmp_path)
    model = ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(tiny_tower("clip vision"), tmp_path)
    ours = model.gpt.transformer.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in body.state_dict().items())
    assert model.gpt.lm_head.weight is model.gpt.transformer.wte.weight


def test_pretrained_gpt2_behind_regions(gpt2_dir):
    make = ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained
    model = make(None, gpt2_dir, feature_size=9)
    assert model.backbone is None and model.config.features_only
    gpt = GPT2LMHeadModel.from_pretrained(gpt2_dir)
    assert torch.equal(model.gpt.transformer.wpe.weight, gpt.transformer.wpe.weight)
    assert model(image_features=torch.randn(2, 4, 9), labels=torch.tensor([[3, 0], [4, 0]])).loss.isfinite()
    with pytest.raises(ValueError, match="a CLIPModel is more than an image tower"):
        make(tiny_tower("clip"), gpt)


def test_weights_that_a_tower_lacks_are_not_made_up(gpt2_dir, tmp_path):
    ViTModel(ViTConfig(**{**tiny_tower("vit").config.to_dict()}), add_pooling_layer=False).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"2 weights of a ViTModel are missing, as pooler\.dense\.bias"):
        ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(tmp_path, gpt2_dir)


def test_a_backbone_that_does_not_pool_is_refused(gpt2_dir):
    tower = ViTModel(tiny_tower("vit").config, add_pooling_layer=False)
    with pytest.raises(ValueError, match="the backbone gives last_hidden_state, but neither image_embeds nor pooler"):
        ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(tower, gpt2_dir)


def test_words_of_ones_own_get_fresh_tied_embeddings(gpt2_dir):
    tokenizer = word_tokenizer()
    make = ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained
    model = make(tiny_tower("clip vision"), gpt2_dir, tokenizer=tokenizer, fresh_embeddings=True)
    assert model.config.vocab_size == len(tokenizer) == model.gpt.lm_head.weight.shape[0]
    assert model.gpt.lm_head.weight is model.gpt.transformer.wte.weight
    ours, theirs = model.gpt.state_dict(), GPT2LMHeadModel.from_pretrained(gpt2_dir).state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items() if ours[name].shape == value.shape)
    ids = {name: getattr(model.config, name) for name in special_token_ids(tokenizer)}
    assert ids == special_token_ids(tokenizer)
    with pytest.raises(ValueError, match=f"the tokenizer has {len(tokenizer)} tokens and GPT-2 embeddings for 40"):
        make(tiny_tower("clip vision"), gpt2_dir, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="fresh_embeddings=True needs the tokenizer"):
        make(tiny_tower("clip vision"), gpt2_dir, fresh_embeddings=True)


def test_a_frozen_backbone_stays_as_it_is(gpt2_dir):
    model = ClipGpt2ForImageCaptioning.from_encoder_decoder_pretrained(tiny_tower("clip vision"), gpt2_dir)
    pixels, labels = torch.randn(2, 3, 32, 32), torch.tensor([[3, 0], [4, 0]])
    assert model.freeze_backbone() == 0
    model.train()
    assert not model.backbone.training and model.gpt.training
    model(pixel_values=pixels, labels=labels).loss.backward()
    assert all(one.grad is None for one in model.backbone.parameters())
    assert all(one.grad is not None for part in (model.gpt, model.clip_project) for one in part.parameters())
    assert model.freeze_backbone(r"visual_projection|layers\.1\.") > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_loading_in_half_precision(dtype, tmp_path):
    model = tiny_model(features_only=False, vision_config=TINY_CLIP, tag_token_ids=[[3], [4]], normalize_prefix=True)
    model.save_pretrained(tmp_path)
    half = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=dtype)
    assert {one.dtype for one in half.parameters()} == {dtype}
    for images in ({"pixel_values": torch.randn(2, 3, 32, 32)}, {"image_features": torch.randn(2, 12)}):
        assert half.generate(**images).shape[0] == 2  # given in float32
        assert half(**images, labels=torch.tensor([[3, 0], [4, 0]])).loss.isfinite()


class WithoutWeight(torch.nn.Module):
    """A linear layer whose weights cannot be looked at, as those of a quantised one."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.inner = layer

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.inner(hidden)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_nothing_looks_at_the_weights_of_linear_layers(mapping):
    """Loading in 8 or 4 bits puts other layers in their place."""
    model = tiny_model(features_only=False, vision_config=TINY_CLIP, tag_token_ids=[[3], [4]], **mapping)
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([[3, 0], [4, 0]])}
    expected = model(**inputs).logits
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, (torch.nn.Linear, Conv1D)) and name != "lm_head":
                setattr(parent, name, WithoutWeight(child))
    assert torch.equal(model(**inputs).logits, expected)
    assert model.generate(pixel_values=inputs["pixel_values"]).shape[0] == 2


@pytest.mark.parametrize("bits", [8, 4])
def test_loading_in_8_and_4_bits(bits, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes")
    vision = {**TINY_CLIP, "hidden_size": 64, "intermediate_size": 128, "projection_dim": 64}
    sizes = {"feature_size": 64, "text_config": {"n_embd": 64}, "features_only": False, "vision_config": vision}
    model = tiny_model(**sizes, tag_token_ids=[[index % 40] for index in range(64)], normalize_prefix=True)
    model.save_pretrained(tmp_path)
    quantised = AutoModelForImageTextToText.from_pretrained(
        tmp_path,
        quantization_config=BitsAndBytesConfig(load_in_8bit=bits == 8, load_in_4bit=bits == 4),
        device_map="cpu",
    )
    inputs = {"pixel_values": torch.randn(2, 3, 32, 32), "labels": torch.tensor([[3, 0], [4, 0]])}
    torch.testing.assert_close(quantised(**inputs).loss, model(**inputs).loss, atol=0.3, rtol=0.05)
    assert quantised.generate(pixel_values=inputs["pixel_values"]).shape[0] == 2


def test_adapters_can_take_the_mapper_along():
    from peft import LoraConfig, get_peft_model

    model = tiny_model(prefix_length=2)
    adapted = get_peft_model(
        model, LoraConfig(target_modules=model.LORA_TARGET_MODULES, modules_to_save=["clip_project"], r=2)
    )
    adapted(image_features=torch.randn(2, 12), labels=torch.tensor([[3, 0], [4, 0]])).loss.backward()
    learning = {name for name, one in adapted.named_parameters() if one.grad is not None}
    assert any("clip_project" in name for name in learning) and any("attn.c_attn" in name for name in learning)
    assert all("lora_" in name or "clip_project" in name for name in learning)
