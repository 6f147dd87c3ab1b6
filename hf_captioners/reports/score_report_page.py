"""The page of a report: HTML without scripts, that shows tables, charts and cards of images.

Everything from outside (captions, ids, names, the signature) is escaped here, and characters that HTML cannot hold are
replaced. The page uses no colour to tell things apart, follows the reader's light or dark setting and fits a telephone.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import Template
from typing import Any

from ..metric_table import printed
from .score_report_charts import Chart

GENERATOR = '<meta name="generator" content="hf_captioners score report">'
"""The mark near the top of every page, by which a report is recognised."""

_SHOWN_REFERENCES = 5
_UNFIT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_STYLE = """
:root { color-scheme: light dark; --page: #f3f3f0; --card: #fff; --ink: #1a1c21; --grey: #5c5f66; --edge: #d5d5cf;
  --field: #e8e8e5; --link: #1f5a96; }
@media (prefers-color-scheme: dark) { :root { --page: #15171a; --card: #1f2226; --ink: #e9e9e6; --grey: #a9adb5;
  --edge: #3c4147; --field: #2a2e33; --link: #8cbcec; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
a { color: var(--link); }
h1, h2, h3, p { margin: 0 0 .6rem; line-height: 1.25; }
h2 { margin-top: 2rem; }
h3 { font-size: 1rem; }
.note { color: var(--grey); font-weight: normal; }
.parts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
.parts > *, .card { background: var(--card); border: 1px solid var(--edge); border-radius: .5rem; padding: .9rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; }
figcaption { color: var(--grey); font-size: .9rem; margin-top: .5rem; }
table { border-collapse: collapse; width: 100%; }
caption { text-align: left; color: var(--grey); padding-bottom: .4rem; }
th, td { text-align: left; vertical-align: top; padding: .2rem .6rem .2rem 0; border-top: 1px solid var(--edge); }
th { font-weight: 600; overflow-wrap: normal; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; padding-right: .2rem; }
.cards { list-style: none; margin: 0; padding: 0; display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
.card img, .missing { display: block; width: 100%; height: 14rem; object-fit: contain; background: var(--field);
  border-radius: .3rem; margin-bottom: .6rem; }
.missing { display: flex; align-items: center; padding: .8rem; color: var(--grey); overflow: auto; }
.caption { font-size: 1.15rem; }
.card ul { margin: 0 0 .6rem; padding-left: 1.1rem; color: var(--grey); font-size: .92rem; }
.scores { display: flex; flex-wrap: wrap; gap: .1rem .9rem; margin: 0; font-size: .85rem; }
.scores div { display: flex; gap: .3rem; }
.scores dt { color: var(--grey); }
.scores dd { margin: 0; font-variant-numeric: tabular-nums; }
"""

_PAGE = Template(f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
{GENERATOR}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>$title</h1>
<p>$summary All of them are in <a href="per_image.jsonl">per_image.jsonl</a>, the scores of the corpus in
<a href="scores.json">scores.json</a>.</p>
<div class="parts">
<section aria-label="Corpus scores">
<table>
<caption>Scores of the corpus: as computed, and as papers print them</caption>
<thead><tr><th scope="col">metric</th><th scope="col" class="number">computed</th>
<th scope="col" class="number">times</th><th scope="col" class="number">in papers</th></tr></thead>
<tbody>
$corpus
</tbody>
</table>
</section>
$charts
<section aria-label="Signature">
<table>
<caption>Signature: what the scores were computed from</caption>
<tbody>
$signature
</tbody>
</table>
</section>
</div>
$sections
</main>
</body>
</html>
""")

_CARD = Template("""<li class="card">
$image
<h3>Image $image_id <span class="note">· $place</span></h3>
<p class="caption" dir="auto">$caption</p>
$references
<dl class="scores">$scores</dl>
</li>""")


@dataclass(frozen=True)
class Card:
    """An image on the page.

    Attributes:
        image_id (`Any`): its name.
        caption (`str`), references (`Sequence[str]`): the captioner's caption and those by people.
        scores (`Mapping[str, float]`): name -> score of this image, as computed.
        place (`str`): where it stands among all images.
        thumbnail (`str`, *optional*): its picture, relative to the page.
        reason (`str`): why there is no picture.
    """

    image_id: Any
    caption: str
    references: Sequence[str]
    scores: Mapping[str, float]
    place: str
    thumbnail: str | None = None
    reason: str = ""


def label(name: str) -> str:
    """A score's name as papers write it; others stay as they are, without underscores."""
    entry = printed(name)
    return name.replace("_", " ") if entry is None else entry.label


def scale(name: str) -> int:
    """The factor by which papers multiply a score; 1 for other scores."""
    entry = printed(name)
    return 1 if entry is None else entry.factor


def scaled_label(name: str) -> str:
    """A score's name with its factor: `CIDEr-D × 100`, `CLIP-S`."""
    return f"{label(name)} × {scale(name)}" if scale(name) != 1 else label(name)


def scaled(name: str, value: float) -> str:
    """A score as papers print it: `127.2`, `0.761`."""
    return f"{value * scale(name):.1f}" if scale(name) != 1 else f"{value:.4g}"


def render_page(
    title: str,
    summary: str,
    corpus: Mapping[str, float],
    signature: Mapping[str, Any],
    charts: Sequence[Chart] | str,
    sections: Sequence[tuple[str, Sequence[Card]]],
) -> str:
    """Write the page.

    Args:
        title (`str`), summary (`str`): headline, and what is said below it.
        corpus (`Mapping[str, float]`): name -> corpus score, as computed.
        signature (`Mapping[str, Any]`): name -> value that JSON can hold.
        charts (`Sequence[Chart]` or `str`): the charts, or why there are none.
        sections (`Sequence[tuple[str, Sequence[Card]]]`): headlines and their images.

    Returns:
        `str`: HTML.
    """
    drawn = f'<p class="note">{_text(charts)}</p>' if isinstance(charts, str) else "\n".join(map(_figure, charts))
    return _PAGE.substitute(
        title=_text(title),
        summary=_text(summary),
        corpus="\n".join(_corpus_row(name, score) for name, score in corpus.items()),
        signature="\n".join(_signature_rows(signature)),
        charts=drawn,
        sections="\n".join(_section(headline, cards) for headline, cards in sections),
    )


def _text(value: object) -> str:
    """A value as HTML text or attribute."""
    return html.escape(_UNFIT.sub("\ufffd", str(value)))


def _corpus_row(name: str, score: float) -> str:
    cells = "".join(f'<td class="number">{cell}</td>' for cell in (f"{score:.4f}", scale(name), scaled(name, score)))
    return f'<tr><th scope="row">{_text(label(name))}</th>{cells}</tr>'


def _signature_rows(signature: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in signature.items():
        if isinstance(value, Mapping):
            yield from _signature_rows(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield f'<tr><th scope="row">{_text(prefix + name)}</th><td>{_text(text)}</td></tr>'


def _figure(chart: Chart) -> str:
    caption = f"<figcaption>{_text(chart.caption)}</figcaption>" if chart.caption else ""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{chart.on_dark}">'
        f'<img src="{chart.on_light}" alt="{_text(chart.alt)}" width="432" height="259"></picture>{caption}</figure>'
    )


def _section(headline: str, cards: Sequence[Card]) -> str:
    inside = "\n".join(map(_card, cards))
    return f'<section>\n<h2>{_text(headline)}</h2>\n<ol class="cards">\n{inside}\n</ol>\n</section>'


def _card(card: Card) -> str:
    if card.thumbnail is None:
        image_html = f'<div class="missing">{_text(card.reason)}</div>'
    else:
        image_html = f'<img src="{_text(card.thumbnail)}" alt="Picture of image {_text(card.image_id)}" loading="lazy">'
    return _CARD.substitute(
        image=image_html,
        image_id=_text(card.image_id),
        place=_text(card.place),
        caption=_text(card.caption) if card.caption.strip() else '<span class="note">(empty caption)</span>',
        references=_references(card.references),
        scores="".join(
            f"<div><dt>{_text(label(name))}</dt><dd>{scaled(name, score)}</dd></div>"
            for name, score in card.scores.items()
        ),
    )


def _references(references: Iterable[str]) -> str:
    items = [f'<li dir="auto">{_text(reference)}</li>' for reference in references]
    visible, hidden = items[:_SHOWN_REFERENCES], items[_SHOWN_REFERENCES:]
    listed = f"<ul>{''.join(visible)}</ul>"
    return (
        f"{listed}<details><summary>{len(hidden)} more</summary><ul>{''.join(hidden)}</ul></details>"
        if hidden
        else listed
    )
