"""The device to run on."""

from __future__ import annotations

import torch


def choose_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name.

    Args:
        name (`str` or `torch.device`, defaults to `"auto"`): "auto" is a GPU if there is one, else the CPU.

    Returns:
        `torch.device`

    Raises:
        ValueError: there is no such device here.

    Example:

    ```python
    >>> from hf_captioners.inference.device import choose_device
    >>> choose_device("cpu")
    device(type='cpu')

    ```
    """
    if name == "auto":
        has_mps = torch.backends.mps.is_available()
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu")
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        raise ValueError(f"device {str(name)!r} cannot be used: {str(error).partition(chr(10))[0]}") from error
