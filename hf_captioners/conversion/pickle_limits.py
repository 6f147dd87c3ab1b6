"""Limits of pickles, before they are read and of their content: no code, no huge numbers, no exploding nesting.

A pickle names a value once and refers to it as often as it likes. A tuple of two references to a tuple of two
references, forty levels deep, takes 200 bytes; hashing it, as a key of a dict, or writing it into a message takes 2^40
steps. Both are counted here, without hashing or writing anything.
"""

from __future__ import annotations

import pickle
import pickletools
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, BinaryIO, cast

from .stand_ins import OptionBag

MAX_DEPTH = 100
MAX_INT_BITS = 14_000  # Python refuses to print longer ones
FREE_VALUES = 1_000_000  # values that may come from references, however small the file
VALUES_PER_BYTE = 4

# `find_class` is not asked about these: the extension registry's cache, and out-of-band buffers.
_REFUSED = {"EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
_PERSISTENT = {"PERSID", "BINPERSID"}
_PUTS = {"PUT", "BINPUT", "LONG_BINPUT"}
_GETS = {"GET", "BINGET", "LONG_BINGET"}
_HASHED = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET"}
_PLAIN = {str, bytes, int, float, bool, type(None)}
_MARK = 0  # on the stack of weights; values weigh 1 or more

_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 3, 60, 60


def show(value: Any) -> str:
    """A short text of an untrusted value for a message, however large and nested the value is.

    Args:
        value (`Any`): the value.

    Returns:
        `str`: its `repr`, in parts replaced by `...`.

    Example:

    ```python
    >>> from hf_captioners.conversion.pickle_limits import show
    >>> show("dog"), show([[1] * 100] * 100)
    ("'dog'", '[[1, 1, 1, 1, 1, 1, ...], [1, 1, 1, 1, 1, 1, ...], ...]')

    ```
    """
    return _SHORT.repr(value)


def scan_pickle(stream: BinaryIO, size: int, persistent_ids: bool = False) -> None:
    """Scan the opcodes of a pickle without executing them, and refuse those that plain values do not need.

    Args:
        stream (`BinaryIO`): at the beginning of the pickle; afterwards behind its end.
        size (`int`): bytes of the whole pickle, to which references are compared.
        persistent_ids (`bool`, *optional*, defaults to `False`): allow them, as for the storages of a checkpoint.

    Raises:
        pickle.UnpicklingError: an opcode that bypasses `find_class`; a memo index that is beyond the file; an
            integer beyond 14,000 bits; tuples that share parts until they have more values than the limit.
    """
    refused = _REFUSED if persistent_ids else _REFUSED | _PERSISTENT
    weights = _Weights(FREE_VALUES + VALUES_PER_BYTE * size)
    for opcode, argument, position in pickletools.genops(stream):
        name = opcode.name
        if name in refused:
            raise pickle.UnpicklingError(f"uses the pickle opcode {name} at byte {position}; plain values need none")
        if type(argument) is int:
            if argument.bit_length() > MAX_INT_BITS:
                raise pickle.UnpicklingError(f"has an integer of {argument.bit_length()} bits at byte {position}")
            if name in _PUTS and not 0 <= argument <= size:
                raise pickle.UnpicklingError(f"memo index {argument} at byte {position} is larger than the file")
        _FOLLOW[name](weights, cast(Any, argument))


class _Weights:
    """The stack of an unpickler with the number of values in each tuple instead of the values."""

    def __init__(self, limit: int) -> None:
        self.limit, self.total = limit, 0
        self.stack: list[int] = []
        self.memo: dict[int, int] = {}

    def put(self, index: int | None) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self._repeat(self.memo[index])

    def duplicate(self, _: Any) -> None:
        self._repeat(self.stack[-1])

    def mark(self, _: Any) -> None:
        self.stack.append(_MARK)

    def pop(self, _: Any) -> None:
        self.stack.pop()

    def push(self, _: Any) -> None:
        self.stack.append(1)
        self.total += 1

    def _repeat(self, weight: int) -> None:
        self.stack.append(weight)
        self.total += weight
        if self.total > self.limit:
            raise pickle.UnpicklingError(
                f"nests tuples that share their parts: with all references followed more than {self.limit} values"
            )

    def take(self, count: int, to_mark: bool) -> int:
        """Pop all values above the last mark if `to_mark`, and then `count` values; return their weight."""
        stack, weight = self.stack, 0
        if to_mark:
            while part_weight := stack.pop():
                weight += part_weight
        for _ in range(count):
            weight += stack.pop()
        return weight


def _follower(opcode: Any) -> Callable[[_Weights, Any], None]:
    """The effect of an opcode on the stack of weights."""
    before, after = list(opcode.stack_before), len(opcode.stack_after)
    to_mark = pickletools.markobject in before
    count = before.index(pickletools.markobject) if to_mark else len(before)
    hashed = opcode.name in _HASHED
    if not before and after == 1:
        return _Weights.push

    def follow(weights: _Weights, _: Any) -> None:
        weight = weights.take(count, to_mark)
        weights.stack.extend([1 + weight if hashed else 1] * after)

    return follow


_FOLLOW = {
    **{opcode.name: _follower(opcode) for opcode in pickletools.opcodes},
    **dict.fromkeys((*_PUTS, "MEMOIZE"), _Weights.put),
    **dict.fromkeys(_GETS, _Weights.get),
    "DUP": _Weights.duplicate,
    "MARK": _Weights.mark,
    "POP": _Weights.pop,
}


def check_nesting(value: Any, size: int) -> None:
    """Count the values in a loaded pickle with all references followed, in time proportional to its real size.

    Args:
        value (`Any`): what was loaded.
        size (`int`): bytes of the pickle.

    Raises:
        pickle.UnpicklingError: more values than the limit, nested deeper than 100, or a container inside itself.
    """
    limit = FREE_VALUES + VALUES_PER_BYTE * size
    if _count(value, {}, 0) > limit:
        raise pickle.UnpicklingError(f"nests values that share their parts: with all references followed over {limit}")


def _count(value: Any, counts: dict[int, int], depth: int) -> int:
    parts = _parts(value)
    if parts is None:
        return 1
    if id(value) in counts:
        if not counts[id(value)]:
            raise pickle.UnpicklingError("holds a container that contains itself")
        return counts[id(value)]
    if depth > MAX_DEPTH:
        raise pickle.UnpicklingError(f"nests values deeper than {MAX_DEPTH}")
    counts[id(value)] = 0
    total = 1
    for part in parts:
        total += 1 if type(part) in _PLAIN else _count(part, counts, depth + 1)
    counts[id(value)] = total
    return total


def _parts(value: Any) -> Iterable[Any] | None:
    if isinstance(value, dict):
        return (part for item in value.items() for part in item)
    if isinstance(value, list | tuple | set | frozenset):
        return value
    return vars(value).values() if isinstance(value, OptionBag) else None
