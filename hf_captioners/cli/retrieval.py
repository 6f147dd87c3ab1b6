"""`hf-captioners retrieval`: sentences of other pictures for a picture, as SCD-Net sees them.

`build` makes a caption retriever of a data set's captions and a CLIP model; `lookup` finds the sentences of all
pictures of a data set once, for training on cached features; `convert` reads those of the authors' code.

stdout has one JSON line at the end; progress goes to stderr. Exit status 0, 1 if pictures could not be read, 2 if
nothing could be done because of what was asked for, 3 if a disk is full.
"""

import argparse
import contextlib
import json
import sys
from typing import Any

from .common import add_trust_option, mistakes, positive

DTYPES = ("float16", "float32")
SEARCHES = ("auto", "exact", "faiss")

_EPILOG = """\
examples:
  hf-captioners retrieval build --annotations dataset_coco.json --clip openai/clip-vit-base-patch32 \\
      --out scdnet/retrieval
  hf-captioners retrieval lookup --retrieval scdnet/retrieval --annotations dataset_coco.json --image-root coco \\
      --out retrieved.jsonl
  hf-captioners train xe --config recipe.yaml --features features --sentences retrieved=retrieved.jsonl"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "retrieval",
        help="find captions of other pictures for a picture, as SCD-Net needs them",
        description="Build a caption retriever, in the folder `retrieval` of a captioner or elsewhere, and look up the "
        "sentences of a data set's pictures.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _add_build(actions)
    _add_lookup(actions)
    _add_convert(actions)
    return parser


def _add_build(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "build",
        help="build a caption retriever",
        description="Embed the different captions of a data set with a CLIP model. Pictures never get their own.",
    )
    _add_dataset(parser, split=None)
    parser.add_argument("--clip", required=True, metavar="MODEL", help="folder or Hub name of a dual encoder")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write, such as CAPTIONER/retrieval")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float16", help="of the embeddings in the file (%(default)s)"
    )
    parser.add_argument(
        "--search",
        choices=SEARCHES,
        default="auto",
        help="exact, with FAISS (the extra faiss), or exact up to a million captions (%(default)s)",
    )
    parser.add_argument(
        "--faiss-factory", default="Flat", metavar="KIND", help="of FAISS: such as IVF4096,Flat (%(default)s)"
    )
    parser.add_argument("--batch-size", type=positive, default=64, metavar="N", help="captions at a time (%(default)s)")
    parser.set_defaults(run=run_build)


def _add_lookup(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from_data = actions.add_parser(
        "lookup",
        help="find the sentences of a data set's pictures",
        description='Write a JSON line per picture: {"image_id": id, "captions": [sentences, nearest first]}, which '
        "training, `caption` and `evaluate` read with --sentences retrieved=FILE.",
    )
    _add_dataset(from_data, split="all")
    from_data.add_argument("--retrieval", required=True, metavar="DIR", help="caption retriever, as `build` writes it")
    from_data.add_argument("--out", required=True, metavar="FILE", help="JSON lines to write")
    from_data.add_argument("--top", type=positive, default=20, metavar="N", help="sentences of a picture (%(default)s)")
    from_data.set_defaults(run=run_lookup)


def _add_convert(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "convert",
        help="turn sentences of the authors' code into JSON lines",
        description="Read a pickle of SCD-Net's authors, without running what is in it: retrieved sentences, the "
        "export of a first stage, or a teacher's captions. What is written is as `lookup` writes it.",
    )
    parser.add_argument("sentences", metavar="FILE", help="such as mscoco_clip_ret_sents.pkl")
    parser.add_argument("--vocabulary", required=True, metavar="FILE", help="vocabulary.txt of the same code")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON lines to write")
    parser.set_defaults(run=run_convert)


def _add_dataset(parser: argparse.ArgumentParser, split: str | None) -> None:
    parser.add_argument(
        "--annotations",
        metavar="FILE",
        help="file of captions: Karpathy's or COCO's JSON, token files, JSONL, CSV, Parquet",
    )
    parser.add_argument("--image-root", metavar="DIR", help="folder of its pictures (not looked at by `build`)")
    parser.add_argument(
        "--data-dir", "--data_dir", metavar="DIR", help="or a folder as training reads it, with its own pictures"
    )
    parser.add_argument(
        "--split",
        default=split,
        help="such as train+restval, all, or a file with names of pictures (default: "
        f"{split or 'train+restval, train of a folder, everything of a file without splits'})",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    add_trust_option(parser)


def _rows(args: argparse.Namespace, needs_images: bool) -> Any:
    """The rows of the data set, pictures closed."""
    from ..data.captions.load import has_own_images, load_captions
    from ..data.rows import undecoded

    if (args.annotations is None) == (args.data_dir is None):
        raise ValueError("give --annotations or --data-dir, one of them")
    if args.data_dir is not None:
        return undecoded(load_captions(args.data_dir, split=(args.split or "train").replace("train+restval", "train")))
    own = has_own_images(args.annotations)
    if needs_images and args.image_root is None and not own:
        raise ValueError("--annotations needs --image-root: sentences are looked up with the pictures")
    root = args.image_root if needs_images or own else None
    return undecoded(load_captions(args.annotations, root, args.split))


def run_build(args: argparse.Namespace) -> int:
    """Build a retriever; returns the exit status."""
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        retriever = _build(args)
    width = retriever.embeddings.shape[1]
    print(json.dumps({"folder": args.out, "captions": len(retriever), "width": width}))
    return 0


def _build(args: argparse.Namespace) -> Any:
    from ..data.features.store import DTYPES as TORCH_DTYPES
    from ..inference.build_retriever import build_retriever

    return build_retriever(
        _rows(args, needs_images=False).select_columns(["image_id", "captions"]),
        args.clip,
        args.out,
        batch_size=args.batch_size,
        device=args.device,
        dtype=TORCH_DTYPES[args.dtype],
        search=args.search,
        faiss_factory=args.faiss_factory,
        trust_remote_code=args.trust_remote_code,
    )


def run_lookup(args: argparse.Namespace) -> int:
    """Look up sentences; returns the exit status."""
    from ..data.printable import printable

    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        from ..inference.build_retriever import write_look_up
        from ..inference.device import choose_device
        from ..modeling.captioner_retriever import CaptionRetriever

        retriever = CaptionRetriever.from_pretrained(args.retrieval, trust_remote_code=args.trust_remote_code)
        rows = _rows(args, needs_images=True).select_columns(["image_id", "image"])
        errors = write_look_up(retriever.to(choose_device(args.device)), rows, args.out, args.top)
    for image_id, reason in errors.items():
        print(f"hf-captioners retrieval: image {printable(image_id)}: {printable(reason)}", file=sys.stderr)
    print(json.dumps({"file": args.out, "images": len(rows), "errors": len(errors)}))
    return 1 if errors else 0


def run_convert(args: argparse.Namespace) -> int:
    """Convert sentences; returns the exit status."""
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        from ..conversion.scdnet_sentences import convert_sentences

        count = convert_sentences(args.sentences, args.vocabulary, args.out)
    print(json.dumps({"file": args.out, "images": count}))
    return 0
