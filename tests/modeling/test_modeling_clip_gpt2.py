"""CLIP-GPT2: the contract with GPT-2's kind of tokenizer and with words, and what is its own."""

from __future__ import annotations

import pytest
import torch
from contracts.captioner import CaptionerContract
from tokenizers import ByteLevelBPETokenizer
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
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)
from transformers.pytorch_utils import Conv1D

from hf_captioners import (
    CaptionerImageProcessor,
    ClipGpt2Config,
    ClipGpt2ForImageCaptioning,
    ClipGpt2Processor,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.inference.ensemble import CaptionerEnsemble

CAPTIONS = ["A red circle above a blue square.", "Two small green stars.", "The large star left of a circle."]
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
TINY_GPT2 = {"vocab_size": 40, "n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64, **NO_DROPOUT}
TINY_GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
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
TINY_MOBILENET = {"model_type": "mobilenet_v2", "image_size": 32, "depth_multiplier": 0.1, "min_depth": 8}


def bpe_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, one special token for start, end and unknown, none for padding."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(CAPTIONS, vocab_size=280, special_tokens=["<|endoftext|>"], show_progress=False)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end, unk_token=end)


def word_tokenizer() -> PreTrainedTokenizerFast:
    return build_word_tokenizer(build_vocabulary(CAPTIONS, min_count=1), model_max_length=20)


def image_processor() -> CaptionerImageProcessor:
    return CaptionerImageProcessor(size={"height": 32, "width": 32})


def tiny_config(**changes) -> ClipGpt2Config:
    text = {**TINY_GPT2, **changes.pop("text_config", {})}
    return ClipGpt2Config(**{"features_only": True, "feature_size": 12, "text_config": text, **changes})


def tiny_model(seed: int = 0, sharp: bool = True, **changes) -> ClipGpt2ForImageCaptioning:
    torch.manual_seed(seed)
    model = ClipGpt2ForImageCaptioning(tiny_config(**changes)).eval()
    model.generation_config.max_length = 10
    if sharp:  # peaked distributions that depend on the picture
        with torch.no_grad():
            model.gpt.transformer.wte.weight.mul_(8.0)
            model.gpt.transformer.wpe.weight.mul_(8.0)
    return model


class TestContractOfClipAndBytePairs(CaptionerContract):
    @pytest.fixture()
    def model(self):
        text = {"vocab_size": len(bpe_tokenizer())}
        return tiny_model(features_only=False, vision_config=TINY_CLIP, text_config=text, unk_token_id=5)

    @pytest.fixture()
    def processor(self):
        return ClipGpt2Processor(image_processor(), bpe_tokenizer())


class TestContractOfMobileNetAndWords(CaptionerContract):
    @pytest.fixture()
    def model(self):
        tokenizer = word_tokenizer()
        return tiny_model(
            features_only=False,
            vision_config=TINY_MOBILENET,
            feature_size=1280,
            prefix_length=3,
            clip_length=2,
            mapping_type="transformer",
            mapping_layers=2,
            mapping_heads=4,
            normalize_prefix=True,
            text_config={"vocab_size": len(tokenizer)},
            **special_token_ids(tokenizer),
        )

    @pytest.fixture()
    def processor(self):
        return ClipGpt2Processor(image_processor(), word_tokenizer())

    def test_sdpa_and_eager_agree(self, model, pixels, labels):  # MobileNetV2 has no attention to choose
        outputs = []
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation({"text_config": attention})
            outputs.append(model(pixel_values=pixels, labels=labels).logits)
        torch.testing.assert_close(outputs[0], outputs[1], atol=5e-5, rtol=1e-4)

    test_shipped_code_runs_where_the_package_is_missing = None  # the same files as above


# -- sizes and configuration -----------------------------------------------------------------------------------------


def test_the_default_is_clip_vit_b_32_one_token_and_the_smallest_gpt2():
    with torch.device("meta"):
        model = ClipGpt2ForImageCaptioning(ClipGpt2Config())
    counts = [sum(p.numel() for p in part.parameters()) for part in (model.gpt, model.clip_project)]
    assert counts == [124_439_808, 512 * 768 + 768]  # GPT-2's published number
    assert isinstance(model.backbone, CLIPVisionModelWithProjection)
    assert (model.generation_config.num_beams, model.generation_config.max_length) == (5, 22)
    assert model.config.max_position_embeddings == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mapping_type": "rnn"}, "mapping_type must be one of linear, mlp, transformer, not 'rnn'"),
        ({"prefix_length": 0}, "prefix_length must be at least 1, not 0"),
        ({"prefix_length": 65}, "max_position_embeddings must be at least 1, not 0"),
        ({"mapping_type": "transformer", "mapping_heads": 5}, "mapping_heads=5 does not divide GPT-2's n_embd=24"),
        ({"anchor_threshold": 1.0}, r"anchor_threshold must be in \[0, 1\)"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"tag_loss_weight": -1.0}, "tag_loss_weight must not be negative"),
        ({"max_anchors": -1}, "max_anchors must not be negative"),
        ({"eos_token_id": 40}, "eos_token_id=40 is not an id of GPT-2's vocab_size=40"),
        ({"text_config": {"bos_token_id": 50256}}, "bos_token_id=50256 is not an id"),
        ({"tag_token_ids": [[3], []]}, r"tag_token_ids\[1\]=\[\] must be ids below vocab_size=40"),
        ({"tag_token_ids": [[3, 40]]}, r"tag_token_ids\[0\]=\[3, 40\] must be ids"),
        ({"vision_config": TINY_CLIP}, "leaves no place for a vision_config"),
        ({"features_only": False, "feature_size": None, "vision_config": TINY_MOBILENET}, "1280"),
        ({"features_only": False, "vision_config": {"model_type": "clip"}}, "vision_config is of the whole 'clip'"),
        ({"prefix_length": "one"}, "Field 'prefix_length' expected int, got str"),
    ],
)
def test_config_refuses_what_cannot_be(changes, message):
    with pytest.raises(Exception, match=message):
        tiny_config(**changes)


def test_a_decoder_that_is_not_gpt2_is_refused():
    with pytest.raises(Exception, match="text_config must be of type 'gpt2', not 'vit'"):
        ClipGpt2Config(features_only=True, text_config=ViTConfig())


def test_gpt2_has_the_captioners_special_tokens(caplog):
    tokens = special_token_ids(word_tokenizer())
    config = ClipGpt2Config(features_only=True, text_config={"vocab_size": 30}, **tokens)
    names = ("pad_token_id", "bos_token_id", "eos_token_id")
    assert [getattr(config.text_config, name) for name in names] == [tokens[name] for name in names]
    assert "within the vocabulary" not in caplog.text
    assert [getattr(ClipGpt2Config(), name) for name in (*names, "separator_token_id")] == [50256] * 4


def test_config_is_as_it_was_after_saving(tmp_path):
    config = tiny_config(
        features_only=False, vision_config=TINY_CLIP, prefix_length=4, tag_token_ids=[[3, 4], [5]], separator_token_id=7
    )
    config.save_pretrained(tmp_path)
    loaded = ClipGpt2Config.from_pretrained(tmp_path)
    ours, theirs = config.to_dict(), loaded.to_dict()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"_name_or_path", "transformers_version"}
    assert (loaded.feature_size, loaded.max_position_embeddings, loaded.vocab_size) == (12, 61, 40)


# -- what GPT-2 reads ------------------------------------------------------------------------------------------------

MAPPINGS = [
    {"mapping_type": "linear"},
    {"mapping_type": "linear", "prefix_length": 4},
    {"mapping_type": "mlp", "prefix_length": 3},
    {"mapping_type": "transformer", "prefix_length": 4, "clip_length": 3, "mapping_layers": 2, "mapping_heads": 4},
]


def by_hand(model, *parts: torch.Tensor) -> torch.Tensor:
    """GPT-2's input (1, L, d) from vectors and token ids, each `(L_i, d)` or `(L_i,)`."""
    table = model.gpt.transformer.wte.weight
    return torch.cat([part if part.ndim == 2 else table[part] for part in parts])[None]


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_loss_is_gpt2s_own_on_the_words_alone(mapping):
    model = tiny_model(**mapping)
    features, labels = torch.randn(2, 12), torch.tensor([[3, 9, 4, 0], [7, 0, -100, -100]])
    prefix = model.clip_project(features)  # (2, P, d)
    assert prefix.shape == (2, model.config.prefix_length, 24)
    words = model.gpt.transformer.wte(labels[:, :-1].clamp(min=0))
    no_label = torch.full(prefix.shape[:2], -100)
    # transformers' GPT-2 shifts: the label at a position is predicted one before; the last word's input is never needed
    padded = torch.cat((prefix, words, words[:, -1:]), dim=1)
    own = model.gpt(inputs_embeds=padded, labels=torch.cat((no_label, labels), dim=1))
    output = model(image_features=features, labels=labels)
    torch.testing.assert_close(output.loss, own.loss)
    torch.testing.assert_close(output.logits, own.logits[:, prefix.shape[1] - 1 : -1])


@pytest.mark.parametrize("mapping", MAPPINGS[::2])
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1},
        {"num_beams": 5},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.3},
        {"num_beams": 1, "do_sample": True, "top_k": 9, "num_return_sequences": 3},
        {"num_beams": 3, "eos_token_id": [0, 5]},
    ],
    ids=str,
)
def test_generate_is_gpt2s_own_behind_the_prefix(mapping, options):
    model = tiny_model(seed=3, **mapping)
    features = torch.randn(3, 12)
    prefix = model.clip_project(features)
    torch.manual_seed(5)
    ours = model.generate(image_features=features, max_new_tokens=12, **options)
    torch.manual_seed(5)
    own = model.gpt.generate(
        inputs_embeds=prefix,
        attention_mask=torch.ones(prefix.shape[:2]),
        max_new_tokens=12,
        **{"pad_token_id": 0, "eos_token_id": 0, **options},
    )
    assert torch.equal(ours[:, 1:], own)
    assert len({tuple(row) for row in ours.tolist()}) > 1


def test_the_shapes_of_the_description():
    """One image token and 20 words are 21 positions of GPT-2 (stated), and the processor cuts captions to fit."""
    model, seen = tiny_model(), []
    model.gpt.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["inputs_embeds"].shape), with_kwargs=True
    )
    processor = ClipGpt2Processor(image_processor(), bpe_tokenizer())
    labels = processor(text_target=["many words " * 30, "A red circle"])["labels"]
    model(image_features=torch.randn(2, 12), labels=labels.clamp(max=39))
    assert seen == [(2, 21, 24)]


def test_one_embedding_may_come_without_its_token_axis():
    model, features = tiny_model(), torch.randn(3, 12)
    assert torch.equal(
        model.generate(image_features=features), model.generate(image_features=features[:, None], use_cache=False)
    )
    with pytest.raises(ValueError, match=r"image_features must be \(pictures, tokens, 12\), not \(3, 1, 11\)"):
        model.generate(image_features=features[:, 1:])


def test_regions_are_tokens_and_their_padding_may_stand_anywhere():
    model = tiny_model(prefix_length=2).double()
    features, labels = torch.randn(2, 6, 12).double(), torch.tensor([[3, 9, 0], [7, 8, 0]])
    mask = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1]])
    features[mask == 0] = torch.nan  # padding is never looked at
    batched = model(image_features=features, image_attention_mask=mask, labels=labels).logits
    for row in range(2):
        real = features[row, mask[row] == 1]
        embeddings = by_hand(model, model.clip_project(real).flatten(0, 1), labels[row, :-1])
        expected = model.gpt(inputs_embeds=embeddings).logits[:, -3:]
        torch.testing.assert_close(batched[row : row + 1], expected, atol=1e-12, rtol=0)
    batched.sum().backward()
    assert all(torch.isfinite(one.grad).all() for one in model.parameters() if one.grad is not None)


def test_embeddings_are_scaled_to_length_one_where_the_model_says_so():
    features = 30 * torch.randn(2, 12)
    plain, scaled = tiny_model(), tiny_model(normalize_prefix=True)
    labels = torch.tensor([[3, 0], [4, 0]])
    unit = features / features.norm(dim=1, keepdim=True)
    expected = plain(image_features=unit, labels=labels).logits
    torch.testing.assert_close(scaled(image_features=features, labels=labels).logits, expected)
    assert not torch.allclose(plain(image_features=features, labels=labels).logits, expected, atol=1e-3)


def test_several_captions_read_their_picture_once():
    model, seen = tiny_model(prefix_length=6), []
    model.gpt.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    model.generate(image_features=torch.randn(2, 12), num_beams=4, max_length=4, min_length=4)
    assert seen == [(2, 5), (8, 1), (8, 1), (8, 1)]


def test_the_cache_is_exact_in_float64():
    model = tiny_model(prefix_length=3).double()
    features, ids = torch.randn(2, 4, 12).double(), torch.randint(0, 40, (6, 20))
    ids[:, 0] = 0
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    encoded = model.encode_images(image_features=features, image_attention_mask=mask)
    whole = model(encoder_outputs=encoded, decoder_input_ids=ids).logits
    cache, steps = model.start_cache(encoded), []
    for start, stop in [(0, 3), (3, 4), (4, 9), *((t, t + 1) for t in range(9, 20))]:
        out = model(encoder_outputs=encoded, decoder_input_ids=ids[:, start:stop], past_key_values=cache)
        steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-12, rtol=0)


def test_what_cannot_be_decoded_is_refused():
    model, features = tiny_model(), torch.randn(1, 12)
    with pytest.raises(ValueError, match=r"a caption of 65 tokens behind 1 tokens .* n_positions=64"):
        model(image_features=features, labels=torch.full((1, 65), 3))
    with pytest.raises(ValueError, match="captions must start with decoder_start_token_id=0"):
        model(image_features=features, decoder_input_ids=torch.tensor([[3, 4]]))
    with pytest.raises(ValueError, match="past_key_values must come from start_cache, not be a DynamicCache"):
        cache = model.gpt(inputs_embeds=torch.zeros(1, 1, 24), use_cache=True).past_key_values
        model(image_features=features, decoder_input_ids=torch.tensor([[0, 4]]), past_key_values=cache)
    with pytest.raises(ValueError, match="no backbone"):
        model.generate(pixel_values=torch.zeros(1, 3, 8, 8))


def test_layer_outputs_are_those_of_the_words():
    model = tiny_model(prefix_length=5)
    output = model(
        image_features=torch.randn(2, 12), decoder_input_ids=torch.zeros(2, 3).long(), output_hidden_states=True
    )
    assert [one.shape for one in output.decoder_hidden_states] == [(2, 3, 24)] * 3
    torch.testing.assert_close(model.gpt.lm_head(output.decoder_hidden_states[-1]), output.logits)
    assert output.encoder_hidden_states[0].shape == (2, 5, 24)


# -- decoding --------------------------------------------------------------------------------------------------------


def test_a_prompt_is_continued():
    model, features = tiny_model(seed=1), torch.randn(2, 12)
    prompt = torch.tensor([[0, 5, 6]]).repeat(2, 1)
    for options in ({"num_beams": 1}, {"num_beams": 3}):
        captions = [
            model.generate(image_features=features, decoder_input_ids=prompt, max_length=9, use_cache=cache, **options)
            for cache in (True, False)
        ]
        assert torch.equal(*captions)
        assert (captions[0][:, :3] == prompt).all()


@pytest.mark.parametrize("options", [{}, {"num_return_sequences": 3}, {"do_sample": True}], ids=str)
def test_clipcaps_beam_search_with_cache_and_without(options):
    model, features = tiny_model(seed=6, prefix_length=3), torch.randn(3, 2, 12)
    prompt = torch.tensor([[0, 9]]).repeat(3, 1)
    captions = []
    for use_cache in (True, False):
        torch.manual_seed(0)
        out = model.generate(
            image_features=features,
            decoder_input_ids=prompt,
            num_beams=3,
            beam_rule="clipcap",
            max_length=9,
            use_cache=use_cache,
            **options,
        )
        captions.append(out)
    assert torch.equal(*captions)
    assert captions[0].shape[0] == 3 * options.get("num_return_sequences", 1)
    assert (captions[0][:, :2] == prompt[0]).all()


def test_a_full_stop_may_end_a_caption_too():
    model, features = tiny_model(seed=2), torch.randn(8, 12)
    model.generation_config.eos_token_id = [0, 13]
    ends = set()
    for beams in (1, 2):
        torch.manual_seed(0)
        suppressed = [index for index in range(40) if index not in (0, 9, 13, 17)]
        captions = model.generate(
            image_features=features, num_beams=beams, do_sample=True, temperature=9.0, suppress_tokens=suppressed
        )
        log_probs = model.sequence_log_probs(captions, image_features=features)
        for caption, scores in zip(captions.tolist(), log_probs, strict=True):
            stop = next((index for index, word in enumerate(caption) if index and word in (0, 13)), len(caption) - 1)
            ends.add(caption[stop])
            assert set(caption[stop + 1 :]) <= {0}  # padding
            assert (scores[stop:] == 0).all() and (scores[:stop] < 0).all()
    assert ends >= {0, 13}


def test_generating_while_training_with_checkpointing_does_without_a_cache():
    model, features = tiny_model(), torch.randn(2, 12)
    expected = model.generate(image_features=features, num_beams=2)
    model.train()
    model.activation_checkpointing_enable()
    assert torch.equal(model.generate(image_features=features, num_beams=2), expected)
    output = model(image_features=features, decoder_input_ids=torch.zeros(2, 1).long(), use_cache=True)
    assert output.past_key_values is None


def test_an_ensemble_averages_the_words_probabilities():
    models = [tiny_model(seed, prefix_length=2) for seed in (0, 1, 2)]
    features = torch.randn(2, 3, 12)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    ensemble = CaptionerEnsemble(models)
    out = ensemble.generate(
        image_features=features,
        image_attention_mask=mask,
        num_beams=3,
        max_length=8,
        return_dict_in_generate=True,
        output_scores=True,
    )
    scores = [
        model(image_features=features, image_attention_mask=mask, decoder_input_ids=out.sequences[:, :-1])
        for model in models
    ]
    mean = torch.stack([one.logits.softmax(-1) for one in scores]).mean(0).log()
    gold = mean.gather(-1, out.sequences[:, 1:, None])[..., 0]
    steps = ensemble.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    real = out.beam_indices >= 0
    torch.testing.assert_close(steps[real], gold[real], atol=1e-5, rtol=1e-5)


# -- anchors and tags ------------------------------------------------------------------------------------------------


def test_anchors_stand_between_picture_and_caption():
    model = tiny_model(prefix_length=2, separator_token_id=7).double()
    features, labels = torch.randn(2, 12).double(), torch.tensor([[3, 9, 0], [8, 0, -100]])
    anchors = torch.tensor([[21, 22, -100, 23], [-100, -100, -100, -100]])
    logits = model(image_features=features, anchor_ids=anchors, labels=labels).logits
    prefix = model.clip_project(features)
    first = by_hand(model, prefix[0], torch.tensor([21, 22, 23, 7]), labels[0, :-1])
    torch.testing.assert_close(logits[:1], model.gpt(inputs_embeds=first).logits[:, -3:], atol=1e-12, rtol=0)
    plain = model(image_features=features, labels=labels).logits
    torch.testing.assert_close(logits[1], plain[1], atol=1e-12, rtol=0)
    assert not torch.allclose(logits[0], plain[0])
    none = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(model(image_features=features, anchor_ids=none, labels=labels).logits, plain)


def test_every_caption_may_have_its_own_anchors():
    model, features = tiny_model(), torch.randn(2, 12)
    labels, anchors = torch.randint(1, 40, (4, 3)), torch.tensor([[5, 6], [8, -100], [-100, -100], [9, 9]])
    together = model(image_features=features, anchor_ids=anchors, labels=labels).logits
    for row in range(4):
        alone = model(
            image_features=features[row // 2 : row // 2 + 1],
            anchor_ids=anchors[row : row + 1],
            labels=labels[row : row + 1],
        )
        torch.testing.assert_close(together[row], alone.logits[0])
    with pytest.raises(ValueError, match="3 rows of anchor_ids cannot be shared out among 2 pictures"):
        model(image_features=features, anchor_ids=anchors[:3], labels=labels)
    encoded = model.encode_images(image_features=features)
    for call in (model, model.generate):
        with pytest.raises(ValueError, match="anchor_ids"):
            call(encoder_outputs=encoded, anchor_ids=anchors, **({"labels": labels} if call is model else {}))


def test_captions_are_generated_and_scored_behind_the_same_anchors():
    model, features = tiny_model(seed=4), torch.randn(2, 12)
    anchors = torch.tensor([[21, 22], [23, -100]])
    out = model.generate(
        image_features=features,
        anchor_ids=anchors,
        num_beams=3,
        return_dict_in_generate=True,
        output_scores=True,
        max_length=9,
    )
    log_probs = model.sequence_log_probs(out.sequences, image_features=features, anchor_ids=anchors)
    steps = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    torch.testing.assert_close(steps, log_probs, atol=1e-4, rtol=1e-4)
    encoded = model.encode_images(image_features=features, anchor_ids=anchors)
    again = model.generate(encoder_outputs=encoded, num_beams=3, max_length=9)
    assert torch.equal(again, out.sequences)


def tagged(**changes) -> ClipGpt2ForImageCaptioning:
    return tiny_model(tag_token_ids=[[21], [22, 23], [24], [25]], max_anchors=2, **changes)


def test_the_tag_predictor_supplies_anchors_when_none_are_given():
    model, features = tagged(), torch.randn(3, 12)
    probabilities = torch.tensor([[0.9, 0.6, 0.8, 0.1], [0.2, 0.7, 0.1, 0.3], [0.4, 0.3, 0.2, 0.1]])
    with torch.no_grad():  # a head that gives these
        model.tag_head.weight.copy_(torch.linalg.lstsq(features, probabilities.logit()).solution.T)
        model.tag_head.bias.zero_()
    torch.testing.assert_close(model.predict_tags(features[:, None]).sigmoid(), probabilities, atol=1e-4, rtol=0)
    labels = torch.tensor([[3, 0]] * 3)
    best_two = torch.tensor([[21, 24, -100], [22, 23, -100], [-100, -100, -100]])
    expected = model(image_features=features, anchor_ids=best_two, labels=labels).logits
    for images in ({"image_features": features}, {"encoder_outputs": model.encode_images(image_features=features)}):
        torch.testing.assert_close(model(**images, labels=labels).logits, expected)
        assert torch.equal(
            model.generate(**images, max_length=9),
            model.generate(image_features=features, anchor_ids=best_two, max_length=9),
        )
    none = torch.full((3, 1), -100)
    assert not torch.allclose(model(image_features=features, anchor_ids=none, labels=labels).logits, expected)
    model.config.max_anchors = 0
    without = model(image_features=features, labels=labels).logits
    torch.testing.assert_close(without, model(image_features=features, anchor_ids=none, labels=labels).logits)
    with pytest.raises(ValueError, match="no tag predictor"):
        tiny_model().predict_tags(features[:, None])


def test_tags_of_regions_are_predicted_from_their_mean():
    model, regions = tagged(), torch.randn(1, 3, 12)
    padded = torch.cat((regions, torch.full((1, 2, 12), torch.inf)), dim=1)
    scores = model.predict_tags(padded, torch.tensor([[1, 1, 1, 0, 0]]))
    torch.testing.assert_close(scores, model.tag_head(regions.mean(1)))


def test_the_tag_loss_is_binary_cross_entropy_and_adds_up():
    model, features = tagged(tag_loss_weight=0.5), torch.randn(2, 12)
    labels = torch.tensor([[3, 9, 4, 0], [7, 3, 0, -100], [7, 0, -100, -100], [0, -100, -100, -100]])
    anchors, targets = torch.full((4, 1), -100), torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]])
    inputs = {"image_features": features, "anchor_ids": anchors}
    whole = model(**inputs, labels=labels, tag_targets=targets).loss
    probabilities = model.predict_tags(features[:, None]).sigmoid()
    entropy = -(targets * probabilities.log() + (1 - targets) * (1 - probabilities).log()).mean(1)
    words = torch.tensor([7, 3])  # targets of each picture's captions
    expected = model(**inputs, labels=labels).loss + 0.5 * (entropy * words).sum() / 10
    torch.testing.assert_close(whole, expected)
    parts = [
        model(
            image_features=features[i : i + 1],
            anchor_ids=anchors[2 * i : 2 * i + 2],
            labels=labels[2 * i : 2 * i + 2],
            tag_targets=targets[i : i + 1],
            num_items_in_batch=10,
        ).loss
        for i in range(2)
    ]
    torch.testing.assert_close(sum(parts), whole)
    whole.backward()
    assert model.tag_head.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match=r"tag_targets must be \(2, 4\), not \(2, 3\)"):
        model(**inputs, labels=labels, tag_targets=targets[:, :3])


def test_it_learns_captions_of_its_pictures_with_and_without_anchors():
    """Overfitting: the same picture gets one caption with an anchor and another without."""
    model = tiny_model(sharp=False, prefix_length=2).train()
    features = torch.randn(4, 12).repeat_interleave(2, dim=0)
    labels = torch.randint(1, 40, (8, 5))
    labels[:, -1] = 0
    anchors = torch.tensor([[39], [-100]]).repeat(4, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model(image_features=features, anchor_ids=anchors, labels=labels).loss.backward()
        optimizer.step()
    captions = model.eval().generate(image_features=features, anchor_ids=anchors, num_beams=3)
    assert torch.equal(captions[:, 1:], labels)


# -- pretrained towers -----------------------------------------------------------------------------------------------


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
