"""Features of pictures: equal to what the model sees in training, whatever pictures are among them."""

import datasets
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    CLIPConfig,
    CLIPModel,
    MobileNetV2Config,
    MobileNetV2ImageProcessorPil,
    MobileNetV2Model,
    SwinConfig,
    SwinModel,
    ViTImageProcessorPil,
)

from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.features.store import FeatureError, FeatureStore
from hf_captioners.inference.extract_features import FeatureExtractor, write_features


@pytest.fixture(scope="module")
def swin_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin")
    torch.manual_seed(0)
    SwinModel(
        SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    ).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mobilenet_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mobilenet")
    torch.manual_seed(0)
    MobileNetV2Model(MobileNetV2Config(image_size=64, depth_multiplier=0.35)).save_pretrained(folder)
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(
        folder
    )
    return folder


@pytest.fixture
def pictures(tmp_path):
    """Rows of pictures of several sizes and modes, and their folder."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, (mode, size) in enumerate([("RGB", (40, 30)), ("L", (20, 60)), ("RGBA", (32, 32)), ("P", (9, 9))]):
        noise = Image.effect_noise(size, 90)
        noise.convert(mode).save(folder / f"{number}.png")
    return folder


def rows_of(folder):
    paths = sorted(folder.iterdir())
    return datasets.Dataset.from_dict(
        {"image": [str(path) for path in paths], "image_id": [int(path.stem) for path in paths]},
        features=datasets.Features({"image": datasets.Image(), "image_id": datasets.Value("int64")}),
    )


class TestFeatures:
    @pytest.mark.parametrize("workers", [0, 2])
    def test_swin(self, swin_dir, pictures, tmp_path, workers):
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        rows = rows_of(pictures)
        summary = write_features(
            extractor, rows, tmp_path / "out", batch_size=3, dtype=torch.float32, num_workers=workers
        )
        assert (summary.count, summary.added, summary.errors) == (4, 4, {})
        store = FeatureStore(tmp_path / "out")
        assert summary.num_bytes == store.num_bytes
        model, processor = AutoModel.from_pretrained(swin_dir), AutoImageProcessor.from_pretrained(swin_dir)
        for image_id in (0, 1):  # those that need no decision on transparency
            image = Image.open(pictures / f"{image_id}.png").convert("RGB")
            with torch.no_grad():
                expected = model(**processor(images=image, return_tensors="pt")).last_hidden_state[0]
            torch.testing.assert_close(store[image_id], expected, atol=1e-5, rtol=1e-5)

    def test_grid_of_a_convolutional_network(self, mobilenet_dir, pictures, tmp_path):
        extractor = FeatureExtractor.from_pretrained(mobilenet_dir, "cpu")
        write_features(extractor, rows_of(pictures), tmp_path / "out", dtype=torch.float32)
        features = FeatureStore(tmp_path / "out")[0]
        pixels = extractor.image_processor(images=Image.open(pictures / "0.png").convert("RGB"), return_tensors="pt")
        with torch.no_grad():
            grid = extractor.model(**pixels).last_hidden_state[0]  # channels, rows, columns
        assert features.shape == (grid.shape[1] * grid.shape[2], grid.shape[0])
        torch.testing.assert_close(features[1], grid[:, 0, 1], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(features[grid.shape[2]], grid[:, 1, 0], atol=1e-5, rtol=1e-5)

    def test_captioner_gives_the_same_caption_from_its_features(self, tiny_captioner_dir, pictures, tmp_path):
        from hf_captioners import ExpansionNetV2ForImageCaptioning, ExpansionNetV2Processor

        extractor = FeatureExtractor.from_pretrained(tiny_captioner_dir, "cpu")
        write_features(extractor, rows_of(pictures), tmp_path / "out", dtype=torch.float32)
        store = FeatureStore(tmp_path / "out")
        model = ExpansionNetV2ForImageCaptioning.from_pretrained(tiny_captioner_dir).eval()
        processor = ExpansionNetV2Processor.from_pretrained(tiny_captioner_dir)
        images = [Image.open(pictures / f"{image_id}.png").convert("RGB") for image_id in (0, 1)]
        from_pixels = model.generate(**processor(images=images), max_length=10)
        from_store = model.generate(**processor(image_features=[store[0], store[1]]), max_length=10)
        assert torch.equal(from_pixels, from_store)

    @pytest.mark.parametrize("pooled", [False, True])
    def test_captioner_has_its_own_way(self, tiny_captioner_dir, pictures, pooled):
        extractor = FeatureExtractor.from_pretrained(tiny_captioner_dir, "cpu", pooled)
        pixels = extractor.image_processor(images=Image.open(pictures / "0.png"), return_tensors="pt")["pixel_values"]
        extractor.model.freeze_backbone()
        assert torch.equal(extractor(pixels), extractor.model.extract_image_features(pixels))
        assert extractor.metadata()["backbone"] == tiny_captioner_dir.name

    def test_real_backbone_and_pictures(self, shared_data, tmp_path):
        folder = shared_data / "coco_mini"
        rows = load_karpathy(
            folder / "dataset_karpathy.json", folder / "images", "test", cache_dir=tmp_path / "cache"
        ).select(range(6))
        extractor = FeatureExtractor.from_pretrained(shared_data / "vision_backbone", "cpu")
        write_features(extractor, rows, tmp_path / "out", dtype=torch.float32)
        store = FeatureStore(tmp_path / "out")
        assert store.metadata["backbone"] == "vision_backbone"
        assert store[rows[0]["image_id"]].shape == (49, 1280)
        pooled = torch.stack([store[image_id].mean(0) for image_id in rows["image_id"]])
        pixels = extractor.image_processor(images=[row["image"].convert("RGB") for row in rows], return_tensors="pt")
        with torch.no_grad():
            expected = extractor.model(**pixels).pooler_output
        torch.testing.assert_close(pooled, expected, atol=1e-4, rtol=1e-4)

    def test_in_bfloat16(self, swin_dir, pictures, tmp_path):
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu", backbone_dtype=torch.bfloat16)
        write_features(extractor, rows_of(pictures), tmp_path / "out", dtype=torch.float32)
        store, model = FeatureStore(tmp_path / "out"), AutoModel.from_pretrained(swin_dir, dtype=torch.bfloat16)
        prepare = AutoImageProcessor.from_pretrained(swin_dir, backend="pil")
        for row in rows_of(pictures):
            pixels = prepare(row["image"].convert("RGB"), return_tensors="pt")["pixel_values"].bfloat16()
            with torch.no_grad():
                expected = model(pixels).last_hidden_state[0]
            if row["image"].mode == "RGB":
                torch.testing.assert_close(store[row["image_id"]], expected.float(), rtol=0.02, atol=0.05)
        assert store.metadata["backbone_dtype"] == "bfloat16"


class TestBrokenPictures:
    def test_are_named_and_the_rest_go_on(self, swin_dir, pictures, tmp_path, caplog):
        (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:60])
        (pictures / "2.png").write_bytes(b"")
        (pictures / "3.png").write_text("not a picture")
        rows = rows_of(pictures)
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        summary = write_features(extractor, rows, tmp_path / "out", batch_size=2)
        assert (summary.count, summary.added, sorted(summary.errors)) == (1, 1, [1, 2, 3])
        assert all(str(pictures / f"{image_id}.png") in reason for image_id, reason in summary.errors.items())
        assert caplog.text.count("has no features") == 3
        store = FeatureStore(tmp_path / "out")
        assert (store.ids, store.errors) == ([0], summary.errors)

    def test_a_later_run_tries_only_them_again(self, swin_dir, pictures, tmp_path, monkeypatch):
        whole = (pictures / "1.png").read_bytes()
        (pictures / "1.png").write_bytes(whole[:60])
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        write_features(extractor, rows_of(pictures), tmp_path / "out")
        (pictures / "1.png").write_bytes(whole)
        for image_id in (0, 2, 3):
            (pictures / f"{image_id}.png").write_bytes(b"not looked at")
        summary = write_features(extractor, rows_of(pictures), tmp_path / "out")
        assert (summary.count, summary.added, summary.errors) == (4, 1, {})
        assert FeatureStore(tmp_path / "out").errors == {}

    def test_features_that_are_no_numbers(self, swin_dir, pictures, tmp_path):
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        with torch.no_grad():
            extractor.model.layernorm.bias.fill_(1e6)
        summary = write_features(extractor, rows_of(pictures), tmp_path / "out")
        assert len(summary.errors) == 4
        assert "features in float16 have NaN or infinity, too large for it" in summary.errors[0]


class TestResuming:
    def test_other_weights_or_preprocessing(self, swin_dir, pictures, tmp_path):
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        write_features(extractor, rows_of(pictures), tmp_path / "out")
        extractor.image_processor.image_mean = [0.1, 0.1, 0.1]
        with pytest.raises(FeatureError, match="image_processor_sha256"):
            write_features(extractor, rows_of(pictures), tmp_path / "out")
        again = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        with torch.no_grad():
            again.model.layernorm.bias += 1
        with pytest.raises(FeatureError, match="backbone_sha256"):
            write_features(again, rows_of(pictures), tmp_path / "out")

    def test_another_precision(self, swin_dir, pictures, tmp_path):
        write_features(FeatureExtractor.from_pretrained(swin_dir, "cpu"), rows_of(pictures), tmp_path / "out")
        half = FeatureExtractor.from_pretrained(swin_dir, "cpu", backbone_dtype=torch.bfloat16)
        with pytest.raises(FeatureError, match="backbone_dtype"):
            write_features(half, rows_of(pictures), tmp_path / "out")

    def test_metadata_is_the_same_for_the_same_folder(self, swin_dir):
        first, second = (FeatureExtractor.from_pretrained(swin_dir, "cpu").metadata() for _ in range(2))
        assert first == second
        assert first["backbone"] == swin_dir.name


class TestRefused:
    def test_dataset(self, swin_dir, pictures, tmp_path):
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        rows = rows_of(pictures)
        for size in (0, -1):
            with pytest.raises(ValueError, match=f"batch_size={size} must be 1 or more"):
                write_features(extractor, rows, tmp_path / "out", batch_size=size)
        with pytest.raises(ValueError, match="the dataset has no column image_id"):
            write_features(extractor, rows.remove_columns("image_id"), tmp_path / "out")
        with pytest.raises(ValueError, match="4 rows but 3 different values of image_id"):
            write_features(
                extractor, rows.remove_columns("image_id").add_column("image_id", [1, 2, 3, 1]), tmp_path / "out"
            )
        assert not (tmp_path / "out").exists()

    def test_pictures_of_different_sizes_in_a_batch(self, swin_dir, pictures, tmp_path):
        extractor = FeatureExtractor.from_pretrained(swin_dir, "cpu")
        extractor.image_processor.do_resize = False
        with pytest.raises(ValueError, match="expected batch_size=1"):
            write_features(extractor, rows_of(pictures), tmp_path / "out")

    def test_captioner_without_backbone(self, tiny_captioner_dir):
        model = AutoModel.from_pretrained(tiny_captioner_dir)
        model.backbone = None
        with pytest.raises(ValueError, match="this expansionnet_v2 was made for cached features and has no backbone"):
            FeatureExtractor(model, None)

    def test_model_that_wants_text(self):
        tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = CLIPModel(CLIPConfig(text_config=tower, vision_config={**tower, "image_size": 8, "patch_size": 4}))
        with pytest.raises(ValueError, match="a clip takes input_ids, not pictures alone"):
            FeatureExtractor(model, None)

    def test_folder_and_device(self, swin_dir, tmp_path):
        with pytest.raises(ValueError, match="no model with an image processor could be loaded"):
            FeatureExtractor.from_pretrained(tmp_path)
        for device in ("gpu", "cuda:99"):
            with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
                FeatureExtractor.from_pretrained(swin_dir, device)
