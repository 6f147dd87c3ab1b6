"""Reading the files of others: checkpoints, vocabulary pickles and JSON, without running anything that is inside them.

This is the only `torch.load` of the project. Checkpoints are opened with `weights_only=True` and, where the format
allows it, memory-mapped: names and shapes can then be compared with the model before any weight is read from the disk.
Vocabularies that were pickled are read by an unpickler that knows no global name at all.
"""

import io
import json
import pickle
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

MODEL_KEYS = ("model_state_dict", "model")
MAX_PLAIN_BYTES = 64 * 1024 * 1024
NO_STAND_INS: Mapping[str, Any] = MappingProxyType({})

# `find_class` is not asked about these: the extension registry's cache, persistent ids, out-of-band buffers.
_REFUSED_OPCODES = {"EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER"}
_MEMO_OPCODES = {"PUT", "BINPUT", "LONG_BINPUT"}


class CheckpointError(ValueError):
    """A file that cannot be read safely, or that does not hold what was expected. The message names the file."""


def load_checkpoint(path: str | Path, keys: Sequence[str] = MODEL_KEYS) -> dict[str, Tensor]:
    """
    Loads the model part of a checkpoint, on the CPU, without running code from it.

    Args:
        path (`str` or `Path`):
            A file of `torch.save` (zip or older format) or a `.safetensors` file.
        keys (`Sequence[str]`, *optional*, defaults to `("model_state_dict", "model")`):
            Top-level keys under which the state dict may be found; the first one present wins. Without any of them the
            whole file must be a state dict.

    Returns:
        `dict[str, Tensor]`: name -> tensor, in the file's order. The prefix `module.` of `DistributedDataParallel` is
        removed when all names carry it. Tensors of zip and safetensors files are memory-mapped: nothing is read before
        it is used, and the file must stay where it is until then.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a checkpoint, needs a Python object that is not allowed (its name is given),
            holds no tensors, or has a tensor that is larger than its own data.

    Example:

    ```python
    >>> import tempfile, torch
    >>> from hf_captioners.conversion.safe_load import load_checkpoint
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save({"model": {"module.a": torch.ones(2)}, "epoch": 3}, folder + "/x.pth")
    ...     load_checkpoint(folder + "/x.pth")
    {'a': tensor([1., 1.])}

    ```
    """
    path = _existing_file(path, "checkpoint")
    content: Any = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dict of tensors")
    chosen = next((key for key in keys if isinstance(content.get(key), Mapping)), None)
    state: Mapping[str, Any] = content if chosen is None else content[chosen]
    where = "at the top level" if chosen is None else f"under {chosen!r}"
    _check_state(path, state, where, keys)
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor.detach() for name, tensor in state.items()}


class _EmptyDict:
    """Stands for `collections.defaultdict`: called with whatever factory, it gives a plain dict to be filled."""

    __slots__ = ()

    def __call__(self, *factory: Any) -> dict[Any, Any]:
        return {}


class _Named:
    """Stands for a class that is named but never called."""

    __slots__ = ()


DEFAULTDICT: Mapping[str, Any] = MappingProxyType(
    {
        "collections.defaultdict": _EmptyDict(),
        **{f"{module}.{name}": _Named() for module in ("builtins", "__builtin__") for name in ("float", "int", "long")},
    }
)
"""Stand-ins with which `load_plain_pickle` reads a `defaultdict(float)` or `defaultdict(int)` as a plain dict."""


class _SealedType(type):
    """The type of classes that a pickle may make instances of: it cannot change them."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"{cls.__name__}.{name} cannot be set by a pickle")


class OptionBag(metaclass=_SealedType):
    """Stands for `argparse.Namespace`: attributes and nothing else; `vars(bag)` are the options."""


class _NumberType:
    """What `numpy.dtype(code)` gives: only told whether it is a little-endian float64."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _MakeNumberType:
    """Stands for `numpy.dtype`."""

    __slots__ = ()

    def __call__(self, code: Any, *flags: Any) -> _NumberType:
        return _NumberType(code)


class _MakeNumber:
    """Stands for NumPy's scalars: the number of a float64, `None` for any other type."""

    __slots__ = ()

    def __call__(self, kind: Any, data: Any = b"") -> float | None:
        data = data.encode("latin-1") if isinstance(data, str) else data  # a string of Python 2
        if not isinstance(kind, _NumberType) or (kind.code, kind.order) != ("f8", "<") or not isinstance(data, bytes):
            return None
        return struct.unpack("<d", data)[0]


class _EncodeLatin1:
    """Stands for `_codecs.encode`, with which protocol 2 writes bytes."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"encodes bytes as {encoding!r}; expected latin1")
        return text.encode("latin-1")


OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        "argparse.Namespace": OptionBag,
        "numpy.dtype": _MakeNumberType(),
        "numpy.core.multiarray.scalar": _MakeNumber(),
        "numpy._core.multiarray.scalar": _MakeNumber(),
        "_codecs.encode": _EncodeLatin1(),
    }
)
"""Stand-ins with which `load_plain_pickle` reads options and scores of a training script: an `argparse.Namespace` as an
[`OptionBag`], a NumPy float64 as a float, other NumPy numbers as `None`."""


def load_plain_pickle(
    path: str | Path,
    max_bytes: int = MAX_PLAIN_BYTES,
    stand_ins: Mapping[str, Any] = NO_STAND_INS,
    encoding: str = "utf-8",
) -> Any:
    """
    Reads a pickle of plain values: dict, list, tuple, set, str, bytes, int, float, bool and None, nothing else.

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
        CheckpointError: the file is too large, not a pickle, or refers to any other global name (class or function),
            which is given; the name is never imported.

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
    content = _read_bounded(path, max_bytes)
    try:
        _scan_opcodes(content)
        return _PlainUnpickler(content, stand_ins, encoding).load()
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # malformed pickles raise almost anything: IndexError, KeyError, TypeError, EOFError...
        raise CheckpointError(f"{path}: not a pickle of plain values ({type(error).__name__}: {error})") from error


def load_json(path: str | Path, max_bytes: int = MAX_PLAIN_BYTES) -> Any:
    """
    Reads a JSON file (UTF-8).

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
    """An unpickler without globals: what a pickle asks for by name is a stand-in, or refused by name."""

    def __init__(self, content: bytes, stand_ins: Mapping[str, Any], encoding: str) -> None:
        super().__init__(io.BytesIO(content), encoding=encoding)
        self._stand_ins = stand_ins

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" in self._stand_ins:
            return self._stand_ins[f"{module}.{name}"]
        raise pickle.UnpicklingError(
            f"refers to {module}.{name}; only plain values (dict, list, str, int...) are allowed"
        )


def _scan_opcodes(content: bytes) -> None:
    """Refuses, before unpickling, what could get past `find_class` and memo indices that would allocate at will."""
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name in _REFUSED_OPCODES:
            raise pickle.UnpicklingError(
                f"uses the pickle opcode {opcode.name} at byte {position}; plain values need none"
            )
        if opcode.name in _MEMO_OPCODES and int(argument or 0) > len(content):
            raise pickle.UnpicklingError(f"memo index {argument} at byte {position} is larger than the file")


def _existing_file(path: str | Path, kind: str) -> Path:
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{kind} not found: {path}")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected a {kind}, found something that is not a regular file")
    return path


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


def _load_torch(path: Path) -> Any:
    try:
        # Files in the format before torch 1.6 cannot be memory-mapped; Microsoft's older backbones are of that kind.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # malformed files raise almost anything, as for plain pickles
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: needs the Python object {refused[1]}, which is not a plain tensor container; files that "
                "would run code are not loaded. Save the state dict alone and convert that"
            ) from error
        with path.open("rb") as file:
            head = file.read(16)
        raise CheckpointError(
            f"{path}: not a checkpoint of torch.save that can be loaded safely (it begins with {head!r}): "
            f"{_first_line(error)}"
        ) from error


def _first_line(error: Exception) -> str:
    """The first line of an error, without torch's advice to load the file unsafely."""
    text = str(error).split("Weights only load failed", 1)[0].strip()
    return f"{type(error).__name__}{': ' + text.splitlines()[0] if text else ''}"


def _check_state(path: Path, state: Mapping[str, Any], where: str, keys: Sequence[str]) -> None:
    if not any(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(repr(key) for key in list(state)[:8]) or "nothing"
        wanted = ", ".join(repr(key) for key in keys)
        raise CheckpointError(
            f"{path}: no tensors {where} (found {found}); expected a state dict there or under {wanted}"
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name!r} {where} is a {type(value).__name__}, expected only named tensors")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CheckpointError(
                f"{path}: {name} is a sparse, quantized or empty (meta) tensor, expected an ordinary one"
            )
        # An expanded view claims any shape on top of one number; copying it would allocate what it claims.
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError(
                f"{path}: {name} claims shape {list(value.shape)} but the file holds less data than that"
            )
