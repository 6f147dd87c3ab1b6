"""A `Trainer` whose checkpoints appear whole or not at all, and that goes on with whole ones only."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerState
from transformers.trainer import (
    OPTIMIZER_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_NAME,
    TrainOutput,
)
from transformers.trainer_utils import has_length
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME

from ..data.files import system_errors
from ..families import without_adapters
from ..families.prompt import save_prompt
from .adapters import keep_base
from .checkpoints import (
    UNFINISHED,
    WEIGHTS,
    appear,
    checkpoints_of,
    discard,
    filled_whole,
    flaws,
    has_ended,
    rotate,
    set_aside,
)
from .checks import check_disk_space, check_output_dir, checkpoint_bytes, checkpoints_at_once

logger = logging.getLogger(__name__)

ARGUMENTS = Path(TRAINING_ARGS_NAME).with_suffix(".json").name


class CheckpointingTrainer(Trainer):
    """File handling of [`CaptionerTrainer`]: the checkpoints and the model of a run.

    1. A checkpoint is written in a hidden folder and renamed when all processes have written their part.
    2. `resume_from_checkpoint=True` takes the newest whole checkpoint and names those that it passes over; a path to
       one that lacks something is an error.
    3. A training that has ended is not gone on with: neither by a step more than it was to have, nor by one after a
       callback has ended it.
    4. A training does not begin over the checkpoints of another, unless `resume_from_checkpoint=False` says so.
    """

    model: Any
    args: Any
    _staging: Path | None = None  # while a checkpoint is written
    _has_begun = False

    # -- going on ----------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train as `Trainer` does.

        Args:
            resume_from_checkpoint (`str` or `bool`, *optional*): `True` to go on at the newest whole checkpoint of
                `output_dir`, or to begin if there is none; the path of a checkpoint; `False` to begin anew, where the
                checkpoints that are there are moved aside. By default training begins, in a folder without any.
            args, kwargs: see `Trainer.train`.

        Returns:
            `TrainOutput`

        Raises:
            ValueError: a checkpoint that lacks something; checkpoints in `output_dir` where training is to begin; see
                also `check_output`.
        """
        checkpoint = self._chosen_checkpoint(resume_from_checkpoint)
        self.check_output(0 if checkpoint is None else len(checkpoints_of(Path(self.args.output_dir))))
        self._has_begun = True
        if self.is_local_process_zero():
            discard(Path(self.args.output_dir))
        self._keep_base(goes_on=checkpoint is not None)
        self.accelerator.wait_for_everyone()
        if without_adapters(self.model) is self.model:
            self.model.name_or_path = ""  # what is learned now is in no folder yet
        if checkpoint is None:
            return super().train(None, *args, **kwargs)
        if has_ended(checkpoint, self._max_steps()):
            return self._ended(checkpoint)
        return super().train(str(checkpoint), *args, **kwargs)

    def check_output(self, already: int = 0) -> None:
        """Check before the first step that there is a folder, and space in it, for what is saved.

        Args:
            already (`int`, defaults to 0): checkpoints of this run that are there.

        Raises:
            ValueError: the folder cannot be written, or has no space for the checkpoints.
        """
        if not self.args.should_save:
            return
        folder = Path(self.args.output_dir)
        check_output_dir(folder)
        in_parts = self.is_fsdp_enabled or self.is_deepspeed_enabled
        if self.args.check_disk_space and not in_parts and has_length(self.train_dataset):
            values = self.set_initial_training_values(self.args, self.get_train_dataloader())
            number = max(checkpoints_at_once(self.args, max_steps=values[-1], steps_per_epoch=values[1]) - already, 0)
            model, checkpoint = checkpoint_bytes(self.model, self.args)
            check_disk_space(folder, model + number * checkpoint, f"the model and {number} checkpoints")

    def _chosen_checkpoint(self, choice: str | bool | None) -> Path | None:
        """The checkpoint to go on from, if any."""
        run = Path(self.args.output_dir)
        if isinstance(choice, str):
            self._check_whole(Path(choice))
            return Path(choice)
        if choice:
            return self._newest_whole(run) or self._finished_model(run)
        there = [path.name for path in checkpoints_of(run)]
        there += [TRAINER_STATE_NAME] if (run / TRAINER_STATE_NAME).is_file() else []
        self.accelerator.wait_for_everyone()  # all have seen what is there
        if there and choice is None and not self._has_begun:
            raise ValueError(
                f"{run} has a training: {', '.join(there[:3])}. Go on with it by resume_from_checkpoint=true, begin "
                "anew by resume_from_checkpoint=false (its checkpoints are moved aside), or choose another output_dir."
            )
        if checkpoints_of(run) and choice is False and self.args.should_save:
            logger.warning("training begins anew; the checkpoints of %s are now in %s.", run, set_aside(run))
        return None

    def _newest_whole(self, run: Path) -> Path | None:
        """The newest checkpoint that lacks nothing on any process; those that are passed over are named in the log."""
        lacking = {path.name: flaws(path, self.checkpoint_parts(path)) for path in checkpoints_of(run)}
        if self.args.world_size > 1:
            for theirs in gather_object([lacking]):
                lacking = {name: sorted({*lacking[name], *theirs[name]}) for name in lacking if name in theirs}
        for name, problems in lacking.items():
            if not problems:
                return run / name
            if self.is_world_process_zero():
                logger.warning("%s is passed over: %s", run / name, ", ".join(problems))
        return None

    def newest_whole_checkpoint(self) -> Path | None:
        """The newest checkpoint of `output_dir` that lacks nothing, as far as this process knows."""
        checkpoints = checkpoints_of(Path(self.args.output_dir))
        return next((path for path in checkpoints if not flaws(path, self.checkpoint_parts(path))), None)

    def _finished_model(self, run: Path) -> Path | None:
        """The folder of a training without checkpoints, if it has ended; else it begins."""
        if not (run / TRAINER_STATE_NAME).is_file():
            logger.warning("%s has no whole checkpoint; training begins at the first step.", run)
            return None
        if flaws(run, self._model_parts()) or not has_ended(run, self._max_steps()):
            raise ValueError(
                f"{run} has a training without a whole checkpoint: resume_from_checkpoint=true cannot go on with it. "
                "Begin anew by resume_from_checkpoint=false, or choose another output_dir."
            )
        return run

    def _check_whole(self, checkpoint: Path) -> None:
        if not checkpoint.is_dir():
            raise ValueError(f"resume_from_checkpoint={checkpoint}: there is no such folder.")
        problems = flaws(checkpoint, self.checkpoint_parts(checkpoint))
        if problems:
            raise ValueError(
                f"resume_from_checkpoint={checkpoint}: {', '.join(problems)}. Training cannot go on there; "
                "resume_from_checkpoint=true takes the newest whole checkpoint of output_dir."
            )

    def checkpoint_parts(self, checkpoint: Path) -> list[tuple[str, ...]]:
        """Files that a checkpoint must have to be gone on with.

        Args:
            checkpoint (`Path`): the folder.

        Returns:
            `list[tuple[str, ...]]`: of a tuple one of them.
        """
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # these have their own
            return [(TRAINER_STATE_NAME,)]
        parts = [*self._model_parts(), (OPTIMIZER_NAME,), (SCHEDULER_NAME,), (TRAINER_STATE_NAME,)]
        if self.accelerator.scaler is not None:
            parts.append((SCALER_NAME,))
        if _world_size(checkpoint) not in (None, self.args.world_size):
            return parts  # the state of chance is that of other processes
        of_process = f"_{self.args.process_index}" if self.args.world_size > 1 else ""
        return [*parts, (f"rng_state{of_process}.pth",)]

    def _model_parts(self) -> list[tuple[str, ...]]:
        if without_adapters(self.model) is self.model:
            return [WEIGHTS]
        folders = ["" if name == "default" else f"{name}/" for name in self.model.peft_config]
        return [(folder + name,) for folder in folders for name in (ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_CONFIG_NAME)]

    def _max_steps(self) -> int:
        return self.set_initial_training_values(self.args, self.get_train_dataloader())[-1]

    def _ended(self, checkpoint: Path) -> TrainOutput:
        """The trainer as the training left it at its end."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        logger.warning(
            "%s: the training has ended at step %d, and nothing is left to do. To train longer give more max_steps or "
            "num_train_epochs; behind an early stop, begin another training with this model.",
            *(checkpoint, self.state.global_step),
        )
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        losses = [entry["loss"] for entry in self.state.log_history if "loss" in entry]
        return TrainOutput(self.state.global_step, losses[-1] if losses else float("nan"), {})

    # -- saving ------------------------------------------------------------------------------------------------------

    def _keep_base(self, goes_on: bool = False) -> None:
        """Save the model that adapters belong to where it is in no folder yet."""
        keep_base(self.model, Path(self.args.output_dir), self.processing_class, self.args.should_save, goes_on)

    def write_more(self, checkpoint: Path) -> None:
        """Write what else belongs to a checkpoint; called on every process."""

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as `Trainer` does, somewhere else first."""
        run, name = Path(self._get_output_dir(trial)), f"checkpoint-{self.state.global_step}"
        staged = run / UNFINISHED / name
        if self.is_local_process_zero():
            discard(run)
        self.accelerator.wait_for_everyone()
        self._staging = staged.parent
        try:
            with system_errors(staged):
                super()._save_checkpoint(model, trial)
                self.write_more(staged)
        except (Exception, KeyboardInterrupt):  # such as a full disk
            discard(run)
            raise
        finally:
            self._staging = None
        best = run / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best.name == name or best.is_dir()):
            self.state.best_model_checkpoint = str(best)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            with system_errors(staged):
                self.state.save_to_json(str(staged / TRAINER_STATE_NAME))
            appear(staged, run / name)
            rotate(run, self.args.save_total_limit, [run / name, self.state.best_model_checkpoint])
        self.accelerator.wait_for_everyone()
        if self.is_local_process_zero():
            if staged.is_dir():  # of a node with a disk of its own
                appear(staged, run / name)
            shutil.rmtree(run / UNFINISHED, ignore_errors=True)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Save as `Trainer` does, but the arguments as JSON: a pickle in a folder for others is code to its reader.

        Nothing reads the pickle, resuming included.
        """
        if not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        if not self._has_begun:
            self._keep_base()
        with filled_whole(Path(output_dir or self.args.output_dir)) as folder:
            token, self.args.hub_token = self.args.hub_token, None  # for the pickle would have it
            try:
                super()._save(str(folder), state_dict)
            finally:
                self.args.hub_token = token
            save_prompt(self.model, folder)
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            arguments = {**json.loads(self.args.to_json_string()), "world_size": self.args.world_size}
            (folder / ARGUMENTS).write_text(json.dumps(arguments, indent=2), encoding="utf-8")


def _world_size(checkpoint: Path) -> int | None:
    """The number of processes that have written a checkpoint, if it says so."""
    try:
        size: int = json.loads((checkpoint / ARGUMENTS).read_text("utf-8"))["world_size"]
    except (OSError, ValueError, KeyError):
        return None
    return size
