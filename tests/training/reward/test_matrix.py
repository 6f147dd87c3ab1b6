"""Every captioner, by every method, whole and with adapters: it runs, it is right, and it moves what should learn."""

from __future__ import annotations

import math

import pytest
import torch
from contracts.reward_policies import (
    LORA_TARGETS,
    MAKERS,
    TOKENIZER,
    arbitrary,
    changed,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_processor,
    tiny_rows,
    weights,
)
from peft import LoraConfig, PeftModel
from transformers import TrainerCallback, VisionEncoderDecoderModel

from hf_captioners import DiCOConfig, SCSTConfig
from hf_captioners.captioner_table import CAPTIONERS

METHODS = {
    "scst-greedy": (SCSTConfig, {"baseline": "greedy", "candidate_strategy": "sample"}),
    "scst-mean": (SCSTConfig, {"baseline": "mean", "candidate_strategy": "beam", "length_normalize": False}),
    "scst-leave_one_out": (
        SCSTConfig,
        {"baseline": "leave_one_out", "candidate_strategy": "sample", "normalize_tokens": True},
    ),
    "dico": (DiCOConfig, {"candidate_strategy": "beam", "tau": 2.0, "beta": 0.5}),
}
KINDS = sorted(MAKERS)


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture()
def trainer(tmp_path, rows):
    def make(kind, method, **options):
        config, usual = METHODS[method]
        return reward_trainer(config, tmp_path, rows, kind=kind, **{"max_grad_norm": 0.0, **usual, **options})

    return make


def backbone(model):
    base = model.get_base_model() if isinstance(model, PeftModel) else model
    return base.encoder if isinstance(base, VisionEncoderDecoderModel) else base.backbone


def test_every_captioner_has_a_tiny_model():
    assert set(CAPTIONERS) | {"vision-encoder-decoder"} == set(KINDS)


@pytest.mark.parametrize("adapters", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_two_steps_move_what_should_learn(trainer, kind, method, adapters):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=LORA_TARGETS.get(kind), init_lora_weights=False) if adapters else None
    run = trainer(kind, method, peft_config=config)
    before, frozen = weights(run.model), {id(one) for one in backbone(run.model).parameters()}
    run.train()
    assert [entry["grad_norm"] > 0 for entry in run.state.log_history if "loss" in entry] == [True, True]
    moved, parameters = changed(before, run.model), dict(run.model.named_parameters(remove_duplicate=False))
    if adapters:
        assert moved == {name for name in parameters if "lora_" in name}
    else:
        learns = {name for name, one in parameters.items() if id(one) not in frozen}
        assert moved & parameters.keys() <= learns
        assert len(moved) > 0.8 * len(learns)  # softmax does not feel the bias of keys


class Gradients(TrainerCallback):
    """Keeps the gradients of the only step."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def caption_ids(sequence):
    """Tokens behind the start token that count, of the ids that `generate` wrote."""
    ids = []
    for token in sequence[1:]:
        if token == TOKENIZER.eos_token_id:
            return [*ids, token]
        ids.append(token)
    return ids


def log_prob(model, picture, ids):
    """Of a caption, by way of the loss that teaches captions. Padding among the words does not count."""
    labels = torch.tensor([[-100 if token == TOKENIZER.pad_token_id else token for token in ids]])
    number = int((labels != -100).sum())
    if not number:
        return torch.zeros(()), 0
    return -model(pixel_values=picture, labels=labels).loss * number, number


def expected_loss(method, model, pictures, sequences):
    """The loss of a step, caption by caption, from the definitions in the papers."""
    losses, tokens = [], 0
    for picture, candidates in zip(pictures.split(1), sequences, strict=True):
        captions = [caption_ids(one) for one in candidates]
        rewards, scored = arbitrary(captions), [log_prob(model, picture, ids) for ids in captions]
        tokens += sum(number for _, number in scored)
        for i, (score, number) in enumerate(scored):
            others = rewards[:i] + rewards[i + 1 :]
            if method == "scst-greedy":
                ids = caption_ids(model.generate(pixel_values=picture, num_beams=1, max_length=8)[0].tolist())
                (greedy,) = arbitrary([ids])
                losses.append(-(rewards[i] - greedy) * score / max(number, 1))
            elif method == "scst-mean":
                losses.append(-(rewards[i] - sum(rewards) / 3) * score)
            elif method == "scst-leave_one_out":
                losses.append(-(rewards[i] - sum(others) / 2) * score)
        if method == "dico":
            best = rewards.index(max(rewards))
            weight = [math.exp(2.0 * (rewards[best] - one)) if i != best else 0.0 for i, one in enumerate(rewards)]
            ratios = [score - score.detach() for score, _ in scored]  # the reference is still the policy
            lost = sum(one / sum(weight) * ratio for one, ratio in zip(weight, ratios, strict=True))
            losses.append(-torch.nn.functional.logsigmoid(0.5 * (ratios[best] - lost)))
    return sum(losses) / (tokens if method == "scst-leave_one_out" else len(losses))


# the loss that teaches SCD-Net is no log-probability; its step is in tests/parity/test_scdnet.py
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", sorted({*KINDS} - {"scdnet"}))
def test_gradient_of_a_step(trainer, kind, method, rows):
    spy = Gradients()
    run = trainer(
        kind, method, max_steps=1, per_device_train_batch_size=2, gradient_accumulation_steps=2, callbacks=[spy]
    )
    written, roll_out = [], run.roll_out
    run.roll_out = lambda batch: written.append(roll_out(batch)) or written[-1]
    run.train()
    model = tiny_policy(kind)
    for parameter in backbone(model).parameters():
        parameter.requires_grad_(False)
    names = [name for one in written for name in one.columns["image_id"]]
    pictures = tiny_processor(kind)(images=[rows[name]["image"] for name in names])["pixel_values"]
    sequences = [one.candidates.sequences.view(2, 3, -1).tolist() for one in written]
    loss = expected_loss(method, model, pictures, [one for batch in sequences for one in batch])
    loss.backward()
    expected = {name: one.grad for name, one in model.named_parameters() if one.grad is not None}
    assert run.state.log_history[0]["loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert spy.found.keys() == expected.keys()
    assert max(float(one.abs().max()) for one in expected.values()) > 1e-3
    for name, gradient in expected.items():
        torch.testing.assert_close(spy.found[name], gradient, atol=2e-6, rtol=1e-4)


def share_of_stars(completions, **kwargs):
    return [caption.split().count("star") / max(len(caption.split()), 1) for caption in completions]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("expansionnet_v2", "scst-greedy"),
        ("clip_gpt2", "scst-mean"),
        ("satic", "scst-leave_one_out"),
        ("vision-encoder-decoder", "dico"),
        ("dico", "dico"),
    ],
)
def test_a_reward_is_learned(trainer, rows, kind, method):
    run = trainer(
        kind, method, reward=share_of_stars, max_steps=20, per_device_train_batch_size=8, num_generations=5,
        candidate_strategy="sample", logging_steps=5, learning_rate=1e-2,
    )  # fmt: skip
    before = share_of_stars(run.generate_captions(rows))
    run.train()
    rewards = [entry["reward"] for entry in run.state.log_history if "reward" in entry]
    after = share_of_stars(run.generate_captions(rows))
    assert rewards[-1] > max(0.5, 2 * rewards[0])
    assert sum(after) > sum(before) + 2
