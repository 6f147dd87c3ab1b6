"""Recall against a ranking written out in plain Python, and against closed forms."""

import statistics

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from hf_captioners.metrics import ClipScorer, MetricInputError
from hf_captioners.metrics.clip import retrieval as module
from hf_captioners.metrics.clip.features import ClipFeatures
from hf_captioners.metrics.clip.retrieval import clip_recall, retrieval_recall
from hf_captioners.modeling.tokenization_words import build_vocabulary, build_word_tokenizer

CAPTIONS = ["a red wave", "two small dogs", "a dog on the sea", "the sea", "a red dog", "two waves"]


def cosine(first, second):
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / (sum(a * a for a in first) * sum(b * b for b in second)) ** 0.5


def first_right(similarity, right):
    """The place of the first right candidate in the sorted list, wrong ones first where cosines are equal."""
    order = sorted(range(len(similarity)), key=lambda one: (-round(similarity[one], 9), one in right))
    return 1 + next(place for place, candidate in enumerate(order) if candidate in right)


def brute_force(images, texts, owner, ks):
    table = [[cosine(image, text) for text in texts] for image in images]
    own = [[text for text, image in enumerate(owner) if image == row] for row in range(len(images))]
    image_ranks = [first_right(table[row], own[row]) for row in range(len(images))]
    text_ranks = [first_right([row[text] for row in table], [owner[text]]) for text in range(len(texts))]
    corpus = {}
    for name, ranks in (("image_to_text", image_ranks), ("text_to_image", text_ranks)):
        corpus.update({f"{name}_recall_at_{k}": sum(rank <= k for rank in ranks) / len(ranks) for k in ks})
        corpus[f"{name}_median_rank"] = statistics.median(ranks)
    means = [statistics.mean(text_ranks[text] for text in texts_of) for texts_of in own]
    return corpus, {"image_to_text_rank": image_ranks, "text_to_image_rank": means}


def features(number, width, seed, levels=None):
    """Random features; with `levels`, whole numbers of which many cosines are equal."""
    generator = torch.Generator().manual_seed(seed)
    if levels is None:
        return torch.randn(number, width, generator=generator)
    return torch.randint(1, levels + 1, (number, width), generator=generator).float()


def check(scores, expected):
    corpus, per_image = expected
    assert scores.corpus == pytest.approx(corpus, abs=1e-12)
    assert set(scores.per_image) == set(per_image)
    for name, values in per_image.items():
        assert scores.per_image[name].dtype == np.float64
        np.testing.assert_allclose(scores.per_image[name], values, atol=1e-12)


class TestRanking:
    @pytest.mark.parametrize("levels", [None, 2, 3])
    @pytest.mark.parametrize("each", [1, 5])
    def test_equals_brute_force(self, levels, each):
        images, texts = features(17, 3, 1, levels), features(17 * each, 3, 2, levels)
        owner = [row for row in range(17) for _ in range(each)]
        expected = brute_force(images.tolist(), texts.tolist(), owner, (1, 3, 10))
        check(retrieval_recall(images, texts, ks=(1, 3, 10)), expected)

    @pytest.mark.parametrize("cells", [1, 60, 10**6])
    @pytest.mark.parametrize("as_tensor", [False, True])
    def test_any_number_of_captions_in_any_order_and_memory(self, monkeypatch, cells, as_tensor):
        monkeypatch.setattr(module, "CELLS", cells)
        owner = [3, 0, 1, 1, 2, 0, 3, 3, 1, 4, 4, 3]
        images, texts = features(5, 4, 3, 3), features(12, 4, 4, 3)
        scores = retrieval_recall(images, texts, torch.tensor(owner) if as_tensor else owner)
        check(scores, brute_force(images.tolist(), texts.tolist(), owner, (1, 5, 10)))

    def test_default_owner_is_side_by_side(self):
        images, texts = features(4, 6, 5), features(12, 6, 6)
        given = retrieval_recall(images, texts, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
        assert retrieval_recall(images, texts).corpus == given.corpus

    def test_length_of_features_does_not_matter(self):
        images, texts = features(6, 4, 7), features(6, 4, 8)
        scaled = retrieval_recall(images * torch.arange(1, 7)[:, None], texts * 1e-3)
        assert scaled.corpus == retrieval_recall(images, texts).corpus

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_types(self, dtype):
        images = torch.eye(4, dtype=dtype).requires_grad_()
        assert retrieval_recall(images, images).corpus["text_to_image_recall_at_1"] == 1

    def test_perfect_features(self):
        scores = retrieval_recall(torch.eye(12), torch.eye(12).repeat_interleave(5, 0))
        assert all(value == 1 for value in scores.corpus.values())

    def test_opposite_features_come_last(self):
        images = torch.eye(12)
        scores = retrieval_recall(images, -images)
        assert {value for name, value in scores.corpus.items() if "recall" in name} == {0}
        assert scores.corpus["text_to_image_median_rank"] == 12

    def test_equal_features_find_nothing(self):
        scores = retrieval_recall(torch.rand(1, 7).repeat(20, 1), torch.rand(1, 7).repeat(60, 1))
        assert scores.per_image["text_to_image_rank"].tolist() == [20.0] * 20
        assert scores.per_image["image_to_text_rank"].tolist() == [1.0 + 57] * 20

    def test_equal_captions_do_not_find_two_pictures(self):
        images = torch.tensor([[1.0, 0.2], [1.0, -0.1]])
        scores = retrieval_recall(images, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), ks=[1])
        assert scores.corpus["text_to_image_recall_at_1"] == 0.5  # the second picture lies nearer
        assert scores.corpus["image_to_text_recall_at_1"] == 0.0

    def test_one_picture(self):
        assert set(retrieval_recall(torch.ones(1, 3), torch.ones(2, 3)).corpus.values()) == {1.0}


class TestErrors:
    @pytest.mark.parametrize(
        ("shapes", "message"),
        [
            (((2, 3), (2, 4)), r"\(2, 3\) and \(2, 4\)"),
            (((2, 3), (6,)), r"\(2, 3\) and \(6,\)"),
            (((0, 3), (2, 3)), "0 images and 2 texts"),
            (((2, 3), (0, 3)), "2 images and 0 texts"),
            (((2, 3), (3, 3)), "3 texts for 2 images: give image_of_text"),
        ],
    )
    def test_shapes(self, shapes, message):
        with pytest.raises(MetricInputError, match=message):
            retrieval_recall(*(torch.ones(shape) for shape in shapes))

    @pytest.mark.parametrize(
        ("owner", "message"),
        [
            ([0, 1], r"shape \(2,\); expected 3 row numbers"),
            ([0.0, 1.0, 1.0], "torch.float32"),
            ([True, False, True], "torch.bool"),
            ([0, 1, 2], "caption 2 has the image 2 of 2"),
            ([0, -1, 1], "caption 1 has the image -1 of 2"),
            ([1, 1, 1], "image sea: no captions"),
        ],
    )
    def test_owners(self, owner, message):
        with pytest.raises(MetricInputError, match=message):
            retrieval_recall(torch.ones(2, 3), torch.ones(3, 3), owner, image_ids=["sea", "dog"])

    @pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
    def test_features_without_direction(self, value):
        bad = torch.ones(2, 3)
        bad[1] = value
        with pytest.raises(MetricInputError, match="image dog: its features have the length"):
            retrieval_recall(bad, torch.ones(2, 3), image_ids=["sea", "dog"])
        with pytest.raises(MetricInputError, match="image dog: caption 1: its features have the length"):
            retrieval_recall(torch.ones(2, 3), bad, image_ids=["sea", "dog"])

    @pytest.mark.parametrize("ks", [[], [0], [1, -5]])
    def test_ks(self, ks):
        with pytest.raises(ValueError, match="ks is"):
            retrieval_recall(torch.eye(2), torch.eye(2), ks=ks)

    def test_names(self):
        with pytest.raises(MetricInputError, match="1 image_ids for 2 images"):
            retrieval_recall(torch.eye(2), torch.eye(2), image_ids=["sea"])


@pytest.fixture(scope="module")
def tiny_clip():
    """A CLIP model with random weights and a tokenizer of words."""
    tokenizer = build_word_tokenizer(build_vocabulary([*CAPTIONS, "A photo depicts "], 1), model_max_length=20)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    words = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text = {**size, **words, "eos_token_id": tokenizer.eos_token_id, "max_position_embeddings": 20}
    vision = {**size, "image_size": 16, "patch_size": 8}
    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)), tokenizer


class TestOfAModel:
    def test_a_caption_per_picture(self, tiny_clip):
        scorer = ClipFeatures(*tiny_clip, batch_size=4)
        pixels = torch.randn(6, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        scores = clip_recall(pixels, CAPTIONS, scorer=scorer)
        images, texts = scorer.image_features(pixels), scorer.text_features(CAPTIONS)
        check(scores, brute_force(images.tolist(), texts.tolist(), range(6), (1, 5, 10)))

    def test_several_captions_with_prefix_and_features_of_pictures(self, tiny_clip):
        scorer = ClipScorer(*tiny_clip)
        several = [CAPTIONS[:3], CAPTIONS[3:4], CAPTIONS[4:]]
        images = features(3, 8, 2)
        texts = ClipFeatures(*tiny_clip).text_features([f"A photo depicts {caption}" for caption in CAPTIONS])
        scores = clip_recall(images, several, scorer=scorer, ks=[2])
        check(scores, brute_force(images.tolist(), texts.tolist(), [0, 0, 0, 1, 2, 2], [2]))

    @pytest.mark.parametrize(
        ("captions", "message"),
        [
            ("a dog", "not a str"),
            (["a dog"], "2 images for 1 entries"),
            (["a dog", 3], "image dog: the references are 3"),
            (["a dog", []], "image dog: no references"),
            (["a dog", ["a", None]], "image dog: reference 1 is None"),
        ],
    )
    def test_errors(self, tiny_clip, captions, message):
        names = ["sea", "dog"][: len(captions)]
        with pytest.raises(MetricInputError, match=message):
            clip_recall(torch.eye(2, 8), captions, scorer=ClipFeatures(*tiny_clip), image_ids=names)
