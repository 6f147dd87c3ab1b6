"""The DiCO captioner: the contract with CLIP's kind of tokenizer, and what is its own."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from contracts.autoregressive import AutoregressiveContract
from tokenizers import ByteLevelBPETokenizer
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionModel,
    DynamicCache,
    GPT2LMHeadModel,
    MobileNetV2Config,
    MobileNetV2Model,
    PreTrainedTokenizerFast,
)

from hf_captioners import DicoCaptionerConfig, DicoForImageCaptioning, DicoProcessor, build_word_tokenizer
from hf_captioners.inference.ensemble import CaptionerEnsemble
from hf_captioners.modeling.captioner_losses import smoothed_cross_entropy

RATES = ("encoder", "encoder_attention", "decoder_input", "decoder", "decoder_attention")
TINY_CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 24,
    "projection_dim": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
TINY = {
    "vocab_size": 40,
    "d_model": 24,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 32,
    "max_image_tokens": 20,
    "max_position_embeddings": 24,
    "unk_token_id": 5,
    **{f"{rate}_dropout": 0.0 for rate in RATES},
}


def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's kind: bytes, with and without the mark of a word's end, and the two special tokens last."""
    letters = sorted(ByteLevel.alphabet())
    words = ["do", "dog</w>", "ca", "cat</w>"]
    specials = ["<|startoftext|>", "<|endoftext|>"]
    names = [*letters, *(f"{letter}</w>" for letter in letters), *words, *specials]
    merges = [("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>")]
    return CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=12)


def tiny_model(seed: int = 0, sharp: bool = True, **changes) -> DicoForImageCaptioning:
    torch.manual_seed(seed)
    options = {**TINY, "features_only": True, "feature_size": 16, **changes}
    model = DicoForImageCaptioning(DicoCaptionerConfig(**options)).eval()
    if sharp:  # peaked distributions that depend on the picture
        with torch.no_grad():
            model.decoder.transformer.wte.weight.mul_(20.0)
            for block in model.decoder.transformer.h:
                block.crossattention.c_attn.weight.mul_(20.0)
                block.crossattention.c_proj.weight.mul_(60.0)
    return model


class TestContract(AutoregressiveContract):
    @pytest.fixture()
    def model(self):
        return tiny_model(features_only=False, vision_config=TINY_CLIP, vocab_size=len(clip_tokenizer()) + 1)

    @pytest.fixture()
    def processor(self):
        size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        return DicoProcessor(CLIPImageProcessorPil(**size), clip_tokenizer())

    def test_every_parameter_learns(self, model, pixels, labels):
        """But not the layer norm behind CLIP's last layer, which nothing reads: the features are what precedes it."""
        model.train()
        model(pixel_values=pixels, labels=labels).loss.backward()
        idle = [name for name, one in model.named_parameters() if one.grad is None or not one.grad.abs().sum()]
        assert idle == ["backbone.post_layernorm.weight", "backbone.post_layernorm.bias"]


# -- sizes and configuration -----------------------------------------------------------------------------------------


def test_the_released_sizes_are_the_defaults():
    with torch.device("meta"):
        model = DicoForImageCaptioning(DicoCaptionerConfig())
    parts = [model, model.backbone, model.vis_enc_to_enc_proj, model.decoder]
    counts = [sum(p.numel() for p in part.parameters()) for part in parts]
    dead = 15_889_920  # BERT's word embedding and pooler
    assert counts == [367_750_656 - dead, 303_179_776, 524_800, 38_434_816]  # specification of the original, 2.1
    assert isinstance(model.backbone, CLIPVisionModel)
    config = model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (49406, 49407, 49408)
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (5, 30)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_attention_heads": 5}, "encoder_attention_heads=5 does not divide d_model=24"),
        ({"decoder_attention_heads": 5}, "decoder_attention_heads=5 does not divide d_model=24"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1, not 0"),
        ({"decoder_input_dropout": 1.0}, r"decoder_input_dropout must be in \[0, 1\), not 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"d_model": "wide"}, "Field 'd_model' expected int, got str"),
        ({"encoder_activation": "gelly"}, "encoder_activation='gelly' is not an activation of transformers"),
        ({"eos_token_id": 40}, "eos_token_id=40 is not an id of vocab_size=40"),
        ({"vision_config": TINY_CLIP}, "leaves no place for a vision_config"),
        ({"features_only": False, "vision_config": {"model_type": "clip"}}, "of the whole 'clip'"),
        ({"features_only": False, "feature_size": None, "vision_config": {"model_type": "mobilenet_v2"}}, "1280"),
    ],
)
def test_config_refuses_what_cannot_be(changes, message):
    with pytest.raises(Exception, match=message):
        DicoCaptionerConfig(**{**TINY, "features_only": True, "feature_size": 16, **changes})


@pytest.mark.parametrize("feature_size", [16, 24])
def test_there_is_a_projection_only_between_different_widths(feature_size):
    model = tiny_model(feature_size=feature_size)
    assert (model.vis_enc_to_enc_proj is None) == (feature_size == 24)
    assert model.generate(image_features=torch.randn(2, 5, feature_size), max_length=6).shape[0] == 2


def test_a_fresh_model_starts_as_gpt2_and_bert_do():
    """Also where modules of transformers were replaced; the residual projections of GPT-2 start smaller."""
    model = tiny_model(sharp=False, d_model=96, decoder_ffn_dim=192, initializer_range=0.04)
    reference = GPT2LMHeadModel(model.decoder.config)
    for name, value in reference.named_parameters():
        assert model.decoder.get_parameter(name).std().item() == pytest.approx(value.std().item(), rel=0.1), name
    small = 0.04 / (2 * 2) ** 0.5
    assert model.decoder.transformer.h[1].crossattention.c_proj.weight.std().item() == pytest.approx(small, rel=0.05)
    assert model.encoder.encoder.layer[0].attention.self.query.weight.std().item() == pytest.approx(0.04, rel=0.05)
    assert model.decoder.lm_head.weight is model.decoder.transformer.wte.weight


# -- pictures --------------------------------------------------------------------------------------------------------


def test_more_tokens_than_positions_are_refused():
    model = tiny_model()
    with pytest.raises(ValueError, match="a picture of 21 tokens is more than the encoder's max_image_tokens=20"):
        model.generate(image_features=torch.zeros(1, 21, 16))


def test_image_features_are_the_tokens_before_the_last_layer_norm():
    model = tiny_model(features_only=False, vision_config=TINY_CLIP)
    pixels = torch.randn(2, 3, 32, 32)
    features = model.extract_image_features(pixels)
    assert features.shape == (2, 17, 16)  # 4 x 4 patches and the class token
    output = model.backbone(pixels)
    torch.testing.assert_close(model.backbone.post_layernorm(features[:, 0]), output.pooler_output)


def test_padding_does_not_reach_a_gradient():
    model = tiny_model().train()
    features, mask = torch.randn(2, 6, 16), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    features[1, 4:] = torch.nan
    for attention in ("sdpa", "eager"):
        model.set_attn_implementation(attention)
        model.zero_grad()
        model(image_features=features, image_attention_mask=mask, labels=torch.tensor([[7], [8]] * 2)).loss.backward()
        assert all(torch.isfinite(one.grad).all() for one in model.parameters())
    short = model(image_features=features[1:, :4], labels=torch.tensor([[8, 9]])).logits
    whole = model(image_features=features, image_attention_mask=mask, labels=torch.tensor([[7, 7], [8, 9]])).logits
    torch.testing.assert_close(whole[1:], short)


def test_any_backbone_can_stand_in(tmp_path):
    tower = MobileNetV2Model(MobileNetV2Config(image_size=32, depth_multiplier=0.25))
    tower.save_pretrained(tmp_path)
    config = DicoCaptionerConfig(**TINY, features_only=True)
    for source in (tower, tmp_path):
        model = DicoForImageCaptioning.from_backbone(source, config).eval()
        assert model.config.vision_config.model_type == "mobilenet_v2"
        pixels = torch.randn(2, 3, 32, 32)
        expected = tower.eval()(pixels).last_hidden_state.flatten(2).transpose(1, 2)
        torch.testing.assert_close(model.extract_image_features(pixels), expected)


def test_the_tower_of_a_whole_clip_is_taken(tmp_path):
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
    clip = CLIPModel(CLIPConfig(vision_config=TINY_CLIP, text_config=text, projection_dim=12))
    clip.save_pretrained(tmp_path)
    config = DicoCaptionerConfig(**TINY, features_only=True)
    model = DicoForImageCaptioning.from_backbone(tmp_path, config)
    for name, value in clip.vision_model.state_dict().items():
        assert torch.equal(model.backbone.state_dict()[name], value), name
    with pytest.raises(ValueError, match="a CLIPModel is more than an image tower"):
        DicoForImageCaptioning.from_backbone(clip, config)


def test_what_nothing_reads_never_learns():
    model = tiny_model(features_only=False, vision_config=TINY_CLIP)
    whole = sum(one.numel() for one in model.backbone.parameters())
    assert model.freeze_backbone("all") == whole - 2 * 16
    assert not model.backbone.post_layernorm.weight.requires_grad
    assert model.freeze_backbone() == 0
    assert tiny_model().freeze_backbone() == 0


# -- captions --------------------------------------------------------------------------------------------------------


def stock_decoder(model: DicoForImageCaptioning) -> GPT2LMHeadModel:
    """transformers' GPT-2 with the same weights, which wants a memory for every caption."""
    decoder = GPT2LMHeadModel(copy.deepcopy(model.decoder.config)).to(model.dtype).eval()
    decoder.load_state_dict(model.decoder.state_dict())
    return decoder


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("padded", [True, False])
def test_sharing_a_memory_equals_repeating_it(attention, padded):
    """Logits and gradients, against transformers' own modules."""
    model = tiny_model().double()
    model.set_attn_implementation(attention)
    decoder = stock_decoder(model)
    decoder.set_attn_implementation(attention)
    features, ids = torch.randn(2, 6, 16).double(), torch.randint(0, 40, (6, 7))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3]) if padded else None
    memory = model.encode_images(image_features=features, image_attention_mask=mask).last_hidden_state
    repeated = memory.repeat_interleave(3, dim=0)
    expected = decoder(
        ids,
        encoder_hidden_states=repeated,
        encoder_attention_mask=None if mask is None else mask.repeat_interleave(3, dim=0),
    ).logits
    inputs = {"image_features": features, "image_attention_mask": mask}
    got = model(**inputs, decoder_input_ids=ids).logits
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=0)
    weights = torch.randn_like(got)
    names = ["transformer.h.0.crossattention.c_attn.weight", "transformer.h.1.crossattention.q_attn.bias"]
    for name in names:
        ours, theirs = (
            torch.autograd.grad((one * weights).sum(), part.get_parameter(name), retain_graph=True)[0]
            for one, part in ((got, model.decoder), (expected, decoder))
        )
        torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def test_the_memory_is_projected_once_for_a_picture():
    model = tiny_model()
    shapes = []
    for block in model.decoder.transformer.h:
        block.crossattention.c_attn.register_forward_hook(lambda _, inputs, __: shapes.append(tuple(inputs[0].shape)))
    features = torch.randn(2, 6, 16)
    model.generate(image_features=features, num_beams=4, max_length=9)
    model.generate(image_features=features, num_beams=4, max_length=9, decoding="standard")
    model(image_features=features, labels=torch.randint(6, 30, (6, 5)))
    assert shapes == [(2, 6, 24)] * 6  # two layers, three calls
    cache = model.start_cache(model.encode_images(image_features=features))
    cache.reorder_cache(torch.tensor([3, 3, 0, 0]))
    assert [layer.keys.shape[0] for layer in cache.cross_attention_cache.layers] == [2, 2]


def test_the_encoder_is_bert():
    model = tiny_model()
    settings = copy.deepcopy(model.encoder.config)
    settings.vocab_size = 30
    bert = BertModel(BertConfig(**{**settings.to_dict(), "vocab_size": 30}), add_pooling_layer=False).eval()
    missing = bert.load_state_dict(model.encoder.state_dict(), strict=False)
    assert missing == (["embeddings.word_embeddings.weight"], [])
    features = torch.randn(2, 6, 16)
    encoded = model.encode_images(image_features=features, output_hidden_states=True)
    expected = bert(inputs_embeds=model.vis_enc_to_enc_proj(features), output_hidden_states=True)
    torch.testing.assert_close(encoded.last_hidden_state, expected.last_hidden_state)
    assert len(encoded.hidden_states) == 3
    for got, one in zip(encoded.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(got, one)


def test_padding_is_learned_on_request_only():
    model = tiny_model(sharp=False)
    features, pad = torch.randn(2, 6, 16), model.config.pad_token_id
    words = torch.tensor([[7, 8, 38, pad, pad], [9, 38, pad, pad, pad]])
    masked = words.masked_fill(words == pad, -100)
    logits = model(image_features=features, labels=masked).logits
    log_probs = logits.log_softmax(-1).gather(-1, words[..., None])[..., 0]
    real = words != pad
    for labels in (words, masked):
        torch.testing.assert_close(model(image_features=features, labels=labels).loss, -log_probs[real].mean())
        counted = model(image_features=features, labels=labels, pad_in_loss=True)
        torch.testing.assert_close(counted.loss, -log_probs.mean())
        several = model(image_features=features, labels=labels, num_items_in_batch=50).loss
        torch.testing.assert_close(several, -log_probs[real].sum() / 50)
    model.config.pad_in_loss = True
    torch.testing.assert_close(model(image_features=features, labels=masked).loss, -log_probs.mean())
    in_a_step = model(image_features=features, labels=masked, num_items_in_batch=10).loss  # 5 of 10 words are here
    torch.testing.assert_close(in_a_step, -log_probs.mean() / 2)


def test_smoothing_spreads_over_all_tokens():
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, 0, 6]])
    q = torch.full((2, 3, 7), 0.2 / 7).scatter_add(-1, labels.clamp(min=0)[..., None], torch.full((2, 3, 1), 0.8))
    expected = -(q * logits.log_softmax(-1)).sum(-1)[labels != -100].mean()
    torch.testing.assert_close(smoothed_cross_entropy(logits, labels, 0.2), expected)
    model = tiny_model(label_smoothing=0.3)
    features = torch.randn(1, 4, 16)
    sharp = model(image_features=features, labels=torch.tensor([[7, 8]]), smoothing=0.0).loss
    assert model(image_features=features, labels=torch.tensor([[7, 8]])).loss != sharp


def test_padding_can_be_forbidden():
    """The original writes the padding token like a word if the model likes it (specification, section 12)."""
    model = tiny_model()
    pad = model.config.pad_token_id
    with torch.no_grad():  # the state in front of the head is made the same for every prefix: the padding token's
        model.decoder.transformer.ln_f.weight.zero_()
        model.decoder.transformer.ln_f.bias.copy_(model.decoder.transformer.wte.weight[pad])
    options = {"image_features": torch.randn(1, 4, 16), "max_length": 6, "num_beams": 2}
    assert model.generate(**options).tolist() == [[37, pad, pad, pad, pad, pad]]
    forbidden = model.generate(**options, suppress_tokens=[pad])
    assert pad not in forbidden[0, : len(forbidden[0]) - 1].tolist() and forbidden.shape[1] > 2


def test_a_too_long_caption_and_a_foreign_cache_are_refused():
    model = tiny_model()
    features = torch.zeros(1, 2, 16)
    with pytest.raises(ValueError, match="a caption of 25 tokens is longer than max_position_embeddings=24"):
        model(image_features=features, labels=torch.full((1, 25), 4))
    with pytest.raises(ValueError, match="must come from start_cache, not be a DynamicCache"):
        model(image_features=features, labels=torch.full((1, 5), 4), past_key_values=DynamicCache())


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "decoding": "standard"}])
def test_a_prompt_is_continued(options):
    model = tiny_model()
    features = torch.randn(2, 4, 16)
    prompt = torch.tensor([[model.config.bos_token_id, 5, 6]]).repeat(2, 1)
    captions = [
        model.generate(image_features=features, decoder_input_ids=prompt, max_length=9, use_cache=cache, **options)
        for cache in (True, False)
    ]
    assert torch.equal(*captions)
    assert (captions[0][:, :3] == prompt).all()


def test_writing_while_training_with_activation_checkpointing():
    """GPT-2 fills no cache then; the captions are those of evaluation, as nothing is dropped."""
    model = tiny_model()
    features = torch.randn(2, 4, 16)
    expected = model.generate(image_features=features, num_beams=3, max_length=8)
    model.activation_checkpointing_enable()
    assert torch.equal(model.train().generate(image_features=features, num_beams=3, max_length=8), expected)


def test_in_an_ensemble():
    model = tiny_model()
    features = torch.randn(2, 4, 16)
    twice = CaptionerEnsemble([model, copy.deepcopy(model)])
    expected = model.generate(image_features=features, num_beams=3, max_length=8)
    assert torch.equal(twice.generate(image_features=features, num_beams=3, max_length=8), expected)


# -- the beam search -------------------------------------------------------------------------------------------------


def n_best(step, count: int, longest: int, start: int, end: int, penalty: float) -> list[tuple[float, tuple[int, ...]]]:
    """The rule of the specification (section 6) in words of Python, for one picture; `step` gives log-probabilities."""
    running = [(0.0, (start,))] + [(-1e9, (start,))] * (count - 1)
    pool: list[tuple[float, tuple[int, ...]]] = []

    def offer(score, caption):
        pool.append((score, caption))
        pool.sort(key=lambda one: -one[0])
        del pool[count:]

    while len(running[0][1]) < longest:
        length = len(running[0][1])
        scored = [(total + one, (*prefix, word)) for total, prefix in running for word, one in enumerate(step(prefix))]
        scored.sort(key=lambda one: -one[0])
        running = []
        for rank, (total, prefix) in enumerate(scored[: 2 * count]):
            if prefix[-1] != end:
                running.append((total, prefix))
            elif rank < count:
                offer(total / length**penalty, prefix)
            if len(running) == count:
                break
        if len(pool) == count and pool[-1][0] >= scored[0][0] / length**penalty:
            return pool
    for total, prefix in running:
        offer(total / longest**penalty, prefix)
    return pool


@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_beam_search_equals_the_rule_step_by_step(seed, penalty):
    model = tiny_model(seed, vocab_size=12, unk_token_id=3).double()
    start, end = model.config.bos_token_id, model.config.eos_token_id
    with torch.no_grad():  # flat, and with a liking for the end: captions end at different times
        words = model.decoder.transformer.wte.weight.mul_(0.2)
        model.decoder.transformer.ln_f.bias.add_(1.5 * words[end] / words[end].square().sum())
    features = torch.randn(3, 4, 16).double()
    out = model.generate(
        image_features=features,
        num_beams=4,
        num_return_sequences=4,
        max_length=7,
        length_penalty=penalty,
        return_dict_in_generate=True,
    )
    for picture in range(3):
        memory = model.encode_images(image_features=features[picture : picture + 1])

        def step(prefix, memory=memory):
            with torch.no_grad():
                logits = model(encoder_outputs=memory, decoder_input_ids=torch.tensor([prefix])).logits
            return logits[0, -1].log_softmax(-1).tolist()

        expected = n_best(step, 4, 7, start, end, penalty)
        for place, (score, caption) in enumerate(expected):
            row = 4 * picture + place
            ids = out.sequences[row].tolist()
            assert ids[: len(caption)] == list(caption)
            assert set(ids[len(caption) :]) <= {model.config.pad_token_id}
            assert out.sequences_scores[row].item() == pytest.approx(score, abs=1e-5)


def test_beams_can_be_drawn():
    model = tiny_model()
    features = torch.randn(2, 4, 16)
    options = {"image_features": features, "num_beams": 3, "max_length": 8, "do_sample": True}
    drawn = set()
    for seed in range(6):
        torch.manual_seed(seed)
        drawn.add(tuple(model.generate(**options, temperature=3.0).flatten().tolist()))
    assert len(drawn) > 1


def test_several_end_tokens_and_an_early_stop():
    model = tiny_model()
    features = torch.randn(2, 4, 16)
    ends = [model.config.eos_token_id, 7, 8]
    options = {"image_features": features, "num_beams": 3, "num_return_sequences": 3, "max_length": 12}
    for early in (True, False):
        ids = model.generate(**options, eos_token_id=ends, early_stopping=early)
        for row in ids.tolist():
            written = [word for word in row[1:] if word in ends]
            assert len(written) <= 1
            if written:
                rest = row[row.index(written[0], 1) + 1 :]
                assert set(rest) <= {model.config.pad_token_id}


# -- the processor ---------------------------------------------------------------------------------------------------


def processor() -> DicoProcessor:
    return DicoProcessor(CLIPImageProcessorPil(), clip_tokenizer())


def test_captions_become_labels_and_come_back():
    made = processor()
    tokenizer = made.tokenizer
    assert (tokenizer.pad_token, tokenizer.pad_token_id, len(tokenizer)) == ("<|pad|>", 518, 519)
    labels = made(text_target=["A dog, a cat.", "Dog"])["labels"]
    names = tokenizer.convert_ids_to_tokens(labels[0].tolist())
    assert names == ["a</w>", "dog</w>", ",</w>", "a</w>", "cat</w>", ".</w>", "<|endoftext|>"]
    assert labels[1, 2:].tolist() == [-100] * 5
    ids = torch.cat((torch.tensor([[tokenizer.bos_token_id]] * 2), labels.masked_fill(labels == -100, 518)), dim=1)
    assert made.batch_decode(ids) == ["a dog, a cat.", "dog"]
    assert made.batch_decode(ids, sentences=True) == ["A dog, a cat.", "Dog."]
    assert made.decode(ids[0]) == "a dog, a cat."
    assert made(text=["a cat"])["decoder_input_ids"].tolist() == [[516, *labels[0, 3:5].tolist()]]


def test_long_captions_are_cut_and_special_tokens_are_text():
    made = processor()
    long = made(text_target=["dog " * 40])["labels"]
    assert long.shape == (1, 11) and long[0, -1] == made.tokenizer.eos_token_id  # 12 with the start token
    for special in ("<|pad|>", "<|endoftext|>", "<|startoftext|>"):
        (labels,) = made(text_target=[special])["labels"].tolist()
        assert not set(labels[:-1]) & {516, 517, 518}


def test_tokenizers_that_do_not_fit_are_refused():
    bare = ByteLevelBPETokenizer()
    bare.train_from_iterator(["a dog"], vocab_size=270, special_tokens=["<|endoftext|>"], show_progress=False)
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}  # GPT-2's kind
    with pytest.raises(ValueError, match="must put a start token"):
        DicoProcessor(CLIPImageProcessorPil(), PreTrainedTokenizerFast(tokenizer_object=bare._tokenizer, **end))
    words = build_word_tokenizer(["EOS", "PAD", "SOS", "UNK", "dog"])
    assert len(DicoProcessor(CLIPImageProcessorPil(), words).tokenizer) == 5  # has padding of its own


def test_processor_round_trip(tmp_path):
    made = processor()
    made.save_pretrained(tmp_path)
    again = DicoProcessor.from_pretrained(tmp_path)
    assert len(again.tokenizer) == 519
    assert torch.equal(again(text_target=["a dog."])["labels"], made(text_target=["a dog."])["labels"])
    beside = DicoProcessor.from_backbone(tmp_path)
    assert len(beside.tokenizer) == 519 and beside.image_processor.size == made.image_processor.size


def test_the_real_tokenizer(shared_data):
    """Ids of the original's tokenizer (reference_ids.json of the data), and the example of the specification."""
    folder = shared_data / "clip_tokenizer"
    made = DicoProcessor(CLIPImageProcessorPil(), AutoTokenizer.from_pretrained(folder))
    assert (made.tokenizer.pad_token_id, len(made.tokenizer)) == (49408, 49409)
    surfer = "A man riding a wave on a surfboard."
    expected = [320, 786, 6765, 320, 4535, 525, 320, 10176, 1972, 269, 49407]
    assert made(text_target=[surfer])["labels"].tolist() == [expected]
    assert made.batch_decode([[49406, *expected, 49408]]) == [surfer.lower()]
    rows = json.loads((folder / "reference_ids.json").read_text())
    labels = made(text_target=[row["text"] for row in rows])["labels"]
    differing = [
        row["text"]
        for row, ids in zip(rows, labels.tolist(), strict=True)
        if [one for one in ids if one != -100] != [*row["ids"][:75], 49407]
    ]
    assert len(differing) <= 0.005 * len(rows), differing
