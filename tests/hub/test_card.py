"""The model card: templates for every captioner, what is known in its place, and silence on what nobody knows."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from hf_captioners.hub.card import TEMPLATES, CardFacts, CardSample, make_card, write_card

CARDS = sorted(TEMPLATES.glob("*.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_templates_render_with_and_without_values(path):
    data = ModelCardData(license="apache-2.0", library_name="hf_captioners", pipeline_tag="image-to-text")
    bare = ModelCard.from_template(data, template_path=str(path))
    assert bare.data.to_dict() == data.to_dict()
    assert "{{" not in bare.text and "Not measured." in bare.text and "Signature" not in bare.text
    values = {"repo_id": "me/captioner", "results": "| CIDEr-D x 100 |", "signature": "metrics:cider_d"}
    card = ModelCard.from_template(data, template_path=str(path), **values, samples="## Captions as they came")
    assert all(value in card.text for value in (*values.values(), "## Captions as they came"))
    assert "Not measured." not in card.text


def test_there_is_one_for_every_captioner():
    from hf_captioners.pipelines import CAPTIONERS

    assert {path.stem for path in CARDS} == {*CAPTIONERS, "captioner"}


def test_what_is_known():
    facts = CardFacts(
        "mine",
        {"model_type": "satic", "group_size": 4},
        repo_id="me/mine",
        base_models=["org/swin"],
        training={"steps": "12"},
        scores={"cider_d": 0.12345678, "bleu_4": 0.5, "loss": 3.25},
        scores_note="After step 12.",
        signature="metrics:cider_d",
        dataset="my_images",
        split="validation",
        samples=[CardSample("a|b.png", "<b>two</b>\n dogs_", "[two](dogs)")],
        curves="training.png",
        licence="cc-by-4.0",
        languages=["en"],
    )
    card = make_card(facts)
    assert card.data.base_model == ["org/swin"] and card.data.metrics == ["bleu_4", "cider_d"]
    assert (card.data.license, card.data.language) == ("cc-by-4.0", ["en"])
    results = {result.metric_type: result for result in ModelCard(str(card)).data.eval_results}
    assert set(results) == {"cider_d", "bleu_4"}  # a loss is no score of papers
    found = results["cider_d"]
    assert (found.metric_value, found.metric_name, found.dataset_name) == (0.123457, "CIDEr-D", "my_images")
    assert (found.dataset_split, found.metric_args) == ("validation", {"signature": "metrics:cider_d"})
    lines = [
        *("# mine", "After step 12.", "| steps | 12 |", "| CIDEr-D x 100 | 12.35 |", "| loss | 3.2500 |"),
        *('pipeline(model="me/mine")', "(here K = 4)", "(training.png)"),
        r"| a\|b.png | &lt;b>two&lt;/b> dogs\_ | \[two\](dogs) |",
    ]
    for said in lines:
        assert said in card.text, said
    assert "trust_remote_code" not in card.text  # the folder has no code
    assert "trust_remote_code" in make_card(CardFacts("mine", facts.config, ships_code=True)).text


def test_what_nobody_knows_is_left_out():
    card = make_card(
        CardFacts("mine", {"model_type": "vision-encoder-decoder"}, model_class="VisionEncoderDecoderModel")
    )
    assert card.data.to_dict() == {
        "library_name": "hf_captioners",
        "pipeline_tag": "image-to-text",
        "tags": ["image-captioning", "vision-encoder-decoder"],
        "model_name": "mine",
    }
    assert "Not described." in card.text and "Not measured." in card.text and "VisionEncoderDecoderModel" in card.text
    scored = make_card(CardFacts("mine", {"model_type": "satic"}, scores={"cider_d": 0.5}))  # of no named data
    assert scored.data.eval_results is None and "| CIDEr-D x 100 | 50.00 |" in scored.text
    cached = make_card(CardFacts("mine", {"model_type": "satic", "features_only": True}, adapters=True))
    assert cached.data.library_name == "peft" and "print(captioner(features))" in cached.text


def test_is_written_in_the_place_of_another(tmp_path):
    (tmp_path / "README.md").write_text("trained from scratch on an unknown dataset")
    path = write_card(CardFacts("mine", {"model_type": "dico"}), tmp_path)
    assert path == tmp_path / "README.md" and ModelCard.load(path).data.model_name == "mine"
    assert list(Path(tmp_path).iterdir()) == [path]
