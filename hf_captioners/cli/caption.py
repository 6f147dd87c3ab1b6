"""`hf-captioners caption`: captions for picture files and folders of them.

stdout has one JSON object per picture and line, in UTF-8, in the order of the arguments and of the names in a folder:
`{"image": path, "caption": text}` or `{"image": path, "error": reason}`. Progress and failed pictures go to stderr.
Exit status 0 if every picture has a caption, 1 if some failed, 2 if what was asked for cannot be done.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..inference.caption_files import CaptionRecord

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
DTYPES = ("auto", "float32", "bfloat16", "float16")


class _UsageError(Exception):
    """What was asked for cannot be done; the message is for the user."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "caption",
        help="caption picture files and folders",
        description="Write one JSON object per picture to stdout. A broken picture is reported; the rest go on.",
        epilog="example: hf-captioners caption photos/ cat.png --model expansionnet-v2 > captions.jsonl",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a picture, a folder of pictures or an http(s) URL")
    parser.add_argument("--model", required=True, help="folder or Hub name of a captioner")
    parser.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="pictures at a time (%(default)s)")
    parser.add_argument("--num-beams", type=_positive, metavar="N", help="width of the beam search (the model's)")
    parser.add_argument("--max-new-tokens", type=_positive, metavar="N", help="longest caption (the model's)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="precision (auto: as the model was saved)")
    parser.add_argument("--no-recursive", dest="recursive", action="store_false", help="leave sub-folders out")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Caption the pictures; returns the exit status."""
    try:
        failed = _write(*_caption(args))
    except _UsageError as error:
        print(f"hf-captioners caption: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 1 if failed else 0


def _caption(args: argparse.Namespace) -> tuple[Iterator["CaptionRecord"], int]:
    """The records to come and their number."""
    from ..inference.caption_files import IMAGE_SUFFIXES, caption_files, find_images

    # Listed twice, to know the number without keeping a million paths.
    count = sum(1 for _ in find_images(args.paths, args.recursive))
    if not count:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise _UsageError(f"no pictures in {', '.join(args.paths)} (looked for {suffixes})")
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for records, whatever a library has to say
        model, processor = _load(args.model, args.device, args.dtype)
    paths = find_images(args.paths, args.recursive)
    return caption_files(model, processor, paths, args.batch_size, args.num_beams, args.max_new_tokens), count


def _load(name: str, device: str, dtype: str) -> tuple[Any, Any]:
    """The model, ready to caption, and its processor."""
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.utils import logging

    from ..inference.device import choose_device

    logging.disable_progress_bar()
    try:
        target = choose_device(device)
    except ValueError as error:
        raise _UsageError(f"--device: {error}") from error
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise _UsageError(f"--model {name}: no such folder")
    try:
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype)
        processor = AutoProcessor.from_pretrained(name)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        raise _UsageError(f"--model {name} cannot be loaded: {error}") from error
    return model.to(target).eval(), processor


def _write(records: Iterator["CaptionRecord"], count: int) -> int:
    """Writes the records; returns how many pictures failed."""
    import torch
    from tqdm import tqdm

    failed = 0
    try:
        # Without a terminal there is no bar.
        for record in tqdm(records, total=count, unit="picture", file=sys.stderr, disable=None):
            with tqdm.external_write_mode(file=sys.stdout):
                sys.stdout.buffer.write(_json_line(record))
                sys.stdout.buffer.flush()
            if "error" in record:
                failed += 1
                tqdm.write(f"hf-captioners caption: {record['error']}", file=sys.stderr)
    except torch.OutOfMemoryError as error:
        raise _UsageError("out of memory; use a smaller --batch-size or --num-beams") from error
    except ValueError as error:  # generation options that the model refuses
        raise _UsageError(str(error)) from error
    return failed


def _json_line(record: Mapping[str, Any]) -> bytes:
    try:
        return f"{json.dumps(record, ensure_ascii=False)}\n".encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8; JSON can hold it with escapes only
        return f"{json.dumps(record)}\n".encode()
