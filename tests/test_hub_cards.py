"""The card templates render with huggingface_hub and name what is not known instead of leaving holes."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

CARDS = sorted((Path(__file__).resolve().parent.parent / "hub_cards").glob("*.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_renders_with_and_without_values(path):
    data = ModelCardData(license="apache-2.0", library_name="hf_captioners", pipeline_tag="image-to-text")
    bare = ModelCard.from_template(data, template_path=str(path))
    assert bare.data.to_dict() == data.to_dict()
    assert "{{" not in bare.text and "Not measured." in bare.text
    values = {"repo_id": "me/captioner", "results": "| CIDEr-D x 100 |", "signature": "metrics:cider_d"}
    card = ModelCard.from_template(data, template_path=str(path), **values)
    assert all(value in card.text for value in values.values())
    assert "Not measured." not in card.text


def test_there_is_one_for_every_captioner():
    from hf_captioners.captioner_table import CAPTIONERS

    assert set(CAPTIONERS) <= {path.stem for path in CARDS}
