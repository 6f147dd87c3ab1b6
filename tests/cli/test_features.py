"""`hf-captioners features`: the exit status, the summary on stdout, and mistakes in the arguments."""

import base64
import json
import sys
import tarfile
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_captioners import DicoCaptionerConfig, DicoForImageCaptioning
from hf_captioners.cli import features
from hf_captioners.cli.main import build_parser, main
from hf_captioners.data.captions.karpathy import SPLITS
from hf_captioners.data.features.store import DTYPES, FeatureStore


@pytest.fixture
def arguments(tmp_path, tiny_captioner_dir, monkeypatch):
    """Arguments for three pictures, one in each of train, val and test; the cache of `datasets` is the test's own."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "images").mkdir()
    images = []
    for number, split in enumerate(("train", "val", "test")):
        Image.effect_noise((40, 30), 90).save(tmp_path / "images" / f"{number}.png")
        sentences = [{"raw": "a red circle", "sentid": number}]
        images.append({"filename": f"{number}.png", "imgid": number, "split": split, "sentences": sentences})
    (tmp_path / "dataset.json").write_text(json.dumps({"images": images}))
    return {
        "--model": str(tiny_captioner_dir),
        "--annotations": str(tmp_path / "dataset.json"),
        "--image-root": str(tmp_path / "images"),
        "--out": str(tmp_path / "out"),
        "--device": "cpu",
    }


def run(arguments, *more):
    return main(["features", *(part for pair in arguments.items() for part in pair), *more])


def test_summary(arguments, tmp_path, capfd):
    assert run(arguments) == 0
    store = FeatureStore(tmp_path / "out")
    assert store.ids == [0, 1, 2]
    (line,) = capfd.readouterr().out.splitlines()
    assert json.loads(line) == {
        "folder": str(tmp_path / "out"),
        "count": 3,
        "added": 3,
        "errors": 0,
        "bytes": store.num_bytes,
    }


def test_options(arguments, tmp_path):
    assert run(arguments, "--splits", "val", "test", "--dtype", "float32", "--batch-size", "1") == 0
    store = FeatureStore(tmp_path / "out")
    assert (store.ids, str(store.dtype)) == ([1, 2], "torch.float32")
    assert run(arguments, "--dtype", "float32", "--shard-size-mb", "1") == 0
    assert sorted(FeatureStore(tmp_path / "out").ids) == [0, 1, 2]


def test_data_sets_that_have_their_pictures(arguments, tmp_path, capfd):
    """Of tars and of Parquet, with the ids that training gives their rows."""
    table = {"image": [str(tmp_path / "images" / f"{number}.png") for number in range(2)], "text": ["a", "b"]}
    rows = datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())
    rows.to_parquet(tmp_path / "parquet" / "train.parquet")
    (tmp_path / "1.txt").write_text("a dog")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "images" / "1.png", "1.png")
        tar.add(tmp_path / "1.txt", "1.txt")
    rest = {name: arguments[name] for name in ("--model", "--device")}
    assert run({**rest, "--dataset": str(tmp_path / "parquet"), "--out": str(tmp_path / "x")}) == 0
    assert FeatureStore(tmp_path / "x").ids == ["0.png", "1.png"]
    assert run({**rest, "--annotations": str(tmp_path / "a.tar"), "--out": str(tmp_path / "y")}) == 0
    assert FeatureStore(tmp_path / "y").ids == [1]
    capfd.readouterr()
    assert run(arguments, "--id-column", "x") == 2 and "--id-column is of --dataset" in capfd.readouterr().err


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_grid_of_a_whole_clip_is_what_dico_sees(arguments, tmp_path, dtype):
    """Of the vision tower the class token and the grid, before the last layer norm."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**size, "image_size": 32, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config={**size, "vocab_size": 30}, vision_config=vision, projection_dim=8))
    clip.vision_model.post_layernorm.weight.data.fill_(3.0)
    clip.to(getattr(torch, dtype)).save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(tmp_path / "clip")
    clip_arguments = {**arguments, "--model": str(tmp_path / "clip"), "--tokens": "grid", "--dtype": "float32"}
    assert run(clip_arguments) == 0
    store = FeatureStore(tmp_path / "out")
    config = DicoCaptionerConfig(d_model=8, encoder_attention_heads=2, decoder_attention_heads=2, vocab_size=30)
    model = DicoForImageCaptioning.from_backbone(tmp_path / "clip", config).eval()
    model.freeze_backbone()
    processor = AutoImageProcessor.from_pretrained(tmp_path / "clip", backend="pil")
    pictures = [Image.open(tmp_path / "images" / f"{number}.png").convert("RGB") for number in range(3)]
    expected = model.extract_image_features(processor(pictures, return_tensors="pt")["pixel_values"])
    assert expected.shape == (3, 17, 16)
    assert torch.equal(torch.stack([store[number] for number in range(3)]), expected.float())


def test_broken_picture(arguments, tmp_path, capfd, caplog):
    (tmp_path / "images" / "1.png").write_bytes(b"")
    assert run(arguments) == 1
    summary = json.loads(capfd.readouterr().out)
    assert (summary["count"], summary["errors"]) == (2, 1)
    assert str(tmp_path / "images" / "1.png") in caplog.text


def test_missing_picture(arguments, tmp_path, capfd):
    (tmp_path / "images" / "1.png").unlink()
    assert run(arguments) == 2
    assert "1 of 3 image files are missing" in capfd.readouterr().err
    assert run(arguments, "--on-bad-row", "skip") == 0
    assert json.loads(capfd.readouterr().out)["count"] == 2


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--model", "{tmp}/none", "could be loaded: there is no such file or folder"),
        ("--annotations", "{tmp}/none.json", "file of captions not found: "),
        ("--annotations", "{tmp}/images/0.png", "0.png: line 1: not UTF-8"),
        ("--image-root", "{tmp}/none", "no such folder"),
        ("--out", "{tmp}/dataset.json", "File exists"),
        ("--device", "gpu", "device 'gpu' cannot be used"),
    ],
)
def test_mistakes_are_one_line(arguments, tmp_path, capfd, option, value, message):
    assert run({**arguments, option: value.format(tmp=tmp_path)}) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    line = captured.err.splitlines()[-1]
    assert line.startswith("hf-captioners features: error: ")
    assert message in line


def test_folder_with_features_made_otherwise(arguments, capfd):
    assert run(arguments) == 0
    assert run(arguments, "--dtype", "float32") == 2
    assert "dtype: 'float16' there, 'float32' now" in capfd.readouterr().err


def test_a_full_disk_has_its_own_status(arguments, capfd, monkeypatch):
    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with monkeypatch.context() as patch:
        patch.setattr("hf_captioners.data.features.store.save_file", full)
        assert run(arguments) == 3
    assert "No space left on device: '" in (err := capfd.readouterr().err)
    assert "features-00000.safetensors" in err and "Traceback" not in err
    assert run(arguments) == 0  # goes on where it was


@pytest.mark.parametrize("option", [["--batch-size", "0"], ["--num-workers", "-1"], ["--dtype", "int8"]])
def test_wrong_values(arguments, option, capfd):
    with pytest.raises(SystemExit) as status:
        run(arguments, *option)
    assert status.value.code == 2
    assert f"argument {option[0]}" in capfd.readouterr().err


def test_choices_are_those_of_the_modules_that_own_them():
    assert features.SPLITS == SPLITS
    assert set(features.DTYPES) == set(DTYPES)


class TestConfig:
    def test_gives_what_the_command_line_does_not(self, arguments, tmp_path):
        path = tmp_path / "features.yaml"
        options = {name.removeprefix("--").replace("-", "_"): value for name, value in arguments.items()}
        path.write_text(json.dumps({**options, "dtype": "float32", "splits": ["train", "val"]}))  # JSON is YAML
        assert main(["features", "--config", str(path)]) == 0
        store = FeatureStore(tmp_path / "out")
        assert (store.ids, store.dtype) == ([0, 1], DTYPES["float32"])

    @pytest.mark.parametrize("first", [True, False])
    def test_the_command_line_wins_even_with_a_default(self, arguments, tmp_path, first):
        path = tmp_path / "features.yaml"
        path.write_text("dtype: float32\n")
        config, given = ["--config", str(path)], ["--dtype", "float16"]
        assert run(arguments, *(config + given if first else given + config)) == 0
        assert FeatureStore(tmp_path / "out").dtype == DTYPES["float16"]

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ("dtype: float12\n", "argument --dtype: invalid choice: 'float12'"),
            ("batch_size: none\n", "argument --batch-size: 'none' is not a whole number"),
            ("batchsize: 4\n", "unrecognized arguments: --batchsize"),
            ("just words\n", "must be lines of `option: value`"),
            ("dtype: [\n", "features.yaml, line 2, column 1: expected the node content"),
            (None, "No such file"),
        ],
    )
    def test_mistakes(self, arguments, tmp_path, capsys, content, message):
        path = tmp_path / "features.yaml"
        if content is not None:
            path.write_text(content)
        try:
            status = run(arguments, "--config", str(path))
        except SystemExit as stop:  # of argparse
            status = stop.code
        assert status == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("phase", ["expansionnet_v2/1_features", "expansionnet_v2/4_features", "dico/0_features"])
    def test_the_recipes_are_understood(self, phase):
        recipe = f"examples/recipes/{phase}.yaml"
        root = Path(features.__file__).parents[2]
        args = build_parser().parse_args(features.with_config(["features", "--config", str(root / recipe)]))
        assert (args.dtype, args.batch_size, args.num_workers) == ("float16", 16, 4)


class TestRegions:
    @pytest.fixture
    def regions(self, tmp_path):
        """Region features and boxes of two images of 40 x 30 pixels, and options to store them."""
        for name in ("att", "box"):
            (tmp_path / name).mkdir()
        for image_id, number in ((7, 3), (9, 2)):
            np.savez(tmp_path / "att" / f"{image_id}.npz", feat=np.full((number, 4), image_id, dtype=np.float32))
            np.save(tmp_path / "box" / f"{image_id}.npy", np.array([[0, 0, 10 * (i + 1), 30] for i in range(number)]))
        images = [{"id": image_id, "split": "train", "width": 40, "height": 30} for image_id in (7, 9)]
        (tmp_path / "cocotalk.json").write_text(json.dumps({"images": images}))
        return {"--regions": str(tmp_path / "att"), "--out": str(tmp_path / "out")}

    @pytest.fixture
    def boxes(self, tmp_path):
        return {"--boxes": str(tmp_path / "box"), "--image-sizes": str(tmp_path / "cocotalk.json")}

    def test_summary(self, regions, tmp_path, capfd):
        assert run(regions) == 0
        store = FeatureStore(tmp_path / "out")
        assert {image_id: tuple(store[image_id].shape) for image_id in store.ids} == {7: (3, 4), 9: (2, 4)}
        (line,) = capfd.readouterr().out.splitlines()
        assert json.loads(line) == {
            "folder": str(tmp_path / "out"),
            "count": 2,
            "added": 2,
            "errors": 0,
            "bytes": store.num_bytes,
        }

    def test_options(self, regions, boxes, tmp_path):
        config = tmp_path / "regions.yaml"
        config.write_text("norm: l2\ndtype: float32\n")
        assert run({**regions, **boxes}, "--config", str(config)) == 0
        # every feature of a region is 1 of 4 equal ones, and the largest box comes first
        assert FeatureStore(tmp_path / "out")[9].tolist() == [
            [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.5, 1.0, 0.5],
            [0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.25, 1.0, 0.25],
        ]

    def test_broken_file(self, regions, tmp_path, capfd, caplog):
        (tmp_path / "att" / "7.npz").write_bytes(b"")
        assert run(regions) == 1
        summary = json.loads(capfd.readouterr().out)
        assert (summary["count"], summary["errors"]) == (1, 1)
        assert str(tmp_path / "att" / "7.npz") in caplog.text
        assert run(regions, "--on-bad-row", "skip") == 0
        assert json.loads(capfd.readouterr().out)["errors"] == 1

    def test_tsv(self, regions, tmp_path, capfd, caplog):
        """Boxes and sizes of the same file; a line of too many regions and one that is cut off are left out."""
        rows = {7: 3, 9: 2, 11: 6}
        lines = []
        for image_id, number in rows.items():
            arrays = np.tile(np.float32([0, 0, 10, 30]), (number, 1)), np.ones((number, 4), dtype=np.float32)
            encoded = [base64.b64encode(array.tobytes()).decode() for array in arrays]
            lines.append("\t".join([str(image_id), "40", "30", str(number), *encoded]))
        (tmp_path / "r.tsv").write_text("\n".join([*lines, "13\t40"]))
        tsv = {**regions, "--regions": str(tmp_path / "r.tsv"), "--boxes": str(tmp_path / "r.tsv")}
        assert run(tsv, "--max-regions", "5") == 2
        assert "r.tsv: line 4 has 2 fields, expected 6" in capfd.readouterr().err
        assert run(tsv, "--max-regions", "5", "--on-bad-row", "skip") == 0
        store = FeatureStore(tmp_path / "out")
        assert {image_id: tuple(store[image_id].shape) for image_id in store.ids} == {7: (3, 9), 9: (2, 9)}
        assert "line 3: features: has 6 regions, expected 1 to 5" in store.errors[11]
        assert "1 rows left out that cannot be used" in caplog.text

    @pytest.mark.parametrize(
        ("more", "message"),
        [
            ({"--regions": "{tmp}/none"}, "none: no such file"),
            ({"--regions": "{tmp}/cocotalk.json"}, "cocotalk.json: not a readable HDF5 file"),
            ({"--image-sizes": "{tmp}/none.json"}, "--image-sizes are for --boxes, which are in pixels"),
            ({"--boxes": "{tmp}/box"}, "boxes are in pixels: give boxes and image_sizes together"),
            ({"--boxes": "{tmp}/box", "--image-sizes": "{tmp}/none.json"}, "none.json"),
            ({"--model": "{tmp}"}, "--model does not go with --regions"),
            ({"--image-root": "{tmp}"}, "--image-root does not go with --regions"),
            ({"--splits": "val"}, "--splits does not go with --regions"),
        ],
    )
    def test_mistakes_are_one_line(self, regions, tmp_path, capfd, more, message):
        options = {name: value.format(tmp=tmp_path) for name, value in more.items()}
        assert run({**regions, **options}) == 2
        captured = capfd.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("hf-captioners features: error: ")
        assert message in line
        assert not (tmp_path / "out").exists()

    def test_options_of_regions_need_them(self, arguments, capfd):
        assert run(arguments, "--norm", "l2") == 2
        assert "--norm needs --regions" in capfd.readouterr().err
        for name in ("--model", "--annotations", "--image-root"):
            assert run({option: value for option, value in arguments.items() if option != name}) == 2
            assert "give --model, and --annotations with --image-root, --data-dir or" in capfd.readouterr().err

    def test_hdf5_without_h5py(self, regions, tmp_path, capfd, monkeypatch):
        monkeypatch.setitem(sys.modules, "h5py", None)
        (tmp_path / "regions.hdf5").touch()
        assert run({**regions, "--regions": str(tmp_path / "regions.hdf5")}) == 2
        assert 'pip install -e ".[h5]"' in capfd.readouterr().err
