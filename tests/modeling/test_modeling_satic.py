"""SATIC: the contract for several group sizes, and what is its own."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from contracts.autoregressive import AutoregressiveContract
from transformers import MobileNetV2Config, MobileNetV2Model

from hf_captioners import (
    CaptionerImageProcessor,
    SaticConfig,
    SaticForImageCaptioning,
    SaticProcessor,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.modeling.captioner_losses import smoothed_divergence
from hf_captioners.modeling.modeling_satic import GroupLinear, LayerNorm, group_inputs, group_mask

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
    return build_word_tokenizer(build_vocabulary(captions, min_count=1), model_max_length=20)


def small_model(seed: int = 0, **changes) -> SaticForImageCaptioning:
    sizes = {
        "vocab_size": 30,
        "group_size": 2,
        "d_model": 16,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 24,
        "max_position_embeddings": 20,
        "feature_size": 12,
        "feature_dropout": 0.0,
        "dropout": 0.0,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 3,
    }
    torch.manual_seed(seed)
    model = SaticForImageCaptioning(SaticConfig(**{**sizes, **changes})).eval()
    with torch.no_grad():  # peaked distributions, so that captions depend on the picture
        model.model.generator.proj.weight.mul_(4.0)
        model.model.tgt_embed[0].lut.weight.mul_(3.0)
    return model


class TestContract(AutoregressiveContract):
    group_size = 2

    @pytest.fixture()
    def model(self, tokenizer):
        ids = special_token_ids(tokenizer)
        sizes = {"vocab_size": len(tokenizer), "vision_config": SWIN, "feature_size": None, "d_model": 32}
        return small_model(**sizes, group_size=self.group_size, encoder_layers=2, **ids)

    @pytest.fixture()
    def processor(self, tokenizer):
        return SaticProcessor(CaptionerImageProcessor(size={"height": 32, "width": 32}), tokenizer)


class TestContractOneWordAStep(TestContract):
    group_size = 1
    test_shipped_code_runs_where_the_package_is_missing = None  # once is enough
    test_can_be_exported_with_a_mask = None
    test_half_precision_is_the_same_in_the_verbs = None


class TestContractFiveWordsAStep(TestContract):
    group_size = 5
    test_shipped_code_runs_where_the_package_is_missing = None
    test_can_be_exported_with_a_mask = None
    test_half_precision_is_the_same_in_the_verbs = None


@pytest.fixture()
def features() -> torch.Tensor:
    return torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(5))


@pytest.fixture()
def labels() -> torch.Tensor:
    words = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(6))
    words[0, 8] = words[1, 5] = words[2, 2] = 2
    words[1, 6:] = words[2, 3:] = -100
    return words


def test_the_released_sizes_are_the_defaults():
    with torch.device("meta"):
        model = SaticForImageCaptioning(SaticConfig())
    assert sum(one.numel() for one in model.parameters()) == 54_914_832  # specification of the original, section 3
    assert len(list(model.parameters())) == 261
    parts = {"encoder": 18.92, "decoder": 25.23, "tgt_embed": 4.86, "generator": 4.87}  # section 11, in millions
    for name, millions in parts.items():
        count = sum(one.numel() for one in model.model.get_submodule(name).parameters())
        assert count / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads=3 must divide d_model=16"),
        ({"d_model": 15, "num_attention_heads": 3}, "must be even"),
        ({"group_size": 0}, "group_size must be at least 1, not 0"),
        ({"group_size": 21}, "group_size=21 is larger than max_position_embeddings=20"),
        ({"feature_batch_norm": 3}, "feature_batch_norm must be 0, 1 or 2, not 3"),
        ({"training_mask": "none"}, "training_mask must be one of"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"label_smoothing": -0.1}, "label_smoothing must be in"),
        ({"unk_token_id": 30}, "unk_token_id=30 is not an id of vocab_size=30"),
        ({"d_model": "wide"}, "Field 'd_model' expected int, got str"),
        ({"feature_size": None, "vision_config": {"model_type": "mobilenet_v2"}}, "1280 for MobileNetV2"),
    ],
)
def test_config_refuses_what_cannot_be(changes, message):
    with pytest.raises(Exception, match=message):
        small_model(**changes)


def test_initialisation():
    """Xavier-uniform everywhere but in the projection of the features (specification of the original, section 3)."""
    model = SaticForImageCaptioning(SaticConfig(encoder_layers=1, decoder_layers=1))
    bounds = {
        "att_embed.0.weight": 2048**-0.5,
        "model.tgt_embed.0.lut.weight": 0.0245,
        "model.generator.proj.weight": 0.0245,
        "model.decoder.layers.0.src_attn.linears.3.weight": (6 / 1024) ** 0.5,
        "model.decoder.layers.0.feed_forward.w_2.weight": (6 / 2560) ** 0.5,
        "model.decoder.layers.0.feed_forward.w_2.bias": 2048**-0.5,
    }
    for name, bound in bounds.items():
        assert model.get_parameter(name).abs().max().item() == pytest.approx(bound, rel=0.01), name
    assert (model.model.encoder.norm.a_2 == 1).all() and (model.model.encoder.norm.b_2 == 0).all()


def test_layer_norm_is_the_original_formula():
    norm = LayerNorm(SaticConfig(d_model=6, num_attention_heads=2, layer_norm_eps=0.5))
    with torch.no_grad():
        norm.a_2.copy_(torch.arange(6.0))
        norm.b_2.fill_(0.25)
    values = np.array([[3.0, -1.0, 4.0, 1.0, -5.0, 9.0]])
    expected = np.arange(6) * (values - values.mean()) / (values.std(ddof=1) + 0.5) + 0.25
    np.testing.assert_allclose(norm(torch.tensor(values)).detach().numpy(), expected, rtol=1e-6)
    zeros = torch.zeros(2, 6, requires_grad=True)  # a padded row
    norm(zeros).sum().backward()
    assert torch.isfinite(zeros.grad).all()


@pytest.mark.parametrize("shape", [(1, 5), (2, 5), (1, 3, 5), (2, 3, 5), (1, 7, 5), (0, 5)])
def test_few_rows_give_what_many_rows_give(shape):
    layer, hidden = GroupLinear(5, 8), torch.randn(shape)
    expected = hidden @ layer.weight.T + layer.bias
    torch.testing.assert_close(layer(hidden), expected)
    with torch.no_grad():
        torch.testing.assert_close(layer(hidden), expected)
        torch.testing.assert_close(layer.double()(hidden.double()), expected.double(), atol=1e-6, rtol=1e-6)


def test_positions_are_the_original_sinusoids():
    table = small_model().model.tgt_embed[1].pe
    for position, column in ((0, 0), (3, 4), (17, 9), (39, 15)):
        angle = position * 10000 ** (-2 * (column // 2) / 16)
        expected = math.cos(angle) if column % 2 else math.sin(angle)
        assert table[position, column].item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("norms", [0, 1, 2])
def test_padded_rows_are_zero_and_outside_the_statistics(norms, features):
    model = small_model(feature_batch_norm=norms).train()
    mask = torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 2 + [0] * 5])
    garbage = features.masked_fill(mask[..., None] == 0, torch.nan)
    embedded = model.att_embed(garbage, mask)
    assert (embedded[mask == 0] == 0).all()
    alone = copy.deepcopy(small_model(feature_batch_norm=norms)).train().att_embed
    real = features[mask.bool()]
    torch.testing.assert_close(embedded[mask.bool()], alone(real[:, None], None)[:, 0])
    if norms:
        batch_norm = model.att_embed[0]
        torch.testing.assert_close(batch_norm.running_mean, 0.1 * real.mean(0))


def test_features_are_cut_to_the_longest_row(features):
    model = small_model()
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0]])
    for kind in (torch.long, torch.bool, torch.float32):
        encoded = model.encode_images(image_features=features, image_attention_mask=mask.to(kind))
        assert encoded.last_hidden_state.shape[1] == encoded.image_attention_mask.shape[1] == 4
    short = model.encode_images(image_features=features[:, :4], image_attention_mask=mask[:, :4])
    torch.testing.assert_close(encoded.last_hidden_state, short.last_hidden_state)
    alone = model.encode_images(image_features=features[2:, :1])
    assert alone.image_attention_mask is None
    torch.testing.assert_close(encoded.last_hidden_state[2:, :1], alone.last_hidden_state)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 6])
def test_inputs_and_masks_of_the_groups(size):
    """Every pair of places, from the definition (specification of the original, section 4)."""
    ids = torch.arange(100, 111)[None]  # start token 100
    slots = group_inputs(ids, size)[0].tolist()
    mask = group_mask(0, len(slots), size, ids.device)
    assert len(slots) % size == 0 and len(slots) - size < ids.shape[1] <= len(slots)
    for query, word in enumerate(slots):
        assert word == (100 if query < size else 100 + query - size + 1)
        for key in range(len(slots)):
            visible = bool(mask is None or mask[query, key])
            assert visible == (key // size <= query // size)
    part = group_mask(size, len(slots), size, ids.device)
    assert len(slots) == 2 * size or torch.equal(part, mask[size:])


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_a_word_depends_on_the_groups_before_it_only(size, features):
    model = small_model(group_size=size)
    ids = torch.randint(4, 30, (1, 13))
    logits = model(image_features=features[:1], decoder_input_ids=ids).logits
    for place in range(1, 13):
        changed = ids.clone()
        changed[0, place] = 3
        moved = (model(image_features=features[:1], decoder_input_ids=changed).logits != logits).any(-1)[0]
        first = -(-place // size) * size  # word `place` is read by the group after its own, whose first output is this
        assert moved.tolist() == [index >= first for index in range(13)]


def test_a_teachers_weights_load_into_any_group_size(features, labels, tmp_path):
    teacher = small_model(group_size=1)
    teacher.save_pretrained(tmp_path)
    for size in (1, 2, 4, 7):
        student, report = SaticForImageCaptioning.from_pretrained(tmp_path, group_size=size, output_loading_info=True)
        assert student.config.group_size == size
        assert not report["missing_keys"] and not report["unexpected_keys"]
        fresh = small_model(group_size=size)
        fresh.load_state_dict(teacher.state_dict())
        got = student(image_features=features, labels=labels).loss
        torch.testing.assert_close(got, fresh(image_features=features, labels=labels).loss)
    student.save_pretrained(tmp_path / "student")
    assert SaticForImageCaptioning.from_pretrained(tmp_path / "student").config.group_size == 7


def test_one_word_a_step_is_an_ordinary_transformer(features):
    """Against torch's own decoder layers with a causal mask; normalisations differ and are put in."""
    model = small_model(group_size=1, decoder_layers=1, encoder_layers=1)
    ids, memory = torch.randint(4, 30, (3, 6)), model.encode_images(image_features=features).last_hidden_state
    layer = model.model.decoder.layers[0]
    words = model.model.tgt_embed[0].lut(ids) * 4 + model.model.tgt_embed[1].pe[:6]

    def attend(ours, query, keys, mask=None):
        torch_attention = torch.nn.MultiheadAttention(16, 2, batch_first=True)
        with torch.no_grad():
            torch_attention.in_proj_weight.copy_(torch.cat([one.weight for one in ours.linears[:3]]))
            torch_attention.in_proj_bias.copy_(torch.cat([one.bias for one in ours.linears[:3]]))
            torch_attention.out_proj.load_state_dict(ours.linears[3].state_dict())
        return torch_attention(query, keys, keys, attn_mask=mask)[0]

    norms = [one.norm for one in layer.sublayer]
    causal = torch.ones(6, 6, dtype=torch.bool).triu(1)  # True is hidden in torch
    words = words + attend(layer.self_attn, norms[0](words), norms[0](words), causal)
    words = words + attend(layer.src_attn, norms[1](words), memory)
    words = words + layer.feed_forward.w_2(layer.feed_forward.w_1(norms[2](words)).relu())
    expected = model.model.generator.proj(model.model.decoder.norm(words))
    got = model(image_features=features, decoder_input_ids=ids).logits
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_the_loss_is_what_decoding_gives(size, features, labels):
    """With the decoding mask; group by group with the cache, in float64."""
    model = small_model(group_size=size).double()
    features = features.double()
    loss = model(image_features=features, labels=labels).loss
    cache = model.start_cache(model.encode_images(image_features=features))
    ids, total = model.shift_labels(labels), 0.0
    encoded = model.encode_images(image_features=features)
    for step in range(labels.shape[1]):
        piece = ids[:, step : step + 1]
        log_probs = model(encoder_outputs=encoded, decoder_input_ids=piece, past_key_values=cache).logits.log_softmax(
            -1
        )
        for row, word in enumerate(labels[:, step].tolist()):
            total -= log_probs[row, 0, word] if word != -100 else 0.0
    torch.testing.assert_close(loss, total / (labels != -100).sum(), atol=1e-12, rtol=0)


def test_the_original_training_mask_hides_the_first_group(features, labels):
    """Changing what is hidden changes nothing; with the decoding mask it does."""
    losses = {}
    for kind in ("original", "decoding"):
        model = small_model(group_size=3, training_mask=kind, label_length=8)
        losses[kind] = [model(image_features=features, labels=labels).loss.item()]
        with torch.no_grad():
            model.model.tgt_embed[1].pe[1:3] += 1.0  # seen as keys by everyone, or only by their own outputs
        moved = model(image_features=features, labels=labels).logits[:, 3:]
        with torch.no_grad():
            model.model.tgt_embed[1].pe[1:3] -= 2.0
        again = model(image_features=features, labels=labels).logits[:, 3:]
        assert torch.allclose(moved, again, atol=1e-6) == (kind == "original")
    assert losses["original"] != losses["decoding"]
    one = [
        small_model(group_size=1, training_mask=kind)(image_features=features, labels=labels).loss for kind in losses
    ]
    assert torch.equal(*one)


def test_padding_does_not_change_the_loss_with_the_original_mask(features, labels):
    for size, length in ((2, 8), (3, 7), (4, 16), (4, 5)):
        model = small_model(group_size=size, training_mask="original", label_length=length)
        loss = model(image_features=features, labels=labels).loss
        wider = torch.nn.functional.pad(labels, (0, 4), value=-100)
        torch.testing.assert_close(model(image_features=features, labels=wider).loss, loss)


def test_smoothed_loss_is_the_divergence_of_torch():
    logits, labels = torch.randn(2, 3, 7), torch.tensor([[1, 2, -100], [3, 0, 6]])
    targets = torch.full((2, 3, 7), 0.2 / 6).scatter(-1, labels.clamp(min=0)[..., None], 0.8)
    divergence = torch.nn.functional.kl_div(logits.log_softmax(-1), targets, reduction="none").sum(-1)
    torch.testing.assert_close(smoothed_divergence(logits, labels, 0.2), divergence[labels != -100].mean())
    plain = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(smoothed_divergence(logits, labels, 0.0), plain)
    torch.testing.assert_close(smoothed_divergence(logits, labels, 0.0, 10), plain * 0.5)


def test_a_backbone_takes_the_place_of_regions(labels):
    tower = MobileNetV2Model(MobileNetV2Config(image_size=32, depth_multiplier=0.25))
    model = SaticForImageCaptioning.from_backbone(tower, small_model().config).eval()
    assert model.config.vision_config.model_type == "mobilenet_v2"
    pixels = torch.randn(2, 3, 32, 32)
    expected = tower.eval()(pixels).last_hidden_state.flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.extract_image_features(pixels), expected)
    assert model.generate(pixel_values=pixels, max_length=5).shape[0] == 2


def test_a_model_of_regions_refuses_pixels(features):
    with pytest.raises(ValueError, match="no backbone"):
        small_model().generate(pixel_values=torch.zeros(1, 3, 8, 8))


def test_a_too_long_caption_is_refused(features):
    model, words = small_model(), torch.full((3, 21), 5)
    with pytest.raises(ValueError, match="a caption of 21 tokens is longer than max_position_embeddings=20"):
        model(image_features=features, labels=words)
    with pytest.raises(ValueError, match="a caption of 21 tokens"):
        model(image_features=features, decoder_input_ids=words, use_cache=True)
    for size in (1, 3, 7, 20):  # the last group may reach beyond the longest caption
        model.config.group_size = size
        assert model(image_features=features, labels=words[:, :20]).logits.shape[1] == 20


def test_labels_are_not_scored_from_a_cache(features, labels):
    with pytest.raises(ValueError, match="leave past_key_values and use_cache out"):
        small_model()(image_features=features, labels=labels, use_cache=True)


def test_start_end_and_padding_may_share_an_id_or_not(features):
    """The same model with its words in another order writes the same captions."""
    shared = small_model(vocab_size=28, pad_token_id=0, bos_token_id=0, eos_token_id=0, unk_token_id=27, group_size=3)
    apart = small_model(group_size=3)  # 0 padding, 1 start, 2 end, 3 unknown
    place = torch.tensor([2, *range(4, 30), 3])  # of each word of `shared` in `apart`
    state = shared.state_dict()
    with torch.no_grad():
        for name, parameter in apart.named_parameters():
            if parameter.shape == state[name].shape:
                parameter.copy_(state[name])
            else:
                parameter.fill_(-1e4 if name.endswith("bias") else 0.0)
                parameter[place] = state[name]
        table = apart.model.tgt_embed[0].lut.weight
        table[1] = table[2]
    for options in ({}, {"num_beams": 3, "num_return_sequences": 3}, {"reference_quirks": True}):
        expected = shared.generate(image_features=features, max_length=12, **options)[:, 1:]
        got = apart.generate(image_features=features, max_length=12, **options)[:, 1:]
        for ours, theirs in zip(got.tolist(), expected.tolist(), strict=True):
            end = [*theirs, 0].index(0)
            assert ours[:end] == place[theirs[:end]].tolist()
            assert end == len(theirs) or ours[end] == 2


def test_training_by_half_precision_keeps_the_normalisation_exact(features):
    """An epsilon of 1e-6 beside a deviation near 0 is lost in float16."""
    norm = LayerNorm(SaticConfig(d_model=16, num_attention_heads=2)).half()
    hidden = (1e-6 * torch.randn(4, 16)).half()
    values = hidden.double()
    expected = (values - values.mean(1, keepdim=True)) / (values.std(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(norm(hidden).double(), expected, atol=2e-3, rtol=2e-3)
