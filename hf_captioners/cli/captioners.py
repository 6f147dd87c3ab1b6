"""The captioner of `--model`, or the ensemble of its captioners."""

import argparse
from collections.abc import Sequence
from typing import Any

from .common import DTYPES, UsageError, mistakes

PROMPT_HELP = "what a model with a prompt is asked, or how its captions begin; see docs/any_captioner.md"
WAYS = ("exact", "int8")  # of --fast
QUANTIZED_HELP = "load the linear layers in {} bits, through bitsandbytes"


def add_family_options(parser: argparse._ActionsContainer) -> None:
    """`--prompt`, `--load_in_4bit` and `--load_in_8bit`, for the captioners of transformers."""
    parser.add_argument("--prompt", metavar="TEXT", help=PROMPT_HELP)
    for bits in ("4", "8"):
        option = f"--load_in_{bits}bit"
        parser.add_argument(option, option.replace("_", "-"), action="store_true", help=QUANTIZED_HELP.format(bits))


def add_speed_options(parser: argparse._ActionsContainer) -> None:
    """`--fast` and `--backbone-dtype`: how a captioner is made faster."""
    parser.add_argument("--fast", nargs="?", type=_way, const="exact", metavar="|".join(WAYS), help="faster linear "
                        "layers, in float32 on a CPU: the same captions (exact, default) or 8-bit weights")  # fmt: skip
    parser.add_argument("--backbone-dtype", choices=DTYPES[1:], help="precision of the vision tower alone")


def _way(word: str) -> str:
    """A way of `--fast`, for argparse; the word behind it may have been meant for a picture."""
    if word not in WAYS:
        raise argparse.ArgumentTypeError(
            f"{word!r} is none of {', '.join(WAYS)}; give pictures and folders before --fast, or write --fast exact"
        )
    return word


def make_faster(args: argparse.Namespace, model: Any) -> None:
    """Do what the options of `add_speed_options` ask for, with a captioner or the members of an ensemble."""
    if _is_to_be_faster(args):
        from ..inference.faster import optimize_for_inference

        for member in getattr(model, "models", [model]):
            optimize_for_inference(member, args.fast, _backbone_dtype(args))


def _is_to_be_faster(args: argparse.Namespace) -> bool:
    return args.fast is not None or args.backbone_dtype is not None


def _backbone_dtype(args: argparse.Namespace) -> Any:
    import torch

    return args.backbone_dtype and getattr(torch, args.backbone_dtype)


def _check_faster(args: argparse.Namespace, model: Any) -> None:
    """Refuse what cannot be made faster."""
    from ..inference.faster import check_optimization
    from ..modeling.captioner_adapters import AdapterError

    for member in getattr(model, "models", [model]):
        try:
            check_optimization(member, args.fast, _backbone_dtype(args))
        except AdapterError as error:
            raise UsageError(
                f"--fast: {' '.join(args.model)} has adapters, beside its layers; leave --fast out"
            ) from error
        except ValueError as error:
            raise UsageError(str(error)) from error


def load_captioner_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """The captioner that the options of a verb describe, and its processor; see [`load_captioners`].

    Raises:
        UsageError: see there; or what `add_speed_options` ask for cannot be done with it, which [`make_faster`] does.
    """
    from ..export.manifest import is_exported

    if _is_to_be_faster(args) and is_exported(args.model[0]):
        raise UsageError("--fast, --backbone-dtype: an exported captioner has the precision of its export (--int8)")
    options = {name: vars(args)[name] for name in ("prompt", "load_in_4bit", "load_in_8bit")}
    model, processor = load_captioners(args.model, args.device, args.dtype, args.trust_remote_code, **options)
    if _is_to_be_faster(args):
        _check_faster(args, model)
    return model, processor


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
