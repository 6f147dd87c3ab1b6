"""Exported captioners: ids equal over all rules of decoding, batches and masks; and the verbs on their folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from contracts import tiny_clip_gpt2
from contracts.tiny_scdnet import small_model
from PIL import Image

from hf_captioners import (
    CaptionerImageProcessor,
    DicoCaptionerConfig,
    DicoForImageCaptioning,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    SaticConfig,
    SaticForImageCaptioning,
    pipeline,
)
from hf_captioners.cli.main import main
from hf_captioners.export import ExportedCaptioner, ExportError, export_captioner

WORDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "unk_token_id": 3}
SMALL = {"vocab_size": 30, "d_model": 16, "features_only": True, "feature_size": 12, "max_position_embeddings": 20}
RULES = [
    {"num_beams": 1},
    {"num_beams": 3, "decoding": "paper", "num_return_sequences": 3},
    {"num_beams": 2, "decoding": "standard"},
    {"num_beams": 1, "decoding": "standard", "do_sample": True, "num_return_sequences": 2},
    {"num_beams": 1, "use_cache": False},
]


def needs_onnx() -> None:
    for library in ("onnxscript", "onnxruntime"):
        pytest.importorskip(library, reason="needs the extra onnx")


class FixedSize:
    """Processor of what the graphs ask for."""

    image_processor = CaptionerImageProcessor(size={"height": 32, "width": 32})

    def save_pretrained(self, folder: Path) -> None:
        """Nothing: captions stay ids here."""


def new_captioner(name: str):
    torch.manual_seed(0)
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    if name == "clip_gpt2":
        return tiny_clip_gpt2.tiny_model(prefix_length=2, text_config={"n_layer": 1})
    if name == "dico":
        heads = {
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 16,
            "decoder_ffn_dim": 16,
        }
        config = DicoCaptionerConfig(**{**SMALL, **layers, **heads, "max_image_tokens": 12, "unk_token_id": 5})
        model = DicoForImageCaptioning(config).eval()
        with torch.no_grad():
            model.decoder.transformer.wte.weight.mul_(20.0)
        return model
    if name == "satic":
        config = SaticConfig(**SMALL, **layers, **WORDS, group_size=3, num_attention_heads=2, ffn_dim=16)
        model = SaticForImageCaptioning(config).eval()
        head = model.model.generator.proj
    else:
        groups = {"encoder_expansion_groups": [4, 8], "decoder_expansion_size": 4}
        config = ExpansionNetV2Config(**SMALL, **layers, **WORDS, **groups, num_attention_heads=2, ffn_dim=16)
        model = ExpansionNetV2ForImageCaptioning(config).eval()
        head = model.vocab_linear
    with torch.no_grad():  # peaked distributions
        head.weight.mul_(4.0)
    return model


def features(model, images: int, tokens: int) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(images)
    mask = torch.ones(images, tokens, dtype=torch.long)
    mask[-1, tokens // 2 + 1 :] = 0
    values = torch.randn(images, tokens, model.config.feature_size, generator=random)
    return {"image_features": values, "image_attention_mask": mask}


@pytest.fixture(scope="module", params=["expansionnet_v2", "satic", "clip_gpt2", "dico"])
def pair(request, tmp_path_factory):
    """A captioner of features and what was exported of it."""
    needs_onnx()
    model = new_captioner(request.param)
    folder = tmp_path_factory.mktemp("exported") / request.param
    export_captioner(model, FixedSize(), folder)
    return model, ExportedCaptioner.from_pretrained(folder)


class TestContract:
    @pytest.mark.parametrize(("images", "tokens"), [(1, 6), (3, 4), (2, 1)])
    def test_captions_are_the_same_ids(self, pair, images, tokens):
        inputs = features(pair[0], images, tokens)
        for rule in RULES:
            captions = []
            for model in pair:
                torch.manual_seed(1)
                captions.append(model.generate(**inputs, **rule, max_length=10))
            assert torch.equal(*captions), rule
            assert len(captions[0]) == images * rule.get("num_return_sequences", 1)

    def test_scores(self, pair):
        inputs = features(pair[0], 3, 5)
        captions = pair[0].generate(**inputs, num_beams=1, max_length=10)
        log_probs = [model.sequence_log_probs(captions, **inputs) for model in pair]
        assert torch.isfinite(log_probs[1]).all()
        torch.testing.assert_close(*log_probs, atol=2e-5, rtol=1e-5)
        del inputs["image_attention_mask"]
        without_mask = [model.sequence_log_probs(captions, **inputs) for model in pair]
        torch.testing.assert_close(*without_mask, atol=2e-5, rtol=1e-5)

    def test_what_it_is_not(self, pair):
        _, exported = pair
        assert isinstance(exported, type(pair[0])) and not list(exported.parameters())
        inputs = features(pair[0], 1, 3)
        with pytest.raises(ValueError, match="does not learn"):
            exported(**inputs, labels=torch.tensor([[4, 2]]))
        with pytest.raises(ValueError, match="output_attentions: an exported captioner has none"):
            exported(**inputs, decoder_input_ids=torch.tensor([[1]]), output_attentions=True)
        with pytest.raises(ValueError, match="exported for features, not for pixels"):
            exported.generate(pixel_values=torch.zeros(1, 3, 32, 32))
        with pytest.raises(ValueError, match="copy its folder"):
            exported.save_pretrained("elsewhere")


class TestVerbs:
    @pytest.fixture(scope="class", params=[False, True], ids=["float32", "int8"])
    def folder(self, request, tiny_captioner_dir, tmp_path_factory):
        needs_onnx()
        out = tmp_path_factory.mktemp("verbs") / "onnx"
        assert main(["export", "onnx", str(tiny_captioner_dir), "--out", str(out), *["--int8"] * request.param]) == 0
        return out, request.param

    def test_pictures(self, folder, tiny_captioner_dir, tmp_path, capfd):
        out, int8 = folder
        paths = []
        for number in range(3):
            paths.append(tmp_path / f"{number}.png")
            Image.effect_mandelbrot((40, 30), (-2, -1.5, 1 + number / 4, 1.5), 50).convert("RGB").save(paths[-1])
        expected = [caption[0]["generated_text"] for caption in pipeline(model=tiny_captioner_dir)([*map(str, paths)])]
        found = [caption[0]["generated_text"] for caption in pipeline(model=out)([*map(str, paths)], batch_size=2)]
        assert int8 or found == expected
        capfd.readouterr()
        assert main(["caption", *map(str, paths), "--model", str(out)]) == 0
        assert [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()] == found
        rows = [{"file_name": path.name, "captions": ["a square"]} for path in paths]
        (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
        results = tmp_path / "results.json"
        words = ["--dataset", tmp_path, "--metrics", "rouge_l", "--save-predictions", results]
        assert main(["evaluate", "--model", str(out), *map(str, words)]) == 0
        assert [row["caption"] for row in json.loads(results.read_text())] == found

    def test_weights_are_integers(self, folder):
        import onnx_ir

        out, int8 = folder
        for name in ("encoder", "decoder"):
            kinds = {node.op_type for node in onnx_ir.load(out / f"{name}.onnx").graph}
            assert ("MatMulInteger" in kinds) == int8

    def test_mistakes(self, folder, tiny_captioner_dir, capfd):
        out, _ = folder
        for words, message in (
            (["export", "onnx", out, "--out", out / "again"], "an exported one already"),
            (["push", out, "me/mine", "--dry-run", out / "again"], "and push that one"),
            (["export", "onnx", tiny_captioner_dir, "--out", out], "must be a new or an empty folder"),
            (["caption", "x.png", "--model", out, "--dtype", "bfloat16"], "float32 or int8 and cannot run in bfloat16"),
            (["caption", "x.png", "--model", out, tiny_captioner_dir], "captions alone, in no ensemble"),
        ):
            assert main([*map(str, words)]) == 2
            assert message in capfd.readouterr().err


def test_refusals(tmp_path):
    for model, options, message in (
        (small_model(retrieval="none"), {}, "a ScdnetForImageCaptioning cannot be exported; these captioners can: Exp"),
        (new_captioner("satic"), {"image_input": "pixels"}, "reads features and sees no pixels"),
        (new_captioner("satic").half(), {}, "is in torch.float16; load it with dtype=torch.float32"),
        (new_captioner("satic"), {"image_input": "words"}, "image_input must be one of pixels, features, not 'words'"),
    ):
        with pytest.raises(ExportError, match=message):
            export_captioner(model, FixedSize(), tmp_path / "out", **options)
    (tmp_path / "export.json").write_text("{}")
    needs_onnx()
    with pytest.raises(ValueError, match="describes no captioner exported"):
        ExportedCaptioner.from_pretrained(tmp_path)


def test_without_the_libraries(tiny_captioner_dir, tmp_path, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr("hf_captioners.extras.find_spec", lambda name: None)
    assert main(["export", "onnx", str(tiny_captioner_dir), "--out", str(tmp_path / "out")]) == 2
    assert "is not installed; it is of the extra onnx" in capfd.readouterr().err
