"""Every recipe is one that its command reads: all names are options, and the values arrive. Nothing is trained."""

from __future__ import annotations

import re
import runpy
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hf_captioners.captioner_table import captioner_classes
from hf_captioners.cli import features
from hf_captioners.cli.common import UsageError
from hf_captioners.cli.main import build_parser, main
from hf_captioners.cli.training.mini_clip import MiniClipArguments
from hf_captioners.cli.training.options import RecipeParser
from hf_captioners.cli.training.script import options_of

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "examples" / "recipes"
NAMES = sorted(path.relative_to(RECIPES).as_posix() for path in RECIPES.rglob("*.yaml"))
# What the benchmarks run the recipes of theirs with
OF_BENCHMARKS = {
    "clip_gpt2/flickr8k_mini.yaml": "xe",
    "dico/flickr8k_mini.yaml": "xe",
    "dico/flickr8k_mini_dico.yaml": "dico",
    "expansionnet_v2/flickr8k_mini.yaml": "xe",
    "expansionnet_v2/flickr8k_mini_scst.yaml": "scst",
    "expansionnet_v2/flickr8k_mini_scst_clip.yaml": "scst",
    "families/flickr8k_mini.yaml": "xe",
    "families/flickr8k_mini_scst.yaml": "scst",
    "satic/flickr8k_mini_student.yaml": "xe",
    "satic/flickr8k_mini_teacher.yaml": "xe",
    "starter/1_xe.yaml": "xe",
    "starter/2_scst.yaml": "scst",
    "starter/distilled_xe.yaml": "xe",
}
TRANSLATED = {"report_to", "tau"}  # into other values, when the options are checked
LISTS = {"features"}  # options of several values, of which a recipe may give one
COMMAND = re.compile(r"(examples/train_\w+\.py)((?: \w+)?) --config (\S+)|hf-captioners (features) --config (\S+)")


def method_of(name: str) -> str:
    """Purpose of a recipe, from its header comment: a training method, `mini_clip` or `features`."""
    text = (RECIPES / name).read_text("utf-8")
    header = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    if name in OF_BENCHMARKS:
        (benchmark,) = set(re.findall(r"benchmarks/\w+\.py", header))
        assert name in (ROOT / benchmark).read_text("utf-8")
        return OF_BENCHMARKS[name]
    commands = [found for found in COMMAND.finditer(header) if f"examples/recipes/{name}" in found.groups()]
    assert len(commands) == 1, f"{name}: expected one command with this recipe in its header"
    (found,) = commands
    if found[4]:
        return found[4]
    script = Path(found[1]).stem.removeprefix("train_")
    return found[2].strip() or (script if script in ("scst", "mini_clip") else "xe")


def read(method: str, *words: str) -> dict[str, Any]:
    """The options that a training command reads, by name."""
    kinds = options_of(method) if method != "mini_clip" else mini_clip()
    objects = RecipeParser(kinds, method).read([*words, "--use_cpu"])
    return {name: value for one in objects for name, value in vars(one).items()}


def mini_clip() -> list[type]:
    from transformers import TrainingArguments

    return [MiniClipArguments, TrainingArguments]


def plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


@pytest.mark.parametrize("name", NAMES)
def test_the_recipe_is_read(name, tmp_path):
    method = method_of(name)
    recipe = yaml.safe_load((RECIPES / name).read_text("utf-8"))
    if method == "features":
        found = vars(build_parser().parse_args(features.with_config(["features", "--config", str(RECIPES / name)])))
    else:
        required = {"output_dir": tmp_path, "report_to": "none"}
        if method == "mini_clip":
            required |= dict.fromkeys(("annotations", "image_root", "backbone"), "no_such")
        given = [word for key in required if key not in recipe for word in (f"--{key}", str(required[key]))]
        found = read(method, "--config", str(RECIPES / name), *given)
    assert recipe.keys() <= found.keys()
    kept = recipe.keys() - TRANSLATED
    recipe.update({key: [recipe[key]] for key in LISTS & recipe.keys() if isinstance(found[key], list)})
    assert {key: str(plain(found[key])) for key in kept} == {key: str(recipe[key]) for key in kept}


OF_CAPTIONERS = [
    name for name in NAMES if method_of(name) in ("xe", "scst", "dico") and not name.startswith("families/")
]


@pytest.mark.parametrize("name", OF_CAPTIONERS)
def test_the_captioner_of_the_recipe_is_one(name):
    recipe = yaml.safe_load((RECIPES / name).read_text("utf-8"))
    config, model, _ = captioner_classes(recipe["model_type"])
    assert recipe["model_type"] in (name.split("/")[0], "expansionnet_v2")
    new = {**recipe.get("new_captioner", {}), **recipe.get("model_options", {})}
    for option in ("gpt2", "vision_config"):  # of pretrained parts, which are not here
        new.pop(option, None)
    if method_of(name) == "xe":
        captions = ["a dog"] * 10
        with torch.device("meta"):  # some are large
            found, processor = model.new(captions, features=8, **{"tokenizer": "words", **new})
        kept = new.keys() - {"min_count", "word_order", "text_config"}
        assert {key: found.config.to_dict()[key] for key in kept} == {key: new[key] for key in kept}
        assert set(processor.tokenizer.get_vocab()) >= {"a", "dog"}
    else:
        config(**new)


def test_a_recipe_of_another_captioner(tmp_path, capsys):
    recipe = str(RECIPES / "dico/1_xe.yaml")
    words = ["--output_dir", str(tmp_path), "--report_to", "none", "--use_cpu"]
    with pytest.raises(SystemExit, match=r"this is a recipe of model_type dico, and .* trains satic"):
        runpy.run_path(str(ROOT / "examples/train_satic.py"))["main"](["--config", recipe, *words])
    capsys.readouterr()
    assert main(["train", "xe", "--config", recipe, "--model_type", "dicco", *words]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("hf-captioners train: error: --model_type dicco: expected one of clip_gpt2, dico, ")


def test_a_name_that_is_no_option_is_told(tmp_path):
    recipe = tmp_path / "typo.yaml"
    recipe.write_text("rewards: [cider_d]\nbaselin: greedy\n")
    with pytest.raises(UsageError, match=r"typo\.yaml: baselin is no option of scst; do you mean baseline"):
        read("scst", "--config", str(recipe))


def test_recipes_were_found():
    assert len(NAMES) > 15 and set(OF_BENCHMARKS) <= set(NAMES)
