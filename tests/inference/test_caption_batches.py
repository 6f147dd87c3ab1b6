"""Captions of batches: in every form that an image comes in, those of one image alone."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners.inference import CaptionBatches
from hf_captioners.inference.loading import CaptionerLoadError

OPTIONS = {"num_beams": 2, "max_new_tokens": 6, "device": "cpu"}


@pytest.fixture(scope="module")
def pixels() -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8) for seed in range(5)]


@pytest.fixture(scope="module")
def encoded(pixels: list[np.ndarray]) -> list[bytes]:
    files = [io.BytesIO() for _ in pixels]
    for file, image in zip(files, pixels, strict=True):
        Image.fromarray(image).save(file, "PNG")
    return [file.getvalue() for file in files]


@pytest.fixture(scope="module")
def caption(tiny_captioner_dir: Path) -> CaptionBatches:
    return CaptionBatches(str(tiny_captioner_dir), batch_size=2, **OPTIONS)


@pytest.fixture(scope="module")
def expected(tiny_captioner_dir: Path, pixels: list[np.ndarray]) -> list[str]:
    """Captions of one image after the other."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).eval()
    processor = AutoProcessor.from_pretrained(tiny_captioner_dir)
    inputs = [processor(images=Image.fromarray(image), return_tensors="pt") for image in pixels]
    return [processor.decode(model.generate(**image, num_beams=2, max_new_tokens=6)[0]) for image in inputs]


def test_every_form_of_an_image(caption, pixels, encoded, expected, tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, content in zip(paths, encoded, strict=True):
        path.write_bytes(content)
    forms = {
        "bytes": encoded,
        "array of objects": np.array(encoded, dtype=object),
        "cells of datasets": [{"bytes": content, "path": None} for content in encoded],
        "paths": list(map(str, paths)),
        "PIL": [Image.fromarray(image) for image in pixels],
        "arrays": pixels,
        "one array": np.stack(pixels),
    }
    for form, images in forms.items():
        batch = caption({"image": images, "key": [*"abcde"]})
        assert batch["caption"] == expected, form
        assert (batch["error"], batch["key"]) == ([""] * 5, [*"abcde"])


def test_bad_images_do_not_stop_a_batch(caption, pixels, expected):
    images = [pixels[0], b"no picture", None, pixels[1].astype(np.float32), {"path": "none.png"}, pixels[4]]
    batch = caption({"image": images})
    assert batch["caption"] == [expected[0], "", "", "", "", expected[4]]
    assert [bool(error) for error in batch["error"]] == [False, True, True, True, True, False]
    assert "none.png" in batch["error"][4] and "found float32 of shape (9, 12, 3)" in batch["error"][3]


def test_map_of_datasets(caption, encoded, expected):
    features = Features({"image": ImageFeature(decode=False), "key": Value("int64")})
    cells = [{"bytes": content, "path": None} for content in [*encoded[:3], b"no picture", *encoded[3:]]]
    rows = Dataset.from_dict({"image": cells, "key": range(6)}, features=features)
    captioned = rows.map(caption, batched=True, batch_size=3)
    assert captioned["caption"][:] == [*expected[:3], "", *expected[3:]]
    assert [bool(error) for error in captioned["error"]] == [False, False, False, True, False, False]
    assert captioned["key"][:] == list(range(6))


def test_goes_to_another_process(caption, pixels, expected):
    content = pickle.dumps(caption)
    assert len(content) < 10_000  # names, not weights
    assert pickle.loads(content)({"image": pixels})["caption"] == expected


def test_mistakes(caption, pixels, tiny_captioner_dir):
    with pytest.raises(ValueError, match="image_column='image': the batch has 'photo'"):
        caption({"photo": pixels})
    with pytest.raises(ValueError, match="caption_column='caption' is there already"):
        caption({"image": pixels, "caption": [*"abcde"]})
    with pytest.raises(ValueError, match="num_return_sequences=3: an image gets one caption"):
        CaptionBatches(str(tiny_captioner_dir), num_return_sequences=3)
    with pytest.raises(CaptionerLoadError, match=r"^none: no such folder$"):
        CaptionBatches("none")
