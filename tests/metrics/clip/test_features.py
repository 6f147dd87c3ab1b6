"""Pictures and captions through CLIP: preparation, token ids, batches, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BertConfig,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    PreTrainedTokenizerBase,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

from hf_captioners.metrics.clip.features import ClipFeatures, fill_ids
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.modeling.captioner_image_io import ImageError

SIZE = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_clip(vocab_size: int = 49408, **text: Any) -> CLIPModel:
    torch.manual_seed(0)
    ends = {"bos_token_id": vocab_size - 2, "eos_token_id": vocab_size - 1}
    config = CLIPConfig(
        text_config={**SIZE, "vocab_size": vocab_size, **ends, **text},
        vision_config={**SIZE, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    model = CLIPModel(config).eval()
    with torch.no_grad():  # the initial weights give all inputs nearly the same features
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def model() -> CLIPModel:
    return tiny_clip()


@pytest.fixture(scope="module")
def image_processor() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shared_data / "clip_tokenizer")


def picture(seed: int, width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def rows_through(module: torch.nn.Module) -> list[int]:
    """The sizes of the batches that will go through a module."""
    sizes: list[int] = []
    module.register_forward_pre_hook(
        lambda _, args, kwargs: sizes.append(len(next(one for one in [*args, *kwargs.values()] if one is not None))),
        with_kwargs=True,
    )
    return sizes


def no_grad(function: Any, **inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return function(**inputs).pooler_output


class TestFillIds:
    ENDS = {"bos_token_id": 8, "eos_token_id": 9, "pad_token_id": 10, "length": 6}

    @pytest.mark.parametrize(
        ("row", "filled"),
        [
            ([8, 1, 2, 9, 10], [8, 1, 2, 9, 0, 0]),
            ([1, 2, 9], [8, 1, 2, 9, 0, 0]),  # BOS is put back
            ([8, 1, 2], [8, 1, 2, 0, 0, 0]),  # without EOS
            ([8, 1, 10, 2, 9], [8, 1, 0, 2, 9, 0]),  # PAD between words
            ([8, 1, 2, 3, 4, 9], [8, 1, 2, 3, 4, 9]),
            ([8, 1, 2, 3, 4, 5, 9, 10], [8, 1, 2, 3, 4, 9]),  # too long: ends as a truncated text
            ([8, 1, 2, 3, 4, 9, 10, 10, 10], [8, 1, 2, 3, 4, 9]),  # PAD does not make it too long
            ([], [8, 0, 0, 0, 0, 0]),
        ],
    )
    def test_rows(self, row: list[int], filled: list[int]) -> None:
        assert fill_ids([row], fill_token_id=0, **self.ENDS).tolist() == [filled]

    def test_filled_with_eos(self) -> None:
        ids = torch.tensor([[8, 1, 10, 2], [8, 10, 10, 10]])
        assert fill_ids(ids, fill_token_id=9, **self.ENDS).tolist() == [[8, 1, 9, 2, 9, 9], [8, 9, 9, 9, 9, 9]]


class TestImages:
    def test_prepared_as_published(self, model: CLIPModel, image_processor: CLIPImageProcessorPil) -> None:
        image = picture(0)  # 64 x 48 becomes 42 x 32: bicubic, the middle 32 columns
        values = np.asarray(image.resize((42, 32), Image.Resampling.BICUBIC).crop((5, 0, 37, 32)), dtype=np.float64)
        values = (values / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
        pixel_values = torch.tensor(values.transpose(2, 0, 1)[None], dtype=torch.float32)
        expected = no_grad(model.get_image_features, pixel_values=pixel_values)
        found = ClipFeatures(model, image_processor=image_processor).image_features([image])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_kinds_of_pictures(self, model: CLIPModel, image_processor: CLIPImageProcessorPil, tmp_path: Path) -> None:
        image = picture(1)
        image.save(tmp_path / "x.png")
        kinds = [image, tmp_path / "x.png", str(tmp_path / "x.png"), (tmp_path / "x.png").read_bytes()]
        features = ClipFeatures(model, image_processor=image_processor)
        prepared = image_processor(images=image, return_tensors="pt").pixel_values
        found = features.image_features([*kinds, prepared[0]])
        torch.testing.assert_close(found, found[:1].expand_as(found), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features.image_features(prepared), found[:1], atol=1e-5, rtol=1e-5)
        assert torch.equal(features.image_features(found), found)

    def test_a_picture_is_encoded_once(self, image_processor: CLIPImageProcessorPil, tmp_path: Path) -> None:
        model = tiny_clip(20)
        sizes = rows_through(model.vision_model)
        picture(2).save(tmp_path / "x.png")
        first, path = picture(3), tmp_path / "x.png"
        features = ClipFeatures(model, image_processor=image_processor)
        found = features.image_features([first, path, first, str(path), first])
        assert sizes == [2]
        assert torch.equal(found[[0, 1]], found[[2, 3]]) and not torch.equal(found[0], found[1])

    def test_batches(self, image_processor: CLIPImageProcessorPil) -> None:
        model = tiny_clip(20)
        sizes = rows_through(model.vision_model)
        images = [picture(seed) for seed in range(5)]
        in_twos = ClipFeatures(model, image_processor=image_processor, batch_size=2).image_features(images)
        assert sizes == [2, 2, 1]
        together = ClipFeatures(model, image_processor=image_processor).image_features(images)
        torch.testing.assert_close(in_twos, together, atol=1e-5, rtol=1e-5)

    def test_errors(self, model: CLIPModel, image_processor: CLIPImageProcessorPil, tmp_path: Path) -> None:
        features = ClipFeatures(model, image_processor=image_processor)
        (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
        with pytest.raises(ImageError, match=r"image 1: .*broken.jpg: "):
            features.image_features([picture(0), tmp_path / "broken.jpg"])
        with pytest.raises(ImageError, match=r"image dog: .*nothing.jpg"):
            features.image_features([tmp_path / "nothing.jpg"], names=["dog"])
        with pytest.raises(MetricInputError, match="no images to score"):
            features.image_features([])
        with pytest.raises(
            ValueError, match=r"images of shape \(2, 9\); expected pixel_values .* features \(images, 8\)"
        ):
            features.image_features(torch.zeros(2, 9))
        with pytest.raises(ValueError, match="no image_processor to prepare pictures with"):
            ClipFeatures(model).image_features([picture(0)])

    def test_folder_without_image_processor(self, model: CLIPModel, tmp_path: Path) -> None:
        model.save_pretrained(tmp_path)
        features = ClipFeatures(tmp_path)
        pixel_values = torch.rand(2, 3, 32, 32)
        expected = no_grad(model.get_image_features, pixel_values=pixel_values)
        torch.testing.assert_close(features.image_features(pixel_values), expected, atol=1e-5, rtol=1e-5)
        assert features.text_features([[3, 4, 5]]).shape == (1, expected.shape[1])
        with pytest.raises(ValueError, match=r"the model's folder has no preprocessor_config\.json; give image_proc"):
            features.image_features([picture(0)])


class TestTexts:
    def test_ids_of_the_original_tokenizer(
        self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase, shared_data: Path
    ) -> None:
        rows = json.loads((shared_data / "clip_tokenizer" / "reference_ids.json").read_text())[:60]
        features = ClipFeatures(model, tokenizer)
        found = features.text_features([row["text"] for row in rows])
        for row, feature in zip(rows, found, strict=True):
            ids = torch.tensor([[49406, *row["ids"], 49407]])[:, :77]
            torch.testing.assert_close(
                feature[None], no_grad(model.get_text_features, input_ids=ids), atol=1e-5, rtol=0
            )

    def test_truncated_at_77(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase) -> None:
        features = ClipFeatures(model, tokenizer)
        (word,) = tokenizer("dog", add_special_tokens=False).input_ids
        expected = no_grad(model.get_text_features, input_ids=torch.tensor([[49406, *[word] * 75, 49407]]))
        torch.testing.assert_close(features.text_features(["dog " * 300]), expected, atol=1e-5, rtol=0)

    def test_padding_and_batches_change_nothing(self, model: CLIPModel, tokenizer: PreTrainedTokenizerBase) -> None:
        captions = ["a dog", "two cats on a very large wooden chair by the sea", "", "a dog", "rain"]
        alone = torch.cat([ClipFeatures(model, tokenizer).text_features([caption]) for caption in captions])
        for batch_size in (2, 64):
            found = ClipFeatures(model, tokenizer, batch_size=batch_size).text_features(captions)
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)

    def test_equal_captions_are_encoded_once(self, tokenizer: PreTrainedTokenizerBase) -> None:
        model = tiny_clip()
        sizes = rows_through(model.text_model)
        ClipFeatures(model, tokenizer).text_features(["a dog", "a cat", "a dog"])
        assert sizes == [2]

    def test_errors(self, model: CLIPModel) -> None:
        with pytest.raises(ValueError, match="no tokenizer for captions as text"):
            ClipFeatures(model).text_features(["a dog"])
        with pytest.raises(MetricInputError, match="no captions to score"):
            ClipFeatures(model).text_features([])


class TestIds:
    IDS = [[18, 3, 4, 19], [18, 5, 19], [18, 6, 7, 8, 9, 1, 2], [18, 3, 20, 4, 19]]

    @pytest.mark.parametrize("fill", [None, 0])
    @pytest.mark.parametrize("eos", [19, 2])  # 2: configurations before transformers 4.32, which pool the highest id
    def test_cut_to_the_longest_is_the_same_as_77(self, fill: int | None, eos: int) -> None:
        model = tiny_clip(20, eos_token_id=eos, bos_token_id=0 if eos == 2 else 18)
        features = ClipFeatures(model, pad_token_id=20, fill_token_id=fill)
        filled = features.fill_ids(self.IDS)
        assert filled.shape == (4, 77)
        assert filled[0, 4:].unique().tolist() == [19 if fill is None else 0]
        expected = no_grad(model.get_text_features, input_ids=filled)
        torch.testing.assert_close(features.text_features(self.IDS), expected, atol=1e-5, rtol=1e-5)

    def test_full_rows(self) -> None:
        model = tiny_clip(20)
        features = ClipFeatures(model, fill_token_id=0)
        ids = [[18, *[4] * 75, 19], [18, *[4] * 76], [18, *[4] * 90, 19]]
        expected = no_grad(model.get_text_features, input_ids=features.fill_ids(ids))
        torch.testing.assert_close(features.text_features(ids), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(features.text_features(ids[:1]), features.text_features(ids[2:]))

    def test_ids_outside_the_vocabulary(self) -> None:
        with pytest.raises(
            ValueError, match=r"caption 3: token id 20 is not in .*vocabulary of 20; .*give pad_token_id"
        ):
            ClipFeatures(tiny_clip(20)).text_features(self.IDS)
        with pytest.raises(ValueError, match="caption 0: token id -100 is not in"):
            ClipFeatures(tiny_clip(20), pad_token_id=20).text_features(torch.tensor([[18, 3, -100]]))


class TestModels:
    def test_from_a_folder(
        self,
        model: CLIPModel,
        image_processor: CLIPImageProcessorPil,
        tokenizer: PreTrainedTokenizerBase,
        tmp_path: Path,
    ) -> None:
        for part in (model, image_processor, tokenizer):
            part.save_pretrained(tmp_path)
        features = ClipFeatures(tmp_path)
        assert features.model.dtype == torch.float32
        given = ClipFeatures(model, tokenizer, image_processor)
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(features.text_features(["a dog"]), given.text_features(["a dog"]), **close)
        torch.testing.assert_close(features.image_features([picture(0)]), given.image_features([picture(0)]), **close)

    def test_half_precision(self, image_processor: CLIPImageProcessorPil) -> None:
        full = ClipFeatures(tiny_clip(20), image_processor=image_processor).image_features([picture(0)])
        features = ClipFeatures(tiny_clip(20), image_processor=image_processor, dtype=torch.bfloat16)
        assert features.model.dtype == torch.bfloat16
        half = features.image_features([picture(0)])
        assert half.dtype == torch.float32 and not half.requires_grad
        assert torch.cosine_similarity(full, half).item() > 0.999

    def test_dual_encoder(self, image_processor: CLIPImageProcessorPil, tmp_path: Path) -> None:
        torch.manual_seed(0)
        (tmp_path / "vocab.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "cane", "gatto"])
        )
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        vision = tiny_clip(20).config.vision_config
        config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, BertConfig(vocab_size=8, **SIZE))
        model = VisionTextDualEncoderModel(config, vision_model=CLIPVisionModel(vision)).eval()
        features = ClipFeatures(model, tokenizer, image_processor)
        captions = ["un cane", "un gatto e un cane"]
        images = features.image_features([picture(0)])
        texts = features.text_features(captions)
        inputs = tokenizer(captions, padding=True, return_tensors="pt")
        with torch.no_grad():
            pixel_values = image_processor(images=picture(0), return_tensors="pt").pixel_values
            outputs = model(**inputs, pixel_values=pixel_values)
        cosine = outputs.logits_per_image / model.logit_scale.exp()
        torch.testing.assert_close(torch.cosine_similarity(images, texts)[None], cosine, atol=1e-5, rtol=0)
        with pytest.raises(ValueError, match="a VisionTextDualEncoderModel takes captions as text"):
            features.text_features([[2, 5, 3]])

    def test_other_models_are_refused(self) -> None:
        with pytest.raises(TypeError, match="a CLIPVisionModel is no CLIPModel or VisionTextDualEncoderModel"):
            ClipFeatures(CLIPVisionModel(tiny_clip(20).config.vision_config))
        with pytest.raises(ValueError, match="batch_size is 0"):
            ClipFeatures(tiny_clip(20), batch_size=0)
