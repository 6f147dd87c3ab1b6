"""`hf-captioners demo`: a page in the browser on which captioners caption a visitor's pictures.

stdout has the address of the page; it is served until Ctrl-C. Exit status 2 if a model cannot be used.
"""

import argparse
import contextlib
import sys
from typing import Any

from .common import DTYPES, add_trust_option, mistakes, positive
from .image_options import add_detector_option

_EPILOG = """\
examples:
  hf-captioners demo runs/mine
  hf-captioners demo runs/mine Salesforce/blip-image-captioning-base --examples photos/
  hf-captioners demo bottom-up

The page is for this machine alone; --host 0.0.0.0 lets others in the network see it."""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "demo",
        help="a page in the browser to try captioners",
        description="Serve a page on which captioners caption pictures side by side, show where each word looked, how "
        "SCD-Net's sentence becomes clear, and what a detector finds.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="folders or Hub names of captioners or detectors")
    parser.add_argument("--examples", metavar="DIR", help="folder of pictures to choose from")
    add_detector_option(parser)
    parser.add_argument("--retrieval", metavar="DIR", help="caption retriever of SCD-Net (that in its folder), or none")
    parser.add_argument("--title", default="Image captioning", help="heading of the page (%(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s: this machine alone)")
    parser.add_argument("--port", type=positive, metavar="N", help="(the first free one from 7860)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="precision (auto: as the model was saved)")
    add_trust_option(parser)
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve the page; returns the exit status."""
    with mistakes(ValueError, OSError, ImportError), contextlib.redirect_stdout(sys.stderr):
        from ..demo.page import build_page, open_page
        from ..extras import require

        require("gradio")
        page = build_page(load_exhibition(args), args.title)
        address = open_page(page, args.host, args.port, wait=False, quiet=True)
    print(address, flush=True)
    page.block_thread()
    return 0


def load_exhibition(args: argparse.Namespace) -> Any:
    """The [`Exhibition`] that the options describe."""
    from transformers.utils import logging

    from ..demo.visit import Exhibition
    from .image_options import use_retrieval

    logging.disable_progress_bar()
    exhibition = Exhibition.from_pretrained(
        args.models, args.examples, args.device, args.dtype, args.trust_remote_code, args.detector
    )
    for shown in exhibition.denoising:
        use_retrieval(shown.model, shown.processor, args.retrieval, args.trust_remote_code)
    return exhibition
