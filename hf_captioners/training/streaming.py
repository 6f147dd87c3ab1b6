"""Training on a [`RowStream`]: each process reads its own part, and a checkpoint says where the next one begins."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from accelerate.data_loader import prepare_data_loader
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from ..data.files import write_whole
from ..data.row_stream import Position, RowStream, StreamedRow

STREAM = "stream"  # of a training batch: the share of its rows, and the place behind them


def batch_place(rows: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The part of a batch that says where its rows end in their stream; nothing for other rows.

    Args:
        rows (`list[Mapping]`): of the batch, all of one worker.

    Returns:
        `dict[str, Any]`
    """
    last = rows[-1]
    return {STREAM: (last.share, last.position)} if isinstance(last, StreamedRow) else {}


class StreamProgress(TrainerCallback):
    """Record of what a process has learned from its part of a stream.

    Args:
        stream ([`RowStream`]): the training rows.
        process (`int`), processes (`int`): this one, and how many there are.
        workers (`int`): of the loader.
    """

    def __init__(self, stream: RowStream, process: int, processes: int, workers: int) -> None:
        self.stream = stream.for_process(process, processes)
        self.layout = {"processes": processes, "workers": workers}
        self.file = f"stream_{process}.json"
        self.batches = 0
        self.positions: dict[int, Position] = {}

    def loader(self, loader: DataLoader, device: Any) -> DataLoader:
        """Prepare a loader without sharing its batches between processes: the stream is shared already."""
        return prepare_data_loader(
            loader, device, num_processes=1, process_index=0, put_on_device=True, dispatch_batches=False
        )

    def learned(self, place: tuple[int, Position]) -> None:
        """Note a batch that was learned from."""
        share, position = place
        self.batches += 1
        self.positions[share] = position

    def save(self, checkpoint: Path) -> None:
        """Write where the stream goes on."""
        places = {str(share): astuple(position) for share, position in self.positions.items()}
        text = json.dumps({**self.layout, "batches": self.batches, "positions": places})
        write_whole(checkpoint / self.file, lambda path: path.write_text(text, encoding="utf-8"))

    def load(self, checkpoint: Path) -> None:
        """Go on where a checkpoint says.

        Raises:
            ValueError: it is of other processes or workers, which share the stream in another way.
        """
        state = json.loads((checkpoint / self.file).read_text("utf-8"))
        there = {name: state[name] for name in self.layout}
        if there != self.layout:
            raise ValueError(
                f"{checkpoint}: its training read the stream with {there['processes']} processes of {there['workers']} "
                f"workers, not {self.layout['processes']} of {self.layout['workers']} (dataloader_num_workers); go on "
                "with as many, or begin a new pass of the data with ignore_data_skip=True."
            )
        self.batches = state["batches"]
        self.positions = {int(share): Position(*place) for share, place in state["positions"].items()}
        self.stream.go_on(self.batches, self.positions)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Say how far the training is, also after going on, when `Trainer` counts batches from 0 again."""
        state.epoch = state.global_step / state.max_steps
