"""Every family of transformers' captioners, against what transformers alone makes of the same model."""

from __future__ import annotations

import pytest
import torch
from contracts.tiny_families import KINDS, VOCABULARY, tiny_images, tiny_model
from PIL import Image
from torch import nn

import hf_captioners
from hf_captioners.families import FAMILIES, ForeignCodeFamily, TransformersFamily, family_class, family_of
from hf_captioners.families.prompted import PromptedFamily
from hf_captioners.inference.caption_files import caption_files

PLACES = [VOCABULARY[token] for token in ("<image>", "<|image_pad|>")]  # of images, in the prompts of some
CAPTIONS = ["a red circle", "two small stars above", "blue"]


@pytest.fixture(params=sorted(KINDS))
def name(request):
    return request.param


@pytest.fixture()
def kind(name):
    return KINDS[name]


@pytest.fixture()
def model(name):
    return tiny_model(name)


@pytest.fixture()
def processor(kind):
    return kind.processor()


def batch_of(family, model, processor, captions=CAPTIONS):
    rows = [{"image": image} for image in tiny_images(3)]
    return family.training_batch(processor, rows, captions)


def test_every_family_is_tested():
    tested = {family_class(tiny_model(name)) for name in KINDS}
    assert tested == {family for family in FAMILIES if issubclass(family, TransformersFamily)}
    assert ForeignCodeFamily not in FAMILIES


def test_the_loss_is_that_of_transformers(kind, model, processor):
    family = family_of(model)
    batch = batch_of(family, model, processor)
    expected = kind.loss(model, processor, tiny_images(3), CAPTIONS)
    loss = family.caption_loss(model, batch, None, None)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    number = (batch["labels"] != -100).sum()
    assert number == sum(len(one.split()) + 1 for one in CAPTIONS)  # no prompt, no padding
    torch.testing.assert_close(family.caption_loss(model, batch, 2 * number, None), expected / 2)


def test_captions_of_one_image_share_it(model, processor):
    family = family_of(model)
    twice = [caption for caption in CAPTIONS for _ in range(2)]
    batch = batch_of(family, model, processor, twice)
    once = family.caption_loss(model, batch_of(family, model, processor), None, None)
    torch.testing.assert_close(family.caption_loss(model, batch, None, None), once)


@torch.no_grad()
def test_log_probs_are_the_scores_of_generate(kind, model, processor):
    images = tiny_images(3)
    inputs = kind.inputs(processor, images)
    start = kind.start or inputs["input_ids"].shape[1]
    written = model.generate(
        **inputs, num_return_sequences=2, do_sample=True, top_k=0, max_new_tokens=6, suppress_tokens=PLACES,
        return_dict_in_generate=True, output_logits=True,
    )  # fmt: skip
    scores = kind.writer(model).compute_transition_scores(written.sequences, written.logits, normalize_logits=True)
    family = family_of(model)
    encoded = family.encode(model, family.image_inputs(model, batch_of(family, model, processor)))
    log_probs, entropies = family.log_probs(model, written.sequences[:, start - 1 :], encoded)
    counted = log_probs != 0
    torch.testing.assert_close(log_probs.sum(1), (scores * counted).sum(1), atol=1e-4, rtol=1e-4)
    assert (entropies[counted] > 0).all()


@torch.no_grad()
def test_the_vision_tower_looks_once(kind, model, processor):
    family = family_of(model)
    family.freeze_backbone(model, "none")
    calls = []
    first = next(one for one in family.backbone(model).modules() if isinstance(one, (nn.Linear, nn.Conv2d, nn.Conv3d)))
    first.register_forward_hook(lambda *_: calls.append(1))
    seen = family.run_backbone(model, family.image_inputs(model, batch_of(family, model, processor)))
    for _ in range(2):  # the policy, and its reference
        encoded = family.encode(model, seen)
        sequences = family.generate(model, encoded, num_beams=2, num_return_sequences=2, max_length=6)
        assert sequences.shape[0] == 6 and sequences.shape[1] <= 6
        family.log_probs(model, sequences, encoded)
    assert len(calls) == 1


def test_a_backbone_that_learns_is_part_of_the_graph(model, processor):
    family = family_of(model)
    family.freeze_backbone(model, "all")
    family.caption_loss(model, batch_of(family, model, processor), None, None).backward()
    assert any(one.grad is not None and one.grad.abs().max() > 0 for one in family.backbone(model).parameters())


def places_of(model):
    """What a model with a prompt must not write: the place of an image in it."""
    return [model.config.image_token_id] if isinstance(family_of(model), PromptedFamily) else None


def test_captions_are_clean_and_do_not_depend_on_their_batch(kind, model, processor, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(5)]
    for path, image in zip(paths, tiny_images(5), strict=True):
        image.save(path)
    expected = []
    for path in paths:  # as transformers documents it, alone
        inputs = kind.inputs(processor, [Image.open(path)])
        options = {"max_new_tokens": 7, "num_beams": 1, "do_sample": False, "suppress_tokens": places_of(model)}
        ids = model.generate(**inputs, **options)[0].tolist()
        ids = ids[kind.start or inputs["input_ids"].shape[1] :]
        end = family_of(model).tokens.end
        ids = ids[: ids.index(end)] if end in ids else ids
        text = processor.tokenizer.decode(ids, skip_special_tokens=True)
        expected.append(kind.clean(processor, text).strip())
    assert len(set(expected)) > 1
    for size in (1, 3):
        records = caption_files(model, processor, map(str, paths), size, max_new_tokens=7, num_beams=1)
        assert [record["caption"] for record in records] == expected
    pipe = hf_captioners.pipeline(model=model, processor=processor, max_new_tokens=7)
    assert [one[0]["generated_text"] for one in pipe([str(path) for path in paths], batch_size=2)] == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_padding_side_of_the_tokenizer_is_nothing_to_captions(model, kind, side, tmp_path):
    captions = []
    for padding in (None, side):
        processor = kind.processor()
        if padding is not None:
            processor.tokenizer.padding_side = padding
        rows = [{"image": image} for image in tiny_images(3)]
        family = family_of(model)
        batch = family.training_batch(processor, rows, CAPTIONS)
        ids = family.caption(model, family.image_inputs(model, batch), max_new_tokens=5)
        captions.append((family.decode(processor, ids), batch["labels"].tolist()))
    assert captions[0] == captions[1]


def test_several_captions_of_an_image(model, processor, tmp_path):
    tiny_images(1)[0].save(tmp_path / "0.png")
    options = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 5}
    (record,) = caption_files(model, processor, str(tmp_path / "0.png"), **options)
    assert len(record["captions"]) == 3


def test_chat_models_may_finish_their_sentence():
    """transformers would stop behind 20 tokens."""
    model, processor = tiny_model("llava"), KINDS["llava"].processor()
    family = family_of(model)
    encoded = family.encode(model, family.image_inputs(model, batch_of(family, model, processor)))
    assert 31 <= family.generate(model, encoded, min_new_tokens=30).shape[1] <= 65
