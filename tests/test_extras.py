"""Libraries that are missing: what is said, and that every optional import says it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from hf_captioners.cli.main import main
from hf_captioners.extras import EXTRAS, explained, install, of_extra, require

ROOT = Path(__file__).resolve().parent.parent
SETUP = (ROOT / "setup.py").read_text("utf-8")
NAMES = {
    "yaml": "pyyaml",
    "pillow_heif": "pillow-heif",
    "faiss": "faiss-cpu",
    "ray": "ray[data]",
}  # of distributions
CORE = {"torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "numpy", "PIL", "tqdm"}
CORE |= {"typing_extensions", "jinja2"} | set(sys.stdlib_module_names)
CORE |= {"filelock", "fsspec"}  # come with huggingface_hub

VERBS = "from hf_captioners.cli.main import main; sys.exit(main())"
# a process in which libraries are not there, as where they are not installed
WITHOUT = """
import importlib.abc, importlib.util, runpy, sys
missing = {missing!r}
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in missing:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in missing else found(name, package)
sys.argv = {argv!r}
{code}
"""


def without(missing: list[str], code: str, *argv: str) -> subprocess.CompletedProcess:
    script = WITHOUT.format(missing=missing, code=code, argv=["hf-captioners", *argv])
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)


def imports(path: Path) -> set[str]:
    """Libraries that a file imports, wherever in it; not those for type checkers alone."""
    tree = ast.parse(path.read_text("utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            found.add(node.module.partition(".")[0])
    return found


def test_every_optional_library_has_an_extra_that_brings_it():
    used = set().union(*(imports(path) for path in (ROOT / "hf_captioners").rglob("*.py")))
    optional = used - CORE - {"hf_captioners", "__future__"} - {"fcntl", "pyarrow"}  # pyarrow comes with datasets
    assert optional <= EXTRAS.keys()
    for library, extra in EXTRAS.items():
        requirements = re.search(rf'"{extra}": \[(.*)\]', SETUP)
        assert requirements and f'"{NAMES.get(library, library)}>=' in requirements[1], library


TRAIN = 'is not installed; it is of the extra train: pip install -e ".[train]"'
FEATURES = 'datasets is not installed; it is of the extra features: pip install -e ".[features]"'


@pytest.mark.parametrize(
    ("missing", "code", "message"),
    [
        ("accelerate", "from hf_captioners import XETrainer", TRAIN),
        ("datasets", "from hf_captioners.data.captions import folder", FEATURES),
        ("yaml", "import hf_captioners.conversion.bottom_up_config", TRAIN),
    ],
)
def test_in_python(missing, code, message):
    done = without([missing], code)
    assert done.returncode == 1
    assert f"{missing} is not installed" in done.stderr.splitlines()[-1] and message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("missing", "code", "words", "message"),
    [
        ("accelerate", VERBS, ["train", "xe", "--help"], TRAIN),
        ("datasets", VERBS, ["features", "--model", "x", "--data-dir", "y", "--out", "z"], FEATURES),
        ("yaml", VERBS, ["features", "--config", "x.yaml"], TRAIN),
        ("accelerate", "runpy.run_path('examples/train_scst.py', run_name='__main__')", ["--help"], TRAIN),
    ],
)
def test_commands_end_in_one_line(missing, code, words, message):
    done = without([missing], code, *words)
    assert done.returncode == 2
    assert f"error: {missing} is not installed" in done.stderr and message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_library_of_no_extra_is_left_alone():
    error = ModuleNotFoundError("No module named 'somebodys'", name="somebodys")
    assert explained(error) is error
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'no_such_module_at_all'$"), of_extra("train"):
        import no_such_module_at_all  # noqa: F401


def test_require():
    assert find_spec("numpy") is not None
    require("numpy", "json")
    absent = next((name for name in EXTRAS if find_spec(name) is None), None)
    if absent is not None:
        with pytest.raises(ImportError, match=re.escape(install(EXTRAS[absent]))):
            require("json", absent)


def test_the_table_of_completions_needs_rich_before_the_first_step(monkeypatch, tmp_path):
    from contracts.reward_policies import reward_trainer, tiny_rows

    from hf_captioners import SCSTConfig

    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setattr("hf_captioners.extras.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="rich is not installed; it is of the extra train"):
        reward_trainer(SCSTConfig, tmp_path, tiny_rows(tmp_path, 2), log_completions=True)


def test_another_error_of_a_verb_is_not_taken_for_a_missing_library(monkeypatch):
    from hf_captioners.cli import env

    def broken(args):
        raise ImportError("cannot import name 'x' from 'y'")

    monkeypatch.setattr(env, "run", broken)
    with pytest.raises(ImportError, match="cannot import name"):
        main(["env"])
