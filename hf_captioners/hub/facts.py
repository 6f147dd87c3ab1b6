"""Facts about a captioner that its card is filled with, and the file beside the card that keeps them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ..data.files import regular_file, write_whole

FACTS = "card_facts.json"
"""File of the facts, beside the card."""

# of a configuration, that cards speak of
_SETTINGS = ("model_type", "group_size", "prefix_length", "features_only", "detector", "retrieval")


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


@dataclass(frozen=True)
class CardResults:
    """Scores of one evaluation.

    Args:
        scores (`Mapping[str, float]`): on the metrics' own scales.
        note (`str`): what was scored.
        signature (`str`, *optional*): of the evaluation.
        dataset (`str`, *optional*), split (`str`, *optional*): name of the evaluation data and the part of it.
    """

    scores: Mapping[str, float]
    note: str = ""
    signature: str | None = None
    dataset: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class Inherited:
    """Texts by hand about the captioner that a training started from, which hold for the new one.

    Args:
        name (`str`): of that captioner.
        limits, licence (`str`, defaults to `""`): what its card says of these.
    """

    name: str
    limits: str = ""
    licence: str = ""


@dataclass
class CardFacts:
    """Facts about a captioner; what is not known stays as it is.

    Args:
        name (`str`): of the captioner.
        config (`Mapping[str, Any]`): its configuration, with `model_type`.
        model_class (`str`, *optional*): name of its class.
        repo_id (`str`, *optional*): repository on the Hub; by default the name stands in its place.
        source (`str`, *optional*): name of the original checkpoint that it was converted from.
        base_models (`Sequence[str]`): Hub names of what it was made of.
        datasets (`Sequence[str]`): Hub names of the data that it learned from.
        adapters (`bool`, defaults to `False`): the folder has LoRA adapters.
        ships_code (`bool`, defaults to `False`): the folder has the code that runs it.
        parameters (`int`, *optional*): their number.
        speed (`str`, *optional*): time of a caption, and of a reference in the same run.
        training (`Mapping[str, str]`): facts of its training by their labels.
        emissions (`Mapping[str, Any]`): CO2-equivalents of its training as the Hub has them: `emissions` in grams,
            `source`, `training_type`, `hardware_used`.
        results (`Sequence[CardResults]`): evaluations, in the order of the card.
        samples (`Sequence[CardSample]`): captions of evaluation pictures.
        curves, contact_sheet (`str`, *optional*): files beside the card, with the curves of its training and with
            pictures and their captions.
        licence (`str`, *optional*): of the weights, as the Hub names it, such as `"cc-by-nc-4.0"`.
        licence_name, licence_link (`str`, *optional*): of the licence `"other"`.
        inherited ([`Inherited`], *optional*): of the captioner that the training started from.
        languages (`Sequence[str]`): codes, such as `"en"`.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    model_class: str | None = None
    repo_id: str | None = None
    source: str | None = None
    base_models: Sequence[str] = ()
    datasets: Sequence[str] = ()
    adapters: bool = False
    ships_code: bool = False
    parameters: int | None = None
    speed: str | None = None
    training: Mapping[str, str] = field(default_factory=dict)
    emissions: Mapping[str, Any] = field(default_factory=dict)
    results: Sequence[CardResults] = ()
    samples: Sequence[CardSample] = ()
    curves: str | None = None
    contact_sheet: str | None = None
    licence: str | None = None
    licence_name: str | None = None
    licence_link: str | None = None
    inherited: Inherited | None = None
    languages: Sequence[str] = ()


def write_facts(facts: CardFacts, folder: str | Path) -> None:
    """Write the facts beside the card; of the configuration what cards speak of.

    Args:
        facts ([`CardFacts`]): what is known.
        folder (`str` or `Path`): of the captioner.

    Raises:
        OSError: the folder cannot be written.
    """
    content = asdict(facts)
    content["config"] = {name: facts.config[name] for name in _SETTINGS if name in facts.config}
    text = json.dumps(content, indent=2, ensure_ascii=False)
    write_whole(Path(folder) / FACTS, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_facts(folder: str | Path) -> CardFacts | None:
    """Read the facts beside a card.

    Args:
        folder (`str` or `Path`): of the captioner.

    Returns:
        [`CardFacts`], or `None` where the folder has none.

    Raises:
        ValueError: the file has no facts of a card.

    Example:

    ```python
    >>> import tempfile
    >>> from hf_captioners.hub.facts import CardFacts, CardResults, read_facts, write_facts
    >>> folder = tempfile.mkdtemp()
    >>> write_facts(CardFacts("mine", results=[CardResults({"cider_d": 0.5})]), folder)
    >>> read_facts(folder).results[0].scores
    {'cider_d': 0.5}

    ```
    """
    path = Path(folder) / FACTS
    if not path.exists():
        return None
    try:
        content = json.loads(regular_file(path, "file of facts").read_text("utf-8"))
        unknown = content.keys() - {one.name for one in fields(CardFacts)}
        if unknown:
            raise ValueError(f"unknown field {min(unknown)!r}")
        content["results"] = [CardResults(**result) for result in content.get("results", [])]
        content["samples"] = [CardSample(**sample) for sample in content.get("samples", [])]
        if content.get("inherited") is not None:
            content["inherited"] = Inherited(**content["inherited"])
        return CardFacts(**content)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: no facts of a card: {error}; remove the file to begin anew") from error


def known_facts(folder: str | Path) -> CardFacts:
    """Read the facts beside a card, or gather what the configuration of the folder says where there are none.

    Args:
        folder (`str` or `Path`): of the captioner.

    Returns:
        [`CardFacts`]

    Raises:
        ValueError: a file of the folder cannot be understood.
    """
    facts = read_facts(folder)
    if facts is not None:
        return facts
    path = Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path}: no JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: must be an object of settings")
    return CardFacts(
        Path(folder).resolve().name, config, model_class=next(iter(config.get("architectures") or ()), None)
    )
