"""Rewards by name, and errors by option."""

from __future__ import annotations

import pytest
import torch
from contracts.reward_policies import SIDE, TOKENIZER, tiny_processor, tiny_rows
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
)

from hf_captioners import DicoProcessor, FeatureStore
from hf_captioners.cli.training.reward_arguments import (
    CLIP_VARIANTS,
    RewardArguments,
    load_rewards,
)
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features
from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
from hf_captioners.metrics.clip.clip_score import ClipScorer
from hf_captioners.metrics.clip.pac_score import PacScorer
from hf_captioners.rewards import BleuReward, CiderDReward, ClipReward
from hf_captioners.rewards.cider import END

PIXELS = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory):
    """A CLIP with the vocabulary of letters, for pictures of `SIDE` pixels."""
    folder = tmp_path_factory.mktemp("clip")
    letters = sorted(ByteLevel.alphabet())
    names = [*letters, *(f"{one}</w>" for one in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={name: i for i, name in enumerate(names)}, merges=[], model_max_length=60)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ends = {"vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513}
    torch.manual_seed(0)
    config = CLIPConfig(vision_config={**size, "image_size": SIDE, "patch_size": 8}, text_config={**size, **ends})
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _image_processor().save_pretrained(folder)
    return str(folder)


def _image_processor(**options):
    return CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **options)


@pytest.fixture()
def with_clips_words(clip_dir):
    return DicoProcessor(_image_processor(), CLIPTokenizer.from_pretrained(clip_dir))


class TestRewards:
    @pytest.fixture()
    def rows(self, tmp_path):
        (tmp_path / "pictures").mkdir()
        return tiny_rows(tmp_path / "pictures", 2)

    def test_the_exact_reward_of_dico(self, clip_dir, rows, with_clips_words):
        arguments = RewardArguments(["pac_s"], clip_dir, "dico_ids")
        (reward,) = load_rewards(arguments, rows, with_clips_words)
        scorer = PacScorer(clip_dir, prefix="", clip_negative=False, pad_token_id=514)
        expected = ClipReward(scorer, use_ids=True, use_pixel_values=True)
        ids = [[66, 321, 513], [70, 300, 514, 301, 513], [66, 70, 71], [80, 81, 82]]  # the last two do not end
        given = {"completion_ids": ids, "pixel_values": PIXELS, "completions": ["?"] * 4}
        found = reward(**given)
        assert found == expected(**given)
        assert min(found) < 0  # not clipped
        _, _, third, fourth = reward(**{**given, "pixel_values": PIXELS[:1]})
        assert third == fourth  # what does not end gets a constant

    def test_the_exact_reward_on_cached_features(self, clip_dir, rows, with_clips_words, tmp_path):
        datasets = pytest.importorskip("datasets")
        with FeatureWriter(tmp_path / "features") as writer:
            for row in rows:
                writer.add(row["image_id"], torch.zeros(3, 4))
        cached = attach_features(
            datasets.Dataset.from_list(rows), FeatureStore(tmp_path / "features"), keep_images=True
        )
        (reward,) = load_rewards(RewardArguments(["ref_pac_s"], clip_dir, "dico_ids"), cached, with_clips_words)
        assert (reward.use_ids, reward.use_pixel_values, reward.use_references) == (True, False, True)

    def test_variants_on_texts(self, clip_dir, rows):
        for variant, prefix, clip_negative in (("published", "A photo depicts ", True), ("dico", "", False)):
            (reward,) = load_rewards(RewardArguments(["clip_s"], clip_dir, variant), rows, tiny_processor("satic"))
            assert type(reward.scorer) is ClipScorer
            assert (reward.scorer.prefix, reward.scorer.clip_negative) == (prefix, clip_negative)
            assert not reward.use_ids and not reward.use_pixel_values
        assert set(CLIP_VARIANTS) == {"published", "dico", "dico_ids"}
        with pytest.raises(ValueError, match="clip_variant must be published or dico or dico_ids, not 'x'"):
            RewardArguments(clip_variant="x")

    def test_ids_and_pictures_must_be_clips(self, clip_dir, rows, with_clips_words):
        arguments = RewardArguments(["pac_s"], clip_dir, "dico_ids")
        with pytest.raises(ValueError, match="the captioner's vocabulary is not that of --clip_model; --clip_variant"):
            load_rewards(arguments, rows, tiny_processor("dico"))
        darker = DicoProcessor(_image_processor(image_mean=[0.2] * 3), with_clips_words.tokenizer)
        with pytest.raises(ValueError, match=r"pictures have mean and deviation \[\[0\.2, 0\.2, 0\.2\]"):
            load_rewards(arguments, rows, darker)

    def test_saved_document_frequencies(self, rows, tmp_path):
        path = tmp_path / "frequencies.json"
        counted = DocumentFrequencies.from_references([row["captions"] for row in rows], eos=END)
        counted.save(path)
        (reward,) = load_rewards(RewardArguments(document_frequencies=str(path)), rows, tiny_processor("satic"))
        (usual,) = load_rewards(RewardArguments(), rows, tiny_processor("satic"))
        given = {"completions": rows[0]["captions"][:2], "captions": [row["captions"] for row in rows]}
        given["completion_ids"] = [[5, TOKENIZER.eos_token_id]] * 2
        assert reward(**given) == usual(**given) and max(reward(**given)) > 0

    def test_words_of_another_language(self, rows):
        rows = [{**row, "captions": ["一只狗", "狗"]} for row in rows[:1]] + [{**rows[1], "captions": ["两只猫"]}]
        names = ["cider_d", "bleu_4", "repetition", "length"]
        arguments = RewardArguments(names, max_words=2, reward_tokenizer="unicode")
        cider_d, bleu, repetition, length = load_rewards(arguments, rows, tiny_processor("satic"))
        given = {"completions": ["一只狗", "猫猫"], "captions": [row["captions"] for row in rows]}
        assert cider_d.scorer.document_frequencies.count("一 只") == 1
        ends = {"completion_ids": [[5, TOKENIZER.eos_token_id]] * 2}
        assert cider_d(**given, **ends) == pytest.approx(
            CiderDReward(cider_d.scorer.document_frequencies, eos=END, tokenizer="unicode")(**given)
        )
        assert bleu(**given)[0] == pytest.approx(BleuReward(tokenizer="unicode")(**given)[0])
        assert (bleu.tokenizer, repetition.tokenizer, length(**given)) == ("unicode", "unicode", [-1.0, 0.0])

    def test_document_frequencies_of_another_tokenizer(self, rows, tmp_path):
        path = str(tmp_path / "frequencies.safetensors")
        counted = DocumentFrequencies.from_references([one["captions"] for one in rows], eos=END, tokenizer="unicode")
        counted.save(path)
        with pytest.raises(ValueError, match=r"^--document_frequencies .*frequencies.safetensors: .* 'unicode-lower"):
            load_rewards(RewardArguments(document_frequencies=path), rows, tiny_processor("satic"))
        arguments = RewardArguments(document_frequencies=path, reward_tokenizer="unicode")
        (reward,) = load_rewards(arguments, rows, tiny_processor("satic"))
        assert reward.tokenizer == "unicode"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reward_tokenizer": "jieba"}, "no tokenizer 'jieba'; expected 'ptb', 'unicode' or 'module:function'"),
            ({"rewards": ["cidre"]}, "--rewards cidre: no such reward; expected one of cider_d, bleu_4"),
            ({"rewards": ["no_such_module:f"]}, "--rewards no_such_module:f: No module named"),
            ({"rewards": ["math:no_such"]}, "--rewards math:no_such: the module math has no no_such"),
            ({"rewards": ["clip_s"]}, "--rewards clip_s needs --clip_model"),
            (
                {"rewards": ["clip_s"], "clip_model": "no_such"},
                "^--clip_model no_such: there is no such file or folder",
            ),
            (
                {"rewards": ["bleu_4"], "clip_model": "x"},
                "--clip_model x has no effect: it is read by clip_s, pac_s, ref_clip_s, ref_pac_s, and --rewards has",
            ),
            ({"clip_variant": "dico"}, "--clip_variant dico has no effect"),
            ({"min_words": 2}, "--min_words 2 has no effect: it is read by length, and --rewards has cider_d; leave"),
            ({"max_words": 9}, "--max_words 9 has no effect"),
            ({"rewards": ["length"], "document_frequencies": "x"}, "--document_frequencies x has no effect"),
            ({"rewards": ["math:sin"], "reward_tokenizer": "unicode"}, "--reward_tokenizer unicode has no effect"),
            ({"document_frequencies": "no_such"}, "^--document_frequencies no_such: there is no such file or folder"),
        ],
    )
    def test_what_is_wrong_is_said(self, rows, options, message):
        with pytest.raises(ValueError, match=message):
            load_rewards(RewardArguments(**options), rows, tiny_processor("satic"))
