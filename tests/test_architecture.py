"""Imports point one way (docs/architecture.md), and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hf_captioners"

ALLOWED = {
    "modeling": set(),
    "data": {"modeling"},
    "metrics": {"modeling", "data"},
    "rewards": {"modeling", "data", "metrics"},
    "training": {"modeling", "data", "metrics", "rewards"},
    "inference": {"modeling", "data", "metrics"},
    "conversion": {"modeling", "data", "metrics"},
    "demo": {"modeling", "data", "training", "inference"},
    "cli": {"modeling", "data", "metrics", "rewards", "training", "inference", "conversion", "demo"},
    "": {"modeling"},  # hf_captioners/__init__.py and pipelines.py
}
# what code that travels to the Hub may import; its own files apart
TRAVELS_WITH = {"numpy", "PIL", "tokenizers", "torch", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)


def imported(path: Path) -> list[tuple[int, str]]:
    """All imports of a file, as (level, module)."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.level, name) for name in names]
    return found


def rooms_used(path: Path) -> set[str]:
    """The rooms that a file imports from, except its own."""
    inside = path.relative_to(PACKAGE).parent.parts
    used = set()
    for level, module in imported(path):
        if level:
            parts = [*inside[: len(inside) - level + 1], *module.split(".")]
        elif module.split(".")[0] == "hf_captioners":
            parts = module.split(".")[1:]
        else:
            continue
        if parts and (PACKAGE / parts[0]).is_dir():
            used.add(parts[0])
    return used - set(inside[:1])


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    folders = path.relative_to(PACKAGE).parent.parts
    assert rooms_used(path) <= ALLOWED[folders[0] if folders else ""]


def test_every_room_is_described():
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms | {""} == set(ALLOWED)
    text = (PACKAGE.parent / "docs/architecture.md").read_text("utf-8")
    assert [room for room in rooms if f"  {room}/" not in text] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "modeling").glob("*.py")), ids=lambda path: path.name)
def test_code_that_travels_imports_siblings_and_common_libraries_only(path):
    for level, module in imported(path):
        if level:
            assert level == 1 and "." not in module and (path.parent / f"{module}.py").exists(), module
        else:
            assert module.split(".")[0] in TRAVELS_WITH, module


def test_importing_the_package_loads_no_optional_library():  # accelerate is loaded by transformers itself
    code = "import sys, hf_captioners; print(sorted({'datasets', 'trl', 'peft'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_all_public_names_exist():
    import hf_captioners

    assert [name for name in hf_captioners.__all__ if getattr(hf_captioners, name, None) is None] == []
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_captioners.nothing
