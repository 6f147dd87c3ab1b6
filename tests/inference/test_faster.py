"""Faster linear layers and a vision tower with a precision of its own."""

from __future__ import annotations

import copy
import json
import pickle
import shutil

import pytest
import torch
from contracts.reward_policies import tiny_policy, tiny_processor, tiny_rows
from contracts.tiny_families import KINDS, tiny_images, tiny_model
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from transformers import AutoModelForImageTextToText
from transformers.pytorch_utils import Conv1D

from hf_captioners import optimize_for_inference
from hf_captioners.cli.main import main
from hf_captioners.families import family_of
from hf_captioners.inference import faster
from hf_captioners.modeling.expansion_expansionnet_v2 import ScoreLinear

OURS = ["expansionnet_v2", "satic", "dico", "clip_gpt2"]


@pytest.fixture(autouse=True)
def small_layers(monkeypatch):
    """The tiny layers are worth packing, too."""
    monkeypatch.setattr(faster, "_FEWEST", 1)


def of_kind(kind, tmp_path):
    """A captioner and the inputs of three pictures."""
    if kind in OURS:
        model, processor = tiny_policy(kind).eval(), tiny_processor(kind)
        rows = list(tiny_rows(tmp_path, 3))
    else:
        model, processor = tiny_model(kind), KINDS[kind].processor()
        rows = [{"image": image} for image in tiny_images(3)]
    family = family_of(model)
    return model, dict(family.prepare_rows(processor, rows))


def scores(model, inputs, sequences):
    family = family_of(model)
    with torch.inference_mode():
        return family.log_probs(model, sequences, family.encode(model, family.image_inputs(model, inputs)))[0]


def written(model, inputs, **options):
    family = family_of(model)
    with torch.inference_mode():
        return family.generate(model, family.encode(model, family.image_inputs(model, inputs)), **options)


@pytest.mark.parametrize("kind", [*OURS, "blip", "git", "vision-encoder-decoder", "smolvlm"])
def test_packed_layers_write_the_same_captions(kind, tmp_path):
    model, inputs = of_kind(kind, tmp_path)
    options = {"max_new_tokens": 6, "num_beams": 2}
    expected = written(model, inputs, **options)
    expected_scores = scores(model, inputs, expected)
    assert optimize_for_inference(model, "exact") is model
    assert any(isinstance(module, faster.PackedLinear) for module in model.modules())
    assert not any(type(module) in (nn.Linear, Conv1D) for module in model.modules())
    assert torch.equal(written(model, inputs, **options), expected)
    torch.testing.assert_close(scores(model, inputs, expected), expected_scores, atol=2e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler about itself
def test_packed_layers_in_a_compiled_model():
    torch.manual_seed(0)
    plain, hidden = nn.Sequential(nn.Linear(6, 9), nn.ReLU()), torch.randn(3, 6)
    packed = nn.Sequential(faster.PackedLinear(plain[0]), plain[1])
    with torch.no_grad():
        found = torch.compile(packed, backend="aot_eager")(hidden)
        torch.testing.assert_close(found, plain(hidden))


def test_exact_layers_without_onednn(monkeypatch):
    model = tiny_policy("satic").eval()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(ValueError, match="oneDNN is not in this build of torch"):
        optimize_for_inference(model, "exact")
    assert not any(isinstance(module, faster.PackedLinear) for module in model.modules())


@pytest.mark.parametrize("features", [(6, 9), (9, 6)])
@pytest.mark.parametrize("shape", [(6,), (1, 1), (2, 3), (3, 2, 1)])
@pytest.mark.parametrize("for_words", [True, False])
def test_a_packed_layer_of_one_row_and_of_several(features, shape, for_words):
    torch.manual_seed(0)
    layer, hidden = nn.Linear(*features), torch.randn(*shape[:-1], features[0])
    expected = hidden.double() @ layer.weight.double().T + layer.bias.double()
    with torch.no_grad():
        found = faster.PackedLinear(layer, for_words)(hidden)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=1e-5)


def test_a_packed_layer_under_autocast_and_of_another_width():
    packed = faster.PackedLinear(nn.Linear(6, 9))
    hidden = torch.randn(3, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = packed(hidden.bfloat16())
    torch.testing.assert_close(found.float(), packed(hidden.bfloat16().float()), atol=2e-2, rtol=2e-2)
    for shape in ((2, 3), (3, 5)):
        with pytest.raises(RuntimeError):
            packed(torch.randn(shape))


def test_layers_that_must_not_be_rounded_are_packed_only(tmp_path):
    packed, rounded = (of_kind("expansionnet_v2", tmp_path)[0] for _ in range(2))
    optimize_for_inference(packed, "exact")
    optimize_for_inference(rounded, "int8")
    layers = packed.decoders[0].dyn_exp.joined, rounded.decoders[0].dyn_exp.key_linear
    assert isinstance(layers[0], faster.PackedLinear)
    assert isinstance(layers[1], ScoreLinear)


def test_layers_of_the_same_input_become_one(tmp_path):
    plain, packed = (of_kind("expansionnet_v2", tmp_path)[0] for _ in range(2))
    packed.load_state_dict(plain.state_dict())
    optimize_for_inference(packed, "exact")
    expansion, joined = plain.decoders[0].dyn_exp, packed.decoders[0].dyn_exp
    hidden = torch.randn(2, 3, plain.config.d_model)
    with torch.no_grad():
        expected = [getattr(expansion, name)(hidden) for name in expansion.same_input]
        with torch.autocast("cpu", torch.bfloat16):  # scores are float32 there, too
            found = joined.project(hidden)
    torch.testing.assert_close(found, tuple(expected))
    assert [name for name, _ in joined.named_children() if name in expansion.same_input] == []


@pytest.mark.parametrize("kind", [*OURS, "blip", "vision-encoder-decoder"])
def test_8_bit_layers_lose_little(kind, tmp_path):
    model, inputs = of_kind(kind, tmp_path)
    expected = written(model, inputs, max_new_tokens=6)
    expected_scores = scores(model, inputs, expected)
    optimize_for_inference(model, "int8")
    found = scores(model, inputs, expected)
    assert torch.isfinite(written(model, inputs, max_new_tokens=6).float()).all()
    assert 0 < (found - expected_scores).abs().max() < 0.5


def test_an_8_bit_layer_by_its_formula():
    """Weights of 8 bits by their largest, inputs of 7 by their range, so that no sum overflows."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 8)
    hidden = torch.randn(5, 64)
    scale = layer.weight.detach().abs().max() / 127.5
    weight = (layer.weight.detach() / scale).round().clamp(-128, 127) * scale
    step = (hidden.max() - hidden.min()) / 127
    zero = (-hidden.min() / step).round()
    rounded = ((hidden / step + zero).round().clamp(0, 127) - zero) * step
    quantized = faster._quantized(layer)
    with torch.no_grad():
        torch.testing.assert_close(quantized(hidden), rounded @ weight.T + layer.bias, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", OURS)
def test_the_tower_alone_in_bfloat16(kind, tmp_path):
    model, inputs = of_kind(kind, tmp_path)
    other = tiny_policy(kind).eval()
    other.load_state_dict(model.state_dict())
    if model.backbone is None:
        pytest.skip("it has none")
    optimize_for_inference(model, backbone_dtype=torch.bfloat16)
    assert {one.dtype for one in model.backbone.parameters()} == {torch.bfloat16}
    assert model.dtype == torch.float32 and model.backbone.dtype == torch.bfloat16
    other.backbone.to(torch.bfloat16)
    with torch.inference_mode():
        features = other.extract_image_features(inputs["pixel_values"])
        found = model.encode_images(pixel_values=inputs["pixel_values"])
        expected = model.encode_images(image_features=features.float())
    assert features.dtype == torch.bfloat16
    torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("linear", ["exact", "int8"])
def test_a_tower_in_bfloat16_first_and_other_layers_later(linear, tmp_path):
    (at_once, inputs), (in_turn, _) = of_kind("expansionnet_v2", tmp_path), of_kind("expansionnet_v2", tmp_path)
    in_turn.load_state_dict(at_once.state_dict())
    optimize_for_inference(at_once, linear, torch.bfloat16)
    optimize_for_inference(in_turn, backbone_dtype=torch.bfloat16)
    optimize_for_inference(in_turn, linear)
    expected, found = (written(model, inputs, max_new_tokens=6) for model in (at_once, in_turn))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("linear", ["exact", "int8"])
@pytest.mark.parametrize("kind", ["expansionnet_v2", "clip_gpt2"])
def test_copies_and_other_processes(kind, linear, tmp_path):
    model, inputs = of_kind(kind, tmp_path)
    optimize_for_inference(model, linear)
    expected = written(model, inputs, max_new_tokens=6)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(written(copied, inputs, max_new_tokens=6), expected)
        with pytest.raises(ValueError, match="save the one it was made of"):
            copied.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("satic", {"linear": "int4"}, "linear must be one of exact, int8, not 'int4'"),
        ("blip", {"backbone_dtype": torch.bfloat16}, "whose tower has the precision of the rest|give one for all"),
    ],
)
def test_what_is_refused(kind, options, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        optimize_for_inference(of_kind(kind, tmp_path)[0], **options)


def test_half_precision_adapters_and_saving_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"in float32 on a CPU, and these are torch\.bfloat16 on cpu"):
        optimize_for_inference(tiny_policy("satic").bfloat16(), "exact")
    model = tiny_policy("satic").eval()
    adapted = get_peft_model(tiny_policy("satic"), LoraConfig(target_modules=model.LORA_TARGET_MODULES, r=2))
    with pytest.raises(ValueError, match="without adapters"):
        optimize_for_inference(adapted, "int8")
    for wrong in ("bfloat16", torch.int8):
        with pytest.raises(ValueError, match=r"must be a torch\.dtype such as torch\.bfloat16"):
            optimize_for_inference(model, backbone_dtype=wrong)
    with pytest.raises(ValueError, match="for captioning only; save the one it was made of"):
        optimize_for_inference(model, "int8").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has faster linear layers already"):
        optimize_for_inference(model, "exact")


@pytest.mark.parametrize("linear", ["exact", "int8"])
def test_another_precision_afterwards_is_refused(linear):
    model = optimize_for_inference(tiny_policy("clip_gpt2").eval(), linear)
    model.to("cpu")
    model.float()
    for change in (model.half, model.bfloat16, model.double, lambda: model.to(torch.float16), lambda: model.to("meta")):
        with pytest.raises(ValueError, match=r"stays in torch.float32 on cpu, and cannot be in torch.* load it anew"):
            change()


def test_on_the_command_line(tiny_captioner_dir, tmp_path, capfd):
    folder, picture = shutil.copytree(tiny_captioner_dir, tmp_path / "mine"), tmp_path / "a.png"
    Image.effect_noise((40, 40), 90).save(picture)

    def caption(*words):
        status = main(["caption", str(picture), "--model", str(folder), *map(str, words)])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    status, plain, _ = caption()
    assert status == 0 and caption("--fast")[1] == plain
    for words in (["--fast", "int8"], ["--backbone-dtype", "bfloat16"], ["--fast", "--backbone-dtype", "bfloat16"]):
        status, out, _ = caption(*words)
        assert status == 0 and json.loads(out)["caption"], words
    status, _, err = caption("--fast", "--dtype", "bfloat16")
    assert status == 2 and "in float32 on a CPU, and these are torch.bfloat16" in err
    adapters = tmp_path / "adapters"
    model = AutoModelForImageTextToText.from_pretrained(folder)
    get_peft_model(model, LoraConfig(target_modules=model.LORA_TARGET_MODULES, r=2)).save_pretrained(adapters)
    for words, said in (
        (["--model", adapters, "--fast"], f"--fast: {adapters} has adapters, beside its layers; leave --fast out"),
        (["--fast", "--dtype", "bfloat16"], "in float32 on a CPU"),
    ):
        status, _, err = caption(*words, "--out", tmp_path / "none.jsonl")
        assert status == 2 and said in err and list(tmp_path.glob("none*")) == []
    with pytest.raises(SystemExit):
        main(["caption", "--model", str(folder), "--fast", "photos"])
    assert "'photos' is none of exact, int8; give pictures and folders before --fast" in capfd.readouterr().err
    assert caption("--out", tmp_path / "captions.jsonl", "--fast", "int8")[0] == 0
    status, _, err = caption("--out", tmp_path / "captions.jsonl")
    assert status == 2 and "fast" in err
