"""`hf-captioners push`: a captioner goes to the Hub, as one commit with its card.

stdout has the address of the commit or pull request, or the folder of a dry run; the list of files goes to stderr.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from .common import UsageError, add_trust_option, mistakes

_EPILOG = """\
examples:
  hf-captioners push runs/mine me/mine --dry-run to_be_pushed
  hf-captioners push runs/mine me/mine --private --licence cc-by-nc-4.0
  hf-captioners push runs/mine me/mine --ship-code
  hf-captioners push me/mine me/mine-demo --space --examples photos/

Log in before with `hf auth login`, or set HF_TOKEN. A push that was interrupted is repeated with the same command."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "push",
        help="push a captioner to the Hub",
        description="Push weights, processor, generation config and card of a captioner, or a detector with its card, "
        "to the Hub as one commit; no checkpoints, optimizer states or logs.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", metavar="RUN", help="folder of a captioner, of adapters, or of a detector; with "
                        "--space also a name on the Hub")  # fmt: skip
    parser.add_argument("repo_id", metavar="NAME", help="repository: org/name, or name for one's own")
    seen = parser.add_mutually_exclusive_group()
    seen.add_argument("--private", action="store_const", const=True, help="make a new repository private")
    seen.add_argument("--public", dest="private", action="store_const", const=False, help="make a new repository "
                      "public; without either it is as its owner has set it")  # fmt: skip
    parser.add_argument("--ship-code", action="store_true", help="add the code: it then runs without the package, for "
                        "those who say trust_remote_code")  # fmt: skip
    parser.add_argument("--weights-dtype", choices=("float32", "bfloat16", "float16"), help="precision of the weights "
                        "in their file; loaded, they have the one of the captioner (default: that)")  # fmt: skip
    parser.add_argument("--create-pr", action="store_true", help="propose the commit as a pull request")
    parser.add_argument("--revision", metavar="BRANCH", help="branch (default: main)")
    parser.add_argument("--message", metavar="TEXT", help="title of the commit")
    parser.add_argument(
        "--dry-run", metavar="DIR", type=Path, help="write what would be pushed there, and push nothing"
    )
    card = parser.add_argument_group("the card; what is not given stays as the training wrote it, or is left out")
    card.add_argument("--licence", "--license", metavar="NAME", help="of the weights, as the Hub names it")
    card.add_argument("--language", nargs="+", metavar="CODE", help="of the captions, such as en")
    card.add_argument("--datasets", nargs="+", metavar="NAME", help="Hub names of the training data")
    card.add_argument("--base-model", nargs="+", metavar="NAME", help="Hub names of what it was made of")
    card.add_argument("--contact-sheet", action="store_true", help="also push the contact sheet; it shows evaluation "
                      "pictures, whose licence must allow it")  # fmt: skip
    space = parser.add_argument_group("a page to try it, as `hf-captioners demo` serves it")
    space.add_argument("--space", action="store_true", help="push the page with the captioner as a Space")
    space.add_argument("--title", metavar="TEXT", help="heading of the page (the Space's name)")
    space.add_argument("--examples", metavar="DIR", type=Path, help="folder of pictures to choose from; their licence "
                       "must allow to publish them")  # fmt: skip
    add_trust_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Push the captioner; returns the exit status."""
    if args.create_pr and args.private is not None:
        raise UsageError("--create-pr goes to a repository that is there; leave --private and --public out")
    _check_space(args)
    from ..data.printable import printable

    given = {
        "licence": args.licence,
        "languages": args.language,
        "datasets": args.datasets,
        "base_models": args.base_model,
    }
    known = {name: value for name, value in given.items() if value is not None}
    with mistakes(ValueError, OSError, ImportError, KeyError, RuntimeError):
        pushed = (_push_space if args.space else _push_captioner)(args, known)
    for name, size in pushed.files.items():
        print(f"{size:>13,}  {printable(name)}", file=sys.stderr)
    print(printable(pushed.url))
    return 0


def _check_space(args: argparse.Namespace) -> None:
    """Refuse options of the other kind of repository."""
    if args.space:
        unread = {"--ship-code": args.ship_code, "--create-pr": args.create_pr, "--revision": args.revision,
                  "--contact-sheet": args.contact_sheet, "--weights-dtype": args.weights_dtype}  # fmt: skip
        said = "has no effect with --space"
    else:
        unread, said = {"--title": args.title, "--examples": args.examples}, "is of a page; add --space"
    for name, value in unread.items():
        if value:
            raise UsageError(f"{name} {said}")


def _push_captioner(args: argparse.Namespace, card: dict[str, Any]) -> Any:
    from ..hub.push import push_captioner

    return push_captioner(
        Path(args.folder),
        None,
        args.repo_id,
        private=args.private,
        ship_code=args.ship_code,
        create_pr=args.create_pr,
        dry_run=args.dry_run,
        revision=args.revision,
        commit_message=args.message,
        contact_sheet=args.contact_sheet,
        trust_remote_code=args.trust_remote_code,
        weights_dtype=args.weights_dtype,
        **card,
    )


def _push_space(args: argparse.Namespace, card: dict[str, Any]) -> Any:
    from ..hub.space import push_space

    return push_space(
        args.folder,
        args.repo_id,
        private=args.private,
        dry_run=args.dry_run,
        commit_message=args.message,
        title=args.title,
        examples=args.examples,
        trust_remote_code=args.trust_remote_code,
        **card,
    )
