"""Values of `TrainingArguments` that are refused by the name of their option, and schedules that are tried before."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import SchedulerType, get_scheduler

from hf_captioners import XEConfig
from hf_captioners.training.option_checks import check_scheduler

GOOD = {
    "cosine": {"num_cycles": 2},
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"power": 2, "lr_end": 1e-6},
    "inverse_sqrt": {"timescale": 5},
    "cosine_with_min_lr": {"min_lr": 1e-6},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 5},
    "reduce_lr_on_plateau": {"patience": 2},
    "greedy": {"patience": 2},
}


@pytest.mark.parametrize("name", [kind.value for kind in SchedulerType])
def test_schedules_with_options_that_transformers_takes(name):
    options = GOOD.get(name, {})
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    get_scheduler(name, optimizer, 1, 8, options)  # raises nothing
    check_scheduler(name, options, 1e-3)
    with pytest.raises(ValueError, match=f"lr_scheduler_kwargs: lr_scheduler_type={name} has no 'cycles', (but|and) "):
        check_scheduler(name, {**options, "cycles": 2}, 1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_kwargs": "two cycles"}, "lr_scheduler_kwargs='two cycles': expected names and their values as"),
        ({"lr_scheduler_kwargs": "{two"}, "lr_scheduler_kwargs='{two' is not JSON: "),
        ({"lr_scheduler_kwargs": '{"two": 2}'}, "lr_scheduler_type=linear has no 'two', and no options at all"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"num_cycles": "two"}}, "={'num_cycles': 'two'} with "),
        ({"lr_scheduler_type": "warmup_stable_decay"}, "lr_scheduler_kwargs={} with .* missing .* 'num_decay_steps'"),
        ({"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 1}}, "must be smaller than initial lr"),
        ({"lr_scheduler_type": "noam", "lr_scheduler_kwargs": {"warmup_iters": "x"}}, "warmup_iters must be a number"),
        ({"lr_scheduler_type": "annealing", "lr_scheduler_kwargs": {"anneal_every_epoch": 0}}, "lr_scheduler_kwargs="),
        ({"lr_scheduler_type": "noam", "learning_rate": 0.0}, "learning_rate must be above 0 with lr_scheduler_type="),
        ({"fsdp_config": "{two"}, "fsdp_config='{two' is not JSON"),
        ({"gradient_checkpointing_kwargs": "two"}, "gradient_checkpointing_kwargs='two': expected names"),
        ({"optim_args": "beta1"}, "optim_args='beta1': expected names and values such as .*, and 'beta1' is none"),
        ({"optim_args": "a=1, b="}, "and 'b=' is none"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, not 0"),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps must be at least 1, not -1"),
        ({"learning_rate": math.nan}, "learning_rate must be 0 or more, not nan"),
        ({"learning_rate": -1.0}, r"learning_rate must be 0 or more, not -1\.0"),
        ({"weight_decay": math.inf}, "weight_decay must be 0 or more, not inf"),
        ({"adam_beta2": 1.0}, r"adam_beta2 must be from 0 to below 1, not 1\.0"),
        ({"num_train_epochs": 0}, "num_train_epochs must be above 0, not 0"),
        ({"save_steps": -5}, "save_steps must be above 0, not -5"),
        ({"max_steps": 0}, "max_steps must be at least 1, or -1 for num_train_epochs, not 0"),
        ({"seed": -1}, "seed must be 0 or more, not -1"),
        ({"eval_strategy": "always"}, "eval_strategy must be one of no, steps, epoch, not 'always'"),
        ({"max_grad_value": math.nan}, "max_grad_value must be positive or not given, not nan"),
        ({"generation_max_length": 0}, "generation_max_length must be at least 1, not 0"),
        ({"num_logged_captions": -1}, "num_logged_captions must not be negative, it is -1"),
    ],
)  # fmt: skip
def test_refused_by_name(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        XEConfig(str(tmp_path), use_cpu=True, report_to="none", **options)


def test_options_that_were_read_can_be_read_again(tmp_path):
    """As `dataclasses.replace` and a saved `training_args.json` have them."""
    args = XEConfig(str(tmp_path), use_cpu=True, lr_scheduler_type="noam", lr_scheduler_kwargs='{"warmup_iters": 3}')
    names = ("output_dir", "use_cpu", "save_strategy", "eval_strategy", "lr_scheduler_type", "lr_scheduler_kwargs")
    again = XEConfig(**{name: vars(args)[name] for name in names})
    assert again.lr_scheduler_kwargs == args.lr_scheduler_kwargs == {"warmup_iters": 3}
