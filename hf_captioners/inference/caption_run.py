"""A captioning run on disk: captions of any number of images, which goes on where it was stopped.

`captions.jsonl` has a record per image, in the order of the images. Beside it `captions.jsonl.run/` holds

- `settings.json`: what the captions were made with; a run with another model or other options is refused;
- `part-00000-of-00002/` of each process, if there are several: `records.jsonl`, each with its `position`; `merge_parts`
  joins them. The part of a single process has its records in `captions.jsonl` itself;
- in each part `retried.jsonl`, the records of images that had failed and were tried again, until they take the old
  ones' places; and `finished.json`, the summary of a run that has come to its end.

A record is appended when it is there, so that `kill -9` loses the images of the batches in flight and nothing else.
An image that is named twice has one record, in the place where it was named first.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import logging
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..data.files import locked, write_whole
from ..data.json_lines import JsonLines, NameSet, read_json_lines
from .captioning import CaptionRecord, name_of
from .tally import Tally

logger = logging.getLogger(__name__)

_NAME, _WEIGHTS = "model_name", "weights_sha256"
_PART = "part-{:05d}-of-{:05d}"


class RunError(ValueError):
    """A run that cannot be gone on with, or whose parts cannot be merged; the message says why."""


@dataclass(frozen=True)
class Share:
    """Part of the work: every `number`-th source, beginning with `index`.

    Args:
        index (`int`, defaults to 0): of the process.
        number (`int`, defaults to 1): of processes.
    """

    index: int = 0
    number: int = 1

    def of(self, sources: Iterable[Any]) -> Iterator[tuple[int, Any]]:
        """The process's sources with their places among all."""
        return ((place, source) for place, source in enumerate(sources) if self.has(place))

    def has(self, place: int) -> bool:
        """Tell whether the source in a place, counted from 0, is the process's."""
        return place % self.number == self.index


class CaptionRun:
    """Records of a run, of one process; a context manager that holds the lock of its part.

    Args:
        path (`Path`): the file of records, `captions.jsonl`.
        settings (`Mapping[str, Any]`): what captions depend on: model, options and the like, JSON values by name.
            `model_name`, which they do not depend on, is for messages about `weights_sha256`.
        share ([`Share`], *optional*): of several processes, this one's.
        retry_failed (`bool`, defaults to `False`): also try the images again that have an `error`.

    Attributes:
        tally ([`Tally`]): counts of this run.

    Raises:
        RunError: the file was not written by such a run, or with other settings, or by another number of processes.
        BlockingIOError: another process writes it.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from hf_captioners.inference.caption_run import CaptionRun
    >>> path = Path(tempfile.mkdtemp(), "captions.jsonl")
    >>> rows = [{"image": "a.jpg"}, {"image": "b.jpg"}]
    >>> for _ in range(2):
    ...     with CaptionRun(path, {"model": "mine"}) as run:
    ...         for row in run.remaining((0, place, row) for place, row in enumerate(rows)):
    ...             _ = run.add({**row, "caption": "a dog"})
    ...         _ = run.finish()
    ...     print(run.tally.captioned, run.tally.skipped)
    2 0
    0 2

    ```
    """

    def __init__(
        self, path: Path, settings: Mapping[str, Any], share: Share | None = None, retry_failed: bool = False
    ) -> None:
        self.path, self.share, self.retry_failed = path, share or Share(), retry_failed
        self.tally = Tally()
        self.state = state_of(path)
        self._check(dict(settings))
        self._part = self.state / _PART.format(self.share.index, self.share.number)
        self._records = path if self.share.number == 1 else self._part / "records.jsonl"
        self._retried = self._part / "retried.jsonl"
        self._positions: deque[tuple[Any, tuple[int, int]]] = deque()  # of the images in flight
        self._closing = contextlib.ExitStack()

    def _check(self, settings: dict[str, Any]) -> None:
        """Compare with what is on the disk, and write it down if nothing is."""
        file = self.state / "settings.json"
        settings = json.loads(json.dumps(settings, sort_keys=True, default=str))
        if not file.exists():
            if self.path.exists():
                raise RunError(f"{self.path} is there, and not from such a run; give another name.")
            self.state.mkdir(parents=True, exist_ok=True)
            write_whole(file, lambda temporary: temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8"))
        earlier = settings_of(self.path)
        names = sorted(name for name in {*settings, *earlier} - {_NAME} if settings.get(name) != earlier.get(name))
        if names:
            changes = ", ".join(f"{_said(name, earlier)} and now {_value(name, settings)}" for name in names)
            raise RunError(f"{self.path} was made with {changes}; go on with the same, or give another name.")
        parts = {part.name.rpartition("-")[2] for part in self.state.glob("part-*")}
        if parts - {f"{self.share.number:05d}"}:
            number = int(next(iter(parts)))
            raise RunError(
                f"{self.path} was begun with {number} process(es); go on with as many, not {self.share.number}."
            )

    # -- the work ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> CaptionRun:
        self._part.mkdir(exist_ok=True)
        self._closing.enter_context(locked(self._part))
        (self._part / "finished.json").unlink(missing_ok=True)
        self._replace_retried()
        self._lines = self._closing.enter_context(JsonLines(self._records))
        self._named = NameSet()
        own = NameSet(map(identity, self._read()))
        self._done = NameSet(map(identity, self.records()))
        self._errors = NameSet(identity(record) for record in self._read() if "error" in record)
        errors = (identity(record) for record in self._merged() if "error" in record)
        self._errors_before = NameSet(name for name in errors if name not in own)
        self._again = self._closing.enter_context(JsonLines(self._retried)) if self.retry_failed else None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closing.close()

    def _read(self) -> Iterator[dict[str, Any]]:
        return read_json_lines(self._records) if self._records.exists() else iter(())

    def _merged(self) -> Iterator[dict[str, Any]]:
        """Records that an earlier run of several processes has merged."""
        return read_json_lines(self.path) if self.share.number > 1 and self.path.exists() else iter(())

    def records(self) -> Iterator[dict[str, Any]]:
        """Read the records that are there, of earlier runs."""
        return itertools.chain(self._read(), self._merged())

    def wants(self, name: Any) -> bool:
        """Tell whether the image of this name has to be captioned.

        Args:
            name (`int` or `str`): `image_id`, or file or address.
        """
        return name not in self._done or (self.retry_failed and (name in self._errors or name in self._errors_before))

    @property
    def done(self) -> int:
        """Number of images that need not be captioned any more."""
        again = len(self._errors) + len(self._errors_before) if self.retry_failed else 0
        return len(self._done) - again

    def remaining(self, rows: Iterable[tuple[int, int, Mapping[str, Any]]]) -> Iterator[Mapping[str, Any]]:
        """The rows that have to be captioned.

        Args:
            rows (`Iterable`): a row with its place: of the source, and within it.

        Yields:
            `Mapping`: a row.
        """
        for source, place, row in rows:
            name = identity(name_of(row))
            if not self._named.add(name):
                self.tally.repeated += 1
            elif self.wants(name):
                self._positions.append((name, (source, place)))
                yield row
            else:
                self.tally.skipped += 1

    def add(self, record: CaptionRecord | Mapping[str, Any]) -> int:
        """Write the record of the next of the [`remaining`] rows.

        Returns:
            `int`: the place of the row's source.

        Raises:
            OSError: the disk is full, or the like.
        """
        name, position = self._positions.popleft()
        if identity(record) != name:
            raise RunError(f"a record of {identity(record)!r} in the place of {name!r}")
        self.tally.add(record)
        if self.share.number > 1:
            record = {"position": position, **record}
        lines = self._again if self._again is not None and name in self._errors else self._lines
        lines.append(record)
        return position[0]

    def finish(self) -> dict[str, Any]:
        """Put records of images that were tried again into their places, and write the summary.

        Returns:
            `dict`: see [`Tally.summary`].
        """
        self._closing.close()
        with locked(self._part):
            self._replace_retried()
            errors = sum("error" in record for record in self._read())
            self.tally.failed_before = errors - self.tally.failed
            summary = self.tally.summary()
            text = json.dumps(summary, indent=1)
            write_whole(self._part / "finished.json", lambda file: file.write_text(text, encoding="utf-8"))
        return summary

    def _replace_retried(self) -> None:
        """Records of a second try in the places of the first one's."""
        if not self._retried.exists():
            return
        with JsonLines(self._records), JsonLines(self._retried):
            pass  # lines without an end are cut off
        retried = {identity(record): record for record in read_json_lines(self._retried)}
        if retried:
            records = (retried.get(identity(record), record) for record in self._read())
            write_whole(self._records, lambda file: _write(file, records))
        self._retried.unlink()


def state_of(path: Path) -> Path:
    """The folder beside a file of records that has the state of its run."""
    return path.with_name(f"{path.name}.run")


def settings_of(path: Path) -> dict[str, Any]:
    """Read what the captions of a file of records are made with; nothing if there is no such run.

    Raises:
        RunError: the run's file of settings is damaged.
    """
    file = state_of(path) / "settings.json"
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except (TypeError, ValueError) as error:
        raise RunError(f"{file}: not JSON: {error}") from error


def _said(name: str, settings: Mapping[str, Any]) -> str:
    return f"{'model' if name == _WEIGHTS else name} {_value(name, settings)}"


def _value(name: str, settings: Mapping[str, Any]) -> str:
    """A setting for a message: a model by its name, a digest by its beginning."""
    value = settings.get(name)
    if not name.endswith("_sha256") or value is None:
        return repr(value)
    digest = f"{value[:12]}…"
    return digest if name != _WEIGHTS else f"{settings.get(_NAME, 'of no known name')} (weights {digest})"


def identity(record: Mapping[str, Any]) -> Any:
    """Name of the image that a record is of: its `image_id`, or its file or address."""
    return record["image_id"] if "image_id" in record else record.get("image")


def _write(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with JsonLines(file) as lines:
        for record in records:
            lines.append(record)


# --- several processes ------------------------------------------------------------------------------------------------


def merge_parts(path: Path) -> tuple[int, int]:
    """Join the parts of several processes into the file of records, in the order of one process.

    Args:
        path (`Path`): the file, `captions.jsonl`; its parts are removed. Records of an earlier merge stay in front.

    Returns:
        `tuple[int, int]`: how many records it has, and how many of them have an `error`. An image that several
            processes have captioned has one.

    Raises:
        RunError: there are no parts, or a part is missing or not finished.
    """
    parts = sorted(state_of(path).glob("part-*"))
    number = int(parts[0].name.rpartition("-")[2]) if parts else 0
    if number < 2:
        raise RunError(f"{path} has no parts of several processes in {state_of(path)}.")
    expected = [state_of(path) / _PART.format(index, number) for index in range(number)]
    unfinished = [part.name for part in expected if not (part / "finished.json").exists()]
    if unfinished:
        raise RunError(f"{path}: not finished: {', '.join(unfinished)}; start the run again, it goes on where it was.")
    files = [_in_order(read_json_lines(part / "records.jsonl")) for part in expected]
    new: dict[Any, dict[str, Any]] = {}
    count = failed = repeated = 0
    for record in heapq.merge(*files, key=lambda record: record["position"]):
        name = identity(record)
        repeated += name in new
        new.setdefault(name, {field: value for field, value in record.items() if field != "position"})

    def merged() -> Iterator[dict[str, Any]]:
        nonlocal count, failed
        earlier = read_json_lines(path) if path.exists() else ()  # of an earlier merge, in whose places retries come
        for record in itertools.chain((new.pop(identity(old), old) for old in earlier), new.values()):
            count += 1
            failed += "error" in record
            yield record

    write_whole(path, lambda file: _write(file, merged()))
    for part in expected:
        shutil.rmtree(part)
    if repeated:
        logger.warning("%s: %d images were named twice, for several processes; each has one record", path, repeated)
    return count, failed


def _in_order(records: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by position; they are out of order where sources came to a folder between two runs."""
    return sorted(records, key=lambda record: record["position"])
