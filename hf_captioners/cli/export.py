"""`hf-captioners export`: a captioner for ONNX Runtime or OpenVINO, as a folder that captions like the captioner's own.

stdout has one JSON line: `{"out_dir", "encoder_bytes", "decoder_bytes"}` and the bytes of other graphs. Exit status
0, or 2 if the captioner cannot be exported.
"""

import argparse
import contextlib
import json
import sys
from pathlib import Path

from .common import add_trust_option, mistakes
from .export_quality import add_quality_options, quality_check, rows_to_compare

FORMATS = ("onnx", "openvino")  # these three as in export.writing, which is too much for `--help`
INPUTS = ("pixels", "features")
FORMS = ("loop", "unrolled")

_EPILOG = """\
examples:
  hf-captioners export onnx runs/mine --out runs/mine/onnx
  hf-captioners export onnx runs/mine --out small --int8 --annotations dataset_karpathy.json --image-root images
  hf-captioners export onnx runs/mine --out whole --greedy-graph
  hf-captioners export openvino runs/mine --out runs/mine/openvino
  hf-captioners caption photos/ --model runs/mine/onnx"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "export",
        help="export a captioner to ONNX or OpenVINO",
        description="Export a captioner to ONNX or OpenVINO: graphs in a folder, which every verb and pipeline() take "
        "in the place of the captioner's own, with every way of decoding.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("format", choices=FORMATS, help="the format")
    parser.add_argument("model", metavar="MODEL", help="folder or Hub name of a captioner")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument(
        "--int8", action="store_true", help="8-bit weights: smaller and faster on CPUs; a caption can differ"
    )
    parser.add_argument(
        "--bf16",
        action="store_true",
        help="of OpenVINO: compute in bfloat16 on processors that have it, else in float32; a caption can differ",
    )
    parser.add_argument(
        "--input", choices=INPUTS, help="what the graphs take: pictures, or cached features (what the captioner sees)"
    )
    parser.add_argument(
        "--greedy-graph",
        nargs="?",
        const="loop",
        choices=FORMS,
        help="also write greedy.onnx, one graph from pictures to words; unrolled: without an ONNX Loop",
    )
    add_quality_options(parser)
    add_trust_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Export the captioner; returns the exit status."""
    from ..extras import of_extra
    from .captioners import load_captioners

    # stdout is for the result, whatever a library has to say
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr), of_extra(args.format):
        from ..export.writing import export_captioner

        rows = rows_to_compare(args)
        lossy = "" if args.force else " ".join(["--int8"] * args.int8 + ["--bf16"] * args.bf16)
        model, processor = load_captioners([args.model], "cpu", "float32", args.trust_remote_code)
        report = export_captioner(
            model, processor, args.out, args.format, image_input=args.input, int8=args.int8, bf16=args.bf16,
            greedy=args.greedy_graph, accept=quality_check(rows, model, processor, lossy),
        )  # fmt: skip
    sizes = {f"{name}_bytes": count for name, count in report.num_bytes.items()}
    print(json.dumps({"out_dir": str(args.out), **sizes}))
    return 0
