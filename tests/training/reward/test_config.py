"""The options of self-critical training and DiCO: defaults, files, the command line, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, RLOOConfig, TrlParser

from hf_captioners import DiCOConfig, SCSTConfig
from hf_captioners.training.arguments import CaptionerTrainingArguments
from hf_captioners.training.reward.candidates import STRATEGIES
from hf_captioners.training.reward.config import RewardTrainingConfig
from hf_captioners.training.reward.losses import BASELINES

BOTH = pytest.mark.parametrize("config", [SCSTConfig, DiCOConfig])


def make(config, tmp_path, **options):
    return config(output_dir=str(tmp_path), use_cpu=True, **options)


def defaults(config) -> dict:
    return {one.name: one.default for one in dataclasses.fields(config)}


def own(config) -> list[dataclasses.Field]:
    """Fields that are new, or have another default than in what they were taken over from."""
    inherited = defaults(CaptionerTrainingArguments)
    return [one for one in dataclasses.fields(config) if inherited.get(one.name, object()) != one.default]


@BOTH
def test_every_option_is_explained(config):
    text = (RewardTrainingConfig.__doc__ or "") + (config.__doc__ or "")
    for one in own(config):
        assert one.metadata.get("help"), one.name
        if one.name not in ("logging_steps", "per_device_train_batch_size"):
            assert f"{one.name} (" in " ".join(text.split()), one.name


@pytest.mark.parametrize("theirs", [RLOOConfig, GRPOConfig, DPOConfig])
@BOTH
def test_options_with_trls_names_have_trls_values(config, theirs):
    """But for what the method says: its rate, its beta, its number and length of captions, dropout that is kept."""
    differ = {"learning_rate", "lr_scheduler_type", "beta", "num_generations", "max_completion_length"}
    differ |= {"disable_dropout", "remove_unused_columns"} if theirs is DPOConfig else set()
    of_trl, of_trainer = defaults(theirs), defaults(TrainingArguments)
    same = {one.name for one in own(config)} & (set(of_trl) - differ)
    assert {"logging_steps", "ref_model_sync_steps", "ref_model_mixup_alpha", "sync_ref_model"} <= same
    for name in same:
        assert defaults(config)[name] == of_trl[name], name
    assert defaults(config)["gradient_checkpointing"] == of_trainer["gradient_checkpointing"]
    assert defaults(config)["bf16"] == of_trainer["bf16"]


def test_what_the_specification_says_of_dico(tmp_path):
    args = make(DiCOConfig, tmp_path)
    assert (args.learning_rate, args.lr_scheduler_type, args.per_device_train_batch_size) == (1e-6, "constant", 8)
    assert (args.num_generations, args.candidate_strategy, args.max_completion_length) == (5, "beam", 29)
    assert (args.beta, args.reward_temperature, args.num_iterations) == (0.2, 1 / 300, 1)
    assert not (args.generate_with_dropout or args.mask_truncated_completions or args.deduplicate_candidates)
    assert not (args.disable_dropout or args.remove_unused_columns or args.cache_image_features)


def test_what_the_specification_says_of_self_critical_training(tmp_path):
    args = make(SCSTConfig, tmp_path)
    assert (args.learning_rate, args.beta, args.num_generations) == (5e-6, 0.0, 5)
    assert (args.baseline, args.length_normalize, args.normalize_advantages) == ("greedy", True, False)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, "caption"),
        ({"length_normalize": False}, "none"),
        ({"normalize_tokens": True}, "token"),
        ({"normalize_tokens": True, "length_normalize": False}, "token"),
    ],
)
def test_what_the_self_critical_loss_is_divided_by(tmp_path, options, expected):
    assert make(SCSTConfig, tmp_path, **options).normalization == expected


def test_tau_is_the_reciprocal_of_the_temperature(tmp_path):
    args = make(DiCOConfig, tmp_path, tau=120)
    assert (args.reward_temperature, args.tau) == (1 / 120, None)
    again = make(DiCOConfig, tmp_path, tau=args.tau, reward_temperature=args.reward_temperature)  # as saved
    assert again.reward_temperature == 1 / 120
    assert make(DiCOConfig, tmp_path, tau=120, reward_temperature=1 / 120).reward_temperature == 1 / 120


def test_the_papers_settings(tmp_path):
    args = DiCOConfig.reference(str(tmp_path), use_cpu=True)
    assert (args.learning_rate, args.lr_scheduler_type, args.max_steps) == (1e-6, "constant", 250_000)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 1)
    assert (args.beta, args.reward_temperature, args.num_generations) == (0.2, 1 / 300, 5)
    assert (args.candidate_strategy, args.max_completion_length, args.generate_with_dropout) == ("beam", 29, True)
    assert (args.max_grad_norm, args.weight_decay, args.warmup_steps) == (0.0, 0.0, 0)
    assert (args.generation_num_beams, args.generation_max_length) == (5, 30)
    changed = DiCOConfig.reference(str(tmp_path), use_cpu=True, max_steps=10, beta=0.1)
    assert (changed.max_steps, changed.beta, changed.num_generations) == (10, 0.1, 5)


@BOTH
def test_json_round_trip(tmp_path, config):
    args = make(config, tmp_path, generation_kwargs={"length_penalty": 0.5}, reward_weights=[1.0, 0.5], beta=0.3)
    saved = json.loads(args.to_json_string())
    again = config(output_dir=str(tmp_path), use_cpu=True, **{one.name: saved[one.name] for one in own(config)})
    assert {one.name: vars(again)[one.name] for one in own(config)} == {
        one.name: vars(args)[one.name] for one in own(config)
    }


@BOTH
def test_a_file_and_the_command_line(tmp_path, config):
    path = tmp_path / "options.yaml"
    lines = [f"output_dir: {tmp_path}", "candidate_strategy: sample", "top_k: 7", "min_p: 0.1", "num_generations: 3"]
    lines += ["generation_kwargs:", "  suppress_tokens: [3]", "  no_repeat_ngram_size: 2", "reward_weights: [1, 0.5]"]
    path.write_text("\n".join(lines))
    (args,) = TrlParser((config,)).parse_args_and_config(["--config", str(path), "--num_generations", "4", "--use_cpu"])
    assert (args.candidate_strategy, args.top_k, args.min_p, args.num_generations) == ("sample", 7, 0.1, 4)
    assert args.generation_kwargs == {"suppress_tokens": [3], "no_repeat_ngram_size": 2}
    assert args.reward_weights == [1, 0.5]
    given = ["--output_dir", str(tmp_path), "--use_cpu", "--generation_kwargs", '{"length_penalty": 0.0}']
    given += ["--reward_weights", "2", "0.5", "--generate_with_dropout", "--collapse_patience", "0"]
    (args,) = TrlParser((config,)).parse_args_and_config(given)
    assert args.generation_kwargs == {"length_penalty": 0.0}
    assert (args.reward_weights, args.generate_with_dropout, args.collapse_patience) == ([2.0, 0.5], True, 0)


def test_options_of_one_method_on_the_command_line(tmp_path):
    common = ["--output_dir", str(tmp_path), "--use_cpu"]
    (dico,) = TrlParser((DiCOConfig,)).parse_args_and_config([*common, "--tau", "50", "--deduplicate_candidates"])
    assert (dico.reward_temperature, dico.deduplicate_candidates) == (1 / 50, True)
    options = [*common, "--baseline", "mean", "--length_normalize", "false", "--normalize_advantages"]
    (scst,) = TrlParser((SCSTConfig,)).parse_args_and_config(options)
    assert (scst.baseline, scst.normalization, scst.normalize_advantages) == ("mean", "none", True)


@BOTH
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(tmp_path, config, strategy):
    assert make(config, tmp_path, candidate_strategy=strategy).candidate_strategy == strategy


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline(tmp_path, baseline):
    assert make(SCSTConfig, tmp_path, baseline=baseline).baseline == baseline


def test_one_candidate_against_the_greedy_caption(tmp_path):
    assert make(SCSTConfig, tmp_path, num_generations=1).num_generations == 1


@BOTH
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_generations": 0}, "num_generations must be at least 1, not 0"),
        ({"max_completion_length": 0}, "max_completion_length must be at least 1, not 0"),
        ({"ref_model_sync_steps": 0}, "ref_model_sync_steps must be at least 1, not 0"),
        ({"candidate_strategy": "nucleus"}, "candidate_strategy must be one of beam, sample, diverse_beam, not 'nuc"),
        ({"temperature": 0.0}, r"temperature must be above 0, not 0\.0"),
        ({"repetition_penalty": -1.0}, r"repetition_penalty must be above 0, not -1\.0"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], not 0\.0"),
        ({"top_p": 1.1}, r"top_p must be in \(0, 1\], not 1\.1"),
        ({"top_k": -1}, "top_k must not be negative, it is -1"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\] or not given, not 1\.5"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\] or not given, not -0\.1"),
        ({"ref_model_mixup_alpha": 0.0}, r"ref_model_mixup_alpha must be in \(0, 1\], not 0\.0"),
        ({"ref_model_mixup_alpha": 1.5}, r"ref_model_mixup_alpha must be in \(0, 1\], not 1\.5"),
        ({"collapse_patience": -1}, "collapse_patience must not be negative, it is -1"),
        ({"diversity_penalty": -0.5}, r"diversity_penalty must not be negative, it is -0\.5"),
        (
            {"cache_image_features": True, "train_backbone": "all"},
            "cache_image_features=True keeps what the backbone sees, but train_backbone='all' changes it",
        ),
        ({"generation_kwargs": "{length_penalty"}, r"generation_kwargs='\{length_penalty' is not JSON"),
        ({"generation_kwargs": "[1]"}, r"generation_kwargs must be options by name, not \[1\]"),
        ({"generation_kwargs": {"max_length": 9}}, "generation_kwargs must not have max_length: set max_completion_le"),
        ({"generation_kwargs": {"max_new_tokens": 9}}, "must not have max_new_tokens: set max_completion_length"),
        ({"generation_kwargs": {"num_return_sequences": 2}}, "not have num_return_sequences: set num_generations"),
        ({"generation_kwargs": {"do_sample": True}}, "must not have do_sample: set candidate_strategy"),
        ({"generation_kwargs": {"eos_token_id": 3}}, "eos_token_id: set eos_token_id of the model's generation_config"),
        ({"generation_kwargs": {"pad_token_id": 3}}, "pad_token_id: set pad_token_id of the model's generation_config"),
        (
            {"generation_kwargs": {"top_p": 0.5}, "candidate_strategy": "sample"},
            "generation_kwargs: top_p has no effect with candidate_strategy='sample'; set top_p itself",
        ),
        (
            {"generation_kwargs": {"num_beams": 3}, "candidate_strategy": "diverse_beam"},
            "generation_kwargs: num_beams has no effect with candidate_strategy='diverse_beam'; leave it out",
        ),
    ],
)
def test_errors(tmp_path, config, options, message):
    with pytest.raises(ValueError, match=message):
        make(config, tmp_path, **options)


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (SCSTConfig, {"beta": -0.1}, r"beta must not be negative, it is -0\.1"),
        (SCSTConfig, {"baseline": "median"}, "baseline must be one of greedy, mean, leave_one_out, not 'median'"),
        (SCSTConfig, {"baseline": "mean", "num_generations": 1}, "baseline='mean' compares candidates, but num_gener"),
        (
            SCSTConfig,
            {"baseline": "leave_one_out", "num_generations": 1},
            "baseline='leave_one_out' compares candidates, but num_generations=1",
        ),
        (DiCOConfig, {"num_iterations": 0}, "num_iterations must be at least 1, not 0"),
        (DiCOConfig, {"tau": 0.0}, r"tau must be above 0, not 0\.0"),
        (DiCOConfig, {"tau": 50, "reward_temperature": 0.1}, r"tau=50 and reward_temperature=0\.1 say two things"),
        (DiCOConfig, {"reward_temperature": 0.0}, r"reward_temperature must be above 0, not 0\.0"),
        (DiCOConfig, {"reward_temperature": -1.0}, r"reward_temperature must be above 0, not -1\.0"),
        (DiCOConfig, {"num_generations": 1}, "DiCO needs a winner and a loser, but num_generations=1"),
        (DiCOConfig, {"beta": 0.0}, r"beta must be above 0, not 0\.0: without it there is nothing to learn"),
        (
            DiCOConfig,
            {"num_iterations": 2, "save_steps": 5, "save_strategy": "steps"},
            "save_steps=5 must be a multiple of num_iterations=2",
        ),
    ],
)
def test_errors_of_one_method(tmp_path, config, options, message):
    with pytest.raises(ValueError, match=message):
        make(config, tmp_path, **options)


def test_several_beams_for_fewer_candidates_are_possible(tmp_path):
    args = make(DiCOConfig, tmp_path, generation_kwargs={"num_beams": 8, "repetition_penalty": 1.2})
    assert args.generation_kwargs == {"num_beams": 8, "repetition_penalty": 1.2}


def test_steps_that_are_saved_may_end_an_iteration(tmp_path):
    assert make(DiCOConfig, tmp_path, num_iterations=2, save_steps=6, save_strategy="steps").save_steps == 6
    assert make(DiCOConfig, tmp_path, num_iterations=2, save_steps=5, save_strategy="epoch").num_iterations == 2
