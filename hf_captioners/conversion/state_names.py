"""The state dict in a checkpoint, and its names without the prefixes of wrappers.

Training scripts keep the state dict under a key, beside an optimizer; `DistributedDataParallel`, `torch.compile`, FSDP
and the like put their attribute in front of every name, in any order and number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

EMA_KEYS = ("ema", "model_ema", "ema_model", "ema_state_dict", "state_dict_ema")
"""Keys under which a moving average of the weights is looked for."""
STATE_KEYS = (
    *("model_state_dict", "state_dict", "model_state", "model", "module", "net", "network", "weights", "params"),
    *("captioner", "policy", "student", "generator"),
    *EMA_KEYS,
)
"""Keys under which a state dict is looked for; the first one present wins, weights before their moving average."""
MAX_DEPTH = 4

# Attributes of torch.compile, FSDP and activation checkpointing, which wrap parts of a model as well
_INSIDE = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# Attributes of DataParallel, DistributedDataParallel, DeepSpeed and AveragedModel; parts of a model may be called so
_IN_FRONT = ("module.",)
AVERAGED = "n_averaged"  # the counter of torch.optim.swa_utils.AveragedModel, beside `module.*`


def find_state(content: Mapping[Any, Any], is_tensor: Callable[[Any], bool]) -> tuple[Mapping[Any, Any], list[str]]:
    """Find the state dict in a checkpoint.

    Args:
        content (`Mapping`): the checkpoint.
        is_tensor (`Callable[[Any], bool]`): tells tensors from other values.

    Returns:
        `tuple[Mapping, list[str]]`: the state dict, and the path of keys to it, empty if it is `content`.

    Example:

    ```python
    >>> from hf_captioners.conversion.state_names import find_state
    >>> find_state({"epoch": 3, "model": {"state_dict": {"a": 1.0}}}, lambda value: isinstance(value, float))
    ({'a': 1.0}, ['model', 'state_dict'])

    ```
    """
    path: list[str] = []
    while len(path) < MAX_DEPTH:
        inner = [key for key in STATE_KEYS if isinstance(content.get(key), Mapping)]
        full = [key for key in inner if _has_tensors(content[key], is_tensor)]
        if not inner:
            break
        key = (full or inner)[0]
        path.append(key)
        content = content[key]
        if full and any(is_tensor(value) for value in content.values()):
            break
    return content, path


def _has_tensors(content: Mapping[Any, Any], is_tensor: Callable[[Any], bool], depth: int = MAX_DEPTH) -> bool:
    if any(is_tensor(value) for value in content.values()):
        return True
    inner_contents = (content[key] for key in STATE_KEYS if isinstance(content.get(key), Mapping))
    return depth > 0 and any(_has_tensors(inner_content, is_tensor, depth - 1) for inner_content in inner_contents)


def unwrapped_names(names: Iterable[str]) -> dict[str, str]:
    """Remove the prefixes of wrappers from the names of a state dict.

    Args:
        names (`Iterable[str]`): all names.

    Returns:
        `dict[str, str]`: name -> name without wrappers. `module.` is removed where all names begin with it.

    Raises:
        ValueError: two tensors would have one name.

    Example:

    ```python
    >>> from hf_captioners.conversion.state_names import unwrapped_names
    >>> unwrapped_names(["module._orig_mod.module.a.weight", "module._orig_mod.module.b"])
    {'module._orig_mod.module.a.weight': 'a.weight', 'module._orig_mod.module.b': 'b'}

    ```
    """
    new = {name: name for name in names if name.rpartition(".")[2] != AVERAGED}
    new = {old: _INSIDE.sub("", name) for old, name in new.items()}
    for prefix in _IN_FRONT:
        while new and all(name.startswith(prefix) and name != prefix for name in new.values()):
            new = {old: name.removeprefix(prefix) for old, name in new.items()}
    old_names: dict[str, str] = {}
    for old, name in new.items():
        if old_names.setdefault(name, old) != old:
            raise ValueError(f"{old_names[name]!r} and {old!r} are both {name!r} without the prefixes of wrappers")
    return new
