"""Recipes that cannot be read, or that YAML would read otherwise than they look."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from hf_captioners.cli import features
from hf_captioners.cli.common import UsageError
from hf_captioners.cli.recipe import MAX_BYTES, read_recipe

BOMB = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{above}'] * 10)}]\n" for above, name in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1.0\nseed: 3\nlearning_rate: 2.0\n", ", line 3, column 1: learning_rate stands here for the"),
        (
            "new_captioner:\n  d_model: 8\n  d_model: 16\n",
            ", line 3, column 3: d_model stands here for the second time",
        ),
        (BOMB, ": its aliases (*name) stand for more than 100000 values"),
        ("a: &a [1, *a]", ": its aliases (*name) stand for more than"),
        ("[" * 20_000, ": lists and mappings are nested too deeply"),
        ("x" * (MAX_BYTES + 1), f": {MAX_BYTES + 1} bytes; the limit of a recipe is {MAX_BYTES}"),
    ],
)
def test_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=re.escape(f"--config {path}{message}")):
        read_recipe(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs FIFOs")
def test_is_no_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "recipe.yaml")
    for path in (tmp_path / "recipe.yaml", Path("/dev/zero"), tmp_path):
        with pytest.raises(UsageError, match="expected a recipe, found something that is not a regular file"):
            read_recipe(path)


def test_aliases_and_merged_mappings_are_read(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("small: &small {d_model: 8, layers: 2}\nlarge: {<<: *small, d_model: 16}\n")
    assert read_recipe(tmp_path / "recipe.yaml")["large"] == {"d_model": 16, "layers": 2}


def test_switches_and_nothing_among_the_options_of_features(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text("append_boxes: true\nmodel: null\nsplits: [train, val]\n")
    words = ["features", "--config", str(tmp_path / "features.yaml"), "--out", "x"]
    assert features.with_config(words) == ["features", "--append-boxes", "--splits", "train", "val", "--out", "x"]
    (tmp_path / "features.yaml").write_text("model: [[a]]\n")
    with pytest.raises(UsageError, match="model: expected a text, a number or a list of these"):
        features.with_config(words)
