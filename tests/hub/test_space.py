"""A Space: what is written, and that it needs no other place than the Hub and pip."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from huggingface_hub import RepoCard
from PIL import Image

from hf_captioners.cli.main import main
from hf_captioners.demo.visit import Exhibition
from hf_captioners.hub.space import REQUIREMENTS, push_space
from hf_captioners.hub.staging import StagingError

ROOT = Path(__file__).resolve().parents[2]


def test_a_space_with_the_captioner_inside(tiny_captioner_dir, tmp_path, capsys, monkeypatch):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (30, 20)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "pictures" / "link.png").symlink_to(tmp_path / "secret.png")
    words = ["push", str(tiny_captioner_dir), "me/mine-demo", "--space", "--title", 'Try "it"', "--examples",
             str(tmp_path / "pictures"), "--licence", "mit", "--dry-run", str(tmp_path / "space")]  # fmt: skip
    assert main(words) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'space'}\n"
    space = tmp_path / "space"
    card = RepoCard.load(space / "README.md").data
    assert (card.sdk, card.app_file, card.title, card.license) == ("gradio", "app.py", 'Try "it"', "mit")
    assert {path.name for path in (space / "examples").iterdir()} == {"a.png"}
    assert not list(space.rglob("*.pyc")) and (space / "hf_captioners" / "hub" / "cards" / "satic.md").is_file()
    calls = {node.func.attr: node for node in ast.walk(ast.parse((space / "app.py").read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)}  # fmt: skip
    (names,), (examples,) = calls["from_pretrained"].args, calls["from_pretrained"].keywords
    monkeypatch.chdir(space)  # as the Hub runs it
    shown = Exhibition.from_pretrained(ast.literal_eval(names), **{examples.arg: ast.literal_eval(examples.value)})
    assert shown.examples.names == ["a.png"] and shown.captioners[0].write(shown.examples.open("a.png")).candidates


def test_a_space_of_a_captioner_on_the_hub(tmp_path):
    pushed = push_space("me/mine", "me/mine-demo", dry_run=tmp_path / "space")
    assert not [name for name in pushed.files if name.endswith(".safetensors")]
    assert "['me/mine']" in (tmp_path / "space" / "app.py").read_text()
    assert RepoCard.load(tmp_path / "space" / "README.md").data.to_dict()["models"] == ["me/mine"]


def test_mistakes(tmp_path, capsys):
    for name, said in (("nowhere", "nowhere: no such folder of a captioner"), ("me/my mine", "is no name of a repo")):
        with pytest.raises(ValueError, match=said):
            push_space(name, "me/demo", dry_run=tmp_path / name[:2])
    with pytest.raises(StagingError, match="no pictures in it"):
        push_space("me/mine", "me/demo", dry_run=tmp_path / "space", examples=tmp_path)
    for words, said in (
        (["--space", "--ship-code"], "--ship-code has no effect with --space"),
        (["--title", "x"], "--title is of a page; add --space"),
    ):
        assert main(["push", "me/mine", "me/demo", *words]) == 2
        assert said in capsys.readouterr().err


def test_requirements_are_those_of_the_package():
    core = re.search(r"CORE = \[(.*?)\]", (ROOT / "setup.py").read_text("utf-8"), re.S)[1]
    ours = dict(re.match(r"([\w-]+)(.*)", one).groups() for one in REQUIREMENTS)
    theirs = dict(re.match(r"([\w-]+)(.*)", one).groups() for one in re.findall(r'"(.+?)"', core))
    assert ours == {**theirs, "pillow": ">=12,<13"}
