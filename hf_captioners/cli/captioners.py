"""The captioner of `--model`, or the ensemble of its captioners."""

from collections.abc import Sequence
from typing import Any

from .common import UsageError


def load_captioners(names: Sequence[str], device: str, dtype: str, trust_remote_code: bool) -> tuple[Any, Any]:
    """Load the captioner of `--model`, or several of one kind as an ensemble, and the processor.

    Args:
        names (`Sequence[str]`): folders or Hub names.
        device (`str`): of `--device`.
        dtype (`str`): one of `DTYPES`.
        trust_remote_code (`bool`): whether code that comes with them may run.

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
        return loading.load_captioners(names, str(target), dtype, trust_remote_code)
    except loading.CaptionerLoadError as error:
        raise UsageError(f"--model {error}") from error
