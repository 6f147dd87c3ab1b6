"""The captioner of a training goes to the Hub: saved with its card, then pushed as one commit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..hub.access import HubError
from ..hub.push import Pushed, push_captioner


def push_run(trainer: Any, card: Mapping[str, Any], **options: Any) -> Pushed | None:
    """Save what a trainer has trained, write its card, and push both; all processes call this.

    Args:
        trainer ([`CaptionerTrainer`]): after training; its arguments name the repository, `hub_model_id` or the name of
            `output_dir`.
        card (`Mapping[str, Any]`): arguments of `create_model_card`.
        options: of [`push_captioner`]; those that are `None` are what the trainer's arguments say.

    Returns:
        [`Pushed`], or `None` on the other processes.

    Raises:
        HubError: the Hub cannot be reached or refuses; the captioner is saved, and the message says how to push it.
        StagingError: others could not load the captioner.
    """
    trainer.callback_handler.on_push_begin(trainer.args, trainer.state, trainer.control)
    trainer.save_model(_internal_call=True)
    if not trainer.is_world_process_zero():
        return None
    trainer.create_model_card(**card)
    args, folder = trainer.args, Path(trainer.args.output_dir)
    name = args.hub_model_id or folder.resolve().name
    usual = {"token": args.hub_token, "private": args.hub_private_repo, "revision": args.hub_revision}
    given = {option: value for option, value in options.items() if value is not None}
    try:
        return push_captioner(folder, None, name, **{**usual, **given})
    except HubError as error:
        raise HubError(
            f"{error} -- {folder} has the captioner; push it with: hf-captioners push {folder} {name}"
        ) from error


@contextmanager
def pushed_later(args: Any) -> Iterator[bool]:
    """For a while let saving not push; whether it would have.

    Args:
        args (`TrainingArguments`): of the trainer.
    """
    pushes, args.push_to_hub = args.push_to_hub, False
    try:
        yield pushes
    finally:
        args.push_to_hub = pushes
