"""`hf-captioners caption --out`: captions in a file that a run goes on with, of one process or of several."""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import UsageError, mistakes

if TYPE_CHECKING:
    from ..inference.caption_run import CaptionRun, Share


def add_out_options(parser: argparse.ArgumentParser) -> None:
    """`--out` and the options that go with it."""
    group = parser.add_argument_group("a file in the place of stdout, which the same command goes on with")
    group.add_argument("--out", metavar="FILE", type=Path, help="captions.jsonl; its run is kept in captions.jsonl.run/")
    group.add_argument("--retry-failed", action="store_true", help="also caption pictures again that failed before")
    group.add_argument("--summary", metavar="FILE", type=Path, help="also write what was done as JSON")
    group.add_argument(
        "--merge",
        action="store_true",
        help="join the parts that the processes of `accelerate launch` have written into --out, and stop",
    )


def check_out_options(args: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UsageError: they do not.
    """
    for name in ("retry_failed", "summary", "merge"):
        if args.out is None and getattr(args, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with --out")
    if args.out is None:
        return
    if args.out.is_dir() or not args.out.resolve().parent.is_dir():
        raise UsageError(f"--out {args.out}: expected a file such as captions.jsonl, in a folder that exists")
    if args.coco_results is not None:
        raise UsageError("--coco-results goes with stdout, without --out")


def merge(path: Path) -> int:
    """Join the parts of several processes; returns the exit status."""
    from ..inference.caption_run import RunError, merge_parts

    with mistakes(RunError, OSError, ValueError):
        count = merge_parts(path)
    print(f"hf-captioners caption: {path}: {count} records", file=sys.stderr)
    return 0


def share_of_process() -> "Share":
    """This process's part of the work, as `accelerate launch` and `torchrun` tell it.

    Processes do not wait for each other, so that one which is killed stops no other.
    """
    from ..inference.caption_run import Share

    return Share(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))


def open_run(args: argparse.Namespace, model: Any, processor: Any, options: Mapping[str, Any]) -> "CaptionRun":
    """The run of `--out`.

    Raises:
        UsageError: it was begun with another model or other options.
    """
    from ..inference.caption_run import CaptionRun, RunError
    from ..inference.digests import settings_sha256, weights_sha256

    settings = {
        "weights_sha256": weights_sha256(model),
        "image_processor_sha256": settings_sha256(processor.image_processor),
        "dtype": str(model.dtype),
        **{name: value for name, value in options.items() if value is not None},
    }
    with mistakes(RunError, OSError):
        return CaptionRun(args.out, settings, share_of_process(), args.retry_failed)


def placed_rows(args: argparse.Namespace, run: "CaptionRun") -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """The rows of this process's sources with their places."""
    from ..inference.image_archives import image_rows
    from ..inference.image_files import find_images

    for source, path in run.share.of(find_images(args.paths, args.recursive)):
        for place, row in enumerate(image_rows([path], run.wants, args.image_column)):
            yield source, place, row


def finish(run: "CaptionRun", args: argparse.Namespace) -> None:
    """Close a run that has come to its end, and say what was done."""
    from ..data.files import write_whole

    with mistakes(OSError):
        summary = run.finish()
        line = ", ".join(f"{summary[name]} {name}" for name in ("captioned", "failed", "skipped"))
        rate = f"{summary['seconds']:.0f} s, {summary['images_per_second']:.1f} pictures a second"
        print(f"hf-captioners caption: {args.out}: {line}; {rate}", file=sys.stderr)
        if args.summary is not None:
            write_whole(args.summary, lambda file: file.write_text(f"{json.dumps(summary, indent=1)}\n"))
