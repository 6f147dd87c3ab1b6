"""Recipes: the options of a YAML file, read within limits and without what YAML would pass over in silence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from ..data.files import regular_file
from .common import UsageError, needed

MAX_BYTES = 2**20
MAX_VALUES = 100_000
"""Values of a recipe with its aliases followed: ten lines of aliases can stand for 10^10 values."""


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read the options of a YAML file.

    Args:
        path (`str` or `Path`): the file of `--config`.

    Returns:
        `dict[str, Any]`

    Raises:
        UsageError: it cannot be read, is no mapping of options, has a name twice, or is beyond a limit; with the line.
    """
    with needed("train"):
        import yaml

    class Loader(yaml.SafeLoader):
        """YAML's safe loader, for which a name that stands twice is an error."""

        def compose_mapping_node(self, anchor: Any) -> Any:
            node = super().compose_mapping_node(anchor)
            names: set[str] = set()
            for name, _ in node.value:
                if isinstance(name, yaml.ScalarNode) and name.value in names:
                    problem = f"{name.value} stands here for the second time"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=name.start_mark)
                names.add(str(name.value))
            return node

    try:
        recipe = yaml.load(_text(Path(path)), Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise UsageError(f"--config {path}{place}: {error.problem or error.context}") from error
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: no YAML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"--config {path}: lists and mappings are nested too deeply in it") from error
    if recipe is None:
        return {}
    if not isinstance(recipe, dict):
        raise UsageError(f"--config {path}: must be lines of `option: value`")
    if _values(recipe, {}) > MAX_VALUES:
        raise UsageError(f"--config {path}: its aliases (*name) stand for more than {MAX_VALUES} values")
    return recipe


def _text(path: Path) -> str:
    if path.exists():
        size = regular_file(path, "recipe").stat().st_size
        if size > MAX_BYTES:
            raise UsageError(f"--config {path}: {size} bytes; the limit of a recipe is {MAX_BYTES}")
    return path.read_text("utf-8")


def _values(value: Any, known: dict[int, float]) -> float:
    """The number of values with aliases followed; infinite where one contains itself."""
    if not isinstance(value, (list, dict)):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_values(part, known) for part in parts)
    return known[id(value)]
