"""`hf-captioners regions`: what the bottom-up detector finds in a picture, as JSON and drawn over the picture.

stdout has a JSON line per region: object, attribute, their probabilities, and boxes in pixels of the picture. Exit
status 0, or 2 if the picture or the detector cannot be used.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_trust_option, mistakes, positive

if TYPE_CHECKING:
    from ..inference.detect_regions import RegionDetector

PRECISIONS = ("float32", "bfloat16", "float16")

_EPILOG = """\
examples:
  hf-captioners regions photo.jpg --detector bottom-up --out regions.png
  hf-captioners regions photo.jpg --detector bottom-up --max-regions 36 | head -5"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "regions",
        help="show the regions that a detector finds in a picture",
        description="Find the regions of a picture with the bottom-up detector: one JSON line per region, in the "
        "detector's order, and with --out the picture with boxes and names.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("picture", metavar="PICTURE", help="a file or an http(s) URL")
    parser.add_argument("--detector", required=True, metavar="MODEL", help="folder or Hub name of a bottom_up detector")
    parser.add_argument("--out", type=Path, metavar="FILE", help="picture to write, .png or .jpg")
    parser.add_argument(
        "--draw", type=positive, default=12, metavar="N", help="boxes to draw, the surest (%(default)s)"
    )
    parser.add_argument("--font", type=Path, metavar="FILE", help="TrueType file, for names that the usual font lacks")
    add_detector_options(parser)
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add_trust_option(parser)
    parser.set_defaults(run=run)
    return parser


def add_detector_options(group: argparse._ActionsContainer) -> None:
    """`--min-regions`, `--max-regions`, `--max-proposals` and `--res5-dtype`: how a detector runs."""
    group.add_argument("--min-regions", type=positive, metavar="N", help="of each picture (the detector's)")
    group.add_argument("--max-regions", type=positive, metavar="N", help="of each picture (the detector's)")
    group.add_argument(
        "--max-proposals", type=positive, metavar="N", help="fewer than the detector's: faster, other regions"
    )
    group.add_argument("--res5-dtype", choices=PRECISIONS, help="bfloat16: faster, features differ by 0.2 %%")


def load_detector(args: argparse.Namespace) -> RegionDetector:
    """The detector of `--detector`, with what [`add_detector_options`] says; ValueError if there is none."""
    from transformers.utils import logging

    from ..inference.detect_regions import RegionDetector

    logging.disable_progress_bar()
    if not Path(args.detector).is_dir() and args.detector.strip("./").count("/") != 1:
        raise ValueError(f"--detector {args.detector}: no such folder")
    names = ("min_regions", "max_regions", "max_proposals", "res5_dtype")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    return RegionDetector.from_pretrained(args.detector, args.device, args.trust_remote_code, **changes)


def run(args: argparse.Namespace) -> int:
    """Find the regions; returns the exit status."""
    from ..data.printable import printable_json

    # stdout is for the regions, whatever a library has to say
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        records = _find(args)
    for record in records:
        print(printable_json(record))
    return 0


def _find(args: argparse.Namespace) -> list[dict[str, Any]]:
    from ..modeling.captioner_image_io import open_image
    from ..reports.region_images import check_suffix, draw_best, save_regions

    if args.out is not None:
        check_suffix(args.out)
    image = open_image(args.picture)
    records = load_detector(args)(image).records()
    if args.out is not None:
        save_regions(draw_best(image, records, args.draw, args.font), args.out)
    return records
