"""`hf-captioners scdnet`: two stages joined to a cascade, and data of the authors' code in and out.

stdout has one JSON line. Exit status 0, 2 if what was asked for cannot be done, 3 if a disk is full.
"""

import argparse
import contextlib
import json
import sys

from .common import add_trust_option, mistakes, positive

_EPILOG = """\
examples:
  hf-captioners scdnet join runs/scdnet/2_scst runs/scdnet/6_scst --out cascade
  hf-captioners scdnet annotations --train mscoco_caption_anno_train.pkl --vocabulary vocabulary.txt --out coco.json
  hf-captioners scdnet export --annotations dataset_coco.json --vocabulary vocabulary.txt --out mscoco_dataset \\
      --retrieved retrieved.jsonl --captions ep_47_ts_50_td_0=runs/scdnet/3_xe.jsonl

Checkpoints: hf-captioners convert scdnet; pickles of CIDEr-D: convert document_frequency; pickles of retrieved
sentences, of a first stage's and a teacher's captions: retrieval convert; region features: features --regions."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "scdnet",
        help="join two stages of SCD-Net; data of its authors' code, in and out",
        description="Join two stages that were trained one by one to a cascade; read annotations of the authors' code, "
        "without running what is in them; write data as that code reads them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _add_join(actions)
    _add_annotations(actions)
    _add_export(actions)
    return parser


def _add_join(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "join",
        help="make a cascade of two stages",
        description="Write a captioner that owns both stages; processor, retriever and detector are the second one's.",
    )
    parser.add_argument("first", metavar="FIRST", help="folder or Hub name of the first stage")
    parser.add_argument("second", metavar="SECOND", help="folder or Hub name of the second stage")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write, new or empty")
    parser.add_argument("--overwrite", action="store_true", help="replace an SCD-Net that is there")
    add_trust_option(parser)
    parser.set_defaults(run=run_join)


def _add_annotations(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "annotations",
        help="turn pickled annotations into a JSON file in Karpathy's layout",
        description="Read pickled annotations of the authors' code. What is written has no names of picture files: "
        "it is for cached region features.",
    )
    for split in ("train", "val", "test"):
        parser.add_argument(f"--{split}", metavar="FILE", help=f"mscoco_caption_anno_{split}.pkl")
    parser.add_argument("--vocabulary", required=True, metavar="FILE", help="vocabulary.txt of the same code")
    parser.add_argument("--out", required=True, metavar="FILE", help="JSON file to write")
    parser.set_defaults(run=run_annotations)


def _add_export(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = actions.add_parser(
        "export",
        help="write a data set as the authors' code reads it",
        description="Write pickled annotations, references and document frequencies of a data set and, where they are "
        "given, retrieved sentences, captions of a first stage or a teacher, and features (.npz).",
    )
    parser.add_argument("--annotations", required=True, metavar="FILE", help="JSON file in Karpathy's layout")
    parser.add_argument("--vocabulary", required=True, metavar="FILE", help="vocabulary.txt, a word on each line")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--retrieved", metavar="FILE", help="sentences, as `retrieval lookup` writes them")
    parser.add_argument(
        "--captions", nargs="+", default=[], metavar="NAME=FILE", help="captions, as `caption` writes them, to NAME.pkl"
    )
    parser.add_argument("--features", metavar="STORE", help="feature store, to features/IMAGE_ID.npz")
    parser.add_argument("--length", type=positive, default=20, metavar="N", help="tokens of a caption (%(default)s)")
    parser.add_argument(
        "--retrieved-length", type=positive, default=40, metavar="N", help="of a retrieved sentence (%(default)s)"
    )
    parser.set_defaults(run=run_export)


def run_join(args: argparse.Namespace) -> int:
    """Join two stages; returns the exit status."""
    with mistakes(ValueError, OSError), contextlib.redirect_stdout(sys.stderr):
        from ..conversion.scdnet_stages import join_stages
        from ..inference.loading import load_captioners

        names, trusted = (args.first, args.second), args.trust_remote_code
        first, second = (load_captioners([name], "cpu", trust_remote_code=trusted) for name in names)
        folder = join_stages(first, second, args.out, args.overwrite)
    print(json.dumps({"out_dir": str(folder)}))
    return 0


def run_annotations(args: argparse.Namespace) -> int:
    """Read annotations; returns the exit status."""
    files = {split: vars(args)[split] for split in ("train", "val", "test") if vars(args)[split] is not None}
    with mistakes(ValueError, OSError), contextlib.redirect_stdout(sys.stderr):
        from ..conversion.scdnet_files import convert_annotations

        if not files:
            raise ValueError("give --train, --val or --test")
        counts = convert_annotations(files, args.vocabulary, args.out)
    print(json.dumps({"file": args.out, "images": counts}))
    return 0


def run_export(args: argparse.Namespace) -> int:
    """Write a data set; returns the exit status."""
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        from ..conversion.scdnet_export import export_data

        written = export_data(
            args.annotations,
            args.vocabulary,
            args.out,
            captions=_captions(args.captions),
            retrieved=args.retrieved,
            features=args.features,
            length=args.length,
            retrieved_length=args.retrieved_length,
        )
    print(json.dumps({"folder": args.out, "images": written}))
    return 0


def _captions(options: list[str]) -> dict[str, str]:
    """Names and files of `--captions`."""
    captions = {}
    for option in options:
        name, sign, file = option.partition("=")
        if not (name and sign and file) or set("/\\") & set(name) or name in captions:
            raise ValueError(f"--captions {option}: expected NAME=FILE, each NAME once, as teacher=0_teacher.jsonl")
        captions[name] = file
    return captions
