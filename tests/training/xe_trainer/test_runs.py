"""Cross-entropy training does not depend on how it is run: accumulated, resumed, on two processes."""

import json
import subprocess
import sys

import pytest
import torch
from contracts.hanging import HANGING_S
from contracts.reward_policies import assert_close, assert_same, changed, weights


class TestAccumulation:
    @pytest.mark.parametrize(("captions", "backbone"), [(1, "none"), (5, "all")])
    def test_is_exact(self, trainer, new_model, captions, backbone):
        """In float64, where rounding is 2e-16: in float32 it can reach 1e-3 of a step where gradients cancel."""
        start = weights(new_model().double())
        ends = []
        for size, accumulation in ((8, 1), (4, 2), (2, 4)):
            run = trainer(
                model=new_model().double(), max_steps=6, per_device_train_batch_size=size, optim="sgd",
                gradient_accumulation_steps=accumulation, learning_rate=0.005, captions_per_image=captions,
                train_backbone=backbone, lr_scheduler_type="constant",
            )  # fmt: skip
            run.train()
            ends.append(weights(run.model))
        for other in ends[1:]:
            assert_close(ends[0], other, start, share=1e-11)


class TestResume:
    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("workers", [0, 1])
    def test_is_bit_exact_in_the_middle_of_an_epoch(self, trainer, new_model, rows, accumulation, workers):
        options = {
            "dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0, "num_train_epochs": 3,
            "per_device_train_batch_size": 4 // accumulation, "save_strategy": "steps",
            "gradient_accumulation_steps": accumulation, "save_steps": 6, "logging_steps": 1, "learning_rate": 1e-2,
            "train_backbone": "all", "lr_scheduler_type": "custom_warmup_anneal", "eval_strategy": "steps",
            "lr_scheduler_kwargs": {"warmup_iters": 3}, "eval_steps": 5, "optim": "radam",
        }  # fmt: skip
        whole = trainer(new_model(0.3), evaluation=rows[:2], folder="whole", **options)
        whole.train()
        assert whole.state.global_step == 12  # four in each epoch, so 6 is in the middle of the second
        checkpoint = f"{whole.args.output_dir}/checkpoint-6"
        torch.manual_seed(99)
        resumed = trainer(new_model(0.3), evaluation=rows[:2], folder="resumed", **options)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert_same(weights(whole.model), weights(resumed.model))
        logs = [
            [
                (entry["step"], entry["loss"], entry["learning_rate"])
                for entry in run.state.log_history
                if "loss" in entry
            ]
            for run in (whole, resumed)
        ]
        assert logs[0] == logs[1]
        assert changed(weights(whole.model), new_model(0.3))


TWO_PROCESSES = """
import json, sys
from pathlib import Path
from safetensors.torch import save_file
from transformers import AutoProcessor
from hf_captioners import ExpansionNetV2ForImageCaptioning, XEConfig, XETrainer

folder, rows, out = sys.argv[1:]
rows = json.loads(Path(rows).read_text())
model, processor = ExpansionNetV2ForImageCaptioning.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
scored = []
args = XEConfig(output_dir=out, per_device_train_batch_size=4, per_device_eval_batch_size=2, **json.loads(OPTIONS))
trainer = XETrainer(
    model, args, rows, rows[:7], processing_class=processor,
    compute_caption_metrics=lambda captions, references: scored.append([captions, references]) or {},
)
trainer.train()
assert args.world_size == 2
metrics = trainer.evaluate()
rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
if trainer.is_world_process_zero():
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, out + "/end.safetensors")
Path(out, f"result{args.process_index}.json").write_text(json.dumps([scored, metrics["eval_loss"], rates]))
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_equal_one(trainer, new_model, rows, tmp_path, processor):
    from safetensors.torch import load_file

    options = {
        "max_steps": 6, "optim": "sgd", "learning_rate": 0.005, "lr_scheduler_type": "custom_warmup_anneal",
        "lr_scheduler_kwargs": {"warmup_iters": 2, "anneal_every_epoch": 1.0},
        "logging_steps": 1, "captions_per_image": 2, "train_backbone": "all", "seed": 1,
        "eval_with_generation": True, "generation_max_length": 9, "report_to": "none", "disable_tqdm": True,
        "use_cpu": True, "save_strategy": "no",
    }  # fmt: skip
    start, out = new_model(), tmp_path / "two"
    start.save_pretrained(tmp_path / "start")
    processor.save_pretrained(tmp_path / "start")
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "script.py").write_text(TWO_PROCESSES.replace("OPTIONS", repr(json.dumps(options))))
    out.mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    run = subprocess.run(
        [*command, "start", "rows.json", str(out)], cwd=tmp_path, capture_output=True, text=True, timeout=HANGING_S
    )
    assert run.returncode == 0, run.stderr[-3000:]
    results = [json.loads((out / f"result{rank}.json").read_text()) for rank in range(2)]
    scored = []
    one = trainer(
        evaluation=rows[:7], per_device_train_batch_size=8, per_device_eval_batch_size=4,
        compute_caption_metrics=lambda captions, references: scored.append([captions, references]) or {}, **options,
    )  # fmt: skip
    one.train()
    loss = one.evaluate()["eval_loss"]
    assert_close(weights(one.model), load_file(out / "end.safetensors"), weights(start))
    rates = [entry["learning_rate"] for entry in one.state.log_history if "learning_rate" in entry]
    for found, found_loss, found_rates in results:
        assert found == scored  # every process scores every picture once, in order
        assert found_rates == pytest.approx(rates)
        assert found_loss == pytest.approx(loss, rel=1e-5)
