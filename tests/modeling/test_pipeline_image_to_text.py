"""The image-to-text pipeline: everything it takes, in every number, and what it gives back."""

import http.server
import logging
import threading

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.pipelines.pt_utils import KeyDataset

import hf_captioners
from hf_captioners import ImageError, ImageToTextPipeline


@pytest.fixture(scope="module")
def captioner(tiny_captioner_dir):
    return hf_captioners.pipeline(model=str(tiny_captioner_dir), num_beams=1)


@pytest.fixture(scope="module")
def pictures():
    """Pictures of different modes and sizes, which the tiny captioner captions differently."""
    noise = np.random.default_rng(1)
    scenes = [Image.new("RGB", (40, 30), "red"), Image.new("L", (10, 60), 255)]
    scenes += [Image.fromarray(noise.integers(0, 256, (33, 44, 3), dtype=np.uint8)) for _ in range(2)]
    return [*scenes, Image.effect_mandelbrot((50, 50), (-2, -1.5, 1, 1.5), 50)]


@pytest.fixture(scope="module")
def paths(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for index, picture in enumerate(pictures):
        picture.save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(len(pictures))]


@pytest.fixture(scope="module")
def captions(tiny_captioner_dir, pictures):
    """Captions of the model and the processor without a pipeline."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).eval()
    processor = AutoProcessor.from_pretrained(tiny_captioner_dir)
    texts = [processor.decode(model.generate(**processor(images=one), num_beams=1)[0]) for one in pictures]
    assert len(set(texts)) > 1
    return texts


@pytest.fixture()
def features(captioner):
    size = captioner.model.config.feature_size
    return [torch.randn(count, size, generator=torch.Generator().manual_seed(count)) for count in (5, 4, 9)]


@pytest.fixture()
def complaints():
    """Warnings of transformers during a test."""
    records, handler = [], logging.Handler(logging.WARNING)
    handler.emit = records.append
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)


def texts(outputs):
    """The captions of several pictures with one caption each; checks the format of transformers 4."""
    outputs = list(outputs)
    assert all(isinstance(one, list) and len(one) == 1 and one[0].keys() == {"generated_text"} for one in outputs)
    return [one[0]["generated_text"] for one in outputs]


class TestInputs:
    def test_a_picture_gives_a_list_of_one_dict(self, captioner, pictures, captions):
        assert captioner(pictures[0]) == [{"generated_text": captions[0]}]
        assert captioner(images=pictures[0]) == [{"generated_text": captions[0]}]

    def test_paths(self, captioner, paths, captions):
        assert texts(captioner(path) for path in paths) == captions

    def test_urls(self, captioner, paths, captions):
        class Handler(http.server.SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=paths[0].removesuffix("/0.png"))

            def log_message(self, *args):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}"
            outputs = captioner([f"{url}/0.png", f"{url}/1.png"], timeout=5.0)
            with pytest.raises(ImageError, match="HTTP status 404"):
                captioner(f"{url}/9.png")
            server.shutdown()
        assert texts(outputs) == captions[:2]

    def test_lists(self, captioner, pictures, paths, captions):
        assert texts(captioner(pictures)) == captions
        assert texts(captioner([paths[0], pictures[1], paths[2]])) == captions[:3]
        assert captioner([]) == []

    @pytest.mark.parametrize("batch_size", [2, 3, 8])
    def test_batches(self, captioner, pictures, captions, batch_size):
        assert texts(captioner(pictures, batch_size=batch_size)) == captions

    def test_a_generator_is_read_as_captions_are_asked_for(self, captioner, pictures, captions):
        taken = []
        outputs = captioner(taken.append(index) or picture for index, picture in enumerate(pictures))
        first = next(iter(outputs))
        assert texts([first]) == captions[:1]
        assert len(taken) < len(pictures)

    def test_a_generator_in_batches(self, captioner, pictures, captions):
        assert texts(captioner((one for one in pictures), batch_size=2)) == captions

    @pytest.mark.parametrize("decode", [True, False])
    def test_a_column_of_a_data_set(self, captioner, paths, captions, decode):
        dataset = Dataset.from_dict({"image": paths}).cast_column("image", ImageFeature(decode=decode))
        assert texts(captioner(KeyDataset(dataset, "image"), batch_size=2)) == captions


class TestFeatures:
    def test_tensor_dict_and_nested_list(self, captioner, features):
        model, processor = captioner.model, captioner.processor
        ids = model.generate(image_features=features[0][None], num_beams=1)
        expected = [{"generated_text": processor.decode(ids[0])}]
        assert captioner(features[0]) == expected
        assert captioner({"image_features": features[0]}) == expected
        assert captioner({"image_features": features[0].tolist(), "captions": ["a"]}) == expected

    def test_a_key_that_the_captioner_does_not_know_is_refused(self, captioner, features):
        with pytest.raises(
            ValueError, match="a row with anchors: this captioner looks at image, image_features and noth"
        ):
            captioner({"image_features": features[0], "anchors": ["dog"]})

    def test_a_row_with_a_picture(self, captioner, pictures, captions):
        rows = [{"image": picture, "image_id": index} for index, picture in enumerate(pictures)]
        assert texts(captioner(rows, batch_size=2)) == captions

    def test_different_lengths_in_a_batch(self, captioner, features):
        alone = [captioner(one) for one in features]
        assert captioner(features, batch_size=3) == alone
        assert captioner(features, batch_size=2, num_beams=3) == [captioner(one, num_beams=3) for one in features]

    def test_of_cached_features_and_their_pictures(self, captioner, pictures, captions):
        pixels = captioner.processor(images=pictures).pixel_values
        cached = captioner.model.extract_image_features(pixels)
        assert texts(captioner(list(cached), batch_size=2)) == captions

    @pytest.mark.parametrize("shape", [(2, 5, 16), (1, 5, 16), (16,)])
    def test_several_pictures_in_a_tensor_are_refused(self, captioner, shape):
        with pytest.raises(ValueError, match=r"must be \(tokens, width\).*as a list"):
            captioner(torch.zeros(shape))

    def test_a_wrong_width_is_named(self, captioner):
        with pytest.raises(ValueError, match=r"image_features must be \(pictures, tokens, 16\)"):
            captioner(torch.zeros(5, 3))


class TestGeneration:
    def test_several_captions_of_a_picture(self, captioner, pictures):
        options = {"num_beams": 3, "num_return_sequences": 2}
        model, processor = captioner.model, captioner.processor
        ids = [model.generate(**processor(images=one), **options) for one in pictures]
        expected = [[{"generated_text": text} for text in processor.batch_decode(one)] for one in ids]
        assert captioner(pictures, generate_kwargs=options) == expected
        assert captioner(pictures, generate_kwargs=options, batch_size=2) == expected
        assert captioner(pictures[0], **options) == expected[0]
        assert expected[0][0] != expected[0][1]

    def test_prompt(self, captioner, pictures):
        outputs = captioner(pictures, prompt="Two small", batch_size=2)
        assert all(text.startswith("two small") for text in texts(outputs))
        with_prompt = captioner.model.generate(
            **captioner.processor(images=pictures[:1], text="two small"), num_beams=1
        )
        assert texts(outputs[:1]) == captioner.processor.batch_decode(with_prompt)

    @pytest.mark.parametrize("arguments", [{"max_new_tokens": 3}, {"generate_kwargs": {"max_new_tokens": 3}}])
    def test_max_new_tokens_without_a_warning(self, captioner, pictures, captions, complaints, arguments):
        assert texts([captioner(pictures[0], **arguments)]) == [" ".join(captions[0].split()[:3])]
        assert [record.getMessage() for record in complaints] == []

    def test_nothing_to_complain_about(self, tiny_captioner_dir, pictures, complaints):
        captioner = hf_captioners.pipeline(model=str(tiny_captioner_dir))
        captioner(pictures, batch_size=2)
        captioner(pictures[0], num_beams=2, prompt="a", max_new_tokens=4)
        assert [record.getMessage() for record in complaints] == []

    def test_options_of_the_pipeline_hold_for_every_call(self, tiny_captioner_dir, pictures, captioner):
        usual = hf_captioners.pipeline(
            model=str(tiny_captioner_dir),
            prompt="the",
            decoding="standard",
            generate_kwargs={"num_beams": 3, "num_return_sequences": 2},
        )
        options = {"decoding": "standard", "num_beams": 3, "num_return_sequences": 2}
        assert usual(pictures[2]) == captioner(pictures[2], prompt="the", **options)
        assert usual(pictures[2], max_new_tokens=4) == captioner(pictures[2], prompt="the", max_new_tokens=4, **options)
        assert usual(pictures[2], prompt="two", num_return_sequences=1) == captioner(
            pictures[2], prompt="two", **{**options, "num_return_sequences": 1}
        )

    def test_half_precision(self, tiny_captioner_dir, pictures):
        captioner = hf_captioners.pipeline(model=str(tiny_captioner_dir), dtype=torch.bfloat16, batch_size=2)
        assert captioner.model.dtype == torch.bfloat16
        assert all(texts(captioner(pictures)))


class TestFiles:
    def test_a_saved_pipeline_loads_again(self, captioner, pictures, captions, tmp_path):
        captioner.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.py"))
        loaded = transformers.pipeline("image-to-text", model=str(tmp_path), num_beams=1)
        assert type(loaded) is ImageToTextPipeline
        assert texts(loaded(pictures)) == captions

    def test_a_checkpoint_with_its_code_needs_no_trust_where_the_package_is(
        self, captioner, pictures, captions, tmp_path
    ):
        captioner.save_pretrained(tmp_path / "shipped", ship_code=True)
        assert "custom_pipelines" in (tmp_path / "shipped" / "config.json").read_text()
        for options in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
            loaded = transformers.pipeline("image-to-text", model=str(tmp_path / "shipped"), num_beams=1, **options)
            assert type(loaded) is ImageToTextPipeline
            assert texts([loaded(pictures[0])]) == captions[:1]
        loaded.save_pretrained(tmp_path / "plain")
        assert not list((tmp_path / "plain").glob("*.py"))
        assert "auto_map" not in "".join(path.read_text() for path in (tmp_path / "plain").glob("*.json"))


class TestErrors:
    def test_no_picture(self, captioner):
        with pytest.raises(ValueError, match="at least one picture"):
            captioner()

    def test_broken_pictures_are_named(self, captioner, tmp_path):
        (tmp_path / "text.jpg").write_text("no picture")
        with pytest.raises(ImageError, match=r"text\.jpg"):
            captioner(str(tmp_path / "text.jpg"))
        with pytest.raises(ImageError, match=r"nowhere\.jpg: no such file"):
            captioner("nowhere.jpg")
        with pytest.raises(TypeError, match="not ndarray"):
            captioner(np.zeros((4, 4, 3)))

    def test_max_new_tokens_twice(self, captioner, pictures):
        with pytest.raises(ValueError, match="given twice"):
            captioner(pictures[0], max_new_tokens=3, generate_kwargs={"max_new_tokens": 4})

    def test_misspelt_options(self, captioner, pictures):
        with pytest.raises(ValueError, match="num_beems"):
            captioner(pictures[0], num_beems=3)

    def test_too_long(self, captioner, pictures):
        with pytest.raises(ValueError, match="beyond this model's max_position_embeddings=20"):
            captioner(pictures[0], max_new_tokens=20)

    def test_no_processor(self, captioner, tiny_captioner_dir, tmp_path):
        with pytest.raises(ValueError, match=r"needs the captioner's processor: give processor="):
            ImageToTextPipeline(model=captioner.model)
        captioner.model.save_pretrained(tmp_path)
        with pytest.raises((OSError, ValueError)):
            hf_captioners.pipeline(model=str(tmp_path))
