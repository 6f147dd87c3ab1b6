"""`hf-captioners convert`: an original checkpoint becomes a folder for `from_pretrained`."""

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from hf_captioners.conversion import MODEL_TYPES, convert

from .common import add_trust_option, mistakes

if TYPE_CHECKING:
    from hf_captioners.conversion.document_frequency import FrequencyReport
    from hf_captioners.conversion.writing import ConversionReport

_DESCRIPTION = """\
Convert an original checkpoint into a folder that from_pretrained reads: model, generation defaults and processor.
Nothing in the checkpoint is executed. The folder appears complete or not at all; its path is printed as a JSON line.
Pickled document frequencies of CIDEr become a file that evaluate --document-frequencies reads."""

_EPILOG = """\
example:
  hf-captioners convert expansionnet_v2 rf_model.pth --vocabulary demo_coco_tokens.pickle --out expansionnet-v2
  hf-captioners convert satic model.pth --infos infos.pkl --out satic
  hf-captioners convert clip_gpt2 coco_weights.pt --clip openai/clip-vit-base-patch32 --out clipcap
  hf-captioners convert dico dico-ViTL14.zip --tokenizer openai/clip-vit-large-patch14 --out dico
  hf-captioners convert bottom_up pytorch_model.bin --original-config config.yaml --objects objects_vocab.txt \
      --attributes attributes_vocab.txt --out bottom-up
  hf-captioners convert scdnet stage2.pth --stage1 stage1.pth --vocabulary vocabulary.txt --out scdnet
  hf-captioners convert pac_score clip_ViT-B-32.pth --vocabulary openai/clip-vit-base-patch32 --out pac-s
  hf-captioners convert document_frequency coco-train-words.p --out coco-train-words.safetensors"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """
    Adds the verb `convert` to the command line.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.

    Returns:
        `ArgumentParser`: of the verb; [`run`] is its default `run`.
    """
    parser = subparsers.add_parser(
        "convert",
        help="convert an original checkpoint",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model_type", choices=MODEL_TYPES, help="which model the checkpoint is of")
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="the original checkpoint (.pth or .safetensors), or pickle; the folder of a dico, or an archive of it",
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to write, new or empty; for document_frequency the file, *.safetensors",
    )
    parser.add_argument(
        "--vocabulary",
        metavar="FILE",
        help="the original vocabulary pickle, or a .json list of words whose index is the id; required by "
        "expansionnet_v2. For scdnet, which requires it too, vocabulary.txt. For pac_score the folder or Hub name of a "
        "CLIP tokenizer, which is written beside the model",
    )
    parser.add_argument(
        "--original-config",
        type=Path,
        metavar="FILE",
        help="the original's settings in its own names, .json or a bottom_up's config.yaml; needed where they are not "
        "the released ones and leave no trace in the tensors (number of heads, expansion groups)",
    )
    parser.add_argument(
        "--special",
        nargs="+",
        type=_name_and_id,
        metavar="NAME=ID",
        help="ids of PAD, SOS, EOS, UNK, when the vocabulary does not call them so (PAD=8 SOS=9 EOS=7 UNK=10)",
    )
    _add_own_options(parser)
    parser.add_argument("--backbone", type=Path, metavar="FILE", help="the backbone, for a features-only checkpoint")
    parser.add_argument("--features-only", action="store_true", help="leave the backbone out")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier conversion in DIR")
    add_trust_option(parser)
    parser.set_defaults(run=run)
    return parser


def _add_own_options(parser: argparse.ArgumentParser) -> None:
    """Options of single sources."""
    parser.add_argument("--infos", type=Path, metavar="FILE.pkl", help="options and words beside a checkpoint of satic")
    parser.add_argument(
        "--num-heads",
        type=int,
        metavar="N",
        help="attention heads of satic (default: 8, as released), or of a clip_gpt2's GPT-2 (default: width / 64)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="DIR",
        help="GPT-2's tokenizer for clip_gpt2, or CLIP's for dico (default: from the Hub)",
    )
    parser.add_argument("--clip", metavar="DIR", help="the CLIP of a clip_gpt2, to read pictures, not only embeddings")
    parser.add_argument(
        "--normalize-prefix",
        action=argparse.BooleanOptionalAction,
        help="whether a clip_gpt2 was trained on embeddings of length 1 (default: it was not)",
    )
    parser.add_argument("--objects", type=Path, metavar="FILE", help="names of a bottom_up's classes, one a line")
    parser.add_argument("--attributes", type=Path, metavar="FILE", help="names of a bottom_up's attributes")
    parser.add_argument(
        "--convention",
        choices=("caffe",),
        help="find the regions of a bottom_up in the layout of the Hub as Caffe does: those that SATIC was trained on",
    )
    parser.add_argument(
        "--stage1", type=Path, metavar="FILE", help="the first stage of an scdnet, to make a cascade of both stages"
    )
    parser.add_argument(
        "--ema",
        action=argparse.BooleanOptionalAction,
        help="take the moving average of the weights of an scdnet (default: where the checkpoint has it)",
    )
    parser.add_argument(
        "--crop-positions", action="store_true", help="drop the positions that no caption of an scdnet reaches"
    )


def run(args: argparse.Namespace) -> int:
    """
    Converts, writes the report to stderr and the folder to stdout.

    Args:
        args (`Namespace`): as parsed by the parser of [`add_parser`].

    Returns:
        `int`: 0.

    Raises:
        UsageError: what was asked for cannot be done.
    """
    with mistakes(OSError, ValueError):
        report = convert(
            args.model_type,
            args.checkpoint,
            args.out,
            original_config=args.original_config,
            vocabulary=args.vocabulary,
            special=dict(args.special) if args.special else None,
            backbone=args.backbone,
            features_only=args.features_only,
            infos=args.infos,
            num_heads=args.num_heads,
            tokenizer=args.tokenizer,
            clip=args.clip,
            normalize_prefix=args.normalize_prefix,
            objects=args.objects,
            attributes=args.attributes,
            convention=args.convention,
            stage1=args.stage1,
            ema=args.ema,
            crop_positions=args.crop_positions,
            overwrite=args.overwrite,
            trust_remote_code=args.trust_remote_code,
        )
    from hf_captioners.conversion.writing import ConversionReport
    from hf_captioners.data.printable import printable

    if isinstance(report, ConversionReport):
        lines, written = _describe(report), {"out_dir": str(report.out_dir)}
    else:
        lines, written = _describe_frequencies(report), {"out_path": str(report.out_path)}
    for line in lines:
        print(printable(line), file=sys.stderr)
    print(json.dumps(written))
    return 0


def _name_and_id(text: str) -> tuple[str, int]:
    name, separator, number = text.partition("=")
    if not separator or not number.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=ID, such as PAD=78")
    return name, int(number)


def _describe(report: "ConversionReport") -> list[str]:
    """The report in lines; dropped names that differ in numbers only are one line."""
    groups = Counter(re.sub(r"\d+", "*", name) for name in report.dropped)
    special = " ".join(f"{name}={index} ({word!r})" for name, (index, word) in report.special_tokens.items())
    lines = [f"{len(report.used)} tensors converted, {len(report.dropped)} dropped"]
    lines += [f"  dropped {count} x {name}" for name, count in groups.items()]
    lines += [f"special tokens: {special}"] if special else []
    lines += [f"assumed, as released: {name}={value}" for name, value in report.assumed.items()]
    return lines


def _describe_frequencies(report: "FrequencyReport") -> list[str]:
    words = "token ids" if report.token_ids else "words"
    return [f"{report.ngrams} n-grams of {words} in the references of {report.number_of_images} images"]
