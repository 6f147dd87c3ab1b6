"""The model card, `README.md` beside a captioner: filled in with what is known, and silent on what nobody knows.

Whoever knows something of a captioner, as a trainer does, gives [`CardFacts`]; a template of the captioner
(`hub/cards/<model_type>.md`) and huggingface_hub's `ModelCard` do the rest. Scores stand there twice: as a table, and
as evaluation results that the Hub reads, with the evaluation signature. The facts are kept beside the card, so that it
can be filled in further; sections that somebody has changed by hand stay.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader
from yaml import YAMLError

from ..data.files import write_whole
from ..data.printable import printable
from ..metric_table import printed
from .facts import CardFacts, CardResults, Inherited, known_facts, write_facts

logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "cards"
NAME = "README.md"
TASK = "image-to-text"
_OTHER_TASKS = {"bottom_up": ("object-detection", "region-features")}  # and the tag in place of a captioner's
_UNFILLED = "[More Information Needed]"  # in huggingface_hub's template
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def make_card(facts: CardFacts) -> ModelCard:
    """Make a card of what is known.

    Args:
        facts ([`CardFacts`]): what is known.

    Returns:
        `huggingface_hub.ModelCard`

    Example:

    ```python
    >>> from hf_captioners.hub.card import make_card
    >>> from hf_captioners.hub.facts import CardFacts, CardResults
    >>> results = [CardResults({"cider_d": 0.5}, dataset="my_images")]
    >>> card = make_card(CardFacts("mine", {"model_type": "satic"}, results=results))
    >>> card.data.pipeline_tag, [(one.metric_name, one.metric_value) for one in card.data.eval_results]
    ('image-to-text', [('CIDEr-D', 0.5)])

    ```
    """
    templates = Environment(
        loader=FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    template = templates.select_template([f"{facts.config.get('model_type')}.md", "captioner.md"])
    values: dict[str, Any] = {
        **facts.config,
        "card_data": card_data(facts).to_yaml(),
        "model_class": facts.model_class,
        "model_name": printable(facts.name),
        "repo_id": printable(facts.repo_id or facts.name),
        "ships_code": facts.ships_code,
        "cached": facts.config.get("features_only") and not facts.config.get("detector"),
        "size": _table(("", ""), _size(facts)),
        "training": _parts(_table(("", ""), facts.training.items()), _figure("curves of the training", facts.curves)),
        "results": _parts(*map(_results, facts.results)),
        "has_signature": any(result.signature for result in facts.results),
        "samples": _samples(facts),
        "source": facts.source and printable(facts.source),
        **_inherited(facts.inherited),
    }
    text = template.render(values)
    return ModelCard(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def card_data(facts: CardFacts) -> ModelCardData:
    """The part of a card that machines read.

    Args:
        facts ([`CardFacts`]): what is known.

    Returns:
        `huggingface_hub.ModelCardData`
    """
    model_type = facts.config.get("model_type")
    task, tag = _OTHER_TASKS.get(str(model_type), (TASK, "image-captioning"))
    scores = {name for result in facts.results for name in result.scores}
    known = {
        "license": facts.licence,
        "license_name": facts.licence_name,
        "license_link": facts.licence_link,
        "language": list(facts.languages),
        "base_model": list(facts.base_models),
        "datasets": [name for name in facts.datasets if _HUB_NAME.fullmatch(name)],
        "metrics": sorted(name for name in scores if printed(name)),
        "co2_eq_emissions": dict(facts.emissions),
        "eval_results": [one for result in facts.results for one in _eval_results(result)],
    }
    return ModelCardData(
        model_name=printable(facts.name),
        library_name="peft" if facts.adapters else "hf_captioners",
        pipeline_tag=task,
        tags=[tag, *([model_type] if model_type else [])],
        **{key: value for key, value in known.items() if value},  # type: ignore[arg-type]
    )


def write_card(facts: CardFacts, folder: str | Path, text: str | None = None) -> Path:
    """Write the card into a captioner's folder, in the place of another one, and the facts beside it.

    Args:
        facts ([`CardFacts`]): what is known.
        folder (`str` or `Path`): the folder.
        text (`str`, *optional*): the card, such as one that was changed by hand; by default that of the facts.

    Returns:
        `Path`: the card.

    Raises:
        OSError: the folder cannot be written.
    """
    path, content = Path(folder) / NAME, text or str(make_card(facts))
    write_whole(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    write_facts(facts, folder)
    return path


def updated_card(folder: str | Path, facts: CardFacts) -> str:
    """Make the card of new facts from the card of a folder, in which what was written by hand stays.

    Sections, and fields of the front matter, that stand as the old facts had them are made anew. A template that nobody
    has filled, as peft writes one beside adapters, is no card.

    Args:
        folder (`str` or `Path`): with the card; without one the card of the facts is made.
        facts ([`CardFacts`]): the new facts.

    Returns:
        `str`

    Raises:
        ValueError: the card or its facts cannot be read.
    """
    path, fresh = Path(folder) / NAME, make_card(facts)
    text = path.read_text("utf-8") if path.is_file() else _UNFILLED
    if _UNFILLED in text:
        return str(fresh)
    mine, before = parsed_card(text), make_card(known_facts(folder))
    data = _merged(mine.data.to_dict(), before.data.to_dict(), fresh.data.to_dict())
    sections = _merged(sections_of(mine.text), sections_of(before.text), sections_of(fresh.text))
    front = ModelCardData(**data, ignore_metadata_errors=True).to_yaml()
    return f"---\n{front}\n---\n{''.join(sections.values())}"


def parsed_card(text: str) -> ModelCard:
    """The parts of a card.

    Args:
        text (`str`): the card, with front matter or without.

    Returns:
        `huggingface_hub.ModelCard`

    Raises:
        ValueError: the front matter is no YAML, or no mapping.
    """
    try:
        return ModelCard(text, ignore_metadata_errors=True)
    except YAMLError as error:
        raise ValueError(f"{NAME}: its front matter is no YAML: {' '.join(str(error).split())}") from error


def add_results(folder: str | Path, results: CardResults, **facts: Any) -> Path:
    """Add the scores of an evaluation to the card of a captioner's folder, in the place of those of the same one.

    Args:
        folder (`str` or `Path`): the folder.
        results ([`CardResults`]): the scores. Two evaluations are the same if data and split are.
        facts: further fields of [`CardFacts`] that were found out, such as `speed`.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: the card or its facts cannot be read.
        OSError: the folder cannot be written.
    """
    old = known_facts(folder)
    others = [one for one in old.results if (one.dataset, one.split) != (results.dataset, results.split)]
    new = replace(old, results=[*others, results], **facts)
    return write_card(new, folder, updated_card(folder, new))


def sections_of(text: str) -> dict[str, str]:
    """Sections of a card by their headings, the first without; each with its heading.

    Args:
        text (`str`): the card without its front matter.

    Returns:
        `dict[str, str]`
    """
    parts = re.split(r"^(?=## )", text, flags=re.M)
    return {part.partition("\n")[0] if part.startswith("## ") else "": part.rstrip() + "\n\n" for part in parts}


def _merged(mine: dict[str, Any], before: dict[str, Any], fresh: dict[str, Any]) -> dict[str, Any]:
    """Take what was changed by hand, and of the rest what is new; in the new order, sections of one's own behind."""
    merged: dict[str, Any] = {}
    for name in (*fresh, *(name for name in mine if name not in fresh)):
        by_hand = mine.get(name) != before.get(name)
        value = mine.get(name) if by_hand else fresh.get(name)
        if by_hand and fresh.get(name) not in (before.get(name), mine.get(name)):
            logger.warning("the card's %s was changed by hand and stays as it is", name or "beginning")
        if value is not None:
            merged[name] = value
    return merged


def _eval_results(result: CardResults) -> list[EvalResult]:
    """Scores of papers in the Hub's form, which asks for the name of their data."""
    if result.dataset is None:
        return []
    data = printable(result.dataset)
    shared: dict[str, Any] = {
        **{"task_type": TASK, "task_name": "Image captioning"},
        **{"dataset_type": data, "dataset_name": data, "dataset_split": result.split},
        "metric_args": None if result.signature is None else {"signature": result.signature},
    }
    forms = {name: printed(name) for name in result.scores}
    return [
        EvalResult(metric_type=name, metric_name=form.label, metric_value=round(result.scores[name], 6), **shared)
        for name, form in forms.items()
        if form is not None
    ]


def _results(result: CardResults) -> str:
    forms = {name: printed(name) for name in result.scores}
    rows = [
        (name, f"{result.scores[name]:.4f}") if form is None else (form.full_label, form.text(result.scores[name]))
        for name, form in forms.items()
    ]
    data = " ".join(filter(None, (result.dataset and printable(result.dataset), result.split)))
    signature = f"Signature: `{printable(result.signature)}`." if result.signature else ""
    return _parts(f"{_cell(data)}:" if data else "", result.note, _table(("metric", "score"), rows), signature)


def _inherited(before: Inherited | None) -> dict[str, str]:
    """Quotations of the card of the captioner that a training started from."""
    if before is None:
        return {}
    quoted = {
        name: "\n".join(f"> {printable(line)}".rstrip() for line in text.splitlines())
        for name, text in (("limits_before", before.limits), ("licence_before", before.licence))
        if text
    }
    return {**quoted, "started_from": _cell(before.name)}


def _size(facts: CardFacts) -> list[tuple[str, str]]:
    number = None if facts.parameters is None else f"{facts.parameters:,}"
    return [(label, text) for label, text in (("parameters", number), ("time", facts.speed)) if text]


def _samples(facts: CardFacts) -> str:
    rows = [(sample.image, sample.caption, sample.reference) for sample in facts.samples]
    table = _table(("picture", "caption", "a reference"), rows)
    return _parts(table, _figure("pictures with their captions", facts.contact_sheet))


def _figure(title: str, file: str | None) -> str:
    return "" if file is None else f"![{title}]({file})"


def _parts(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part)


def _table(head: Sequence[str], rows: Any) -> str:
    """A table in Markdown; nothing where there are no rows."""
    lines = [[_cell(text) for text in row] for row in rows]
    if not lines:
        return ""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))


def _cell(text: str) -> str:
    """Text as it is, in a cell of a table."""
    line = printable(" ".join(text.split()))
    for mark in "\\|`*_[]":
        line = line.replace(mark, f"\\{mark}")
    return line.replace("<", "&lt;")
