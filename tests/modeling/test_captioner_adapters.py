"""Adapters and the captioner that they belong to: from any folder, moved, and what is said where it is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from contracts.reward_policies import LORA_TARGETS, SIDE, tiny_policy, tiny_processor
from peft import LoraConfig, get_peft_model
from PIL import Image
from transformers import AutoModelForImageTextToText

import hf_captioners
from hf_captioners.cli.main import main
from hf_captioners.families.folder_parts import missing_part
from hf_captioners.families.loading import load_processor
from hf_captioners.modeling.captioner_adapters import AdapterError, base_of
from hf_captioners.modeling.captioner_trust import load_pretrained

PIXELS = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture()
def adapted(tmp_path, monkeypatch):
    """Adapters that have learned something in `runs/adapters`, of `runs/captioner`, as seen from their parent."""

    def make(kind="satic", processor_in=("captioner",)):
        monkeypatch.chdir(tmp_path)
        tiny_policy(kind).save_pretrained("runs/captioner")
        model = AutoModelForImageTextToText.from_pretrained("runs/captioner")
        torch.manual_seed(0)
        targets = LORA_TARGETS.get(kind) or model.LORA_TARGET_MODULES
        model = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
        model.save_pretrained("runs/adapters")
        for folder in processor_in:
            tiny_processor(kind).save_pretrained(f"runs/{folder}")
        assert json.loads((tmp_path / "runs/adapters/adapter_config.json").read_text())["base_model_name_or_path"] == (
            "runs/captioner"
        )
        return model.eval()

    return make


def name_base(folder, name):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": name}))


@torch.no_grad()
def captions(model):
    return model.eval().generate(pixel_values=PIXELS, max_length=8, num_beams=2)


class TestLoading:
    @pytest.mark.parametrize("kind", ["satic", "vision-encoder-decoder"])
    def test_from_another_folder(self, adapted, tmp_path, monkeypatch, kind):
        saved = adapted(kind)
        name_base(tmp_path / "runs/adapters", "../captioner")
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        shutil.move(tmp_path / "runs", tmp_path / "moved")
        for source in (tmp_path / "moved/adapters", "../moved/adapters"):
            model = load_pretrained(AutoModelForImageTextToText, source)
            assert torch.equal(captions(model), captions(saved))
            assert not torch.equal(captions(model), captions(tiny_policy(kind)))
            assert load_processor(model, source).tokenizer.vocab_size > 0  # its captioner's

    @pytest.mark.parametrize("dtype", ["auto", torch.float32, torch.bfloat16])
    def test_as_transformers_does(self, adapted, tmp_path, dtype):
        """Where the path says the same to both."""
        adapted()
        ours = load_pretrained(AutoModelForImageTextToText, "runs/adapters", dtype=dtype).state_dict()
        theirs = AutoModelForImageTextToText.from_pretrained("runs/adapters", dtype=dtype).state_dict()
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]), name

    def test_verbs_and_pipeline(self, adapted, tmp_path, monkeypatch, capsys):
        saved = adapted(processor_in=["captioner", "adapters"])
        name_base(tmp_path / "runs/adapters", "../captioner")
        monkeypatch.chdir(tmp_path / "runs" / "captioner")
        Image.effect_mandelbrot((50, 50), (-2, -1.5, 1, 1.5), 50).convert("RGB").save("a.png")
        assert main(["caption", "a.png", "--model", "../adapters", "--num-beams", "2", "--max-new-tokens", "7"]) == 0
        said = capsys.readouterr().out
        processor = tiny_processor("satic")
        ids = saved.generate(**processor(images=Image.open("a.png")), num_beams=2, max_length=8)
        (expected,) = processor.batch_decode(ids)
        assert expected and expected in said
        captioner = hf_captioners.pipeline(model="../adapters", dtype=torch.float32, num_beams=2, max_length=8)
        assert captioner("a.png") == [{"generated_text": expected}]

    def test_what_training_has_put_beside_them_comes_first(self, adapted, tmp_path):
        adapted()
        runs = tmp_path / "runs"
        name_base(runs / "adapters", str(tmp_path / "gone" / "base"))
        shutil.copytree(runs / "captioner", runs / "base")
        assert base_of(runs / "adapters") == str(runs / "base")
        shutil.copytree(runs / "captioner", runs / "adapters" / "base")
        assert base_of(runs / "adapters") == str(runs / "adapters" / "base")


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            (
                "runs/gone",
                r"adapters: the adapters belong to runs/gone: .*nor can it be had from the Hub; set base_model",
            ),
            (
                "/gone/captioner",
                "adapters: the adapters belong to /gone/captioner: there is no such folder of a captioner",
            ),
            ("", "has no base_model_name_or_path, but '': the captioner of the adapters was never saved"),
            (None, "has no base_model_name_or_path, but None"),
            ("runs/adapters", "belong to runs/adapters, which has adapters itself; merge those"),
        ],
    )
    def test_name_adapters_and_captioner(self, adapted, tmp_path, name, message, capsys):
        adapted()
        name_base(tmp_path / "runs/adapters", name)
        with pytest.raises(AdapterError, match=message) as error:
            load_pretrained(AutoModelForImageTextToText, "runs/adapters")
        assert "huggingface.co" not in str(error.value)
        with pytest.raises(AdapterError, match=message):
            hf_captioners.pipeline(model="runs/adapters")
        assert main(["caption", "a.png", "--model", "runs/adapters"]) == 2
        assert str(error.value) in capsys.readouterr().err

    def test_a_file_that_is_no_settings(self, adapted, tmp_path):
        adapted()
        (tmp_path / "runs/adapters/adapter_config.json").write_text("[]")
        with pytest.raises(
            AdapterError, match=r"adapter_config.json: has no base_model_name_or_path that could be read"
        ):
            base_of("runs/adapters")

    def test_what_is_no_folder_of_adapters_is_left_to_transformers(self, adapted, tmp_path):
        adapted()
        for source in (None, "org/name", "runs/captioner", tiny_policy("satic")):
            assert base_of(source) is None
        shutil.copytree(tmp_path / "runs/captioner", tmp_path / "runs/adapters", dirs_exist_ok=True)
        assert base_of("runs/adapters") is None


def test_only_what_may_be_on_the_hub_is_said_to_be_absent_there(tmp_path):
    for path in (tmp_path / "none", Path("a/b/none"), Path("../none")):
        assert missing_part(path) == "there is no such folder"
    assert missing_part(Path("no/such")) == "there is no such folder, nor can it be had from the Hub"
