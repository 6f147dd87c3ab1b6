from __future__ import annotations

import pickle
import random
from typing import Any

import pytest

from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.rewards.repetition import RepetitionReward


def repeated(caption: str, n: int) -> float:
    """The share of n-grams that stand earlier in the same caption, word by word."""
    words = caption.split()
    ngrams = [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return sum(ngram in ngrams[:position] for position, ngram in enumerate(ngrams)) / max(len(ngrams), 1)


@pytest.fixture
def captions() -> list[str]:
    chance = random.Random(0)
    return [" ".join(chance.choices(["a", "dog", "on", "the"], k=chance.randint(0, 12))) for _ in range(60)]


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_minus_the_share_of_repeated_ngrams(captions: list[str], n: int) -> None:
    rewards = RepetitionReward(n=n, tokenized=True)(completions=captions)
    assert rewards == pytest.approx([-repeated(caption, n) for caption in captions], abs=1e-12)
    assert {type(reward) for reward in rewards} == {float} and min(rewards) < -0.1


def test_trl_counts_the_same(captions: list[str]) -> None:
    rewards = pytest.importorskip("trl.rewards", reason="needs trl")
    penalty = rewards.get_repetition_penalty_reward(ngram_size=2, max_penalty=-1.0)
    expected = penalty(completion_ids=[caption.split() for caption in captions])
    assert RepetitionReward(n=2, tokenized=True)(completions=captions) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog runs", 0.0),
        ("", 0.0),
        ("dog", 0.0),
        ("dog dog", 0.0),  # one 2-gram
        ("dog dog dog", -1 / 2),
        (" ".join(["dog"] * 101), -99 / 100),  # the worst there is, above -1
        ("a dog and a dog", -1 / 4),
        ("A dog, and a dog!", -1 / 4),
    ],
)
def test_by_hand(caption: str, expected: float) -> None:
    (reward,) = RepetitionReward()([caption])
    assert reward == pytest.approx(expected, abs=1e-12)
    assert str(reward) != "-0.0"


def test_words_differ_in_case_where_they_are_tokens() -> None:
    assert RepetitionReward(n=1)(["Dog dog"]) == [-0.5]
    assert RepetitionReward(n=1, tokenized=True)(["Dog dog"]) == [0.0]


def test_its_name_and_how_trl_calls_it() -> None:
    reward = pickle.loads(pickle.dumps(RepetitionReward()))
    assert reward.__name__ == "repetition"
    columns: dict[str, Any] = {"image_id": [1], "captions": [["a dog"]], "trainer_state": None, "log_extra": None}
    assert reward(prompts=[""], completions=["a dog"], completion_ids=[[1]], **columns) == [0.0]


def test_errors() -> None:
    with pytest.raises(ValueError, match="n is 0"):
        RepetitionReward(n=0)
    with pytest.raises(MetricInputError, match=r"image 1: the prediction is .* \(list\)"):
        RepetitionReward()(["a dog", [{"role": "assistant", "content": "a"}]])  # type: ignore[list-item]
