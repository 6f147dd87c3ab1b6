"""CLIP-S and PAC-S as rewards: DiCO's numbers, TRL's way of calling, and that pictures are encoded once."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_captioners.conversion import convert
from hf_captioners.data.features.store import FeatureStore, FeatureWriter
from hf_captioners.metrics.clip.clip_score import ClipScorer
from hf_captioners.metrics.clip.pac_score import PacScorer
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.modeling.captioner_image_io import ImageError
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


def encoded(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def sizes(scorer: ClipScorer) -> Iterator[list[int]]:
    """Number of pictures that the model was given, at each call."""
    seen: list[int] = []
    hook = scorer.model.vision_model.register_forward_hook(
        lambda _, inputs, outputs: seen.append(len(outputs.pooler_output))
    )
    yield seen
    hook.remove()


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
    reward = ClipReward(scorer, use_ids=True, use_pixel_values=True)
    for given in (io["pixel_values"], pixel_values, io["pixel_values"]):  # a row per picture, or per completion
        found = reward([""] * len(ids), completion_ids=without_bos, pixel_values=given)
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

    def test_a_picture_is_encoded_once(self, scorer: ClipScorer, sizes: list[int]) -> None:
        reward = ClipReward(scorer, cache_images=0)
        decoded_again = [[picture(seed)] for seed in (0, 0, 1, 1)]  # other objects, each in a list as in TRL's data
        by_name = trl_call(reward, self.COMPLETIONS, images=decoded_again, image_id=[7, 7, 3, 3])
        assert sizes == [2]
        trl_call(reward, self.COMPLETIONS, images=decoded_again, image_id=torch.tensor([7, 7, 3, 3]))
        assert sizes == [2, 2]
        np.testing.assert_allclose(trl_call(reward, self.COMPLETIONS, images=decoded_again), by_name, atol=1e-6)
        assert sizes == [2, 2, 4]

    def test_features(self, scorer: ClipScorer) -> None:
        images = [picture(0), picture(0), picture(1), picture(1)]
        found = trl_call(ClipReward(scorer), self.COMPLETIONS, image=scorer.image_features(images))
        np.testing.assert_allclose(found, trl_call(ClipReward(scorer), self.COMPLETIONS, image=images), atol=1e-6)

    def test_no_gradient_and_usable_in_a_loss(self, scorer: ClipScorer) -> None:
        found = torch.tensor(trl_call(ClipReward(scorer), ["a dog"], image=[picture(0)]))
        weight = torch.ones(1, requires_grad=True)
        (weight * found).sum().backward()
        assert weight.grad is not None and not scorer.image_features([picture(0)]).is_inference()


class TestCache:
    """Features are kept between calls; the numbers stay those of a reward that keeps none."""

    COMPLETIONS = ["a dog", "two cats", "rain"]

    @pytest.fixture(params=["path", "bytes", "row", "decoded", "tensor"])
    def kind(self, request: pytest.FixtureRequest, tmp_path: Path) -> Any:
        """Makes the picture of a seed, another object at each call, in one of the ways in which rows hold it."""

        def path(seed: int) -> str:
            picture(seed).save(tmp_path / f"{seed}.png")
            return str(tmp_path / f"{seed}.png")

        return {
            "path": path,
            "bytes": lambda seed: encoded(picture(seed)),
            "row": lambda seed: {"path": "picture.png", "bytes": encoded(picture(seed))},
            "decoded": picture,
            "tensor": lambda seed: torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed)),
        }[request.param]

    def test_the_same_numbers(self, scorer: ClipScorer, kind: Any, sizes: list[int]) -> None:
        reward, plain = ClipReward(scorer), ClipReward(scorer, cache_images=0)
        batches = [(0, 1, 2), (2, 3, 3), (1, 0, 4), (0, 1, 2)]
        for batch in batches:
            images = [kind(seed) for seed in batch]
            found = trl_call(reward, self.COMPLETIONS, image=images)
            seen = list(sizes)
            np.testing.assert_allclose(found, trl_call(plain, self.COMPLETIONS, image=images), rtol=0, atol=1e-6)
            sizes[:] = seen  # those of the cache alone
        assert sizes == [3, 1, 1]

    def test_what_comes_back_is_exactly_what_was_kept(self, scorer: ClipScorer) -> None:
        images = [picture(seed) for seed in range(3)]
        reward = ClipReward(scorer)
        first = trl_call(reward, self.COMPLETIONS, image=images)
        assert trl_call(ClipReward(scorer, cache_images=0), self.COMPLETIONS, image=images) == first
        assert trl_call(reward, self.COMPLETIONS, image=[one.copy() for one in images]) == first

    def test_oldest_leave_first(self, scorer: ClipScorer, sizes: list[int]) -> None:
        reward = ClipReward(scorer, cache_images=2)
        encodes = []
        for seed in (0, 1, 0, 2, 1, 0):  # 2 takes the place of 0, though 0 was looked at last; then 0 that of 1
            reward(["a dog"], image=[picture(seed)])
            encodes.append(len(sizes))
        assert encodes == [1, 2, 2, 3, 3, 4]
        reward(["a dog", "rain", "a cat"], image=[picture(seed) for seed in (5, 6, 7)])  # more than it keeps
        assert sizes == [1, 1, 1, 1, 3]
        reward(["a dog", "rain"], image=[picture(6), picture(7)])
        assert len(sizes) == 5

    def test_an_id_of_another_split_is_another_picture(self, scorer: ClipScorer) -> None:
        reward = ClipReward(scorer)
        train = trl_call(reward, ["a dog"], image=[picture(0)], image_id=[0])
        other = trl_call(reward, ["a dog"], image=[picture(1)], image_id=[0])
        assert other == trl_call(ClipReward(scorer), ["a dog"], image=[picture(1)], image_id=[0]) != train

    def test_palettes_count(self, scorer: ClipScorer, sizes: list[int]) -> None:
        first = picture(0).quantize(8)
        second = first.copy()
        second.putpalette([255 - level for level in first.getpalette() or []])
        assert first.tobytes() == second.tobytes()
        rewards = trl_call(ClipReward(scorer), ["a dog", "a dog"], image=[first, second])
        assert sizes == [2] and rewards[0] != rewards[1]

    def test_file_objects_are_not_kept(self, scorer: ClipScorer, sizes: list[int]) -> None:
        reward = ClipReward(scorer)
        rewards = [reward(["a dog"], image=[io.BytesIO(encoded(picture(seed)))]) for seed in (0, 0, 1)]
        assert sizes == [1, 1, 1] and rewards[0] == rewards[1] != rewards[2]

    def test_it_can_be_pickled(self, scorer: ClipScorer) -> None:
        reward = ClipReward(scorer)
        expected = reward(["a dog"], image=[picture(0)])
        assert pickle.loads(pickle.dumps(reward))(["a dog"], image=[picture(0)]) == expected

    def test_a_broken_picture_is_named(self, scorer: ClipScorer, tmp_path: Path) -> None:
        (tmp_path / "broken.png").write_bytes(encoded(picture(0))[:300])
        for broken in (Image.open(tmp_path / "broken.png"), str(tmp_path / "broken.png")):
            with pytest.raises(ImageError, match="image 17: "):
                ClipReward(scorer)(["a", "b"], image=[picture(0), broken], image_id=[3, 17])


class TestFeatures:
    COMPLETIONS = ["a dog", "two cats", "rain", "a dog"]

    def test_a_store(self, scorer: ClipScorer, tmp_path: Path, sizes: list[int]) -> None:
        images = [picture(seed) for seed in (0, 1)]
        expected = trl_call(ClipReward(scorer), self.COMPLETIONS, image=[images[0], images[0], images[1], images[1]])
        with FeatureWriter(tmp_path, dtype=torch.float32) as writer:
            for name, one in zip([7, 3], images, strict=True):
                writer.add(name, scorer.image_features([one]))
        sizes.clear()
        for features in (FeatureStore(tmp_path), {7: scorer.image_features(images)[0], 3: FeatureStore(tmp_path)[3]}):
            sizes.clear()
            found = trl_call(ClipReward(scorer, features=features), self.COMPLETIONS, image_id=[7, 7, 3, 3])
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
            assert sizes == []

    def test_what_is_missing_or_of_another_model(self, scorer: ClipScorer) -> None:
        reward = ClipReward(scorer, features={1: torch.ones(8), 2: torch.ones(7), 3: torch.ones(2, 8)})
        with pytest.raises(MetricInputError, match="no column 'image_id'"):
            reward(["a"])
        with pytest.raises(MetricInputError, match="image 9: the reward's features have none of it"):
            reward(["a", "b"], image_id=[1, 9])
        for name, shape in ((2, r"\(7,\)"), (3, r"\(2, 8\)")):
            with pytest.raises(MetricInputError, match=rf"image {name}: features of shape {shape}; .* \(8,\)"):
                reward(["a"], image_id=[name])
        with pytest.raises(ValueError, match="give one of them"):
            ClipReward(scorer, features={}, use_pixel_values=True)


class TestPixelValues:
    def test_not_looked_at_unless_asked(self, scorer: ClipScorer) -> None:
        pixel_values = torch.zeros(1, 3, 32, 32)
        plain = trl_call(ClipReward(scorer), ["a dog"], image=[picture(0)])
        assert trl_call(ClipReward(scorer), ["a dog"], image=[picture(0)], pixel_values=pixel_values) == plain
        reward = ClipReward(scorer, use_pixel_values=True)
        assert trl_call(reward, ["a dog"], image=[picture(0)], pixel_values=pixel_values) != plain
        prepared = scorer.image_processor(images=[picture(0)], return_tensors="pt")["pixel_values"]  # type: ignore[misc]
        assert trl_call(reward, ["a dog"], pixel_values=prepared) == pytest.approx(plain, abs=1e-6)

    def test_of_one_picture_are_encoded_once(self, scorer: ClipScorer, sizes: list[int]) -> None:
        reward = ClipReward(scorer, use_pixel_values=True, cache_images=0)
        prepared = torch.randn(2, 3, 32, 32)
        names, texts = [7, 7, 8, 8], ["a", "b", "a", "b"]
        repeated = trl_call(reward, texts, pixel_values=prepared.repeat_interleave(2, dim=0), image_id=names)
        assert trl_call(reward, texts, pixel_values=prepared, image_id=names) == pytest.approx(repeated, abs=1e-6)
        assert sizes == [2, 2]

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 3, 48, 48), r"but the reward's model takes \(pictures, 3, 32, 32\)"),
            ((1, 1, 32, 32), r"but the reward's model takes \(pictures, 3, 32, 32\)"),
            ((2, 3, 32, 32), "for 3 completions; expected .* as many completions for each picture"),
            ((6, 3, 32, 32), "for 3 completions; expected .* as many completions for each picture"),
            ((0, 3, 32, 32), "for 3 completions"),
            ((3, 8), "for 3 completions"),
        ],
    )
    def test_shapes(self, scorer: ClipScorer, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(MetricInputError, match=message):
            ClipReward(scorer, use_pixel_values=True)(["a", "b", "c"], pixel_values=torch.zeros(shape))

    def test_a_batch_without(self, scorer: ClipScorer) -> None:
        with pytest.raises(MetricInputError, match="no pixel_values"):
            ClipReward(scorer, use_pixel_values=True)(["a"], image=[picture(0)])


def test_errors(scorer: ClipScorer) -> None:
    with pytest.raises(ValueError, match="cache_images is -1"):
        ClipReward(scorer, cache_images=-1)
    with pytest.raises(MetricInputError, match="completion 1: its image_id is None"):
        ClipReward(scorer)(["a", "b"], image=[picture(0)] * 2, image_id=[1, None])
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
