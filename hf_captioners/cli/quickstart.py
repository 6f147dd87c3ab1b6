"""`hf-captioners quickstart`: train and use a captioner on pictures that the package draws."""

import argparse

from .common import mistakes, needed, positive

NUM_SHOWN = 12


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "quickstart",
        help="train a small captioner on drawn pictures and caption unseen ones, without any download",
        description="Draw a captioned world, train a small ExpansionNet v2 on it end to end, caption unseen pictures, "
        "count how many captions name shape and colour right, and write a contact sheet.",
    )
    parser.add_argument("--out", default="quickstart", metavar="DIR", help="folder to write to (default: quickstart)")
    parser.add_argument(
        "--num-train", type=positive, default=3500, metavar="N", help="training pictures (default: 3500)"
    )
    parser.add_argument("--epochs", type=positive, default=9, metavar="N", help="passes over them (default: 9)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the world and the training (default: 0)")
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the quickstart and print what it found; returns the exit status."""
    with mistakes(OSError, ValueError), needed("train"):
        from ..demo.quickstart import quickstart

        result = quickstart(args.out, num_train=args.num_train, epochs=args.epochs, seed=args.seed)
    for unseen in result.unseen[:NUM_SHOWN]:
        print(f"{unseen.image.name}: {unseen.caption}  [{'right' if unseen.right else 'WRONG'}]")
        print(f"{'':10}said of it: {' | '.join(unseen.references[:2])}")
    right, total = sum(unseen.right for unseen in result.unseen), len(result.unseen)
    print(f"\nshape and colour right in {right} of {total} captions of unseen pictures ({result.accuracy:.1%})")
    print(f"captioner: {result.captioner}   contact sheet: {result.sheet}   {result.seconds:.0f} s")
    return 0
