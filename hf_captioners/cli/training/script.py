"""How the training examples begin and end."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer, set_seed

from ...data.printable import PrintableFormatter, printable
from ...training.watch.collapse import CollapseCallback
from ..common import TRUST_OPTION
from .data_arguments import DataArguments, load_rows
from .reward_arguments import CaptionerArguments, RewardArguments, load_captioner, load_rewards


def read_command_line(argv: list[str] | None, *dataclasses: Any) -> Any:
    """Options from the command line and from the YAML file of `--config`; the command line wins.

    Also sends the log to stderr and seeds chance. The last dataclass is that of the trainer.

    Args:
        argv (`list[str]`, *optional*): by default the process's arguments.
        dataclasses: what to read.

    Returns:
        `tuple`: an object of each.

    Raises:
        SystemExit: an option that cannot be, with its name.
    """
    from trl import TrlParser

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    with short_errors():
        objects = TrlParser(dataclasses).parse_args_and_config(argv)
        _check_trust(sys.argv[1:] if argv is None else argv, objects)
    set_seed(objects[-1].seed)
    return objects


def _check_trust(argv: list[str], objects: Any) -> None:
    """Whether foreign code may run is said by who runs the script, and not by a recipe, which comes from anywhere."""
    names = [word.partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")]
    asked = any(TRUST_OPTION.replace("-", "_").startswith(name) for name in names)
    if not asked and any(vars(one).get("trust_remote_code") for one in objects):
        raise ValueError(
            f"{TRUST_OPTION} is not for a recipe; take it out of the file and give it on the command line."
        )


@contextmanager
def short_errors() -> Iterator[None]:
    """End the script with the message of a mistake in the options or the data, or of a file that is not there, without
    a traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SystemExit(printable(" ".join(str(error).split()))) from error


def train(trainer: Trainer) -> None:
    """Train, going on at `resume_from_checkpoint` if that was given, and save model, processor and log.

    Args:
        trainer (`Trainer`): ready to train.

    Raises:
        SystemExit: the training has collapsed. The log is saved, the model only if the best checkpoint was loaded.
    """
    output_dir: Any = trainer.args.output_dir
    trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    trainer.save_state()
    rails = [one for one in trainer.callback_handler.callbacks if isinstance(one, CollapseCallback)]
    diagnosis = next((rail.diagnosis for rail in rails if rail.diagnosis), None)
    best = trainer.state.best_model_checkpoint if trainer.args.load_best_model_at_end else None
    if diagnosis is None or best is not None:
        trainer.save_model(output_dir)
    if diagnosis is not None:
        saved = f"{output_dir} has the best checkpoint" if best else f"checkpoints from before are in {output_dir}"
        raise SystemExit(f"training has collapsed: {diagnosis}\n{saved}, and the log for `hf-captioners plot`.")


def train_with_rewards(argv: list[str] | None, config: Any, trainer: Any) -> None:
    """Run a reward training that a command line describes.

    Args:
        argv (`list[str]`, *optional*): by default the process's arguments.
        config (`type`): [`SCSTConfig`] or [`DiCOConfig`].
        trainer (`type`): the trainer that goes with it.
    """
    data, captioner, reward, args = read_command_line(argv, DataArguments, CaptionerArguments, RewardArguments, config)
    with short_errors():
        rows, evaluation = load_rows(data)
        model, processor, adapters = load_captioner(captioner)
        rewards = load_rewards(reward, rows, processor, captioner.trust_remote_code)
        learner = trainer(
            model,
            reward_funcs=rewards,
            args=args,
            train_dataset=rows,
            eval_dataset=evaluation,
            processing_class=processor,
            peft_config=adapters,
        )
    train(learner)
