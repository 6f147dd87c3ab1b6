"""Parts of a card that come from that of the captioner which a training started from: licence, base models and limits.

Weights that may be used for research only stay so when they are trained further.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download

from ..data.files import regular_file
from ..modeling.captioner_adapters import may_be_on_hub
from ..modeling.captioner_hub import at_once
from .card import NAME, make_card, parsed_card, sections_of
from .facts import CardFacts, Inherited, known_facts

logger = logging.getLogger(__name__)

_SECTIONS = {"limits": "## Limits", "licence": "## Licence and source"}
_CODE = re.compile(r"^```.*?^```\n?", re.M | re.S)  # the citation


def inherited_facts(source: str) -> dict[str, Any]:
    """Read what the card of a captioner says that holds for what is trained from it.

    Args:
        source (`str`): folder or Hub name of the captioner; `""` if there was none.

    Returns:
        `dict[str, Any]`: fields of [`CardFacts`]: the licence, Hub names of what it was made of, and the sections about
        limits and licence that somebody has written. What there is no word of is left out, as is all of a card that
        cannot be read.
    """
    if source and Path(source).is_dir():
        return _of_folder(Path(source))
    return _of_hub(source) if source and may_be_on_hub(source) else {}


def _of_folder(folder: Path) -> dict[str, Any]:
    path = folder / NAME
    try:
        facts = known_facts(folder)
        text = regular_file(path, "card").read_text("utf-8") if path.is_file() else ""
        card = parsed_card(text)
    except (OSError, ValueError) as error:
        logger.warning("the card of %s is not taken over: %s", folder, error)
        return {}
    front = card.data.to_dict()
    bases = front.get("base_model") or facts.base_models
    return _known(front, facts, [bases] if isinstance(bases, str) else list(bases), _texts(card.text, facts))


def _of_hub(name: str) -> dict[str, Any]:
    """Of a repository, whose card may be of another making, the front matter."""
    try:
        with at_once(name):
            path = hf_hub_download(name, NAME)
        card = parsed_card(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        logger.warning("the licence of %s is not taken over, its card cannot be had: %s", name, error)
        return {"base_models": [name]}
    return _known(card.data.to_dict(), CardFacts(name), [name], {})


def _known(front: Mapping[str, Any], facts: CardFacts, bases: list[str], texts: dict[str, str]) -> dict[str, Any]:
    known = {
        "licence": front.get("license") or facts.licence,
        "licence_name": front.get("license_name") or facts.licence_name,
        "licence_link": front.get("license_link") or facts.licence_link,
        "base_models": bases,
        "inherited": _inherited(facts, texts),
    }
    return {name: value for name, value in known.items() if value}


def _inherited(facts: CardFacts, texts: dict[str, str]) -> Inherited | None:
    """Texts that were written by hand, and otherwise those that the captioner had from one before it."""
    before = facts.inherited
    if before is None or not texts:
        return Inherited(facts.name, **texts) if texts else before
    return Inherited(facts.name, **{"limits": before.limits, "licence": before.licence, **texts})


def _texts(text: str, facts: CardFacts) -> dict[str, str]:
    """Sections that were written by hand, without code."""
    mine, made = sections_of(text), sections_of(make_card(facts).text)
    texts = {}
    for name, heading in _SECTIONS.items():
        section = mine.get(heading, "")
        written = _CODE.sub("", section.removeprefix(heading)).strip()
        if written and section != made.get(heading):
            texts[name] = written
    return texts
