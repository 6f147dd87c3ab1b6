from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hf_captioners.metrics.bleu import bleu
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.rewards import bleu as module
from hf_captioners.rewards.bleu import BleuReward

Batch = tuple[list[str], list[list[str]]]


@pytest.fixture
def batch() -> Batch:
    """Four completions of each of six images, shuffled; the references of two images are equal."""
    rng = random.Random(0)

    def caption() -> str:
        return " ".join(rng.choice(["a", "dog", "cat", "runs", "sits"]) for _ in range(rng.randrange(10)))

    images = [[caption() for _ in range(rng.randrange(1, 6))] for _ in range(5)]
    rows = [(caption(), list(image)) for image in [*images, images[0]] for _ in range(4)]
    rng.shuffle(rows)
    return [completion for completion, _ in rows], [captions for _, captions in rows]


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The references that went through preparation, image by image."""
    seen: list[list[str]] = []
    prepare_pairs: Callable[..., Any] = module.prepare_pairs

    def recording(predictions: Any, references: Any, *options: Any, **more: Any) -> Any:
        seen.extend(list(several) for several in references if list(several) != [""])
        return prepare_pairs(predictions, references, *options, **more)

    monkeypatch.setattr(module, "prepare_pairs", recording)
    return seen


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_reward_is_the_bleu_of_the_image(batch: Batch, n: int) -> None:
    rewards = BleuReward(n=n, tokenized=True)(*batch)
    assert rewards == bleu(*batch, tokenized=True).per_image[f"bleu_{n}"].tolist()
    assert {type(reward) for reward in rewards} == {float}


def test_the_reward_is_that_of_the_reference_tool(batch: Batch) -> None:
    scorer = pytest.importorskip("pycocoevalcap.bleu.bleu_scorer", reason="needs pycocoevalcap").BleuScorer(n=4)
    for pair in zip(*batch, strict=True):
        scorer += pair
    _, per_image = scorer.compute_score(option="closest", verbose=0)
    assert BleuReward(tokenized=True)(*batch) == pytest.approx(per_image[3], rel=1e-9, abs=0)


def test_raw_captions_are_tokenized(shared_parity: Path) -> None:
    folder = shared_parity / "metrics" / "satic_500"
    expected = json.loads((folder / "expected.json").read_text())
    order = [str(image) for image in expected["order"]][:40]
    results = json.loads((folder / "hyps.json").read_text())
    predictions = {str(one["image_id"]): one["caption"] for one in results}
    references = json.loads((folder / "refs.json").read_text())
    rewards = BleuReward()([predictions[image] for image in order], [references[image] for image in order])
    assert rewards == pytest.approx(expected["per_image"]["Bleu_4"][:40], rel=1e-9, abs=0)


def test_it_is_called_as_trl_calls(batch: Batch) -> None:
    completions, captions = batch
    reward = BleuReward(n=2, tokenized=True)
    columns = {"image_id": list(range(24)), "captions": captions}
    rewards = reward(
        prompts=[""] * 24,
        completions=completions,
        completion_ids=[[1]] * 24,
        **columns,
        trainer_state=None,
        log_extra=None,
        log_metric=None,
    )
    assert rewards == reward(completions, captions)
    assert reward.__name__ == "bleu_2"
    assert BleuReward.__name__ == "BleuReward"


def test_references_are_prepared_once(batch: Batch, prepared: list[list[str]]) -> None:
    reward = BleuReward(tokenized=True)
    first = reward(*batch)
    assert len(prepared) == 5
    assert reward(*batch) == first
    assert len(prepared) == 5


@pytest.mark.parametrize("cache_images", [0, 2])
def test_the_cache_is_bounded(batch: Batch, prepared: list[list[str]], cache_images: int) -> None:
    reward = BleuReward(tokenized=True, cache_images=cache_images)
    expected = BleuReward(tokenized=True)(*batch)
    prepared.clear()
    assert [reward(*batch) for _ in range(3)] == [expected] * 3
    assert len(prepared) == 5 + 2 * (5 - cache_images)


def test_changed_references_are_not_taken_from_the_cache() -> None:
    reward = BleuReward(n=1, tokenized=True)
    captions = ["a dog"]
    assert reward(["a dog"], [captions]) == [pytest.approx(1.0)]
    captions[0] = "the cat"
    assert reward(["a dog"], [captions]) == [pytest.approx(0.0)]


def test_it_can_be_pickled(batch: Batch) -> None:
    reward = BleuReward(n=3, tokenized=True)
    expected = reward(*batch)
    copy = pickle.loads(pickle.dumps(reward))
    assert copy.__name__ == "bleu_3"
    assert copy(*batch) == expected


def test_an_empty_completion_is_worth_0() -> None:
    assert BleuReward(tokenized=True)(["", ""], [["a dog"], [""]]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("completions", "captions", "message"),
    [
        (["a dog", [{"role": "assistant", "content": "a dog"}]], [["a"], ["a"]], "image 1: the prediction is .*list"),
        (["a dog"], [[]], "image 0: no references"),
        (["a dog"], ["a dog"], "image 0: the references are 'a dog'"),
        (["a dog"], [["a"], ["b"]], "1 predictions but 2 lists of references"),
    ],
    ids=["conversation", "no references", "one string", "lengths"],
)
def test_what_cannot_be_scored_is_refused(completions: Any, captions: Any, message: str) -> None:
    with pytest.raises(MetricInputError, match=message):
        BleuReward(tokenized=True)(completions, captions)


@pytest.mark.parametrize(("options", "message"), [({"n": 0}, "n is 0"), ({"cache_images": -1}, "cache_images is -1")])
def test_options_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BleuReward(**options)
