"""Imports point one way (docs/architecture.md), and importing the package stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "hf_captioners"
FILES = sorted(PACKAGE.rglob("*.py"))

# what the files of a package import from other packages, its sub-packages included
ALLOWED = {
    "modeling": set(),
    "data": {"modeling"},
    "families": {"modeling", "data"},
    "metrics": {"modeling", "data"},
    "rewards": {"modeling", "data", "metrics"},
    "hub": {"modeling", "data", "metrics", "families"},
    "training": {"modeling", "data", "families", "metrics", "rewards", "inference", "hub"},
    "inference": {"modeling", "data", "families", "metrics", "export"},
    "export": {"modeling", "data"},
    "reports": {"modeling", "data", "metrics"},
    "conversion": {"modeling", "data", "metrics", "hub"},
    "demo": {"modeling", "data", "families", "training", "inference", "reports"},
    # "": the files of hf_captioners/ itself
    "cli": {
        *("", "modeling", "data", "families", "metrics", "rewards", "training", "inference", "reports"),
        *("conversion", "demo", "hub", "export"),
    },
    "": {"modeling", "families", "export"},
}
# what a sub-package imports from its siblings; the files of the package above use, and are used, as files allow
SIBLINGS = {
    "data.captions": set(),
    "data.features": {"data.captions"},
    "data.drawn": set(),
    "metrics.ptb": set(),
    "metrics.cider": {"metrics.ptb"},
    "metrics.clip": set(),
    "metrics.meteor": set(),
    "metrics.spice": set(),
    "training.reward": {"training.watch"},
    "training.watch": set(),
    "cli.training": set(),
}
FOR_ALL = {
    "_version.py",
    "captioner_table.py",
    "extras.py",
    "metric_table.py",
}  # of hf_captioners/ itself, light: all files may import them
# what code that travels to the Hub may import; its own files apart
TRAVELS_WITH = {"numpy", "PIL", "safetensors", "tokenizers", "torch", "transformers", "huggingface_hub"}
TRAVELS_WITH |= {"typing_extensions"} | set(sys.stdlib_module_names)  # which torch needs


def imported(path: Path) -> list[tuple[int, str]]:
    """All imports of a file, as (level, module); the names that a module is asked for are modules, too, if they can."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module or ''}.{alias.name}".strip(".") for alias in node.names]
            found += [(node.level, name) for name in names]
    return found


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).parent.parts)


@cache
def imported_files(path: Path) -> frozenset[Path]:
    """The files of the package that a file imports, wherever in it."""
    inside = path.relative_to(PACKAGE).parent.parts
    files = set()
    for level, module in imported(path):
        parts = module.split(".")
        if level:
            parts = [*inside[: len(inside) - level + 1], *parts]
        elif parts[0] == "hf_captioners":
            parts = parts[1:]
        else:
            continue
        places = [PACKAGE.joinpath(*parts[:end]) for end in (len(parts), len(parts) - 1)]  # a module, or a name in it
        candidates = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        files |= {next(file for file in candidates if file.exists())}
    return frozenset(files - {path})


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_one_way(path):
    package = package_of(path)
    top = package.split(".")[0]
    for file in imported_files(path):
        used = package_of(file)
        if used.split(".")[0] == top:
            assert package == top or used in {package, top} | SIBLINGS[package], file
        elif path.name != "__main__.py":  # the command line as a module
            assert used.split(".")[0] in ALLOWED[top] or file.name in FOR_ALL, file


def test_no_circles():
    """Two files never need each other, not even inside a package or a function."""
    names = {path: ".".join([*path.relative_to(PACKAGE).parent.parts, path.stem]) for path in FILES}
    graph = {names[path]: {names[file] for file in imported_files(path)} for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_package_is_described():
    packages = {package_of(path) for path in FILES}
    assert {name for name in packages if "." not in name} == set(ALLOWED)
    assert {name for name in packages if "." in name} == set(SIBLINGS)
    text = (PACKAGE.parent / "docs/architecture.md").read_text("utf-8")
    assert [name for name in packages - {""} if f" {name.split('.')[-1]}/" not in text] == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "modeling").glob("*.py")), ids=lambda path: path.name)
def test_code_that_travels_imports_siblings_and_common_libraries_only(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= TRAVELS_WITH
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1 and node.module and (path.parent / f"{node.module}.py").exists(), node.module
        elif isinstance(node, ast.ImportFrom):
            assert str(node.module).split(".")[0] in TRAVELS_WITH, node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_begin_with_a_noun_or_a_verb(path):
    opening = ("What", "Where", "How", "Whether", "See", "Who", "Which", "Why", "When")
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    docs = {
        node: ast.get_docstring(node)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, kinds)
    }
    assert [doc for doc in docs.values() if doc and doc.split()[0] in opening] == []


def test_importing_the_package_is_light_and_reaches_all_of_it():
    packages = sorted(set(ALLOWED) - {""})
    code = f"""
import sys, hf_captioners
from hf_captioners.metrics import CaptionMetrics
CaptionMetrics(["bleu", "rouge_l", "cider_d"])(["a dog runs", "a cat"], [["a dog", "the dog runs"], ["a black cat"]])
print(sorted({{"torch", "transformers", "datasets", "trl", "peft"}} & set(sys.modules)))
print([name for name in {packages} if getattr(hf_captioners, name).__name__ != "hf_captioners." + name])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[]", "[]"]


def test_all_public_names_exist():
    import hf_captioners

    assert [name for name in hf_captioners.__all__ if getattr(hf_captioners, name, None) is None] == []
    assert set(hf_captioners.__all__) <= set(dir(hf_captioners))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = hf_captioners.nothing


def public_stub() -> str:
    """Text of `__init__.pyi`: the public names and packages, from the tables that `__init__.py` loads them by."""
    import hf_captioners

    home = {**hf_captioners._HOME, "__version__": "_version", **dict.fromkeys(hf_captioners._PACKAGES, "")}
    names = sorted(home, key=lambda name: (home[name], name.islower(), name))
    title = "The public names, for editors and type checkers; at run time `__init__.py` loads them on first use."
    lines = (f"from .{home[name]} import {name} as {name}" for name in names)
    return "\n".join([f'"""{title}"""', "", *lines, ""])


def test_editors_know_the_public_names():
    assert (PACKAGE / "__init__.pyi").read_text("utf-8") == public_stub(), "write it anew: make stub"


def test_tests_reach_no_network():
    from huggingface_hub import constants

    assert constants.HF_HUB_OFFLINE


if __name__ == "__main__":  # make stub
    (PACKAGE / "__init__.pyi").write_text(public_stub(), "utf-8")
