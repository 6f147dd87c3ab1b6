"""Folders that training with adapters leaves: loaded from any folder, moved, from a checkpoint, and gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from contracts.reward_policies import (
    SIDE,
    assert_same,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_processor,
    tiny_rows,
    weights,
)
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText

from hf_captioners import DiCOConfig, SCSTConfig, XEConfig, XETrainer
from hf_captioners.cli.training.captioner_arguments import CaptionerArguments, load_captioner
from hf_captioners.families.loading import load_processor
from hf_captioners.modeling.captioner_adapters import base_of
from hf_captioners.modeling.captioner_trust import load_pretrained

PIXELS = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
METHODS = {"xe": XEConfig, "scst": SCSTConfig, "dico": DiCOConfig}
SAVING = {"save_strategy": "steps", "save_steps": 1}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture()
def trainer(tmp_path, rows, monkeypatch):
    """A trainer of fresh adapters, which writes to `run` as seen from the working directory."""
    monkeypatch.chdir(tmp_path)

    def make(method="scst", model=None, folder="run", lora=True, **options):
        model = tiny_policy("satic") if model is None else model
        torch.manual_seed(0)
        peft = LoraConfig(r=2, init_lora_weights=False) if lora else None
        if method != "xe":
            return reward_trainer(METHODS[method], Path(folder), rows, model=model, peft_config=peft, **options)
        usual = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "max_steps": 2, "save_strategy": "no"}
        args = XEConfig(folder, **{**usual, **options})
        return XETrainer(model, args, rows, processing_class=tiny_processor("satic"), peft_config=peft)

    return make


@torch.no_grad()
def logits(model):
    ids = torch.tensor([[3, 4, 5], [3, 6, 7]])
    return model.eval()(pixel_values=PIXELS, decoder_input_ids=ids).logits


def named(folder):
    return json.loads(Path(folder, "adapter_config.json").read_text())["base_model_name_or_path"]


def same(one, other):
    """As models compute: the scores of the words, but for rounding."""
    return torch.allclose(logits(one), other if isinstance(other, torch.Tensor) else logits(other), atol=1e-5)


class TestNewCaptioner:
    """Adapters of a captioner that no folder has."""

    @pytest.mark.parametrize("method", METHODS)
    def test_is_saved_beside_them(self, trainer, tmp_path, monkeypatch, method):
        run = trainer(method, **SAVING)
        run.train()
        run.save_model()
        expected = logits(run.model)
        assert not same(tiny_policy("satic"), expected)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        for source in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
            assert same(load_pretrained(AutoModelForImageTextToText, source), expected)
            assert same(AutoModelForImageTextToText.from_pretrained(source), expected)  # not moved
        shutil.move(tmp_path / "run", tmp_path / "moved")
        shutil.move(tmp_path / "moved" / "base", tmp_path / "base")  # alone it is a captioner
        alone = load_pretrained(AutoModelForImageTextToText, tmp_path / "base")
        assert_same(weights(alone), weights(tiny_policy("satic")))
        shutil.move(tmp_path / "base", tmp_path / "moved" / "base")
        for source in (tmp_path / "moved", tmp_path / "moved" / "checkpoint-2"):
            model = load_pretrained(AutoModelForImageTextToText, source)
            assert same(model, expected)
            assert load_processor(model, source).batch_decode([[4]])
        learning, _, _ = load_captioner(CaptionerArguments(str(tmp_path / "moved")))
        assert same(learning, expected)

    def test_that_a_user_has_put_adapters_into(self, trainer, tmp_path):
        model = tiny_policy("satic")
        torch.manual_seed(0)
        targets = model.LORA_TARGET_MODULES
        config = LoraConfig(r=2, target_modules=targets, modules_to_save=["proj"], init_lora_weights=False)
        run = trainer(model=get_peft_model(model, config), lora=False)
        run.train()
        run.save_model()
        assert_same(weights(AutoModelForImageTextToText.from_pretrained("run/base")), weights(tiny_policy("satic")))
        assert same(load_pretrained(AutoModelForImageTextToText, "run"), run.model)

    def test_without_training(self, trainer):
        run = trainer()
        run.save_model("elsewhere")
        assert same(load_pretrained(AutoModelForImageTextToText, "elsewhere"), run.model)

    def test_is_taken_over_by_a_training_that_goes_on(self, trainer):
        """Whatever this process would begin with: the adapters belong to the one that is saved."""
        trainer(max_steps=1, **SAVING).train()
        saved = weights(AutoModelForImageTextToText.from_pretrained("run/base"))
        run = trainer(model=tiny_policy("satic", seed=7), max_steps=2, **SAVING)
        run.train(resume_from_checkpoint=True)
        run.save_model()
        assert_same(weights(AutoModelForImageTextToText.from_pretrained("run/base")), saved)
        whole = trainer(folder="whole", max_steps=2, **SAVING)
        whole.train()
        assert same(run.model, whole.model)

    def test_of_an_earlier_training_is_moved_aside_with_its_checkpoints(self, trainer):
        first = trainer(max_steps=1, **SAVING)
        first.train()
        first.save_model()
        run = trainer(model=tiny_policy("satic", seed=7), max_steps=1)
        run.train(resume_from_checkpoint=False)
        assert not Path("run/adapter_config.json").exists()  # until the end
        run.save_model()
        assert same(load_pretrained(AutoModelForImageTextToText, "run"), run.model)
        earlier = load_pretrained(AutoModelForImageTextToText, "run/earlier-1/checkpoint-1")
        assert same(earlier, first.model)


class TestSavedCaptioner:
    @pytest.fixture()
    def captioner(self, tmp_path):
        tiny_policy("satic").save_pretrained(tmp_path / "captioner")
        tiny_processor("satic").save_pretrained(tmp_path / "captioner")
        return "captioner"

    @pytest.mark.parametrize("method", METHODS)
    def test_is_named_by_its_whole_path(self, trainer, captioner, tmp_path, monkeypatch, method):
        monkeypatch.chdir(tmp_path)
        run = trainer(method, AutoModelForImageTextToText.from_pretrained(captioner), **SAVING)
        run.train()
        run.save_model()
        assert not Path("run/base").exists()
        assert named("run") == named("run/checkpoint-2") == str(tmp_path / "captioner")
        monkeypatch.chdir("/")
        for source in (tmp_path / "run", tmp_path / "run" / "checkpoint-2"):
            assert same(load_pretrained(AutoModelForImageTextToText, source), run.model)

    def test_of_the_hub_keeps_its_name(self, trainer):
        model = tiny_policy("satic")
        model.name_or_path = "me/captioner"
        run = trainer(model=model, max_steps=1)
        run.train()
        run.save_model()
        assert named("run") == "me/captioner"
        assert not Path("run/base").exists()

    def test_with_other_options_is_another_one(self, trainer, captioner, tmp_path):
        arguments = CaptionerArguments(str(tmp_path / captioner), model_options={"group_size": 1}, lora_rank=2)
        model, _, _ = load_captioner(arguments)
        run = trainer(model=model)
        run.train()
        run.save_model()
        assert Path(base_of("run")) == Path("run/base")
        assert load_pretrained(AutoModelForImageTextToText, "run").config.group_size == 1

    def test_that_has_learned_since_is_another_one(self, trainer, captioner):
        model = AutoModelForImageTextToText.from_pretrained(captioner)
        trainer("xe", model, "first", lora=False).train()
        run = trainer(model=model)
        run.train()
        run.save_model()
        assert same(load_pretrained(AutoModelForImageTextToText, "run"), run.model)
        assert Path(base_of("run")) == Path("run/base")

    def test_in_the_folder_of_the_output(self, trainer, captioner):
        model = AutoModelForImageTextToText.from_pretrained(captioner)
        with pytest.raises(ValueError, match="output_dir captioner is the folder of the captioner that the adapters"):
            trainer(model=model, folder=captioner).train()
