"""A Markdown extension: `$x$` and fences of `math` become MathML, which browsers show without scripts."""

from __future__ import annotations

from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.inlinepatterns import InlineProcessor


class Inline(InlineProcessor):
    """Formulas between single dollars."""

    def handleMatch(self, m: Any, data: str) -> tuple[Any, int, int]:
        """Stash the MathML of a formula."""
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class MathML(Extension):
    """Formulas in text."""

    def extendMarkdown(self, md: Markdown) -> None:
        """Register the pattern, before emphasis and after code."""
        md.inlinePatterns.register(Inline(r"(?<![\w$\\])\$(\S(?:[^$\n]*\S)?)\$(?![\w$])", md), "mathml", 185)


def block(source: str, language: str, class_name: str, options: Any, md: Markdown, **kwargs: Any) -> str:
    """Formulas on lines of their own, of a fence; an empty line parts them, and `\\tag{1}` is the number of one."""
    rows = []
    for row in source.strip().split("\n\n"):
        formula, _, number = row.partition(r"\tag{")
        rows.append(
            f"<div>{convert(formula, display='block')}<span>{number and f'({number.strip()[:-1]})'}</span></div>"
        )
    return f'<div class="math">{"".join(rows)}</div>'


def makeExtension(**kwargs: Any) -> MathML:
    """Markdown's way to an extension."""
    return MathML(**kwargs)
