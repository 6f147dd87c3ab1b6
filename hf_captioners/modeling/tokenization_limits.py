"""Loading tokenizers of others: the rules in a tokenizer file may replace a character by a million others.

`{"type": "Replace", "pattern": {"String": "a"}, "content": "aaaaaaaaaa"}`, twenty times over, is a file of two
kilobytes that makes 10^20 characters of one. How much a text can grow is computed from the file before it is loaded.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.utils import cached_file

FILE = "tokenizer.json"
MAX_BYTES = 512 * 1024 * 1024
MAX_GROWTH = 1000.0
_PLACES = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


def load_tokenizer(source: str | Path, max_growth: float = MAX_GROWTH, **options: Any) -> Any:
    """Load a tokenizer, once it is known that its rules cannot explode.

    Args:
        source (`str` or `Path`): folder or Hub name.
        max_growth (`float`, defaults to 1000): how many characters the rules may make of one.
        options: arguments of `AutoTokenizer.from_pretrained`.

    Returns:
        `PreTrainedTokenizerBase`

    Raises:
        OSError, ValueError: no tokenizer can be loaded, or its rules are beyond the limit.
    """
    check_tokenizer(source, max_growth, **options)
    return AutoTokenizer.from_pretrained(source, **options)


def check_tokenizer(source: str | Path, max_growth: float = MAX_GROWTH, **options: Any) -> None:
    """Check the rules of a `tokenizer.json`, if there is one.

    Args:
        source (`str` or `Path`), max_growth (`float`), options: see [`load_tokenizer`]; of the options only those that
            say where a file of the Hub is are read.

    Raises:
        ValueError: the file is larger than 512 MiB, is not JSON, or its rules are beyond the limit.
    """
    places = {name: value for name, value in options.items() if name in _PLACES}
    try:
        file = cached_file(str(source), FILE, **places)
    except OSError:  # a tokenizer of another kind, or none: the loader reports it
        return
    path = Path(str(file))
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; the limit of a tokenizer file is {MAX_BYTES}")
    try:
        rules = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}") from error
    for part in ("normalizer", "pre_tokenizer", "decoder"):
        grown = growth(rules.get(part) if isinstance(rules, dict) else None)
        if grown > max_growth:
            raise ValueError(
                f"{path}: the rules of its {part} can make {grown:.3g} characters of one; the limit is {max_growth:g}"
            )


def growth(rule: Any) -> float:
    """Bound the number of characters that a rule of a tokenizer file makes of one.

    Args:
        rule (`Any`): a normalizer, pre-tokenizer or decoder, as the file has it.

    Returns:
        `float`

    Example:

    ```python
    >>> from hf_captioners.modeling.tokenization_limits import growth
    >>> double = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    >>> growth({"type": "Sequence", "normalizers": [double] * 10})
    1024.0

    ```
    """
    if not isinstance(rule, dict):
        return 1.0
    grown = 1.0
    for name in ("normalizers", "pretokenizers", "decoders"):
        for step in rule.get(name) or ():
            grown *= growth(step)
    if rule.get("type") == "Replace":
        return max(1.0, _replaced(rule.get("pattern"), str(rule.get("content", ""))))
    if rule.get("type") == "Prepend":
        return 1.0 + len(str(rule.get("prepend", "")))
    return grown


def _replaced(pattern: Any, content: str) -> float:
    text = pattern.get("String") if isinstance(pattern, dict) else None
    if isinstance(text, str) and text:
        return len(content) / len(text)
    expression = pattern.get("Regex") if isinstance(pattern, dict) else None
    return float(len(content) + (not isinstance(expression, str) or _matches_nothing(expression)))


def _matches_nothing(expression: str) -> bool:
    """Tell whether an expression matches the empty text, and its replacement is put between all characters."""
    try:
        return re.match(expression, "") is not None
    except (re.error, RecursionError, OverflowError):  # syntax that Python does not have
        return True
