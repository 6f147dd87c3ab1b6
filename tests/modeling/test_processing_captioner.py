"""The processor: features of every kind, captions and their beginnings in, ids out to text, files."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPImageProcessorPil, ViTImageProcessorPil

from hf_captioners import (
    CaptionerImageProcessor,
    ExpansionNetV2Processor,
    build_vocabulary,
    build_word_tokenizer,
)
from hf_captioners.modeling.processing_captioner import CaptionerProcessor, move_images, pad_features, prepare_images

CAPTIONS = ["a red wave", "two men ride a big wave"]


@pytest.fixture()
def tokenizer():
    return build_word_tokenizer(build_vocabulary(CAPTIONS, min_count=1), model_max_length=6)


@pytest.fixture()
def processor(tokenizer):
    return ExpansionNetV2Processor(CaptionerImageProcessor(size={"height": 6, "width": 8}), tokenizer)


def ids_of(tokenizer, words):
    return tokenizer.convert_tokens_to_ids(words.split())


def ramp(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


class TestPadFeatures:
    @pytest.mark.parametrize(
        "features",
        [
            [ramp(2, 3), ramp(4, 3), ramp(1, 3)],
            (ramp(2, 3), ramp(4, 3), ramp(1, 3)),
            [ramp(2, 3).numpy(), ramp(4, 3).numpy(), ramp(1, 3).numpy()],
            [ramp(2, 3).tolist(), ramp(4, 3).tolist(), ramp(1, 3).tolist()],
        ],
        ids=["list", "tuple", "arrays", "nested lists"],
    )
    def test_different_lengths(self, features):
        batch, mask = pad_features(features)
        assert batch.shape == (3, 4, 3)
        assert mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]]
        assert mask.dtype == torch.int64
        for row, one, real in zip(batch, (ramp(2, 3), ramp(4, 3), ramp(1, 3)), mask.bool(), strict=True):
            assert torch.equal(row[real], one)
            assert not row[~real].any()

    @pytest.mark.parametrize("features", [ramp(4, 3), ramp(1, 4, 3), ramp(1, 4, 3).numpy(), [ramp(4, 3)]])
    def test_one_picture(self, features):
        batch, mask = pad_features(features)
        assert torch.equal(batch, ramp(1, 4, 3))
        assert torch.equal(mask, torch.ones(1, 4, dtype=torch.long))

    def test_a_batch_stays_as_it_is(self):
        batch, mask = pad_features(ramp(2, 4, 3).half())
        assert torch.equal(batch, ramp(2, 4, 3).half())
        assert mask.shape == (2, 4)
        assert mask.all()

    @pytest.mark.parametrize(
        ("features", "message"),
        [
            ([], "image_features is empty"),
            (torch.zeros(0, 4, 3), "image_features is empty"),
            (torch.zeros(5), r"image_features\[0\] must be \(tokens, width\) with tokens > 0, not \(\)"),
            ([torch.zeros(5)], r"not \(5,\)"),
            (torch.zeros(2, 7, 7, 3), r"not \(7, 7, 3\)"),
            (np.zeros((4, 3)), r"not \(3,\)"),
            (
                [ramp(2, 3), torch.zeros(0, 3)],
                r"image_features\[1\] must be \(tokens, 3\) with tokens > 0, not \(0, 3\)",
            ),
            ([ramp(2, 3), ramp(2, 4)], r"image_features\[1\] must be \(tokens, 3\).* not \(2, 4\)"),
            ([ramp(2, 3), ramp(2, 3) / 0], r"image_features\[1\] contains NaN or infinity"),
            (torch.full((2, 3), torch.inf), r"image_features\[0\] contains NaN or infinity"),
            (
                [ramp(2, 3), torch.full((2, 3), -1e38)],
                r"image_features\[1\] contains 1e\+38, and numbers beyond 1e\+12",
            ),
            (torch.ones(2, 3, dtype=torch.complex64), r"image_features\[0\] must be real numbers, not torch.complex64"),
        ],
    )
    def test_errors(self, features, message):
        with pytest.raises(ValueError, match=message):
            pad_features(features)


class TestInputs:
    def test_pictures(self, processor):
        batch = processor(images=[Image.new("RGB", (30, 20)), Image.new("L", (5, 50))])
        assert dict(batch).keys() == {"pixel_values"}
        assert batch.pixel_values.shape == (2, 3, 6, 8)

    def test_options_of_the_image_processor(self, processor):
        assert processor(images=Image.new("RGB", (9, 9)), size={"height": 4, "width": 5}).pixel_values.shape[2:] == (
            4,
            5,
        )
        with pytest.raises(TypeError, match="colour"):
            processor(images=Image.new("RGB", (9, 9)), colour="red")

    def test_features(self, processor):
        batch = processor(image_features=[ramp(2, 3), ramp(4, 3)])
        assert dict(batch).keys() == {"image_features", "image_attention_mask"}
        assert batch.image_features.shape == (2, 4, 3)
        assert batch.image_attention_mask.sum(1).tolist() == [2, 4]

    def test_labels_are_words_and_end_then_minus_100(self, processor, tokenizer):
        labels = processor(text_target=["A red wave.", "two", ""]).labels
        eos = tokenizer.eos_token_id
        assert labels.tolist() == [
            [*ids_of(tokenizer, "a red wave"), eos],
            [*ids_of(tokenizer, "two"), eos, -100, -100],
            [eos, -100, -100, -100],
        ]
        assert labels.dtype == torch.int64

    def test_long_captions_are_cut_before_their_end(self, processor, tokenizer):
        (row,) = processor(text_target="two men ride a big wave a big wave").labels.tolist()
        assert row == [*ids_of(tokenizer, "two men ride a"), tokenizer.eos_token_id]  # model_max_length=6 with SOS

    def test_one_caption_or_a_list(self, processor):
        assert torch.equal(processor(text_target="a wave").labels, processor(text_target=["a wave"]).labels)

    def test_beginnings_of_unknown_words_are_refused_by_name(self, processor):
        with pytest.raises(ValueError, match="does not have 'photo', 'zebra': a caption can only begin with words"):
            processor(text=["A zebra", "a Photo"])

    def test_beginnings(self, processor, tokenizer):
        sos = tokenizer.bos_token_id
        assert processor(text="a big").decoder_input_ids.tolist() == [[sos, *ids_of(tokenizer, "a big")]]
        assert processor(text=["a", "Two"]).decoder_input_ids.tolist() == [
            [sos, *ids_of(tokenizer, "a")],
            [sos, *ids_of(tokenizer, "two")],
        ]
        assert processor(text="").decoder_input_ids.tolist() == [[sos]]

    def test_everything_at_once(self, processor):
        batch = processor(images=Image.new("RGB", (9, 9)), text="a", text_target="a wave", return_tensors="pt")
        assert dict(batch).keys() == {"pixel_values", "decoder_input_ids", "labels"}
        assert dict(batch).keys() <= set(processor.model_input_names)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({}, "give images, image_features, text or text_target"),
            ({"images": Image.new("RGB", (9, 9)), "image_features": ramp(2, 3)}, "not both"),
            ({"text": ["a", "a big"]}, r"same number of tokens in a batch, not \[1, 2\]"),
            ({"text": []}, "text is empty"),
            ({"text_target": []}, "text_target is empty"),
            ({"text": "a", "return_tensors": "np"}, "return_tensors must be 'pt', not 'np'"),
            ({"image_features": []}, "image_features is empty"),
            ({"images": "nowhere.jpg"}, "nowhere.jpg: no such file"),
        ],
    )
    def test_errors(self, processor, arguments, message):
        with pytest.raises(ValueError, match=message):
            processor(**arguments)


class TestPreparedImages:
    """Images that were prepared where they were opened: the same pixels, which are not made once more."""

    MODES = ("RGB", "L", "RGBA")

    def rows(self):
        draws = np.random.default_rng(0)
        images = [Image.fromarray(draws.integers(0, 256, (9, 40 + n, 3), dtype=np.uint8)) for n in range(6)]
        return [{"image": image.convert(mode)} for image, mode in zip(images, 2 * self.MODES, strict=True)]

    @pytest.mark.parametrize(
        "image_processor",
        [CaptionerImageProcessor(size={"height": 12, "width": 14}), CLIPImageProcessorPil(), ViTImageProcessorPil()],
        ids=lambda one: type(one).__name__,
    )
    @pytest.mark.parametrize("size", [1, 4, 6])
    def test_equal_those_of_a_call(self, tokenizer, image_processor, size, monkeypatch):
        processor = CaptionerProcessor(image_processor, tokenizer)
        expected = processor.prepare_rows(self.rows()).pixel_values
        opened = [processor.open_row(row) for row in self.rows()]
        for start in range(0, len(opened), size):
            prepare_images(processor, opened[start : start + size], torch.device("cpu"))
        move_images(opened, torch.device("cpu"))
        monkeypatch.setattr(type(image_processor), "preprocess", None)  # not called any more
        assert torch.equal(processor.prepare_rows(opened).pixel_values, expected)

    def test_those_that_are_not(self, processor):
        """Features, images that were opened elsewhere, and a batch of which some are not prepared."""
        expected = processor.prepare_rows(self.rows()).pixel_values
        opened = [processor.open_row(row) for row in self.rows()]
        prepare_images(processor, opened[:2], torch.device("cpu"))
        assert torch.equal(processor.prepare_rows([*opened[:2], *self.rows()[2:]]).pixel_values, expected)
        features = [{"image": row["image"], "image_features": torch.ones(2, 3)} for row in opened]
        prepare_images(processor, features, torch.device("cpu"))
        assert processor.prepare_rows(features).image_features.shape == (6, 2, 3)


class TestText:
    @pytest.fixture()
    def ids(self, tokenizer):
        return lambda *words: tokenizer.convert_tokens_to_ids(list(words))

    def test_between_start_and_end(self, processor, ids):
        rows = [
            ids("SOS", "a", "red", "wave", "EOS", "PAD"),
            ids("SOS", "a", "EOS", "red", "EOS", "wave"),  # what stands behind the end is no caption
            ids("SOS", "two", "men", "ride", "a", "big"),  # cut off by the longest length
            ids("a", "big", "wave", "EOS", "PAD", "PAD"),
            ids("EOS", "a", "big", "wave", "EOS", "PAD"),  # models that start with their end token
        ]
        captions = ["a red wave", "a", "two men ride a big", "a big wave", "a big wave"]
        assert processor.batch_decode(rows) == captions
        assert processor.batch_decode(torch.tensor(rows)) == captions
        assert processor.batch_decode(np.array(rows), skip_special_tokens=True) == captions
        assert [processor.decode(row) for row in torch.tensor(rows)] == captions

    def test_unknown_words_stay_visible(self, processor, ids):
        assert processor.decode(ids("SOS", "a", "UNK", "wave", "EOS")) == "a UNK wave"

    def test_captions_without_words(self, processor, ids):
        rows = [ids("SOS", "EOS"), ids("SOS", "PAD"), ids("EOS", "EOS"), ids("SOS"), []]
        assert processor.batch_decode(rows) == [""] * 5
        assert processor.batch_decode(rows, sentences=True) == [""] * 5
        assert processor.batch_decode([]) == []

    def test_sentences(self, processor, ids):
        assert processor.decode(ids("SOS", "a", "red", "wave", "EOS"), sentences=True) == "A red wave."

    def test_a_line_break_is_a_word_but_not_an_edge(self):
        tokenizer = build_word_tokenizer(build_vocabulary(["\n a \n wave"], min_count=1))
        processor = ExpansionNetV2Processor(CaptionerImageProcessor(), tokenizer)
        assert processor.decode(tokenizer("\na\nwave").input_ids) == "a \n wave"

    def test_labels_and_back(self, processor):
        labels = processor(text_target=CAPTIONS[:1]).labels
        assert processor.batch_decode(labels) == CAPTIONS[:1]

    def test_for_the_image_text_to_text_pipeline(self, processor, ids):
        rows = torch.tensor([ids("SOS", "a", "wave", "EOS")])
        assert processor.post_process_image_text_to_text(rows, skip_special_tokens=True) == ["a wave"]


class TestFiles:
    def test_save_and_load(self, processor, tiny_captioner_dir, tmp_path):
        AutoModelForImageTextToText.from_pretrained(tiny_captioner_dir).save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.py"))
        picture = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 50)
        for loaded in (AutoProcessor.from_pretrained(tmp_path), ExpansionNetV2Processor.from_pretrained(tmp_path)):
            assert type(loaded) is ExpansionNetV2Processor
            assert type(loaded.image_processor) is CaptionerImageProcessor
            ours, theirs = (one(images=picture, text_target="a UNK wave", text="a") for one in (processor, loaded))
            assert all(
                torch.equal(ours[name], theirs[name]) for name in ("pixel_values", "labels", "decoder_input_ids")
            )
            assert loaded.decode(ours.labels[0]) == processor.decode(ours.labels[0])

    def test_code_is_shipped_on_demand_and_only_then(self, processor, tmp_path):
        processor.save_pretrained(tmp_path / "shipped", ship_code=True)
        assert {path.name for path in (tmp_path / "shipped").glob("*.py")} == {
            "captioner_image_format.py",
            "captioner_layers.py",
            "tokenization_limits.py",
            "captioner_image_io.py",
            "captioner_image_limits.py",
            "captioner_image_source.py",
            "captioner_image_url.py",
            "image_processing_captioner.py",
            "processing_captioner.py",
            "captioner_shipping.py",
            "captioner_adapters.py",
            "captioner_detector.py",
            "captioner_hub.py",
            "captioner_trust.py",
            "configuration_captioner.py",
        }
        for index, one in enumerate((processor, ExpansionNetV2Processor.from_pretrained(tmp_path / "shipped"))):
            one.save_pretrained(tmp_path / f"plain{index}")
            assert not list((tmp_path / f"plain{index}").glob("*.py"))
            assert not [path for path in (tmp_path / f"plain{index}").iterdir() if "auto_map" in path.read_text()]

    def test_an_image_processor_of_transformers_is_not_shipped(self, tokenizer, tmp_path):
        processor = ExpansionNetV2Processor(ViTImageProcessorPil(size={"height": 6, "width": 8}), tokenizer)
        processor.save_pretrained(tmp_path, ship_code=True)
        settings = json.loads((tmp_path / "processor_config.json").read_text())
        assert settings["auto_map"].keys() == {"AutoProcessor"}
        assert "AutoImageProcessor" not in settings["image_processor"].get("auto_map", {})
        loaded = ExpansionNetV2Processor.from_pretrained(tmp_path)
        assert type(loaded.image_processor) is ViTImageProcessorPil
