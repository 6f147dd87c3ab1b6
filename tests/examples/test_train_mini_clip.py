"""The script from the command line to a CLIP model that scores captions, on drawn pictures."""

import json
import random
import runpy
from pathlib import Path

import datasets
import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    MobileNetV2Config,
    MobileNetV2ImageProcessorPil,
    MobileNetV2Model,
    SwinConfig,
    SwinModel,
)

from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.metrics import ClipScorer
from hf_captioners.metrics.clip.features import ClipFeatures
from hf_captioners.metrics.clip.retrieval import clip_recall
from hf_captioners.modeling.tokenization_words import build_vocabulary, build_word_tokenizer
from hf_captioners.training.clip_pairs import LastLayers, PairCollator, feature_maps

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OPTIONS = {
    "config": EXAMPLES / "recipes/mini_clip/flickr8k_mini.yaml",
    "per_device_train_batch_size": 4,
    "num_train_epochs": 2,
    "warmup_steps": 1,
    "text_width": 16,
    "text_ffn": 16,
    "projection_dim": 8,
    "min_count": 1,
}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(EXAMPLES / "train_mini_clip.py"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_sample_world(tmp_path_factory.mktemp("world"), num_train=8, num_val=3, num_test=3, size=32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A thin MobileNetV2 whose batch norm has seen pictures, so that features do not vanish."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    model = MobileNetV2Model(MobileNetV2Config(image_size=32, depth_multiplier=0.25, finegrained_output=False))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(torch.rand(32, 3, 32, 32) * 2 - 1)
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    MobileNetV2ImageProcessorPil(size={"shortest_edge": 40}, crop_size=size).save_pretrained(folder)
    return folder


@pytest.fixture()
def train(script, world, backbone, tmp_path, capsys):
    """Run the script; returns the folder and what it wrote to stdout."""

    def run(**options):
        files = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images", "backbone": backbone}
        given = {**OPTIONS, **files, "output_dir": tmp_path / "run", **options}
        script["main"]([word for key, value in given.items() for word in (f"--{key}", str(value))])
        return tmp_path / "run", capsys.readouterr().out

    return run


def changed_layers(folder, backbone):
    """The top-level parts of the vision tower that are no longer those of the backbone."""
    trained, before = AutoModel.from_pretrained(folder).vision_model.state_dict(), AutoModel.from_pretrained(backbone)
    names = {name for name, value in before.state_dict().items() if not torch.equal(trained[name], value)}
    assert set(trained) == set(before.state_dict())
    return {".".join(name.split(".")[:2]) if name.startswith("layer") else name.split(".")[0] for name in names}


class TestTheFolder:
    def test_scores_captions_of_pictures_and_has_the_recall_of_stdout(self, train, world):
        folder, printed = train()
        scorer = ClipScorer(folder)
        rows = load_karpathy(world / "dataset_karpathy.json", world / "images", split="test")
        captions = [several[0] for several in rows["captions"]]
        paths = [str(world / "images" / name) for name in rows["file_name"]]
        scores = scorer(paths, captions, list(rows["captions"]))
        assert set(scores.corpus) == {"clip_s", "ref_clip_s"}
        scorer.score(paths, ["zyzzyva " * 100] * 3)  # unknown words, and more of them than fit
        measured = json.loads(printed)
        assert json.loads((folder / "retrieval.json").read_text()) == measured
        for name, one in (("plain", ClipFeatures(folder)), ("with_prefix", scorer)):
            expected = clip_recall(paths, list(rows["captions"]), scorer=one).corpus
            assert measured[name] == pytest.approx(expected, abs=1e-4)

    def test_without_words_of_validation_and_test_pictures(self, train, world, tmp_path):
        content = json.loads((world / "dataset_karpathy.json").read_text())
        for row in content["images"]:
            if row["split"] != "train":
                row["sentences"][0]["raw"] = "a zyzzyva"
        (tmp_path / "changed.json").write_text(json.dumps(content))
        folder, _ = train(annotations=tmp_path / "changed.json", num_train_epochs=1)
        words = ClipFeatures(folder).tokenizer.get_vocab()
        assert "zyzzyva" not in words
        assert {"depicts", "circle"} <= set(words)

    @pytest.mark.parametrize(
        ("number", "expected"), [(0, set()), (1, {"conv_1x1"}), (3, {"conv_1x1", "layer.15", "layer.14"})]
    )
    def test_only_the_last_layers_learn(self, train, backbone, number, expected):
        folder, _ = train(vision_layers=number, vision_learning_rate=0.1, num_train_epochs=1)
        assert changed_layers(folder, backbone) == expected

    def test_best_epoch_by_recall(self, train):
        folder, _ = train(num_train_epochs=4)
        state = json.loads((folder / "trainer_state.json").read_text())
        recalls = [row["eval_recall"] for row in state["log_history"] if "eval_recall" in row]
        assert len(recalls) == 4
        assert state["best_metric"] == max(recalls)

    def test_learns_its_pictures(self, train, world):
        options = {
            "views": 1,
            "vision_dropout": 0.0,
            "word_dropout": 0.0,
            "learning_rate": 0.01,
            "weight_decay": 0.0,
            "seed": 3,
        }
        options |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False}
        folder, _ = train(num_train_epochs=60, **options)
        rows = load_karpathy(world / "dataset_karpathy.json", world / "images", split="train")
        scores = clip_recall(list(rows["image"]), list(rows["captions"]), scorer=ClipFeatures(folder), ks=[1])
        assert scores.corpus["text_to_image_recall_at_1"] > 0.8  # by chance 1 / 8


class TestParts:
    @pytest.mark.parametrize("number", [0, 1, 4, 18])
    def test_last_layers_after_feature_maps_are_the_backbone(self, backbone, number):
        model = AutoModel.from_pretrained(backbone).eval()
        pixels = torch.randint(-64, 65, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)) / 64
        maps = feature_maps(model, number, pixels)
        with torch.no_grad():
            pooled = LastLayers(model, number)(maps).pooler_output
            torch.testing.assert_close(pooled, model(pixels).pooler_output, atol=2e-2, rtol=2e-2)  # float16 in between

    def test_batch_norm_stays_as_it_is(self, backbone):
        last = LastLayers(AutoModel.from_pretrained(backbone), 2, 0.5).train()
        assert last.dropout.training
        assert not any(module.training for module in last.layer.modules())

    def test_batches(self):
        tokenizer = build_word_tokenizer(build_vocabulary(["a red dog", "A photo depicts "], 1))
        rows = [{"maps": torch.full((2, 1, 1, 1), float(row)), "captions": ["a red dog", "red"]} for row in range(4)]
        random.seed(0)
        batch = PairCollator(tokenizer, 0.0, 0.0)(rows)
        assert batch["pixel_values"].flatten().tolist() == [0, 1, 2, 3]
        texts = tokenizer.batch_decode(batch["input_ids"], skip_special_tokens=True)
        assert len(texts) == 4 and set(texts) == {"a red dog", "red"}
        batch = PairCollator(tokenizer, 1.0, 1.0)(rows)
        words = set(batch["input_ids"].flatten().tolist())
        assert words <= {getattr(tokenizer, f"{name}_token_id") for name in ("unk", "bos", "eos", "pad")}
        assert batch["input_ids"].shape[1] == 2 + 3 + 3 or batch["input_ids"].shape[1] == 2 + 3 + 1


class TestErrors:
    def test_another_backbone(self, train, tmp_path):
        config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
        SwinModel(config).save_pretrained(tmp_path / "swin")
        with pytest.raises(SystemExit, match="a SwinModel; expected a MobileNetV2Model"):
            train(backbone=tmp_path / "swin")

    def test_too_many_layers(self, train):
        with pytest.raises(SystemExit, match="--vision_layers 40: expected 0 to 18"):
            train(vision_layers=40)

    def test_no_such_split(self, train):
        with pytest.raises(SystemExit, match="'dev' is not a split"):
            train(eval_split="dev")
