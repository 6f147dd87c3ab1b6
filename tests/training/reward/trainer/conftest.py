"""A trainer of a tiny captioner by reward, and what it is trained on."""

from __future__ import annotations

import pytest
import torch
from contracts.reward_policies import TOKENIZER, quickly, reward_trainer, tiny_processor, tiny_rows
from contracts.reward_runs import SAMPLE

from hf_captioners import SCSTConfig


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture()
def trainer(tmp_path, rows):
    def make(config=SCSTConfig, folder="run", train=rows, **options):
        options = {**SAMPLE, **options} if config is SCSTConfig else options
        return reward_trainer(config, tmp_path / folder, train, **options)

    return make


@pytest.fixture(scope="module")
def clip_reward():
    """CLIP-S by a model of a few thousand parameters, of token ids."""
    from transformers import CLIPConfig, CLIPModel

    from hf_captioners.metrics.clip.clip_score import ClipScorer
    from hf_captioners.rewards import ClipReward

    torch.manual_seed(3)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": len(TOKENIZER), "bos_token_id": TOKENIZER.bos_token_id}
    text |= {"eos_token_id": TOKENIZER.eos_token_id}
    config = CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8}, projection_dim=4)
    scorer = ClipScorer(CLIPModel(config), image_processor=tiny_processor("satic").image_processor)
    return lambda **options: ClipReward(scorer, use_ids=True, **options)
