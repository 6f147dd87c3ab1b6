"""SCD-Net: the contract for a stage and for a cascade, and what is its own."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from contracts.captioner import CaptionerContract
from contracts.tiny_scdnet import SIZES, small_model
from huggingface_hub.errors import StrictDataclassError

from hf_captioners import (
    CaptionerImageProcessor,
    ScdnetConfig,
    ScdnetProcessor,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.modeling.diffusion_scdnet import log_snr
from hf_captioners.modeling.processing_captioner import pad_features

SWIN = {
    "model_type": "swin",
    "image_size": 32,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "drop_path_rate": 0.0,
}


@pytest.fixture(scope="session")
def tokenizer():
    captions = ["a red circle above a blue square", "two small green stars", "the large star left of a circle"]
    return build_word_tokenizer(build_vocabulary(captions, min_count=1), model_max_length=13)


class TestContract(CaptionerContract):
    @pytest.fixture()
    def model(self, tokenizer):
        sizes = {"vocab_size": len(tokenizer), "vision_config": SWIN, "feature_size": None, "retrieval": "none"}
        return small_model(**sizes, num_bits=5, **special_token_ids(tokenizer))

    @pytest.fixture()
    def processor(self, tokenizer):
        image_processor = CaptionerImageProcessor(size={"height": 32, "width": 32})
        return ScdnetProcessor(image_processor, tokenizer)


class TestContractOfACascade(TestContract):
    @pytest.fixture()
    def model(self, tokenizer):
        ids = {"vocab_size": len(tokenizer), **special_token_ids(tokenizer), "num_bits": 5, "retrieval": "none"}
        first = ScdnetConfig(**{**SIZES, **ids, "feature_size": 16})
        sizes = {"vision_config": SWIN, "feature_size": None, "sees_previous": True, "first_stage": first}
        return small_model(**ids, **sizes)

    test_shipped_code_runs_where_the_package_is_missing = None  # once is enough
    test_half_precision_is_the_same_in_the_verbs = None
    test_can_be_exported_with_a_mask = None

    def written_before(self, model, pixels):
        encoded = model.encode_images(pixel_values=pixels)
        return {"previous_ids": model.first_stage.write_captions(encoded.first)[:, 1:]}

    def test_every_parameter_learns(self, model, pixels, labels):
        model.train()
        model(pixel_values=pixels, labels=labels).loss.backward()
        idle = {name.partition(".")[0] for name, one in model.named_parameters() if one.grad is None}
        assert idle == {"first_stage"}  # it is trained by itself


IMAGES = {
    "image_features": torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3)),
    "retrieved_ids": torch.tensor([[1, 7, 8, 0], [1, 9, 8, 10]]),
    "retrieved_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
}
PREVIOUS = torch.tensor([[5, 6, 2, 0], [7, 2, 0, 0]])
LABELS = torch.tensor([[5, 6, 7, 2], [8, 9, 2, -100], [4, 4, 2, -100], [11, 2, -100, -100]])


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def cascade():
    return small_model(sees_previous=True, first_stage=ScdnetConfig(**SIZES, feature_size=12))


class TestRegions:
    """The first regions of a picture are seen, wherever its features come from."""

    def test_as_if_the_others_were_not_there(self):
        model, limited = small_model(), small_model(max_regions=4)
        fewer = IMAGES | {"image_features": IMAGES["image_features"][:, :4]}
        torch.testing.assert_close(limited(**IMAGES, labels=LABELS).logits, model(**fewer, labels=LABELS).logits)
        assert not torch.allclose(
            model(**IMAGES, labels=LABELS).logits, model(**fewer, labels=LABELS).logits, atol=1e-3
        )

    def test_with_padding(self):
        limited, features = small_model(max_regions=4), [IMAGES["image_features"][0], IMAGES["image_features"][1, :3]]
        batch, mask = pad_features(features)
        both = IMAGES | {"image_features": batch, "image_attention_mask": mask}
        out = limited.encode_images(**both)
        assert out.image_attention_mask.sum(1).tolist() == [4, 3] and out.image_features.shape == (2, 4, 12)
        alone = {name: value[1:] for name, value in IMAGES.items()} | {"image_features": features[1][None]}
        logits = limited(**both, labels=LABELS).logits
        torch.testing.assert_close(logits[2:], limited(**alone, labels=LABELS[2:]).logits)

    def test_of_a_cascade(self):
        sizes = {**SIZES, "feature_size": 12, "max_regions": 4}
        cascade = small_model(sees_previous=True, max_regions=4, first_stage=ScdnetConfig(**sizes))
        fewer = IMAGES | {"image_features": IMAGES["image_features"][:, :4]}
        assert torch.equal(cascade.generate(**IMAGES), cascade.generate(**fewer))


class TestSentences:
    def test_a_caption_depends_on_the_retrieved_sentence_but_not_on_its_padding(self, model):
        out = model(**IMAGES, labels=LABELS).logits
        wider = {
            "retrieved_ids": torch.nn.functional.pad(IMAGES["retrieved_ids"], (0, 2), value=5),
            "retrieved_mask": torch.nn.functional.pad(IMAGES["retrieved_mask"], (0, 2)),
        }
        torch.testing.assert_close(model(**IMAGES | wider, labels=LABELS).logits, out)
        other = {"retrieved_ids": IMAGES["retrieved_ids"].flip(0), "retrieved_mask": IMAGES["retrieved_mask"].flip(0)}
        assert not torch.allclose(model(**IMAGES | other, labels=LABELS).logits, out, atol=1e-3)

    def test_a_sentence_for_each_caption(self, model):
        ids, mask = (IMAGES[name].repeat_interleave(2, dim=0) for name in ("retrieved_ids", "retrieved_mask"))
        images = IMAGES | {"retrieved_ids": ids, "retrieved_mask": mask}
        torch.testing.assert_close(model(**images, labels=LABELS).logits, model(**IMAGES, labels=LABELS).logits)

    def test_without_a_retrieved_sentence_the_error_says_what_to_do(self, model):
        with pytest.raises(ValueError, match=r"give retrieved_ids.*config.retrieval='none'"):
            model.generate(image_features=IMAGES["image_features"])

    def test_a_second_stage_needs_what_the_first_wrote(self, model):
        second = small_model(sees_previous=True)
        with pytest.raises(ValueError, match="needs previous_ids"):
            second.generate(**IMAGES)
        assert second.generate(**IMAGES, previous_ids=PREVIOUS).shape[0] == 2
        with pytest.raises(ValueError, match="previous_ids is for a second stage"):
            model.generate(**IMAGES, previous_ids=PREVIOUS)

    @pytest.mark.parametrize(
        "name, ids", [("retrieved_ids", torch.ones(3, 4).long()), ("guide_ids", torch.ones(2, 13).long())]
    )
    def test_sentences_of_a_wrong_shape_are_refused_by_name(self, model, name, ids):
        images = {"image_features": IMAGES["image_features"], "retrieved_ids": IMAGES["retrieved_ids"], name: ids}
        with pytest.raises(ValueError, match=f"{name} must be"):
            model.encode_images(**images)


class TestChance:
    """Training steps of captions depend on their seeds, not on the batch they are in."""

    def test_seeds_decide_a_step(self, model):
        model = copy.deepcopy(model).train()
        seeds = torch.tensor([3, 4, 5, 6])
        out = model(**IMAGES, labels=LABELS, seeds=seeds)
        torch.testing.assert_close(model(**IMAGES, labels=LABELS, seeds=seeds).logits, out.logits)
        for row in range(2):
            images = {name: value[row : row + 1] for name, value in IMAGES.items()}
            mine = slice(2 * row, 2 * row + 2)
            alone = model(**images, labels=LABELS[mine], seeds=seeds[mine])
            torch.testing.assert_close(alone.logits, out.logits[mine], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(model(**IMAGES, labels=LABELS, seeds=seeds + 1).logits, out.logits, atol=1e-3)

    def test_self_conditioning_is_a_first_pass_without_gradient(self, model):
        noise = torch.randn(4, 12, 5, generator=torch.Generator().manual_seed(0))
        chance = {"timesteps": torch.full((4,), 0.4), "noise": noise}
        plain, both = (model(**IMAGES, labels=LABELS, **chance, self_conditioning=on).logits for on in (False, True))
        some = model(**IMAGES, labels=LABELS, **chance, self_conditioning=torch.tensor([True, False])).logits
        torch.testing.assert_close(some, torch.cat((both[:2], plain[2:])), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(both, plain, atol=1e-4)

    def test_coins_fall_at_the_rate_of_the_configuration(self, model):
        seeds = torch.arange(400)
        _, _, heads = model._draw(seeds, (400, 12, 5), 400, True, torch.device("cpu"))
        assert 160 < int(heads.sum()) < 240


class TestGenerate:
    def test_the_noise_is_that_of_the_seed_or_the_generator(self, model):
        expected = model.generate(**IMAGES)
        torch.manual_seed(7)
        assert torch.equal(model.generate(**IMAGES), expected)
        noise = torch.randn(1, 1, 12, 5, generator=torch.Generator().manual_seed(0)).expand(2, 1, 12, 5).flatten(0, 1)
        assert torch.equal(model.generate(**IMAGES, noise=noise), expected)
        finals = [
            model.generate(**IMAGES, **options, return_dict_in_generate=True).stages[0].state
            for options in (
                {"generator": torch.Generator().manual_seed(5)},
                {"generator": torch.Generator().manual_seed(5)},
                {"seed": 1},
                {"do_sample": True},
            )
        ]
        assert torch.equal(finals[0], finals[1])
        assert not torch.equal(finals[0], finals[2]) and not torch.equal(finals[2], finals[3])

    def test_captions_of_a_picture_are_ranked_by_their_log_probability(self, model):
        out = model.generate(**IMAGES, num_return_sequences=4, num_inference_steps=2, return_dict_in_generate=True)
        scores = model.sequence_log_probs(out.sequences, **IMAGES).sum(1)
        torch.testing.assert_close(out.sequences_scores, scores, atol=1e-4, rtol=1e-4)
        for mine in scores.view(2, 4).tolist():
            assert mine == sorted(mine, reverse=True)
        assert len(set(map(tuple, out.sequences.tolist()))) > 2

    def test_ddim_keeps_the_noise_that_the_paper_drops(self, model):
        states = [
            torch.stack(
                model.generate(**IMAGES, sampler=sampler, return_dict_in_generate=True, output_scores=True)
                .stages[0]
                .states
            )
            for sampler in ("paper", "ddim")
        ]
        torch.testing.assert_close(states[0][0], states[1][0])
        assert states[1][1].std() > 1.2 * states[0][1].std()

    def test_fast_decoding_is_a_fifth_of_the_steps_and_what_a_call_says_counts(self, model, cascade):
        options = {"num_inference_steps": 10, "time_difference": 6.0}
        assert torch.equal(model.generate(**IMAGES, decoding="fast"), model.generate(**IMAGES, **options))
        options["num_inference_steps"] = 7
        fast = model.generate(**IMAGES, decoding="fast", num_inference_steps=7)
        assert torch.equal(fast, model.generate(**IMAGES, **options))
        steps = {"num_inference_steps": [10, 8], "time_difference": [9.0, 0.0]}
        assert torch.equal(cascade.generate(**IMAGES, decoding="fast"), cascade.generate(**IMAGES, **steps))
        with pytest.raises(ValueError, match="decoding must be one of"):
            model.generate(**IMAGES, decoding="slow")

    def test_the_likeliest_words_are_those_of_the_last_step(self, model):
        out = model.generate(**IMAGES, word_choice="likeliest", return_dict_in_generate=True, output_scores=True)
        best = out.stages[0].probabilities[-1].argmax(-1)
        for ids, words in zip(out.sequences.tolist(), best.tolist(), strict=True):
            ended = words.index(2) if 2 in words else len(words)
            assert ids[1 : 1 + ended] == words[:ended]

    @pytest.mark.parametrize(
        "options, message",
        [
            ({"num_beams": 3}, "has no beams"),
            ({"sampler": "dpm"}, "sampler must be one of paper, ddim"),
            ({"word_choice": "best"}, "word_choice must be one of bits, likeliest, not 'best'"),
            ({"self_condition": "self"}, "self_condition must be one of none, previous, not 'self'"),
            ({"self_condition": "previous"}, "self_condition='previous' is for a second stage"),
            ({"num_inference_steps": 0}, "num_inference_steps must be a whole number of at least 1, not 0"),
            (
                {"num_inference_steps": [5, 4]},
                r"num_inference_steps must be a whole number of at least 1, not \[5, 4\]",
            ),
            ({"num_inference_steps": 2.5}, "a whole number of at least 1, not 2.5"),
            ({"num_inference_steps": "5"}, "a whole number of at least 1, not '5'"),
            ({"time_difference": -1.0}, "time_difference must be a finite number of at least 0, not -1.0"),
            ({"time_difference": math.nan}, "time_difference must be a finite number of at least 0, not nan"),
            ({"time_spacing": 0}, "time_spacing must be a finite number above 0, not 0"),
            ({"seed": "x"}, "seed must be a whole number, not 'x'"),
            ({"generator": 3}, "generator must be a torch.Generator, not 3; seed takes a number"),
            ({"cascade": "offline"}, "cascade='offline' is for a cascade"),
            ({"decoder_input_ids": torch.tensor([[1, 5], [1, 5]])}, "cannot begin with a given text"),
            ({"noise": torch.zeros(2, 3, 5)}, r"noise must be \(2, 12, 5\)"),
        ],
    )
    def test_options_that_mean_nothing_are_refused(self, model, options, message):
        with pytest.raises(ValueError, match=message):
            model.generate(**IMAGES, **options)

    def test_the_offline_cascade_is_the_second_stage_alone(self, cascade):
        noise = torch.randn(2, 2, 12, 5, generator=torch.Generator().manual_seed(1))
        options = {"num_inference_steps": [3, 4], "time_difference": [1.0, 0.0]}
        whole = cascade.generate(**IMAGES, **options, cascade="offline", noise=list(noise))
        first = cascade.first_stage.generate(**IMAGES, num_inference_steps=3, time_difference=1.0, noise=noise[0])
        alone = cascade.generate(
            **IMAGES, previous_ids=first[:, 1:], num_inference_steps=4, time_difference=0.0, noise=noise[1]
        )
        assert torch.equal(whole, alone)
        for wrong, message in (
            ({"cascade": "both"}, "cascade must be one of online, offline, not 'both'"),
            ({"cascade_weights": [0.0, 0.0]}, "cascade_weights must be two numbers"),
            ({"cascade_weights": 2.0}, "cascade_weights must be two numbers from 0 on, not both 0, not 2.0"),
            ({"num_inference_steps": [5]}, r"or one for each of 2 stages, not \[5\]"),
            ({"num_inference_steps": [5, 0]}, r"a whole number of at least 1.*, not \[5, 0\]"),
        ):
            with pytest.raises(ValueError, match=message):
                cascade.generate(**IMAGES, **wrong)

    def test_the_first_step_sees_the_previous_sentence_as_its_own_prediction(self, cascade):
        noise, previous = torch.randn(2, 12, 5), torch.tensor([[4, 9, 2], [7, 2, 0]])
        images = {**IMAGES, "previous_ids": previous}
        options = {"num_inference_steps": 1, "time_difference": 0.0, "noise": noise, "self_condition": "previous"}
        out = cascade.generate(**images, **options, return_dict_in_generate=True, output_scores=True)
        known = cascade._known(cascade.encode_images(**images), 2)
        time = cascade.token_embed.time_embed(log_snr(torch.ones(1)))
        bits = cascade.codec.encode(torch.nn.functional.pad(previous, (0, 9)))
        logits, _ = cascade.predict(noise, bits, time, known)
        torch.testing.assert_close(out.stages[-1].predictions[0], cascade.expected_bits(logits))
        without, _ = cascade.predict(noise, torch.zeros_like(bits), time, known)
        assert (without - logits).abs().max() > 1e-3

    def test_the_time_is_in_float32_in_every_type(self, model):
        half = copy.deepcopy(model).to(torch.bfloat16)
        ratios = torch.tensor([-33.89131, 3.0])
        assert torch.equal(half.token_embed.time_embed(ratios), model.token_embed.time_embed(ratios))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(model.token_embed.time_embed(ratios), half.token_embed.time_embed(ratios))


def test_more_words_than_the_bits_can_tell_apart():
    model = small_model()
    with pytest.raises(ValueError, match="more than the 32 words that 5 bits"):
        model.resize_token_embeddings(33)
    model.resize_token_embeddings(32)
    assert model.codec.table[31].tolist() == [1.0] * 5


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"num_bits": 4}, "num_bits=4 must be between 5"),
        ({"noise_schedule": "sigmoid"}, "noise_schedule must be one of cosine, linear"),
        ({"caption_positions": 11}, "caption_positions must be at least 12"),
        ({"first_stage": ScdnetConfig(**SIZES)}, "needs sees_previous=True"),
        ({"first_stage": ScdnetConfig(**SIZES | {"vocab_size": 21}), "sees_previous": True}, "vocab_size=21"),
        ({"num_attention_heads": 3}, "does not divide hidden_size=16"),
        ({"max_regions": 0}, "max_regions must be at least 1, not 0"),
        ({"max_regions": 50, "vision_config": SWIN}, "max_regions=50 is for a features_only model"),
    ],
)
def test_configurations_that_contradict_themselves(fields, message):
    with pytest.raises(StrictDataclassError, match=message):
        ScdnetConfig(**{**SIZES, **fields})


def test_attention_to_the_picture():
    model = small_model().eval()
    images = {**IMAGES, "image_attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])}
    with torch.no_grad():
        plain, output = (model(**images, labels=LABELS, output_attentions=wanted) for wanted in (False, True))
        assert plain.cross_attentions is None
        torch.testing.assert_close(output.logits, plain.logits, atol=5e-5, rtol=1e-4)
        model.set_attn_implementation("eager")
        eager = model(**images, labels=LABELS, output_attentions=True)
    places = model.config.caption_length
    for weights, expected in zip(output.cross_attentions, eager.cross_attentions, strict=True):
        assert weights.shape == (4, model.config.num_attention_heads, places, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        assert (weights[2:, ..., 3:] == 0).all()
        torch.testing.assert_close(weights, expected, atol=5e-5, rtol=1e-4)
    written = model.generate(
        **images, num_inference_steps=3, num_return_sequences=2, output_attentions=True, return_dict_in_generate=True
    )
    assert [len(step) for step in written.cross_attentions] == [len(output.cross_attentions)] * 3
    assert written.cross_attentions[0][0].shape == (4, model.config.num_attention_heads, places, 5)


class TestReplacedWords:
    """The sentence of a first stage as a second one sees it in training."""

    previous = torch.tensor([[5, 6, 7, 8, 2, 0], [9, 10, 2, 0, 0, 0]])
    labels = torch.tensor([[5, 6, 2], [7, 2, -100], [8, 9, 2], [10, 2, -100]])

    def seen(self, seeds, **changes):
        model = small_model(sees_previous=True, retrieval="none", **changes)
        images = {"image_features": torch.ones(2, 3, 12), "previous_ids": self.previous}
        encoded = model.encode_images(**images)
        return model, None if seeds is None else model._with_replaced_words(encoded, seeds)

    def test_of_all_captions_together_and_of_each(self):
        seeds = torch.tensor([1, 2, 3, 4])
        _, together = self.seen(seeds)
        assert together.shape == (2, 12)  # one for each picture
        _, each = self.seen(seeds, replaced_together=False)
        assert each.shape == (4, 12) and torch.equal(each[::2], together)
        assert not torch.equal(each[0], each[1])
        _, alone = self.seen(torch.tensor([1, 7, 3, 9]))
        assert torch.equal(alone, together)  # the first caption's seed decides

    @pytest.mark.parametrize("rate", [0.556, 0.15, 1.0])
    def test_rates_and_words(self, rate):
        model = small_model(sees_previous=True, retrieval="none", replaced_words=rate)
        previous = torch.tensor([[5, 6, 7, 2, 0, 0]]).repeat(2000, 1)
        encoded = model.encode_images(image_features=torch.ones(2000, 1, 12), previous_ids=previous)
        words = model._with_replaced_words(encoded, torch.arange(0, 20000, 10))
        assert (words[:, 3:6] == previous[:, 3:]).all()  # what ends a sentence stays
        found = words[:, :3]
        assert set(found.unique().tolist()) == set(range(4, 20))
        others = (found != previous[:, :3]).float().mean()
        assert float(others) == pytest.approx(rate * 15 / 16, abs=0.02)  # 16 words are no special tokens

    def test_in_training_alone(self):
        model, _ = self.seen(None)
        inputs = {"image_features": torch.ones(2, 3, 12), "labels": self.labels, "seeds": torch.arange(4)}
        changed = self.previous.clone()
        changed[0, 0] = 11
        for training, same in ((True, True), (False, False)):
            model.train(training)
            model.config.replaced_words = 1.0
            losses = [model(**inputs, previous_ids=ids).loss for ids in (self.previous, changed)]
            assert torch.equal(*losses) == same


def test_a_cascade_of_stages_that_were_trained_alone(tmp_path):
    first, second = small_model(1), small_model(2, sees_previous=True)
    images = {"image_features": torch.randn(2, 3, 12), "retrieved_ids": torch.tensor([[1, 5, 6], [1, 7, 8]])}
    model = type(first).from_stages(first, second)
    options = {"num_inference_steps": [5, 4], "time_difference": [0.0, 0.0], "cascade": "offline"}
    ids = model.generate(**images, **options)
    previous = first.generate(**images, num_inference_steps=5)
    assert model.is_cascade
    scores = second.sequence_log_probs(ids, **images, previous_ids=previous[:, 1:])
    torch.testing.assert_close(model.sequence_log_probs(ids, **images, previous_ids=previous[:, 1:]), scores)
    model.save_pretrained(tmp_path)
    again = type(first).from_pretrained(tmp_path)
    assert torch.equal(again.generate(**images, **options), ids)
    assert torch.equal(again.first_stage.generate(**images, num_inference_steps=5), previous)
    with pytest.raises(StrictDataclassError, match="first_stage needs sees_previous=True"):
        type(first).from_stages(first, first)


def test_the_stages_of_a_cascade_have_one_backbone():
    sizes = {"vision_config": SWIN, "feature_size": None}
    first, second = small_model(1, **sizes), small_model(2, sees_previous=True, **sizes)
    with pytest.raises(ValueError, match="the stages have different backbones"):
        type(first).from_stages(first, second)
    first.backbone.load_state_dict(second.backbone.state_dict())
    assert type(first).from_stages(first, second).first_stage.backbone is None
