"""CLIP-GPT2: the contract with GPT-2's kind of tokenizer and with words, and what is its own."""

from __future__ import annotations

import pytest
import torch
from contracts.autoregressive import AutoregressiveContract
from contracts.tiny_clip_gpt2 import (
    MAPPINGS,
    TINY_CLIP,
    TINY_MOBILENET,
    bpe_tokenizer,
    by_hand,
    image_processor,
    tiny_config,
    tiny_model,
    word_tokenizer,
)
from transformers import CLIPVisionModelWithProjection, ViTConfig

from hf_captioners import ClipGpt2Config, ClipGpt2ForImageCaptioning, ClipGpt2Processor, special_token_ids
from hf_captioners.inference.ensemble import CaptionerEnsemble


class TestContractOfClipAndBytePairs(AutoregressiveContract):
    @pytest.fixture()
    def model(self):
        text = {"vocab_size": len(bpe_tokenizer())}
        return tiny_model(features_only=False, vision_config=TINY_CLIP, text_config=text, unk_token_id=5)

    @pytest.fixture()
    def processor(self):
        return ClipGpt2Processor(image_processor(), bpe_tokenizer())


class TestContractOfMobileNetAndWords(AutoregressiveContract):
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

    test_half_precision_is_the_same_in_the_verbs = None  # once is enough

    def test_sdpa_and_eager_agree(self, model, pixels, labels):  # MobileNetV2 has no attention to choose
        outputs = []
        for attention in ("sdpa", "eager"):
            model.set_attn_implementation({"text_config": attention})
            outputs.append(model(pixel_values=pixels, labels=labels).logits)
        torch.testing.assert_close(outputs[0], outputs[1], atol=5e-5, rtol=1e-4)

    test_shipped_code_runs_where_the_package_is_missing = None  # the same files as above
    test_can_be_exported_with_a_mask = None


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
        ({"tag_loss_weight": -1.0}, "tag_loss_weight must be at least 0"),
        ({"max_anchors": -1}, "max_anchors must be at least 0"),
        ({"eos_token_id": 40}, "eos_token_id=40 is not an id of vocab_size=40"),
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
            decoding="paper",
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
