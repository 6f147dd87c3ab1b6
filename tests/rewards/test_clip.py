"""CLIP-S and PAC-S as rewards: DiCO's numbers, TRL's way of calling, and that pictures are encoded once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_captioners.conversion import convert
from hf_captioners.metrics.clip_score import ClipScorer
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.metrics.pac_score import PacScorer
from hf_captioners.rewards.clip import ClipReward


@pytest.fixture(scope="module")
def scorer(shared_data: Path) -> ClipScorer:
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**size, "image_size": 32, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=size, vision_config=vision, projection_dim=8))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    return ClipScorer(model, AutoTokenizer.from_pretrained(shared_data / "clip_tokenizer"), image_processor)


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8))


def trl_call(reward: ClipReward, completions: list[str], **columns: Any) -> list[float]:
    """As `GRPOTrainer` of TRL 1.16 calls a reward."""
    ids = [[1, 2]] * len(completions)
    extra = {"trainer_state": None, "log_extra": print, "log_metric": print}
    return reward(prompts=[""] * len(completions), completions=completions, completion_ids=ids, **columns, **extra)


@pytest.mark.parametrize("case", ["case_a", "case_b"])
def test_reward_of_the_dico_code(shared_parity: Path, tmp_path: Path, case: str) -> None:
    folder = shared_parity / "dico" / case
    io, settings = load_file(folder / "io.safetensors"), json.loads((folder / "config.json").read_text())
    convert("pac_score", folder / "pacs.pth", tmp_path / "pacs")
    scorer = PacScorer(tmp_path / "pacs", prefix="", clip_negative=False, pad_token_id=settings["pad_token_id"])
    reward = ClipReward(scorer, use_ids=True)
    assert reward.__name__ == "pac_s"
    expected, ids = io["step_rewards"].flatten(), io["step_ids"].flatten(0, 1)
    pixel_values = io["pixel_values"].repeat_interleave(settings["n_candidates"], dim=0)
    found = reward([""] * len(ids), completion_ids=ids, image=pixel_values)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    pad = settings["pad_token_id"]
    without_bos = [[token for token in row[1:].tolist() if token != pad] for row in ids]  # as TRL gives them
    names = [row // settings["n_candidates"] for row in range(len(ids))]
    found = reward([""] * len(ids), completion_ids=without_bos, images=list(pixel_values), image_id=names)
    np.testing.assert_allclose(found, expected, atol=1e-5)


class TestTexts:
    COMPLETIONS = ["a dog", "two cats", "rain", "a dog"]

    def test_the_scores_of_the_metric(self, scorer: ClipScorer) -> None:
        first, second = picture(0), picture(1)
        found = trl_call(ClipReward(scorer), self.COMPLETIONS, image=[first, first, second, second])
        expected = scorer([first, first, second, second], self.COMPLETIONS).per_image["clip_s"]
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert all(type(one) is float for one in found)

    def test_references(self, scorer: ClipScorer) -> None:
        images, captions = [picture(0)] * 2 + [picture(1)] * 2, [["a big dog", "dogs"]] * 2 + [["a cat"]] * 2
        reward = ClipReward(scorer, use_references=True)
        assert reward.__name__ == "ref_clip_s"
        found = trl_call(reward, self.COMPLETIONS, image=images, captions=captions)
        expected = scorer(images, self.COMPLETIONS, captions).per_image["ref_clip_s"]
        np.testing.assert_allclose(found, expected, atol=1e-6)

    def test_a_picture_is_encoded_once(self, scorer: ClipScorer) -> None:
        sizes: list[int] = []
        hook = scorer.model.vision_model.register_forward_hook(
            lambda _, inputs, outputs: sizes.append(len(outputs.pooler_output))
        )
        reward = ClipReward(scorer)
        decoded_again = [[picture(seed)] for seed in (0, 0, 1, 1)]  # other objects, each in a list as in TRL's data
        by_name = trl_call(reward, self.COMPLETIONS, images=decoded_again, image_id=[7, 7, 3, 3])
        assert sizes == [2]
        np.testing.assert_allclose(trl_call(reward, self.COMPLETIONS, images=decoded_again), by_name, atol=1e-6)
        assert sizes == [2, 4]
        hook.remove()

    def test_features(self, scorer: ClipScorer) -> None:
        images = [picture(0), picture(0), picture(1), picture(1)]
        found = trl_call(ClipReward(scorer), self.COMPLETIONS, image=scorer.image_features(images))
        np.testing.assert_allclose(found, trl_call(ClipReward(scorer), self.COMPLETIONS, image=images), atol=1e-6)

    def test_no_gradient_and_usable_in_a_loss(self, scorer: ClipScorer) -> None:
        found = torch.tensor(trl_call(ClipReward(scorer), ["a dog"], image=[picture(0)]))
        weight = torch.ones(1, requires_grad=True)
        (weight * found).sum().backward()
        assert weight.grad is not None and not scorer.image_features([picture(0)]).is_inference()


def test_errors(scorer: ClipScorer) -> None:
    with pytest.raises(MetricInputError, match="no column 'image': the reward needs it"):
        ClipReward(scorer)(["a"])
    with pytest.raises(MetricInputError, match="2 values of 'image' for 1 completions"):
        ClipReward(scorer)(["a"], image=[picture(0)] * 2)
    with pytest.raises(MetricInputError, match="no column 'captions'"):
        ClipReward(scorer, use_references=True)(["a"], image=[picture(0)])
    with pytest.raises(MetricInputError, match="no column 'completion_ids'"):
        ClipReward(scorer, use_ids=True)(["a"], image=[picture(0)])
    with pytest.raises(MetricInputError, match="expected a list of strings, not of conversations"):
        ClipReward(scorer)([[{"role": "assistant", "content": "a"}]], image=[picture(0)])  # type: ignore[list-item]
    with pytest.raises(MetricInputError, match="1 values of 'image_id' for 2 completions"):
        ClipReward(scorer)(["a", "b"], image=[picture(0)] * 2, image_id=[1])


def test_trl_takes_its_name() -> None:
    utils = pytest.importorskip("trl.trainer.utils")
    reward = ClipReward.__new__(ClipReward)
    reward.scorer, reward.use_references = PacScorer.__new__(PacScorer), False
    assert utils.get_callable_name(reward) == "pac_s" and not utils.is_async_callable(reward)
