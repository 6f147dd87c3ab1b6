"""Conversion of DiCO's captioner: the written folder, every way to give the original, and errors by name."""

from __future__ import annotations

import errno
import gzip
import io
import json
import logging
import os
import pickle
import resource
import shutil
import signal
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPTokenizer, VisionEncoderDecoderConfig

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.conversion import convert, dico_files
from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.conversion.writing import ConversionError, ConversionReport

VISION = {
    "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "image_size": 32, "patch_size": 8, "projection_dim": 12, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
BERT = {
    "model_type": "bert", "hidden_size": 24, "d_embed": 24, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 20, "vocab_size": 11, "max_position_embeddings": 19, "layer_norm_eps": 1e-12,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.05, "type_vocab_size": 2,
    "position_embedding_type": "absolute", "is_decoder": False,
}  # fmt: skip
GPT2 = {
    "model_type": "gpt2", "n_embd": 24, "n_layer": 1, "n_head": 2, "n_inner": None, "n_positions": 21,
    "vocab_size": 519, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1,
    "embd_pdrop": 0.3, "attn_pdrop": 0.0, "add_cross_attention": True, "is_decoder": True, "tie_word_embeddings": True,
}  # fmt: skip
TOP = {
    "model_type": "vision-encoder-decoder", "bos_token_id": 516, "eos_token_id": 517, "pad_token_id": 518,
    "decoder_start_token_id": 516, "vocab_size": 519, "hidden_size": 24, "tie_word_embeddings": False,
}  # fmt: skip
WRITTEN = ["README.md", "card_facts.json", "config.json", "generation_config.json", "model.safetensors"]
WRITTEN += ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]


def original_config(**changes: Any) -> dict[str, Any]:
    """As transformers 4.20 writes it; `changes` by part: `decoder={"n_layer": 2}`, or of the top."""
    visual = {"model_type": "vision-encoder-encoder", "hidden_size": 24}
    parts = {"vision_encoder": dict(VISION), "encoder": dict(BERT), "decoder": dict(GPT2), "top": dict(TOP)}
    for part, values in changes.items():
        parts[part].update(values)
    visual |= {name: parts[name] for name in ("vision_encoder", "encoder")}
    config = {**parts["top"], "encoder": visual, "decoder": parts["decoder"]}
    return json.loads(json.dumps(config))


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes as the specification of the original lists them (section 2.4)."""
    vision, bert, gpt2 = config["encoder"]["vision_encoder"], config["encoder"]["encoder"], config["decoder"]
    wide, width, vocabulary = vision["hidden_size"], gpt2["n_embd"], gpt2["vocab_size"]
    tokens, patch = (vision["image_size"] // vision["patch_size"]) ** 2 + 1, vision["patch_size"]
    top = "encoder.vision_encoder."
    found: dict[str, tuple[int, ...]] = {
        f"{top}embeddings.class_embedding": (wide,),
        f"{top}embeddings.patch_embedding.weight": (wide, 3, patch, patch),
        f"{top}embeddings.position_embedding.weight": (tokens, wide),
        "encoder.vis_enc_to_enc_proj.weight": (width, wide),
        "encoder.vis_enc_to_enc_proj.bias": (width,),
        "encoder.encoder.embeddings.word_embeddings.weight": (bert["vocab_size"], width),
        "encoder.encoder.embeddings.position_embeddings.weight": (bert["max_position_embeddings"], width),
        "encoder.encoder.embeddings.token_type_embeddings.weight": (2, width),
        "decoder.transformer.wte.weight": (vocabulary, width),
        "decoder.transformer.wpe.weight": (gpt2["n_positions"], width),
    }
    found |= linear("encoder.encoder.pooler.dense", width, width)
    for name in (f"{top}pre_layrnorm", f"{top}post_layernorm"):
        found |= {f"{name}.weight": (wide,), f"{name}.bias": (wide,)}
    for name in ("encoder.encoder.embeddings.LayerNorm", "decoder.transformer.ln_f"):
        found |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    for index in range(vision["num_hidden_layers"]):
        layer = f"{top}encoder.layers.{index}."
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            found |= linear(f"{layer}self_attn.{name}", wide, wide)
        found |= linear(f"{layer}mlp.fc1", vision["intermediate_size"], wide)
        found |= linear(f"{layer}mlp.fc2", wide, vision["intermediate_size"])
        for name in ("layer_norm1", "layer_norm2"):
            found |= {f"{layer}{name}.weight": (wide,), f"{layer}{name}.bias": (wide,)}
    for index in range(bert["num_hidden_layers"]):
        layer = f"encoder.encoder.encoder.layer.{index}."
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found |= linear(layer + name, width, width)
        found |= linear(f"{layer}intermediate.dense", bert["intermediate_size"], width)
        found |= linear(f"{layer}output.dense", width, bert["intermediate_size"])
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            found |= {f"{layer}{name}.weight": (width,), f"{layer}{name}.bias": (width,)}
    inner = gpt2["n_inner"] or 4 * width
    for index in range(gpt2["n_layer"]):
        layer = f"decoder.transformer.h.{index}."
        sizes = {"attn.c_attn": (width, 3 * width), "attn.c_proj": (width, width), "mlp.c_fc": (width, inner)}
        sizes |= {"crossattention.q_attn": (width, width), "crossattention.c_attn": (width, 2 * width)}
        sizes |= {"crossattention.c_proj": (width, width), "mlp.c_proj": (inner, width)}
        for name, (rows, columns) in sizes.items():  # stored [in, out]
            found |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (columns,)}
        for name in ("ln_1", "ln_2", "ln_cross_attn"):
            found |= {f"{layer}{name}.weight": (width,), f"{layer}{name}.bias": (width,)}
    return found


def linear(name: str, rows: int, columns: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def buffers(config: dict[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {
        "encoder.vision_encoder.embeddings.position_ids": torch.arange(17)[None],
        "encoder.encoder.embeddings.position_ids": torch.arange(19)[None],
    }
    for index in range(config["decoder"]["n_layer"]):
        for name in ("attn", "crossattention"):
            found[f"decoder.transformer.h.{index}.{name}.bias"] = torch.ones(1, 1, 21, 21, dtype=torch.uint8).tril()
            found[f"decoder.transformer.h.{index}.{name}.masked_bias"] = torch.tensor(-1e4)
    return found


def original_state(config: dict[str, Any] | None = None) -> dict[str, Tensor]:
    config = original_config() if config is None else config
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes(config).items()}
    state["decoder.lm_head.weight"] = state["decoder.transformer.wte.weight"]
    return {**state, **buffers(config)}


def write_original(folder: Path, state: dict[str, Tensor] | None = None, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = original_config(**changes)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save(original_state(config) if state is None else state, folder / "pytorch_model.bin")
    return folder


@pytest.fixture()
def original(tmp_path: Path) -> Path:
    return write_original(tmp_path / "original")


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CLIP's kind of tokenizer, 518 tokens: the original's vocabulary has one more, for padding."""
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{one}</w>" for one in letters), "do", "dog</w>", "ca", "cat</w>"]
    names += ["<|startoftext|>", "<|endoftext|>"]
    merges = [("d", "o"), ("do", "g</w>"), ("c", "a"), ("ca", "t</w>")]
    tokenizer = CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=merges, model_max_length=12)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save_pretrained(folder)
    return folder


def converted(checkpoint: Path, out: Path, **options: Any) -> tuple[ConversionReport, Any]:
    report = convert("dico", checkpoint, out, **options)
    assert isinstance(report, ConversionReport)
    model, info = AutoModelForImageTextToText.from_pretrained(out, output_loading_info=True)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return report, model


class TestFolder:
    def test_everything_is_there(self, original, tokenizer_dir, tmp_path):
        report, model = converted(original, tmp_path / "out", tokenizer=tokenizer_dir)
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == WRITTEN
        config = model.config
        assert (config.model_type, config.vocab_size, config.d_model) == ("dico", 519, 24)
        assert (config.encoder_layers, config.decoder_layers) == (2, 1)
        assert (config.encoder_attention_heads, config.decoder_attention_heads) == (3, 2)
        assert (config.encoder_ffn_dim, config.decoder_ffn_dim) == (20, 96)
        assert (config.max_image_tokens, config.max_position_embeddings) == (19, 21)
        assert (config.encoder_dropout, config.encoder_attention_dropout) == (0.2, 0.05)
        assert (config.decoder_input_dropout, config.decoder_dropout, config.decoder_attention_dropout) == (0.3, 0.1, 0)
        assert (config.vision_config.hidden_act, config.vision_config.patch_size) == ("quick_gelu", 8)
        assert report.special_tokens == {
            "PAD": (518, "<|pad|>"), "SOS": (516, "<|startoftext|>"), "EOS": (517, "<|endoftext|>"),
        }  # fmt: skip
        assert report.assumed == {}
        written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert (written["num_beams"], written["decoding"], written["max_length"]) == (5, "paper", 21)

    def test_every_tensor_is_used_or_named_as_dropped(self, original, tmp_path):
        state = torch.load(original / "pytorch_model.bin", weights_only=True)
        report, model = converted(original, tmp_path / "out")
        assert sorted(report.used + report.dropped) == sorted(state)
        dead = ["encoder.encoder.embeddings.word_embeddings.weight"]
        dead += [f"encoder.encoder.pooler.dense.{name}" for name in ("weight", "bias")]
        assert sorted(report.dropped) == sorted([*buffers(original_config()), *dead])
        ours = model.state_dict()
        prefixes = {"encoder.vision_encoder.": "backbone.", "encoder.vis": "vis", "encoder.encoder.": "encoder."}
        for name in report.used:
            new = next((name.replace(old, new, 1) for old, new in prefixes.items() if name.startswith(old)), name)
            assert torch.equal(ours[new], state[name]), name
        assert model.decoder.lm_head.weight is model.decoder.transformer.wte.weight

    def test_pipeline(self, original, tokenizer_dir, tmp_path):
        _, model = converted(original, tmp_path / "out", tokenizer=tokenizer_dir)
        picture = Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB")
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert isinstance(processor, hf_captioners.DicoProcessor)
        assert processor(images=picture)["pixel_values"].shape == (1, 3, 32, 32)
        expected = processor.batch_decode(model.generate(**processor(images=picture)))[0]
        captioner = hf_captioners.pipeline(model=str(tmp_path / "out"))
        assert captioner(picture) == [{"generated_text": expected}]

    def test_equal_widths_have_no_projection(self, tmp_path):
        state = {
            name: value for name, value in original_state().items() if "vision" not in name and "proj." not in name
        }
        config = original_config(vision_encoder={"hidden_size": 24, "num_attention_heads": 3})
        state |= {name: torch.rand(shape) for name, shape in shapes(config).items() if "vision_encoder" in name}
        state |= {name: torch.rand(shape) for name, shape in shapes(config).items() if "decoder" in name}
        state["decoder.lm_head.weight"] = state["decoder.transformer.wte.weight"]
        write_original(tmp_path / "x", state, vision_encoder={"hidden_size": 24, "num_attention_heads": 3})
        _, model = converted(tmp_path / "x", tmp_path / "out")
        assert model.vis_enc_to_enc_proj is None

    def test_without_a_tokenizer(self, original, tmp_path, caplog):
        with caplog.at_level(logging.WARNING):
            report, _ = converted(original, tmp_path / "out")
        assert "no tokenizer was written: the vocabulary of 519 tokens" in caplog.text
        assert report.special_tokens == {}
        assert (tmp_path / "out" / "preprocessor_config.json").exists()

    def test_command_line(self, original, tokenizer_dir, tmp_path, capsys):
        command = ["convert", "dico", str(original), "--tokenizer", str(tokenizer_dir), "--out", str(tmp_path / "out")]
        assert main(command) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out) == {"out_dir": str(tmp_path / "out")}
        assert "1 x decoder.transformer.h.*.crossattention.masked_bias" in printed.err
        assert "PAD=518 ('<|pad|>')" in printed.err

    def test_the_real_tokenizer(self, shared_data, tmp_path):
        ids = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 49408, "decoder_start_token_id": 49406}
        sizes = {"decoder": {"vocab_size": 49409}, "top": {**ids, "vocab_size": 49409}}
        write_original(tmp_path / "x", **sizes)
        converted(tmp_path / "x", tmp_path / "out", tokenizer=shared_data / "clip_tokenizer")
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        labels = processor(text_target=["A man riding a wave on a surfboard."])["labels"].tolist()
        assert labels == [[320, 786, 6765, 320, 4535, 525, 320, 10176, 1972, 269, 49407]]
        assert processor.tokenizer.pad_token_id == 49408


class TestSources:
    """The same captioner, however it comes."""

    @pytest.fixture()
    def expected(self, original) -> dict[str, Tensor]:
        return torch.load(original / "pytorch_model.bin", weights_only=True)

    def same(self, checkpoint: Path, tmp_path: Path, expected: dict[str, Tensor], **options: Any) -> None:
        _, model = converted(checkpoint, tmp_path / "out", **options)
        for name, value in model.decoder.state_dict().items():
            assert torch.equal(value, expected[f"decoder.{name}"]), name
            assert value.dtype == torch.float32

    @pytest.mark.parametrize("inside", ["", "dico-ViTL14/"])
    @pytest.mark.parametrize("suffix", [".zip", ".tar", ".tar.gz", ".tgz", ""])
    def test_archives(self, original, expected, tmp_path, suffix, inside):
        (original / "training_args.bin").write_bytes(bomb(tmp_path / "exploded"))
        path = tmp_path / f"download{suffix}"
        files = sorted(original.iterdir())
        if suffix in (".zip", ""):
            with zipfile.ZipFile(path, "w") as archive:
                for file in files:
                    archive.write(file, f"{inside}{file.name}")
        else:
            with tarfile.open(path, "w" if suffix == ".tar" else "w:gz") as archive:
                for file in files:
                    archive.add(file, f"{inside}{file.name}")
        self.same(path, tmp_path, expected)
        assert not (tmp_path / "exploded").exists()

    def test_weights_with_the_configuration_beside(self, original, expected, tmp_path):
        self.same(original / "pytorch_model.bin", tmp_path, expected)

    def test_weights_with_the_configuration_elsewhere(self, original, expected, tmp_path):
        shutil.move(original / "config.json", tmp_path / "elsewhere.json")
        with pytest.raises(ConversionError, match=r"there is no config\.json with the weights"):
            convert("dico", original, tmp_path / "out")
        for given in (tmp_path / "elsewhere.json", json.loads((tmp_path / "elsewhere.json").read_text())):
            self.same(original / "pytorch_model.bin", tmp_path, expected, original_config=given)
            shutil.rmtree(tmp_path / "out")

    def test_an_unpacked_archive(self, original, expected, tmp_path):
        outer = tmp_path / "outer"
        shutil.copytree(original, outer / "dico-ViTL14")
        (outer / "README.txt").write_text("weights")
        self.same(outer, tmp_path, expected)
        shutil.copytree(original, outer / "other")
        with pytest.raises(ConversionError, match=r"outer: weights are in dico-ViTL14, other; give one of these"):
            convert("dico", outer, tmp_path / "again")

    @pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
    def test_a_checkpoint_with_more_than_the_weights(self, original, expected, tmp_path, key):
        torch.save({key: expected, "epoch": 3}, original / "pytorch_model.bin")
        self.same(original, tmp_path, expected)

    def test_half_precision(self, tmp_path):
        state = {name: value.half() if value.is_floating_point() else value for name, value in original_state().items()}
        write_original(tmp_path / "x", state)
        floats = {name: value.float() for name, value in state.items()}
        self.same(tmp_path / "x", tmp_path, floats)

    def test_safetensors_without_the_head(self, original, expected, tmp_path):
        (original / "pytorch_model.bin").unlink()
        save_file(
            {k: v.contiguous() for k, v in expected.items() if "lm_head" not in k}, original / "model.safetensors"
        )
        self.same(original, tmp_path, expected)

    def test_a_trainers_folder_is_never_unpickled(self, original, expected, tmp_path):
        (original / "training_args.bin").write_bytes(bomb(tmp_path / "exploded"))
        self.same(original, tmp_path, expected)
        assert not (tmp_path / "exploded").exists()

    def test_a_head_of_its_own_is_not_kept(self, expected, tmp_path, caplog):
        state = {**expected, "decoder.lm_head.weight": expected["decoder.lm_head.weight"] + 1}
        write_original(tmp_path / "x", state)
        with caplog.at_level(logging.WARNING):
            self.same(tmp_path / "x", tmp_path, expected)
        assert "decoder.lm_head.weight and decoder.transformer.wte.weight differ" in caplog.text
        assert "embedding decoder.transformer.wte.weight is used for both" in caplog.text


class _Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def bomb(path: Path) -> bytes:
    """A pickle that makes a folder when it is loaded."""
    return pickle.dumps(_Bomb(path))


class TestErrors:
    def refused(self, checkpoint: Path, out: Path, message: str, error: type[Exception] = ConversionError, **options):
        with pytest.raises(error, match=message):
            convert("dico", checkpoint, out, **options)
        assert not out.exists()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"decoder.transformer.h.0.ln_1.bias": None}, r"ln_1\.bias is missing, expected with shape \[24\]"),
            ({"decoder.transformer.h.0.ln_1.bias": torch.ones(3)}, r"ln_1\.bias has shape \[3\], expected \[24\]"),
            ({"decoder.transformer.ln_f.bias": torch.ones(24, dtype=torch.long)}, "ln_f.bias has dtype torch.int64"),
            ({"extra.weight": torch.ones(2)}, r"extra\.weight of shape \[2\] is not part of the model"),
            ({"encoder.vis_enc_to_enc_proj.bias": None}, r"vis_enc_to_enc_proj\.bias is missing"),
            ({"decoder.transformer.h.1.ln_1.bias": torch.ones(24)}, r"has 2 layers decoder\.transformer\.h\.\*, but"),
            ({"decoder.transformer.wte.weight": None}, r"transformer\.wte\.weight is missing"),
        ],
    )
    def test_tensors(self, tmp_path, changes, message):
        state = {name: value for name, value in {**original_state(), **changes}.items() if value is not None}
        self.refused(write_original(tmp_path / "x", state), tmp_path / "out", message)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"decoder": {"n_layer": None}}, r"1 problem: decoder\.n_layer is missing"),
            ({"decoder": {"n_layer": 10**9}}, "layers=1000000000 is beyond the limit of 500"),
            ({"decoder": {"n_layer": "1"}}, "Field 'decoder_layers' expected int, got str"),
            ({"decoder": {"n_embd": 48}}, r"encoder\.encoder\.hidden_size=24 and decoder\.n_embd=48 must be equal"),
            ({"decoder": {"scale_attn_by_inverse_layer_idx": True}}, r"is True; this model has False"),
            ({"decoder": {"n_head": 5}}, "decoder_attention_heads=5 does not divide d_model=24"),
            ({"encoder": {"position_embedding_type": "relative_key"}}, "is 'relative_key'; this model has 'absolute'"),
            ({"encoder": {"hidden_act": "gelly"}}, "encoder_activation='gelly' is not an activation"),
            (
                {"encoder": {"num_hidden_layers": 3}},
                r"has 2 layers encoder\.encoder\.encoder\.layer\.\*, but .* says 3",
            ),
            ({"vision_encoder": {"patch_size": 16}}, r"patch_embedding\.weight has shape \[16, 3, 8, 8\], expected"),
            ({"vision_encoder": {"model_type": "vit"}}, r"encoder\.vision_encoder\.model_type is 'vit', expected"),
            ({"top": {"model_type": "dico"}}, "not of DiCO's captioner: 1 problem: model_type is 'dico', expected"),
            ({"top": {"eos_token_id": 519}}, "eos_token_id=519 is not an id of vocab_size=519"),
        ],
    )
    def test_configurations(self, original, tmp_path, changes, message):
        (original / "config.json").write_text(json.dumps(original_config(**changes)))
        self.refused(original, tmp_path / "out", message)

    def test_the_configuration_of_another_model(self, original, tmp_path):
        other = VisionEncoderDecoderConfig(encoder={"model_type": "vit"}, decoder={"model_type": "gpt2"})
        (original / "config.json").write_text(json.dumps(other.to_dict()))  # the same model_type as DiCO's
        self.refused(original, tmp_path / "out", "not of DiCO's captioner: .*encoder.model_type is 'vit', expected")
        for content in ("[]", '{"model_type": 3}'):
            (original / "config.json").write_text(content)
            self.refused(original, tmp_path / "out", "not of DiCO's captioner")
        (original / "config.json").write_text('{"model_type": ')
        self.refused(original, tmp_path / "out", "not valid JSON", CheckpointError)

    def test_weights_that_are_none(self, original, tmp_path):
        weights = original / "pytorch_model.bin"
        content = weights.read_bytes()
        weights.write_bytes(content[: len(content) // 2])
        self.refused(original, tmp_path / "out", "not a checkpoint of torch.save", CheckpointError)
        torch.save({"decoder.transformer.wte.weight": _Bomb(tmp_path / "exploded")}, weights)
        self.refused(original, tmp_path / "out", "needs the Python object posix.mkdir", CheckpointError)
        assert not (tmp_path / "exploded").exists()
        weights.unlink()
        self.refused(original, tmp_path / "out", "holds no pytorch_model.bin and no model.safetensors")
        self.refused(tmp_path / "nowhere", tmp_path / "out", "checkpoint not found", FileNotFoundError)

    @pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
    def test_weights_in_several_files(self, original, tmp_path, name):
        (original / "pytorch_model.bin").rename(original / f"{name.split('.')[0]}-00001-of-00002.bin")
        index = original / f"{name}.index.json"
        index.write_text("{}")
        message = rf"the weights are in the several files of {name}\.index\.json; put them into one"
        self.refused(original, tmp_path / "out", message)
        self.refused(index, tmp_path / "out", message)
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for path in original.iterdir():
                archive.write(path, f"dico/{path.name}")
        self.refused(tmp_path / "x.zip", tmp_path / "out", message)

    def test_tokenizers(self, original, tokenizer_dir, shared_data, tmp_path):
        self.refused(original, tmp_path / "out", "no tokenizer could be loaded", tokenizer=tmp_path / "nowhere")
        message = r"has \(with the token for padding\) 49409 tokens .* but the checkpoint 519"
        self.refused(original, tmp_path / "out", message, tokenizer=shared_data / "clip_tokenizer")
        top = {"eos_token_id": 516, "bos_token_id": 517}
        (original / "config.json").write_text(json.dumps(original_config(top=top)))
        message = r"\(516, 517, 518\), but the checkpoint 519 with \(517, 516, 518\)"
        self.refused(original, tmp_path / "out", message, tokenizer=tokenizer_dir)
        self.refused(original, tmp_path / "out", "infos='x' has no use with dico", ValueError, infos="x")


class TestBadArchives:
    def tar(self, path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
        with tarfile.open(path, "w:gz") as archive:
            for info, content in members:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    def zip(self, path: Path, names: dict[str, bytes]) -> Path:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in names.items():
                archive.writestr(name, content)
        return path

    def refused(self, path: Path, message: str) -> None:
        before = sorted(path.parent.iterdir())
        with pytest.raises(ConversionError, match=message):
            convert("dico", path, path.parent / "out")
        assert sorted(path.parent.iterdir()) == before

    @pytest.mark.parametrize("name", ["../pytorch_model.bin", "/tmp/config.json", "a/../../x", "C:\\x", "\\x"])
    def test_names_that_lead_outside(self, tmp_path, name):
        message = "leads out of the archive; such archives are refused"
        self.refused(self.zip(tmp_path / "x.zip", {name: b"", "config.json": b"{}"}), message)
        self.refused(self.tar(tmp_path / "x.tar.gz", (tarfile.TarInfo(name), b"")), message)

    def test_headers_and_sparse_members_of_gigabytes(self, tmp_path: Path) -> None:
        for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
            header = tarfile.TarInfo("x")
            header.type, header.size = kind, 5_000_000
            content = header.tobuf(tarfile.GNU_FORMAT) + bytes(5_000_192)
            (tmp_path / "x.tar.gz").write_bytes(gzip.compress(content))
            self.refused(tmp_path / "x.tar.gz", "a header of [0-9]* bytes; the limit is 4194304")
        sparse = tarfile.TarInfo("pytorch_model.bin")
        sparse.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "5000000", "GNU.sparse.numblocks": "0"}
        self.refused(self.tar(tmp_path / "y.tar.gz", (sparse, b"")), "a sparse file; only files are read")
        large = tarfile.TarInfo("pytorch_model.bin")
        large.size = 2**36 - 1
        (tmp_path / "z.tar").write_bytes(large.tobuf() + bytes(1024))
        self.refused(tmp_path / "z.tar", "more than 10000 members or 67108864 bytes")

    def test_no_space_for_what_is_unpacked(self, original, tmp_path, monkeypatch):
        path = self.zip(tmp_path / "x.zip", {file.name: file.read_bytes() for file in original.iterdir()})
        temporary = tmp_path / "temporary"
        temporary.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
        try:
            with pytest.raises(OSError, match="for the unpacked weights; TMPDIR may name another disk") as error:
                convert("dico", path, tmp_path / "out")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert (error.value.errno, error.value.filename) == (errno.EFBIG, str(temporary))
        assert not list(temporary.iterdir()) and not (tmp_path / "out").exists()

    def test_a_fifo_is_not_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x.tar")
        with pytest.raises(OSError, match="found something that is not a regular file"):
            convert("dico", tmp_path / "x.tar", tmp_path / "out")

    def test_links_and_devices(self, tmp_path):
        for kind, target in ((tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../secret"), (tarfile.FIFOTYPE, "")):
            info = tarfile.TarInfo("pytorch_model.bin")
            info.type, info.linkname = kind, target
            self.refused(self.tar(tmp_path / "x.tar.gz", (info, b"")), "'pytorch_model.bin' is a link, a device or")

    def test_too_much(self, original, tmp_path, monkeypatch):
        content = {path.name: path.read_bytes() for path in original.iterdir()}
        path = self.zip(tmp_path / "x.zip", content)
        monkeypatch.setattr(dico_files, "MAX_BYTES", sum(map(len, content.values())) - 1)
        self.refused(path, "more than 10000 members or [0-9]+ bytes")
        monkeypatch.setattr(dico_files, "MAX_BYTES", 10**9)
        monkeypatch.setattr(dico_files, "MAX_MEMBERS", 1)
        self.refused(path, "more than 1 members")
        infos = [(tarfile.TarInfo(name), content[name]) for name in sorted(content)]
        self.refused(self.tar(tmp_path / "x.tgz", *infos), "more than 1 members")

    def test_what_is_missing_or_twice(self, original, tmp_path):
        content = {path.name: path.read_bytes() for path in original.iterdir()}
        weights = content["pytorch_model.bin"]
        self.refused(self.zip(tmp_path / "a.zip", {"a/config.json": b"{}"}), "are in none")
        several = {"a/pytorch_model.bin": weights, "b/pytorch_model.bin": weights}
        self.refused(self.zip(tmp_path / "b.zip", several), "weights are in a, b")
        apart = {"a/pytorch_model.bin": weights, "config.json": content["config.json"]}
        self.refused(self.zip(tmp_path / "c.zip", apart), r"there is no config\.json beside a/pytorch_model\.bin")

    @pytest.mark.parametrize("suffix", [".zip", ".tar.gz"])
    def test_damage(self, original, tmp_path, suffix):
        files = {path.name: path.read_bytes() for path in original.iterdir()}
        if suffix == ".zip":
            path = self.zip(tmp_path / "x.zip", files)
        else:
            path = self.tar(tmp_path / "x.tar.gz", *((tarfile.TarInfo(name), files[name]) for name in sorted(files)))
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        self.refused(path, "archive")
        middle = len(whole) // 2
        path.write_bytes(whole[:middle] + bytes(2000) + whole[middle + 2000 :])
        self.refused(path, "cannot be read as an archive|is cut off or damaged behind its first 2 members")
        path.write_bytes(b"no archive at all")
        self.refused(path, "archive, or a damaged one")
