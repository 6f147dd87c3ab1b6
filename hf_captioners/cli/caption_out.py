"""`hf-captioners caption --out`: captions in a file that a run goes on with, of one process or of several."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .common import UsageError, check_file, mistakes, needed, positive

if TYPE_CHECKING:
    from ..inference.caption_run import CaptionRun, Share
    from ..inference.tally import Tally

_OTHER_FILES = (".json", ".ndjson", ".csv", ".tsv", ".txt", ".parquet", ".zip", ".tar", ".gz")

_HOW = ("retrieval", "sentences", "fast", "backbone_dtype")
_OF_STREAM = ("dataset", "dataset_config", "split", "image_column", "id_column")  # by which its names differ
_DATASETS = ("dataset", "annotations", "data_dir")

Sources: TypeAlias = Callable[[Callable[[Any], bool]], Iterator[Iterator[Mapping[str, Any]]]]
"""Function that gives the rows of each source; it is told by their names which ones are wanted."""


def add_out_options(parser: argparse.ArgumentParser) -> None:
    """`--out` and the options that go with it."""
    group = parser.add_argument_group("a file in the place of stdout, which the same command goes on with")
    group.add_argument(
        "--out",
        metavar="OUT",
        type=Path,
        help="captions.jsonl, whose run is kept in captions.jsonl.run/; or a folder of Parquet files, any other name",
    )
    group.add_argument(
        "--sidecar", metavar="SUFFIX", help="or a file beside each picture: with .txt photos/a.txt of photos/a.jpg"
    )
    group.add_argument(
        "--write-tar",
        nargs="?",
        const=".txt",
        metavar="SUFFIX",
        help="into the folder of --out: the archives of the pictures as tars, with a.txt, or a.SUFFIX, behind a.jpg",
    )
    group.add_argument("--skip-existing", action="store_true", help="leave pictures out that have a file beside them")
    group.add_argument("--retry-failed", action="store_true", help="also caption pictures again that failed before")
    report = parser.add_argument_group("what is told of the work")
    report.add_argument(
        "--log-every", metavar="N", type=positive, help="a line on stderr behind every N pictures, in place of a bar"
    )
    report.add_argument("--summary", metavar="FILE", type=Path, help="write what was done as JSON, with its time")


def add_merge_option(group: argparse._ActionsContainer) -> None:
    """`--merge`, in the place of captioning."""
    group.add_argument(
        "--merge",
        metavar="OUT",
        type=Path,
        help="join the parts of OUT that the processes of `accelerate launch` have written, and stop",
    )


def check_out_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: they do not.
    """
    if args.retry_failed and args.out is None:
        raise UsageError("--retry-failed goes with --out")
    if args.summary is not None:
        check_file("summary", args.summary)
    if args.write_tar is not None and any(vars(args)[name] is not None for name in _DATASETS):
        raise UsageError("--write-tar goes with archives, not with a data set")
    if args.write_tar is not None and (args.out is None or _is_file(args.out)):
        raise UsageError("--write-tar goes with --out FOLDER")
    if args.skip_existing and args.sidecar is None:
        raise UsageError("--skip-existing goes with --sidecar")
    if args.sidecar is not None and (args.out is not None or args.coco_results is not None):
        raise UsageError("--sidecar goes without --out and --coco-results")
    if args.sidecar is not None and any(vars(args)[name] is not None for name in _DATASETS):
        raise UsageError("--sidecar goes with picture files and folders, not with a data set")
    if args.out is None:
        return
    _check_out(args.out)
    if args.coco_results is not None:
        raise UsageError("--coco-results goes with stdout, without --out")


def _check_out(out: Path) -> None:
    if not out.resolve().parent.is_dir():
        raise UsageError(f"--out {out}: expected a file such as captions.jsonl or a folder, in a folder that exists")
    if _is_file(out):
        if out.is_dir():
            raise UsageError(f"--out {out}: expected a file, found a folder")
    elif out.suffix in _OTHER_FILES or out.is_file():
        raise UsageError(f"--out {out}: expected a file such as captions.jsonl, or a folder for Parquet files")
    elif out.is_dir() and any(out.iterdir()) and not _records_of(out).parent.is_dir():
        raise UsageError(f"--out {out} is there, and not from such a run; give another name")


def _is_file(out: Path) -> bool:
    return out.suffix == ".jsonl"


def _records_of(out: Path) -> Path:
    """The file of records of `--out`: itself, or one in a folder of Parquet files."""
    return out if _is_file(out) else out / ".run" / "captions.jsonl"


def merge(path: Path) -> int:
    """Join the parts of several processes; returns the exit status."""
    from ..inference.caption_run import RunError, merge_parts, settings_of

    with mistakes(RunError, OSError, ValueError):
        count, failed = merge_parts(_records_of(path))
        if not _is_file(path) and not settings_of(_records_of(path)).get("write_tar"):
            _write_tables(path)
    print(f"hf-captioners caption: {path}: {count} records, {failed} with an error", file=sys.stderr)
    return 1 if failed else 0


def _write_tables(out: Path) -> None:
    from ..data.json_lines import read_json_lines
    from ..inference.record_tables import write_tables

    with needed():
        write_tables(out, lambda: read_json_lines(_records_of(out)))


class Output:
    """Records on stdout, a line each.

    Args:
        tally ([`Tally`]): counts what is done.
    """

    def __init__(self, tally: "Tally") -> None:
        self.tally = tally

    def __enter__(self) -> "Output":
        return self

    def __exit__(self, *error: Any) -> None:
        """Nothing to close."""

    def remaining(self, count: int | None) -> int | None:
        """Number of pictures that are left of so many; `None` if that is not known."""
        return count

    def rows(self, read: Sources) -> Iterator[Mapping[str, Any]]:
        """The rows to caption."""
        return (row for source in read(lambda name: True) for row in source)

    def write(self, record: Mapping[str, Any]) -> None:
        """Write the record of the next row."""
        from tqdm import tqdm

        from ..data.printable import printable_json

        with tqdm.external_write_mode(file=sys.stdout):
            _write_out(f"{printable_json(record)}\n".encode())
        self.tally.add(record)

    def finish(self) -> str:
        """Come to the end of the run.

        Returns:
            `str`: what to say of where the captions are; nothing of stdout.
        """
        return ""


def _write_out(line: bytes) -> None:
    """Write to stdout, at once; if its disk is full, nothing more is tried there, not even when the process ends."""
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):  # ValueError: a stdout that is no file
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "stdout") from error


class RunOutput(Output):
    """Records in the file of `--out`, of this process's share of the sources.

    Args:
        run ([`CaptionRun`]): the run.
        out (`Path`): of `--out`: the file of the run's records, or a folder.
    """

    def __init__(self, run: "CaptionRun", out: Path) -> None:
        super().__init__(run.tally)
        self.run, self.out = run, out

    def __enter__(self) -> "RunOutput":
        with mistakes(OSError, ValueError):
            self.run.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.run.__exit__(*error)

    def remaining(self, count: int | None) -> int | None:
        return None if count is None or self.run.share.number > 1 else max(count - self.run.done, 0)

    def rows(self, read: Sources) -> Iterator[Mapping[str, Any]]:
        return self.run.remaining(
            (source, place, row)
            for source, rows in self.run.share.of(read(self.run.wants))
            for place, row in enumerate(rows)
        )

    def write(self, record: Mapping[str, Any]) -> None:
        self.run.add(record)

    def finish(self) -> str:
        """Put everything in its place."""
        self.run.finish()
        if self.run.share.number == 1 and not _is_file(self.out):
            _write_tables(self.out)
        return f"{self.out}: "


def tell(output: Output, where: str, summary: Path | None) -> None:
    """Say at the end what was done, on stderr and in the file of `--summary`.

    Args:
        output ([`Output`]): that is finished.
        where (`str`): what its `finish` has returned; of stdout, nothing is said on stderr.
        summary (`Path`, *optional*): the file.
    """
    from ..data.files import write_whole

    if where:
        print(f"hf-captioners caption: {where}{output.tally}", file=sys.stderr)
    if summary is not None:
        text = json.dumps(output.tally.summary(), indent=1)
        write_whole(summary, lambda file: file.write_text(f"{text}\n"))


def open_output(args: argparse.Namespace, model: Any, processor: Any, options: Mapping[str, Any]) -> Output:
    """The output of a run.

    Raises:
        UsageError: the file of `--out` was begun with another model or other options.
    """
    from ..inference.tally import Tally

    if args.out is None:
        return Output(Tally())
    return RunOutput(open_run(args, model, processor, options), args.out)


def open_run(args: argparse.Namespace, model: Any, processor: Any, options: Mapping[str, Any]) -> "CaptionRun":
    """The run of `--out`.

    Raises:
        UsageError: see [`open_output`].
    """
    from ..inference.caption_run import CaptionRun, RunError
    from ..inference.digests import settings_sha256, weights_sha256

    asked = vars(model.config).get("captioning_prompt")
    streamed = _OF_STREAM if args.dataset is not None else ()
    settings = {
        "model_name": " ".join(args.model),
        "weights_sha256": weights_sha256(model),
        "image_processor_sha256": settings_sha256(processor.image_processor),
        "dtype": str(model.dtype),
        **{name: value for name, value in {"prompt": asked, **options}.items() if value is not None},
        **{name: value for name in (*_HOW, *streamed) if (value := vars(args)[name])},
        **({} if args.write_tar is None else {"write_tar": True}),
    }
    with mistakes(RunError, OSError):
        return CaptionRun(_records_of(args.out), settings, share_of_process(), args.retry_failed)


def share_of_process() -> "Share":
    """The share of this process, as `accelerate launch` and `torchrun` tell.

    Processes do not wait for each other, so that a killed one stops none.
    """
    from ..inference.caption_run import Share

    return Share(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))
