"""`hf-captioners export --annotations`: scores of an export's captions beside the captioner's own."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .common import UsageError, refuse_unread

MOST_LOST = 1.0  # CIDEr-D points that an export in less than float32 may lose, of 100 * CIDEr-D


def add_quality_options(parser: argparse._ActionsContainer) -> None:
    """`--annotations`, `--image-root`, `--split`, `--limit` and `--force`."""
    parser.add_argument(
        "--annotations",
        metavar="PATH",
        help="captioned pictures, in any layout that training reads: both are scored on them, and an --int8 or --bf16 "
        f"export that loses more than {MOST_LOST:g} point of CIDEr-D is refused",
    )
    parser.add_argument("--image-root", metavar="DIR", help="folder of their pictures")
    parser.add_argument("--split", metavar="NAME", help="of them (default: val, of a folder validation if it has that)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first pictures")
    parser.add_argument("--force", action="store_true", help="write the export whatever it loses")


def rows_to_compare(args: argparse.Namespace) -> Any:
    """Captioned pictures of the options; `None` without `--annotations`.

    Raises:
        UsageError: options without `--annotations`, or too few pictures.
    """
    if args.annotations is None:
        given = {name: getattr(args, name) is not None for name in ("image_root", "split", "limit")}
        given["force"] = args.force
        refuse_unread("without --annotations nothing is compared", **given)
        return None
    is_folder = Path(args.annotations).is_dir()
    if args.image_root is None and not is_folder:
        raise UsageError("--annotations: give --image-root, the folder of its pictures")
    from ..data.captions.load import load_captions

    has_validation = (Path(args.annotations) / "validation").is_dir()
    usual = ("validation" if has_validation else None) if is_folder else "val"
    data: Any = load_captions(args.annotations, args.image_root, args.split or usual)
    rows = data.select(range(min(len(data), args.limit or len(data))))
    if len(rows) < 2:
        raise UsageError(f"--annotations: {len(rows)} pictures are too few for CIDEr-D")
    return rows


def quality_check(rows: Any, model: Any, processor: Any, lossy: str) -> Callable[[Path], None] | None:
    """Make what compares an export in a folder with its captioner; see [`compare`]. `None` without rows.

    What it makes raises a `UsageError` too if this processor computes in float32 what shall be scored in bfloat16.
    """
    if rows is None:
        return None

    def check(folder: Path) -> None:
        from ..export.runtime import ExportedCaptioner, computes_in_bfloat16

        exported = ExportedCaptioner.from_pretrained(folder)
        if "--bf16" in lossy and not computes_in_bfloat16(exported):
            raise UsageError(
                "--bf16: this processor has no bfloat16, so that captions can be scored in float32 alone; --force "
                "writes it anyway"
            )
        compare(rows, [model, exported], processor, lossy)

    return check


def compare(rows: Any, captioners: Sequence[Any], processor: Any, lossy: str = "") -> dict[str, float]:
    """Score captions of a captioner and of its export, and say both in a line on stderr.

    Args:
        rows (`datasets.Dataset`): with `captions`, and `image` or what else the captioner looks at.
        captioners (`Sequence`): the captioner, and the export.
        processor (`ProcessorMixin`): of both.
        lossy (`str`, defaults to `""`): options that make a loss above [`MOST_LOST`] an error, as `"--int8"`; none.

    Returns:
        `dict[str, float]`: `cider_d` and `exported_cider_d`, 100 times CIDEr-D; `same`, the share of equal captions.

    Raises:
        UsageError: more is lost; a picture cannot be captioned.
    """
    from ..inference.captioning import caption_rows
    from ..metrics.cider.cider import cider_d

    written = []
    for captioner in captioners:
        records = list(caption_rows(captioner, processor, rows))
        failed = next((record["error"] for record in records if "error" in record), None)
        if failed is not None:
            raise UsageError(f"--annotations: {failed}")
        written.append([record["caption"] for record in records])
    references = list(rows["captions"])
    scores = [100 * cider_d(captions, references).corpus["cider_d"] for captions in written]
    same = sum(one == other for one, other in zip(*written, strict=True)) / len(references)
    result = {"cider_d": scores[0], "exported_cider_d": scores[1], "same": same}
    print(json.dumps({name: round(value, 4) for name, value in result.items()}), file=sys.stderr)
    if lossy and scores[0] - scores[1] > MOST_LOST:
        raise UsageError(
            f"{lossy} loses {scores[0] - scores[1]:.2f} points of CIDEr-D on {len(references)} pictures "
            f"({scores[0]:.2f} to {scores[1]:.2f}), more than {MOST_LOST:g}; --force writes it anyway"
        )
    return result
