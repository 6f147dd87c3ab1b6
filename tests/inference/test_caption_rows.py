"""Captions for cached features equal those for the pictures they were computed from."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners.inference.caption_rows import caption_rows


@pytest.fixture(scope="module")
def captioner(tiny_captioner_dir):
    model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).eval()
    return model, AutoProcessor.from_pretrained(tiny_captioner_dir)


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (5, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(one.numpy()) for one in noise]


@pytest.fixture(scope="module")
def rows(captioner, pictures):
    model, processor = captioner
    with torch.no_grad():
        features = model.extract_image_features(**processor(images=pictures))
    return [{"image_id": 10 + index, "image_features": one} for index, one in enumerate(features)]


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_equal_those_of_the_pictures(captioner, pictures, rows, batch_size):
    model, processor = captioner
    expected = processor.batch_decode(model.generate(**processor(images=pictures), num_beams=3))
    records = list(caption_rows(model, processor, iter(rows), batch_size, num_beams=3))
    assert records == [{"image_id": 10 + i, "caption": caption} for i, caption in enumerate(expected)]
    assert len(set(expected)) > 1


def test_several_captions_each(captioner, pictures, rows):
    model, processor = captioner
    ids = model.generate(**processor(images=pictures), num_beams=3, num_return_sequences=3)
    expected = processor.batch_decode(ids)
    records = list(caption_rows(model, processor, rows, 2, num_beams=3, num_return_sequences=3))
    assert [record["captions"] for record in records] == [expected[i : i + 3] for i in range(0, 15, 3)]


def test_training_mode_is_refused(captioner, rows):
    model, processor = captioner
    model.train()
    try:
        with pytest.raises(ValueError, match=r"call model\.eval"):
            next(caption_rows(model, processor, rows))
    finally:
        model.eval()
