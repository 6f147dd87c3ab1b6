"""Guided self-critical training of SCD-Net: every candidate has a baseline of its own, and a sentence of its own."""

from __future__ import annotations

import pytest
import torch
from contracts.reward_policies import TOKENIZER, WORDS, quickly, reward_trainer, tiny_policy, tiny_processor

from hf_captioners import SCSTConfig
from hf_captioners.families import family_of
from hf_captioners.training.collator import RewardCollator

EOS = TOKENIZER.eos_token_id


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


def rows(number=6):
    """With features, three retrieved sentences and a guiding one."""
    made = []
    for index in range(number):
        words = [WORDS[(index + step) % len(WORDS)] for step in range(8)]
        made.append(
            {
                "image_id": index,
                "image_features": torch.randn(4, 16, generator=torch.Generator().manual_seed(index)),
                "captions": [" ".join(words[:5])],
                "retrieved": [" ".join(words[start : start + 3]) for start in (1, 2, 3)],
                "guide": [" ".join(words[:4])],
            }
        )
    return made


def model():
    made = tiny_policy("scdnet")
    made.config.retrieval = "sentence"
    return made


def trainer(folder, **options):
    usual = {"baseline": "greedy", "candidate_strategy": "sample", "normalize_tokens": True}
    options = {**usual, "generation_kwargs": {"force_guided": True}, "num_generations": 4, **options}
    return reward_trainer(SCSTConfig, folder, rows(), kind="scdnet", model=model(), **options)


def rewarded(ids):
    return sum(place * token for place, token in enumerate(ids, start=1)) % 7


def reward(completion_ids, **kwargs):
    return [rewarded(ids) for ids in completion_ids]


def test_the_baseline_of_a_candidate_is_of_its_own_step(tmp_path):
    run = trainer(tmp_path, reward=reward)
    batch = run.data_collator(rows()[:3])
    assert len(batch["retrieved_ids"]) == 12 and len(batch["guide_ids"]) == 3
    rollout = run.roll_out(batch)
    run.finish_step([rollout])
    greedy = rollout.candidates.greedy
    assert rollout.greedy_rewards.shape == rollout.rewards.shape == (3, 4)
    expected = torch.tensor([rewarded(ids) for ids in greedy.ids]).view(3, 4)
    assert torch.equal(rollout.greedy_rewards.long(), expected)
    torch.testing.assert_close(rollout.advantages, rollout.rewards - rollout.greedy_rewards)
    network = run.model.eval()  # the same by the model's scores of that step
    encoded = network.encode_images(**rollout.image_inputs)
    inputs = dict(rollout.candidates.scoring_inputs)
    targets = inputs.pop("targets")
    with torch.no_grad():
        logits, _ = network._predict_once(encoded, targets, **inputs)
    best = logits.argmax(-1)
    for row, ids in enumerate(greedy.ids):
        stop = best[row].tolist().index(EOS) + 1 if EOS in best[row] else len(best[row])
        assert best[row, : min(stop, 7)].tolist()[: len(ids)] == ids
    assert len({tuple(ids) for ids in greedy.ids[:4]}) > 1  # candidates of a picture have other times and noise


def test_one_candidate_of_each_picture_is_the_guide(tmp_path):
    run = trainer(tmp_path, reward=reward)
    texts = run.roll_out(run.data_collator(rows()[:3])).candidates.texts
    for place, row in enumerate(rows()[:3]):
        assert row["guide"][0] in texts[4 * place : 4 * place + 4]
    free = trainer(tmp_path, reward=reward, generation_kwargs=None)
    texts = free.roll_out(free.data_collator(rows()[:3])).candidates.texts
    assert not any(row["guide"][0] in texts for row in rows()[:3])


def test_candidates_see_sentences_of_their_own():
    processor = tiny_processor("scdnet")
    collator = RewardCollator(processor, seed=1, num_candidates=3)
    batch = collator(rows()[:2])
    seen = processor.batch_decode(batch["retrieved_ids"])
    for place, row in enumerate(rows()[:2]):
        assert sorted(seen[3 * place : 3 * place + 3]) == sorted(row["retrieved"])
    collator.epoch = 5
    assert processor.batch_decode(collator(rows()[:2])["retrieved_ids"]) != seen
    collator.training = False
    assert processor.batch_decode(collator(rows()[:2])["retrieved_ids"]) == [row["retrieved"][0] for row in rows()[:2]]


def test_without_guides_the_sampler_writes_them(tmp_path):
    made = [{name: value for name, value in row.items() if name != "guide"} for row in rows()]
    network, processor = model(), tiny_processor("scdnet")
    family = family_of(network)
    batch = RewardCollator(processor, seed=1, num_candidates=2)(made[:2])
    encoded = family.encode(network, family.image_inputs(network, batch))
    written = network.write_candidates(encoded, 2, 8, ["1", "2"])
    assert len(written.sequences) == 4
    sentences = family.image_inputs(network, RewardCollator(processor, seed=1, num_candidates=2)(made[:2]))
    one_each = {name: value[::2] if "retrieved" in name else value for name, value in sentences.items()}
    guides = network.generate(**one_each)[:, 1:]
    assert torch.equal(written.scoring_inputs["targets"][::2, : guides.shape[1]], guides)


def test_training_raises_the_reward(tmp_path):
    def right(completions, captions, **kwargs):
        return [sum(word in text.split() for word in caption[0].split()) for text, caption in
                zip(completions, captions, strict=True)]  # fmt: skip

    run = trainer(
        tmp_path, reward=right, max_steps=60, per_device_train_batch_size=6, learning_rate=2e-2, logging_steps=10
    )
    run.train()
    log = [entry["reward"] for entry in run.state.log_history if "reward" in entry]
    assert log[-1] > log[0] + 0.3
