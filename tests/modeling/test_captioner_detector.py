"""A detector beside captioners of regions: pictures through it have the captions of its features, everywhere."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest
import torch
from contracts import colour_detector
from contracts.tiny_scdnet import small_model
from PIL import Image
from transformers import AutoConfig

from hf_captioners import (
    CaptionerImageProcessor,
    ClipGpt2ForImageCaptioning,
    FeatureStore,
    SaticForImageCaptioning,
    ScdnetProcessor,
    build_word_tokenizer,
    pipeline,
)
from hf_captioners.cli.main import main
from hf_captioners.data.drawn.drawing import draw_scene
from hf_captioners.data.drawn.scene import Scene, Thing
from hf_captioners.modeling.captioner_detector import CaptionerDetector, DetectorError, use_detector

CAPTIONS = ["a red star left of a blue star", "two green stars", "a black star above a red one"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """Folder of a detector."""
    path = tmp_path_factory.mktemp("detector")
    for part in colour_detector.build():
        part.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def width(detector):
    return AutoConfig.from_pretrained(detector).feature_size


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, colours in enumerate((("red", "blue"), ("green", "black"), ("blue", "green"))):
        things = [Thing("star", colour, "small") for colour in colours]
        picture = draw_scene(Scene(tuple(things), relation="left of"), colour_detector.SIDE, random.Random(number))
        picture.resize((448, 448), Image.Resampling.NEAREST).save(folder / f"{number}.png")
    return folder


def save_captioner(folder, width, **config):
    """A SATIC of features of this width, with random weights."""
    torch.manual_seed(1)
    model, processor = SaticForImageCaptioning.new(
        CAPTIONS, features=width, min_count=1, d_model=16, encoder_layers=1, decoder_layers=1, ffn_dim=16,
        num_attention_heads=2, group_size=2, **config,
    )  # fmt: skip
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[0, 5])
def captioner(tmp_path_factory, width, request):
    """Folder of a captioner, without and with boxes behind its features."""
    return save_captioner(tmp_path_factory.mktemp("captioner"), width + request.param)


@pytest.fixture
def stored(captioner, detector, pictures, width, tmp_path):
    """Captions of the regions that `features --detector` stores."""
    boxes = ["--append-boxes"] if json.loads((captioner / "config.json").read_text())["feature_size"] > width else []
    arguments = ["--detector", detector, "--out", tmp_path / "store", "--dtype", "float32", *boxes]
    assert main(["features", str(pictures), *map(str, arguments)]) == 0
    store, caption = FeatureStore(tmp_path / "store"), pipeline(model=captioner)
    return [caption(store[number])[0]["generated_text"] for number in range(3)]


def test_pictures_have_the_captions_of_their_stored_regions(captioner, detector, pictures, stored, capfd):
    paths = sorted(map(str, pictures.iterdir()))
    caption = pipeline(model=captioner, detector=detector)
    for batch_size in (1, 3):
        outputs = caption(paths, batch_size=batch_size)
        assert [output[0]["generated_text"] for output in outputs] == stored
    capfd.readouterr()
    assert main(["caption", str(pictures), "--model", str(captioner), "--detector", str(detector)]) == 0
    assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == stored


def test_a_configuration_names_its_detector(detector, width, pictures, tmp_path):
    (tmp_path / "captioner").mkdir()
    save_captioner(tmp_path / "captioner", width, detector="regions")
    detector.rename(tmp_path / "captioner/regions")
    try:
        picture = str(next(pictures.iterdir()))
        caption = pipeline(model=tmp_path / "captioner")
        assert caption(picture) == pipeline(model=tmp_path / "captioner", detector=tmp_path / "captioner/regions")(
            picture
        )
    finally:
        (tmp_path / "captioner/regions").rename(detector)


def test_without_a_detector_the_error_says_so(captioner, pictures):
    with pytest.raises(
        ValueError, match=r"a detector \(`pipeline\(…, detector=…\)`, `hf-captioners caption --detector`"
    ):
        pipeline(model=captioner)(str(next(pictures.iterdir())))


def test_scdnet_sees_pictures_through_a_detector(detector, width, pictures):
    tokenizer = build_word_tokenizer(["PAD", "SOS", "EOS", "UNK", *map(chr, range(97, 113))])
    model = small_model(feature_size=width, retrieval="none")
    processor = ScdnetProcessor(CaptionerImageProcessor(), tokenizer)
    use_detector(model, processor, str(detector))
    image = Image.open(next(pictures.iterdir()))
    inputs = processor(images=[image, image])
    assert inputs["image_features"].shape[::2] == (2, width)
    row = processor.prepare_rows([{"image": image}])
    torch.testing.assert_close(row["image_features"], inputs["image_features"][:1])


def test_clip_gpt2_sees_pictures_through_a_detector(detector, width, pictures, tmp_path):
    torch.manual_seed(1)
    sizes = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_positions": 40}
    model, processor = ClipGpt2ForImageCaptioning.new(
        CAPTIONS, features=width, tokenizer="words", min_count=1, prefix_length=1, text_config=sizes
    )
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    paths, regions = sorted(map(str, pictures.iterdir())), CaptionerDetector(detector)
    stored = [regions(Image.open(path)) for path in paths]
    assert pipeline(model=tmp_path, detector=detector)(paths) == pipeline(model=tmp_path)(stored)


def test_errors_name_detector_and_captioner(detector, captioner, width, tiny_captioner_dir, tmp_path):
    with pytest.raises(DetectorError, match="sees pictures itself"):
        pipeline(model=tiny_captioner_dir, detector=detector)
    with pytest.raises(
        DetectorError, match=rf"{re.escape(str(captioner))}: no detector could be loaded: .* type satic"
    ):
        pipeline(model=captioner, detector=captioner)
    wide = save_captioner(tmp_path, width + 3)
    with pytest.raises(
        DetectorError, match=f"features of width {width} .{width + 5} with boxes., .* reads {width + 3}"
    ):
        pipeline(model=wide, detector=detector)


def test_pictures_without_regions_are_named(detector, captioner, tmp_path, capfd):
    Image.new("RGB", (3000, 1)).save(tmp_path / "line.png")
    assert main(["caption", str(tmp_path), "--model", str(captioner), "--detector", str(detector)]) == 1
    assert "line.png" in json.loads(capfd.readouterr().out)["error"]


def test_the_code_of_a_captioner_goes_without_that_of_its_detector():
    imported = Path(CaptionerDetector.__call__.__code__.co_filename).read_text()
    assert "modeling_bottom_up" not in imported  # it comes with the detector
