"""Words of a caption: texts and token ids, with the end and without."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hf_captioners.metrics.cider.caption_words import CaptionWords
from hf_captioners.metrics.inputs import MetricInputError


class TestTexts:
    def test_as_they_are(self) -> None:
        assert CaptionWords(tokenized=True).of_texts(["a  dog .", ""]) == ["a  dog .", ""]

    def test_tokenized_here(self) -> None:
        assert CaptionWords().of_texts(["A dog.", ""]) == ["a dog", ""]
        assert CaptionWords(eos="EOS").of_texts(["A dog."]) == ["a dog EOS"]

    def test_the_end(self) -> None:
        words = CaptionWords(tokenized=True, eos="EOS")
        texts = ["a dog", "", "a EOS", "EOS a", "aEOS"]
        assert [text.split() for text in words.of_texts(texts)] == [
            ["a", "dog", "EOS"],
            ["EOS"],
            ["a", "EOS"],
            ["EOS", "a", "EOS"],
            ["aEOS", "EOS"],
        ]
        assert words.of_texts(["a", "b"], finished=[False, True]) == ["a", "b EOS"]


class TestIds:
    @pytest.mark.parametrize("container", [list, tuple, np.array, torch.tensor])
    def test_containers(self, container: Any) -> None:
        captions = [container([5, 7, 0, 4, 0]), container([5, 7]), container([0, 3])]
        assert CaptionWords(token_ids=True, eos=0).of_ids(captions) == ["5 7 0", "5 7", "0"]
        assert CaptionWords(token_ids=True, eos_token_id=0).of_ids(captions) == ["5 7", "5 7", ""]
        assert CaptionWords(token_ids=True, eos=0, eos_token_id=0).of_ids(captions) == ["5 7 0", "5 7", "0"]

    def test_empty(self) -> None:
        assert CaptionWords(token_ids=True, eos=0).of_ids([[], np.array([])]) == ["", ""]

    @pytest.mark.parametrize("caption", [[5, -1], [-100, 0], "a dog", [[5, 6]], [0.5], 7, None])
    def test_refusals(self, caption: Any) -> None:
        with pytest.raises(MetricInputError, match="token ids"):
            CaptionWords(token_ids=True, eos=0).of_ids([caption])


def test_references_are_named() -> None:
    words = CaptionWords(token_ids=True, eos=0)
    assert words.of_references([[[5, 0], [6]], np.array([[7, 0]])], ["x", "y"]) == ["5 0", "6", "7 0"]
    with pytest.raises(MetricInputError, match="image y: token ids"):
        words.of_references([[[5, 0]], [[6, -1]]], ["x", "y"])
    with pytest.raises(MetricInputError, match="image y: the references are"):
        words.of_references([[[5, 0]], np.empty((0, 3), np.int64)], ["x", "y"])
    with pytest.raises(MetricInputError, match=r"image x: a reference is \[5\] \(list\), expected a string"):
        CaptionWords(tokenized=True).of_references([[[5]]], ["x"])
