"""What the page shows: plain functions on small captioners of every kind, without Gradio."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from contracts import colour_detector
from contracts.reward_policies import IDS, TOKENIZER, tiny_policy, tiny_processor
from PIL import Image

from hf_captioners import SaticForImageCaptioning
from hf_captioners.data.drawn.drawing import draw_scene
from hf_captioners.data.drawn.scene import Scene, Thing
from hf_captioners.demo.denoising import denoising_steps
from hf_captioners.demo.shown_captioner import Candidate, Decoding, ShownCaptioner
from hf_captioners.demo.visit import (
    Exhibition,
    candidate_rows,
    decoding_of,
    drawn_regions,
    maps_of_words,
    open_upload,
    rules_of,
    step_rows,
)
from hf_captioners.demo.word_maps import ATTENTION, FEATURE, PIXEL, seen_image, with_heat, word_maps
from hf_captioners.inference.detect_regions import RegionDetector
from hf_captioners.modeling.captioner_detector import CaptionerDetector
from hf_captioners.modeling.captioner_image_io import ImageError

BOS, EOS = IDS["bos_token_id"], IDS["eos_token_id"]
KINDS = ("expansionnet_v2", "satic", "dico", "clip_gpt2", "scdnet", "vision-encoder-decoder")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    scene = Scene((Thing("star", "red", "small"), Thing("star", "blue", "small")), relation="left of")
    return draw_scene(scene, colour_detector.SIDE, random.Random(0))


@pytest.fixture(scope="module")
def captioners() -> dict[str, ShownCaptioner]:
    return {kind: ShownCaptioner(kind, tiny_policy(kind), tiny_processor(kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_candidates_with_the_models_own_scores(captioners, image, kind):
    captioner = captioners[kind]
    written = captioner.write(image, Decoding(candidates=3, beams=2))
    scores = [one.log_prob for one in written.candidates]
    assert len(scores) == 3 and scores == sorted(scores, reverse=True)
    inputs = captioner.inputs(image)
    for candidate in written.candidates:
        encoded = captioner.family.encode(captioner.model, captioner.family.image_inputs(captioner.model, inputs))
        with torch.no_grad():
            again = captioner.family.log_probs(captioner.model, candidate.ids, encoded)[0].sum()
        assert candidate.log_prob == pytest.approx(float(again), abs=1e-3)
    assert Decoding(candidates=1).candidates == len(captioner.write(image, Decoding(candidates=1)).candidates)
    drawn = captioner.write(image, Decoding(candidates=2, sample=True, temperature=0.5, steps=2))
    assert len(drawn.candidates) == 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_map_for_every_word(captioners, image, kind):
    captioner = captioners[kind]
    words = TOKENIZER("a red circle above", add_special_tokens=False).input_ids
    candidate = Candidate("a red circle above", None, torch.tensor([[BOS, *words, EOS]]))
    maps = word_maps(captioner, image, candidate)
    method = {"clip_gpt2": PIXEL, "vision-encoder-decoder": FEATURE}.get(kind, ATTENTION)
    assert maps.method == method and maps.words == ["a", "red", "circle", "above"]
    assert len(maps.maps) == 4 and maps.maps.min() >= 0 and maps.maps.max() <= 1
    assert all(parameter.requires_grad for parameter in captioner.model.parameters())  # as it was
    assert [picture.size for picture, _ in maps.pictures()] == [maps.view.size] * len(maps.words)


def test_attention_is_that_of_generate(captioners, image):
    captioner = captioners["expansionnet_v2"]
    candidate = captioner.write(image, Decoding(candidates=1, beams=1)).candidates[0]
    output = captioner.model.generate(**captioner.inputs(image), num_beams=1, output_attentions=True, max_length=12,
                                      return_dict_in_generate=True)  # fmt: skip
    maps = word_maps(captioner, image, candidate)
    first = torch.stack([layer[0].mean(0)[-1] for layer in output.cross_attentions[0]]).mean(0)
    expected = first[1:] / first[1:].max()  # behind the class token
    torch.testing.assert_close(torch.from_numpy(maps.maps[0]).flatten(), expected)


def test_gradients_are_finite_differences(captioners, image):
    captioner = captioners["vision-encoder-decoder"]
    candidate = captioner.write(image, Decoding(candidates=1)).candidates[0]
    family, model = captioner.family, captioner.model
    with torch.no_grad():
        tokens = family.look(model, captioner.inputs(image)["pixel_values"])
        log_prob = lambda seen: family.log_probs(  # noqa: E731
            model, candidate.ids, family.encode(model, {"image_features": seen})
        )[0][0, 0]  # fmt: skip
        slopes = []
        for place in range(tokens.shape[1]):
            step = torch.zeros_like(tokens)
            step[0, place] = 1e-3 * tokens[0, place]
            slopes.append(float((log_prob(tokens + step) - log_prob(tokens - step)) / 2e-3))
    expected = np.maximum(slopes[1:], 0)  # behind the class token
    found = word_maps(captioner, image, candidate).maps[0].flatten()
    np.testing.assert_allclose(found, expected / expected.max(), atol=0.02)


def test_a_captioner_of_regions_and_its_detector(image):
    detector = CaptionerDetector(colour_detector.build())
    width = detector.load()[0].config.feature_size
    torch.manual_seed(0)
    model, processor = SaticForImageCaptioning.new(
        ["a red circle above a blue square"], features=width, min_count=1, d_model=16, encoder_layers=1,
        decoder_layers=1, num_attention_heads=2, ffn_dim=16, max_position_embeddings=12,
    )  # fmt: skip
    processor.detector = detector
    shown = Exhibition([ShownCaptioner("regions", model.eval(), processor)])
    maps = maps_of_words(shown.captioners[0], image, Decoding(candidates=1))
    looked = np.stack(maps.maps).max(0) > 0
    boxes = np.zeros_like(looked)
    for x1, y1, x2, y2 in detector.regions(image)[1].round().astype(int):
        boxes[y1:y2, x1:x2] = True
    assert maps.method == ATTENTION and (looked == boxes).all() and 0 < looked.mean() < 0.5
    drawn, said = drawn_regions(shown.detectors["regions of regions"], image)
    assert drawn.size == image.size and said.startswith("2 regions")
    with pytest.raises(ImageError, match="no regions"):
        drawn_regions(RegionDetector(*colour_detector.build()), Image.new("RGB", (60, 50)))


def test_a_sentence_becomes_clear(captioners, image):
    captioner = captioners["scdnet"]
    steps = denoising_steps(captioner, image, Decoding(steps=4))
    assert [(step.stage, step.step) for step in steps] == [(1, number) for number in range(1, 5)]
    # the last step of the paper's sampler ends where the network expects
    written = captioner.write(image, Decoding(candidates=1, steps=4)).candidates[0]
    assert steps[-1].sentence == written.caption
    rows = step_rows(captioner, image, Decoding(steps=4))
    numbers = [tuple(map(int, steps.split("-"))) for _, steps, _ in rows]
    shown = {step: said for (_, _, said), around in zip(rows, numbers, strict=True)
             for step in range(around[0], around[-1] + 1)}  # fmt: skip
    assert shown == {step.step: step.sentence for step in steps}
    assert all(one[2] != other[2] for one, other in pairwise(rows))
    with pytest.raises(ValueError, match="satic writes word by word"):
        denoising_steps(captioners["satic"], image, Decoding())


def test_what_a_visitor_may_ask_for(captioners, image, tmp_path):
    assert decoding_of(2, 5, False, 1.0, 0, "its own") == Decoding(2, 5, False, 1.0, None, None)
    assert decoding_of(2, 5, True, 0.5, 7, "standard") == Decoding(2, 5, True, 0.5, 7, "standard")
    for asked, said in (
        ((11, 5, False, 1.0, 0, "its own"), "candidates must be 1 to 10, not 11"),
        ((1, 99, False, 1.0, 0, "its own"), "beams must be 1 to 10, not 99"),
        ((1, 1, False, 1.0, 10**6, "its own"), "steps must be 1 to 100"),
        ((1, 1, False, 0.0, 0, "its own"), "temperature must be above 0"),
    ):
        with pytest.raises(ValueError, match=said):
            decoding_of(*asked)
    with pytest.raises(ValueError, match="decoding must be one of"):
        captioners["satic"].write(image, Decoding(rule="no such rule"))
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(ImageError, match="give a picture first"):
        open_upload(None)
    with pytest.raises(ImageError, match="this picture cannot be read: ") as caught:
        open_upload(str(tmp_path / "broken.jpg"))
    assert str(tmp_path) not in str(caught.value)


def test_captioners_of_one_name_are_told_apart(captioners):
    twice = [ShownCaptioner("mine", captioners[kind].model, captioners[kind].processor) for kind in ("satic", "dico")]
    shown = Exhibition(twice)
    assert [one.name for one in shown.captioners] == ["mine (1)", "mine (2)"]
    assert shown.captioner("mine (2)").model is captioners["dico"].model
    with pytest.raises(ValueError, match=r"no captioner 'mine' here, but mine \(1\), mine \(2\)"):
        shown.captioner("mine")
    assert rules_of(twice) == ["paper", "standard"] and rules_of([*twice, captioners["scdnet"]]) == ["paper"]
    rows, seconds = candidate_rows(twice[0], Image.new("RGB", (20, 20)), Decoding(candidates=2))
    assert rows and all(len(row) == 2 for row in rows) and seconds > 0
    assert len({caption for caption, _ in rows}) == len(rows)


def test_a_captioner_that_looks_at_a_sentence(captioners, image):
    model = tiny_policy("scdnet")
    model.config.retrieval = "sentence"
    captioner = ShownCaptioner("scdnet", model, tiny_processor("scdnet"))
    assert captioner.takes_sentence and not captioners["scdnet"].takes_sentence
    with pytest.raises(ValueError, match="write one, or start the page with --retrieval DIR"):
        captioner.write(image)
    assert captioner.write(image, Decoding(candidates=1), "two small stars").candidates


def test_the_picture_as_it_was_seen(image):
    processor = tiny_processor("satic")
    small = image.resize((16, 16), Image.Resampling.BICUBIC)
    view = seen_image(processor, processor(images=image)["pixel_values"][0]).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(view, np.int16) - np.asarray(small, np.int16)).mean() < 12
    heat = np.zeros((2, 2))
    heat[0, 0] = 1.0
    warm = np.asarray(with_heat(Image.new("RGB", (64, 64), (100, 100, 100)), heat), np.int16)
    assert warm[0, 0].tolist() == [180, 120, 100] and warm[-1, -1].tolist() == [30, 30, 30]
