"""Direct CLIP-based optimisation: winners and losers, steps with the same candidates, the reference."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.reward_policies import (
    arbitrary,
    assert_close,
    assert_same,
    changed,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_rows,
    weights,
)
from peft import LoraConfig, PeftModel, get_peft_model

from hf_captioners import DiCOConfig
from hf_captioners.training.dico_trainer import RepeatedSteps

SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"), 10)


@pytest.fixture()
def trainer(tmp_path, rows):
    def make(folder="run", train=rows, **options):
        run = reward_trainer(DiCOConfig, tmp_path / folder, train, **{"tau": 2.0, **options})
        run.seen, roll_out = [], run.roll_out
        run.roll_out = lambda batch: run.seen.append(roll_out(batch)) or run.seen[-1]
        return run

    return make


def logged(run, key):
    return [entry[key] for entry in run.state.log_history if key in entry]


class TestPairs:
    def test_what_is_logged_of_them(self, trainer):
        run = trainer(max_steps=1)
        run.train()
        (rollout,), log = run.seen, run.state.log_history[0]
        gaps, largest, weight = [], [], []
        for row in torch.tensor(arbitrary(rollout.candidates.ids)).view(4, 3).tolist():
            best = row.index(max(row))
            losers = [i for i in range(3) if i != best]
            exponentials = [math.exp(2.0 * (row[best] - row[i])) for i in losers]
            gammas = [one / sum(exponentials) for one in exponentials]
            gaps.append(row[best] - sum(gamma * row[i] for gamma, i in zip(gammas, losers, strict=True)))
            largest.append(max(gammas))
            weight.append([1.0 if i == best else -gammas[losers.index(i)] for i in range(3)])
        assert log["reward_gap"] == pytest.approx(sum(gaps) / 4, abs=1e-5)
        assert log["gamma_max"] == pytest.approx(sum(largest) / 4, abs=1e-5)
        torch.testing.assert_close(rollout.weights, torch.tensor(weight))

    def test_implicit_rewards_after_some_steps(self, trainer):
        """beta times the log-ratio of the trained model and the model as it was."""
        run = trainer(max_steps=3, beta=0.4, per_device_train_batch_size=5)
        states = []
        run.seen, roll_out = [], run.roll_out
        run.roll_out = lambda batch: (
            (states.append(weights(run.model)), run.seen.append(roll_out(batch)))[1] or run.seen[-1]
        )
        run.train()
        rollout, policy, log = run.seen[-1], tiny_policy("satic"), run.state.log_history[2]
        policy.load_state_dict(states[-1])
        sequences, scores = rollout.candidates.sequences, []
        for model in (policy, tiny_policy("satic")):
            seen = rollout.image_inputs["image_features"].repeat_interleave(3, dim=0)
            with torch.no_grad():
                log_p = model(image_features=seen, decoder_input_ids=sequences[:, :-1]).logits.log_softmax(-1)
            chosen = log_p.gather(-1, sequences[:, 1:, None])[..., 0] * rollout.candidates.mask
            scores.append(chosen.sum(dim=1).view(5, 3))
        ratios, weight = scores[0] - scores[1], rollout.weights
        chosen = 0.4 * (ratios * (weight == 1)).sum(dim=1)
        rejected = -0.4 * (ratios * weight * (weight != 1)).sum(dim=1)
        assert log["kl"] == pytest.approx(float(ratios.mean()), abs=1e-4)
        assert log["rewards/chosen"] == pytest.approx(float(chosen.mean()), abs=1e-4)
        assert log["rewards/rejected"] == pytest.approx(float(rejected.mean()), abs=1e-4)
        assert log["rewards/margins"] == pytest.approx(float((chosen - rejected).mean()), abs=1e-4)
        assert log["rewards/accuracies"] == pytest.approx(float((chosen > rejected).float().mean()))
        assert log["loss"] == pytest.approx(float(-(chosen - rejected).sigmoid().log().mean()), abs=1e-4)
        assert abs(log["kl"]) > 0.01

    def test_equal_texts_can_be_merged(self, trainer):
        """Samples with little chance repeat each other: the first of them stands for all."""
        options = {"candidate_strategy": "sample", "temperature": 0.3, "num_generations": 6, "max_steps": 1}
        run = trainer(deduplicate_candidates=True, **options)
        run.train()
        (rollout,) = run.seen
        texts = [rollout.candidates.texts[row : row + 6] for row in range(0, 24, 6)]
        assert min(len(set(one)) for one in texts) < 6
        expected = [[text not in one[:i] for i, text in enumerate(one)] for one in texts]
        assert rollout.valid.tolist() == expected
        weight = rollout.weights
        assert (weight[~rollout.valid] == 0).all()
        lost = weight.masked_fill(weight == 1, 0.0).sum(dim=1)
        pairs = rollout.valid.sum(dim=1) > 1
        assert pairs.any()
        torch.testing.assert_close(lost[pairs], torch.full_like(lost[pairs], -1.0))

    def test_without_a_second_text_nothing_is_learned(self, trainer):
        options = {"candidate_strategy": "sample", "top_k": 1, "weight_decay": 0.0}
        run = trainer(deduplicate_candidates=True, **options)
        before = weights(run.model)
        run.train()
        assert changed(before, run.model) == set()
        assert logged(run, "loss") == [0.0, 0.0]
        assert logged(run, "completions/unique_ratio") == [pytest.approx(1 / 3)] * 2


class TestIterations:
    def test_the_same_candidates_twice(self, trainer, rows):
        """Ten pictures, four a step: two steps' worth an epoch, each twice."""
        names, counted = [], []

        def reward(completion_ids, image_id, **kwargs):
            counted.append(len(image_id))
            return arbitrary(completion_ids)

        run = trainer(reward=reward, num_iterations=2, max_steps=-1, num_train_epochs=2)
        run.train()
        assert run.state.global_step == 8
        assert counted == [12] * 4
        names = [one.columns["image_id"] for one in run.seen]
        assert len({*names[0], *names[1]}) == len({*names[2], *names[3]}) == 8
        log = [entry for entry in run.state.log_history if "loss" in entry]
        for first, again in zip(log[::2], log[1::2], strict=True):
            assert first["reward"] == again["reward"]
            assert first["loss"] != again["loss"]
            assert first["num_tokens"] == again["num_tokens"]  # written once
            assert again["rewards/margins"] > first["rewards/margins"]

    def test_equals_two_steps_on_the_same_candidates(self, trainer):
        """By hand: the loss of the candidates, two steps of gradient descent."""
        run = trainer(num_iterations=2, max_steps=2, **SGD)
        run.train()
        once = trainer(max_steps=1, **SGD)
        once.train()
        batch = {"rollout": once.seen[0]}
        once.model.train()
        once.model.zero_grad()
        once.compute_loss(once.model, batch, num_items_in_batch=torch.tensor(4)).backward()
        with torch.no_grad():
            for parameter in once.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
        assert torch.equal(once.seen[0].candidates.sequences, run.seen[0].candidates.sequences)
        assert_close(weights(run.model), weights(once.model), weights(tiny_policy("satic")))

    def test_accumulation(self, trainer):
        ends = []
        for size, accumulation in ((4, 1), (2, 2), (1, 4)):
            run = trainer(
                num_iterations=2, max_steps=4, per_device_train_batch_size=size,
                gradient_accumulation_steps=accumulation, **SGD,
            )  # fmt: skip
            run.train()
            assert len(run.seen) == 2 * accumulation
            ends.append(weights(run.model))
        assert_close(ends[0], ends[1], weights(tiny_policy("satic")))
        assert_close(ends[0], ends[2], weights(tiny_policy("satic")))

    def test_resuming(self, trainer, tmp_path):
        options = {
            "num_iterations": 2, "max_steps": 8, "save_strategy": "steps", "save_steps": 2,
            "per_device_train_batch_size": 2, "candidate_strategy": "sample", "generate_with_dropout": True,
        }  # fmt: skip
        whole, resumed = (
            trainer(folder, model=tiny_policy("satic", 0.2), **options) for folder in ("whole", "resumed")
        )
        whole.train()
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))
        assert_same(weights(whole.model), weights(resumed.model))
        assert logged(whole, "loss") == logged(resumed, "loss")
        assert len(resumed.seen) == 1

    def test_training_twice_does_not_take_candidates_of_the_first_time(self, trainer):
        run = trainer(num_iterations=2, max_steps=2)
        run.train()
        run.train()
        assert len(run.seen) == 2

    @pytest.mark.parametrize("stream", [False, True])
    def test_rows_for_no_whole_step(self, trainer, rows, stream):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(rows)

        with pytest.raises(ValueError, match="repeats whole optimizer steps of 4 pictures; give a train_dataset with"):
            trainer(train=Stream() if stream else rows[:3], num_iterations=2).train()

    def test_a_checkpoint_between_them_is_refused(self, trainer):
        with pytest.raises(ValueError, match="save_steps=3 must be a multiple of num_iterations=2"):
            trainer(num_iterations=2, save_strategy="steps", save_steps=3)

    def test_repeated_steps(self):
        assert (
            len(RepeatedSteps(range(5), size=2, times=3)) == len(list(RepeatedSteps(range(5), size=2, times=3))) == 12
        )


class TestReference:
    def test_a_stream_of_pictures(self, trainer, rows):
        class Stream(torch.utils.data.IterableDataset):
            def __iter__(self):
                return iter(rows)

        run = trainer(train=Stream(), max_steps=3)
        run.train()
        assert [len(one.rewards) for one in run.seen] == [4, 4, 2]

    def test_stays(self, trainer):
        run = trainer()
        before = weights(run.reference.model)
        run.train()
        assert changed(before, run.reference.model) == set()
        assert abs(logged(run, "kl")[1]) > 1e-3

    def test_that_is_given_is_frozen_and_used(self, trainer):
        reference = tiny_policy("satic", seed=1)
        before = weights(reference)
        run = trainer(ref_model=reference)
        run.train()
        assert run.reference.model is reference
        assert changed(before, reference) == set()
        assert not any(one.requires_grad for one in reference.parameters())

    def test_that_follows_is_part_of_a_checkpoint(self, trainer, tmp_path):
        options = {
            "sync_ref_model": True, "ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.5, "max_steps": 7,
            "save_strategy": "steps", "save_steps": 3,
        }  # fmt: skip
        whole, resumed = (
            trainer(folder, model=tiny_policy("satic", 0.2), **options) for folder in ("whole", "resumed")
        )
        start = weights(whole.reference.model)
        whole.train()
        assert changed(start, whole.reference.model)
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
        assert_same(weights(whole.reference.model), weights(resumed.reference.model))
        assert_same(weights(whole.model), weights(resumed.model))
        assert resumed.reference.model.backbone is resumed.model.backbone
        assert logged(whole, "loss") == logged(resumed, "loss")

    def test_adapters_have_none_that_could_follow(self, trainer):
        with pytest.raises(ValueError, match="sync_ref_model=True needs a reference model of its own"):
            trainer(sync_ref_model=True, peft_config=LoraConfig(r=2))

    def test_of_adapters_that_learned_before(self, trainer, tmp_path):
        """A frozen copy of them; what is saved is the adapter that learned."""

        def adapted():
            model = tiny_policy("satic")
            torch.manual_seed(0)
            return get_peft_model(
                model, LoraConfig(r=2, target_modules=model.LORA_TARGET_MODULES, init_lora_weights=False)
            )

        run, start = trainer(model=adapted()), weights(adapted())
        run.train()
        assert logged(run, "kl")[0] == pytest.approx(0.0, abs=1e-5)
        moved = {name for name in start if not torch.equal(start[name], weights(run.model)[name])}
        assert moved == {name for name in start if "lora_" in name}
        for name in moved:
            kept = weights(run.model)[name.replace(".default.", ".reference.")]
            assert torch.equal(kept, start[name])
        run.save_model()
        loaded = weights(PeftModel.from_pretrained(tiny_policy("satic"), tmp_path / "run"))
        assert_same(loaded, {name: weights(run.model)[name] for name in loaded})
