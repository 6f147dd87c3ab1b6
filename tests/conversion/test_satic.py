"""Conversion of SATIC checkpoints and their infos files: the written folder, errors by name, and that nothing runs."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForImageTextToText, AutoProcessor

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.conversion import convert
from hf_captioners.conversion.safe_load import CheckpointError, load_plain_pickle
from hf_captioners.conversion.satic_infos import build_tokenizer, read_infos
from hf_captioners.conversion.stand_ins import OPTIONS, OptionBag
from hf_captioners.conversion.writing import ConversionError, ConversionReport

CASES = Path(__file__).resolve().parents[1] / "fixtures" / "parity" / "satic"
WRITTEN = ["README.md", "card_facts.json", "config.json", "generation_config.json", "model.safetensors"]
WRITTEN += ["processor_config.json", "tokenizer.json", "tokenizer_config.json"]
POSITIONS = "model.tgt_embed.1.pe"


@pytest.fixture(params=["case_a", "case_b"])
def case(request: pytest.FixtureRequest) -> Path:
    return CASES / request.param


@pytest.fixture()
def case_a() -> Path:
    return CASES / "case_a"


def settings(case: Path) -> dict[str, Any]:
    return json.loads((case / "config.json").read_text())


def state_of(case: Path) -> dict[str, Tensor]:
    return torch.load(case / "model.pth", weights_only=True)


def converted(case: Path, out: Path, **options: Any) -> ConversionReport:
    options = {"infos": case / "infos.pkl", "num_heads": settings(case)["num_heads"], **options}
    return convert("satic", options.pop("checkpoint", case / "model.pth"), out, **options)


def write_infos(path: Path, case: Path, changes: dict[str, Any] | None = None, **entries: Any) -> Path:
    """An infos file as the original writes it, with some options and entries changed; `None` leaves an option out."""
    opt = {**settings(case)["opt"], **(changes or {})}
    opt = {name: value for name, value in opt.items() if value is not None}
    words = read_infos(case / "infos.pkl").words[1:]
    vocab = {str(index): word for index, word in enumerate(words, start=1)}
    score = np.float64(1.25)
    content = {"iter": 7, "vocab": vocab, "opt": argparse.Namespace(**opt), "best_val_score": score, **entries}
    path.write_bytes(pickle.dumps(content, protocol=2))
    return path


class TestFolder:
    def test_everything_is_there(self, case: Path, tmp_path: Path) -> None:
        report = converted(case, tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == WRITTEN
        config, opt = AutoModel.from_pretrained(tmp_path / "out").config, settings(case)["opt"]
        assert (config.vocab_size, config.group_size) == (opt["vocab_size"] + 1, opt["K"])
        assert (config.d_model, config.ffn_dim) == (opt["input_encoding_size"], opt["rnn_size"])
        assert config.encoder_layers == config.decoder_layers == opt["num_layers"]
        assert config.num_attention_heads == settings(case)["num_heads"]
        assert (config.feature_size, config.feature_batch_norm) == (opt["att_feat_size"], opt["use_bn"])
        assert (config.training_mask, config.label_length) == ("original", opt["seq_length"])
        assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 0, 0)
        assert config.unk_token_id == opt["vocab_size"]
        assert report.assumed == {}
        assert report.special_tokens["UNK"] == (opt["vocab_size"], "UNK")

    def test_weights_survive_the_round_trip(self, case: Path, tmp_path: Path) -> None:
        report = converted(case, tmp_path / "out")
        model, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
        ours, original = model.state_dict(), state_of(case)
        assert set(report.used) | set(report.dropped) == set(original)
        assert len(report.used) + len(report.dropped) == len(original)
        assert all(name.endswith("num_batches_tracked") for name in report.dropped)
        for name in report.used:
            assert torch.equal(ours[name], original[name]), name

    def test_processor(self, case: Path, tmp_path: Path) -> None:
        converted(case, tmp_path / "out")
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert isinstance(processor, hf_captioners.SaticProcessor)
        unknown = settings(case)["opt"]["vocab_size"]
        batch = processor(text_target=["w001 w002.", "W003, a dog"])
        assert batch["labels"].tolist() == [[1, 2, 0, -100], [3, unknown, unknown, 0]]
        assert processor(text="w005")["decoder_input_ids"].tolist() == [[0, 5]]
        assert processor.batch_decode([[0, 1, 2, 0, 3], [0, unknown, 0, 0], [0, 0, 0, 0]]) == ["w001 w002", "UNK", ""]
        longest = settings(case)["opt"]["seq_length"]
        labels = processor(text_target=" ".join(["w001"] * 40))["labels"]
        assert labels.tolist() == [[1] * longest + [0]]  # cut as in the original's label file

    def test_generation_defaults(self, case: Path, tmp_path: Path) -> None:
        converted(case, tmp_path / "out")
        written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
        assert written["max_length"] == settings(case)["opt"]["max_length"] + 1
        assert (written["decoding"], written["suppress_unk"], written["reference_quirks"]) == ("paper", "beams", False)

    def test_pipeline(self, case: Path, tmp_path: Path) -> None:
        converted(case, tmp_path / "out")
        captioner = hf_captioners.pipeline(model=str(tmp_path / "out"))
        regions = torch.rand(4, settings(case)["opt"]["att_feat_size"])
        assert captioner(regions, num_beams=3)[0]["generated_text"].startswith("w")

    def test_a_vocabulary_without_unk(self, case_a: Path, tmp_path: Path) -> None:
        """No word is avoided: captions are those of the same weights with the unknown word allowed."""
        words = read_infos(case_a / "infos.pkl").words
        vocab = {str(index): word for index, word in enumerate([*words[1:-1], "zebra"], start=1)}
        report = converted(case_a, tmp_path / "out", infos=write_infos(tmp_path / "x.pkl", case_a, vocab=vocab))
        converted(case_a, tmp_path / "with")
        assert "UNK" not in report.special_tokens
        processor = AutoProcessor.from_pretrained(tmp_path / "out")
        assert processor.tokenizer.unk_token is None and processor.batch_decode([[0, len(words) - 1]]) == ["zebra"]
        assert processor(text_target="w001 zebra")["labels"].tolist() == [[1, len(words) - 1, 0]]
        for name in ("text", "text_target"):
            with pytest.raises(ValueError, match="the vocabulary has neither 'unheard' nor an unknown word"):
                processor(**{name: "W001 unheard"})
        models = [AutoModelForImageTextToText.from_pretrained(tmp_path / name).eval() for name in ("out", "with")]
        assert models[0].config.unk_token_id is None
        bias = "model.generator.proj.bias"
        features = torch.rand(2, 5, models[0].config.feature_size, generator=torch.Generator().manual_seed(0))
        captions = []
        for model, suppress in zip(models, ("beams", False), strict=True):
            model.get_parameter(bias).data[len(words) - 1] += 50
            captions.append(model.generate(image_features=features, num_beams=3, suppress_unk=suppress))
        assert torch.equal(*captions) and (captions[0] == len(words) - 1).any()

    def test_heads_are_assumed_as_released(
        self, case_a: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        report = converted(case_a, tmp_path / "out", num_heads=None)
        assert report.assumed == {"num_heads": 8}
        assert "the number of heads is in none of the files, 8 were assumed" in caplog.text
        assert AutoModel.from_pretrained(tmp_path / "out").config.num_attention_heads == 8

    def test_the_untouched_files(self, shared_parity: Path, tmp_path: Path, case: Path) -> None:
        original = shared_parity / "satic" / case.name
        report = converted(original, tmp_path / "whole")
        converted(case, tmp_path / "small")
        assert POSITIONS in report.dropped
        whole, small = (AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("whole", "small"))
        assert whole.keys() == small.keys() and all(torch.equal(whole[name], small[name]) for name in whole)

    def test_safetensors_and_half_precision(self, case_a: Path, tmp_path: Path) -> None:
        save_file({name: one.half() for name, one in state_of(case_a).items()}, tmp_path / "x.safetensors")
        converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.safetensors")
        model = AutoModel.from_pretrained(tmp_path / "out")
        assert model.dtype == torch.float32

    def test_the_teacher_is_a_group_of_one(self, case_a: Path, tmp_path: Path) -> None:
        infos = write_infos(tmp_path / "infos.pkl", case_a, {"caption_model": "transformer", "K": 6})
        converted(case_a, tmp_path / "teacher", infos=infos)
        assert AutoModel.from_pretrained(tmp_path / "teacher").config.group_size == 1
        converted(case_a, tmp_path / "student")
        student = AutoModel.from_pretrained(tmp_path / "teacher", group_size=2).eval()
        features = torch.rand(2, 4, student.config.feature_size)
        expected = AutoModel.from_pretrained(tmp_path / "student").eval().generate(image_features=features)
        assert torch.equal(student.generate(image_features=features), expected)

    def test_features_with_boxes(self, case_a: Path, tmp_path: Path) -> None:
        infos = write_infos(tmp_path / "infos.pkl", case_a, {"use_box": 1, "att_feat_size": 43})
        converted(case_a, tmp_path / "out", infos=infos)
        assert AutoModel.from_pretrained(tmp_path / "out").config.feature_size == 48

    def test_the_longest_caption_is_that_of_the_labels_by_default(self, case_a: Path, tmp_path: Path) -> None:
        for name, value in (("zero", 0), ("missing", None)):
            infos = write_infos(tmp_path / "infos.pkl", case_a, {"max_length": value})
            converted(case_a, tmp_path / name, infos=infos)
            assert AutoModel.from_pretrained(tmp_path / name).generation_config.max_length == 17


class TestErrors:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"K": None}, "option K is None"),
            ({"K": "4"}, "option K is '4'"),
            ({"caption_model": "updown"}, "caption_model is 'updown', expected 'sat' or 'transformer'"),
            ({"vocab_size": 66}, "vocab has 67 words, but option vocab_size is 66"),
            ({"input_encoding_size": 32}, "input_encoding_size: .* says 32, but the tensors say 64"),
            ({"num_layers": 3, "use_bn": 1}, "2 problems: num_layers: .* says 3.*use_bn: .* says 1"),
            ({"use_box": 1}, "att_feat_size: .* says 48, but the tensors say 43"),
            ({"seq_length": None}, "option seq_length is None, expected a whole number"),
            ({"max_length": 20.5}, "option max_length is 20.5, expected a whole number"),
            ({"drop_prob_lm": 1.5}, "feature_dropout must be in"),
        ],
    )
    def test_options(self, case_a: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        infos = write_infos(tmp_path / "infos.pkl", case_a, changes)
        with pytest.raises(ConversionError, match=message):
            converted(case_a, tmp_path / "out", infos=infos)
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("vocab", "message"),
        [
            ({"1": "a", "3": "UNK"}, "no word for id 2; expected ids from 1 to 2"),
            ({"0": "a", "1": "UNK"}, "no word for id 2"),
            ({}, "no word for id 1"),
            ({"1": "a", "2": "a", "3": "UNK"}, "vocab has 'a' twice"),
            ({"1": 5, "2": "UNK"}, "no word for id 1"),
        ],
    )
    def test_words(self, case_a: Path, tmp_path: Path, vocab: dict, message: str) -> None:
        infos = write_infos(tmp_path / "infos.pkl", case_a, {"vocab_size": None}, vocab=vocab)
        with pytest.raises(ConversionError, match=message):
            read_infos(infos)

    def test_words_of_another_model(self, case_a: Path, tmp_path: Path) -> None:
        infos = write_infos(tmp_path / "x.pkl", case_a, {"vocab_size": None}, vocab={"1": "a", "2": "UNK"})
        with pytest.raises(ConversionError, match="has 2 words, but the tensors 67 and an end"):
            converted(case_a, tmp_path / "out", infos=infos)

    def test_infos_are_required(self, case_a: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="infos is required"):
            converted(case_a, tmp_path / "out", infos=None)
        with pytest.raises(FileNotFoundError, match=r"nothing\.pkl"):
            converted(case_a, tmp_path / "out", infos=tmp_path / "nothing.pkl")

    def test_options_of_other_models(self, case_a: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="features_only=True has no use with satic, whose options are infos"):
            converted(case_a, tmp_path / "out", features_only=True)
        with pytest.raises(ValueError, match="num_heads=8 has no use with expansionnet_v2"):
            convert("expansionnet_v2", case_a / "model.pth", tmp_path / "out", num_heads=8)

    def test_heads_that_do_not_divide_the_width(self, case_a: Path, tmp_path: Path) -> None:
        with pytest.raises(ConversionError, match="num_attention_heads=7 must divide d_model=64"):
            converted(case_a, tmp_path / "out", num_heads=7)

    def test_tensors_are_missing_extra_and_misshapen(self, case_a: Path, tmp_path: Path) -> None:
        state = state_of(case_a)
        del state["model.decoder.norm.a_2"]
        state["model.extra"] = torch.zeros(3)
        state["model.encoder.norm.b_2"] = torch.zeros(5)
        torch.save(state, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match="3 problems") as error:
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")
        for part in ("model.decoder.norm.a_2 is missing", "model.extra of shape [3] is not part", "has shape [5]"):
            assert part in str(error.value)

    def test_another_projects_checkpoint(self, case_a: Path, tmp_path: Path) -> None:
        torch.save({"layers.0.weight": torch.zeros(2, 2)}, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match="not a SATIC checkpoint"):
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")

    @pytest.mark.parametrize("table", [torch.zeros(1, 9, 64), torch.zeros(9, 64), torch.zeros(1, 9, 63)])
    def test_other_positions(self, case_a: Path, tmp_path: Path, table: Tensor) -> None:
        torch.save({**state_of(case_a), POSITIONS: table}, tmp_path / "x.pth")
        with pytest.raises(ConversionError, match="is not the table of sinusoids"):
            converted(case_a, tmp_path / "out", checkpoint=tmp_path / "x.pth")


class RunsACommand:
    """Unpickled without care it would create the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


def python2_pickle(value: Any) -> bytes:
    """The opcodes that Python 2 writes, with its strings of bytes; a `bytes` value is a NumPy float64."""
    if isinstance(value, argparse.Namespace):
        return b"cargparse\nNamespace\n)\x81" + python2_pickle(vars(value)) + b"b"
    if isinstance(value, bytes):
        state = b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        kind = b"cnumpy\ndtype\nU\x02f8K\x00K\x01\x87R" + state
        return b"cnumpy.core.multiarray\nscalar\n" + kind + b"U\x08" + value + b"\x86R"
    if isinstance(value, dict):
        return b"}(" + b"".join(python2_pickle(part) for item in value.items() for part in item) + b"u"
    if isinstance(value, str):
        return b"U" + bytes([len(value)]) + value.encode()
    return b"N" if value is None else b"J" + struct.pack("<i", value)


class TestInfos:
    def test_options_words_and_score_are_read(self, case: Path) -> None:
        infos = read_infos(case / "infos.pkl")
        opt = settings(case)["opt"]
        assert {name: infos.options[name] for name in opt} == opt
        assert len(infos.words) == opt["vocab_size"] + 1 and infos.words[-1] == "UNK"
        content = load_plain_pickle(case / "infos.pkl", stand_ins=OPTIONS)
        assert isinstance(content["best_val_score"], float)

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_numbers_of_numpy(self, tmp_path: Path, protocol: int) -> None:
        values = {
            "a": np.float64(-1.5),
            "b": np.float32(2.0),
            "c": np.int64(3),
            "d": np.bool_(True),
            "e": np.str_("dög"),
        }
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
        read = load_plain_pickle(tmp_path / "x.pkl", stand_ins=OPTIONS)
        assert [type(value) for value in read.values()] == [float, float, int, bool, str]
        assert read == {
            "a": -1.5,
            "b": 2.0,
            "c": 3,
            "d": True,
            "e": "dög",
        }

    def test_python_2(self, case_a: Path, tmp_path: Path) -> None:
        opt = argparse.Namespace(caption_model="sat", K=3, seq_length=16, start_from=None)
        content = {"opt": opt, "vocab": {"1": "a", "2": "UNK"}, "best_val_score": struct.pack("<d", 1.27)}
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02" + python2_pickle(content) + b".")
        infos = read_infos(tmp_path / "x.pkl")
        assert (infos.words, infos.group_size) == (["<end>", "a", "UNK"], 3)
        assert infos.options == vars(opt)
        read = load_plain_pickle(tmp_path / "x.pkl", stand_ins=OPTIONS, encoding="latin-1")
        assert read["best_val_score"] == 1.27

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_every_protocol_and_ids_of_numpy(self, tmp_path: Path, protocol: int) -> None:
        opt = argparse.Namespace(caption_model="sat", K=np.int64(3), checkpoint_path=Path("log/sat"))
        content = {"opt": opt, "vocab": {np.int64(2): np.str_("UNK"), np.int32(1): "a"}, "order": np.arange(3)}
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol))
        infos = read_infos(tmp_path / "x.pkl")
        assert (infos.words, infos.group_size, infos.unknown) == (["<end>", "a", "UNK"], 3, 2)
        assert infos.options["checkpoint_path"] == "log/sat"

    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_nothing_runs(self, case_a: Path, tmp_path: Path, protocol: int) -> None:
        path = tmp_path / "infos.pkl"
        for content in ({"opt": RunsACommand(tmp_path / "ran")}, {"vocab": {"1": RunsACommand(tmp_path / "ran")}}):
            path.write_bytes(pickle.dumps(content, protocol=protocol))
            with pytest.raises(CheckpointError, match=r"refers to (posix|nt|os)\.system"):
                converted(case_a, tmp_path / "out", infos=path)
        assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()

    @pytest.mark.parametrize("name", ["builtins.getattr", "builtins.eval", "numpy.load", "argparse.FileType"])
    def test_other_names_are_refused(self, tmp_path: Path, name: str) -> None:
        module, _, attribute = name.rpartition(".")
        (tmp_path / "x.pkl").write_bytes(f"c{module}\n{attribute}\n.".encode())
        with pytest.raises(CheckpointError, match=f"refers to {name}"):
            read_infos(tmp_path / "x.pkl")

    @pytest.mark.parametrize(
        "content",
        [
            b"cargparse\nNamespace\n}U\x01aK\x01sb.",  # the class itself gets an attribute
            b"cargparse\nNamespace\nN}U\x01aK\x01s\x86b.",  # as a slot
            b"cnumpy\ndtype\nN}U\x01aK\x01s\x86b.",
            b"c_codecs\nencode\nN}U\x08__call__K\x01s\x86b.",
            b"cargparse\nNamespace\nN}U\x0c__setstate__K\x01s\x86b.",
        ],
    )
    def test_what_stands_in_cannot_be_changed(self, tmp_path: Path, content: bytes) -> None:
        before = [dict(vars(OptionBag)), *(type(one) for one in OPTIONS.values())]
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02" + content)
        with pytest.raises(CheckpointError):
            load_plain_pickle(tmp_path / "x.pkl", stand_ins=OPTIONS)
        assert [dict(vars(OptionBag)), *(type(one) for one in OPTIONS.values())] == before

    def test_bytes_in_another_encoding(self, tmp_path: Path) -> None:
        (tmp_path / "x.pkl").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.")
        with pytest.raises(CheckpointError, match="encodes bytes as 'hex'"):
            read_infos(tmp_path / "x.pkl")

    @pytest.mark.parametrize("content", [[], {}, {"opt": {}, "vocab": {}}, {"opt": argparse.Namespace(), "vocab": []}])
    def test_other_content(self, tmp_path: Path, content: Any) -> None:
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(content, protocol=2))
        with pytest.raises(ConversionError, match="expected a dict with 'opt', an argparse"):
            read_infos(tmp_path / "x.pkl")


class TestTokenizer:
    WORDS = ("<end>", "a", "man", "s", "t", "shirt", "tug", "of", "war", "UNK")

    def test_captions_become_karpathys_tokens(self) -> None:
        tokenizer = build_tokenizer(self.WORDS, model_max_length=18)
        for caption, words in (
            ("A man's T-shirt.", "a man s t shirt"),
            ("  Tug-of-war, (a) man!", "tug of war a man"),
            ("tug_of war <end> UNK unk 0", "UNK war UNK UNK UNK UNK"),
        ):
            ids = tokenizer(caption).input_ids
            assert ids == [0, *(self.WORDS.index(word) for word in words.split()), 0]

    def test_real_captions(self, shared_data: Path) -> None:
        """The tokens of Karpathy's own files."""
        images = json.loads((shared_data / "flickr8k_mini" / "dataset_karpathy.json").read_text())["images"]
        sentences = [sentence for image in images for sentence in image["sentences"]][:4000]
        words = dict.fromkeys(word for sentence in sentences for word in sentence["tokens"])
        tokenizer = build_tokenizer(["<end>", *words, "UNK"], model_max_length=100)
        raw = tokenizer([sentence["raw"] for sentence in sentences]).input_ids
        for ids, sentence in zip(raw, sentences, strict=True):
            assert tokenizer.convert_ids_to_tokens(ids[1:-1]) == sentence["tokens"]
            assert tokenizer.decode(ids[1:-1]) == " ".join(sentence["tokens"])

    def test_words_of_another_kind_are_split_at_white_space(self) -> None:
        words = ["<end>", "a", "Man's", ".", "UNK"]
        assert build_tokenizer(words, model_max_length=18)("a Man's . A").input_ids == [0, 1, 2, 3, 4, 0]


def test_command_line(case_a: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["convert", "satic", str(case_a / "model.pth"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "arguments are required: --infos" in capsys.readouterr().err
    assert main([*arguments, "--infos", str(case_a / "infos.pkl")]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out_dir": str(tmp_path / "out")}
    assert "93 tensors converted, 0 dropped" in captured.err
    assert "PAD=0 ('<end>') SOS=0 ('<end>') EOS=0 ('<end>') UNK=67 ('UNK')" in captured.err
    assert "assumed, as released: num_heads=8" in captured.err
    again = [*arguments, "--infos", str(case_a / "infos.pkl"), "--num-heads", "4", "--overwrite"]
    assert main(again) == 0
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_attention_heads"] == 4
