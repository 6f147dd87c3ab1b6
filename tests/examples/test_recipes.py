"""Every recipe is one that its script reads: all names are options, and the values arrive. Nothing is trained."""

from __future__ import annotations

import importlib.util
import re
import sys
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import yaml

from hf_captioners.cli import features
from hf_captioners.cli.main import build_parser
from hf_captioners.cli.training import script

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "recipes"
NAMES = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml"))
# What the benchmarks run the recipes of theirs with
OF_BENCHMARKS = {
    "clip_gpt2/flickr8k_mini.yaml": "examples/train_clip_gpt2.py",
    "dico/flickr8k_mini_dico.yaml": "examples/train_dico.py dico",
    "expansionnet_v2/flickr8k_mini.yaml": "examples/train_expansionnet_v2.py",
    "expansionnet_v2/flickr8k_mini_scst.yaml": "examples/train_scst.py",
    "expansionnet_v2/flickr8k_mini_scst_clip.yaml": "examples/train_scst.py",
    "satic/flickr8k_mini_student.yaml": "examples/train_satic.py",
    "satic/flickr8k_mini_teacher.yaml": "examples/train_satic.py",
}
TRANSLATED = {"report_to", "tau"}  # into other values, when the options are checked
COMMAND = re.compile(r"(examples/train_\w+\.py)((?: \w+)?) --config (\S+)|hf-captioners (features) --config (\S+)")


class Parsed(Exception):
    """Ends a script where its options have been read; they are its argument."""


def command_of(name: str) -> tuple[str, list[str]]:
    """The program that a recipe is for and the words before its options, as its header comment says."""
    text = (RECIPES / name).read_text("utf-8")
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    if name in OF_BENCHMARKS:
        (benchmark,) = set(re.findall(r"benchmarks/\w+\.py", header))
        assert name in (ROOT / benchmark).read_text("utf-8")
        program, *words = OF_BENCHMARKS[name].split()
        return program, words
    commands = [found for found in COMMAND.finditer(header) if f"examples/recipes/{name}" in found.groups()]
    assert len(commands) == 1, f"{name}: expected one command with this recipe in its header"
    (found,) = commands
    return (found[4], []) if found[4] else (found[1], found[2].split())


def options_of(program: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a training script reads from a command line, by name."""
    spec = importlib.util.spec_from_file_location(Path(program).stem, ROOT / program)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look there for their types
    spec.loader.exec_module(module)
    read = script.read_command_line

    def and_no_further(*args: Any) -> Any:
        raise Parsed(read(*args))

    monkeypatch.setattr(script, "read_command_line", and_no_further)
    monkeypatch.setattr(module, "read_command_line", and_no_further, raising=False)
    with pytest.raises(Parsed) as parsed:
        module.main(words)
    return {name: value for one in parsed.value.args[0] for name, value in vars(one).items()}


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_read(name, monkeypatch, tmp_path):
    program, words = command_of(name)
    recipe = yaml.safe_load((RECIPES / name).read_text("utf-8"))
    if program == "features":
        found = vars(build_parser().parse_args(features.with_config(["features", "--config", str(RECIPES / name)])))
    else:
        required = {"output_dir": tmp_path, "report_to": "none"}
        if "scst" in program or words == ["dico"]:
            required["model"] = "no_such"
        if "mini_clip" in program:
            required |= dict.fromkeys(("annotations", "image_root", "backbone"), "no_such")
        given = [word for key in required if key not in recipe for word in (f"--{key}", str(required[key]))]
        found = options_of(program, [*words, "--config", str(RECIPES / name), *given, "--use_cpu"], monkeypatch)
    assert recipe.keys() <= found.keys()
    kept = recipe.keys() - TRANSLATED
    assert {key: str(plain(found[key])) for key in kept} == {key: str(recipe[key]) for key in kept}


def test_a_name_that_is_no_option_is_told(monkeypatch, tmp_path):
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("rewards: [cider_d]\nbaselin: greedy\n")
    with pytest.raises(SystemExit, match="baselin"):
        options_of("examples/train_scst.py", ["--config", str(recipe), "--model", "no_such"], monkeypatch)


def test_recipes_were_found():
    assert len(NAMES) > 15 and set(OF_BENCHMARKS) <= set(NAMES)
