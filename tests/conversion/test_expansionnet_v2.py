"""Conversion of ExpansionNet v2 checkpoints in the original's layout: names, sizes, errors and the written folder."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import hf_captioners
from hf_captioners.conversion import convert
from hf_captioners.conversion.expansionnet_v2 import fill_model, original_name, read_source
from hf_captioners.conversion.expansionnet_v2_config import build_config
from hf_captioners.conversion.safe_load import CheckpointError
from hf_captioners.conversion.source import Source
from hf_captioners.conversion.vocabulary import WordVocabulary
from hf_captioners.conversion.writing import ConversionError, ConversionReport

WRITTEN = ["README.md", "card_facts.json", "config.json", "generation_config.json", "model.safetensors"]
WRITTEN += ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
KINDS = {"e2e": "checkpoint.pth", "features": "checkpoint_features.pth"}
# What no tensor shows; the rest of the original's arguments can be left out.
HIDDEN = ("num_heads", "num_exp_enc_list")


def settings(case: Path) -> dict[str, Any]:
    return json.loads((case / "config.json").read_text())


def arguments(case: Path, kind: str = "e2e", **changes: Any) -> dict[str, Any]:
    return {**settings(case)[kind]["args"], **changes}


def state_of(case: Path, kind: str = "e2e") -> dict[str, Tensor]:
    return torch.load(case / KINDS[kind], weights_only=True)["model_state_dict"]


def converted(
    case: Path, out: Path, kind: str = "e2e", checkpoint: Path | None = None, **options: Any
) -> ConversionReport:
    options.setdefault("original_config", arguments(case, kind))
    options.setdefault("vocabulary", settings(case)["vocab"])
    return convert("expansionnet_v2", checkpoint or case / KINDS[kind], out, **options)


@pytest.fixture()
def case_a(request: pytest.FixtureRequest) -> Path:
    return Path(__file__).parents[1] / "fixtures" / "parity" / "expansionnet_v2" / "case_a"


class TestFolder:
    def test_end_to_end(self, parity_case: Path, tmp_path: Path) -> None:
        report = converted(parity_case, tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == WRITTEN
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        card = (tmp_path / "out" / "README.md").read_text("utf-8")
        assert "`hf-captioners convert expansionnet_v2` from the original checkpoint `checkpoint.pth`" in card
        given, special = arguments(parity_case), settings(parity_case)["special"]
        config = AutoModel.from_pretrained(tmp_path / "out").config
        assert (config.num_attention_heads, config.d_model) == (given["num_heads"], given["d_model"])
        assert config.encoder_expansion_groups == given["num_exp_enc_list"]
        assert config.vision_config.image_size == given["swin_img_size"]
        assert config.vision_config.drop_path_rate == 0.0
        assert config.encoder_dropout == config.other_dropout == 0.0
        ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.unk_token_id)
        assert ids == tuple(special[name] for name in ("PAD", "SOS", "EOS", "UNK"))
        assert config.decoder_start_token_id == special["SOS"]
        assert report.config.to_dict()["vision_config"]["depths"] == given["swin_depths"]
        assert report.assumed == {}

    def test_features_only(self, parity_case: Path, tmp_path: Path) -> None:
        report = converted(parity_case, tmp_path / "out", "features")
        model = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
        assert model.config.features_only and model.backbone is None
        assert model.config.feature_size == arguments(parity_case, "features")["img_feature_dim"]
        assert report.dropped == []
        assert set(report.used) == set(state_of(parity_case, "features"))

    def test_weights_survive_the_round_trip(self, parity_case: Path, tmp_path: Path) -> None:
        converted(parity_case, tmp_path / "out")
        model, info = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        ours = model.state_dict()
        rows: dict[str, list[Tensor]] = {}
        for name, tensor in ours.items():
            rows.setdefault(original_name(name), []).append(tensor)
        original = state_of(parity_case)
        for name, parts in rows.items():
            assert torch.equal(torch.cat(parts), original[name]), name
        assert set(original) - set(rows) == {
            name for name in original if name.endswith(("relative_position_index", "attn_mask"))
        }

    def test_backbone_gives_the_original_features(self, parity_case: Path, tmp_path: Path) -> None:
        converted(parity_case, tmp_path / "out")
        model = AutoModel.from_pretrained(tmp_path / "out").eval()
        io = load_file(parity_case / "io.safetensors")
        with torch.no_grad():
            features = model.extract_image_features(io["e2e.images"])
        torch.testing.assert_close(features, io["e2e.backbone_features"], atol=2e-5, rtol=0)

    def test_every_key_is_used_or_named_as_dropped(self, parity_case: Path, tmp_path: Path) -> None:
        report = converted(parity_case, tmp_path / "out")
        original = state_of(parity_case)
        assert set(report.used) | set(report.dropped) == set(original)
        assert len(report.used) + len(report.dropped) == len(original)
        assert all(name.endswith(("relative_position_index", "attn_mask")) for name in report.dropped)

    def test_processor(self, parity_case: Path, tmp_path: Path) -> None:
        converted(parity_case, tmp_path / "out")
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        vocab, special = settings(parity_case)["vocab"], settings(parity_case)["special"]
        assert [processor.tokenizer.convert_ids_to_tokens(index) for index in range(len(vocab))] == vocab
        assert processor.tokenizer.eos_token_id == special["EOS"]
        assert processor.tokenizer.model_max_length == arguments(parity_case)["max_seq_len"]
        side = arguments(parity_case)["swin_img_size"]
        io = load_file(parity_case / "io.safetensors")
        pixels = processor(images=io["prep.image_uint8"].numpy())["pixel_values"]
        assert pixels.shape == (1, 3, side, side)
        assert processor.batch_decode([[special["SOS"], 11, 12, special["EOS"]]]) == [f"{vocab[11]} {vocab[12]}"]

    def test_generation_defaults_are_written(self, case_a: Path, tmp_path: Path) -> None:
        converted(case_a, tmp_path / "out")
        written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert written["num_beams"] == 5
        assert written["eos_token_id"] == settings(case_a)["special"]["EOS"]
        assert written["max_length"] == arguments(case_a)["max_seq_len"]

    def test_overwrite(self, case_a: Path, tmp_path: Path) -> None:
        converted(case_a, tmp_path / "out")
        with pytest.raises(FileExistsError, match="overwrite"):
            converted(case_a, tmp_path / "out", "features")
        assert not AutoModel.from_pretrained(tmp_path / "out").config.features_only
        converted(case_a, tmp_path / "out", "features", overwrite=True)
        assert AutoModel.from_pretrained(tmp_path / "out").config.features_only
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


class TestSources:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_becomes_float32(self, case_a: Path, tmp_path: Path, dtype: torch.dtype) -> None:
        half = {
            name: tensor.to(dtype) if tensor.is_floating_point() else tensor
            for name, tensor in state_of(case_a).items()
        }
        torch.save(half, tmp_path / "half.pth")
        converted(case_a, tmp_path / "out", checkpoint=tmp_path / "half.pth")
        model = AutoModel.from_pretrained(tmp_path / "out")
        assert model.dtype == torch.float32
        assert torch.equal(model.vocab_linear.weight, half["vocab_linear.weight"].float())

    def test_safetensors_and_distributed_prefix(self, case_a: Path, tmp_path: Path) -> None:
        state = state_of(case_a, "features")
        save_file({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "x.safetensors")
        report = converted(case_a, tmp_path / "out", "features", checkpoint=tmp_path / "x.safetensors")
        assert set(report.used) == set(state)

    def test_features_only_drops_the_backbone_by_name(self, parity_case: Path, tmp_path: Path) -> None:
        report = converted(parity_case, tmp_path / "out", features_only=True)
        assert set(report.dropped) == {name for name in state_of(parity_case) if name.startswith("swin_transf.")}
        config = AutoModel.from_pretrained(tmp_path / "out").config
        assert config.features_only and config.feature_size == arguments(parity_case)["final_swin_dim"]
        processor = AutoProcessor.from_pretrained(tmp_path / "out")  # for the pictures that features are made of
        assert processor.image_processor.size["height"] == arguments(parity_case)["swin_img_size"]

    def test_body_and_microsofts_backbone_make_an_end_to_end_model(self, parity_case: Path, tmp_path: Path) -> None:
        state = state_of(parity_case)
        prefix = "swin_transf."
        swin = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        head = {"head.weight": torch.zeros(5, 4), "head.bias": torch.zeros(5)}
        torch.save({"model": swin | head}, tmp_path / "swin.pth")
        body = {name: tensor for name, tensor in state.items() if not name.startswith(prefix)}
        torch.save({"model_state_dict": body}, tmp_path / "body.pth")
        report = converted(
            parity_case, tmp_path / "joined", checkpoint=tmp_path / "body.pth", backbone=tmp_path / "swin.pth"
        )
        assert {"swin_transf.head.weight", "swin_transf.head.bias"} < set(report.dropped)
        assert len(report.used) + len(report.dropped) == len(state) + 2
        converted(parity_case, tmp_path / "whole")
        joined, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("joined", "whole"))
        assert all(torch.equal(tensor, whole[name]) for name, tensor in joined.items()) and len(joined) == len(whole)

    def test_body_and_the_backbone_of_another_end_to_end_checkpoint(self, case_a: Path, tmp_path: Path) -> None:
        state = state_of(case_a)
        body = {name: tensor + 1 for name, tensor in state.items() if not name.startswith("swin_transf.")}
        torch.save(body, tmp_path / "body.pth")
        report = converted(
            case_a, tmp_path / "out", checkpoint=tmp_path / "body.pth", backbone=case_a / "checkpoint.pth"
        )
        model = AutoModel.from_pretrained(tmp_path / "out")
        assert torch.equal(model.vocab_linear.bias, state["vocab_linear.bias"] + 1)
        assert "checkpoint.pth:vocab_linear.bias" in report.dropped
        assert len(report.dropped) == len(body) + 8

    def test_a_backbone_that_has_no_use(self, case_a: Path, tmp_path: Path) -> None:
        backbone = case_a / "checkpoint.pth"
        with pytest.raises(ConversionError, match=r"has a backbone \(swin_transf\.\*\) already"):
            converted(case_a, tmp_path / "out", backbone=backbone)
        with pytest.raises(ConversionError, match="has no use with features_only=True"):
            converted(case_a, tmp_path / "out", "features", features_only=True, backbone=backbone)
        with pytest.raises(ConversionError, match="not a Swin backbone"):
            converted(case_a, tmp_path / "out", "features", backbone=case_a / "checkpoint_features.pth")
        with pytest.raises(ConversionError, match=r"tokens are 96 wide, but input_linear\.weight takes 24"):
            converted(case_a, tmp_path / "out", "features", backbone=backbone)
        assert not (tmp_path / "out").exists()


class TestSizes:
    @pytest.mark.parametrize("kind", KINDS)
    def test_all_sizes_are_read(self, parity_case: Path, tmp_path: Path, kind: str) -> None:
        hidden = {name: value for name, value in arguments(parity_case, kind).items() if name in HIDDEN}
        report = converted(parity_case, tmp_path / "out", kind, original_config=hidden)
        expected = converted(parity_case, tmp_path / "full", kind).config.to_dict()
        found = report.config.to_dict()
        for rate in (
            "encoder_dropout",
            "decoder_dropout",
            "encoder_input_dropout",
            "decoder_input_dropout",
            "other_dropout",
        ):
            assert found.pop(rate) == 0.3 and expected.pop(rate) == 0.0  # not in the tensors: the released rate
        if kind == "e2e":
            assert found["vision_config"].pop("drop_path_rate") == 0.1
            assert expected["vision_config"].pop("drop_path_rate") == 0.0
        assert found == expected
        AutoModel.from_pretrained(tmp_path / "out")  # drop path has no say in the names

    def test_released_checkpoint_needs_no_original_config(self) -> None:
        source = Source("rf_model.pth", released_tensors())
        assert len(source.tensors) == 520
        source.dropped = [name for name in source.tensors if name.endswith(("relative_position_index", "attn_mask"))]
        assert len(source.dropped) == 35
        words = WordVocabulary([str(index) for index in range(10000)], {"PAD": 78, "SOS": 79, "EOS": 77, "UNK": 80})
        config, assumed = build_config(source, {}, words)
        assert assumed == {"num_heads": 8, "num_exp_enc_list": [32, 64, 128, 256, 512]}
        default = hf_captioners.ExpansionNetV2Config().to_dict()
        assert {name: value for name, value in config.to_dict().items() if value != default[name]} == {}
        model = fill_model(source, config)  # of tensors without storage: names and shapes
        assert sum(parameter.numel() for parameter in model.parameters()) == 233_803_076

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("d_model", 64, "d_model: the original configuration says 64, but vocab_linear.weight says 48"),
            ("N_enc", 3, r"N_enc: the original configuration says 3, but encoders\.\* says 2"),
            ("max_seq_len", 74, "max_seq_len: .* 74, but pos_encoder.weight says 20"),
            ("num_exp_dec", 16, r"num_exp_dec: .* 16, but decoders\.0\.dyn_exp\.query_exp_vectors\.weight says 5"),
            ("final_swin_dim", 1536, "final_swin_dim: .* 1536, but input_linear.weight says 96"),
            ("swin_depths", [2, 2, 18, 2], r"swin_depths: .*\[2, 2, 18, 2\], but .* says \[2, 1, 2, 1\]"),
            ("swin_num_heads", [2, 3, 4, 8], r"swin_num_heads: .* says \[2, 3, 4, 6\]"),
            ("swin_window_size", 12, "swin_window_size: .* says 3"),
            ("swin_mlp_ratio", 2.0, "swin_mlp_ratio: .* says 4.0"),
            ("swin_qkv_bias", False, "swin_qkv_bias: .* says True"),
            ("swin_img_size", 384, "swin_img_size: .* 384, but .*attn_mask says 96"),
            ("num_heads", 5, "num_heads=5 does not divide d_model=48"),
            ("num_heads", "4", "num_heads='4' does not divide"),
            ("num_exp_enc_list", [4, 8], "has 24 slots, but the original configuration's num_exp_enc_list .* has 12"),
            ("num_exp_enc_list", 24, "num_exp_enc_list=24 must be a list"),
            ("swin_qk_scale", 0.1, "swin_qk_scale=0.1 is not supported, only None"),
            ("swin_ape", True, "swin_ape=True is not supported, only False"),
            ("swin_patch_norm", False, "swin_patch_norm=False is not supported, only True"),
            ("drop_args", {"encoder": 0.1}, "drop_args=.* must map some of enc, dec, enc_input, dec_input, other"),
            ("drop_args", {"enc": 1.5}, "encoder_dropout"),
            ("swin_drop_path_rate", "much", "drop_path_rate"),
            ("heads", 4, "unknown name 'heads'; the known names are .*num_heads"),
        ],
    )
    def test_contradictions(self, case_a: Path, tmp_path: Path, name: str, value: Any, message: str) -> None:
        with pytest.raises(ConversionError, match=message):
            converted(case_a, tmp_path / "out", original_config=arguments(case_a, **{name: value}))
        assert list(tmp_path.iterdir()) == []

    def test_all_contradictions_at_once(self, case_a: Path, tmp_path: Path) -> None:
        given = arguments(case_a, d_model=1, ff=2, num_exp_dec=3)
        with pytest.raises(ConversionError, match=r"4 problems: .*d_model.*ff.*num_exp_dec.*vocabulary has 47 words"):
            converted(case_a, tmp_path / "out", original_config=given, vocabulary=settings(case_a)["vocab"][:-1])

    def test_released_groups_do_not_fit_other_checkpoints(self, case_a: Path, tmp_path: Path) -> None:
        with pytest.raises(
            ConversionError, match=r"24 slots, but the released .* has 992; give original_config with num_exp_enc"
        ):
            converted(case_a, tmp_path / "out", original_config=None)

    def test_dropouts_and_special_come_with_the_original_config(self, case_a: Path, tmp_path: Path) -> None:
        rates = {"enc": 0.1, "dec": 0.2, "enc_input": 0.3, "dec_input": 0.4, "other": 0.5}
        special = {"PAD": 0, "SOS": 1, "EOS": 2, "UNK": 3}
        given = arguments(case_a, drop_args=rates, special=special, swin_drop_path_rate=0.2, swin_drop_rate=0.05)
        (tmp_path / "config.json").write_text(json.dumps(given))
        config = converted(case_a, tmp_path / "out", original_config=tmp_path / "config.json").config
        assert (config.encoder_dropout, config.decoder_dropout) == (0.1, 0.2)
        assert (config.encoder_input_dropout, config.decoder_input_dropout, config.other_dropout) == (0.3, 0.4, 0.5)
        assert (config.vision_config.drop_path_rate, config.vision_config.hidden_dropout_prob) == (0.2, 0.05)
        assert (config.pad_token_id, config.eos_token_id) == (0, 2)
        tokenizer = AutoProcessor.from_pretrained(tmp_path / "out").tokenizer
        assert (tokenizer.pad_token, tokenizer.eos_token) == ("0", "2")
        again = converted(case_a, tmp_path / "again", original_config=given, special=settings(case_a)["special"])
        assert again.config.pad_token_id == 8  # the argument goes before

    def test_image_size_must_be_given_where_no_mask_shows_it(self, case_a: Path, tmp_path: Path) -> None:
        state = {name: tensor for name, tensor in state_of(case_a).items() if "attn_mask" not in name}
        torch.save(state, tmp_path / "x.pth")
        given = arguments(case_a)
        converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth", original_config=given)
        assert AutoModel.from_pretrained(tmp_path / "out").config.vision_config.image_size == 96
        for size, message in (
            (None, "give original_config with swin_img_size"),
            (48, "1.5 patches wide"),
            (64, "2 patches"),
        ):
            given["swin_img_size"] = size
            with pytest.raises(ConversionError, match=message):
                converted(case_a, tmp_path / "bad", checkpoint=tmp_path / "x.pth", original_config=given)

    @pytest.mark.parametrize("content", ["[1]", "5", "{"])
    def test_original_config_must_be_an_object(self, case_a: Path, tmp_path: Path, content: str) -> None:
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(ValueError, match=r"config\.json: "):
            converted(case_a, tmp_path / "out", original_config=tmp_path / "config.json")


class TestTensors:
    def test_all_problems_are_listed_and_nothing_is_written(self, case_a: Path, tmp_path: Path) -> None:
        state = state_of(case_a)
        del state["encoders.1.ff.linear_2.bias"], state["swin_transf.layers.0.blocks.1.attn.qkv.weight"]
        state["decoders.0.dyn_exp.key_embed.weight"] = state.pop("decoders.0.dyn_exp.key_linear.weight")
        state["swin_transf.norm.bias"] = torch.zeros(95)
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ConversionError) as error:
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")
        assert "x.pth: 5 problems: " in str(error.value)
        for line in (
            "encoders.1.ff.linear_2.bias is missing, expected with shape [48]",
            "swin_transf.layers.0.blocks.1.attn.qkv.weight is missing, expected with shape [36, 12]",
            "decoders.0.dyn_exp.key_linear.weight is missing, expected with shape [48, 48]",
            "decoders.0.dyn_exp.key_embed.weight of shape [48, 48] is not part of the model",
            "swin_transf.norm.bias has shape [95], expected [96]",
        ):
            assert line in str(error.value)
        assert [path.name for path in tmp_path.iterdir()] == ["x.pth"]

    def test_ten_problems_and_a_count(self, case_a: Path, tmp_path: Path) -> None:
        state = {
            name: torch.cat([tensor, tensor]) if "norm_" in name else tensor
            for name, tensor in state_of(case_a).items()
        }
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match=r"20 problems: .*; \.\.\. and 10 more$"):
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")

    def test_a_layer_behind_a_gap_is_extra(self, case_a: Path, tmp_path: Path) -> None:
        state = state_of(case_a, "features")
        state["encoders.7.norm_1.bias"] = torch.zeros(32)
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(
            ConversionError, match=r"encoders\.7\.norm_1\.bias of shape \[32\] is not part of the model"
        ):
            converted(case_a, tmp_path / "out", "features", checkpoint=tmp_path / "x.pth")

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (
                ["vocab_linear.weight", "pos_encoder.weight"],
                "not an ExpansionNet v2 checkpoint: 2 problems: vocab_linear",
            ),
            (
                ["swin_transf.patch_embed.proj.weight"],
                "not a Swin backbone: 1 problem: swin_transf.patch_embed.proj.weight",
            ),
            (["swin_transf.patch_embed.norm.weight"], "swin_patch_norm=False is not supported"),
        ],
    )
    def test_tensors_that_show_sizes(self, case_a: Path, tmp_path: Path, names: list[str], message: str) -> None:
        state = {name: tensor for name, tensor in state_of(case_a).items() if name not in names}
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match=message):
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")

    def test_absolute_positions(self, case_a: Path, tmp_path: Path) -> None:
        torch.save({**state_of(case_a), "swin_transf.absolute_pos_embed": torch.zeros(1, 576, 12)}, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match=r"absolute positions \(swin_ape\) are not supported"):
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")

    def test_another_projects_checkpoint(self, case_a: Path, tmp_path: Path) -> None:
        torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "x.pth")
        with pytest.raises(ConversionError, match=r"x\.pth: not an ExpansionNet v2 checkpoint: 6 problems"):
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")

    def test_shapes_are_compared_before_anything_is_read(self, case_a: Path) -> None:
        """Tensors without storage pass the comparison: it does not touch data."""
        source = read_source(case_a / "checkpoint.pth")
        source.tensors = {name: tensor.to("meta") for name, tensor in source.tensors.items()}
        words = WordVocabulary(settings(case_a)["vocab"], settings(case_a)["special"])
        config, _ = build_config(source, arguments(case_a), words)
        source.tensors["vocab_linear.bias"] = torch.zeros(10**12, device="meta")
        with pytest.raises(ConversionError, match=r"vocab_linear\.bias has shape \[1000000000000\], expected \[48\]"):
            fill_model(source, config)


class TestVocabulary:
    def test_is_required(self, case_a: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="vocabulary is required"):
            converted(case_a, tmp_path / "out", vocabulary=None)

    @pytest.mark.parametrize("suffix", [".pickle", ".json"])
    def test_files(self, case_a: Path, tmp_path: Path, suffix: str) -> None:
        vocab = settings(case_a)["vocab"]
        ids = {word: index for index, word in enumerate(vocab)}
        original = {"word2idx_dict": ids, "idx2word_list": vocab, "sos_str": "SOS", "eos_str": "EOS"}
        path = tmp_path / f"tokens{suffix}"
        path.write_bytes(pickle.dumps(original) if suffix == ".pickle" else json.dumps(vocab).encode())
        report = converted(case_a, tmp_path / "out", vocabulary=path)
        assert report.special_tokens == {"PAD": (8, "PAD"), "SOS": (9, "SOS"), "EOS": (7, "EOS"), "UNK": (10, "UNK")}

    def test_length(self, case_a: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match=r"vocabulary has 47 words, but vocab_linear\.weight 48"):
            converted(case_a, tmp_path / "out", vocabulary=settings(case_a)["vocab"][:-1])

    def test_a_file_that_is_missing(self, case_a: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="tokens"):
            converted(case_a, tmp_path / "out", vocabulary=tmp_path / "tokens.pickle")
        with pytest.raises(FileNotFoundError, match="checkpoint not found"):
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")


def test_unknown_model_type(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name='blip' is not known; expected one of expansionnet_v2"):
        convert("blip", tmp_path / "x.pth", tmp_path / "out")


def test_a_folder_is_no_checkpoint(case_a: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a regular file"):
        converted(case_a, tmp_path / "out", checkpoint=tmp_path)


def released_tensors() -> dict[str, Tensor]:
    """Names and shapes of the released end-to-end checkpoint (specification of the original, section 9), no storage."""
    shapes: dict[str, tuple[int, ...]] = {}

    def linear(name: str, rows: int, columns: int) -> None:
        shapes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def tables(name: str, rows: int) -> None:
        shapes.update({f"{name}.{kind}_exp_vectors.weight": (rows, 512) for kind in ("query", "bias")})

    for layer in range(3):
        encoder, decoder = f"encoders.{layer}", f"decoders.{layer}"
        tables(f"{encoder}.stc_exp", 992)
        tables(f"{decoder}.dyn_exp", 16)
        for name in ("key_embed", "class_a_embed", "class_b_embed", "selector_embed"):
            linear(f"{encoder}.stc_exp.{name}", 512, 512)
        for name in ("cond_embed", "key_linear", "class_a_embed", "class_b_embed", "selector_embed"):
            linear(f"{decoder}.dyn_exp.{name}", 512, 512)
        for name in ("Wq", "Wk", "Wv", "out_linear"):
            linear(f"{decoder}.mha.{name}", 512, 512)
        for block, norms in ((encoder, 2), (decoder, 3)):
            linear(f"{block}.ff.linear_1", 2048, 512)
            linear(f"{block}.ff.linear_2", 512, 2048)
            for index in range(norms):
                norm(f"{block}.norm_{index + 1}", 512)
    linear("input_linear", 512, 1536)
    linear("vocab_linear", 10000, 512)
    shapes.update({"out_embedder.embed.weight": (10000, 512), "pos_encoder.weight": (74, 512)})
    for side in ("enc", "dec"):
        linear(f"{side}_reduce_group", 512, 1536)
        norm(f"{side}_reduce_norm", 512)

    shapes.update({"swin_transf.patch_embed.proj.weight": (192, 3, 4, 4), "swin_transf.patch_embed.proj.bias": (192,)})
    norm("swin_transf.patch_embed.norm", 192)
    norm("swin_transf.norm", 1536)
    for stage, (depth, heads) in enumerate(zip((2, 2, 18, 2), (6, 12, 24, 48), strict=True)):
        width = 192 * 2**stage
        for index in range(depth):
            block = f"swin_transf.layers.{stage}.blocks.{index}"
            norm(f"{block}.norm1", width)
            norm(f"{block}.norm2", width)
            linear(f"{block}.attn.qkv", 3 * width, width)
            linear(f"{block}.attn.proj", width, width)
            linear(f"{block}.mlp.fc1", 4 * width, width)
            linear(f"{block}.mlp.fc2", width, 4 * width)
            shapes[f"{block}.attn.relative_position_bias_table"] = (529, heads)
            shapes[f"{block}.attn.relative_position_index"] = (144, 144)
            if index % 2 and stage < 3:
                shapes[f"{block}.attn_mask"] = (64 // 4**stage, 144, 144)
        if stage < 3:
            shapes[f"swin_transf.layers.{stage}.downsample.reduction.weight"] = (2 * width, 4 * width)
            norm(f"swin_transf.layers.{stage}.downsample.norm", 4 * width)
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
