"""The options of cross-entropy training: defaults, files, the command line, and what is refused."""

import dataclasses
import json

import pytest
from transformers import TrainingArguments
from trl import TrlParser

from hf_captioners import XEConfig
from hf_captioners.training.arguments import CaptionerTrainingArguments


def config(tmp_path, **options):
    return XEConfig(output_dir=str(tmp_path), use_cpu=True, **options)


def own_fields():
    inherited = {one.name: one.default for one in dataclasses.fields(TrainingArguments)}
    return [one for one in dataclasses.fields(XEConfig) if inherited.get(one.name, object()) != one.default]


def test_defaults(tmp_path):
    args = config(tmp_path)
    assert args.remove_unused_columns is False  # the collator reads them
    assert (args.captions_per_image, args.eval_captions_per_image) == (1, 5)
    assert args.train_backbone == "none"
    assert args.label_smoothing_factor is None
    assert (args.optim, args.lr_scheduler_type) == (TrainingArguments.optim, "linear")


def test_every_option_is_explained():
    text = (CaptionerTrainingArguments.__doc__ or "") + (XEConfig.__doc__ or "")
    for one in own_fields():
        assert one.metadata.get("help"), one.name
        if one.name not in ("remove_unused_columns", "logging_steps"):  # transformers' own
            assert f"{one.name} (" in " ".join(text.split()), one.name


def test_json_round_trip(tmp_path):
    schedule = {"lr_scheduler_type": "annealing", "lr_scheduler_kwargs": {"warmup_iters": 7}}
    args = config(tmp_path, **schedule, optim="radam", optim_args="beta2=0.99", label_smoothing_factor=0.0)
    names = {*(one.name for one in own_fields()), *schedule, "optim", "optim_args"}
    saved = json.loads(json.dumps({name: value for name, value in args.to_dict().items() if name in names}))
    again = XEConfig(**saved)
    assert {name: vars(again)[name] for name in schedule} == schedule
    assert (again.optim, again.optim_args, again.label_smoothing_factor) == ("radam", "beta2=0.99", 0.0)


def test_a_file_and_the_command_line(tmp_path):
    path = tmp_path / "options.yaml"
    path.write_text(
        f"output_dir: {tmp_path}\nlr_scheduler_type: annealing\nlr_scheduler_kwargs: {{warmup_iters: 7}}\n"
        "label_smoothing_factor: 0.2\ncaptions_per_image: 5\n"
    )
    arguments = ["--config", str(path), "--captions_per_image", "2", "--train_backbone", r"layers\.3", "--use_cpu"]
    (args,) = TrlParser((XEConfig,)).parse_args_and_config([*arguments, "--optim", "radam"])
    assert (args.lr_scheduler_type, args.lr_scheduler_kwargs) == ("annealing", {"warmup_iters": 7})
    assert (args.optim, args.label_smoothing_factor) == ("radam", 0.2)
    assert (args.captions_per_image, args.train_backbone) == (2, r"layers\.3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "adam"}, "optim must be one of radam, adamw_torch, .*, not 'adam'"),
        ({"lr_scheduler_type": "cosin"}, "lr_scheduler_type must be one of custom_.*, noam, linear, .*, not 'cosin'"),
        ({"optim": "radam", "optim_args": "beta=0.9"}, "optim_args='beta=0.9': radam takes beta1, beta2 and eps"),
        ({"optim": "radam", "optim_args": "eps=small"}, "with a number each, not 'eps=small'"),
        (
            {"lr_scheduler_type": "noam", "lr_scheduler_kwargs": {"anneal_coeff": 0.5}},
            r"lr_scheduler_kwargs=\{'anneal_coeff': 0\.5\}: noam\(\) got an unexpected .* 'anneal_coeff'",
        ),
        (
            {"lr_scheduler_type": "annealing", "lr_scheduler_kwargs": {"warmup_iters": 0}},
            "warmup_iters must be at least 1, not 0",
        ),
        ({"max_grad_value": 0.0}, r"max_grad_value must be positive or not given, not 0\.0"),
        ({"captions_per_image": 0}, "captions_per_image must be at least 1, not 0"),
        ({"eval_captions_per_image": 0}, "eval_captions_per_image must be at least 1, not 0"),
        ({"generation_num_beams": 0}, "generation_num_beams must be at least 1, not 0"),
        ({"label_smoothing_factor": 1.0}, r"label_smoothing_factor must be in \[0, 1\), not 1\.0"),
        ({"label_smoothing_factor": -0.1}, "label_smoothing_factor must be in"),
    ],
)
def test_errors(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **options)
