"""Conversion of PAC-S evaluators: features and scores of the authors' code, names, sizes, errors and the folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from hf_captioners.conversion import convert
from hf_captioners.conversion.pac_score import original_name
from hf_captioners.conversion.writing import ConversionError, ConversionReport
from hf_captioners.metrics.clip.pac_score import PacScorer


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request: pytest.FixtureRequest, shared_parity: Path) -> Path:
    return shared_parity / "dico" / request.param


@pytest.fixture(scope="module")
def folder(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pacs") / "out"
    convert("pac_score", case / "pacs.pth", out)
    return out


def state_of(case: Path) -> dict[str, Tensor]:
    return torch.load(case / "pacs.pth", weights_only=True)["state_dict"]


def converted(state: dict[str, Any], folder: Path, **options: Any) -> ConversionReport:
    torch.save({"state_dict": state}, folder / "pacs.pth")
    return convert("pac_score", folder / "pacs.pth", folder / "out", **options)


class TestParity:
    def test_features(self, case: Path, folder: Path) -> None:
        io, settings = load_file(case / "io.safetensors"), json.loads((case / "config.json").read_text())
        scorer = PacScorer(folder, pad_token_id=settings["pad_token_id"])
        found = {
            "pac_image_features": scorer.image_features(io["pixel_values"]),
            "pac_text_features": scorer.text_features(io["score_ids"].flatten(0, 1)),
            "pac_ref_text_features": scorer.text_features(io["score_labels"].flatten(0, 1)),
        }
        for name, features in found.items():
            torch.testing.assert_close(features, io[name].reshape(features.shape), atol=1e-5, rtol=1e-5)

    def test_the_models_own_doors_give_the_same(self, case: Path, folder: Path) -> None:
        io = load_file(case / "io.safetensors")
        model = CLIPModel.from_pretrained(folder).eval()
        ids = io["pac_input_ids"].flatten(0, 1)
        with torch.no_grad():
            features = model.get_text_features(input_ids=ids).pooler_output
        torch.testing.assert_close(features, io["pac_text_features"].flatten(0, 1), atol=1e-5, rtol=1e-5)


class TestFolder:
    def test_files(self, folder: Path) -> None:
        assert sorted(path.name for path in folder.iterdir()) == [
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
        ]
        config = CLIPModel.from_pretrained(folder).config
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        side = config.vision_config.image_size
        assert processor.size["shortest_edge"] == processor.crop_size["height"] == side
        assert processor.image_mean == pytest.approx([0.48145466, 0.4578275, 0.40821073])

    def test_sizes_come_from_the_shapes(self, case: Path, folder: Path) -> None:
        settings, config = json.loads((case / "config.json").read_text()), CLIPModel.from_pretrained(folder).config
        assert config.vision_config.image_size == settings["image_size"]
        assert config.text_config.vocab_size == settings["clip_vocab_size"]
        assert config.text_config.eos_token_id == settings["eos_token_id"]
        assert config.text_config.bos_token_id == settings["bos_token_id"]
        state = state_of(case)
        assert config.text_config.num_attention_heads == state["ln_final.weight"].shape[0] // 64
        layers = {name.split(".")[3] for name in state if name.startswith("visual.transformer.resblocks.")}
        assert config.vision_config.num_hidden_layers == len(layers)

    def test_every_tensor_is_used(self, case: Path, tmp_path: Path) -> None:
        state = state_of(case)
        scalars = {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
        report = converted(state | scalars, tmp_path)
        assert set(report.used) == set(state)
        assert report.dropped == list(scalars)
        assert report.assumed["quick_gelu"] is True
        ours = load_file(tmp_path / "out" / "model.safetensors")
        assert {original_name(name) for name in ours} == set(state)
        assert sum(tensor.numel() for tensor in ours.values()) == sum(tensor.numel() for tensor in state.values())

    def test_queries_keys_and_values_are_rows_in_that_order(self, case: Path, folder: Path) -> None:
        ours, state = load_file(folder / "model.safetensors"), state_of(case)
        parts = [f"text_model.encoder.layers.0.self_attn.{part}_proj.weight" for part in "qkv"]
        rows = torch.cat([ours[name] for name in parts])
        assert torch.equal(rows, state["transformer.resblocks.0.attn.in_proj_weight"])
        assert torch.equal(ours["text_projection.weight"].T, state["text_projection"])

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_becomes_float32(self, case: Path, tmp_path: Path, dtype: torch.dtype) -> None:
        state = {name: tensor.to(dtype) for name, tensor in state_of(case).items()}
        converted(state, tmp_path)
        ours = load_file(tmp_path / "out" / "model.safetensors")
        assert {tensor.dtype for tensor in ours.values()} == {torch.float32}
        assert torch.equal(ours["logit_scale"], state["logit_scale"].float())

    def test_bare_safetensors_of_distributed_training(self, case: Path, tmp_path: Path) -> None:
        state = {f"module.{name}": tensor.contiguous() for name, tensor in state_of(case).items()}
        save_file(state, tmp_path / "pacs.safetensors")
        report = convert("pac_score", tmp_path / "pacs.safetensors", tmp_path / "out")
        assert len(report.used) == len(state)

    def test_overwrite(self, case: Path, tmp_path: Path) -> None:
        converted(state_of(case), tmp_path)
        with pytest.raises(FileExistsError, match="overwrite"):
            converted(state_of(case), tmp_path)
        converted(state_of(case), tmp_path, overwrite=True)

    def test_no_tokenizer_is_said(self, case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.WARNING):
            converted(state_of(case), tmp_path)
        assert "no tokenizer was written" in caplog.text
        with pytest.raises(ValueError, match="no tokenizer for captions as text"):
            PacScorer(tmp_path / "out").text_features(["a dog"])

    def test_tokenizer(self, case: Path, shared_data: Path, tmp_path: Path) -> None:
        state = state_of(case)
        with pytest.raises(ConversionError, match=r"49408 tokens with BOS and EOS \[49406, 49407\], but token_"):
            converted(state, tmp_path, vocabulary=shared_data / "clip_tokenizer")
        state["token_embedding.weight"] = torch.zeros(49408, state["token_embedding.weight"].shape[1])
        converted(state, tmp_path, vocabulary=shared_data / "clip_tokenizer")
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
        assert tokenizer("A man riding a wave on a surfboard.").input_ids == [
            *(49406, 320, 786, 6765, 320, 4535, 525, 320, 10176, 1972, 269, 49407)  # specification of DiCO, section 3
        ]
        assert PacScorer(tmp_path / "out").text_features(["a dog"]).shape == (1, state["text_projection"].shape[1])


class TestSettings:
    def test_open_clip(self, case: Path, tmp_path: Path) -> None:
        given = {"quick_gelu": False, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "vision_heads": 2}
        (tmp_path / "settings.json").write_text(json.dumps(given))
        report = converted(state_of(case), tmp_path, original_config=tmp_path / "settings.json")
        assert list(report.assumed) == ["transformer_heads"]
        config = CLIPModel.from_pretrained(tmp_path / "out").config
        assert config.vision_config.hidden_act == config.text_config.hidden_act == "gelu"
        assert config.vision_config.num_attention_heads == 2
        processor = AutoImageProcessor.from_pretrained(tmp_path / "out", backend="pil")
        assert tuple(processor.image_mean) == tuple(processor.image_std) == (0.5, 0.5, 0.5)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"heads": 2}, "unknown name 'heads', the known ones are quick_gelu, "),
            ({"quick_gelu": 1}, "quick_gelu=1 is not true or false"),
            ({"vision_heads": 0}, "vision_heads=0 is not a positive number"),
            ({"vision_heads": 7}, "vision_heads=7 does not divide the width 64"),
            ({"mean": [0.5]}, r"mean=\[0.5\] is not a list of three fractions"),
        ],
    )
    def test_wrong_settings(self, case: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
        with pytest.raises(ConversionError, match=message):
            converted(state_of(case), tmp_path, original_config=given)


class TestErrors:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"ln_final.bias": None}, r"ln_final.bias is missing, expected with shape \[(64|128)\]"),
            (
                {"visual.conv1.weight": None},
                "OpenAI's names: 1 problem: visual.conv1.weight is missing",
            ),
            (
                {"visual.conv1.weight": torch.zeros(64, 3, 16, 16, 1)},
                r"has shape \[64, 3, 16, 16, 1\], expected \[64, 3",
            ),
            ({"extra": torch.zeros(2)}, r"extra of shape \[2\] is not part of the model"),
            ({"ln_final.bias": torch.zeros(3)}, r"ln_final.bias has shape \[3\], expected"),
            ({"text_projection": torch.zeros(64, 5)}, r"text_projection has shape \[64, 5\], expected \[\d+, \d+\]"),
            ({"logit_scale": torch.tensor(1)}, "logit_scale has dtype torch.int64, expected floating point"),
            ({"visual.positional_embedding": torch.zeros(4, 64)}, "has 3 patches, expected a square and the class"),
            ({"visual.layer1.0.conv1.weight": torch.zeros(2)}, "its vision tower is a ResNet"),
            ({"transformer.resblocks.0.mlp.c_fc.lora_A": torch.zeros(4, 64)}, "has LoRA matrices .*PAC-S"),
        ],
        ids=[
            "missing",
            "no-vision",
            "dimensions",
            "extra",
            "shape",
            "transposed",
            "dtype",
            "patches",
            "resnet",
            "lora",
        ],
    )
    def test_every_problem_is_named(
        self, case: Path, tmp_path: Path, change: dict[str, Tensor | None], message: str
    ) -> None:
        state = {name: tensor for name, tensor in (state_of(case) | change).items() if tensor is not None}
        with pytest.raises(ConversionError, match=message):
            converted(state, tmp_path)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize("option", [{"special": {"PAD": 0}}, {"backbone": "x.pth"}, {"features_only": True}])
    def test_options_of_captioners_have_no_use(self, case: Path, tmp_path: Path, option: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="has no use with pac_score"):
            converted(state_of(case), tmp_path, **option)
