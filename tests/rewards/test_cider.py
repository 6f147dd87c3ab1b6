"""The CIDEr-D reward against the originals' rewards, against the metric, and as TRL calls it."""

from __future__ import annotations

import json
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from hf_captioners.conversion.document_frequency import convert_document_frequencies
from hf_captioners.metrics.cider.cider import cider_d
from hf_captioners.metrics.cider.document_frequency import DocumentFrequencies
from hf_captioners.metrics.inputs import MetricInputError
from hf_captioners.rewards.cider import CiderDReward

REFERENCES = [["a dog runs", "a dog"], ["two cats", "cats on a chair"], ["a red bus"], ["the blue bus", "a bus"]]
WORDS = ["a", "dog", "runs", "two", "cats", "on", "chair", "red", "bus", "the", "blue", "sky"]
CASES = pytest.mark.parametrize("case", ["case_a", "case_b"])


@pytest.fixture
def frequencies() -> DocumentFrequencies:
    return DocumentFrequencies.from_references(REFERENCES, tokenized=True)


def sampled(seed: int, rows: int = 40) -> tuple[list[str], list[list[str]]]:
    """Completions and the references of the image of each."""
    chance = random.Random(seed)
    completions = [" ".join(chance.choices(WORDS, k=chance.randint(0, 7))) for _ in range(rows)]
    return completions, [chance.choice(REFERENCES) for _ in range(rows)]


class TestOriginals:
    @CASES
    @pytest.mark.parametrize("what", ["sampled", "greedy"])
    def test_satic(self, shared_parity: Path, case: str, what: str) -> None:
        """Token ids with the end counted; document frequencies from the original's pickle."""
        folder = shared_parity / "satic" / case
        tensors = load_file(folder / "io.safetensors")
        samples = len(tensors["nsc.gen_seq"]) // len(tensors["nsc.gts"])
        ids = tensors["nsc.gen_seq"] if what == "sampled" else np.repeat(tensors["greedy.seq"], samples, axis=0)
        captions = [image.tolist() for image in tensors["nsc.gts"] for _ in range(samples)]
        reward = CiderDReward(convert_document_frequencies(folder / "coco-train-idxs.p"), token_ids=True, eos=0)
        rewards = reward([""] * len(ids), captions=captions, completion_ids=ids.tolist())
        np.testing.assert_allclose(rewards, tensors[f"nsc.cider_{what}"], rtol=0, atol=1e-9)

    @CASES
    def test_expansionnet_v2(self, shared_parity: Path, case: str) -> None:
        """Words with the end counted, in completions only where it was reached; frequencies of these references."""
        path = shared_parity / "expansionnet_v2" / case / "text.json"
        example = json.loads(path.read_text("utf-8"))["cider"]
        references = [[text.removesuffix(" EOS") for text in several] for several in example["processed_references"]]
        words = [words[1:] for image in example["hypotheses"] for words in image]  # without SOS
        assert {"EOS" in one for one in words} == {True, False}
        captions = [references[i] for i, image in enumerate(example["hypotheses"]) for _ in image]
        reward = CiderDReward(
            DocumentFrequencies.from_references(references, tokenized=True, eos="EOS"),
            tokenized=True,
            eos="EOS",
            eos_token_id=77,
        )
        rewards = reward(
            completions=[" ".join(word for word in one if word != "EOS") for one in words],
            captions=captions,
            completion_ids=[[77 if word == "EOS" else 5 for word in one] for one in words],
        )
        expected = [one for image in example["rewards"] for one in image]
        np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-9)

    @CASES
    def test_scdnet(self, shared_parity: Path, case: str) -> None:
        """Token ids with the end counted; references are padded with -1."""
        folder = shared_parity / "scdnet" / case
        tensors = load_file(folder / "io.safetensors")
        config = json.loads((folder / "config.json").read_text("utf-8"))
        references = dict(zip(config["cider_gts_image_ids"], tensors["cider.gts"], strict=True))
        frequencies = DocumentFrequencies.from_references(list(references.values()), token_ids=True, eos=0)
        assert len(frequencies) == config["cider_num_ngrams"]
        reward = CiderDReward(frequencies, token_ids=True, eos=0)
        ids = tensors["cider.hyp_ids"]
        captions = [references[image] for image in config["cider_hyp_image_ids"]]
        rewards = reward([""] * len(ids), captions, ids)
        np.testing.assert_allclose(rewards, tensors["cider.hyp_rewards"], rtol=1e-6)  # they are float32
        for name in ("last", "new"):
            ids = tensors["merge.last_kd" if name == "last" else "merge.new_pred"]
            rewards = reward([""] * len(ids), list(references.values()), ids)
            np.testing.assert_allclose(rewards, tensors[f"merge.reward_{name}"], rtol=1e-6)


class TestEqualsTheMetric:
    @pytest.mark.parametrize("seed", range(3))
    def test_words(self, frequencies: DocumentFrequencies, seed: int) -> None:
        completions, captions = sampled(seed)
        expected = cider_d(completions, captions, tokenized=True, document_frequencies=frequencies)
        rewards = CiderDReward(frequencies, tokenized=True)(completions, captions)
        np.testing.assert_allclose(rewards, expected.per_image["cider_d"], rtol=0, atol=1e-12)
        assert all(type(reward) is float for reward in rewards) and max(rewards) > 1

    def test_raw_captions(self) -> None:
        references = [["A dog, running.", "The dog!"], ["Two cats."], ["A red bus (parked)"]]
        completions = ["A dog's running...", "two CATS", "Cats"]
        captions = [references[0], references[1], references[1]]
        frequencies = DocumentFrequencies.from_references(references)
        expected = cider_d(completions, captions, document_frequencies=frequencies)
        rewards = CiderDReward(frequencies)(completions, captions)
        np.testing.assert_allclose(rewards, expected.per_image["cider_d"], rtol=0, atol=1e-12)

    def test_the_end_counted(self) -> None:
        completions, captions = sampled(5)
        frequencies = DocumentFrequencies.from_references(REFERENCES, tokenized=True, eos="</s>")
        with_end = [f"{one} </s>" for one in completions], [[f"{one} </s>" for one in several] for several in captions]
        expected = cider_d(*with_end, tokenized=True, document_frequencies=frequencies).per_image["cider_d"]
        reward = CiderDReward(frequencies, tokenized=True, eos="</s>")
        np.testing.assert_allclose(reward(completions, captions), expected, rtol=0, atol=1e-12)
        np.testing.assert_allclose(reward(*with_end), expected, rtol=0, atol=1e-12)  # not put there twice
        # an end that all captions have changes the score all the same: by the 2-grams with it
        without = CiderDReward(DocumentFrequencies.from_references(REFERENCES, tokenized=True), tokenized=True)
        assert np.abs(np.array(without(completions, captions)) - expected).max() > 0.1

    @pytest.mark.parametrize("counted", [True, False])
    def test_token_ids(self, counted: bool) -> None:
        completions, captions = sampled(6)
        ids = {word: number for number, word in enumerate(WORDS, start=2)}

        def as_ids(caption: str, padding: int) -> list[int]:
            return [ids[word] for word in caption.split()] + [1] + [0] * padding

        id_references = [[as_ids(one, 2) for one in several] for several in REFERENCES]
        options = {"eos": 1} if counted else {"eos_token_id": 1}
        frequencies = DocumentFrequencies.from_references(id_references, token_ids=True, **options)
        reward = CiderDReward(frequencies, token_ids=True, **options)
        rewards = reward(
            completions=["never looked at"] * len(completions),
            captions=[[as_ids(one, 3) for one in several] for several in captions],
            completion_ids=[as_ids(one, 1) for one in completions],
        )
        eos = "</s>" if counted else None
        words = DocumentFrequencies.from_references(REFERENCES, tokenized=True, eos=eos)
        expected = CiderDReward(words, tokenized=True, eos=eos)(completions, captions)
        np.testing.assert_allclose(rewards, expected, rtol=0, atol=1e-12)

    def test_order_and_sigma(self, frequencies: DocumentFrequencies) -> None:
        completions, captions = sampled(7)
        options = {"n": 2, "sigma": 1.0}
        expected = cider_d(completions, captions, tokenized=True, document_frequencies=frequencies, **options)
        rewards = CiderDReward(frequencies, tokenized=True, **options)(completions, captions)
        np.testing.assert_allclose(rewards, expected.per_image["cider_d"], rtol=0, atol=1e-12)

    def test_references_with_unknown_words(self, frequencies: DocumentFrequencies) -> None:
        captions = [["a zebra runs", "new words"], ["a zebra sleeps"], ["a zebra runs", "new words"]]
        completions = ["a zebra runs", "words zebra", "new zebra words"]
        expected = cider_d(completions, captions, tokenized=True, document_frequencies=frequencies)
        rewards = CiderDReward(frequencies, tokenized=True)(completions, captions)
        np.testing.assert_allclose(rewards, expected.per_image["cider_d"], rtol=0, atol=1e-12)


class TestAsTrlCallsIt:
    def test_other_columns_are_ignored(self, frequencies: DocumentFrequencies) -> None:
        completions, captions = sampled(8)
        reward = CiderDReward(frequencies, tokenized=True)
        rewards = reward(
            prompts=[""] * len(completions),
            completions=completions,
            completion_ids=[[1, 2]] * len(completions),
            captions=captions,
            image_id=list(range(len(completions))),
            trainer_state=None,
            log_extra=None,
            log_metric=None,
        )
        assert rewards == reward(completions, captions)

    def test_name(self, frequencies: DocumentFrequencies) -> None:
        assert CiderDReward(frequencies).__name__ == "cider_d"

    def test_conversations(self, frequencies: DocumentFrequencies) -> None:
        reward = CiderDReward(frequencies, tokenized=True)
        completions, captions = sampled(9)
        messages = [[{"role": "assistant", "content": one}] for one in completions]
        assert reward(messages, captions) == reward(completions, captions)

    def test_can_be_pickled(self, frequencies: DocumentFrequencies) -> None:
        reward = CiderDReward(frequencies, tokenized=True)
        completions, captions = sampled(9)
        expected = reward(completions, captions)
        assert pickle.loads(pickle.dumps(reward))(completions, captions) == expected

    def test_no_completions(self, frequencies: DocumentFrequencies) -> None:
        assert CiderDReward(frequencies, tokenized=True)([], []) == []


class TestPreparedReferences:
    def test_once(self, frequencies: DocumentFrequencies, monkeypatch: pytest.MonkeyPatch) -> None:
        reward = CiderDReward(frequencies, tokenized=True)
        seen: list[Any] = []
        prepare = reward.scorer.prepare
        monkeypatch.setattr(reward.scorer, "prepare", lambda references: seen.extend(references) or prepare(references))
        for seed in range(3):
            reward(*sampled(seed))
        assert sorted(seen) == sorted(REFERENCES)

    @pytest.mark.parametrize("cache_images", [0, 1, 2, 3])
    def test_memory_is_bounded(self, frequencies: DocumentFrequencies, cache_images: int) -> None:
        bounded, free = (CiderDReward(frequencies, tokenized=True, cache_images=n) for n in (cache_images, 100))
        for seed in range(4):
            completions, captions = sampled(seed, rows=3)
            np.testing.assert_allclose(bounded(completions, captions), free(completions, captions), rtol=0, atol=1e-12)
            assert len(bounded._prepared) <= cache_images

    def test_ids_of_other_types_are_not_confused(self) -> None:
        references = [[np.array([3, 0])], [np.array([3, 0], np.int32)], [np.array([4, 5])]]
        narrow = np.frombuffer(np.array([3, 0]).tobytes(), np.int32)  # the same bytes, other ids
        frequencies = DocumentFrequencies.from_references(references, token_ids=True, eos=9999, n=2)  # nothing is cut
        with pytest.raises(ValueError, match="no 9999"):
            CiderDReward(frequencies, token_ids=True, eos=9999)
        reward = CiderDReward(frequencies, token_ids=True, eos_token_id=9999, n=2)
        together = reward([""] * 2, [references[0], [narrow]], [[3, 0], [3, 0]])
        assert together == [reward([""], [one], [[3, 0]])[0] for one in (references[0], [narrow.tolist()])]
        assert together[0] != together[1]


class TestRefusals:
    def test_frequencies_of_other_words(self, frequencies: DocumentFrequencies) -> None:
        with pytest.raises(ValueError, match="no 'EOS', so they were counted without the end"):
            CiderDReward(frequencies, eos="EOS")
        with pytest.raises(ValueError, match="are of words, but token_ids=True"):
            CiderDReward(frequencies, token_ids=True, eos_token_id=0)
        of_ids = DocumentFrequencies.from_references([[[5, 6]], [[7, 6]]], token_ids=True, eos_token_id=0)
        with pytest.raises(ValueError, match="are of token ids, but token_ids=False"):
            CiderDReward(of_ids)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"token_ids": True}, "token_ids=True needs eos="),
            ({"token_ids": True, "eos": "EOS"}, "eos='EOS'"),
            ({"token_ids": True, "eos": 0, "eos_token_id": 1}, "eos_token_id=1: expected the same id"),
            ({"token_ids": True, "eos": 0, "tokenized": True}, "tokenized=True is about texts"),
            ({"eos": 0}, "eos=0: expected one word"),
            ({"eos": "the end"}, "expected one word"),
            ({"eos": ""}, "expected one word"),
            ({"cache_images": -1}, "cache_images is -1"),
            ({"n": 5}, "n is 5"),
        ],
    )
    def test_options(self, frequencies: DocumentFrequencies, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CiderDReward(frequencies, **options)

    @pytest.mark.parametrize(
        ("completions", "captions", "message"),
        [
            (["a", None], [["a"], ["b"]], "image 1: the completion is a NoneType"),
            (["a", "b"], [["a"], []], "image 1: the references are"),
            (["a", "b"], [["a"], "b"], "image 1: the references are 'b'"),
            (["a", "b"], [["a"], None], "image 1: the references are None"),
            (["a", "b"], [["a"], [3]], "image 1: a reference is 3"),
            (["a", "b"], [["a"], [["b"]]], "image 1: a reference is"),
            (["a", "b"], [["a"]], "1 captions for 2 completions"),
        ],
    )
    def test_captions(
        self, frequencies: DocumentFrequencies, completions: list[Any], captions: list[Any], message: str
    ) -> None:
        with pytest.raises(MetricInputError, match=message):
            CiderDReward(frequencies, tokenized=True)(completions, captions)

    def test_token_ids(self) -> None:
        frequencies = DocumentFrequencies.from_references([[[5, 6, 0]], [[7, 6, 0]]], token_ids=True, eos=0)
        reward = CiderDReward(frequencies, token_ids=True, eos=0)
        with pytest.raises(MetricInputError, match="no completion_ids for 1 completions"):
            reward(["a"], [[[5, 6]]])
        with pytest.raises(MetricInputError, match="2 completion_ids for 1 completions"):
            reward(["a"], [[[5, 6]]], [[5], [6]])
        with pytest.raises(MetricInputError, match=r"image 0: .*\[5, -1\].*a negative id before the end"):
            reward(["a"], [[[5, -1]]], [[5]])
        with pytest.raises(MetricInputError, match="expected a list of integers"):
            reward(["a"], [[[5, 6]]], [[0.5]])
        with pytest.raises(MetricInputError, match=r"image 0: a reference is 'a dog' \(str\), expected a list"):
            reward(["a"], [["a dog"]], [[5]])

    def test_completion_ids_tell_the_end(self) -> None:
        frequencies = DocumentFrequencies.from_references(REFERENCES, tokenized=True, eos="EOS")
        reward = CiderDReward(frequencies, tokenized=True, eos="EOS", eos_token_id=2)
        with pytest.raises(MetricInputError, match="no completion_ids"):
            reward(["a dog"], [REFERENCES[0]])
        finished, unfinished = reward(["a dog"] * 2, [REFERENCES[0]] * 2, [[5, 6, 2], [5, 6]])
        assert finished > unfinished
