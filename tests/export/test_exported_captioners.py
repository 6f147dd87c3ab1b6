"""Captioners of every kind, exported: the contract; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from contracts import tiny_clip_gpt2
from contracts.exported import ExportedCaptionerContract, ExportedWordsContract, FixedSize, needs_onnx, region_features
from contracts.tiny_scdnet import small_model

from hf_captioners import (
    DicoCaptionerConfig,
    DicoForImageCaptioning,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    SaticConfig,
    SaticForImageCaptioning,
    ScdnetForImageCaptioning,
)
from hf_captioners.export import ExportedCaptioner, ExportError, export_captioner
from hf_captioners.export.greedy_graph import GreedyRule
from hf_captioners.export.manifest import Manifest
from hf_captioners.export.runtime import PRECISION
from hf_captioners.export.writing import write_export

WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
SMALL = {"vocab_size": 30, "d_model": 16, "features_only": True, "feature_size": 12, "max_position_embeddings": 20}
LAYERS = {"encoder_layers": 1, "decoder_layers": 1}


def new_satic() -> SaticForImageCaptioning:
    config = SaticConfig(**SMALL, **LAYERS, **WORDS, group_size=3, num_attention_heads=2, ffn_dim=16)
    model = SaticForImageCaptioning(config).eval()
    with torch.no_grad():  # peaked distributions
        model.model.generator.proj.weight.mul_(4.0)
    return model


def new_expansionnet() -> ExpansionNetV2ForImageCaptioning:
    groups = {"encoder_expansion_groups": [4, 8], "decoder_expansion_size": 4}
    config = ExpansionNetV2Config(**SMALL, **LAYERS, **WORDS, **groups, num_attention_heads=2, ffn_dim=16)
    model = ExpansionNetV2ForImageCaptioning(config).eval()
    with torch.no_grad():
        model.vocab_linear.weight.mul_(4.0)
    return model


class TestExpansionNetV2(ExportedWordsContract):
    def captioner(self) -> Any:
        return new_expansionnet()


class TestSatic(ExportedWordsContract):
    def captioner(self) -> Any:
        return new_satic()


class TestClipGpt2(ExportedWordsContract):
    def captioner(self) -> Any:
        return tiny_clip_gpt2.tiny_model(prefix_length=2, text_config={"n_layer": 1})


class TestDico(ExportedWordsContract):
    def captioner(self) -> Any:
        heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
        sizes = {**heads, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_image_tokens": 12, "unk_token_id": 5}
        model = DicoForImageCaptioning(DicoCaptionerConfig(**{**SMALL, **LAYERS, **sizes})).eval()
        with torch.no_grad():
            model.decoder.transformer.wte.weight.mul_(20.0)
        return model


class TestScdnetCascade(ExportedCaptionerContract):
    rules = [
        {},
        {"num_return_sequences": 3},
        {"decoding": "fast", "word_choice": "likeliest"},
        {"cascade": "offline", "sampler": "ddim"},
        {"do_sample": True, "num_return_sequences": 2},
    ]

    def captioner(self) -> Any:
        first = small_model(seed=1)
        return ScdnetForImageCaptioning.from_stages(first, small_model(seed=2, sees_previous=True))

    def inputs(self, model: Any, images: int, tokens: int) -> dict[str, torch.Tensor]:
        sentences = torch.randint(4, 20, (images, 5), generator=torch.Generator().manual_seed(images))
        mask = torch.ones_like(sentences)
        mask[-1, 3:] = 0
        retrieved = {"retrieved_ids": sentences, "retrieved_mask": mask}
        return {**region_features(model, images, tokens), **retrieved}

    def test_second_stage_alone(self, pair):
        inputs = self.inputs(pair[0], 3, 4)
        inputs["previous_ids"] = inputs["retrieved_ids"].flip(0)
        captions = [model.generate(**inputs) for model in pair]
        assert torch.equal(*captions)
        log_probs = [model.sequence_log_probs(captions[0], self_conditioning=True, **inputs) for model in pair]
        torch.testing.assert_close(*log_probs, atol=2e-5, rtol=1e-4)

    def test_sentences_are_one_for_each_picture(self, pair):
        inputs = self.inputs(pair[0], 2, 4)
        inputs["retrieved_ids"] = inputs["retrieved_ids"].repeat(2, 1)
        del inputs["retrieved_mask"]
        with pytest.raises(ValueError, match="4 retrieved_ids: an exported captioner takes one for each of 2 pictures"):
            pair[1].generate(**inputs)

    def test_no_attentions(self, pair):
        with pytest.raises(ValueError, match="output_attentions: an exported captioner has none"):
            pair[1].generate(**self.inputs(pair[0], 1, 3), output_attentions=True, return_dict_in_generate=True)


class TestScdnetOnOpenVino(TestScdnetCascade):
    options = {"export_format": "openvino"}

    def captioner(self) -> Any:
        pytest.importorskip("openvino", reason="needs the extra openvino")
        return super().captioner()


class TestSaticOnOpenVino:
    """Word by word, up to lengths at which OpenVINO 2026.4 confuses what it has prepared for several."""

    @pytest.mark.parametrize("beams", [1, 3])
    def test_long_captions_are_the_same_ids(self, tmp_path, beams):
        pytest.importorskip("openvino", reason="needs the extra openvino")
        torch.manual_seed(0)
        config = SaticConfig(**{**SMALL, "d_model": 64}, **LAYERS, **WORDS, group_size=1, num_attention_heads=2)
        model = SaticForImageCaptioning(config).eval()
        export_captioner(model, FixedSize(), tmp_path / "exported", export_format="openvino")
        exported = ExportedCaptioner.from_pretrained(tmp_path / "exported")
        inputs = {"image_features": torch.randn(2, 9, 12)}
        words = {"num_beams": beams, "min_new_tokens": 18, "max_new_tokens": 18}
        assert torch.equal(model.generate(**inputs, **words), exported.generate(**inputs, **words))


class TestOpenVino(ExportedCaptionerContract):
    options = {"export_format": "openvino"}

    def captioner(self) -> Any:
        pytest.importorskip("openvino", reason="needs the extra openvino")
        return new_expansionnet()

    def test_float32(self, pair):
        runner = pair[1].graphs.runners["decoder"]
        assert runner.compiled_model.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"

    def test_bfloat16_is_chosen_when_exporting(self, pair, plan, tmp_path, monkeypatch):
        import openvino

        asked, said = [], []
        compile_model = openvino.Core.compile_model
        monkeypatch.setattr(
            openvino.Core,
            "compile_model",
            lambda core, model, device, config: asked.append(config[PRECISION]) or compile_model(core, model, device),
        )
        monkeypatch.setattr("hf_captioners.export.runtime.logger.warning", said.append)
        write_export(plan, tmp_path / "bfloat16", "openvino", bf16=True)
        exact = pair[1].name_or_path
        for folder, config, precision in (
            (tmp_path / "bfloat16", {}, "bf16"),
            (tmp_path / "bfloat16", {PRECISION: "f32"}, "f32"),
            (exact, {}, "f32"),
        ):
            ExportedCaptioner.from_pretrained(folder, config=config)
            assert asked == [precision] * 2 and not said
            asked.clear()
        for value in ("bf16", openvino.Type.bf16):
            ExportedCaptioner.from_pretrained(exact, config={PRECISION: value})
            assert "was exported to be computed in f32: in bf16 captions can be others" in said.pop()

    def test_exports_before_this_choice_are_in_float32(self, pair, tmp_path):
        content = json.loads((Path(pair[1].name_or_path) / "export.json").read_text("utf-8"))
        del content["captioner"]["bfloat16"]
        (tmp_path / "export.json").write_text(json.dumps(content))
        assert Manifest.read(tmp_path / "export.json") == pair[1].manifest

    def test_weights_are_integers(self, pair, plan, tmp_path):
        pytest.importorskip("nncf", reason="needs the extra openvino")
        write_export(plan, tmp_path / "int8", "openvino", int8=True)
        exported = ExportedCaptioner.from_pretrained(tmp_path / "int8")
        for component in exported.graphs.components.values():
            outputs = [output for one in component.program.get_ordered_ops() for output in one.outputs()]
            assert "i8" in {output.get_element_type().get_type_name() for output in outputs}
        inputs = self.inputs(pair[0], 3, 5)
        captions = pair[0].generate(**inputs, num_beams=1, max_length=10)
        exact, rounded = (model.sequence_log_probs(captions, **inputs) for model in (pair[1], exported))
        torch.testing.assert_close(rounded, exact, atol=0.3, rtol=0.1)
        assert not torch.equal(rounded, exact)


def test_refusals(tmp_path):
    for model, options, message in (
        (torch.nn.Linear(1, 1), {"image_input": "features"}, "a Linear cannot be exported; these captioners can: Exp"),
        (small_model(retrieval="none"), {"greedy": "loop"}, "writes all words at once and has no greedy graph"),
        (new_satic(), {"greedy": "tree"}, "greedy must be one of loop, unrolled, not 'tree'"),
        (new_satic(), {"greedy": "loop", "export_format": "openvino"}, "a greedy graph is an ONNX graph"),
        (new_satic(), {"export_format": "coreml"}, "export_format must be one of onnx, openvino, not 'coreml'"),
        (new_satic(), {"bf16": True}, "bfloat16 is a choice of OpenVINO"),
        (new_satic(), {"image_input": "pixels"}, "reads features and sees no pixels"),
        (new_satic().half(), {}, "is in torch.float16; load it with dtype=torch.float32"),
        (new_satic(), {"image_input": "words"}, "image_input must be one of pixels, features, not 'words'"),
    ):
        with pytest.raises(ExportError, match=message):
            export_captioner(model, FixedSize(), tmp_path / "out", **options)
    (tmp_path / "export.json").write_text("{}")
    needs_onnx()
    with pytest.raises(ValueError, match="describes no captioner exported"):
        ExportedCaptioner.from_pretrained(tmp_path)


def test_greedy_rule():
    model = new_satic()
    inputs = region_features(model, 2, 4)
    rule = GreedyRule.of(model, inputs)
    assert (rule.start, rule.pad, rule.ends, rule.max_length) == (1, 0, (2,), 20)
    for option, value, message in (
        ("repetition_penalty", 1.5, "RepetitionPenaltyLogitsProcessor of the generation config is no part of a graph"),
        ("min_new_tokens", 3, "MinNewTokens"),
        ("max_time", 9.0, "MaxTimeCriteria"),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(ValueError, match=message):
            patch.setattr(model.generation_config, option, value)
            GreedyRule.of(model, inputs)
