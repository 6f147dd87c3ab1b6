"""The model card, `README.md` beside a captioner: filled in with what is known, and silent on what nobody knows.

Whoever knows something of a captioner, as a trainer does, gives [`CardFacts`]; a template of the captioner
(`hub/cards/<model_type>.md`) and huggingface_hub's `ModelCard` do the rest. Scores stand there twice: as a table, and
as evaluation results that the Hub reads, with the evaluation signature.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..data.files import write_whole
from ..data.printable import printable
from ..metric_table import printed

TEMPLATES = Path(__file__).parent / "cards"
NAME = "README.md"
TASK = "image-to-text"


@dataclass(frozen=True)
class CardSample:
    """A caption as it came.

    Args:
        image (`str`): name of the picture.
        caption (`str`): the captioner's.
        reference (`str`): one by a person.
    """

    image: str
    caption: str
    reference: str


@dataclass
class CardFacts:
    """Facts about a captioner; what is not known stays as it is.

    Args:
        name (`str`): of the captioner.
        config (`Mapping[str, Any]`): its configuration, with `model_type`.
        model_class (`str`, *optional*): name of its class.
        repo_id (`str`, *optional*): repository on the Hub; by default the name stands in its place.
        base_models (`Sequence[str]`): Hub names of what it was made of.
        adapters (`bool`, defaults to `False`): the folder has LoRA adapters.
        ships_code (`bool`, defaults to `False`): the folder has the code that runs it.
        training (`Mapping[str, str]`): facts of its training by their labels.
        scores (`Mapping[str, float]`): on the metrics' own scales.
        scores_note (`str`): what was scored.
        signature (`str`, *optional*): of the evaluation.
        dataset (`str`, *optional*), split (`str`, *optional*): name of the evaluation data and the part of it.
        samples (`Sequence[CardSample]`): captions of evaluation pictures.
        curves, contact_sheet (`str`, *optional*): files beside the card, with the curves of its training and with
            pictures and their captions.
        licence (`str`, *optional*): of the weights.
        languages (`Sequence[str]`): codes, such as `"en"`.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    model_class: str | None = None
    repo_id: str | None = None
    base_models: Sequence[str] = ()
    adapters: bool = False
    ships_code: bool = False
    training: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, float] = field(default_factory=dict)
    scores_note: str = ""
    signature: str | None = None
    dataset: str | None = None
    split: str | None = None
    samples: Sequence[CardSample] = ()
    curves: str | None = None
    contact_sheet: str | None = None
    licence: str | None = None
    languages: Sequence[str] = ()


def make_card(facts: CardFacts) -> ModelCard:
    """Make a card of what is known.

    Args:
        facts ([`CardFacts`]): what is known.

    Returns:
        `huggingface_hub.ModelCard`

    Example:

    ```python
    >>> from hf_captioners.hub.card import CardFacts, make_card
    >>> card = make_card(CardFacts("mine", {"model_type": "satic"}, scores={"cider_d": 0.5}, dataset="my_images"))
    >>> card.data.pipeline_tag, [(one.metric_name, one.metric_value) for one in card.data.eval_results]
    ('image-to-text', [('CIDEr-D', 0.5)])

    ```
    """
    path = TEMPLATES / f"{facts.config.get('model_type')}.md"
    values: dict[str, Any] = {
        **facts.config,
        "model_class": facts.model_class,
        "model_name": printable(facts.name),
        "repo_id": facts.repo_id or printable(facts.name),
        "ships_code": facts.ships_code,
        "example": "features" if facts.config.get("features_only") else None,
        "training": _parts(_table(("", ""), facts.training.items()), _figure("curves of the training", facts.curves)),
        "results": _results(facts),
        "signature": facts.signature,
        "samples": _samples(facts),
    }
    template = path if path.is_file() else TEMPLATES / "captioner.md"
    return ModelCard.from_template(card_data(facts), template_path=str(template), **values)


def card_data(facts: CardFacts) -> ModelCardData:
    """The part of a card that machines read.

    Args:
        facts ([`CardFacts`]): what is known.

    Returns:
        `huggingface_hub.ModelCardData`
    """
    name = printable(facts.name)
    known = {
        "license": facts.licence,
        "language": list(facts.languages) or None,
        "base_model": list(facts.base_models) or None,
        "metrics": sorted(name for name in facts.scores if printed(name)) or None,
        "eval_results": _eval_results(facts) or None,
    }
    return ModelCardData(
        model_name=name,
        library_name="peft" if facts.adapters else "hf_captioners",
        pipeline_tag=TASK,
        tags=["image-captioning", *([facts.config["model_type"]] if "model_type" in facts.config else [])],
        **{key: value for key, value in known.items() if value is not None},  # type: ignore[arg-type]
    )


def write_card(facts: CardFacts, folder: str | Path) -> Path:
    """Write the card into a captioner's folder, in the place of another one.

    Args:
        facts ([`CardFacts`]): what is known.
        folder (`str` or `Path`): the folder.

    Returns:
        `Path`: the card.

    Raises:
        OSError: the folder cannot be written.
    """
    path, text = Path(folder) / NAME, str(make_card(facts))
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """Scores of papers in the Hub's form, which asks for the name of their data."""
    if facts.dataset is None:
        return []
    data = printable(facts.dataset)
    shared: dict[str, Any] = {
        **{"task_type": TASK, "task_name": "Image captioning"},
        **{"dataset_type": data, "dataset_name": data, "dataset_split": facts.split},
        "metric_args": None if facts.signature is None else {"signature": facts.signature},
    }
    forms = {name: printed(name) for name in facts.scores}
    return [
        EvalResult(metric_type=name, metric_name=form.label, metric_value=round(facts.scores[name], 6), **shared)
        for name, form in forms.items()
        if form is not None
    ]


def _results(facts: CardFacts) -> str:
    forms = {name: printed(name) for name in facts.scores}
    rows = [
        (name, f"{facts.scores[name]:.4f}") if form is None else (form.full_label, form.text(facts.scores[name]))
        for name, form in forms.items()
    ]
    return _parts(facts.scores_note, _table(("metric", "score"), rows))


def _samples(facts: CardFacts) -> str:
    rows = [(sample.image, sample.caption, sample.reference) for sample in facts.samples]
    table = _table(("picture", "caption", "a reference"), rows)
    sheet = _figure("pictures with their captions", facts.contact_sheet)
    return _parts("## Captions as they came" if table or sheet else "", table, sheet)


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
