"""Self-critical training: baselines, the tie to a reference, and the reward that it has by default."""

from __future__ import annotations

import datasets
import pytest
import torch
from contracts.reward_policies import (
    TOKENIZER,
    arbitrary,
    changed,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_rows,
    weights,
)

from hf_captioners import FeatureStore, SCSTConfig
from hf_captioners.data.features.store import FeatureWriter
from hf_captioners.data.rows import attach_features
from hf_captioners.metrics import DocumentFrequencies, cider_d


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture()
def trainer(tmp_path, rows):
    def make(train=rows, **options):
        usual = {"candidate_strategy": "sample", "baseline": "leave_one_out"}
        run = reward_trainer(SCSTConfig, tmp_path, train, **{**usual, **options})
        run.seen, roll_out = [], run.roll_out
        run.roll_out = lambda batch: run.seen.append(roll_out(batch)) or run.seen[-1]
        return run

    return make


class TestAdvantages:
    def test_normalized_over_the_whole_step(self, trainer):
        """Of all micro-batches they have deviation 1."""
        options = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": 1}
        plain, run = trainer(**options), trainer(normalize_advantages=True, **options)
        for one in (plain, run):
            one.train()
        expected, found = (torch.cat([one.advantages.flatten() for one in r.seen]) for r in (plain, run))
        assert len(found) == 18
        torch.testing.assert_close(found, expected / expected.std(correction=0))

    @pytest.mark.parametrize("baseline", ["greedy", "mean", "leave_one_out"])
    def test_normalized_where_all_are_equal(self, trainer, baseline):
        """Rounding is not taken for a difference, and made large."""
        run = trainer(
            normalize_advantages=True, baseline=baseline, num_generations=5, weight_decay=0.0,
            reward=lambda completions, **_: [2.3] * len(completions),
        )  # fmt: skip
        before = weights(run.model)
        run.train()
        assert changed(before, run.model) == set()
        assert run.state.log_history[0]["advantage_std"] == 0.0

    def test_one_candidate_against_the_greedy_caption(self, trainer):
        run = trainer(baseline="greedy", num_generations=1)
        before = weights(run.model)
        run.train()
        first = run.seen[0]
        greedy = run.state.log_history[0]["baseline"]
        assert first.rewards.shape == (4, 1)
        assert float((first.rewards[:, 0] - first.advantages[:, 0]).mean()) == pytest.approx(greedy)
        assert changed(before, run.model)
        assert run.state.log_history[0]["advantage_std"] > 0

    def test_no_reward_for_the_greedy_caption(self, trainer):
        """Then there is nothing to compare the picture's candidates with."""

        def choosy(completions, completion_ids, image_id, **kwargs):
            values = arbitrary(completion_ids)
            greedy = len(completions) == 4  # one a picture
            return [None if greedy and name % 2 else value for name, value in zip(image_id, values, strict=True)]

        run = trainer(baseline="greedy", reward=choosy, max_steps=1)
        run.train()
        (rollout,) = run.seen
        odd = torch.tensor([name % 2 == 1 for name in rollout.columns["image_id"]])
        assert 0 < int(odd.sum()) < 4
        assert (rollout.advantages[odd] == 0).all()
        assert (rollout.advantages[~odd] != 0).any()
        assert not rollout.valid[odd].any()


class TestTie:
    def test_its_price_is_taken_from_the_reward(self, trainer):
        """With another model as reference: the log-ratio of whole captions, times beta."""
        run = trainer(baseline="mean", beta=0.3, ref_model=tiny_policy("satic", seed=1), max_steps=1)
        run.train()
        (rollout,), policy, reference = run.seen, tiny_policy("satic"), tiny_policy("satic", seed=1)
        sequences, features = rollout.candidates.sequences, rollout.image_inputs["image_features"]
        ratios = []
        for model in (policy, reference):
            seen = features.repeat_interleave(3, dim=0)
            log_p = model(image_features=seen, decoder_input_ids=sequences[:, :-1]).logits.log_softmax(-1)
            chosen = log_p.gather(-1, sequences[:, 1:, None])[..., 0] * rollout.candidates.mask
            ratios.append(chosen.sum(dim=1).detach())
        # the backbones differ as well, so only the policy's own features are its own
        log_probs = ratios[0].view(4, 3)
        paid = rollout.rewards - 0.3 * (log_probs - rollout.reference_log_probs.sum(dim=1).view(4, 3))
        expected = paid - paid.mean(dim=1, keepdim=True)
        torch.testing.assert_close(rollout.advantages, expected, atol=1e-4, rtol=1e-4)
        assert abs(run.state.log_history[0]["kl"]) > 0.1

    def test_costs_nothing_at_first(self, trainer):
        tied, free = trainer(beta=0.5, max_steps=1), trainer(max_steps=1)
        for run in (tied, free):
            run.train()
        torch.testing.assert_close(tied.seen[0].advantages, free.seen[0].advantages, atol=1e-5, rtol=0)
        assert tied.state.log_history[0]["kl"] == pytest.approx(0.0, abs=1e-5)

    def test_a_reference_cannot_follow_where_there_is_none(self, trainer):
        with pytest.raises(ValueError, match="sync_ref_model=True needs a reference model of its own"):
            trainer(sync_ref_model=True)


class TestDefaultReward:
    def test_is_cider_d_with_the_training_captions(self, trainer, rows):
        run = trainer(reward=None, max_steps=1)
        run.train()
        counted = [[f"{caption} END" for caption in row["captions"]] for row in rows]
        frequencies = DocumentFrequencies.from_references(counted, tokenized=True)
        (rollout,) = run.seen
        finished = [ids[-1:] == [TOKENIZER.eos_token_id] for ids in rollout.candidates.ids]
        assert 0 < sum(finished) < 12
        ended = zip(rollout.candidates.texts, finished, strict=True)
        completions = [f"{text} END" if end else text for text, end in ended]
        references = [counted[name] for name in rollout.columns["image_id"] for _ in range(3)]
        expected = cider_d(completions, references, document_frequencies=frequencies, tokenized=True)
        torch.testing.assert_close(
            rollout.rewards.flatten(), torch.tensor(expected.per_image["cider_d"], dtype=torch.float32)
        )
        assert rollout.rewards.max() > 0
        assert "rewards/cider_d/mean" in run.state.log_history[0]

    def test_of_a_data_set_opens_no_picture(self, trainer, rows):
        columns = {name: [row[name] for row in rows] for name in ("image_id", "captions")}
        dataset = datasets.Dataset.from_dict({**columns, "image": ["nowhere.png"] * len(rows)})
        dataset = dataset.cast_column("image", datasets.Image())
        found = trainer(reward=None, train=dataset).reward_functions.functions[0]
        expected = trainer(reward=None).reward_functions.functions[0]
        ended = [[8, 9, TOKENIZER.eos_token_id]]
        given = {"completions": ["a red star"], "completion_ids": ended, "captions": [rows[0]["captions"]]}
        assert found(**given) == expected(**given)

    def test_of_cached_features_reads_none(self, trainer, rows, tmp_path):
        with FeatureWriter(tmp_path / "features", dtype=torch.float32) as writer:
            for row in rows:
                writer.add(row["image_id"], torch.randn(2, 16))
        columns = {name: [row[name] for row in rows] for name in ("image_id", "captions")}
        cached = attach_features(datasets.Dataset.from_dict(columns), FeatureStore(tmp_path / "features"))
        run = trainer(reward=None, train=cached)
        run.train()
        assert run.state.global_step == 2

    @pytest.mark.parametrize("train", [None, "stream"])
    def test_needs_captions_to_count_in(self, trainer, train):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                raise AssertionError("not to be read")

        with pytest.raises(ValueError, match=r"counts words in the captions of train_dataset beforehand"):
            trainer(reward=None, train=Stream() if train else None)
