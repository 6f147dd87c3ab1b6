"""Rows that are read as they go: an endless stream for a trainer, shared by processes and workers, and resumable.

1. A pass reads each file (shard) of the data once, in an order that seed and pass say. Processes and their workers
   share the files; where there are fewer files than workers, each reads all of them and keeps its part of the rows.
   In a pass every row is read once, by one of them.
2. Rows are shuffled in blocks of `buffer_size`, by seed and place: a block is the same whenever it is read.
3. A row says after which rows it comes (`position`), so that the reading of its share can go on there: the file is read
   from its beginning without decoding, and nothing is lost or repeated.
4. The stream does not end: a trainer's `max_steps` ends it. Its passes are the epochs that choices depend on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import datasets

BUFFER_SIZE = 1000
Convert = Callable[[Mapping[str, Any], str], dict[str, Any]]


@dataclass(frozen=True)
class Position:
    """The beginning of a block of a share, and how many of its rows have come out.

    Attributes:
        epoch (`int`): the pass.
        shard (`int`): the file, counted in the share's order.
        row (`int`): rows of it that were read.
        count (`int`): rows of the pass that were read.
        emitted (`int`): rows of the block that have come out.
    """

    epoch: int = 0
    shard: int = 0
    row: int = 0
    count: int = 0
    emitted: int = 0


class StreamedRow(dict[str, Any]):
    """A row of a [`RowStream`].

    Args:
        row (`Mapping`): its columns.
        share (`int`): which share of the stream it is of.
        position ([`Position`]): behind it.
    """

    def __init__(self, row: Mapping[str, Any], share: int, position: Position) -> None:
        super().__init__(row)
        self.share, self.position = share, position


class RowStream(torch.utils.data.IterableDataset[StreamedRow]):
    """An endless stream of rows; see the top of this module.

    Args:
        dataset (`datasets.IterableDataset`): the rows, not shuffled.
        convert (`Callable`, *optional*): makes a row of a row and its place, which messages name.
        source (`str`): name of the data, for messages.
        seed (`int`, *optional*): of the order; by default that of the training.
        buffer_size (`int`, defaults to 1000): rows of a block, which are in memory; with 1 rows come as they are in
            their file.

    Raises:
        ValueError: while iterating: there are no rows, or one cannot be used; `buffer_size` below 1.

    Example:

    ```python
    >>> import datasets
    >>> from hf_captioners.data.row_stream import RowStream
    >>> rows = datasets.Dataset.from_dict({"image_id": [0, 1, 2, 3]}).to_iterable_dataset(num_shards=2)
    >>> stream = iter(RowStream(rows, buffer_size=2))
    >>> [sorted(next(stream)["image_id"] for _ in range(4)) for _ in range(2)]  # two passes
    [[0, 1, 2, 3], [0, 1, 2, 3]]

    ```
    """

    def __init__(
        self,
        dataset: datasets.IterableDataset,
        convert: Convert | None = None,
        source: str = "the data set",
        *,
        seed: int | None = None,
        buffer_size: int = BUFFER_SIZE,
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, not {buffer_size}")
        self.dataset, self.convert, self.source = dataset, convert, source
        self.seed, self.buffer_size = seed, buffer_size
        self.process, self.processes = 0, 1
        self.batches = 0
        self.positions: dict[int, Position] = {}

    def for_process(self, process: int, processes: int) -> RowStream:
        """Give a process its part of the stream.

        Args:
            process (`int`): its number, from 0.
            processes (`int`): how many there are.

        Returns:
            [`RowStream`]: this one.
        """
        self.process, self.processes = process, processes
        return self

    def go_on(self, batches: int, positions: Mapping[int, Position]) -> None:
        """Begin behind rows that were read already.

        Args:
            batches (`int`): that a loader with as many workers has given.
            positions (`Mapping[int, Position]`): of the last row of each share.
        """
        self.batches, self.positions = batches, dict(positions)

    def __iter__(self) -> Iterator[StreamedRow]:
        worker = torch.utils.data.get_worker_info()
        workers, index = (1, 0) if worker is None else (worker.num_workers, worker.id)
        index = (index + self.batches) % workers  # a loader takes batches in turns, and begins with its first worker
        return self._rows(self.process * workers + index, self.processes * workers)

    def passage(self, columns: list[str] | None = None) -> Iterator[dict[str, Any]]:
        """The rows of a single pass in the order of the files, converted.

        Args:
            columns (`list[str]`, *optional*): of the data set, the only ones to read.

        Returns:
            `Iterator[dict]`
        """
        dataset = self.dataset if columns is None else self.dataset.select_columns(columns)
        for number, row in enumerate(_rows_of(dataset)):
            yield dict(row) if self.convert is None else self.convert(row, f"row {number}")

    def _rows(self, share: int, shares: int) -> Iterator[StreamedRow]:
        start = self.positions.get(share, Position())
        skipped = start.emitted
        block: list[tuple[Position, dict[str, Any]]] = []
        for item in self._read(share, shares, start):
            if block and (len(block) == self.buffer_size or item[0].epoch != block[0][0].epoch):
                yield from self._shuffled(block, share, skipped)
                skipped, block = 0, []
            block.append(item)

    def _shuffled(
        self, block: list[tuple[Position, dict[str, Any]]], share: int, skipped: int
    ) -> Iterator[StreamedRow]:
        start = block[0][0]
        order = list(range(len(block)))
        random.Random(f"{self.seed} {share} {astuple(start)}").shuffle(order)
        for emitted, index in enumerate(order[skipped:], start=skipped + 1):
            yield StreamedRow(block[index][1], share, replace(start, emitted=emitted))

    def _read(self, share: int, shares: int, start: Position) -> Iterator[tuple[Position, dict[str, Any]]]:
        """Rows of a share, pass by pass, and where they stand."""
        position = replace(start, emitted=0)
        while True:
            is_empty = position == Position(position.epoch)
            own = self._shards(position.epoch, share, shares)
            by_rows = self.dataset.num_shards < shares
            for place in range(position.shard, len(own)):
                for row in self._rows_of_shard(own[place], position.row):
                    if not by_rows or position.count % shares == share:
                        is_empty = False
                        yield position, self._converted(row, own[place], position.row)
                    position = replace(position, row=position.row + 1, count=position.count + 1)
                position = replace(position, shard=place + 1, row=0)
            if is_empty:
                raise ValueError(f"{self.source}: no rows for {share + 1} of {shares} processes and workers")
            position = Position(position.epoch + 1)

    def _shards(self, epoch: int, share: int, shares: int) -> list[int]:
        """The files that a share reads in a pass; all, of which it keeps a part of the rows, if they are too few."""
        number = self.dataset.num_shards
        order = random.Random(f"{self.seed} {epoch}").sample(range(number), number)
        return order if number < shares else order[(share + epoch) % shares :: shares]

    def _rows_of_shard(self, shard: int, skipped: int) -> Iterator[Mapping[str, Any]]:
        rows = self.dataset.shard(self.dataset.num_shards, shard)
        return _rows_of(rows.skip(skipped) if skipped else rows)

    def _converted(self, row: Mapping[str, Any], shard: int, number: int) -> dict[str, Any]:
        return dict(row) if self.convert is None else self.convert(row, f"file {shard}, row {number}")


def _rows_of(dataset: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """The rows of a data set, all of them in every worker: `iter(dataset)` would share them once more."""
    for batch in dataset.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}
