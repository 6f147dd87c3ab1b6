"""A griffe extension: docstrings in the grammar of Hugging Face become Markdown.

That grammar, ``name (`type`, *optional*): text``, is Markdown by itself. Read as Google style, its types would be shown
with their backticks; so sections become lists here, and nothing is left to parse.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

SECTIONS = {"Args": "Parameters", "Raises": "Raises", "Returns": "Returns", "Yields": "Yields", "Example": "Example"}
SECTIONS |= {"Parameters": "Parameters", "Attributes": "Attributes"}
ITEM = re.compile(r"([\w*]+(?:, [\w*]+)*)( \(.*?\))?((?::.*)?)")
LINK = re.compile(r"\[`(?:~[\w.]+\.)?([\w.]+)`\](?![\[(])")  # [`X`], or [`~a.b.X`], which is shown as X


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites the docstrings of everything that is collected."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite the docstrings of a package, with links to its public names."""
        rewrite(pkg, {name for name, member in pkg.members.items() if member.is_alias})


def rewrite(thing: griffe.Object | griffe.Alias, public: set[str]) -> None:
    """Rewrite the docstrings of an object and of its members.

    Args:
        thing (`griffe.Object` or `griffe.Alias`): the object; an alias is left to where its target is.
        public (`set[str]`): names that have a place in the reference.
    """
    if thing.is_alias:
        return
    if thing.docstring:
        thing.docstring.value = linked(markdown(thing.docstring.value), public)
    for member in thing.members.values():
        rewrite(member, public)


def linked(text: str, public: set[str]) -> str:
    """Make of names in brackets links, if they are public, and code otherwise."""

    def link(match: re.Match[str]) -> str:
        return f"[`{match[1]}`][hf_captioners.{match[1]}]" if match[1] in public else f"`{match[1]}`"

    return LINK.sub(link, text)


def markdown(text: str) -> str:
    """A docstring whose sections are headed by a word in bold type and have lists of what they describe."""
    lines: list[str] = []
    inside = False
    for line in text.replace("```python\n>>>", "```pycon\n>>>").splitlines():
        name = line.removesuffix(":")
        if name != line and name in SECTIONS:
            inside = name != "Example"
            lines += ["", f"**{SECTIONS[name]}**", ""]
        else:
            inside = inside and (not line or line.startswith(" "))
            lines.append(item(line.removeprefix("    ")) if inside else line)
    return "\n".join(lines)


def item(line: str) -> str:
    """A line of a section: the beginning of an item, or the rest of one, which is indented."""
    match = ITEM.fullmatch(line)
    if match is None:
        return line
    names, kind, rest = match.groups(default="")
    kind = re.sub(r"\), (\w+) \(", r"), `\1` (", kind)  # several names with their types
    code = ", ".join(f"`{name}`" for name in names.split(", "))
    return f"- {code}{kind}{rest}"
