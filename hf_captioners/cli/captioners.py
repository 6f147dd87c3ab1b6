"""The captioner of `--model`, or the ensemble of its captioners."""

import argparse
from collections.abc import Sequence
from typing import Any

from .common import DTYPES, UsageError, mistakes

PROMPT_HELP = "what a model with a prompt is asked, or how its captions begin; see docs/any_captioner.md"
QUANTIZED_HELP = "load the linear layers in {} bits, through bitsandbytes"


def add_family_options(parser: argparse._ActionsContainer) -> None:
    """`--prompt`, `--load_in_4bit` and `--load_in_8bit`, for the captioners of transformers."""
    parser.add_argument("--prompt", metavar="TEXT", help=PROMPT_HELP)
    for bits in ("4", "8"):
        option = f"--load_in_{bits}bit"
        parser.add_argument(option, option.replace("_", "-"), action="store_true", help=QUANTIZED_HELP.format(bits))


def add_speed_options(parser: argparse._ActionsContainer) -> None:
    """`--fast` and `--backbone-dtype`: how a captioner is made faster."""
    parser.add_argument("--fast", nargs="?", choices=("exact", "int8"), const="exact", help="faster linear layers, "
                        "in float32 on a CPU: with the same captions (exact, default) or 8-bit weights")  # fmt: skip
    parser.add_argument("--backbone-dtype", choices=DTYPES[1:], help="precision of the vision tower alone")


def make_faster(args: argparse.Namespace, model: Any) -> None:
    """Do what the options of `add_speed_options` ask for, with a captioner or the members of an ensemble.

    Raises:
        UsageError: see [`optimize_for_inference`].
    """
    if args.fast is None and args.backbone_dtype is None:
        return
    import torch

    from ..export.manifest import is_exported
    from ..inference.faster import optimize_for_inference

    if is_exported(args.model[0]):
        raise UsageError("--fast, --backbone-dtype: an exported captioner has the precision of its export (--int8)")

    dtype = args.backbone_dtype and getattr(torch, args.backbone_dtype)
    with mistakes(ValueError):
        for member in getattr(model, "models", [model]):
            optimize_for_inference(member, args.fast, dtype)


def load_captioner_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The captioner that the options of a verb describe, and its processor; see [`load_captioners`]."""
    options = {name: vars(args)[name] for name in ("prompt", "load_in_4bit", "load_in_8bit")}
    return load_captioners(args.model, args.device, args.dtype, args.trust_remote_code, **options)


def load_captioners(
    names: Sequence[str], device: str, dtype: str, trust_remote_code: bool, **options: Any
) -> tuple[Any, Any]:
    """Load the captioner of `--model`, or several of one kind as an ensemble, and the processor.

    Args:
        names (`Sequence[str]`): folders or Hub names.
        device (`str`): of `--device`.
        dtype (`str`): one of `DTYPES`.
        trust_remote_code (`bool`): whether code that comes with them may run.
        options: `prompt`, `load_in_4bit` and `load_in_8bit`.

    Raises:
        UsageError: see [`hf_captioners.inference.loading.load_captioners`].
    """
    from ..inference import loading
    from ..inference.device import choose_device

    try:
        target = choose_device(device)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from error
    try:
        with mistakes(ImportError):
            return loading.load_captioners(names, str(target), dtype, trust_remote_code, **options)
    except loading.CaptionerLoadError as error:
        raise UsageError(f"--model {error}") from error
    except ValueError as error:  # of the options
        raise UsageError(f"--{error}") from error
