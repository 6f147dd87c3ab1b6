"""Checkpoints of a run: which there are, what they lack, and how they appear and disappear.

A checkpoint is written in a hidden folder of the run and renamed when all of it is on the disk, and it is renamed
before its files are deleted: what a killed run leaves is whole.
"""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from ..data.files import settle, system_errors
from ..modeling.captioner_adapters import BASE_FOLDER

UNFINISHED = ".unfinished"  # where a run writes, and what it deletes
WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")
_LAST = ("config.json", "adapter_config.json")  # a folder without them is no model


def checkpoints_of(run: Path) -> list[Path]:
    """The checkpoints of a run, the newest first.

    Args:
        run (`Path`): its output folder.

    Returns:
        `list[Path]`
    """
    matches = [(_CHECKPOINT.fullmatch(path.name), path) for path in run.iterdir()] if run.is_dir() else []
    steps = [(int(match[1]), path) for match, path in matches if match and path.is_dir()]
    return [path for _, path in sorted(steps, reverse=True)]


def flaws(checkpoint: Path, parts: Sequence[tuple[str, ...]]) -> list[str]:
    """List what a checkpoint lacks.

    Args:
        checkpoint (`Path`): the folder.
        parts (`Sequence[tuple[str, ...]]`): files that it must have; of a tuple one of them.

    Returns:
        `list[str]`: such as `"optimizer.pt is missing"`; empty if it is whole.
    """
    problems = []
    for names in parts:
        there = [name for name in names if (checkpoint / name).is_file()]
        if there:
            problems += [
                f"{name} is incomplete" for name in _files_of(checkpoint, there[0]) if not _whole(checkpoint / name)
            ]
        else:
            problems.append(f"{' or '.join(names)} is missing")
    return problems


def _files_of(checkpoint: Path, name: str) -> list[str]:
    """A file, and the shards that it is the index of."""
    if Path(name).name != SAFE_WEIGHTS_INDEX_NAME or not _whole(checkpoint / name):
        return [name]
    index = json.loads((checkpoint / name).read_text("utf-8"))
    return [name, *sorted(str(Path(name).with_name(shard)) for shard in set(index["weight_map"].values()))]


def _whole(path: Path) -> bool:
    """Tell whether a file is there to its end, as far as it can be told without reading all of it."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):
                return True
        if path.suffix == ".json":
            json.loads(path.read_text("utf-8"))
            return True
    except (OSError, ValueError, SafetensorError):
        return False
    return zipfile.is_zipfile(path)  # what torch.save writes; its directory is at the end


def has_ended(checkpoint: Path, max_steps: int) -> bool:
    """Tell whether there is nothing left to train behind a checkpoint.

    Args:
        checkpoint (`Path`): the folder.
        max_steps (`int`): steps that are asked for now.

    Returns:
        `bool`: also if a callback, such as early stopping, has ended the training there.
    """
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_text("utf-8"))
    control = state.get("stateful_callbacks", {}).get("TrainerControl", {}).get("args", {})
    stopped = control.get("should_training_stop", False) and state["global_step"] < state["max_steps"]
    return stopped or state["global_step"] >= max_steps


def rotate(run: Path, limit: int | None, keep: Sequence[str | Path | None]) -> None:
    """Delete the oldest checkpoints of a run.

    Args:
        run (`Path`): its output folder.
        limit (`int`, *optional*): how many to leave; all without one.
        keep (`Sequence[str | Path | None]`): checkpoints to keep in any case, and `None`.
    """
    if not limit or limit < 0:
        return
    kept = {Path(path).resolve() for path in keep if path is not None}
    checkpoints = checkpoints_of(run)
    surplus = len(checkpoints) - max(limit, len(kept))
    for checkpoint in [path for path in reversed(checkpoints) if path.resolve() not in kept][: max(surplus, 0)]:
        remove(checkpoint)


def remove(checkpoint: Path) -> None:
    """Delete a checkpoint: it disappears at once, and then its files do.

    Args:
        checkpoint (`Path`): the folder.
    """
    grave = checkpoint.parent / UNFINISHED / f"{checkpoint.name}.deleted"
    shutil.rmtree(grave, ignore_errors=True)
    grave.parent.mkdir(exist_ok=True)
    checkpoint.rename(grave)
    shutil.rmtree(grave, ignore_errors=True)


def appear(staged: Path, checkpoint: Path) -> None:
    """Give a checkpoint that has been written its name, once it is on the disk.

    Args:
        staged (`Path`): where it has been written, on the same disk.
        checkpoint (`Path`): its name; what has it already is replaced.
    """
    settle(staged)
    if checkpoint.is_dir():
        remove(checkpoint)
    staged.rename(checkpoint)


@contextmanager
def filled_whole(folder: Path) -> Iterator[Path]:
    """Have a folder's files written elsewhere, and moved there when all are on the disk.

    Args:
        folder (`Path`): where they are moved; it may have other files, and older ones of the same names.

    Yields:
        `Path`: an empty folder, on the same disk.

    Raises:
        OSError: the disk is full, or the folder cannot be written.
    """
    staged = folder / UNFINISHED / "model"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    with system_errors(folder):
        yield staged
    settle(staged)
    for path in sorted((path for path in staged.rglob("*") if path.is_file()), key=lambda path: path.name in _LAST):
        target = folder / path.relative_to(staged)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    discard(folder)


def discard(run: Path) -> None:
    """Delete what a run was writing when it ended.

    Args:
        run (`Path`): its output folder.
    """
    shutil.rmtree(run / UNFINISHED, ignore_errors=True)


def set_aside(run: Path) -> Path:
    """Move the checkpoints of an earlier run, and what they need, away from those of one that begins.

    Args:
        run (`Path`): its output folder, with checkpoints.

    Returns:
        `Path`: `earlier-1` in it, or the next number that is free.
    """
    number = 1
    while (run / f"earlier-{number}").exists():
        number += 1
    folder = run / f"earlier-{number}"
    folder.mkdir()
    for path in [*checkpoints_of(run), *filter(Path.is_dir, [run / BASE_FOLDER])]:
        path.rename(folder / path.name)
    return folder
