"""Stand-ins for the classes and functions that untrusted files name, which are never imported.

Everything here is an instance of a class with empty `__slots__`, or a class that is sealed, so that a pickle can fill
its own values and change nothing else.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, cast

# No training writes these beside its weights. They would not run either way; refusing them tells the user.
_HOSTILE_MODULES = {
    *("os", "posix", "nt", "sys", "subprocess", "shutil", "socket", "ctypes", "importlib", "imp", "runpy"),
    *("pty", "webbrowser", "marshal", "pdb", "timeit", "operator", "pip", "asyncio", "multiprocessing"),
}
_BUILTINS = {"builtins", "__builtin__"}
_PLAIN_BUILTINS = {
    *("object", "set", "frozenset", "dict", "list", "tuple", "str", "unicode", "bytes", "bytearray", "int", "long"),
    *("float", "bool", "complex", "slice", "range", "xrange", "type", "NoneType", "Ellipsis"),
    "getattr",  # of an Enum's members
}


_PATHS = ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")


class SealedType(type):
    """The type of classes that a pickle may make instances of: it cannot change them."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"{cls.__name__}.{name} cannot be set by a pickle")


class OptionBag(metaclass=SealedType):
    """Stand-in for `argparse.Namespace`: attributes and nothing else; `vars(bag)` are the options."""


class Unread(metaclass=SealedType):
    """Stand-in for an object of any class: it accepts all that a pickle does with it, and keeps nothing.

    Attributes:
        class_name (`str`): the full name of the class.
    """

    __slots__ = ()
    class_name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> Unread:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, *args: Any, **kwargs: Any) -> Unread:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Ignore a value, as for a subclass of `list`."""

    extend = add = append

    def __repr__(self) -> str:
        return f"<{self.class_name}, left unread>"


def unread_class(module: str, name: str) -> type[Unread]:
    """Make the stand-in for a class or function that is not read.

    Args:
        module (`str`), name (`str`): what the pickle asks for.

    Returns:
        `type[Unread]`: to be called, or to make instances of.

    Raises:
        pickle.UnpicklingError: the name is one with which a pickle runs commands.

    Example:

    ```python
    >>> from hf_captioners.conversion.stand_ins import unread_class
    >>> unread_class("pathlib", "PosixPath")("a", "b")
    <pathlib.PosixPath, left unread>

    ```
    """
    hostile = module.split(".", 1)[0] in _HOSTILE_MODULES
    if hostile or (module in _BUILTINS and name not in _PLAIN_BUILTINS):
        raise pickle.UnpicklingError(
            f"needs the Python object {module}.{name}, which is not a plain tensor container; files that would run "
            "code are not loaded. Save the state dict alone and convert that"
        )
    unread = SealedType("Unread", (Unread,), {"__slots__": (), "class_name": f"{module}.{name}"})
    return cast(type[Unread], unread)


class Named:
    """Stand-in for a class that is named but never called."""

    __slots__ = ()


class _EmptyDict:
    """Stand-in for `collections.defaultdict`: for any factory it makes a plain dict."""

    __slots__ = ()

    def __call__(self, *factory: Any) -> dict[Any, Any]:
        return {}


DEFAULTDICT: Mapping[str, Any] = MappingProxyType(
    {
        "collections.defaultdict": _EmptyDict(),
        **{f"{module}.{name}": Named() for module in _BUILTINS for name in ("float", "int", "long")},
    }
)
"""Stand-ins with which `load_plain_pickle` reads a `defaultdict(float)` or `defaultdict(int)` as a plain dict."""


class _NumberType:
    """Stand-in for a NumPy dtype: its code, and the order of its bytes."""

    __slots__ = ("code", "order")

    def __init__(self, code: Any) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


class _MakeNumberType:
    """Stand-in for `numpy.dtype`."""

    __slots__ = ()

    def __call__(self, code: Any, *flags: Any) -> _NumberType:
        return _NumberType(code)


_FORMATS = {
    **{"b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"},
    **{"f2": "e", "f4": "f", "f8": "d"},
}  # NumPy's code of a number -> that of `struct`


class _MakeNumber:
    """Stand-in for NumPy's scalars: the `int`, `float`, `bool` or `str`; `None` for any other type."""

    __slots__ = ()

    def __call__(self, kind: Any, data: Any = b"") -> float | str | None:
        data = data.encode("latin-1") if isinstance(data, str) else data  # a string of Python 2
        if not isinstance(kind, _NumberType) or not isinstance(data, bytes) or not isinstance(kind.code, str):
            return None
        if kind.code in _FORMATS:
            return struct.unpack(kind.order + _FORMATS[kind.code], data)[0]
        if kind.code.startswith("U"):
            return data.decode("utf-32-be" if kind.order == ">" else "utf-32-le").rstrip("\0")
        return None


class _EncodeLatin1:
    """Stand-in for `_codecs.encode`, with which protocol 2 writes bytes."""

    __slots__ = ()

    def __call__(self, text: str, encoding: str = "latin1") -> bytes:
        if encoding not in ("latin1", "latin-1"):
            raise pickle.UnpicklingError(f"encodes bytes as {encoding!r}; expected latin1")
        return text.encode("latin-1")


class _Reconstruct:
    """Stand-in for `copyreg._reconstructor`, with which protocols 0 and 1 make an `argparse.Namespace`."""

    __slots__ = ()

    def __call__(self, cls: Any, base: Any, state: Any) -> Any:
        if cls is OptionBag:
            return OptionBag()
        if isinstance(cls, type) and issubclass(cls, Unread):
            return cls()
        raise pickle.UnpicklingError("makes an object that is no argparse.Namespace with copyreg._reconstructor")


class _JoinPath:
    """Stand-in for the paths of `pathlib`: the text."""

    __slots__ = ()

    def __call__(self, *parts: str) -> str:
        return "/".join(parts)


NUMBERS: Mapping[str, Any] = MappingProxyType(
    {
        "numpy.dtype": _MakeNumberType(),
        "numpy.core.multiarray.scalar": _MakeNumber(),
        "numpy._core.multiarray.scalar": _MakeNumber(),
        "_codecs.encode": _EncodeLatin1(),
    }
)
"""Stand-ins with which `load_plain_pickle` reads NumPy's numbers and strings as those of Python."""

OPTIONS: Mapping[str, Any] = MappingProxyType(
    {
        **NUMBERS,
        "argparse.Namespace": OptionBag,
        "copyreg._reconstructor": _Reconstruct(),
        "copy_reg._reconstructor": _Reconstruct(),
        **{f"{module}.object": Named() for module in _BUILTINS},
        **{f"{module}.{name}": _JoinPath() for module in ("pathlib", "pathlib._local") for name in _PATHS},
        **{f"numpy.{core}.multiarray._reconstruct": unread_class("numpy", "ndarray") for core in ("core", "_core")},
        **{f"numpy.{core}.numeric._frombuffer": unread_class("numpy", "ndarray") for core in ("core", "_core")},
        "numpy.ndarray": Named(),
    }
)
"""Stand-ins with which `load_plain_pickle` reads options and scores of a training script: an `argparse.Namespace` as an
[`OptionBag`], a NumPy number as one of Python, a path as its text; arrays are left [`Unread`]."""
