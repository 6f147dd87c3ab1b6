"""Names of shards in one pattern, `shards/{000000..000999}.tar`, as shells and WebDataset write it."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(pattern: str) -> Iterator[str]:
    """List the names that a pattern stands for.

    Args:
        pattern (`str`): with `{000..012}`, numbers with as many digits as they are written with, or `{train,val}`, any
            number of times; braces with neither stand for themselves.

    Yields:
        `str`: a name, in the order of the numbers and alternatives.

    Example:

    ```python
    >>> from hf_captioners.data.braces import expand_braces
    >>> list(expand_braces("{a,b}/{08..10}.tar"))
    ['a/08.tar', 'a/09.tar', 'a/10.tar', 'b/08.tar', 'b/09.tar', 'b/10.tar']

    ```
    """
    for match in _BRACES.finditer(pattern):
        alternatives = _alternatives(match[1])
        if alternatives is not None:
            for text in alternatives:
                for rest in expand_braces(pattern[match.end() :]):
                    yield f"{pattern[: match.start()]}{text}{rest}"
            return
    yield pattern


def _alternatives(content: str) -> Iterator[str] | None:
    """The names that braces with such a content stand for; `None` if for themselves."""
    if numbers := _RANGE.fullmatch(content):
        first, last = int(numbers[1]), int(numbers[2])
        padded = any(text.startswith("0") and len(text) > 1 for text in numbers.groups())
        width = max(map(len, numbers.groups())) if padded else 1
        step = 1 if first <= last else -1
        return (f"{number:0{width}d}" for number in range(first, last + step, step))
    return iter(content.split(",")) if "," in content else None
