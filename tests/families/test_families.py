"""Methods that trainers ask of a model: a captioner of this package, and transformers' VisionEncoderDecoderModel."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModelForImageTextToText,
    BertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTModel,
)

from hf_captioners.families import NoCaptionerError, family_of, without_adapters
from hf_captioners.families.captioner import WordByWordFamily
from hf_captioners.families.encoder_decoder import EncoderDecoderFamily

START, END, PAD, WORDS = 0, 1, 2, 20


def encoder_decoder(dropout: float = 0.0, width: int = 16, longest: int = 12) -> VisionEncoderDecoderModel:
    """A tiny ViT and GPT-2; with another width, a projection between them."""
    encoder = ViTConfig(
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    rates = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), dropout)
    decoder = GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=2, n_head=2, n_positions=longest, **rates)
    torch.manual_seed(0)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    config.decoder_start_token_id, config.pad_token_id = START, PAD
    model = VisionEncoderDecoderModel(config).eval()
    model.decoder.transformer.wte.weight.data.mul_(20)
    model.generation_config.update(
        decoder_start_token_id=START, bos_token_id=START, eos_token_id=END, pad_token_id=PAD, max_length=longest
    )
    return model


@pytest.fixture()
def model() -> VisionEncoderDecoderModel:
    return encoder_decoder()


@pytest.fixture()
def captioner(tiny_captioner_dir):
    return AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir)


@pytest.fixture()
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture()
def sequences() -> torch.Tensor:
    """Two captions of each of three pictures, two of them cut off, with padding and one word of padding inside."""
    ids = torch.randint(3, WORDS, (6, 7), generator=torch.Generator().manual_seed(2))
    ids[:, 0] = START
    ids[3, 2] = PAD
    for row, end in ((0, 3), (1, 6), (2, 1), (4, 5)):
        ids[row, end] = END
        ids[row, end + 1 :] = PAD
    return ids


def count_calls(module: torch.nn.Module) -> list[int]:
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


# -- which family ----------------------------------------------------------------------------------------------------


def test_which_policy(model, captioner):
    assert type(family_of(model)) is EncoderDecoderFamily
    assert type(family_of(captioner)) is WordByWordFamily


def test_adapters_do_not_hide_the_model(model, captioner):
    peft = pytest.importorskip("peft")
    inside = peft.get_peft_model(captioner, peft.LoraConfig(target_modules=captioner.LORA_TARGET_MODULES))
    assert without_adapters(inside) is captioner is without_adapters(captioner)
    assert type(family_of(inside)) is WordByWordFamily
    inside = peft.get_peft_model(model, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    assert type(family_of(inside)) is EncoderDecoderFamily


def test_other_models_are_refused():
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_embd=4, n_layer=1, n_head=1, n_positions=4))
    with pytest.raises(NoCaptionerError, match="a GPT2LMHeadModel is a text model, which sees no images; captioners"):
        family_of(gpt2)
    vision = ViTModel(encoder_decoder().config.encoder)
    with pytest.raises(NoCaptionerError, match="a ViTModel sees images, but writes no text; a vision model is the --b"):
        family_of(vision)


@pytest.mark.parametrize("name", ["eos_token_id", "pad_token_id"])
def test_a_model_that_does_not_know_its_special_tokens_is_refused(model, captioner, name):
    for one in (model, captioner):
        one.generation_config.update(**{name: None})
        assert vars(one.generation_config)[name] is None
        with pytest.raises(ValueError, match=f"model.generation_config.{name} is None; set it to the tokenizer's"):
            family_of(one)


def test_token_0_is_a_token(model):
    model.generation_config.update(eos_token_id=0, pad_token_id=0)
    assert type(family_of(model)) is EncoderDecoderFamily


# -- VisionEncoderDecoderModel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 24])
@torch.no_grad()
def test_log_probs_equal_a_teacher_forced_pass_of_each_caption(width, pixels, sequences):
    """The whole model on a picture and a caption that is cut behind its end, one after the other."""
    model = encoder_decoder(width=width)
    assert hasattr(model, "enc_to_dec_proj") == (width != 16)
    family = family_of(model)
    log_probs, entropies = family.log_probs(
        model, sequences, family.encode(model, family.run_backbone(model, {"pixel_values": pixels}))
    )
    assert log_probs.shape == entropies.shape == (6, 6)
    for row, ids in enumerate(sequences.tolist()):
        length = ids.index(END) + 1 if END in ids else len(ids)
        caption = sequences[row, None, :length]
        logits = model(pixel_values=pixels[row // 2, None], decoder_input_ids=caption[:, :-1]).logits
        expected = logits.log_softmax(-1)[0].gather(-1, caption[0, 1:, None])[:, 0]
        torch.testing.assert_close(log_probs[row, : length - 1], expected, atol=1e-5, rtol=0)
        surprise = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)[0]
        torch.testing.assert_close(entropies[row, : length - 1], surprise, atol=1e-5, rtol=0)
        assert not (log_probs[row, length - 1 :].any() or entropies[row, length - 1 :].any())


@torch.no_grad()
def test_log_probs_are_what_generate_scores(model, pixels):
    family = family_of(model)
    memory = family.encode(model, family.run_backbone(model, {"pixel_values": pixels}))
    out = model.generate(
        encoder_outputs=type(memory)(**memory),
        num_beams=3,
        num_return_sequences=3,
        return_dict_in_generate=True,
        output_scores=True,
    )
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    log_probs, _ = family.log_probs(model, out.sequences, memory)
    torch.testing.assert_close(log_probs, steps.masked_fill(log_probs == 0, 0.0), atol=1e-5, rtol=0)
    assert torch.equal(out.sequences, model.generate(pixels, num_beams=3, num_return_sequences=3))


def test_gradients_reach_what_learns(pixels, sequences):
    model = encoder_decoder(width=24)
    family = family_of(model)
    family.freeze_backbone(model, "none")
    seen = family.run_backbone(model, {"pixel_values": pixels})
    log_probs, entropies = family.log_probs(model, sequences, family.encode(model, seen))
    log_probs.sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.enc_to_dec_proj.weight.grad.any()
    assert model.decoder.transformer.wte.weight.grad.any()
    assert not entropies.requires_grad


def test_a_backbone_that_learns_gets_gradients(model, pixels, sequences):
    family = family_of(model)
    family.freeze_backbone(model, r"layers?\.1\.")
    learning = [name for name, one in model.encoder.named_parameters() if one.requires_grad]
    assert learning
    assert all(".1." in name for name in learning)
    seen = family.run_backbone(model, {"pixel_values": pixels})
    assert set(seen) == {"pixel_values"}
    family.log_probs(model, sequences, family.encode(model, seen))[0].sum().backward()
    assert {name for name, one in model.encoder.named_parameters() if one.grad is not None} == set(learning)


@pytest.mark.parametrize("trainable", ["none", "all"])
def test_all_or_nothing_of_the_backbone_learns(model, trainable):
    family_of(model).freeze_backbone(model, trainable)
    assert {one.requires_grad for one in model.encoder.parameters()} == {trainable == "all"}
    assert all(one.requires_grad for one in model.decoder.parameters())


def test_a_pattern_without_parameters_is_refused(model):
    with pytest.raises(ValueError, match="no parameter of the encoder matches 'decoder'"):
        family_of(model).freeze_backbone(model, "decoder")


def test_a_frozen_backbone_looks_once_and_without_dropout(pixels, sequences):
    model = encoder_decoder(dropout=0.5)
    family = family_of(model)
    family.freeze_backbone(model, "none")
    expected = model.encoder(pixels)[0]
    model.train()
    calls = count_calls(model.encoder)
    seen = family.run_backbone(model, {"pixel_values": pixels})
    torch.testing.assert_close(seen["image_features"], expected)
    assert model.encoder.training  # as before
    memory = family.encode(model, seen)
    model.generate(encoder_outputs=type(memory)(**memory), max_length=5)
    family.log_probs(model, sequences, memory)
    family.log_probs(model, sequences, family.encode(model, seen))
    assert len(calls) == 1


def test_the_memory_is_left_alone_by_generate(model, pixels):
    family = family_of(model)
    memory = family.encode(model, family.run_backbone(model, {"pixel_values": pixels}))
    before = memory.last_hidden_state.clone()
    model.generate(encoder_outputs=type(memory)(**memory), num_beams=2, max_length=5)
    assert torch.equal(memory.last_hidden_state, before)


def test_cached_features_are_not_for_it(model):
    batch = {"image_features": torch.zeros(1, 4, 16), "columns": {}}
    with pytest.raises(ValueError, match="a VisionEncoderDecoderModel does not read image_features of a batch; an im"):
        family_of(model).image_inputs(model, batch)


def test_an_input_that_the_captioner_does_not_read_is_refused(captioner, big_pixels):
    batch = {"pixel_values": big_pixels, "anchor_ids": torch.zeros(1, 1), "labels": torch.zeros(1, 1)}
    with pytest.raises(ValueError, match="a ExpansionNetV2ForImageCaptioning does not read anchor_ids of a batch"):
        family_of(captioner).image_inputs(captioner, batch)


def test_captions_beyond_the_decoders_positions_are_refused(model):
    family = family_of(model)
    family.check_length(model, "max_completion_length + 1", 12)
    with pytest.raises(ValueError, match=r"max_completion_length \+ 1=13 is beyond the decoder's 12 positions"):
        family.check_length(model, "max_completion_length + 1", 13)


def test_a_bert_decoder_knows_its_positions_by_another_name(model):
    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    decoder = BertConfig(vocab_size=WORDS, max_position_embeddings=9, **settings)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(model.config.encoder, decoder)
    bert = VisionEncoderDecoderModel(config)
    bert.generation_config.update(eos_token_id=END, pad_token_id=PAD)
    with pytest.raises(ValueError, match="max_length=10 is beyond the decoder's 9 positions"):
        family_of(bert).check_length(bert, "max_length", 10)


# -- captioners ------------------------------------------------------------------------------------------------------


@pytest.fixture()
def big_pixels() -> torch.Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def test_a_captioner_speaks_by_its_contract(captioner, big_pixels):
    family = family_of(captioner)
    family.freeze_backbone(captioner, "none")
    sequences = captioner.generate(big_pixels, num_beams=3, num_return_sequences=3, max_length=8)
    seen = family.run_backbone(captioner, {"pixel_values": big_pixels})
    torch.testing.assert_close(seen["image_features"], captioner.extract_image_features(big_pixels))
    log_probs, entropies = family.log_probs(captioner, sequences, family.encode(captioner, seen))
    torch.testing.assert_close(log_probs, captioner.sequence_log_probs(sequences, pixel_values=big_pixels))
    logits = captioner(pixel_values=big_pixels, decoder_input_ids=sequences[:, :-1]).logits
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropies, expected.masked_fill(log_probs == 0, 0.0))


def test_a_captioners_frozen_backbone_looks_once(captioner, big_pixels):
    family = family_of(captioner)
    family.freeze_backbone(captioner, "none")
    assert family.backbone(captioner) is captioner.backbone
    calls = count_calls(captioner.backbone)
    seen = family.run_backbone(captioner, {"pixel_values": big_pixels})
    memory = family.encode(captioner, seen)
    ids = captioner.generate(encoder_outputs=type(memory)(**memory), max_length=6)
    captioner.train()
    log_probs, _ = family.log_probs(captioner, ids, family.encode(captioner, seen))
    log_probs.sum().backward()
    assert len(calls) == 1
    assert not seen["image_features"].requires_grad


def test_a_captioners_backbone_that_learns_is_part_of_the_graph(captioner, big_pixels):
    family = family_of(captioner)
    family.freeze_backbone(captioner, "all")
    pictures = {"pixel_values": big_pixels}
    assert family.run_backbone(captioner, pictures) is pictures
    ids = captioner.generate(big_pixels, max_length=6)
    family.log_probs(captioner, ids, family.encode(captioner, pictures))[0].sum().backward()
    assert any(one.grad is not None for one in captioner.backbone.parameters())


def test_cached_features_go_straight_through(captioner):
    pictures = {"image_features": torch.zeros(2, 5, 4), "image_attention_mask": torch.ones(2, 5)}
    assert family_of(captioner).run_backbone(captioner, pictures) is pictures


def test_captions_beyond_the_captioners_longest_are_refused(captioner):
    family = family_of(captioner)
    family.check_length(captioner, "generation_max_length", 20)
    with pytest.raises(ValueError, match="generation_max_length=21 is beyond the model's max_position_embeddings=20"):
        family.check_length(captioner, "generation_max_length", 21)


def test_a_policy_holds_no_model(model, pixels):
    family, other = family_of(model), copy.deepcopy(model)
    for one in (model, other):
        family.freeze_backbone(one, "none")
    other.encoder.layernorm.bias.data += 1
    seen = [family.run_backbone(one, {"pixel_values": pixels})["image_features"] for one in (model, other)]
    assert not torch.equal(*seen)
