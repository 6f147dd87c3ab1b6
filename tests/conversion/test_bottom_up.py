"""Conversion of the bottom-up detector. That its numbers are the originals' is tests/parity/test_bottom_up.py."""

from __future__ import annotations

import codecs
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModel

from hf_captioners import BottomUpConfig, BottomUpForRegionFeatures
from hf_captioners.conversion.bottom_up import ANCHORS, convert
from hf_captioners.conversion.pickled_arrays import load_pickled_arrays
from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.conversion.writing import ConversionError

HEAD = "proposal_generator.rpn_head"
PREDICTOR = "roi_heads.box_predictor"
OURS_TO_CAFFE = {"cls_embedding": "cls_embed", "fc_attr": "attr_linear1", "attr_score": "attr_linear2"}


def tiny(preset: str, **changes: object) -> BottomUpForRegionFeatures:
    torch.manual_seed(0)
    sizes = {"depths": [1, 2, 1, 3], "stem_channels": 4, "res2_channels": 8, "bottleneck_width": 4, "rpn_channels": 6}
    sizes |= {"num_labels": 5, "num_attributes": 3, "embedding_size": 2, "attribute_hidden_size": 7}
    sizes |= {"num_groups": 2} if preset == "vinvl" else {}
    model = BottomUpForRegionFeatures(BottomUpConfig.from_preset(preset, **{**sizes, **changes}))
    with torch.no_grad():
        for value in model.state_dict().values():
            value.uniform_(0.1, 1)
    return model


def caffe_state(model: BottomUpForRegionFeatures) -> dict[str, torch.Tensor]:
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in OURS_TO_CAFFE.items():
            name = name.replace(f"{PREDICTOR}.{ours}.", f"{PREDICTOR}.{theirs}.")
        state[name] = value
    return {**state, ANCHORS["detectron2"]: torch.tensor(model.config.anchors)}


def frcnn_state(model: BottomUpForRegionFeatures) -> dict[str, torch.Tensor]:
    counters = {
        name.replace("running_mean", "num_batches_tracked"): torch.tensor(0)
        for name in model.state_dict()
        if name.endswith("running_mean")
    }
    return {**model.state_dict(), **counters, ANCHORS["detectron2"]: torch.tensor(model.config.anchors)}


def vinvl_state(model: BottomUpForRegionFeatures) -> dict[str, torch.Tensor]:
    """In maskrcnn-benchmark's names, written down once more from the specification."""
    stages = {"res2": "layer1", "res3": "layer2", "res4": "layer3"}
    state = {}
    for name, value in model.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["backbone", "stem"]:
            new = f"backbone.body.stem.{'bn1' if parts[3] == 'norm' else 'conv1'}.{parts[-1]}"
        elif parts[0] == "backbone" or parts[1] == "res5":
            block, layer = parts[2], parts[3]
            normed = parts[4] == "norm"
            layer = {"shortcut": f"downsample.{int(normed)}"}.get(
                layer, layer.replace("conv", "bn") if normed else layer
            )
            start = (
                f"backbone.body.{stages[parts[1]]}"
                if parts[0] == "backbone"
                else "roi_heads.box.feature_extractor.head.layer4"
            )
            new = f"{start}.{block}.{layer}.{parts[-1]}"
        elif parts[0] == "proposal_generator":
            layer = {"conv": "conv", "objectness_logits": "cls_logits", "anchor_deltas": "bbox_pred"}[parts[2]]
            new = f"rpn.head.{layer}.{parts[3]}"
        else:
            box = parts[2] in ("cls_score", "bbox_pred")
            new = f"{'roi_heads.box' if box else 'attribute'}.predictor.{parts[2]}.{parts[3]}"
        state[new] = value
    copies = {
        name.replace("roi_heads.box.feature", "attribute.feature"): value
        for name, value in state.items()
        if name.startswith("roi_heads.box.feature")
    }
    return {**state, **copies, ANCHORS["maskrcnn"]: torch.tensor(model.config.anchors)}


STATES = {"caffe": caffe_state, "frcnn": frcnn_state, "vinvl": vinvl_state}


@pytest.fixture(params=["caffe", "frcnn", "vinvl"])
def layout(request) -> str:
    return request.param


class TestLayouts:
    @pytest.mark.parametrize("container", ["bare", "model"])
    def test_weights_and_settings(self, layout, container, tmp_path):
        model = tiny(layout)
        state = STATES[layout](model)
        torch.save(state if container == "bare" else {"model": state, "iteration": 3}, tmp_path / "model.pth")
        report = convert(tmp_path / "model.pth", tmp_path / "out")
        assert sorted([*report.used, *report.dropped]) == sorted(state)
        assert ANCHORS["maskrcnn" if layout == "vinvl" else "detectron2"] in report.used
        loaded = AutoModel.from_pretrained(tmp_path / "out")
        expected = model.state_dict()
        assert loaded.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
        theirs, ours = loaded.config.to_diff_dict(), model.config.to_diff_dict()
        assert theirs.pop("anchors") == torch.tensor(ours.pop("anchors")).tolist()  # as float32 has them
        assert {**theirs, "architectures": None} == {**ours, "architectures": None, "dtype": theirs.get("dtype")}
        assert (
            AutoImageProcessor.from_pretrained(tmp_path / "out").resize_rule
            == {
                "caffe": "caffe",
                "frcnn": "torch",
                "vinvl": "pil",
            }[layout]
        )

    def test_dropped(self, tmp_path):
        for preset, part in (("frcnn", "num_batches_tracked"), ("vinvl", "attribute.feature_extractor.")):
            torch.save(STATES[preset](tiny(preset)), tmp_path / f"{preset}.pth")
            report = convert(tmp_path / f"{preset}.pth", tmp_path / preset)
            assert report.dropped and all(part in name for name in report.dropped)

    def test_without_attributes(self, tmp_path):
        """As `faster_rcnn_from_caffe.pkl`, the one without `_attr`."""
        torch.save(frcnn_state(tiny("frcnn", num_attributes=0)), tmp_path / "model.pth")
        report = convert(tmp_path / "model.pth", tmp_path / "out")
        assert report.config.num_attributes == 0 and report.config.selection == "max_nms"

    def test_without_anchors_the_published_ones_are_assumed(self, layout, tmp_path):
        state = STATES[layout](tiny(layout))
        del state[ANCHORS["maskrcnn" if layout == "vinvl" else "detectron2"]]
        torch.save(state, tmp_path / "model.pth")
        report = convert(tmp_path / "model.pth", tmp_path / "out")
        assert report.config.anchors == BottomUpConfig.from_preset(layout).anchors and "anchors" in report.assumed

    def test_the_files_anchors_win(self, layout, tmp_path):
        state = STATES[layout](tiny(layout))
        name = ANCHORS["maskrcnn" if layout == "vinvl" else "detectron2"]
        state[name] = state[name] + 1 / 3
        torch.save(state, tmp_path / "model.pth")
        convert(tmp_path / "model.pth", tmp_path / "out")
        assert torch.equal(torch.tensor(AutoModel.from_pretrained(tmp_path / "out").config.anchors), state[name])


class TestPickles:
    def write(self, path: Path, content: object, protocol: int = 2) -> Path:
        path.write_bytes(pickle.dumps(content, protocol))
        return path

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_arrays(self, tmp_path, protocol):
        arrays = {
            "a": np.arange(6, dtype=np.float32).reshape(2, 3),
            "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
            "part": np.arange(12, dtype=np.int64).reshape(3, 4)[:, ::2],
            "number": np.array(3.5, dtype=np.float32),
            "bytes": np.array([-1e30, float(0x80), 255.0], dtype=np.float32),
        }
        path = self.write(tmp_path / "model.pkl", {"model": arrays, "__author__": "x"}, protocol)
        tensors = load_pickled_arrays(path)
        assert list(tensors) == list(arrays)
        for name, array in arrays.items():
            assert np.array_equal(tensors[name].numpy(), array) and tensors[name].shape == array.shape

    def test_a_checkpoint(self, tmp_path):
        state = frcnn_state(tiny("frcnn"))
        path = self.write(tmp_path / "model.pkl", {"model": {name: value.numpy() for name, value in state.items()}})
        convert(path, tmp_path / "out")
        loaded = AutoModel.from_pretrained(tmp_path / "out").state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.items())

    @pytest.mark.parametrize("wrap", [lambda arrays: arrays, lambda arrays: {"state_dict": {"module": arrays}}])
    @pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
    def test_keys_and_prefixes_of_wrappers(self, tmp_path, wrap, prefix):
        arrays = {f"{prefix}a.weight": np.ones(2), f"{prefix}b": np.zeros(3)}
        tensors = load_pickled_arrays(self.write(tmp_path / "model.pkl", wrap(arrays)))
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"a.weight": (2,), "b": (3,)}

    def test_a_file_of_torch_with_that_suffix(self, tmp_path):
        state = frcnn_state(tiny("frcnn"))
        torch.save({"model": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "model.pkl")
        convert(tmp_path / "model.pkl", tmp_path / "out")
        loaded = AutoModel.from_pretrained(tmp_path / "out").state_dict()
        assert all(torch.equal(value, state[name]) for name, value in loaded.items())

    def test_the_originals(self, shared_parity, tmp_path):
        """The same weights in both containers of case_a."""
        folder = shared_parity / "bottom_up_detector" / "case_a"
        for name in ("model.pkl", "pytorch_model.bin"):
            convert(folder / name, tmp_path / name, original_config=folder / "config.yaml")
        first, second = (AutoModel.from_pretrained(tmp_path / name) for name in ("model.pkl", "pytorch_model.bin"))
        settings = [{**model.config.to_dict(), "_name_or_path": None} for model in (first, second)]
        assert settings[0] == settings[1]
        expected = second.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in first.state_dict().items())

    def test_nothing_is_executed(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

        with pytest.raises(CheckpointError, match="exec"):
            load_pickled_arrays(self.write(tmp_path / "model.pkl", {"model": {"a": Evil()}}))
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({"model": {}}, "no dict of arrays"),
            ([1, 2], "no dict of arrays"),
            ({"model": {"a": 1.0}}, "'a' is a float"),
            ({"model": {"a": np.array(["x"])}}, "a: its numbers are of another type"),
            ({"model": {"a": np.array([1.0]).astype(">f4")}}, "a: its numbers are of another type"),
            ({"model": {3: np.array([1.0])}}, "expected only named arrays"),
        ],
    )
    def test_other_content(self, tmp_path, content, message):
        with pytest.raises(CheckpointError, match=message):
            load_pickled_arrays(self.write(tmp_path / "model.pkl", content))

    def test_arrays_that_share_their_numbers(self, tmp_path, monkeypatch):
        """200 names of one array of 100 kB would take 20 MB."""
        monkeypatch.setattr("hf_captioners.conversion.pickled_arrays.MAX_SHARED_BYTES", 10**7)
        array = np.zeros(25_000, np.float32)
        path = self.write(tmp_path / "model.pkl", {"model": {f"a{number}": array for number in range(50)}})
        assert len(load_pickled_arrays(path)) == 50
        path = self.write(tmp_path / "model.pkl", {"model": {f"a{number}": array for number in range(200)}})
        with pytest.raises(CheckpointError, match=r"its arrays share what is in the file; the limit is \d+ bytes"):
            load_pickled_arrays(path)

    def test_what_is_no_text_is_not_encoded(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return codecs.encode, ([["x"]], "latin1")

        with pytest.raises(CheckpointError, match="encodes something that is no text"):
            load_pickled_arrays(self.write(tmp_path / "model.pkl", {"model": {"a": Evil()}}))

    def test_a_shape_that_does_not_fit(self, tmp_path):
        text = pickle.dumps({"model": {"a": np.zeros(1000, dtype=np.float32)}}, 2)
        changed = text.replace(b"M\xe8\x03", b"M\xe9\x03")
        assert changed != text
        (tmp_path / "model.pkl").write_bytes(changed)
        with pytest.raises(CheckpointError, match=r"a: it has not as many bytes as its shape \[1001\] needs"):
            load_pickled_arrays(tmp_path / "model.pkl")


class TestConfigurations:
    @pytest.fixture
    def checkpoint(self, tmp_path) -> Path:
        torch.save(frcnn_state(tiny("frcnn")), tmp_path / "model.bin")
        return tmp_path / "model.bin"

    def convert(self, checkpoint: Path, config: object, **options: object):
        path = checkpoint.with_name("config.yaml")
        path.write_text(config if isinstance(config, str) else yaml.safe_dump(config))
        return convert(checkpoint, checkpoint.with_name("out"), original_config=path, **options)

    def test_settings(self, checkpoint):
        config = {
            "min_detections": 36,
            "max_detections": 36,
            "input": {"format": "BGR", "min_size_test": 800, "max_size_test": 1333},
            "model": {"pixel_mean": [1.0, 2.0, 3.0], "max_pool": True},
            "rpn": {"pre_nms_topk_test": 1000, "post_nms_topk_test": 200, "nms_thresh": 0.6},
            "roi_heads": {"num_classes": 5, "nms_thresh_test": 0.5},
            "roi_box_head": {"res5halve": True, "bbox_reg_weights": [1.0, 1.0, 2.0, 2.0]},
        }
        report = self.convert(checkpoint, config)
        fields = report.config
        assert (fields.min_regions, fields.max_regions, fields.rpn_pre_nms, fields.max_proposals) == (36, 36, 1000, 200)
        assert fields.nms_thresholds == [0.5] and fields.rpn_nms_threshold == 0.6 and not fields.res5_dilated
        assert fields.bbox_weights == [1.0, 1.0, 2.0, 2.0] and not report.assumed
        images = AutoImageProcessor.from_pretrained(report.out_dir)
        assert dict(images.size) == {"shortest_edge": 800, "longest_edge": 1333}
        assert list(images.image_mean) == [1.0, 2.0, 3.0]

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"input": {"format": "RGB"}}, "input.format is 'RGB', but this model knows 'BGR' only"),
            ({"roi_heads": {"num_classes": 1600}, "min_detections": 10}, "num_labels: .* says 1600, .* tensors say 5"),
            ({"min_detections": "many"}, "min_detections is 'many'"),
            ({"input": {"min_size_test": 600}}, "shortest_edge of the images only"),
            ({"MODEL": {"BUA": {"CAFFE": True}}}, "expected a configuration of the frcnn layout"),
            ({"min_detections": 50, "max_detections": 20}, "max_regions=20 is less than min_regions=50"),
            ("a: [", "not valid YAML"),
            ("just text", "holds a str"),
        ],
    )
    def test_refusals(self, checkpoint, config, message):
        with pytest.raises(ConversionError, match=message):
            self.convert(checkpoint, config)
        assert not checkpoint.with_name("out").exists()

    def test_milvlgs_other_networks(self, tmp_path):
        torch.save(caffe_state(tiny("caffe")), tmp_path / "model.pth")
        with pytest.raises(ConversionError, match=r"MODEL.BUA.RESNET_VERSION is 2"):
            convert(
                tmp_path / "model.pth",
                tmp_path / "out",
                original_config={"MODEL": {"BUA": {"RESNET_VERSION": 2}}},
            )

    def test_no_such_file(self, checkpoint):
        for option in ("original_config", "objects", "attributes"):
            with pytest.raises(FileNotFoundError, match="nothing"):
                convert(checkpoint, checkpoint.with_name("out"), **{option: checkpoint.with_name("nothing")})


class TestNames:
    def test_vocabularies(self, tmp_path):
        torch.save(caffe_state(tiny("caffe")), tmp_path / "model.pth")
        (tmp_path / "objects_vocab.txt").write_text("yolk\ngoal\nbathroom\nmacaroni,pasta\ntoothpick")
        (tmp_path / "attributes_vocab.txt").write_text("floral\nsemi circle,semicircle\nred\n")
        names = {"objects": tmp_path / "objects_vocab.txt", "attributes": tmp_path / "attributes_vocab.txt"}
        convert(tmp_path / "model.pth", tmp_path / "out", **names)
        config = AutoModel.from_pretrained(tmp_path / "out").config
        assert config.id2label == {0: "yolk", 1: "goal", 2: "bathroom", 3: "macaroni", 4: "toothpick"}
        assert config.id2attribute == {0: "floral", 1: "semi circle", 2: "red"}

    def test_vinvls(self, tmp_path):
        torch.save(vinvl_state(tiny("vinvl")), tmp_path / "model.pth")
        labels = {"__background__": 0, "man": 5, "dog": 1, "cat": 2, "tree": 3, "sky": 4}
        path = tmp_path / "dicts.json"
        path.write_text(json.dumps({"label_to_idx": labels, "attribute_to_idx": {"red": 1, "old": 2, "wet": 3}}))
        config = convert(tmp_path / "model.pth", tmp_path / "out", objects=path, attributes=path).config
        assert config.id2label == {0: "dog", 1: "cat", 2: "tree", 3: "sky", 4: "man"}
        assert config.id2attribute == {0: "red", 1: "old", 2: "wet"}

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("names.txt", "a\nb", "has 2 lines, but the checkpoint has 5 names"),
            ("names.json", '{"label_to_idx": {"a": 1}}', "numbers 1 names, but the checkpoint has 5"),
            ("names.json", "[]", "no 'label_to_idx'"),
        ],
    )
    def test_another_count(self, tmp_path, name, text, message):
        torch.save(caffe_state(tiny("caffe")), tmp_path / "model.pth")
        (tmp_path / name).write_text(text)
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / "model.pth", tmp_path / "out", objects=tmp_path / name)


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            (f"{PREDICTOR}.cls_score.weight", torch.zeros(9, 64), r"cls_score.bias has shape \[6\], expected \[9\]"),
            (f"{PREDICTOR}.bbox_pred.bias", None, "bbox_pred.bias is missing"),
            ("backbone.res4.0.conv2.norm.running_var", None, "running_var is missing"),
            ("backbone.fpn.weight", torch.zeros(2), "backbone.fpn.weight .* is not part of the model"),
            (f"{HEAD}.conv.weight", None, "conv.weight is missing"),
            (f"{HEAD}.anchor_deltas.weight", None, "not a bottom-up detector"),
        ],
    )
    def test_tensors(self, tmp_path, name, value, message):
        state = {**frcnn_state(tiny("frcnn")), name: value}
        torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "model.bin")
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / "model.bin", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                f"{PREDICTOR}.cls_score.weight",
                r"1 of \d+ weights are NaN or infinite in float32: .*cls_score.weight has 1",
            ),
            (ANCHORS["detectron2"], "are not boxes of four finite numbers"),
        ],
    )
    def test_numbers_that_are_none(self, tmp_path, name, message):
        state = {name: value.clone() for name, value in frcnn_state(tiny("frcnn")).items()}
        state[name][0, 0] = float("nan")
        torch.save(state, tmp_path / "model.bin")
        with pytest.raises(ConversionError, match=message):
            convert(tmp_path / "model.bin", tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_a_convention_that_does_not_fit(self, tmp_path):
        torch.save(caffe_state(tiny("caffe")), tmp_path / "model.pth")
        with pytest.raises(ConversionError, match="cannot follow convention='frcnn'"):
            convert(tmp_path / "model.pth", tmp_path / "out", convention="frcnn")


class TestConvention:
    """A checkpoint written down the other way, by the relation of the two layouts, has Caffe's regions."""

    @staticmethod
    def as_frcnn(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Logit = foreground - background; background's row last; box deltas without it, times their weights."""
        state = {name.replace("cls_embed.", "cls_embedding."): value.double() for name, value in state.items()}
        state = {name.replace("attr_linear1.", "fc_attr."): value for name, value in state.items()}
        state = {name.replace("attr_linear2.", "attr_score."): value for name, value in state.items()}
        for part in ("weight", "bias"):
            background, foreground = state[f"{HEAD}.objectness_logits.{part}"].chunk(2)
            state[f"{HEAD}.objectness_logits.{part}"] = foreground - background
            for layer in ("cls_score", "cls_embedding", "attr_score"):
                if (name := f"{PREDICTOR}.{layer}.{part}") in state:
                    state[name] = state[name].roll(-1, 0)
            deltas = state[f"{PREDICTOR}.bbox_pred.{part}"].unflatten(0, (-1, 4))[1:]
            weights = torch.tensor([10.0, 10, 5, 5]).view(4, *[1] * (deltas.ndim - 2))
            state[f"{PREDICTOR}.bbox_pred.{part}"] = (deltas * weights).flatten(0, 1)
        return {name: value.float() for name, value in state.items()}

    def test_case_b(self, shared_parity, shared_data, tmp_path):
        folder = shared_parity / "bottom_up_detector" / "case_b"
        caffe_state = torch.load(folder / "model.pth", weights_only=True)["model"]
        state = self.as_frcnn({name: value for name, value in caffe_state.items() if "num_batches" not in name})
        anchors = state[ANCHORS["detectron2"]]
        sizes = ((anchors[:, 2:] - anchors[:, :2] + 1).prod(1).sqrt() / 16).round() * 16
        ratios = torch.tensor([0.5, 1.0, 2.0]).repeat_interleave(4)
        half = torch.stack((sizes / ratios.sqrt(), sizes * ratios.sqrt()), dim=1) / 2
        state[ANCHORS["detectron2"]] = torch.cat((-half, half), dim=1)  # as detectron2 would have made them
        torch.save(state, tmp_path / "frcnn.bin")
        settings = yaml.safe_load((folder / "config.yaml").read_text())["INPUT"]
        config = {"rpn": {"pre_nms_topk_test": 600, "post_nms_topk_test": 40}, "min_detections": 10}
        config["input"] = {"min_size_test": settings["MIN_SIZE_TEST"], "max_size_test": settings["MAX_SIZE_TEST"]}
        convert(tmp_path / "frcnn.bin", tmp_path / "a", original_config=config, convention="caffe")
        convert(folder / "model.pth", tmp_path / "b", original_config=folder / "config.yaml")
        names = json.loads((folder / "config.json").read_text())["pictures"]
        paths = [str(shared_data / "coco_mini" / "images" / "val2014" / name) for name in names]
        ours, theirs = (
            AutoModel.from_pretrained(tmp_path / name)(
                **AutoImageProcessor.from_pretrained(tmp_path / name)(paths, return_tensors="pt")
            )
            for name in ("a", "b")
        )
        assert torch.equal(ours.labels, theirs.labels) and torch.equal(ours.attributes, theirs.attributes)
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=5e-3, rtol=0)
        torch.testing.assert_close(ours.refined_boxes, theirs.refined_boxes, atol=5e-3, rtol=0)
        torch.testing.assert_close(ours.region_features, theirs.region_features, atol=5e-5, rtol=0)
