"""Captions that leave the batch: what the cache keeps of the others, and that greedy decoding stays what it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from hf_captioners import CaptionerEnsemble, SaticConfig, SaticForImageCaptioning

PICTURES, WORDS = 9, 12
SIZES = pytest.mark.parametrize("size", [1, 2, 3, 5])


def make_model(size: int, seed: int = 0, end: float = 3.0) -> SaticForImageCaptioning:
    """A tiny model whose captions end at many places; 0 is start, end and padding."""
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "ffn_dim": 24}
    config = SaticConfig(**sizes, vocab_size=WORDS, group_size=size, feature_size=6, unk_token_id=WORDS - 1)
    model = SaticForImageCaptioning(config).eval()
    with torch.no_grad():
        model.model.generator.proj.weight.mul_(4.0)
        model.model.tgt_embed[0].lut.weight.mul_(3.0)
        model.model.generator.proj.bias[0] = end
    return model.requires_grad_(False)


@pytest.fixture()
def pictures() -> dict[str, torch.Tensor]:
    """Regions of pictures, some with padding."""
    random = torch.Generator().manual_seed(7)
    mask = (torch.arange(5) < torch.tensor([5, 3, 4, 1, 5, 2, 5, 4, 3])[:, None]).long()
    return {"image_features": 2 * torch.randn(PICTURES, 5, 6, generator=random), "image_attention_mask": mask}


def watch_rows(model: SaticForImageCaptioning) -> list[int]:
    """The number of captions in each call of the decoder."""
    rows: list[int] = []
    model.model.decoder.norm.register_forward_hook(lambda _, inputs, output: rows.append(len(output)))
    return rows


def alone(
    model: SaticForImageCaptioning, pictures: dict[str, torch.Tensor], width: int, **options: Any
) -> list[list[int]]:
    """The captions of one picture after the other, padded."""
    rows = [{name: one[row : row + 1] for name, one in pictures.items()} for row in range(PICTURES)]
    captions = [model.generate(**row, **options)[0].tolist() for row in rows]
    return [one + [0] * (width - len(one)) for one in captions]


@SIZES
@pytest.mark.parametrize(
    "options", [{}, {"reference_quirks": True}, {"no_repeat_ngram_size": 2, "min_length": 4}], ids=str
)
def test_ended_captions_leave_and_the_others_stay_what_they_are(size, options, pictures):
    model = make_model(size)
    options = {"max_length": 22, **options}
    rows = watch_rows(model)
    ids = model.generate(**pictures, **options)
    batch = list(rows)
    assert ids.tolist() == alone(model, pictures, ids.shape[1], **options)
    whole = model.generate(**pictures, return_dict_in_generate=True, **options)  # with all the scores, all must stay
    assert torch.equal(whole.sequences, ids)
    assert torch.equal(model.generate(**pictures, use_cache=False, **options), ids)
    ended = [[*row[1:], 0].index(0) + 1 for row in ids.tolist()]  # words, with the end
    expected, left = [], PICTURES
    for call in range(len(batch)):
        expected.append(left)
        going_on = sum(one > (call + 1) * size for one in ended)
        left = going_on if 2 * going_on <= left else left
    assert batch == expected
    assert "min_length" in options or batch[-1] < PICTURES // 2


@pytest.mark.parametrize("prompt", [1, 2, 4])
def test_prompts_go_along(prompt, pictures):
    model = make_model(3, seed=1)
    ids = torch.randint(1, WORDS, (PICTURES, prompt), generator=torch.Generator().manual_seed(3))
    ids[:, 0] = 0
    options = {"decoder_input_ids": ids, "max_length": 20}
    rows = watch_rows(model)
    captions = model.generate(**pictures, **options)
    assert rows[-1] < PICTURES and torch.equal(captions[:, :prompt], ids)
    assert torch.equal(captions, model.generate(**pictures, use_cache=False, **options))


class Nothing(LogitsProcessor):
    """Changes nothing, but might have looked at the number of captions."""

    def __call__(self, input_ids, scores):
        return scores


class Never(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.zeros(len(input_ids), dtype=torch.bool)


@pytest.mark.parametrize(
    "options",
    [
        {"logits_processor": LogitsProcessorList([Nothing()])},
        {"stopping_criteria": StoppingCriteriaList([Never()])},
        {"return_dict_in_generate": True},
        {"do_sample": True, "top_k": 1},
        {"use_cache": False},
    ],
    ids=["processor", "criterion", "scores", "sampling", "no cache"],
)
def test_all_stay_where_somebody_could_see_it(options, pictures):
    model = make_model(2)
    expected = model.generate(**pictures, max_length=22)
    rows = watch_rows(model)
    out = model.generate(**pictures, max_length=22, **options)
    assert torch.equal(out["sequences"] if "return_dict_in_generate" in options else out, expected)
    assert set(rows) == {PICTURES}


def test_captions_that_share_a_picture_are_not_parted(pictures):
    model = make_model(2)
    encoded = model.encode_images(**pictures)
    cache, prompts = model.start_cache(encoded), torch.zeros(2 * PICTURES, 1, dtype=torch.long)
    model(encoder_outputs=encoded, decoder_input_ids=prompts, past_key_values=cache)
    with pytest.raises(ValueError, match="18 captions of 9 pictures: expected one each"):
        cache.batch_select_indices(torch.tensor([0]))


@SIZES
def test_a_selected_cache_goes_on_exactly(size, pictures):
    """In float64, also in the middle of a group and after captions have changed places."""
    model = make_model(size).double()
    features, ids = pictures["image_features"].double(), torch.randint(1, WORDS, (PICTURES, 13))
    ids[:, 0] = 0
    keep, again = torch.tensor([7, 2, 3, 0]), torch.tensor([1, 3])
    encoded = model.encode_images(image_features=features)
    cache = model.start_cache(encoded)
    cache.batch_select_indices(torch.arange(PICTURES))  # nothing written yet
    model(encoder_outputs=encoded, decoder_input_ids=ids[:, :4], past_key_values=cache)
    for rows, stop in ((keep, 8), (again, 13)):
        cache.batch_select_indices(rows)
        ids, features = ids[rows], features[rows]
        encoded = model.encode_images(image_features=features)
        new = ids[:, cache.get_seq_length() : stop]
        logits = model(encoder_outputs=encoded, decoder_input_ids=new, past_key_values=cache).logits
        whole = model(encoder_outputs=encoded, decoder_input_ids=ids[:, :stop]).logits
        torch.testing.assert_close(logits, whole[:, -new.shape[1] :], atol=1e-12, rtol=0)


def test_an_ensemble_lets_them_leave_too(pictures):
    models = [make_model(2, seed) for seed in (0, 1)]
    rows = watch_rows(models[1])
    ensemble = CaptionerEnsemble(models)
    ids = ensemble.generate(**pictures, max_length=22)
    assert rows[0] == PICTURES and rows[-1] < PICTURES
    assert torch.equal(ids, ensemble.generate(**pictures, max_length=22, return_dict_in_generate=True).sequences)
