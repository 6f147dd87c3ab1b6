"""What the site makes of docstrings and formulas."""

from __future__ import annotations

import re

import pytest

DOCSTRING = """Score captions.

Args:
    captions (`Sequence[str]`), references (`list`, *optional*, defaults to `None`): what people
        and others say, see [`tokenize`].
    kwargs: the rest.
    rate (`float`, defaults to 0.5):
        A share.

Returns:
    `float`: of [`Scores`], as [`~metrics.scores.Other`].

Raises:
    ValueError: no captions.

Example:

```python
>>> score(["a dog"])
1.0

```
"""


def test_sections_of_a_docstring_become_lists():
    pytest.importorskip("griffe", reason='griffe is not installed: pip install -e ".[docs]"')
    from docs.extensions.hf_docstrings import linked, markdown

    text = linked(markdown(DOCSTRING), {"Scores"})
    assert "- `captions` (`Sequence[str]`), `references` (`list`, *optional*, defaults to `None`): what" in text
    assert "what people\n    and others" in text
    assert "see `tokenize`." in text
    assert "- `kwargs`: the rest.\n- `rate` (`float`, defaults to 0.5):\n    A share." in text
    assert "**Returns**\n\n`float`: of [`Scores`][hf_captioners.Scores], as `Other`." in text
    assert "**Raises**\n\n- `ValueError`: no captions." in text
    assert "**Example**\n\n\n```pycon\n>>> score" in text
    assert not re.search(r"^(Args|Returns|Raises|Example):", text, re.M)


def test_formulas_become_mathml():
    markdown = pytest.importorskip("markdown", reason='Markdown is not installed: pip install -e ".[docs]"')
    pytest.importorskip("latex2mathml", reason='latex2mathml is not installed: pip install -e ".[docs]"')
    from docs.extensions import mathml

    html = markdown.markdown("costs 5$ and 6$, `$x$` is code, $x_i < 2$ is not", extensions=[mathml.MathML()])
    assert html.count("<math") == 1 and "<code>$x$</code>" in html and "5$ and 6$" in html
    rows = mathml.block("a = b \\tag{1}\n\nc", "math", "math", {}, None)
    assert rows.count("<math") == 2 and "<span>(1)</span>" in rows and "tag" not in rows
