from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch

from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.rewards.length import LengthReward

CAPTIONS = ["dog " * number for number in range(8)]  # of 0 to 7 words


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"minimum": 3, "maximum": 5}, [-3, -2, -1, 0, 0, 0, -1, -2]),
        ({"minimum": 3}, [-3, -2, -1, 0, 0, 0, 0, 0]),
        ({"maximum": 5}, [0, 0, 0, 0, 0, 0, -1, -2]),
        ({"minimum": 4, "maximum": 4}, [-4, -3, -2, -1, 0, -1, -2, -3]),
        ({"maximum": 0}, [0, -1, -2, -3, -4, -5, -6, -7]),
    ],
    ids=["both", "minimum", "maximum", "target", "none"],
)
def test_words_outside_the_limits(limits: dict[str, int], expected: list[int]) -> None:
    for tokenized in (True, False):
        rewards = LengthReward(**limits, tokenized=tokenized)(completions=CAPTIONS)
        assert rewards == expected
        assert {type(reward) for reward in rewards} == {float} and "-0.0" not in map(str, rewards)


def test_punctuation_is_no_word_in_raw_captions() -> None:
    assert LengthReward(maximum=2)(["A dog, running."]) == [-1.0]
    assert LengthReward(maximum=2, tokenized=True)(["a dog , running ."]) == [-3.0]


def test_captions_that_do_not_end() -> None:
    reward = LengthReward(maximum=5, unfinished_penalty=2.5, eos_token_id=0)
    ids = [[7, 0], [7, 7], [], [0], [7, 0, 0], [7, 7, 7], [0], [7]]
    expected = [0, -2.5, -2.5, 0, 0, -2.5, -1, -4.5]
    assert reward(completions=CAPTIONS, completion_ids=ids) == expected
    assert reward(completions=CAPTIONS, completion_ids=[torch.tensor(one) for one in ids]) == expected
    only = LengthReward(unfinished_penalty=1.0, eos_token_id=0)
    assert only(completions=CAPTIONS, completion_ids=ids) == [0, -1, -1, 0, 0, -1, 0, -1]


def test_its_name_and_how_trl_calls_it() -> None:
    reward = pickle.loads(pickle.dumps(LengthReward(1, 2)))
    assert reward.__name__ == "length"
    columns: dict[str, Any] = {"image_id": [1], "captions": [["a dog"]], "trainer_state": None, "log_extra": None}
    assert reward(prompts=[""], completions=["a dog"], completion_ids=[[1]], **columns) == [0.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "0 for every caption"),
        ({"minimum": -1}, "minimum=-1, maximum=None: expected 0 <= minimum"),
        ({"minimum": 3, "maximum": 2}, "minimum=3, maximum=2: expected 0 <= minimum <= maximum"),
        ({"maximum": 2, "unfinished_penalty": -1.0, "eos_token_id": 0}, "unfinished_penalty=-1.0"),
        ({"maximum": 2, "unfinished_penalty": float("nan"), "eos_token_id": 0}, "unfinished_penalty=nan"),
        ({"maximum": 2, "unfinished_penalty": 1.0}, "eos_token_id=None: expected both or neither"),
        ({"maximum": 2, "eos_token_id": 0}, "unfinished_penalty=0.0, eos_token_id=0: expected both or neither"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LengthReward(**options)


def test_what_cannot_be_scored_is_refused() -> None:
    reward = LengthReward(maximum=3, unfinished_penalty=1.0, eos_token_id=0)
    with pytest.raises(MetricInputError, match="no completion_ids for 2 completions"):
        reward(["a", "b"])
    with pytest.raises(MetricInputError, match="1 completion_ids for 2 completions"):
        reward(["a", "b"], completion_ids=[[0]])
    with pytest.raises(MetricInputError, match=r"image 0: the prediction is 5 \(int\)"):
        LengthReward(maximum=3)([5])  # type: ignore[list-item]
