"""What a card takes over from the captioner that a training started from."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_captioners.hub import inheritance
from hf_captioners.hub.card import make_card, write_card
from hf_captioners.hub.facts import CardFacts, Inherited, known_facts
from hf_captioners.hub.inheritance import inherited_facts

STARTER = Path(__file__).parents[2] / "starter"
SATIC = {"model_type": "satic"}


def trained(source: Path, folder: Path) -> ModelCard:
    """The card of what is trained from a folder."""
    folder.mkdir()
    return ModelCard.load(write_card(CardFacts(folder.name, SATIC, **inherited_facts(str(source))), folder))


def test_research_weights_stay_so_however_often_they_are_trained(tmp_path):
    first = trained(STARTER, tmp_path / "first")
    second = trained(tmp_path / "first", tmp_path / "second")
    for card in (first, second):
        assert (card.data.license, card.data.license_name) == ("other", "research-use")
        limits, licence = card.text.split("## Limits")[1].split("## Licence and source")
        assert "started from starter, of whose limits its card says:\n\n> It knows what amateurs" in limits
        assert "trained from those of starter, of whose licence its card says:\n\n> For research: " in licence
        assert licence.count("```bibtex") == 1
    assert first.text.replace("first", "second") == second.text


def test_what_was_written_by_hand_behind_a_training(tmp_path):
    card = trained(STARTER, tmp_path / "first")
    text = (
        str(card)
        .replace("license_name: research-use", "license_name: for-me")
        .replace("> It knows", "Also:\n\n> It knows")
    )
    (tmp_path / "first" / "README.md").write_text(text)
    second = trained(tmp_path / "first", tmp_path / "second")
    assert second.data.license_name == "for-me"
    assert (
        "started from first, of whose limits its card says:" in second.text and "> Also:\n>\n> > It kn" in second.text
    )
    assert "> For research: the captions are by Hodosh" in second.text


def test_base_models_are_named_on(tmp_path):
    write_card(CardFacts("mine", SATIC, base_models=["org/swin"], licence="mit", licence_link="https://a.b"), tmp_path)
    known = {"licence": "mit", "licence_link": "https://a.b", "base_models": ["org/swin"]}
    assert inherited_facts(str(tmp_path)) == known  # the sections are those of the template


def test_of_the_hub_the_front_matter(tmp_path, monkeypatch):
    card = make_card(CardFacts("theirs", SATIC, base_models=["org/older"], licence="cc-by-nc-4.0"))
    (tmp_path / "README.md").write_text(f"{card}\n## Limits\n\nMany.\n")
    monkeypatch.setattr(inheritance, "hf_hub_download", lambda name, file: str(tmp_path / file))
    assert inherited_facts("org/theirs") == {"licence": "cc-by-nc-4.0", "base_models": ["org/theirs"]}


@pytest.mark.parametrize("content", [b"---\nlicense: [\n---\n", b"\xff", b"---\n- a\n---\n"])
def test_a_card_that_cannot_be_read_stops_nothing(tmp_path, content, caplog):
    (tmp_path / "README.md").write_bytes(content)
    assert inherited_facts(str(tmp_path)) == {}
    assert f"the card of {tmp_path} is not taken over" in caplog.text


def test_nothing_to_inherit(tmp_path):
    assert inherited_facts("") == inherited_facts(str(tmp_path)) == {}


def test_facts_are_kept(tmp_path):
    facts = CardFacts("mine", SATIC, inherited=Inherited("theirs", "few words"))
    write_card(facts, tmp_path)
    assert known_facts(tmp_path).inherited == facts.inherited
