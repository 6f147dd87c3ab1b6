"""`hf-captioners env`: the versions of what is installed, to paste into a report."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "hf_captioners",
    "torch",
    "transformers",
    "huggingface_hub",
    "tokenizers",
    "safetensors",
    "numpy",
    "pillow",
    "datasets",
    "accelerate",
    "trl",
    "peft",
    "evaluate",
    "onnx",
    "onnxscript",
    "onnxruntime",
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> argparse.ArgumentParser:
    """Add the verb and its options to the parser of `hf-captioners`."""
    parser = subparsers.add_parser(
        "env",
        help="print versions, for a bug report",
        description="Print the versions of Python, this package and those it works with, as `name: version` lines.",
    )
    parser.set_defaults(run=run)
    return parser


def run(args: argparse.Namespace) -> int:
    """Print the versions; returns the exit status, 0."""
    print(f"python: {platform.python_version()}")
    print(f"platform: {platform.platform()}")
    for package in PACKAGES:
        print(f"{package}: {_version(package)}")
    print(f"accelerator: {_accelerator()}")
    return 0


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _accelerator() -> str:
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    return "mps" if torch.backends.mps.is_available() else "none"
