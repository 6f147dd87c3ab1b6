"""The processor of SCD-Net: which of several sentences a caption sees."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from hf_captioners import CaptionerImageProcessor, ScdnetProcessor, build_word_tokenizer

WORDS = ["EOS", "PAD", "SOS", "UNK", "a", "b", "c", "d"]
FEATURES = torch.zeros(2, 3, 8)


@pytest.fixture(scope="module")
def processor():
    return ScdnetProcessor(CaptionerImageProcessor(), build_word_tokenizer(WORDS))


def words(processor, batch):
    return processor.batch_decode(batch["retrieved_ids"])


class TestRetrieved:
    def test_of_a_list_the_first_is_taken(self, processor):
        batch = processor(image_features=FEATURES, retrieved=[["a", "b"], "c"], previous=[["b"], ["d", "a"]])
        assert words(processor, batch) == ["a", "c"]
        assert batch["previous_ids"].tolist() == [[5, 0], [7, 0]]

    def test_in_training_every_caption_gets_another_of_the_list(self, processor):
        lists, seen = [["a", "b", "c"], ["a", "d"]], Counter()
        for seed in range(60):
            seeds = [seed, seed + 1000, seed + 2000, seed + 3000]
            first, second, third, fourth = words(
                processor, processor(image_features=FEATURES, retrieved=lists, seeds=seeds)
            )
            assert first != second and third != fourth
            seen.update([first, third])
        assert set(seen) == {"a", "b", "c", "d"} and min(seen.values()) > 8

    def test_a_list_that_is_too_short_repeats(self, processor):
        batch = processor(image_features=FEATURES, retrieved=[["a", "b"], ["c"]], seeds=range(6))
        first, second, third, *others = words(processor, batch)
        assert {first, second} == {"a", "b"} and third == first and others == ["c"] * 3

    def test_a_sentence_for_each_caption_stays(self, processor):
        batch = processor(image_features=FEATURES, retrieved=["a", "b", "c", "d"], seeds=range(4))
        assert words(processor, batch) == ["a", "b", "c", "d"]
