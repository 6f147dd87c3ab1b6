"""Safe reading of untrusted files: checkpoints, vocabulary pickles and JSON, without running anything in them.

All unpicklers import nothing: checkpoints by `torch_file`, vocabularies and options here.
What a file declares is bounded before it is read, and each limit is an argument (docs/malformed_checkpoints.md).
"""

from __future__ import annotations

import io
import json
import logging
import pickle
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..data.files import regular_file
from ..data.progress import progress_of
from .pickle_limits import check_nesting, scan_pickle, show
from .stand_ins import Unread
from .state_names import STATE_KEYS, find_state, unwrapped_names
from .torch_file import MAX_PICKLE_BYTES, TorchFile, open_torch_file
from .torch_pickle import SavedTensor

logger = logging.getLogger(__name__)

MAX_PLAIN_BYTES = 64 * 1024 * 1024
MAX_SHARED_BYTES = 512 * 1024 * 1024
_SHOWN = 12  # names in a message
_LONG = 8 * 1024 * 1024  # bytes of a pickle that takes seconds
NO_STAND_INS: Mapping[str, Any] = MappingProxyType({})


class CheckpointError(ValueError):
    """A file that cannot be read safely, or that does not hold what was expected. The message names the file."""


class MissingStateError(CheckpointError):
    """A checkpoint without the part that was asked for."""


def load_checkpoint(
    path: str | Path,
    max_pickle_bytes: int = MAX_PICKLE_BYTES,
    max_shared_bytes: int = MAX_SHARED_BYTES,
    at: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Load the model part of a checkpoint, on the CPU, without running code from it.

    Args:
        path (`str` or `Path`):
            A file of `torch.save` (zip or older format, any pickle protocol) or a `.safetensors` file. The state dict
            may be the whole file or lie under one of `STATE_KEYS`. Objects beside it, as an `argparse.Namespace`, are
            left unread and named in a warning.
        max_pickle_bytes (`int`, *optional*, defaults to 64 MiB):
            Larger pickles (names, shapes and options; the weights are elsewhere) are refused unread.
        max_shared_bytes (`int`, *optional*, defaults to 512 MiB):
            How many bytes the tensors may have more than the file stores, by being views of the same storage. Tied
            weights are; converted, each is written out.
        at (`Sequence[str]`, *optional*):
            Keys that lead to another part of the file, such as `("trainer", "ema")`. By default the first of
            `STATE_KEYS` that is there.

    Returns:
        `dict[str, Tensor]`: name -> tensor, in the file's order, without the prefixes of wrappers
        ([`~hf_captioners.conversion.state_names.unwrapped_names`]). Tensors are memory-mapped, apart from some of the
        older format: nothing is read before it is used, and the file must stay where it is until then.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint, names something that runs commands, holds no tensors, has a
            tensor that is larger than its own data, or is beyond a limit. A `MissingStateError` if there is nothing at
            `at`.

    Example:

    ```python
    >>> import tempfile, torch
    >>> from hf_captioners.conversion.safe_load import load_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"model": {"module._orig_mod.a": torch.ones(2)}, "epoch": 3}, folder + "/x.pth")
    ...     load_checkpoint(folder + "/x.pth")
    {'a': tensor([1., 1.])}

    ```
    """
    path = _existing_file(path, "checkpoint")
    if path.suffix == ".safetensors":
        if at:
            raise MissingStateError(f"{path}: a .safetensors file has no parts, so no {'.'.join(at)}")
        state: Mapping[str, Tensor] = _load_safetensors(path)
        _check_state(path, state, "at the top level")
    else:
        state = _load_torch(path, max_pickle_bytes, max_shared_bytes, at)
    try:
        names = unwrapped_names(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return {new: state[name].detach() for name, new in names.items()}


def load_plain_pickle(
    path: str | Path,
    max_bytes: int = MAX_PLAIN_BYTES,
    stand_ins: Mapping[str, Any] = NO_STAND_INS,
    encoding: str = "utf-8",
) -> Any:
    """Read a pickle of plain values: dict, list, tuple, set, str, bytes, int, float, bool and None, nothing else.

    Args:
        path (`str` or `Path`): the pickle.
        max_bytes (`int`, *optional*, defaults to 64 MiB): larger files are refused unread.
        stand_ins (`Mapping[str, Any]`, *optional*): full name of a class or function, such as
            `"collections.defaultdict"` -> what the pickle gets in its place, to call with plain values or to hold. The
            thing named is never imported. A stand-in must be an instance of a class with empty `__slots__`, or a class
            that is sealed, so that the pickle cannot change it. By default there are none.
        encoding (`str`, *optional*, defaults to `"utf-8"`): of strings that Python 2 pickled; `"latin-1"` reads any.

    Returns:
        The value.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is too large, not a pickle, nests values that explode when they are written out, or
            refers to any other global name (class or function), which is given; the name is never imported.

    Example:

    ```python
    >>> import pickle, tempfile
    >>> from hf_captioners.conversion.safe_load import load_plain_pickle
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     _ = file.write(pickle.dumps({"idx2word_list": ["a", "dog"]}))
    ...     file.flush()
    ...     load_plain_pickle(file.name)
    {'idx2word_list': ['a', 'dog']}

    ```
    """
    path = _existing_file(path, "pickle")
    return unpickle_plain(_read_bounded(path, max_bytes), str(path), stand_ins, encoding)


def unpickle_plain(
    content: bytes, where: str, stand_ins: Mapping[str, Any] = NO_STAND_INS, encoding: str = "utf-8"
) -> Any:
    """Unpickle plain values that have been read already, as [`load_plain_pickle`] does of a file.

    Args:
        content (`bytes`): the pickle.
        where (`str`): its file, and its place there, for messages.
        stand_ins (`Mapping[str, Any]`, *optional*), encoding (`str`): see [`load_plain_pickle`].

    Returns:
        The value.

    Raises:
        CheckpointError: see [`load_plain_pickle`].
    """
    try:
        _scan(where, content)
        value = _PlainUnpickler(content, stand_ins, encoding).load()
        check_nesting(value, len(content))
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{where}: {error}") from error
    except Exception as error:  # malformed pickles raise almost anything: IndexError, KeyError, TypeError, EOFError...
        raise CheckpointError(f"{where}: not a pickle of plain values ({type(error).__name__}: {error})") from error
    return value


def load_json(path: str | Path, max_bytes: int = MAX_PLAIN_BYTES) -> Any:
    """Read a JSON file (UTF-8).

    Args:
        path (`str` or `Path`): the file.
        max_bytes (`int`, *optional*, defaults to 64 MiB): larger files are refused unread.

    Returns:
        The value.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is too large or not JSON; line and column are given.
    """
    path = _existing_file(path, "JSON file")
    try:
        return json.loads(_read_bounded(path, max_bytes).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler without globals: names in a pickle become stand-ins, or are refused."""

    def __init__(self, content: bytes, stand_ins: Mapping[str, Any], encoding: str) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)
        self._stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self._stand_ins:
            return self._stand_ins[f"{module}.{name}"]
        raise pickle.UnpicklingError(
            f"refers to {module}.{name}; only plain values (dict, list, str, int...) are allowed"
        )


def _scan(where: str, content: bytes) -> None:
    """Scan a pickle, and show how far that has come where it takes long."""
    stream = io.BytesIO(content)
    shown = progress_of(stream.tell, desc=f"checking {Path(where).name}", total=len(content), unit="B", unit_scale=True)
    with shown if len(content) > _LONG else nullcontext():
        scan_pickle(stream, len(content))


def _warn_unread(path: Path, names: Iterable[str]) -> None:
    sorted_names = sorted(names)
    if sorted_names:
        rest = f" and {len(sorted_names) - _SHOWN} more" if len(sorted_names) > _SHOWN else ""
        logger.warning(
            "%s: left unread, as no plain value or tensor: %s%s", path, ", ".join(sorted_names[:_SHOWN]), rest
        )


def _existing_file(path: str | Path, kind: str) -> Path:
    try:
        return regular_file(path, kind)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(str(error)) from error


def _read_bounded(path: Path, max_bytes: int) -> bytes:
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise CheckpointError(f"{path}: larger than the limit of {max_bytes} bytes")
    return content


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error


def _load_torch(path: Path, max_pickle_bytes: int, max_shared_bytes: int, at: Sequence[str]) -> dict[str, Tensor]:
    try:
        file = open_torch_file(path, max_pickle_bytes)
        if not isinstance(file.content, Mapping):
            raise CheckpointError(f"{path}: holds {_kind(file.content)}, expected a dict of tensors")
        state, keys = find_state(_part(path, file.content, at), lambda value: isinstance(value, SavedTensor))
        keys = [*at, *keys]
        where = "under " + " and there ".join(map(repr, keys)) if keys else "at the top level"
        _check_state(path, state, where)
        _check_shared(path, state.values(), max_shared_bytes)
        tensors = {name: file.tensor(saved) for name, saved in state.items()}
    except CheckpointError:
        raise
    except Exception as error:  # malformed files raise almost anything, as for plain pickles
        raise _unreadable(path, error) from error
    _warn_unread(path, [*file.unread, *([] if at else _other_states(file, keys))])
    return tensors


def _part(path: Path, content: Mapping[Any, Any], at: Sequence[str]) -> Mapping[Any, Any]:
    """The object behind some keys."""
    for key in at:
        inner = content.get(key)
        if not isinstance(inner, Mapping):
            raise MissingStateError(f"{path}: has no state dict {'.'.join(at)}")
        content = inner
    return content


def _kind(value: Any) -> str:
    if isinstance(value, Unread):
        return f"a {value.class_name}, and objects are not loaded: save its state_dict() and convert that"
    return "a " + ("Tensor" if isinstance(value, SavedTensor) else type(value).__name__)


def _other_states(file: TorchFile, keys: list[str]) -> list[str]:
    """The keys of state dicts besides the one that was read."""
    other_keys = [key for key in STATE_KEYS if isinstance(file.content.get(key), Mapping) and key not in keys[:1]]
    return [f"the state dict {key!r} (taken: {keys[0]!r})" for key in other_keys if keys]


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and text.startswith(("needs the Python object", "nests tuples")):
        return CheckpointError(f"{path}: {text}")
    with path.open("rb") as file:
        head = file.read(16)
    first_line = text.splitlines()[0][:200] if text else ""
    return CheckpointError(
        f"{path}: not a checkpoint of torch.save that can be loaded safely (it begins with {head!r}): "
        f"{type(error).__name__}{': ' if first_line else ''}{first_line}"
    )


def _check_state(path: Path, state: Mapping[Any, Any], where: str) -> None:
    """Check that all entries are named tensors of possible shapes, without reading tensors."""
    objects = [value for value in state.values() if isinstance(value, Unread)]
    if not any(isinstance(value, Tensor | SavedTensor) for value in state.values()):
        key_list = ", ".join(show(key) for key in list(state)[:8]) or "nothing"
        hint = f"; {_kind(objects[0])} is not read" if objects else ""
        raise CheckpointError(
            f"{path}: no tensors {where} (found {key_list}{hint}); expected a state dict there or under "
            f"{', '.join(map(repr, STATE_KEYS[:5]))} or the like"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor | SavedTensor):
            kind = value.class_name if isinstance(value, Unread) else type(value).__name__
            raise CheckpointError(f"{path}: {show(name)} {where} is a {kind}, expected only named tensors")
        if isinstance(value, SavedTensor) and (problem := value.problem()):
            raise CheckpointError(f"{path}: {show(name)} {problem}")


def _check_shared(path: Path, tensors: Iterable[SavedTensor], limit: int) -> None:
    """Compare the bytes of all tensors with the bytes of all storages."""
    claimed, stored = 0, {}
    for saved in tensors:
        claimed += saved.nbytes
        stored[saved.storage and saved.storage.key] = saved.storage.nbytes if saved.storage else 0
    if claimed - sum(stored.values()) > limit:
        raise CheckpointError(
            f"{path}: its tensors have {claimed} bytes, but share {sum(stored.values())} in the file; the limit is "
            f"{limit} bytes of copies (max_shared_bytes)"
        )
