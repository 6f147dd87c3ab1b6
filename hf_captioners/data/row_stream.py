"""Rows that are read as they go: an endless stream for a trainer, shared by processes and workers, and resumable.

1. A pass reads each file (shard) of the data once, in an order that seed and pass say. Processes and their workers
   share the files; where there are fewer files than workers, each reads all of them and keeps its part of the rows.
   In a pass every row is read once, by one of them.
2. Rows are shuffled in blocks of `buffer_size`, by seed and place: a block is the same whenever it is read.
3. A row says after which rows it comes (`position`), so that the reading of its share can go on there: the file is read
   from its beginning without decoding, and nothing is lost or repeated.
4. The stream does not end: a trainer's `max_steps` ends it. Its passes are the epochs that choices depend on.
5. Rows that follow each other in a file and have the same id are one picture with several captions. Those of one
   picture that lie apart stay rows of their own, and the log says so.
6. Rows that cannot be used are an error, or each process and worker leaves out, logs and counts its own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import astuple, dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from .bad_rows import BadRows
from .printable import printable

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

BUFFER_SIZE = 1000
_REMEMBERED = 100_000  # ids, to see whether rows of one picture lie apart
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
        image_id (`str`, *optional*): column of the ids of pictures, by which rows are put together; `convert` makes
            rows with `captions` then.
        bad_rows ([`BadRows`], *optional*): gets rows of which `convert` raises ValueError; by default they are errors.

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
        image_id: str | None = None,
        bad_rows: BadRows | None = None,
    ) -> None:
        if buffer_size < 1:
            raise ValueError(f"buffer_size must be at least 1, not {buffer_size}")
        self.dataset, self.convert, self.source = dataset, convert, source
        self.seed, self.buffer_size = seed, buffer_size
        self.image_id, self.bad_rows = image_id, bad_rows or BadRows()
        self._apart = _LookOut(source)
        self._left_out = 0  # rows of this pass
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

    def passage(self) -> Iterator[dict[str, Any]]:
        """The rows of a single pass in the order of the files, converted but not put together.

        Yields:
            `dict`: of rows that can be used; who trains on the others hears of them.
        """
        bad_rows = BadRows("skip" if self.bad_rows.skips else "error", log=False)
        for number, row in enumerate(_rows_of(self.dataset)):
            try:
                yield _converted(row, self.convert, f"row {number}")
            except ValueError as error:
                bad_rows.add(error)

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
                for _, group in groupby(self._rows_of_shard(own[place], position.row), self._picture):
                    is_own = not by_rows or position.count % shares == share
                    size, row = self._joined(group, f"file {own[place]}", position.row, is_own)
                    if row is not None:
                        is_empty = False
                        yield position, row
                    position = replace(position, row=position.row + size, count=position.count + 1)
                position = replace(position, shard=place + 1, row=0)
            self._conclude(f"pass {position.epoch + 1}, part {share + 1} of {shares}")
            if is_empty:
                raise ValueError(f"{self.source}: no rows for {share + 1} of {shares} processes and workers")
            position = Position(position.epoch + 1)
            self._apart = _LookOut(self.source, self._apart.has_warned)

    def _shards(self, epoch: int, share: int, shares: int) -> list[int]:
        """The files that a share reads in a pass; all, of which it keeps a part of the rows, if they are too few."""
        number = self.dataset.num_shards
        order = random.Random(f"{self.seed} {epoch}").sample(range(number), number)
        return order if number < shares else order[(share + epoch) % shares :: shares]

    def _rows_of_shard(self, shard: int, skipped: int) -> Iterator[Mapping[str, Any]]:
        rows = self.dataset.shard(self.dataset.num_shards, shard)
        return _rows_of(rows.skip(skipped) if skipped else rows)

    def _conclude(self, what: str) -> None:
        if self._left_out:
            logger.warning("%s: %s: %d rows left out that cannot be used", self.source, what, self._left_out)
        self._left_out = 0

    def _picture(self, row: Mapping[str, Any]) -> object:
        """The id by which rows are of one picture; of a row without one, nothing that equals another."""
        image_id = None if self.image_id is None else row[self.image_id]
        if not isinstance(image_id, (int, str)):
            return object()
        self._apart.see(image_id)
        return image_id

    def _joined(
        self, rows: Iterable[Mapping[str, Any]], file: str, number: int, is_own: bool
    ) -> tuple[int, dict[str, Any] | None]:
        """Number of the rows of a picture, and one row of those of this share that can be used."""
        size, joined = 0, None
        for size, row in enumerate(rows, start=1):
            if not is_own:
                continue
            try:
                converted = _converted(row, self.convert, f"{file}, row {number + size - 1}")
            except ValueError as error:
                self.bad_rows.add(error)
                self._left_out += 1
                continue
            if joined is None:
                joined = converted
            else:
                joined["captions"] = [*joined["captions"], *converted["captions"]]
        return size, joined


class _LookOut:
    """A look-out for rows of one picture that lie apart, among the first ids of a pass.

    Args:
        source (`str`): name of the data.
        has_warned (`bool`): whether the log says so already.
    """

    def __init__(self, source: str, has_warned: bool = False) -> None:
        self.source, self.has_warned = source, has_warned
        self._ids: set[Any] = set()
        self._last: Any = None

    def see(self, image_id: Any) -> None:
        """Note the id of a row."""
        if self.has_warned or image_id == self._last:
            return
        self._last = image_id
        if image_id in self._ids:
            self.has_warned = True
            logger.warning(
                "%s: rows of image %s do not follow each other, and are several pictures to a stream; sort the rows "
                "by their ids, or read them without --streaming, to have all captions of a picture together",
                self.source,
                printable(repr(image_id)),
            )
        elif len(self._ids) < _REMEMBERED:
            self._ids.add(image_id)


def _converted(row: Mapping[str, Any], convert: Convert | None, place: str) -> dict[str, Any]:
    return dict(row) if convert is None else convert(row, place)


def _rows_of(dataset: datasets.IterableDataset) -> Iterator[dict[str, Any]]:
    """The rows of a data set, all of them in every worker: `iter(dataset)` would share them once more."""
    for batch in dataset.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}
