"""Training that a command line describes, from its options to the saved captioner."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, set_seed
from transformers.trainer_utils import IntervalStrategy

from ...data.files import system_errors
from ...data.printable import PrintableFormatter
from ...training.checkpointing import CheckpointingTrainer
from ...training.checks import check_hub_rights, check_output_dir
from ...training.data_arguments import DataArguments, load_rows
from ...training.dico_config import DiCOConfig
from ...training.dico_trainer import DiCOTrainer
from ...training.pushing import pushed_later
from ...training.scst_config import SCSTConfig
from ...training.scst_trainer import SCSTTrainer
from ...training.watch.collapse import CollapseCallback
from ...training.xe_config import XEConfig
from ...training.xe_trainer import XETrainer
from ..common import UsageError, mistakes
from ..image_options import use_retrieval
from .captioner_arguments import CaptionerArguments, check_new_captioner, load_captioner
from .interruption import telling_interruption
from .options import read_options
from .reward_arguments import RewardArguments, load_rewards
from .run_report import ReportArguments, leave_report

TRAINERS: dict[str, tuple[Any, Any]] = {
    "xe": (XEConfig, XETrainer),
    "scst": (SCSTConfig, SCSTTrainer),
    "dico": (DiCOConfig, DiCOTrainer),
}


def options_of(method: str) -> list[type]:
    """The dataclasses that hold the options of a method.

    Args:
        method (`str`): `"xe"`, `"scst"` or `"dico"`.

    Returns:
        `list[type]`: the trainer's last.
    """
    rewards = [] if method == "xe" else [RewardArguments]
    return [DataArguments, CaptionerArguments, *rewards, ReportArguments, TRAINERS[method][0]]


def train_captioner(method: str, words: Sequence[str] | None, prog: str, model_type: str | None = None) -> None:
    """Train what a command line describes, and save model, processor and log.

    Args:
        method (`str`): `"xe"`, `"scst"` or `"dico"`.
        words (`Sequence[str]`, *optional*): its options; by default the process's arguments.
        prog (`str`): name of the command.
        model_type (`str`, *optional*): of the only captioners that it trains.

    Raises:
        UsageError: a mistake in the options or the data, a missing file, a full disk, or numbers that are none.
        KeyboardInterrupt: Ctrl-C was pressed; what is saved is said.
        SystemExit: the training has collapsed; see [`train`].
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    options = read_options(options_of(method), words, prog)
    data, captioner, *_, report, _ = options
    with mistakes(ValueError):
        _refuse_new_beside_saved(captioner, sys.argv[1:] if words is None else words)
    begun: list[CheckpointingTrainer] = []
    with telling_interruption(lambda: _interrupted(prog, begun)), _training_mistakes(begun):
        begun.append(_new_trainer(method, options, prog, model_type))
        with pushed_later(begun[0].args) as push:
            train(begun[0])
        if report.report:
            leave_report(begun[0], data, captioner)
        if push:
            begun[0].push_to_hub()


def _new_trainer(method: str, options: Sequence[Any], prog: str, model_type: str | None) -> CheckpointingTrainer:
    """The trainer that the options describe."""
    data, captioner, *rewards, _, args = options
    set_seed(args.seed)
    if args.process_index == 0:
        check_output_dir(args.output_dir)
        check_hub_rights(args)
    _check_captioner(captioner, model_type, method, prog)
    check_switches(args)
    if captioner.model is None:
        check_new_captioner(captioner, data.features, args.train_backbone)
    rows, evaluation = load_rows(data)
    _check_evaluation(data, evaluation, args)
    compute_dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else "auto"
    model, processor, adapters = load_captioner(captioner, rows, compute_dtype)
    use_retrieval(model, processor, captioner.retrieval, captioner.trust_remote_code)
    extra = {}
    if rewards:
        extra["reward_funcs"] = load_rewards(rewards[0], rows, processor, captioner.trust_remote_code)
    try:
        trainer = TRAINERS[method][1](
            model,
            args=args,
            train_dataset=rows,
            eval_dataset=evaluation,
            processing_class=processor,
            peft_config=adapters,
            **extra,
        )
    except RuntimeError as error:  # of a callback of report_to
        if "to be installed" not in str(error):
            raise
        raise ValueError(f"--report_to {' '.join(args.report_to)}: {error}") from error
    trainer.started_from = captioner.model or ""
    return trainer


@contextmanager
def _training_mistakes(begun: Sequence[CheckpointingTrainer]) -> Iterator[None]:
    """Take what the user can mend for mistakes; of a training that has begun say what is saved.

    A reward function of the user's that raised something keeps its traceback, as every other error does.
    """
    try:
        with mistakes(ValueError, OSError, ImportError, FloatingPointError):
            yield
    except UsageError as error:
        if begun and begun[0].state.global_step and not isinstance(error.__cause__, ValueError):
            raise UsageError(f"{error} -- {_saved(begun[0])}") from error.__cause__
        raise


def _saved(trainer: CheckpointingTrainer) -> str:
    """The newest checkpoint that training can go on with, and the option for that."""
    checkpoint = trainer.newest_whole_checkpoint()
    if checkpoint is None:
        return "no checkpoint has been saved (save_strategy, save_steps)"
    return f"{checkpoint} is saved; go on there with --resume_from_checkpoint true"


def _interrupted(prog: str, begun: Sequence[CheckpointingTrainer]) -> str | None:
    """The line for Ctrl-C; none on the other processes."""
    if not begun:
        return f"{prog}: stopped before the first step; nothing has been saved"
    trainer = begun[0]
    if not trainer.is_world_process_zero():
        return None
    return f"{prog}: stopped at step {trainer.state.global_step}: {_saved(trainer)}"


def _check_evaluation(data: DataArguments, evaluation: Any, args: Any) -> None:
    """Refuse evaluation on nothing."""
    strategy = IntervalStrategy(args.eval_strategy).value
    if evaluation is None and strategy != "no":
        generation = " --eval_with_generation false" if args.eval_with_generation else ""
        source = (
            f"--data_dir {data.data_dir}: no validation/ in it to evaluate on (--eval_strategy {strategy}); put some "
            "of the pictures there"
            if data.data_dir is not None
            else f"--dataset_name {data.dataset_name}: no split validation in it to evaluate on (--eval_strategy "
            f"{strategy}); name another one by --eval_split"
            if data.dataset_name is not None
            else f"--annotations {data.annotations}: has no split val, and nothing says what to evaluate on "
            f"(--eval_strategy {strategy}); give --eval_annotations, or --eval_split with splits or a file of names"
        )
        raise ValueError(f"{source}, or give --eval_strategy no --load_best_model_at_end false{generation}.")


def check_switches(args: Any) -> None:
    """Refuse switches of transformers' own scripts, and of an evaluation that does not happen."""
    if args.do_predict:
        raise ValueError("--do_predict has no effect: `hf-captioners evaluate` scores captions of a test split.")
    if args.eval_strategy == "no" and not args.eval_on_start:
        for name in ("do_eval", "eval_with_generation"):
            if vars(args)[name]:
                raise ValueError(f"--{name} has no effect without --eval_strategy epoch or steps.")


def _refuse_new_beside_saved(captioner: CaptionerArguments, words: Sequence[str]) -> None:
    """Refuse options of a new captioner that the command line gives where there is a saved one.

    A recipe may have them, so that the same one makes a captioner and goes on with it.
    """
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    for name in ("backbone", "tokenizer", "new_captioner"):
        if captioner.model is not None and name in given:
            raise ValueError(
                f"--{name} is of a new captioner, and that of --model {captioner.model} has its own: leave --{name} "
                "out to train it further, or --model to make a new one."
            )


def _check_captioner(captioner: CaptionerArguments, model_type: str | None, method: str, prog: str) -> None:
    """Refuse the recipe of another captioner, and training that has no captioner to begin with."""
    if model_type is not None and captioner.model_type not in (None, model_type):
        raise ValueError(
            f"this is a recipe of model_type {captioner.model_type}, and {prog} trains {model_type}; `hf-captioners "
            f"train {method}` trains all captioners."
        )
    captioner.model_type = captioner.model_type or model_type
    if captioner.model is None and method != "xe":
        raise ValueError(f"--model: {method} goes on with a captioner; `hf-captioners train xe` makes one.")


def train(trainer: Trainer) -> None:
    """Train, going on at `resume_from_checkpoint` if that was given, and save model, processor and log.

    Args:
        trainer (`Trainer`): ready to train.

    Raises:
        SystemExit: the training has collapsed. The log is saved, the model only if the best checkpoint was loaded.
    """
    output_dir: Any = trainer.args.output_dir
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    with system_errors(output_dir):
        trainer.save_state()
    watches = [watch for watch in trainer.callback_handler.callbacks if isinstance(watch, CollapseCallback)]
    diagnosis = next((watch.diagnosis for watch in watches if watch.diagnosis), None)
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    if diagnosis is None or best is not None:
        trainer.save_model(output_dir)
    if diagnosis is not None:
        saved = f"{output_dir} has the best checkpoint" if best else f"checkpoints from before are in {output_dir}"
        raise SystemExit(f"training has collapsed: {diagnosis}\n{saved}, and the log for `hf-captioners plot`.")
