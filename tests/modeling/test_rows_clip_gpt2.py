"""Anchors of rows reach CLIP-GPT2 whichever way a row is captioned, scored or learned from."""

import pytest
import torch
from contracts.tiny_clip_gpt2 import CAPTIONS, TINY_CLIP, image_processor, tiny_model, word_tokenizer

import hf_captioners
from hf_captioners import CaptionCollator, ClipGpt2Processor, RewardCollator, build_tags
from hf_captioners.families import family_of
from hf_captioners.inference.captioning import caption_rows

ANCHORS = [["star"], [], ["red", "circle", "square"]]


@pytest.fixture(scope="module")
def processor():
    return ClipGpt2Processor(image_processor(), word_tokenizer(), tags=build_tags(CAPTIONS, min_count=1))


@pytest.fixture(scope="module")
def model(processor):
    size = len(processor.tokenizer)
    ids = {"bos_token_id": processor.tokenizer.bos_token_id, "eos_token_id": processor.tokenizer.eos_token_id}
    return tiny_model(vision_config=TINY_CLIP, features_only=False, text_config={"vocab_size": size, **ids})


@pytest.fixture(scope="module")
def rows():
    features = torch.randn(3, 1, 12, generator=torch.Generator().manual_seed(0))
    return [
        {"image_id": index, "image_features": one, "anchors": anchors, "captions": [CAPTIONS[index]]}
        for index, (one, anchors) in enumerate(zip(features, ANCHORS, strict=True))
    ]


@pytest.fixture(scope="module")
def expected(model, processor, rows):
    """Of one picture at a time, with the anchors as tokens."""
    captions = []
    for row in rows:
        batch = processor(image_features=row["image_features"][None], anchors=[row["anchors"]])
        captions += processor.batch_decode(model.generate(**batch, num_beams=1))
    plain = processor.batch_decode(model.generate(image_features=torch.stack([one["image_features"] for one in rows])))
    assert captions != plain  # they matter
    return captions


@pytest.mark.parametrize("batch_size", [1, 3])
def test_captioning_and_pipeline(model, processor, rows, expected, batch_size):
    records = caption_rows(model, processor, rows, batch_size, num_beams=1)
    assert [record["caption"] for record in records] == expected
    captioner = hf_captioners.pipeline(model=model, processor=processor)
    outputs = captioner(rows, batch_size=batch_size, num_beams=1)
    assert [output[0]["generated_text"] for output in outputs] == expected


def test_training_and_rewards(model, processor, rows):
    family = family_of(model)
    ids = processor(image_features=torch.zeros(3, 12), anchors=ANCHORS)["anchor_ids"]
    collator = CaptionCollator(processor)
    for training in (True, False):
        collator.training = training
        batch = collator(rows)
        assert torch.equal(batch["anchor_ids"], ids)  # what rows say, not what is drawn
        assert ("tag_targets" in batch) == training
        assert torch.equal(family.image_inputs(model, batch)["anchor_ids"], ids)
    batch = RewardCollator(processor)(rows)
    assert torch.equal(family.image_inputs(model, batch)["anchor_ids"], ids)
    assert batch["columns"]["anchors"] == ANCHORS


def test_rows_of_which_one_lacks_them(processor, rows):
    incomplete = [rows[0], {name: value for name, value in rows[1].items() if name != "anchors"}]
    with pytest.raises(ValueError, match="image_id 1: the row lacks 'anchors'"):
        processor.prepare_rows(incomplete)
