"""Every option of training: an effect, an equality by definition, or a refusal.

The tables have an entry for each field of the trainers' configurations; a new one fails here until it has one, and so
does one that a release of transformers adds. The options of data, captioner and rewards are in
`tests/cli/training/test_every_option.py`.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from contracts.reward_policies import arbitrary, quickly, reward_trainer, tiny_policy, tiny_processor, tiny_rows
from peft import LoraConfig
from transformers import TrainingArguments

from hf_captioners import DiCOConfig, SCSTConfig, XEConfig, XETrainer

CONFIGS = {"xe": XEConfig, "scst": SCSTConfig, "dico": DiCOConfig}


@dataclass
class Option:
    """Effect of an option.

    Attributes:
        kind (`str`): "effect": other weights, logs or files, or an error that was none; "equal": the same ones.
        value: that it is tried with.
        beside (`dict`): what it is tried together with, and without.
        method (`str`): whose option it is; of several the first.
        needs (`dict`): what else has the option only beside it.
        setting (`str`): of the model, the rows or the reward, see `outcome`.
        alone (`bool`): whether it is refused without what is beside it.
    """

    kind: str
    value: Any
    beside: dict[str, Any] = field(default_factory=dict)
    method: str = "scst"
    needs: dict[str, Any] = field(default_factory=dict)
    setting: str = ""
    alone: bool = False


def effect(value: Any, method: str = "scst", setting: str = "", needs: Any = None, **beside: Any) -> Option:
    return Option("effect", value, beside, method, needs or {}, setting)


def switched(value: Any, method: str = "scst", setting: str = "", **beside: Any) -> Option:
    """An option of another one, without which it is refused."""
    return Option("effect", value, beside, method, setting=setting, alone=True)


SAMPLE = {"candidate_strategy": "sample"}
FOLLOWS = {"beta": 0.1, "sync_ref_model": True}
CAPTIONS = {"eval_with_generation": True}
OPTIONS = {
    # all trainers
    "logging_steps": effect(2, "xe"),
    "remove_unused_columns": Option("refused", True, method="xe"),
    "skip_broken_images": effect(True, "xe", "broken picture"),
    "check_disk_space": effect(False, "xe", "full disk"),
    "hub_strategy": Option("refused", "every_save", method="xe"),
    "train_backbone": effect("all", "xe"),
    "optim": effect("radam", "xe"),
    "lr_scheduler_type": effect("noam", "xe"),
    "max_grad_value": effect(1e-4, "xe"),
    "moving_average_decay": effect(0.5, "xe"),
    "eval_with_generation": effect(True, "xe", "evaluated"),
    "caption_metrics": effect(["rouge_l"], "xe", "evaluated", **CAPTIONS),
    "generation_num_beams": effect(1, "xe", "evaluated", **CAPTIONS),
    "generation_max_length": effect(3, "xe", "evaluated", **CAPTIONS),
    "num_logged_captions": effect(1, "xe", "evaluated", **CAPTIONS),
    # cross-entropy
    "captions_per_image": effect(3, "xe"),
    "eval_captions_per_image": effect(1, "xe", "evaluated"),
    "label_smoothing_factor": effect(0.3, "xe"),
    "max_unknown_words": effect(0.0, "xe", "unknown word"),
    "extend_vocabulary": effect(True, "xe", "unknown word"),
    "extend_min_count": switched(99, "xe", "unknown word", extend_vocabulary=True),
    # rewards
    "learning_rate": effect(1e-3),
    "per_device_train_batch_size": effect(2),
    "num_generations": effect(2),
    "candidate_strategy": effect("sample"),
    "max_completion_length": effect(4),
    "temperature": switched(0.3, **SAMPLE),
    "top_p": switched(0.2, **SAMPLE),
    "top_k": switched(2, **SAMPLE),
    "min_p": switched(0.6, **SAMPLE),
    "repetition_penalty": switched(9.0, **SAMPLE),
    "diversity_penalty": switched(9.0, candidate_strategy="diverse_beam"),
    "generation_kwargs": effect({"no_repeat_ngram_size": 1}),
    "generate_with_dropout": effect(True, setting="dropout"),
    "mask_truncated_completions": effect(True),
    "deduplicate_candidates": effect(True, top_k=1, **SAMPLE),
    "reward_weights": effect([2.0]),
    "beta": effect(0.1),
    "disable_dropout": effect(True, setting="dropout"),
    "cache_image_features": Option("equal", True),
    "sync_ref_model": effect(True, needs={"ref_model_sync_steps": 1}, beta=0.1),
    "ref_model_mixup_alpha": switched(0.1, ref_model_sync_steps=1, **FOLLOWS),
    "ref_model_sync_steps": switched(1, **FOLLOWS),
    "log_completions": effect(True),
    "num_completions_to_print": switched(1, log_completions=True),
    "collapse_patience": effect(2, setting="constant reward", max_steps=6),
    # self-critical training
    "baseline": effect("mean"),
    "length_normalize": effect(False),
    "normalize_tokens": effect(True, num_generations=4, max_completion_length=9),  # of several lengths
    "normalize_advantages": effect(True),
    # DiCO
    "reward_temperature": effect(2.0, "dico"),
    "tau": effect(2.0, "dico"),
    "num_iterations": effect(2, "dico"),
}

# evaluation is without predictions: what transformers would do with them has nothing to do
NO_PREDICTIONS = {
    "prediction_loss_only": True,
    "eval_do_concat_batches": False,
    "eval_use_gather_object": True,
    "eval_accumulation_steps": 1,
    "include_for_metrics": ["inputs"],
    "label_names": ["other"],
}
# refused where a trainer, an optimizer or a schedule does not read them
REFUSED = [
    ("xe", {"hub_always_push": True}, "hub_always_push=True has no effect on a single push at the end"),
    ("scst", {"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 has no effect on rewards"),
    ("dico", {"average_tokens_across_devices": False}, "average_tokens_across_devices=False has no effect on rewards"),
    (
        "xe",
        {"optim": "radam", "adam_beta1": 0.5},
        "adam_beta1=0.5 has no effect with optim=radam, which",
    ),
    ("xe", {"optim": "radam", "adam_beta2": 0.5}, "adam_beta2=0.5 has no effect"),
    ("scst", {"optim": "radam", "adam_epsilon": 0.5}, "adam_epsilon=0.5 has no effect"),
    (
        "xe",
        {"lr_scheduler_type": "noam", "warmup_steps": 3},
        "warmup_steps=3 has no effect with lr_scheduler_type",
    ),
]
# of a script: tests/cli/training/test_every_option.py
OF_THE_COMMAND = {"do_train", "do_eval", "do_predict", "resume_from_checkpoint"}
# what transformers' Trainer does with them, our trainers leave to it
NAMES = """
output_dir num_train_epochs max_steps lr_scheduler_kwargs warmup_steps optim_args weight_decay adam_beta1 adam_beta2
adam_epsilon optim_target_modules gradient_accumulation_steps average_tokens_across_devices max_grad_norm bf16 fp16
bf16_full_eval fp16_full_eval tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing
gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel
liger_kernel_config use_cache neftune_noise_alpha torch_empty_cache_steps auto_find_batch_size logging_strategy
logging_first_step log_on_each_node logging_nan_inf_filter include_num_input_tokens_seen log_level log_level_replica
disable_tqdm report_to run_name project trackio_space_id trackio_bucket_id trackio_static_space_id eval_strategy
eval_steps eval_delay per_device_eval_batch_size eval_on_start batch_eval_metrics save_only_model save_strategy
save_steps save_on_each_node save_total_limit enable_jit_checkpoint push_to_hub hub_token hub_private_repo
hub_model_id hub_always_push hub_revision load_best_model_at_end metric_for_best_model greater_is_better
ignore_data_skip restore_callback_states_from_checkpoint full_determinism seed data_seed use_cpu accelerator_config
parallelism_config dataloader_drop_last dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers
dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order train_sampling_strategy
length_column_name ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend
ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics local_rank
"""
THEIRS = NAMES.split()


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


class Runs:
    """Trainings of two steps, each done once."""

    def __init__(self, folder: Path, rows: list[dict[str, Any]], caplog: Any, capsys: Any) -> None:
        self.folder, self.rows, self.caplog, self.capsys = folder, rows, caplog, capsys

    def rows_of(self, setting: str) -> list[dict[str, Any]]:
        if setting == "broken picture":
            (self.folder / "broken.png").write_bytes(b"no picture")
            return [{**self.rows[0], "image": str(self.folder / "broken.png")}, *self.rows[1:]]
        if setting == "unknown word":
            return [{**row, "captions": [*row["captions"], "a red zebra"]} for row in self.rows]
        return self.rows

    def trainer(self, method: str, setting: str, options: dict[str, Any]) -> Any:
        rows, model = self.rows_of(setting), tiny_policy("satic", 0.5 if setting == "dropout" else 0.0)
        options = {"max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, "seed": 1, **options}
        evaluation = rows[:3] if setting == "evaluated" else None
        if method != "xe":
            reward = (lambda completions, **_: [1.0] * len(completions)) if setting == "constant reward" else arbitrary
            return reward_trainer(
                CONFIGS[method], self.folder / "run", rows, model=model, reward=reward, evaluation=evaluation, **options
            )
        usual = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
        usual |= {"lr_scheduler_type": "constant", "per_device_train_batch_size": 4, "generation_max_length": 8}
        args = XEConfig(str(self.folder / "run"), **{**usual, **options})
        return XETrainer(model, args, rows, evaluation, tiny_processor("satic"))

    def outcome(self, method: str, setting: str, options: dict[str, Any]) -> dict[str, Any]:
        """Weights, logs, files and words of a training; or what it was refused with."""
        self.caplog.clear()
        self.capsys.readouterr()
        try:
            run = self.trainer(method, setting, options)
            with pytest.MonkeyPatch.context() as patch:
                if setting == "full disk":
                    patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
                run.train()
        except Exception as error:
            return {"error": repr(error)}
        found = dict(run.evaluate()) if setting == "evaluated" else {}
        logs = [*run.state.log_history, found]
        times = ("runtime", "per_second", "flos", "_time")
        logs = [{k: v for k, v in log.items() if not any(one in k for one in times)} for log in logs]
        weights = hashlib.sha256()
        for name, value in run.model.state_dict().items():
            weights.update(name.encode() + value.numpy().tobytes())
        files = sorted(str(path.relative_to(self.folder)) for path in (self.folder / "run").rglob("*"))
        said = [record.message for record in self.caplog.records if "generated" in record.message]
        printed = [line for line in self.capsys.readouterr().err.splitlines() if line.startswith("│")]
        return {"weights": weights.hexdigest(), "logs": logs, "files": files, "said": said, "printed": printed}


@pytest.fixture()
def runs(tmp_path, rows, caplog, capsys):
    caplog.set_level("INFO")
    return Runs(tmp_path, rows, caplog, capsys)


def own_options() -> set[str]:
    """Fields that are ours, or have another default than transformers'."""
    usual = {one.name: one.default for one in fields(TrainingArguments)}
    names = {one.name for config in CONFIGS.values() for one in fields(config)}
    ours = {one.name for c in CONFIGS.values() for one in fields(c) if usual.get(one.name, object()) != one.default}
    return ours & names


def test_every_option_has_an_entry():
    inherited = {one.name for one in fields(TrainingArguments)}
    assert own_options() - OPTIONS.keys() == set(), "new options need an entry"
    assert OPTIONS.keys() - own_options() <= {"optim", "lr_scheduler_type", "per_device_train_batch_size"}
    known = {*THEIRS, *OPTIONS, *NO_PREDICTIONS, *OF_THE_COMMAND}
    assert inherited - known == set(), "options that a release has added"
    assert set(THEIRS) - inherited == set()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_honoured_or_refused(runs, tmp_path, name):
    option = OPTIONS[name]
    value = {name: option.value, **option.needs}
    if option.kind == "refused" or option.alone:
        with pytest.raises(ValueError, match=name):
            CONFIGS[option.method](str(tmp_path / "run"), use_cpu=True, **value)
    if option.kind == "refused":
        return
    plain = runs.outcome(option.method, option.setting, option.beside)
    tried = runs.outcome(option.method, option.setting, {**option.beside, **value})
    assert "error" not in plain or option.setting in ("broken picture", "full disk"), plain
    assert "error" not in tried or name == "max_unknown_words", tried
    assert (plain == tried) == (option.kind == "equal")


def test_tau_is_the_reciprocal_of_the_temperature(runs):
    tau = runs.outcome("dico", "", {"tau": 2.0})
    assert tau == runs.outcome("dico", "", {"reward_temperature": 0.5}) and "error" not in tau


@pytest.mark.parametrize(("method", "options", "message"), REFUSED)
def test_options_of_transformers_that_are_not_read_are_refused(tmp_path, method, options, message):
    with pytest.raises(ValueError, match=message):
        CONFIGS[method](str(tmp_path), use_cpu=True, **options)


@pytest.mark.filterwarnings("ignore")
def test_what_transformers_does_with_predictions_changes_nothing(runs):
    plain = runs.outcome("xe", "evaluated", {})
    for name, value in NO_PREDICTIONS.items():
        assert runs.outcome("xe", "evaluated", {name: value}) == plain, name


class TestCombinations:
    def test_a_cache_of_what_adapters_change(self, tmp_path, rows):
        adapters = LoraConfig(r=2, target_modules=r"backbone\..*(query|value|q_proj|v_proj)")
        with pytest.raises(ValueError, match="cache_image_features=True keeps what the backbone sees, but adapters in"):
            reward_trainer(SCSTConfig, tmp_path, rows, cache_image_features=True, peft_config=adapters)

    @pytest.mark.parametrize("options", [{"candidate_strategy": "diverse_beam"}, {**SAMPLE, "temperature": 0.5}])
    def test_candidates_of_a_captioner_that_does_not_write_word_by_word(self, tmp_path, rows, options):
        with pytest.raises(ValueError, match="has no effect on a ScdnetForImageCaptioning, which does not write word"):
            reward_trainer(SCSTConfig, tmp_path, rows, kind="scdnet", **options)

    def test_its_strategies_are_one(self, tmp_path, rows):
        states = []
        for strategy in ("beam", "sample"):
            run = reward_trainer(SCSTConfig, tmp_path, rows, kind="scdnet", candidate_strategy=strategy)
            run.train()
            states.append(run.model.state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    def test_fewer_rows_than_a_batch(self, tmp_path, rows):
        run = reward_trainer(SCSTConfig, tmp_path, rows[:3], dataloader_drop_last=True)
        with pytest.raises(ValueError, match="dataloader_drop_last=True leaves nothing to learn from: 3 training rows"):
            run.train()
