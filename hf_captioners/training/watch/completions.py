"""Completions of the policy while it learns from rewards: a table in the terminal, and all of it in a file.

The table goes to stderr, through running progress bars without tearing them. The file of a step,
`completions/completions_00010.jsonl`, has one JSON object per completion: `step`, `image_id`, `file_name` where it is
known, `completion`, `rewards` (by name), `reward` (the weighted sum), and whatever else the trainer knows of it, such
as `advantage`; a further column with a name that is taken is `extra/reward`. Numbers that are not finite, and rewards
that do not apply, are null.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ...data.files import write_whole
from ...data.printable import printable

if TYPE_CHECKING:
    from rich.table import Table

_WIDTH = 140  # columns where stderr is no terminal, which has none of its own


@dataclass(frozen=True)
class CompletionRow:
    """One candidate of one picture.

    Args:
        image_id (`int` or `str`): the picture.
        completion (`str`): the caption.
        rewards (`Mapping[str, float | None]`): each reward by name; `None` where it does not apply.
        reward (`float`): their weighted sum.
        extra (`Mapping[str, Any]`, *optional*): further columns, such as `advantage` (SCST), `weight` (DiCO), or what
            a reward gave to `log_extra`; the same ones for all rows of a step.
        file_name (`str`, *optional*): name of the picture's file; the table shows it in the place of `image_id`.
    """

    image_id: int | str
    completion: str
    rewards: Mapping[str, float | None]
    reward: float
    extra: Mapping[str, Any] = field(default_factory=dict)
    file_name: str | None = None


def log_completions(
    rows: Sequence[CompletionRow], step: int, output_dir: str | Path, number: int | None = None
) -> Path | None:
    """Show some completions of a step, and keep all. To be called on the main process only.

    Args:
        rows (`Sequence[CompletionRow]`): the candidates, those of one picture side by side.
        step (`int`): the optimizer step.
        output_dir (`str` or `Path`): folder of the run.
        number (`int`, *optional*): most rows of the table; by default all, 0 for no table.

    Returns:
        `Path` or `None`: the file; `None` without rows.
    """
    if not rows:
        return None
    print_completions(rows, step, number)
    return write_completions(rows, step, Path(output_dir) / "completions")


def print_completions(rows: Sequence[CompletionRow], step: int, number: int | None = None) -> None:
    """Print a table of completions to stderr: picture after picture, the best paid candidate of each first.

    Args:
        rows (`Sequence[CompletionRow]`): the candidates, those of one picture side by side.
        step (`int`): the optimizer step.
        number (`int`, *optional*): most rows; by default all, 0 for no table.

    Raises:
        ValueError: `number` is below 0.
    """
    if number is not None and number < 0:
        raise ValueError(f"number is {number}, expected 0 or more rows to print, or None for all")
    if not rows or number == 0:
        return
    from rich.console import Console

    with tqdm.external_write_mode(file=sys.stderr):
        console = Console(stderr=True)
        if not console.is_terminal:
            console = Console(stderr=True, width=_WIDTH)
        console.print(_table(rows, step, number))


def write_completions(rows: Sequence[CompletionRow], step: int, folder: str | Path) -> Path:
    """Write the completions of a step as JSON lines, whole or not at all.

    Args:
        rows (`Sequence[CompletionRow]`): the candidates.
        step (`int`): the optimizer step.
        folder (`str` or `Path`): made where it does not exist; a file of the same step is replaced.

    Returns:
        `Path`: `folder/completions_{step:05d}.jsonl`.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_captioners.training.watch.completions import CompletionRow, write_completions
    >>> row = CompletionRow(7, "a dog runs", {"cider_d": 0.5, "length": None}, 0.5, {"advantage": -0.1})
    >>> path = write_completions([row], 10, tempfile.mkdtemp())
    >>> path.name
    'completions_00010.jsonl'
    >>> path.read_text()[:66]
    '{"step": 10, "image_id": 7, "completion": "a dog runs", "rewards":'

    ```
    """
    path = Path(folder) / f"completions_{step:05d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(f"{json.dumps(_record(row, step), ensure_ascii=False, allow_nan=False)}\n" for row in rows)
    # a lone surrogate, of a file name that is not Unicode, becomes the escape that JSON has for it
    write_whole(path, lambda temporary: temporary.write_text(text, "utf-8", "backslashreplace", newline="\n"))
    return path


def _record(row: CompletionRow, step: int) -> dict[str, Any]:
    rewards = {name: _plain(value) for name, value in row.rewards.items()}
    known: dict[str, Any] = {"step": step, "image_id": _plain(row.image_id)}
    known |= {} if row.file_name is None else {"file_name": row.file_name}
    known |= {"completion": row.completion, "rewards": rewards, "reward": _plain(row.reward)}
    extra = {f"extra/{name}" if name in known else name: _plain(value) for name, value in row.extra.items()}
    return {**known, **extra}


def _plain(value: Any) -> Any:
    """Turn a value into one that JSON can hold."""
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return value if value is None else str(value)


def _table(rows: Sequence[CompletionRow], step: int, number: int | None) -> Table:
    from rich.box import ROUNDED
    from rich.table import Table
    from rich.text import Text

    names, extras = list(rows[0].rewards), list(rows[0].extra)
    shown = _best_first(rows)[:number]
    title = f"step {step:,}, {len(shown)} of {len(rows)} completions"
    table = Table(title=title, box=ROUNDED, title_style="bold", title_justify="left")
    table.add_column("picture", overflow="fold", max_width=24)
    table.add_column("completion", overflow="fold", ratio=1)
    for name in (*names, "reward", *extras):
        table.add_column(Text(name), justify="right", style="bold" if name == "reward" else None, overflow="fold")
    for index, row in enumerate(shown):
        first = index == 0 or shown[index - 1].image_id != row.image_id
        last = index + 1 == len(shown) or shown[index + 1].image_id != row.image_id
        shown_name = row.image_id if row.file_name is None else row.file_name
        image = printable(str(shown_name)) if first else ""
        texts = [image, printable(row.completion) or "(nothing)"]
        numbers = [*(row.rewards.get(name) for name in names), row.reward, *(row.extra.get(name) for name in extras)]
        table.add_row(*map(Text, [*texts, *map(_shown, numbers)]), end_section=last)  # Text: brackets are no markup
    return table


def _best_first(rows: Sequence[CompletionRow]) -> list[CompletionRow]:
    """Candidates of a picture by falling reward; no number comes last."""

    def key(row: CompletionRow) -> float:
        return -row.reward if math.isfinite(row.reward) else math.inf

    images = groupby(rows, key=lambda row: row.image_id)
    return [row for _, candidates in images for row in sorted(candidates, key=key)]


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else printable(str(value))
