"""What training by reward refuses."""

from __future__ import annotations

import pytest
import torch
from contracts.reward_policies import tiny_policy, tiny_processor
from contracts.reward_runs import Spy, star
from peft import LoraConfig, get_peft_model

from hf_captioners import DiCOConfig, ImageError, SCSTConfig, SCSTTrainer


class TestErrors:
    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_no_processor(self, trainer, config):
        with pytest.raises(ValueError, match="Trainer: give the captioner's processor as processing_class"):
            trainer(config, processing_class=None)

    def test_no_options(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(ValueError, match=r"max_completion_length \+ 1=30 is beyond"):  # SCSTConfig's default
            SCSTTrainer(tiny_policy("satic"), reward_funcs=star, processing_class=tiny_processor("satic"))

    def test_options_of_something_else(self, tmp_path):
        with pytest.raises(TypeError, match="SCSTTrainer: args must be a SCSTConfig, not a DiCOConfig"):
            args = DiCOConfig(output_dir=str(tmp_path), use_cpu=True)
            SCSTTrainer(tiny_policy("satic"), None, star, args, processing_class=tiny_processor("satic"))

    @pytest.mark.parametrize("name", ["reward_processing_classes", "compute_metrics"])
    def test_arguments_of_trl_that_have_no_use(self, tmp_path, name):
        with pytest.raises(ValueError, match=f"{name}: "):
            args = SCSTConfig(output_dir=str(tmp_path), use_cpu=True)
            model, processor = tiny_policy("satic"), tiny_processor("satic")
            SCSTTrainer(model, None, star, args, processing_class=processor, **{name: star})

    def test_no_reward(self, trainer):
        with pytest.raises(ValueError, match="DiCOTrainer: give reward_funcs"):
            trainer(DiCOConfig, reward=None)

    def test_a_model_that_is_none(self, tmp_path):
        with pytest.raises(ValueError, match="a str is no model of transformers; captioners are "):
            SCSTTrainer("satic", args=SCSTConfig(output_dir=str(tmp_path), use_cpu=True), processing_class=object())

    def test_a_reference_with_other_words(self, trainer):
        other = tiny_policy("satic")
        other.config.vocab_size += 1
        other = type(other)(other.config)
        with pytest.raises(ValueError, match=f"of {other.config.vocab_size} tokens, cannot score the captions"):
            trainer(DiCOConfig, ref_model=other)

    def test_adapters_beside_adapters(self, trainer):
        model = get_peft_model(tiny_policy("satic"), LoraConfig(target_modules=r".*linears\.0"))
        with pytest.raises(ValueError, match="has adapters already; leave peft_config out"):
            trainer(model=model, peft_config=LoraConfig(r=2))

    def test_adapters_that_from_pretrained_put_into_the_model(self, trainer):
        model = tiny_policy("satic")
        model.add_adapter(LoraConfig(target_modules=r".*linears\.0"))
        with pytest.raises(ValueError, match="is_trainable=True"):
            trainer(model=model)

    def test_nothing_learns(self, trainer):
        with pytest.raises(ValueError, match="no parameter of this SaticForImageCaptioning learns"):
            trainer(model=tiny_policy("satic").requires_grad_(False))

    @pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])
    def test_the_model_as_its_own_reference(self, trainer, config):
        model = tiny_policy("satic")
        with pytest.raises(ValueError, match="ref_model is the model itself"):
            trainer(config, model=model, ref_model=model)

    def test_another_kind_of_model(self, trainer):
        with pytest.raises(ValueError, match="a Linear is no model of transformers"):
            trainer(model=torch.nn.Linear(2, 2))

    def test_a_class_as_reward(self, trainer):
        with pytest.raises(TypeError, match="Spy is a class; give an object of it"):
            trainer(reward=Spy)

    def test_a_batch_of_broken_pictures_only(self, trainer, tmp_path):
        (tmp_path / "broken.jpg").write_bytes(b"no picture")
        rows = [{"image_id": i, "image": str(tmp_path / "broken.jpg"), "captions": ["a"]} for i in range(4)]
        with pytest.raises(ImageError, match="none of the 4 pictures of a batch can be opened"):
            trainer(train=rows, skip_broken_images=True).train()
