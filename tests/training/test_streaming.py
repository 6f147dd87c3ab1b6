"""Training on a stream with two processes of two workers each: every row once a pass, also after a stop."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from contracts.hanging import HANGING_S
from contracts.reward_policies import tiny_policy, tiny_processor
from PIL import Image

from hf_captioners import XEConfig, XETrainer
from hf_captioners.training.data_arguments import DataArguments, load_rows

TARS, OF_TAR = 4, 4
OPTIONS = {
    "max_steps": 8, "per_device_train_batch_size": 2, "dataloader_num_workers": 2, "logging_steps": 1, "seed": 7,
    "learning_rate": 1e-2, "max_unknown_words": 1.0, "save_strategy": "steps", "save_steps": 6, "report_to": "none",
    "use_cpu": True, "disable_tqdm": True,
}  # fmt: skip

SCRIPT = """
import json, sys
from pathlib import Path
from contracts.reward_policies import tiny_policy, tiny_processor
from hf_captioners import XEConfig, XETrainer
from hf_captioners.training.data_arguments import DataArguments, load_rows

class Recording(XETrainer):
    learned = ()
    def training_step(self, model, inputs, *others):
        self.learned = [*self.learned, inputs["rows"]]
        return super().training_step(model, inputs, *others)

results = []
for folder, resume in (("whole", None), ("again", "whole/checkpoint-6")):
    rows, _ = load_rows(DataArguments(annotations="tars/*.tar", streaming=True, stream_buffer_size=3))
    args = XEConfig(folder, **json.loads(sys.argv[1]))
    trainer = Recording(tiny_policy("satic"), args, rows, processing_class=tiny_processor("satic"))
    trainer.train(resume_from_checkpoint=resume)
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    results.append([trainer.learned, losses])
assert args.world_size == 2
Path(f"result{args.process_index}.json").write_text(json.dumps(results))
trainer.accelerator.wait_for_everyone()
trainer.accelerator.end_training()
"""


@pytest.fixture
def tars(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tars").mkdir()
    for number in range(TARS):
        with tarfile.open(tmp_path / "tars" / f"{number}.tar", "w") as tar:
            for place in range(OF_TAR):
                picture = io.BytesIO()
                noise = np.random.default_rng(OF_TAR * number + place).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(noise).save(picture, "PNG")
                for suffix, content in (("png", picture.getvalue()), ("txt", b"a red circle\na blue square")):
                    info = tarfile.TarInfo(f"{number}{place}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


@pytest.mark.slow
def test_two_processes(tars, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "script.py"]
    run = subprocess.run(
        [*command, json.dumps(OPTIONS)], capture_output=True, text=True, timeout=HANGING_S, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    (whole, losses), (again, losses_again) = ([], {}), ([], {})
    for process in range(2):
        results = json.loads(Path(f"result{process}.json").read_text())
        whole.append(results[0][0])
        again.append(results[1][0])
        losses |= results[0][1]
        losses_again |= results[1][1]
    assert [len(learned) for learned in whole] == [8, 8]
    for first in (0, 4):  # each pass has four steps: every row once, by one of the processes
        rows = [name for learned in whole for batch in learned[first : first + 4] for name in batch]
        assert len(rows) == len(set(rows)) == TARS * OF_TAR
    assert whole[0][:4] != whole[0][4:]
    assert again == [learned[6:] for learned in whole]  # from the middle of the second pass on, the same rows
    assert {step: losses[step] for step in ("7", "8")} == {step: losses_again[step] for step in ("7", "8")}
    rows, _ = load_rows(DataArguments(annotations="tars/*.tar", streaming=True))
    args = XEConfig(str(tmp_path / "whole"), **OPTIONS)
    alone = XETrainer(tiny_policy("satic"), args, rows, processing_class=tiny_processor("satic"))
    with pytest.raises(ValueError, match="read the stream with 2 processes of 2 workers, not 1 of 2"):
        alone.train(resume_from_checkpoint="whole/checkpoint-6")
