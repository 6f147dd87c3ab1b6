"""Ensembles; their parity with the original is in tests/parity."""

from __future__ import annotations

import pytest
import torch

from hf_captioners import (
    CaptionerEnsemble,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    SaticConfig,
    SaticForImageCaptioning,
)


def captioner(seed: int, **changes) -> ExpansionNetV2ForImageCaptioning:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 20,
        "d_model": 16,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_expansion_groups": [3, 4],
        "decoder_expansion_size": 2,
        "max_position_embeddings": 12,
        "features_only": True,
        "feature_size": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 3,
    }
    return ExpansionNetV2ForImageCaptioning(ExpansionNetV2Config(**{**settings, **changes})).eval()


@pytest.fixture()
def features():
    return torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "decoding": "standard"}])
def test_one_captioner_twice_is_that_captioner(features, options):
    model = captioner(0)
    ensemble = CaptionerEnsemble([model, model])
    assert torch.equal(
        ensemble.generate(image_features=features, **options), model.generate(image_features=features, **options)
    )


def satic(seed: int, **changes) -> SaticForImageCaptioning:
    torch.manual_seed(seed)
    settings = {
        "vocab_size": 20, "group_size": 2, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16, "encoder_layers": 1,
        "decoder_layers": 1, "max_position_embeddings": 12, "feature_size": 8, "pad_token_id": 0, "bos_token_id": 1,
        "eos_token_id": 2, "unk_token_id": 3,
    }  # fmt: skip
    model = SaticForImageCaptioning(SaticConfig(**{**settings, **changes})).eval()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(4.0)  # peaked, so that captions differ
    return model


class TestGroups:
    options = pytest.mark.parametrize(
        "options", [{"num_beams": 1}, {"num_beams": 3}, {"num_beams": 3, "length_penalty": "wu_0.7"}]
    )

    @options
    def test_one_captioner_twice_is_that_captioner(self, features, options):
        model = satic(0)
        ensemble = CaptionerEnsemble([model, model])
        ids = model.generate(image_features=features, **options)
        assert torch.equal(ensemble.generate(image_features=features, **options), ids)

    def test_group_distributions_are_averaged(self, features):
        first, second = satic(0), satic(1, decoder_layers=2, d_model=24, ffn_dim=32)
        start = torch.full((2, 1), 1)
        options = {"image_features": features, "num_beams": 1, "max_new_tokens": 2, "suppress_unk": False}
        ids = CaptionerEnsemble([first, second]).generate(**options)
        first_words = [
            model(image_features=features, decoder_input_ids=torch.cat([start, ids[:, 1:2]], 1)).logits.softmax(-1)
            for model in (first, second)
        ]  # the words of a group do not see each other
        expected = (first_words[0] + first_words[1]).argmax(-1)
        assert torch.equal(ids[:, 1], expected[:, 0])
        unfinished = ids[:, 1] != 2
        assert torch.equal(ids[unfinished, 2], expected[unfinished, 1])

    def test_sizes_of_groups_must_agree(self):
        with pytest.raises(ValueError, match="model 1 has group_size=4, the first one 2"):
            CaptionerEnsemble([satic(0), satic(0, group_size=4)])


def test_averages_probabilities(features):
    first, second = captioner(0), captioner(1, decoder_layers=2, d_model=24, ffn_dim=32)
    ensemble = CaptionerEnsemble([first, second])
    out = ensemble.generate(
        image_features=features, num_beams=1, max_new_tokens=1, return_dict_in_generate=True, output_logits=True
    )
    start = torch.full((2, 1), 1)
    parts = [
        model(image_features=features, decoder_input_ids=start).logits[:, -1].softmax(-1) for model in (first, second)
    ]
    torch.testing.assert_close(out.logits[0].exp(), (parts[0] + parts[1]) / 2)


def test_samples(features):
    ensemble = CaptionerEnsemble([captioner(0), captioner(1)])
    ids = ensemble.generate(image_features=features, num_beams=1, do_sample=True, num_return_sequences=3)
    assert ids.shape[0] == 6


def test_mistakes(features):
    with pytest.raises(ValueError, match="at least one model"):
        CaptionerEnsemble([])
    with pytest.raises(ValueError, match="model 1 has vocab_size=21, the first one 20"):
        CaptionerEnsemble([captioner(0), captioner(0, vocab_size=21)])
    with pytest.raises(ValueError, match="model 0 is a Linear; an ensemble is of captioners that write word by word"):
        CaptionerEnsemble([torch.nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="model 1 is a Linear"):
        CaptionerEnsemble([captioner(0), torch.nn.Linear(1, 1)])
    with pytest.raises(ValueError, match="with a cache only"):
        CaptionerEnsemble([captioner(0)]).generate(image_features=features, use_cache=False)
