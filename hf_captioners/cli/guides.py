"""`hf-captioners guides`: the sentences that guide SCD-Net's self-critical training, updated between two rounds of it.

stdout has one JSON line. Exit status 0, 2 if what was asked for cannot be done, 3 if a disk is full.
"""

import argparse
import json

from .common import add_trust_option, mistakes

_EPILOG = """\
example:
  hf-captioners caption --model runs/6_scst --annotations dataset.json --features features --out 7_guides.jsonl \\
      --sentences retrieved=retrieved.jsonl previous=4_scst.jsonl
  hf-captioners guides teacher.jsonl 7_guides.jsonl --model runs/6_scst --annotations dataset.json \\
      --out 8_guides.jsonl"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "guides",
        help="update the sentences that guide SCD-Net's self-critical training",
        description="Take a new caption in the place of a guiding sentence where CIDEr-D, with the training captions "
        "as references, finds it strictly better.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("guides", metavar="GUIDES", help="guiding sentences so far, JSON lines")
    parser.add_argument("predictions", metavar="CAPTIONS", help="captions of a newly trained captioner, JSON lines")
    parser.add_argument("--model", required=True, help="folder or Hub name of the captioner, for its words")
    parser.add_argument("--annotations", required=True, metavar="FILE", help="file of captions in any layout")
    parser.add_argument(
        "--split", help="split of the references (default: train+restval of Karpathy's layout, else all)"
    )
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines to write")
    add_trust_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Update the sentences; returns the exit status."""
    from transformers import AutoTokenizer

    from ..data.captions.load import load_captions
    from ..modeling.captioner_trust import load_pretrained
    from ..training.guides import merge_guide_files

    with mistakes(ValueError, OSError):
        rows = load_captions(args.annotations, split=args.split)
        tokenizer = load_pretrained(AutoTokenizer, args.model, args.trust_remote_code)
        number, new = merge_guide_files(args.guides, args.predictions, rows, tokenizer, args.out)
    print(json.dumps({"file": args.out, "images": number, "new": new}))
    return 0
