"""Helpers of the tests of training by reward: what is drawn, what was logged, and what was rolled out."""

from __future__ import annotations

import torch
from contracts.reward_policies import LORA_TARGETS, arbitrary
from peft import LoraConfig

SAMPLE = {"candidate_strategy": "sample", "baseline": "leave_one_out"}
SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0}


def lora(kind):
    torch.manual_seed(0)
    return LoraConfig(r=2, target_modules=LORA_TARGETS.get(kind), init_lora_weights=False, lora_dropout=0.1)


def logged(run, key):
    return [entry[key] for entry in run.state.log_history if key in entry]


def untimed(entry):
    return {name: value for name, value in entry.items() if "runtime" not in name and "per_second" not in name}


class Spy:
    """Keeps what a trainer rolls out, and what a reward is called with."""

    def __init__(self, run=None):
        self.calls, self.rollouts = [], []
        if run is not None:
            roll_out = run.roll_out
            run.roll_out = lambda batch: self.rollouts.append(roll_out(batch)) or self.rollouts[-1]

    def __call__(self, **given):
        self.calls.append(given)
        return arbitrary(given["completion_ids"])


def star(completions, **kwargs):
    return [float(caption.count("s")) for caption in completions]
