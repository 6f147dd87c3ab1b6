"""Helpers of several verbs: checked numbers, loading a captioner with a readable error, and mistakes of the user."""

import argparse
import errno
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

DTYPES = ("auto", "float32", "bfloat16", "float16")
TRUST_OPTION = "--trust_remote_code"
TRUST_FLAGS = (TRUST_OPTION, TRUST_OPTION.replace("_", "-"))
TRUST_HELP = "run the Python code that comes with a model; read it first. A recipe cannot say this"
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(kw_only=True)
class TrustArguments:
    """`--trust_remote_code`, of every example: whether code that comes with a model may run."""

    trust_remote_code: bool = field(default=False, metadata={"help": TRUST_HELP})


class UsageError(Exception):
    """Error for what was asked for and cannot be done; the message is for the user."""


DISK_IS_FULL = 3
"""Exit status of all verbs when there was no space for a file."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def failure_status(error: BaseException) -> int:
    """The exit status of a verb that could not do what was asked for: 3 if a disk is full, 2 otherwise."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return DISK_IS_FULL
        cause = cause.__cause__
    return 2


class Parser(argparse.ArgumentParser):
    """Parser of the command and of every verb: a mistake is shown without what a terminal would obey."""

    def error(self, message: str) -> NoReturn:
        """Print a mistake and exit, as argparse does."""
        from ..data.printable import printable

        super().error(printable(message))


class LaterParser(argparse.ArgumentParser):
    """Parser of a sub-command that keeps all words as `words`, for a parser that is costly to build."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:
        """Take the words as they are."""
        return argparse.Namespace(words=list(args or [])), []


@contextmanager
def mistakes(*kinds: type[Exception]) -> Iterator[None]:
    """Take errors of these kinds for mistakes of the user.

    Args:
        kinds (`type[Exception]`): such as `ValueError`.

    Raises:
        UsageError: in their place.
    """
    try:
        yield
    except BrokenPipeError:  # the reader of stdout is gone
        raise
    except kinds as error:
        raise UsageError(str(error)) from error


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Say which extra of the package has a library that is missing.

    Args:
        extra (`str`): such as `"train"`.

    Raises:
        UsageError: in the place of an `ImportError`.
    """
    try:
        yield
    except ImportError as error:
        raise UsageError(f"{error}; it needs hf_captioners[{extra}]") from error


@contextmanager
def exit_with_usage_errors(prog: str) -> Iterator[None]:
    """End the process after a mistake of the user, with one line on stderr and the status of `failure_status`.

    Args:
        prog (`str`): name of the command.

    Raises:
        SystemExit: in the place of a `UsageError`.
    """
    try:
        yield
    except UsageError as error:
        print_error(prog, error)
        stop = SystemExit(str(error))
        stop.code = failure_status(error)  # a number, so that the message is not printed once more
        raise stop from error


def print_error(prog: str, error: object) -> None:
    """One line on stderr, without what a terminal would obey in names of files."""
    from ..data.printable import printable

    print(f"{prog}: error: {printable(' '.join(str(error).split()))}", file=sys.stderr)


def count(text: str) -> int:
    """A whole number of 0 or more, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def add_model_options(parser: argparse._ActionsContainer) -> None:
    """`--batch-size`, `--num-beams`, `--max-new-tokens`, `--device`, `--dtype`, `--trust_remote_code`: how one runs."""
    parser.add_argument("--batch-size", type=positive, default=8, metavar="N", help="pictures at a time (%(default)s)")
    parser.add_argument("--num-beams", type=positive, metavar="N", help="width of the beam search (the model's)")
    parser.add_argument("--max-new-tokens", type=positive, metavar="N", help="longest caption (the model's)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps (default: a GPU if there is one)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="precision (auto: as the model was saved)")
    add_trust_option(parser)


def add_trust_option(parser: argparse._ActionsContainer) -> None:
    """`--trust_remote_code`, of every verb that loads models."""
    parser.add_argument(*TRUST_FLAGS, action="store_true", help=TRUST_HELP)


def load_captioner(name: str, device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """The captioner of `--model`, ready to caption, and its processor.

    Args:
        name (`str`): a folder or a Hub name.
        device (`str`): as `--device` takes it.
        dtype (`str`): one of `DTYPES`.
        trust_remote_code (`bool`): whether code that comes with it may run.

    Raises:
        UsageError: no such folder, device or model, or one that brings code which may not run.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    from ..inference.device import choose_device
    from ..modeling.captioner_adapters import AdapterError
    from ..modeling.captioner_foreign import check_can_caption, load_processor
    from ..modeling.captioner_trust import RemoteCodeError, load_pretrained

    logging.disable_progress_bar()
    try:
        target = choose_device(device)
    except ValueError as error:
        raise UsageError(f"--device: {error}") from error
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise UsageError(f"--model {name}: no such folder")
    try:
        model = load_pretrained(AutoModelForImageTextToText, name, trust_remote_code, dtype=dtype)
        check_can_caption(model, name)
        processor = load_processor(model, name, trust_remote_code)
    except (AdapterError, RemoteCodeError) as error:
        raise UsageError(f"--model {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise UsageError(f"--model {name} cannot be loaded: {_missing_part(Path(name)) or error}") from error
    return model.to(target).eval(), processor


_PARTS = {  # of a captioner's folder: patterns of file names, and what to do where there is none
    "configuration (config.json)": (
        ("config.json", "adapter_config.json"),
        "give the folder of a captioner, or convert an original checkpoint with `hf-captioners convert`",
    ),
    "weights (model.safetensors)": (
        ("*.safetensors", "*.safetensors.index.json", "pytorch_model*"),
        "copy them from where the captioner was trained or converted",
    ),
    "image processor (preprocessor_config.json or processor_config.json)": (
        ("preprocessor_config.json", "processor_config.json"),
        "save that of its backbone there: AutoImageProcessor.from_pretrained(backbone).save_pretrained(folder)",
    ),
    "tokenizer (tokenizer.json)": (
        ("tokenizer.json", "tokenizer_config.json", "vocab.*", "*.model"),
        "save its tokenizer there (`hf-captioners convert` has --tokenizer for captioners with that of CLIP or GPT-2)",
    ),
}


def _missing_part(folder: Path) -> str | None:
    """The part that a captioner's folder lacks and how to get it; `None` if nothing is known to be missing."""
    if not folder.is_dir():
        return None if folder.exists() else "there is no such folder, nor can it be had from the Hub"
    for part, (patterns, advice) in _PARTS.items():
        if not any(any(folder.glob(pattern)) for pattern in patterns):
            return f"the folder has no {part}; {advice}"
    return None
