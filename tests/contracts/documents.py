"""The documents: their pages, the blocks of code in them, and whether a command line that they show exists."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

from hf_captioners.cli import convert
from hf_captioners.cli.common import LaterParser
from hf_captioners.cli.main import build_parser
from hf_captioners.cli.training.options import RecipeParser
from hf_captioners.cli.training.script import TRAINERS, options_of
from hf_captioners.conversion import find_command

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r'^( *)```(\w+)(?: title="([^"]*)")?\n(.*?)^\1```$', re.M | re.S)
INLINE = re.compile(r"(?<!`)`(hf-captioners\s[^`]+)`")
NEEDS = "Needs "  # begins the title of a block that does not run here
MEASURED = "docs/results.md"  # whose commands are measurements
TOOLS = {"mkdir", "cp", "curl", "uvicorn", "trtexec"}  # of which nothing is known here


def pages() -> list[str]:
    """The README, and the pages of the site in its order."""
    listed = re.findall(r'= "([\w/]+\.md)"', (ROOT / "zensical.toml").read_text("utf-8"))
    return ["README.md", *(f"docs/{name}" for name in listed)]


def prose(page: str) -> str:
    """The text of a page without its blocks of code."""
    return re.sub(r"^( *)```.*?^\1```$", "", (ROOT / page).read_text("utf-8"), flags=re.M | re.S)


@dataclass
class Block:
    """A block of code."""

    page: str
    language: str
    title: str
    code: str

    @property
    def runs(self) -> bool:
        return not self.title.startswith(NEEDS) and self.page != MEASURED

    def __str__(self) -> str:
        return f"{self.page}: {self.code.splitlines()[0]}"


def blocks() -> list[Block]:
    """All blocks of code, formulas left out, in the order of the pages."""
    found = [(page, FENCE.findall((ROOT / page).read_text("utf-8"))) for page in pages()]
    all_blocks = [Block(page, fence[1], fence[2], dedent(fence[3])) for page, fences in found for fence in fences]
    return [block for block in all_blocks if block.language != "math"]


def check_python(code: str) -> None:
    """Code that does not run here is Python, and what it imports of the package is there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("hf_captioners"):
            module = importlib.import_module(node.module)
            assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def check_bash(code: str) -> None:
    """The commands of a block exist, with their options."""
    for words in commands(code):
        check_command(words)


def commands(code: str) -> Iterator[list[str]]:
    """Words of each command of a block, without redirections and variables in front of it."""
    code = re.sub(r"(^|\s)#.*|\b\d(?=>)", "", code.replace("\\\n", " "))  # comments, and the 2 of 2>
    lexer = shlex.shlex(code, posix=True, punctuation_chars=";&|<>\n")
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = " \t", True, ""
    words: list[str] = []
    redirected = False
    for word in [*lexer, "\n"]:
        if set(word) <= set(";&|\n"):
            words = words[next((i for i, word in enumerate(words) if not re.match(r"[A-Z_]+=", word)), 0) :]
            if words:
                yield words
            words = []
        elif set(word) <= set("<>"):
            redirected = True
        else:
            words += [] if redirected else [word]
            redirected = False


def check_command(words: list[str]) -> None:
    if words[:2] == ["accelerate", "launch"]:
        words = words[words.index("hf_captioners") :]
    if words[0] == "taskset":  # -c CORE
        words = words[3:]
    if words[0] in ("hf-captioners", "hf_captioners"):
        check_verb(words[1:])
    elif words[0] == "python":
        check_script(words[1:])
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text("utf-8"), re.M), words
    elif words[:2] == ["pip", "install"]:
        check_extras(" ".join(words))
    else:
        assert words[0] in TOOLS, f"unknown command {words}"


def check_verb(words: list[str]) -> None:
    """A whole command of `hf-captioners` is one that its parser takes."""
    if words[0] in ("train", "convert"):
        unknown = later_parser(words[1]).parse_known_args(words[2:])[1]
        assert unknown == [], f"no options of {words[:2]}: {unknown}"
        recipe = words[words.index("--config") + 1] if "--config" in words else "setup.py"
        assert (ROOT / recipe).exists(), recipe
    else:
        build_parser().parse_args(words)


def check_named(text: str) -> None:
    """A command in a sentence, which may be a part of one, names a verb and options that exist."""
    parser = build_parser()
    words = iter([word for word in text.split()[1:] if "…" not in word])
    for word in words:
        if word.startswith("-"):
            known = {name for action in parser._actions for name in action.option_strings}
            assert word.partition("=")[0] in known or not word.startswith("--"), f"{text}: no option {word}"
        elif verbs := verbs_of(parser):
            if word.isupper():  # stands for any of them
                return
            assert word in verbs, f"{text}: no verb {word}"
            parser = later_parser(word) if isinstance(verbs[word], LaterParser) else verbs[word]


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return next((action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)), {})


@cache
def later_parser(name: str) -> argparse.ArgumentParser:
    """The parser of a method of training, or of a source of conversion."""
    if name not in TRAINERS:
        return convert.build_parser(find_command(name))
    parser = RecipeParser(options_of(name), f"train {name}")
    for action in parser.actions:
        action.required = False  # a recipe may have it
    return parser


def check_script(words: list[str]) -> None:
    """A script of the repository exists and knows the options it is given."""
    if words[0] == "-m":
        assert words[1] == "pytest", words
        assert all((ROOT / word).exists() for word in words[2:] if not word.startswith("-")), words
        return
    if "--" in words:  # behind it, another script of the folder
        words, other = words[: words.index("--")], words[words.index("--") + 1 :]
        check_script([str(Path(words[0]).with_name(other[0])), *other[1:]])
    source = (ROOT / words[0]).read_text("utf-8")
    method = re.search(r'train_example\("(\w+)"', source)
    if method:
        assert later_parser(method[1]).parse_known_args(words[1:])[1] == []
        return
    siblings = re.findall(r"^(?:from|import) (\w+)", source, re.M)
    files = [path for name in siblings if (path := (ROOT / words[0]).with_name(f"{name}.py")).exists()]
    known = set(re.findall(r'"(--[\w-]+)"', "".join([source, *(path.read_text("utf-8") for path in files)])))
    assert [word for word in words if word.startswith("--") and word not in known] == [], words


def check_extras(text: str) -> None:
    """The extras that a sentence tells to install exist."""
    for extra in re.findall(r"\.\[([\w,]+)\]", text):
        for name in extra.split(","):
            assert f'"{name}": [' in (ROOT / "setup.py").read_text("utf-8"), text
