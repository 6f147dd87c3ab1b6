"""The training script from the command line to a captioner that captions, for every source of pictures."""

import json
import runpy
import shutil
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, SwinConfig, SwinModel, ViTImageProcessorPil

import hf_captioners
from hf_captioners import ExpansionNetV2ForImageCaptioning, FeatureStore, load_karpathy
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.training.data_arguments import DataArguments, load_rows

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "train_expansionnet_v2.py"

CONFIG = """
model_type: expansionnet_v2
new_captioner:
  d_model: 16
  encoder_layers: 1
  decoder_layers: 1
  num_attention_heads: 2
  ffn_dim: 16
  encoder_expansion_groups: [2, 3]
  decoder_expansion_size: 2
  max_position_embeddings: 30
  min_count: 1
per_device_train_batch_size: 4
per_device_eval_batch_size: 4
captions_per_image: 1
max_steps: 50
learning_rate: 1.0e-2
save_strategy: "no"
report_to: none
disable_tqdm: true
use_cpu: true
seed: 1
"""


@pytest.fixture(scope="module")
def main():
    return runpy.run_path(str(SCRIPT))["main"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_sample_world(tmp_path_factory.mktemp("world"), num_train=8, num_val=3, num_test=1, size=32)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A Swin of a few thousand parameters and its image processor."""
    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinModel(config, add_pooling_layer=False).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def features(world, tmp_path_factory):
    """Cached features, eight numbers wide, of every picture."""
    folder = tmp_path_factory.mktemp("features")
    rows = json.loads((world / "dataset_karpathy.json").read_text())["images"]
    with FeatureWriter(folder, dtype=torch.float32) as writer:
        for row in rows:
            generator = torch.Generator().manual_seed(row["imgid"])
            writer.add(row["imgid"], torch.randn(5, 16, generator=generator))
    return folder


@pytest.fixture()
def train(main, tmp_path):
    """Run the script with the options of `CONFIG` and two steps; returns the output folder."""

    def run(*arguments, out="run"):
        (tmp_path / "options.yaml").write_text(CONFIG)
        main(["--config", str(tmp_path / "options.yaml"), "--output_dir", str(tmp_path / out), "--max_steps", "2"]
             + [str(one) for one in arguments])  # fmt: skip
        return tmp_path / out

    return run


def karpathy(world):
    return ["--annotations", world / "dataset_karpathy.json", "--image_root", world / "images"]


def caption(folder, picture):
    (result,) = hf_captioners.pipeline(model=str(folder))(picture)
    assert isinstance(result["generated_text"], str)
    return result["generated_text"]


def any_image(world):
    return str(next((world / "images").iterdir()))


class TestPictures:
    def test_with_a_backbone(self, train, world, backbone):
        sizes = ["--new_captioner", '{"d_model": 24}']
        out = train(*karpathy(world), "--backbone", backbone, *sizes, "--eval_strategy", "steps")
        caption(out, any_image(world))
        assert not list(out.rglob("*.py"))
        model, processor = AutoModelForImageTextToText.from_pretrained(out), AutoProcessor.from_pretrained(out)
        assert model.config.d_model == 24  # the command line wins, and the recipe's other sizes stay
        assert model.config.encoder_expansion_groups == [2, 3]
        assert model.config.feature_size == 16
        frozen = SwinModel.from_pretrained(backbone, add_pooling_layer=False).state_dict()
        assert all(torch.equal(model.backbone.state_dict()[name], value) for name, value in frozen.items())
        rows = load_karpathy(world / "dataset_karpathy.json", split="train")
        words = {word for several in rows["captions"] for text in several for word in text.lower().split()}
        assert words <= set(processor.tokenizer.get_vocab())
        assert model.config.eos_token_id == processor.tokenizer.eos_token_id
        state = json.loads((out / "trainer_state.json").read_text())
        assert state["global_step"] == 2
        assert [entry for entry in state["log_history"] if "eval_loss" in entry]

    def test_without_validation_pictures_in_the_vocabulary(self, train, world, tmp_path, backbone):
        content = json.loads((world / "dataset_karpathy.json").read_text())
        for row in content["images"]:
            if row["split"] == "val":
                row["sentences"][0]["raw"] = "a zyzzyva"
        (tmp_path / "changed.json").write_text(json.dumps(content))
        out = train(
            "--annotations", tmp_path / "changed.json", "--image_root", world / "images", "--backbone", backbone
        )
        assert "zyzzyva" not in AutoProcessor.from_pretrained(out).tokenizer.get_vocab()

    def test_going_on_from_a_captioner(self, train, world, backbone):
        first = train(*karpathy(world), "--backbone", backbone, "--train_backbone", "all")
        model = ExpansionNetV2ForImageCaptioning.from_pretrained(first)
        model.generation_config.num_beams = 2
        model.save_pretrained(first)
        rates = {f"{name}_dropout": 0.25 for name in ("encoder", "decoder", "other")}
        changes = json.dumps({**rates, "vision_config": {"drop_path_rate": 0.2}})
        options = ["--model_options", changes, "--learning_rate", "0"]
        second = train(*karpathy(world), "--model", first, *options, out="second")
        continued = ExpansionNetV2ForImageCaptioning.from_pretrained(second)
        assert [getattr(continued.config, f"{name}_dropout") for name in ("encoder", "decoder", "other")] == [0.25] * 3
        assert continued.config.vision_config.drop_path_rate == 0.2
        assert continued.config.vision_config.embed_dim == model.config.vision_config.embed_dim == 8
        assert continued.config.encoder_input_dropout == 0.3
        assert continued.decoders[0].dropout.p == 0.25
        assert continued.generation_config.to_dict() == model.generation_config.to_dict()
        for name, value in model.state_dict().items():
            assert torch.equal(continued.state_dict()[name], value), name
        assert caption(second, any_image(world)) == caption(first, any_image(world))


class TestFeatures:
    def test_a_captioner_of_features(self, train, world, features):
        out = train("--annotations", world / "dataset_karpathy.json", "--features", features)
        model = AutoModelForImageTextToText.from_pretrained(out)
        assert model.backbone is None
        assert model.config.feature_size == 16
        store = FeatureStore(features)
        caption(out, store[store.ids[0]])

    def test_with_the_backbone_that_made_them(self, train, world, features, backbone):
        out = train("--annotations", world / "dataset_karpathy.json", "--features", features, "--backbone", backbone)
        caption(out, any_image(world))
        store = FeatureStore(features)
        caption(out, store[store.ids[0]])


class TestFolder:
    def folder(self, tmp_path, world, **splits):
        rows = json.loads((world / "dataset_karpathy.json").read_text())["images"]
        for name, count in splits.items():
            (tmp_path / "data" / name).mkdir(parents=True)
            lines = []
            for row in rows[:count]:
                shutil.copy(world / "images" / row["filename"], tmp_path / "data" / name)
                captions = [sentence["raw"] for sentence in row["sentences"]]
                lines.append(json.dumps({"file_name": row["filename"], "captions": captions}))
            (tmp_path / "data" / name / "metadata.jsonl").write_text("\n".join(lines))
        return tmp_path / "data"

    @pytest.mark.parametrize("splits", [{"train": 6, "validation": 2}, {"train": 6}, {"train": 6, "test": 2}])
    def test_train_and_validation(self, train, world, tmp_path, backbone, splits):
        evaluated = ["--eval_strategy", "steps"] if "validation" in splits else []
        out = train("--data_dir", self.folder(tmp_path, world, **splits), "--backbone", backbone, *evaluated)
        caption(out, any_image(world))
        history = json.loads((out / "trainer_state.json").read_text())["log_history"]
        assert bool([entry for entry in history if "eval_loss" in entry]) == bool(evaluated)

    def test_rows(self, tmp_path, world):
        train, validation = load_rows(DataArguments(data_dir=str(self.folder(tmp_path, world, train=6, validation=2))))
        assert all(name.startswith("train/") for name in train["image_id"][:])
        assert len(train[0]["captions"]) == 5
        assert isinstance(train[0]["image"], Image.Image)
        assert len(validation) == 2

    def test_no_training_pictures(self, train, tmp_path, world):
        with pytest.raises(SystemExit, match="no train/ in it, but validation"):
            train("--data_dir", self.folder(tmp_path, world, validation=2), "--backbone", "no_such")

    def test_no_captions(self, train, tmp_path, world):
        folder = self.folder(tmp_path, world, train=2)
        (folder / "train" / "metadata.jsonl").unlink()
        with pytest.raises(SystemExit, match=r"pictures of train/ have no captions in a metadata\.jsonl"):
            train("--data_dir", folder, "--backbone", "no_such")


class TestErrors:
    @pytest.mark.parametrize("arguments", [[], ["--annotations", "a.json", "--data_dir", "b"]])
    def test_one_source(self, train, arguments):
        with pytest.raises(SystemExit, match=r"give --annotations .*, --data_dir .* or --dataset_name .*, one of them"):
            train(*arguments, "--backbone", "no_such")

    def test_drop_path_without_a_backbone(self, train, world, features):
        cached = ["--annotations", world / "dataset_karpathy.json", "--features", features]
        first = train(*cached)
        changes = ["--model_options", json.dumps({"vision_config": {"drop_path_rate": 0.1}})]
        with pytest.raises(SystemExit, match="--model_options vision_config: this expansionnet_v2 has none"):
            train(*cached, "--model", first, *changes, out="second")

    def test_help_names_every_option(self, main, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        names = ["annotations", "model_type", "new_captioner", "train_backbone", "captions_per_image", "learning_rate"]
        places = [text.index(f"--{name}") for name in names]
        assert places == sorted(places)  # the project's own options first, transformers' behind them
