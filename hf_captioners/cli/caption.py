"""`hf-captioners caption`: captions for picture files, and for folders and archives of them.

stdout has one JSON object per picture and line, in UTF-8, in the order of the arguments and of the names in a folder:
`{"image": path, "caption": text}` or `{"image": path, "error": reason}`.
With `--num-return-sequences` there is a list, `captions`.
Records of a data set (`--annotations`) have an `image_id`. Progress and failed pictures go to stderr.
Exit status 0 if every picture has a caption, 1 if some failed, in this run or before in what `--out` names; 2 if what
was asked for cannot be done, 3 if a disk is full. One of several processes ends with 0 whatever failed, because a
launcher stops the others otherwise; `--merge` tells then.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, cast

from .caption_out import (
    Output,
    add_merge_option,
    add_out_options,
    check_out_options,
    merge,
    open_output,
    share_of_process,
    tell,
)
from .caption_sidecars import open_sidecars
from .caption_sources import add_source_options, open_sources
from .caption_tars import check_tars, open_tars
from .captioners import add_family_options, add_speed_options, load_captioner_of, make_faster
from .common import MODEL_HELP, UsageError, add_model_options, mistakes, positive, print_error
from .image_options import add_detector_option, add_retrieval_options, use_detector, use_retrieval

_EPILOG = """\
examples:
  hf-captioners caption photo.jpg --model starter        # the folder starter/ of the repository
  hf-captioners caption photos/ cat.png --model expansionnet-v2 > captions.jsonl
  hf-captioners caption photos/ --model Salesforce/blip-image-captioning-base --out captions.jsonl"""

_KEEP_EVERY = 1000  # captions


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "caption",
        help="caption picture files, folders, archives and data sets",
        description="Write one JSON object per picture to stdout. A broken picture is reported; the rest go on.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument("--model", nargs="+", metavar="MODEL", help=MODEL_HELP)
    add_merge_option(work)
    add_model_options(parser)
    add_family_options(parser)
    add_speed_options(parser)
    parser.add_argument("--num-return-sequences", type=positive, metavar="N", help="captions per picture, best first")
    parser.add_argument(
        "--generation-kwargs",
        metavar="JSON",
        type=generation_options,
        default={},
        help="further options of generate, as '{\"num_inference_steps\": 20}'",
    )
    add_source_options(parser)
    add_detector_option(parser)
    add_retrieval_options(parser)
    parser.add_argument(
        "--coco-results", metavar="FILE", type=Path, help="also write the JSON of COCO's test server: image_id, caption"
    )
    add_out_options(parser)
    parser.set_defaults(run=run)
    return parser


def generation_options(text: str) -> dict[str, Any]:
    """Options of `generate` by name, of a JSON object, for argparse."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not an object of options and their values")
    return options


def run(args: argparse.Namespace) -> int:
    """Caption the pictures; returns the exit status."""
    if args.merge is not None:
        return merge(args.merge)
    check_out_options(args)
    results = None if args.coco_results is None else _CocoResults(args.coco_results, args.num_return_sequences)
    try:
        with mistakes(OSError):
            failed = _write_records(args, results)
            if results is not None:
                results.write()
    except (BrokenPipeError, KeyboardInterrupt, UsageError):
        if results is not None:
            results.keep()
        raise
    return 1 if failed else 0


class _CocoResults:
    """The captions by image id, for COCO's test server.

    Pictures without an `image_id` must end in it, as COCO's own do: `COCO_test2014_000000000042.jpg` is image 42.
    """

    def __init__(self, path: Path, num_return_sequences: int | None) -> None:
        if num_return_sequences not in (None, 1):
            raise UsageError("--coco-results takes one caption per picture, without --num-return-sequences")
        if not path.parent.is_dir():
            raise UsageError(f"--coco-results {path}: no such folder")
        self.path = path
        self.part = path.with_name(f"{path.name}.part")
        self.names: dict[int, str] = {}
        self.captions: dict[int, str] = {}

    def check(self, names: Iterable[Any]) -> None:
        """Refuse, before any work, names without an id and ids that occur twice."""
        for name in map(str, names):
            image_id = self.image_id(name)
            if self.names.setdefault(image_id, name) != name:
                raise UsageError(f"--coco-results: {self.names[image_id]} and {name} are both image {image_id}")

    @staticmethod
    def image_id(name: str) -> int:
        """The number that a file name ends in."""
        digits = re.search(r"(\d+)$", PurePath(name).stem)
        if digits is None:
            raise UsageError(f"--coco-results: {name} has no image id at its end, as in COCO_val2014_000000000042.jpg")
        return int(digits[1])

    def add(self, record: Mapping[str, Any]) -> None:
        """Take a record that has a caption; what is there so far is kept beside the file now and then."""
        image_id = record["image_id"] if "image_id" in record else self.image_id(record["image"])
        captions = record.get("captions")
        self.captions[image_id] = captions[0] if captions else record["caption"]
        if len(self.captions) % _KEEP_EVERY == 0:
            self._write(self.part)

    def keep(self) -> None:
        """After an interruption: leave what is there so far beside the file, and say so."""
        with contextlib.suppress(UsageError):  # it was the disk
            if self.captions:
                self._write(self.part)
                print_error("hf-captioners caption", f"{self.part} has the {len(self.captions)} captions so far")

    def write(self) -> None:
        """Write the file, whole."""
        self._write(self.path)
        self.part.unlink(missing_ok=True)

    def _write(self, path: Path) -> None:
        from ..data.files import write_whole

        rows = [{"image_id": image_id, "caption": caption} for image_id, caption in self.captions.items()]
        try:
            write_whole(path, lambda file: file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"--coco-results: {error}") from error


def _write_records(args: argparse.Namespace, results: _CocoResults | None) -> int:
    """Caption what was asked for; returns how many pictures have an error, by which the exit status tells."""
    from ..inference.captioning import caption_rows

    read, count = open_sources(args, None if results is None else results.check)
    sidecars = None if args.sidecar is None else open_sidecars(args)
    if args.write_tar is not None:
        check_tars(args)
    model, processor = _load(args)
    options = {name: getattr(args, name) for name in ("num_beams", "max_new_tokens", "num_return_sequences")}
    options |= args.generation_kwargs
    opened = open_output if args.write_tar is None else open_tars
    with sidecars or opened(args, model, processor, options) as output:
        make_faster(args, model)
        rows = output.rows(read)
        records = caption_rows(model, processor, rows, args.batch_size, **options)
        _write(args, (cast(Mapping[str, Any], record) for record in records), count, output, results)
    tally = output.tally
    return tally.failed + tally.failed_before if share_of_process().number == 1 else 0


def _load(args: argparse.Namespace) -> tuple[Any, Any]:
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for records, whatever a library has to say
        model, processor = load_captioner_of(args)
    with mistakes(ValueError):
        use_detector(model, processor, args.detector, args.trust_remote_code)
        use_retrieval(model, processor, args.retrieval, args.trust_remote_code)
    return model, processor


def _write(
    args: argparse.Namespace,
    records: Iterator[Mapping[str, Any]],
    count: int | None,
    output: Output,
    results: _CocoResults | None,
) -> None:
    """Write the records, and say what was done."""
    import torch
    from tqdm import tqdm

    from ..data.printable import printable
    from ..data.progress import progress

    try:
        bar = progress(records, args.log_every, total=output.remaining(count), unit="picture")
        for record in bar:
            output.write(record)
            if "error" in record:
                bar.set_postfix_str(f"{output.tally.failed} failed", refresh=False)
                tqdm.write(f"hf-captioners caption: {printable(record['error'])}", file=sys.stderr)
            elif results is not None:
                results.add(record)
        tell(output, output.finish(), args.summary)
    except torch.OutOfMemoryError as error:
        raise UsageError("out of memory; use a smaller --batch-size or --num-beams") from error
    except ValueError as error:  # generation options that the model refuses
        raise UsageError(str(error)) from error
