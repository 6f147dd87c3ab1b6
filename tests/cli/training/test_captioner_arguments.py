"""The captioner that options describe: a new one, a saved one, with and without adapters."""

from __future__ import annotations

import json

import pytest
import torch
from contracts.reward_policies import LORA_TARGETS, SIDE, TOKENIZER, tiny_policy, tiny_processor
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForImageTextToText, VisionEncoderDecoderModel, ViTImageProcessorPil

from hf_captioners import CaptionerProcessor, FeatureStore, SaticForImageCaptioning
from hf_captioners.cli.training.captioner_arguments import (
    CaptionerArguments,
    captioner_class,
    check_new_captioner,
    load_captioner,
)
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features

PIXELS = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def save(folder, kind="satic"):
    tiny_policy(kind).save_pretrained(folder)
    if kind == "vision-encoder-decoder":  # as transformers leaves such a folder
        ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
        TOKENIZER.save_pretrained(folder)
    else:
        tiny_processor(kind).save_pretrained(folder)
    return str(folder)


def save_adapters(base, folder, kind="satic", with_processor=True):
    """Adapters that have learned something, with the processor, as the trainers leave them."""
    model, processor, _ = load_captioner(CaptionerArguments(base))
    torch.manual_seed(0)
    targets = LORA_TARGETS.get(kind, getattr(model, "LORA_TARGET_MODULES", None))
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted.save_pretrained(folder)
    if with_processor:
        processor.save_pretrained(folder)
    return adapted.eval()


@torch.no_grad()
def captions(model):
    return model.eval().generate(pixel_values=PIXELS, max_length=8, num_beams=2)


class TestCaptioner:
    @pytest.mark.parametrize("kind", ["satic", "vision-encoder-decoder"])
    @pytest.mark.parametrize("with_processor", [True, False])
    def test_adapters_go_on_learning(self, tmp_path, kind, with_processor):
        base = save(tmp_path / "base", kind)
        saved = save_adapters(base, tmp_path / "adapters", kind, with_processor)
        model, processor, new = load_captioner(CaptionerArguments(str(tmp_path / "adapters")))
        assert isinstance(model, PeftModel) and new is None
        assert list(model.peft_config) == ["default"]
        state, expected = model.state_dict(), saved.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[name], expected[name]) for name in state)
        assert torch.equal(captions(model), captions(saved))
        learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert learning == {name for name in state if "lora_" in name}
        assert processor.batch_decode([[processor.tokenizer.bos_token_id]]) == [""]

    def test_new_adapters(self, tmp_path):
        base = save(tmp_path / "base")
        assert load_captioner(CaptionerArguments(base, lora_rank=3))[2].lora_alpha == 6
        config = load_captioner(
            CaptionerArguments(base, lora_rank=3, lora_alpha=1.5, lora_target_modules=["linear_q"])
        )[2]
        assert (config.r, config.lora_alpha, config.target_modules) == (3, 1.5, {"linear_q"})
        with pytest.raises(ValueError, match=r"lora_alpha=4\.0 is of new adapters; give lora_rank too"):
            CaptionerArguments(base, lora_alpha=4.0)

    def test_adapters_that_cannot_be_trained_on(self, tmp_path):
        base = save(tmp_path / "base")
        save_adapters(base, tmp_path / "adapters")
        adapters = CaptionerArguments(str(tmp_path / "adapters"), lora_rank=2)
        with pytest.raises(ValueError, match=r"--lora_rank 2: --model .*adapters has adapters already"):
            load_captioner(adapters)
        adapters.lora_rank = 0
        settings = tmp_path / "adapters" / "adapter_config.json"
        written = settings.read_text()
        settings.write_text(written.replace(base, str(tmp_path / "gone")))
        with pytest.raises(ValueError, match=r"--model .*adapters: the adapters belong to .*gone: there is no such"):
            load_captioner(adapters)
        settings.write_text(written.replace(base, str(tmp_path / "adapters")))
        with pytest.raises(ValueError, match=r"belong to .*adapters, which has adapters itself"):
            load_captioner(adapters)

    def test_adapters_in_the_folder_of_their_captioner(self, tmp_path):
        base = save(tmp_path / "base")
        save_adapters(base, tmp_path / "base")
        with pytest.raises(ValueError, match=r"base: has a captioner and adapters in one folder; move the"):
            load_captioner(CaptionerArguments(base))

    def test_vision_encoder_decoder(self, tmp_path):
        folder = save(tmp_path / "base", "vision-encoder-decoder")
        model, processor, _ = load_captioner(CaptionerArguments(folder))
        assert isinstance(model, VisionEncoderDecoderModel) and type(processor) is CaptionerProcessor
        assert captions(model).shape[0] == 2
        processor.save_pretrained(tmp_path / "again")  # as a trainer saves it
        model.save_pretrained(tmp_path / "again")
        _, again, _ = load_captioner(CaptionerArguments(str(tmp_path / "again")))
        assert again.image_processor.to_dict() == processor.image_processor.to_dict()

    def test_vision_encoder_decoder_without_end(self, tmp_path):
        folder = save(tmp_path / "base", "vision-encoder-decoder")
        model = VisionEncoderDecoderModel.from_pretrained(folder)
        model.generation_config.eos_token_id = model.generation_config.pad_token_id
        model.generation_config.save_pretrained(folder)
        with pytest.raises(ValueError, match=r"captions end with .* in generation_config.json, but with .* they must"):
            load_captioner(CaptionerArguments(folder))
        model.generation_config.eos_token_id = model.generation_config.pad_token_id = None
        model.generation_config.save_pretrained(folder)
        message = "missing in generation_config.json: eos_token_id, generation_config.json: pad_token_id; set them"
        with pytest.raises(ValueError, match=message):
            load_captioner(CaptionerArguments(folder))

    def test_there_is_no_such_model(self, tmp_path):
        for name in ("no_such", str(tmp_path / "no_such")):
            with pytest.raises(ValueError, match=rf"^--model {name}: there is no such file or folder.*[^\n]*$"):
                load_captioner(CaptionerArguments(name))

    def test_of_another_model_type(self, tmp_path):
        folder = save(tmp_path / "satic")
        message = f"--model {folder}: is a satic, and the options are those of a dico .* give --model_type satic"
        with pytest.raises(ValueError, match=message):
            load_captioner(CaptionerArguments(folder, model_type="dico"))
        assert isinstance(load_captioner(CaptionerArguments(folder, model_type="satic"))[0], SaticForImageCaptioning)

    def test_fields_that_differ(self, tmp_path):
        folder = save(tmp_path / "satic")
        model = AutoModelForImageTextToText.from_pretrained(folder)
        options = {"dropout": 0.25, "vision_config": {"hidden_dropout_prob": 0.5}}
        found, _, _ = load_captioner(CaptionerArguments(folder, model_options=json.dumps(options)))
        assert (found.config.dropout, found.config.vision_config.hidden_dropout_prob) == (0.25, 0.5)
        changed = {**model.config.to_dict(), "dropout": 0.25}
        changed["vision_config"]["hidden_dropout_prob"] = 0.5
        assert found.config.to_dict() | {"dtype": None} == changed | {"dtype": None}
        wrong = CaptionerArguments(folder, model_options={"vision_config": {"hidden_dropout": 0.5}})
        with pytest.raises(
            ValueError, match=r"--model_options vision_config hidden_dropout: no field of .*hidden_dropout_prob"
        ):
            load_captioner(wrong)


class TestNew:
    SIZES = {"group_size": 2, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16, "min_count": 1}
    LAYERS = {"encoder_layers": 1, "decoder_layers": 1}

    @pytest.fixture()
    def rows(self, tmp_path):
        with FeatureWriter(tmp_path / "features") as writer:
            writer.add(1, torch.ones(2, 5))
        dataset = Dataset.from_dict({"image_id": [1], "captions": [["a dog", "two dogs"]]})
        return attach_features(dataset, FeatureStore(tmp_path / "features"))

    def test_of_cached_features(self, rows):
        arguments = CaptionerArguments(
            model_type="satic", new_captioner={**self.SIZES, "dropout": 0.3}, model_options=json.dumps(self.LAYERS)
        )
        model, processor, adapters = load_captioner(arguments, rows)
        assert isinstance(model, SaticForImageCaptioning) and adapters is None
        assert (model.config.feature_size, model.config.encoder_layers, model.config.dropout) == (5, 1, 0.3)
        assert {"a", "two", "dog", "dogs"} <= set(processor.tokenizer.get_vocab())

    @pytest.mark.parametrize("kind", ["expansionnet_v2", "satic", "dico", "clip_gpt2", "scdnet"])
    def test_without_eyes(self, kind):
        blind = CaptionerArguments(model_type=kind)
        with pytest.raises(ValueError, match=rf"^--backbone: a new {kind} needs .* or give --features, .* or --model"):
            check_new_captioner(blind, None, "none")
        check_new_captioner(blind, "features", "none")
        check_new_captioner(CaptionerArguments(model_type=kind, backbone="swin"), None, "none")
        fresh = CaptionerArguments(model_type=kind, new_captioner={"vision_config": {"model_type": "swin"}})
        with pytest.raises(
            ValueError, match="--train_backbone none: the backbone of this vision_config has learned no"
        ):
            check_new_captioner(fresh, None, "none")
        check_new_captioner(fresh, None, "all")

    def test_few_captions_are_told(self, rows, caplog):
        options = {**self.SIZES, **self.LAYERS}
        load_captioner(CaptionerArguments(model_type="satic", new_captioner=options), rows)
        (said,) = [record.message for record in caplog.records if "are few to learn a language from" in record.message]
        assert said.startswith("2 captions of 1 pictures are few") and "--model" in said and "\n" not in said

    def test_tokenizer_and_rule_of_words(self, rows):
        options = {**self.SIZES, **self.LAYERS}
        _, processor, _ = load_captioner(
            CaptionerArguments(model_type="satic", new_captioner={**options, "word_rule": "unicode"}), rows
        )
        assert processor.tokenizer.tokenize("小狗") == ["UNK", "UNK"]  # letter by letter
        named = CaptionerArguments(model_type="satic", new_captioner={**options, "word_rule": "shlex:split"})
        with pytest.raises(
            ValueError, match="'shlex:split' names a function, which runs only with --trust_remote_code"
        ):
            load_captioner(named, rows)
        TOKENIZER.save_pretrained(rows.store.folder)
        own = CaptionerArguments(model_type="satic", tokenizer=str(rows.store.folder), new_captioner=options)
        assert load_captioner(own, rows)[1].tokenizer.get_vocab() == TOKENIZER.get_vocab()

    def test_mistakes(self, rows):
        for model_type, said in ((None, "--model_type: expected"), ("sattic", "--model_type sattic: expected")):
            with pytest.raises(ValueError, match=f"{said} one of clip_gpt2, dico, .* or --model to start from"):
                captioner_class(CaptionerArguments(model_type=model_type))
        with pytest.raises(ValueError, match=r"new: d_modell: no field of SaticConfig; do you mean d_model"):
            load_captioner(CaptionerArguments(model_type="satic", new_captioner={"d_modell": 8}), rows)
        with pytest.raises(ValueError, match=r"--new_captioner '\{': not JSON"):
            CaptionerArguments(new_captioner="{")
        for name, said in (
            ("tokenizer", "give --tokenizer in its place"),
            ("captions", "they are those of the training"),
        ):
            with pytest.raises(ValueError, match=f"^--new_captioner {name}: {said}"):
                CaptionerArguments(new_captioner={name: "words"})
        with pytest.raises(ValueError, match=r"new names code of the Hub, 'some/kernel'"):
            backbone = {"model_type": "swin", "_attn_implementation": "some/kernel"}
            load_captioner(CaptionerArguments(model_type="satic", new_captioner={"vision_config": backbone}), rows)
