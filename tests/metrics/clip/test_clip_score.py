"""CLIP-S and PAC-S: the numbers of DiCO's code and of the published definitions, and the formulas by hand."""

from __future__ import annotations

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts.metric import PREDICTIONS, REFERENCES, MetricContract, tiny_clip
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, CLIPConfig, CLIPImageProcessorPil, CLIPModel

from hf_captioners.conversion import convert
from hf_captioners.metrics.clip.clip_score import ClipScorer, clip_score, scores_from_features
from hf_captioners.metrics.clip.pac_score import PacScorer, pac_score
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.modeling.captioner_image_io import ImageError


@pytest.fixture(scope="module", params=["case_a", "case_b"])
def case(request: pytest.FixtureRequest, shared_parity: Path) -> Path:
    return shared_parity / "dico" / request.param


@pytest.fixture(scope="module")
def io(case: Path) -> dict[str, Tensor]:
    return load_file(case / "io.safetensors")


@pytest.fixture(scope="module")
def folders(case: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The evaluators of the case."""
    pacs = tmp_path_factory.mktemp("pacs") / "out"
    convert("pac_score", case / "pacs.pth", pacs)
    clips = tmp_path_factory.mktemp("clips")
    CLIPModel.from_pretrained(case / "clips").save_pretrained(clips)
    CLIPImageProcessorPil().save_pretrained(clips)
    return {"clip": clips, "pac": pacs}


@pytest.fixture(params=["clip", "pac"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def scorer_of(kind: str, folders: dict[str, Path], case: Path, **options: Any) -> ClipScorer:
    settings = json.loads((case / "config.json").read_text())
    scorer = ClipScorer if kind == "clip" else PacScorer
    return scorer(folders[kind], pad_token_id=settings["pad_token_id"], prefix="", **options)


class TestClipContract(MetricContract):
    name = "clip_s"
    scorer = ClipScorer

    @pytest.fixture(scope="class")
    def options(self) -> dict[str, Any]:
        return {"scorer": self.scorer(**tiny_clip([*PREDICTIONS, *itertools.chain(*REFERENCES)]))}


class TestPacContract(TestClipContract):
    name = "pac_s"
    scorer = PacScorer


class TestParity:
    def test_ids_as_fed(self, kind: str, folders: dict[str, Path], case: Path, io: dict[str, Tensor]) -> None:
        scorer = scorer_of(kind, folders, case)
        for given, fed in (("score_ids", f"{kind}_input_ids"), ("score_labels", f"{kind}_ref_input_ids")):
            assert torch.equal(scorer.fill_ids(io[given].flatten(0, 1)), io[fed].flatten(0, 1))

    def test_features(self, kind: str, folders: dict[str, Path], case: Path, io: dict[str, Tensor]) -> None:
        scorer = scorer_of(kind, folders, case, batch_size=4)
        found = {
            f"{kind}_image_features": scorer.image_features(io["pixel_values"]),
            f"{kind}_text_features": scorer.text_features(io["score_ids"].flatten(0, 1)),
            f"{kind}_ref_text_features": scorer.text_features(io["score_labels"].flatten(0, 1)),
        }
        for name, features in found.items():
            torch.testing.assert_close(features, io[name].reshape(features.shape), atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize(("clip_negative", "suffix"), [(False, ""), (True, "_published")])
    def test_scores(
        self, kind: str, folders: dict[str, Path], case: Path, io: dict[str, Tensor], clip_negative: bool, suffix: str
    ) -> None:
        scorer = scorer_of(kind, folders, case, clip_negative=clip_negative)
        score, reference = scorer.score(io["pixel_values"], io["score_ids"].flatten(0, 1), io["score_labels"])
        assert reference is not None
        torch.testing.assert_close(score, io[f"{kind}s{suffix}"].flatten(), atol=1e-5, rtol=0)
        torch.testing.assert_close(reference, io[f"ref{kind}s{suffix}"].flatten(), atol=1e-5, rtol=0)

    def test_reward(self, folders: dict[str, Path], case: Path, io: dict[str, Tensor]) -> None:
        scorer = scorer_of("pac", folders, case, clip_negative=False)
        score, reference = scorer.score(io["pixel_values"], io["step_ids"].flatten(0, 1))
        torch.testing.assert_close(score, io["step_rewards"].flatten(), atol=1e-5, rtol=0)
        assert reference is None

    def test_given_features_and_ragged_lists(
        self, kind: str, folders: dict[str, Path], case: Path, io: dict[str, Tensor]
    ) -> None:
        scorer = scorer_of(kind, folders, case, clip_negative=False)
        pad = scorer.pad_token_id
        ragged = [[token for token in row.tolist() if token != pad] for row in io["score_labels"].flatten(0, 1)]
        several = [
            ragged[start : start + io["score_labels"].shape[1]]
            for start in range(0, len(ragged), len(ragged) // len(io["score_ids"]))
        ]
        features = io[f"{kind}_image_features"]
        score, reference = scorer.score(features, io["score_ids"].flatten(0, 1), several)
        assert reference is not None
        torch.testing.assert_close(score, io[f"{kind}s"].flatten(), atol=1e-5, rtol=0)
        torch.testing.assert_close(reference, io[f"ref{kind}s"].flatten(), atol=1e-5, rtol=0)


def at_angle(*degrees: float) -> Tensor:
    """Vectors of the plane, of different lengths."""
    radians = torch.deg2rad(torch.tensor(degrees, dtype=torch.float64))
    return torch.stack([radians.cos(), radians.sin()], dim=1) * torch.arange(1, len(degrees) + 1)[:, None]


def cos(degrees: float) -> float:
    return math.cos(math.radians(degrees))


class TestFormulas:
    """Vectors of the plane: every cosine is that of a known angle."""

    PICTURES = at_angle(0, 90)
    CAPTIONS = at_angle(30, 120, 100, 250)  # 30 and 120 from the first picture, 10 and 160 from the second
    REFERENCES = (at_angle(50, 200), at_angle(350, 10, 230))

    def test_published(self) -> None:
        score, reference = scores_from_features(self.PICTURES, self.CAPTIONS, self.REFERENCES)
        expected = [2.5 * cos(30), 0, 2.5 * cos(10), 0]
        np.testing.assert_allclose(score, expected, atol=1e-6)
        best = [cos(20), cos(70), cos(90), cos(20)]
        harmonic = [2 * s * m / (s + m) for s, m in zip(expected, best, strict=True)]
        np.testing.assert_allclose(reference, harmonic, atol=1e-6)

    def test_variant_of_dico(self) -> None:
        score, reference = scores_from_features(
            self.PICTURES, self.CAPTIONS, self.REFERENCES, w=2.0, clip_negative=False
        )
        expected = [2 * cos(30), 2 * cos(120), 2 * cos(10), 2 * cos(160)]
        np.testing.assert_allclose(score, expected, atol=1e-6)
        best = [cos(20), cos(70), cos(90), cos(20)]
        harmonic = [2 * s * m / (s + m) for s, m in zip(expected, best, strict=True)]
        np.testing.assert_allclose(reference, harmonic, atol=1e-6)

    @pytest.mark.parametrize(("clip_negative", "m"), [(True, cos(120)), (False, 0.0)])
    def test_references_of_the_opposite(self, clip_negative: bool, m: float) -> None:
        pictures, captions, references = at_angle(0), at_angle(30), [at_angle(150)]
        _, reference = scores_from_features(pictures, captions, references, w=1.0, clip_negative=clip_negative)
        np.testing.assert_allclose(reference, [2 * cos(30) * m / (cos(30) + m)], atol=1e-6)

    def test_nothing_in_common_is_0(self) -> None:
        captions = torch.tensor([[-1.0, 0.0]])
        score, reference = scores_from_features(torch.tensor([[1.0, 0.0]]), captions, [torch.tensor([[0.0, 1.0]])])
        assert reference is not None
        assert (score.item(), reference.item()) == (0, 0)

    def test_numbers_that_do_not_fit(self) -> None:
        with pytest.raises(ValueError, match="3 captions for 2 images; expected as many for each"):
            scores_from_features(self.PICTURES, self.CAPTIONS[:3])


def picture(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def parts(shared_data: Path) -> dict[str, Any]:
    """A small CLIP with random weights, the real tokenizer, and an image processor."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**size, "image_size": 32, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config=size, vision_config=vision, projection_dim=8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        model.visual_projection.weight.mul_(-1)  # pictures and captions then have positive cosines
    return {
        "model": model,
        "tokenizer": AutoTokenizer.from_pretrained(shared_data / "clip_tokenizer"),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    }


class TestTexts:
    CAPTIONS = ["A dog runs.", "Two cats on a chair."]
    REFERENCES = [["A brown dog.", "The dog is running on grass."], ["Cats."]]

    def cosines(self, parts: dict[str, Any], texts: list[str], pictures: list[Image.Image]) -> Tensor:
        """All texts with all pictures, as the model's own forward gives them."""
        inputs = parts["tokenizer"](texts, padding=True, return_tensors="pt")
        pixel_values = parts["image_processor"](images=pictures, return_tensors="pt").pixel_values
        with torch.no_grad():
            outputs = parts["model"](**inputs, pixel_values=pixel_values)
            return outputs.logits_per_image / parts["model"].logit_scale.exp()

    @pytest.mark.parametrize("sign", [1, -1])  # with these weights, all cosines are positive or all negative
    def test_against_the_models_own_forward(self, parts: dict[str, Any], sign: int) -> None:
        parts = {**parts, "model": copy.deepcopy(parts["model"])}
        with torch.no_grad():
            parts["model"].visual_projection.weight.mul_(sign)
        pictures = [picture(0), picture(1)]
        cosine = self.cosines(parts, [f"A photo depicts {caption}" for caption in self.CAPTIONS], pictures).diag()
        assert (sign * cosine > 0.02).all()
        scores = clip_score(pictures, self.CAPTIONS, scorer=ClipScorer(**parts))
        np.testing.assert_allclose(scores.per_image["clip_s"], 2.5 * cosine.clamp(min=0), atol=1e-5)
        assert scores.corpus == {"clip_s": pytest.approx(scores.per_image["clip_s"].mean())}
        cosine = self.cosines(parts, self.CAPTIONS, pictures).diag()
        scores = pac_score(pictures, self.CAPTIONS, scorer=PacScorer(**parts, prefix="", clip_negative=False))
        np.testing.assert_allclose(scores.per_image["pac_s"], 2 * cosine, atol=1e-5)

    def test_references(self, parts: dict[str, Any]) -> None:
        scorer = ClipScorer(**parts)
        pictures = [picture(0), picture(1)]
        scores = clip_score(pictures, self.CAPTIONS, self.REFERENCES, scorer=scorer, image_ids=["x", "y"])
        assert list(scores.per_image) == ["clip_s", "ref_clip_s"]
        texts = scorer.text_features([*self.CAPTIONS, *self.REFERENCES[0], *self.REFERENCES[1]])
        cosine = torch.nn.functional.cosine_similarity(texts[:, None], texts[None], dim=-1).double()
        best = np.array([cosine[0, 2:4].max(), cosine[1, 4]])
        s = scores.per_image["clip_s"]
        np.testing.assert_allclose(scores.per_image["ref_clip_s"], 2 * s * best / (s + best), atol=1e-6)
        assert scores.per_image["clip_s"].dtype == np.float64

    def test_the_order_of_images_and_the_batch_do_not_matter(self, parts: dict[str, Any]) -> None:
        pictures = [picture(0), picture(1)]
        one = clip_score(pictures, self.CAPTIONS, self.REFERENCES, scorer=ClipScorer(**parts, batch_size=1))
        two = clip_score(pictures[::-1], self.CAPTIONS[::-1], self.REFERENCES[::-1], scorer=ClipScorer(**parts))
        for name, values in one.per_image.items():
            np.testing.assert_allclose(values, two.per_image[name][::-1], atol=1e-6)

    def test_entities_and_curly_quotes(self, parts: dict[str, Any]) -> None:
        scorer = ClipScorer(**parts)
        found = scorer.text_features(["the cook’s “salt &amp; pepper”", 'the cook\'s "salt & pepper"'])
        assert torch.equal(found[0], found[1])

    def test_several_captions_of_a_picture(self, parts: dict[str, Any]) -> None:
        pictures, captions = [picture(0), picture(1)], ["a dog", "a cat", "a bus", "rain"]
        score, _ = ClipScorer(**parts).score(pictures, captions)
        texts = [f"A photo depicts {caption}" for caption in captions]
        cosine = self.cosines(parts, texts, pictures)
        expected = 2.5 * torch.stack([cosine[0, 0], cosine[0, 1], cosine[1, 2], cosine[1, 3]]).clamp(min=0)
        torch.testing.assert_close(score, expected, atol=1e-5, rtol=0)

    def test_w_and_settings(self, parts: dict[str, Any]) -> None:
        scorer = ClipScorer(**parts, w=1.0)
        scores = clip_score([picture(0)], ["a dog"], scorer=scorer)
        published = clip_score([picture(0)], ["a dog"], scorer=ClipScorer(**parts))
        assert scores.corpus["clip_s"] == pytest.approx(published.corpus["clip_s"] / 2.5)
        assert scores.settings["w"] == 1.0 and scores.settings["prefix"] == "A photo depicts "
        assert scores.settings != published.settings


class TestErrors:
    def test_captions(self, parts: dict[str, Any]) -> None:
        scorer = ClipScorer(**parts)
        for predictions, references, message in [
            (["a"], [[]], "image 0: no references"),
            ([None], None, "image 0: the prediction is None"),
            ("a", None, "predictions: expected a list"),
            ([], None, "no images to score"),
            (["a"], [["b"], ["c"]], "1 predictions but 2 lists of references"),
        ]:
            with pytest.raises(MetricInputError, match=message):
                clip_score([picture(0)], predictions, references, scorer=scorer)  # type: ignore[arg-type]
        with pytest.raises(MetricInputError, match="1 images for 2 predictions; expected one each"):
            clip_score([picture(0)], ["a", "b"], scorer=scorer)

    def test_a_picture_that_cannot_be_opened_is_named(self, parts: dict[str, Any], tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"image 42: .*missing.jpg"):
            clip_score([tmp_path / "missing.jpg"], ["a"], scorer=ClipScorer(**parts), image_ids=[42])

    def test_references_of_another_number_of_pictures(self, parts: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="2 lists of references for 1 images"):
            ClipScorer(**parts).score([picture(0)], ["a"], [["b"], ["c"]])
        with pytest.raises(MetricInputError, match="image 1: no references"):
            ClipScorer(**parts).score(torch.ones(2, 8), ["a", "b"], [["b"], []])

    @pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
    def test_features_without_direction(self, parts: dict[str, Any], value: float) -> None:
        features = torch.ones(2, 8)
        features[1] = value
        with pytest.raises(MetricInputError, match=r"image y: caption 2 has the score nan; .* Try dtype=torch.float32"):
            ClipScorer(**parts).score(features, ["a", "b", "c", "d"], names=["x", "y"])

    def test_pac_score_needs_its_own_scorer(self, parts: dict[str, Any]) -> None:
        with pytest.raises(TypeError, match="a ClipScorer does not compute PAC-S; give a PacScorer"):
            pac_score([picture(0)], ["a"], scorer=ClipScorer(**parts))  # type: ignore[arg-type]
