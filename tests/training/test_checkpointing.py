"""Checkpoints of every trainer: whole or not there at whatever moment a run ends; gone on with, or refused by name."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contracts.hanging import HANGING_S
from contracts.reward_policies import (
    assert_same,
    quickly,
    reward_trainer,
    tiny_policy,
    tiny_processor,
    tiny_rows,
    weights,
)
from contracts.stopping import Killed, files_of, stopping_after
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from hf_captioners import DiCOConfig, SCSTConfig, XEConfig, XETrainer
from hf_captioners.training.checkpoints import UNFINISHED, checkpoints_of

# what is trained, how, and whether with adapters: none, fresh ones, or some that learned before
CASES = {
    "xe": (XEConfig, {}, None),
    "xe-adapters": (XEConfig, {}, "fresh"),
    "scst": (SCSTConfig, {"candidate_strategy": "sample", "baseline": "leave_one_out"}, None),
    "scst-adapters": (SCSTConfig, {"beta": 0.1}, "fresh"),
    "dico-reference": (DiCOConfig, {"tau": 2.0, "sync_ref_model": True, "ref_model_sync_steps": 1}, None),
    "dico-older-adapters": (DiCOConfig, {"tau": 2.0}, "older"),
}


@pytest.fixture(autouse=True, scope="module")
def quick():
    with quickly():
        yield


@pytest.fixture(autouse=True)
def log(caplog):
    caplog.set_level(logging.WARNING, logger="hf_captioners")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


@pytest.fixture()
def trainer(tmp_path, rows):
    """A trainer of four steps, two in an epoch, with a checkpoint after the second and the fourth."""

    def make(case="xe", folder="run", **further):
        config, options, adapters = CASES[case]
        model, peft = tiny_policy("satic", dropout=0.2), LoraConfig(r=2, init_lora_weights=False)
        torch.manual_seed(0)
        if adapters == "older":
            model = get_peft_model(
                model.requires_grad_(False), LoraConfig(r=2, target_modules=model.LORA_TARGET_MODULES)
            )
        extra = {"peft_config": peft if adapters == "fresh" else None, "callbacks": further.pop("callbacks", None)}
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, **options, **further}
        if config is not XEConfig:
            return reward_trainer(config, tmp_path / folder, rows, model=model, evaluation=rows[:2], **extra, **options)
        usual = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "per_device_train_batch_size": 4}
        args = XEConfig(output_dir=str(tmp_path / folder), learning_rate=1e-2, **{**usual, **options})
        return XETrainer(model, args, rows, rows[:2], processing_class=tiny_processor("satic"), **extra)

    return make


def newest(run):
    return run._newest_whole(Path(run.args.output_dir))


class TestStopped:
    """A run that ends while it saves its second checkpoint."""

    @pytest.mark.parametrize("case", CASES)
    def test_anywhere(self, trainer, tmp_path, case):
        run = trainer(case)
        run.train()
        folder, last = tmp_path / "run", tmp_path / "run" / "checkpoint-4"
        end, expected = weights(run.model), files_of(last)
        assert any(name.startswith("reference/") for name in expected) == case.startswith("dico")
        for changes in itertools.count():
            shutil.rmtree(last, ignore_errors=True)
            try:
                with stopping_after(changes):
                    run._save_checkpoint(run.model, None)
                break
            except Killed:
                pass
            assert newest(run) in (folder / "checkpoint-2", last)
            assert checkpoints_of(folder)[-1] == folder / "checkpoint-2"
            assert not last.exists() or files_of(last) == expected
            if changes == 25:
                again = trainer(case)
                again.train(resume_from_checkpoint=True)
                assert again._initial_global_step == 2
                assert_same(weights(again.model), end)
        assert changes > 25
        assert newest(run) == last
        assert files_of(last) == expected
        assert not (folder / UNFINISHED).exists()

    def test_the_first_one(self, trainer, tmp_path, caplog):
        """Without a whole checkpoint a training begins."""
        run = trainer()
        run.train()
        end = weights(run.model)
        for name in ("checkpoint-2", "checkpoint-4"):
            shutil.rmtree(tmp_path / "run" / name)
        with pytest.raises(Killed), stopping_after(20):
            run._save_checkpoint(run.model, None)
        assert (tmp_path / "run" / UNFINISHED).exists()
        assert newest(run) is None
        again = trainer()
        again.train(resume_from_checkpoint=True)
        assert "has no whole checkpoint; training begins at the first step" in caplog.text
        assert_same(weights(again.model), end)

    def test_while_an_old_one_is_deleted(self, trainer, tmp_path):
        run = trainer(save_total_limit=1)
        run.train()
        folder = tmp_path / "run"
        assert [path.name for path in checkpoints_of(folder)] == ["checkpoint-4"]
        shutil.copytree(folder / "checkpoint-4", tmp_path / "kept")
        expected = files_of(tmp_path / "kept")
        for changes in itertools.count(45):
            for path in checkpoints_of(folder):
                shutil.rmtree(path)
            shutil.copytree(tmp_path / "kept", folder / "checkpoint-2")
            try:
                with stopping_after(changes):
                    run._save_checkpoint(run.model, None)
                break
            except Killed:
                assert all(files_of(path) == expected for path in checkpoints_of(folder))
                assert newest(run) is not None
        assert changes > 55
        assert [path.name for path in checkpoints_of(folder)] == ["checkpoint-4"]


PARTS = {
    "xe": ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
    "scst-adapters": ["adapter_model.safetensors", "adapter_config.json", "optimizer.pt"],
    "dico-reference": ["reference/model.safetensors", "reference/config.json", "model.safetensors"],
    "dico-older-adapters": ["reference/adapter_model.safetensors", "adapter_model.safetensors"],
}


class TestDamaged:
    @pytest.mark.parametrize("case", PARTS)
    def test_is_passed_over_and_named(self, trainer, tmp_path, case, caplog):
        run = trainer(case)
        run.train()
        end, last = weights(run.model), tmp_path / "run" / "checkpoint-4"
        for part in PARTS[case]:
            content = (last / part).read_bytes()
            (last / part).unlink()
            with pytest.raises(ValueError, match=rf"checkpoint-4: .*{part}.* is missing. Training cannot go on there"):
                trainer(case).train(resume_from_checkpoint=str(last))
            (last / part).write_bytes(content[: len(content) // 2])
            with pytest.raises(ValueError, match=rf"checkpoint-4: {part} is incomplete"):
                trainer(case).train(resume_from_checkpoint=str(last))
            assert newest(run).name == "checkpoint-2"
            assert f"checkpoint-4 is passed over: {part} is incomplete" in caplog.text
            (last / part).write_bytes(content)
        assert newest(run) == last
        (last / PARTS[case][0]).unlink()
        again = trainer(case)
        again.train(resume_from_checkpoint=True)
        assert_same(weights(again.model), end)
        assert newest(again) == last  # written again

    def test_a_shard(self, trainer, tmp_path):
        run = trainer()
        run.train()
        last = tmp_path / "run" / "checkpoint-4"
        run.model.save_pretrained(last, max_shard_size="10KB")
        (last / "model.safetensors").unlink()
        shards = sorted(last.glob("model-*.safetensors"))
        assert len(shards) > 1
        assert newest(run) == last
        shards[1].unlink()
        with pytest.raises(ValueError, match=rf"checkpoint-4: {shards[1].name} is incomplete"):
            trainer().train(resume_from_checkpoint=str(last))

    def test_of_a_whole_model_for_adapters(self, trainer, tmp_path):
        trainer("xe").train()
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors is missing"):
            trainer("xe-adapters").train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))

    def test_of_a_model_alone(self, trainer, tmp_path):
        trainer(save_only_model=True).train()
        with pytest.raises(
            ValueError, match=r"optimizer\.pt is missing, scheduler\.pt is missing, rng_state\.pth is missing"
        ):
            trainer().train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-2"))

    def test_of_other_processes(self, trainer, tmp_path):
        """The state of chance is then another; a checkpoint of two processes says so."""
        trainer().train()
        last = tmp_path / "run" / "checkpoint-2"
        (last / "rng_state.pth").rename(last / "rng_state_0.pth")
        arguments = json.loads((last / "training_args.json").read_text())
        (last / "training_args.json").write_text(json.dumps({**arguments, "world_size": 2}))
        run = trainer()
        run.train(resume_from_checkpoint=str(last))
        assert run._initial_global_step == 2

    def test_no_folder(self, trainer):
        with pytest.raises(ValueError, match="resume_from_checkpoint=nowhere: there is no such folder"):
            trainer().train(resume_from_checkpoint="nowhere")


class StopAt(TrainerCallback):
    """Ends a training, as early stopping does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step
        control.should_save = state.global_step == self.step


class TestEnded:
    @pytest.mark.parametrize("case", ["xe", "scst", "dico-reference", "xe-adapters"])
    @pytest.mark.parametrize(
        "steps", [{"max_steps": 3}, {"max_steps": -1, "num_train_epochs": 2}], ids=["steps", "epochs"]
    )
    def test_resuming_does_nothing(self, trainer, tmp_path, case, steps, caplog):
        run = trainer(case, **steps, save_steps=1)
        ended = run.train()
        before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
        again = trainer(case, **steps, save_steps=1)
        for _ in range(2):
            output = again.train(resume_from_checkpoint=True)
            assert output.global_step == again.state.global_step == ended.global_step
        assert f"the training has ended at step {ended.global_step}, and nothing is left to do" in caplog.text
        assert_same(weights(again.model), weights(run.model))
        after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
        assert before == after

    def test_by_a_callback(self, trainer):
        run = trainer(callbacks=[StopAt(3)])
        run.train()
        assert newest(run).name == "checkpoint-3"
        again = trainer()
        assert again.train(resume_from_checkpoint=True).global_step == 3
        assert_same(weights(again.model), weights(run.model))

    def test_more_steps_go_on(self, trainer):
        trainer(max_steps=2).train()
        run = trainer(max_steps=4)
        assert run.train(resume_from_checkpoint=True).global_step == 4
        assert run._initial_global_step == 2

    def test_with_its_best_model(self, trainer, tmp_path):
        options = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 1.0}
        run = trainer("scst", **options)
        run.train()
        assert Path(run.state.best_model_checkpoint).is_dir()
        again = trainer("scst", **options)
        again.train(resume_from_checkpoint=True)
        assert_same(weights(again.model), weights(run.model))
        state = json.loads((tmp_path / "run" / "checkpoint-4" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == run.state.best_model_checkpoint

    def test_without_checkpoints(self, trainer, tmp_path, caplog):
        run = trainer(save_strategy="no")
        run.train()
        run.save_state()
        with pytest.raises(ValueError, match="has a training without a whole checkpoint"):
            trainer().train(resume_from_checkpoint=True)
        run.save_model()
        again = trainer()
        assert again.train(resume_from_checkpoint=True).global_step == 4
        assert_same(weights(again.model), weights(run.model))
        with pytest.raises(ValueError, match="has a training without a whole checkpoint"):
            trainer(max_steps=6).train(resume_from_checkpoint=True)


class TestBegin:
    def test_over_another_training(self, trainer, tmp_path, caplog):
        trainer(max_steps=2).train()
        with pytest.raises(
            ValueError, match=r"run has a training: checkpoint-2\. Go on with it by resume_from_checkpoint=true"
        ):
            trainer().train()
        before = files_of(tmp_path / "run" / "checkpoint-2")
        run = trainer()
        run.train(resume_from_checkpoint=False)
        assert run._initial_global_step == 0
        assert "training begins anew; the checkpoints of" in caplog.text
        assert files_of(tmp_path / "run" / "earlier-1" / "checkpoint-2") == before
        assert [path.name for path in checkpoints_of(tmp_path / "run")] == ["checkpoint-4", "checkpoint-2"]
        trainer().train(resume_from_checkpoint=False)
        assert (tmp_path / "run" / "earlier-2" / "checkpoint-4").is_dir()

    def test_over_a_saved_model(self, trainer):
        run = trainer(save_strategy="no")
        run.train()
        run.train()  # the same one
        run.save_state()
        with pytest.raises(ValueError, match=r"run has a training: trainer_state\.json"):
            trainer().train()

    def test_in_an_empty_folder(self, trainer, caplog):
        run = trainer()
        run.train(resume_from_checkpoint=True)
        assert run.state.global_step == 4
        assert "has no whole checkpoint; training begins" in caplog.text

    @pytest.mark.parametrize(
        ("text", "value"), [("true", True), ("True", True), ("false", False), ("a/b", "a/b"), (None, None)]
    )
    def test_what_a_command_line_says(self, text, value):
        assert XEConfig(output_dir="run", resume_from_checkpoint=text).resume_from_checkpoint == value


class TestFiles:
    @pytest.mark.parametrize("mask", [0o022, 0o027])
    def test_permissions(self, trainer, tmp_path, mask):
        before = os.umask(mask)
        try:
            run = trainer("dico-reference", max_steps=2)
            run.train()
            run.save_model()
        finally:
            os.umask(before)
        files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"model.safetensors", "optimizer.pt", "config.json"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}

    def test_a_saved_model_replaces_an_older_one_file_by_file(self, trainer, tmp_path):
        run = trainer(max_steps=2)
        run.train()
        (tmp_path / "run" / "notes.txt").write_text("mine")
        run.save_model()
        expected = files_of(tmp_path / "run")
        for changes in itertools.count():
            (tmp_path / "run" / "config.json").unlink()
            try:
                with stopping_after(changes):
                    run.save_model()
                break
            except Killed:
                there = files_of(tmp_path / "run")
                assert "config.json" not in there or there == expected | {
                    k: v for k, v in there.items() if k not in expected
                }
                (tmp_path / "run" / "config.json").touch()
        assert files_of(tmp_path / "run") == expected

    def test_a_full_disk(self, trainer, tmp_path, monkeypatch):
        """The file that failed is named, the older checkpoint stays, and what was written is deleted."""
        run = trainer()
        save, calls = torch.save, []

        def full(content, path, *args, **kwargs):
            calls.append(path)
            if len(calls) > 3 and str(path).endswith("optimizer.pt"):
                Path(path).write_bytes(b"half")
                raise OSError(28, "No space left on device", str(path))
            save(content, path, *args, **kwargs)

        monkeypatch.setattr(torch, "save", full)
        with pytest.raises(OSError, match=r"No space left on device: .*optimizer\.pt"):
            run.train()
        assert newest(run).name == "checkpoint-2"
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint-2"]


TWO_PROCESSES = """
import json, shutil, sys
from pathlib import Path
import torch
from contracts.reward_policies import assert_same, quickly, reward_trainer, weights
from contracts.stopping import Killed, files_of, stopping_after
from hf_captioners import DiCOConfig

folder, rows = Path(sys.argv[1]), json.loads(sys.argv[2])
options = {"sync_ref_model": True, "ref_model_sync_steps": 1, "save_strategy": "steps", "save_steps": 2, "max_steps": 4}
options |= {"per_device_train_batch_size": 2, "tau": 2.0}


def trainer():
    return reward_trainer(DiCOConfig, folder, rows, **options)


with quickly():
    run, last = trainer(), folder / "checkpoint-4"
    run.train()
    end, expected = weights(run.model), files_of(last)

    def any_is_dead(dead=False):
        return bool(run.accelerator.reduce(torch.tensor([float(dead)]))[0])

    def wait():  # a process that is killed takes the others with it
        if any_is_dead():
            raise KeyboardInterrupt

    run.accelerator.wait_for_everyone, changes, stopped = wait, 0, True
    while stopped:
        any_is_dead()
        if run.is_world_process_zero():
            shutil.rmtree(last, ignore_errors=True)
        any_is_dead()
        try:
            with stopping_after(changes):
                run._save_checkpoint(run.model, None)
            stopped = any_is_dead()
        except Killed:
            stopped = any_is_dead(dead=True)
        except KeyboardInterrupt:
            pass
        newest = run._newest_whole(folder)
        assert newest in (folder / "checkpoint-2", last)
        assert not last.exists() or files_of(last) == expected
        changes += 1
    assert changes > 40 and newest == last and {"rng_state_0.pth", "rng_state_1.pth"} < expected.keys()
    any_is_dead()
    if run.args.process_index == 1:
        (last / "rng_state_1.pth").unlink()
    any_is_dead()
    assert run._newest_whole(folder) == folder / "checkpoint-2"  # for both
    again = trainer()
    again.train(resume_from_checkpoint=True)
    assert again._initial_global_step == 2
    assert_same(weights(again.model), end)
run.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes(rows, tmp_path):
    (tmp_path / "script.py").write_text(TWO_PROCESSES)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    result = subprocess.run(
        [*command, str(tmp_path / "run"), json.dumps(rows)], cwd=tmp_path, capture_output=True, text=True,
        timeout=HANGING_S, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert re.search(r"checkpoint-4 is passed over: rng_state_1\.pth is missing", result.stderr)
