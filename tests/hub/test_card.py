"""The model card: templates for every captioner, what is known in its place, and silence on what nobody knows."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from hf_captioners.hub.card import TEMPLATES, add_results, make_card, updated_card, write_card
from hf_captioners.hub.facts import FACTS, CardFacts, CardResults, CardSample, known_facts, read_facts

CARDS = sorted(TEMPLATES.glob("*.md"))


@pytest.mark.parametrize("path", CARDS, ids=lambda path: path.stem)
def test_templates_render_with_and_without_values(path):
    bare = make_card(CardFacts("mine", {"model_type": path.stem}))
    assert "{{" not in bare.text and "Evaluation" not in bare.text and "## Training" not in bare.text
    assert "\n\n\n" not in bare.text and bare.text.count("## Limits") == 1
    assert ("```bibtex" in bare.text) == (path.stem != "captioner")
    results = [CardResults({"cider_d": 0.5}, signature="metrics:cider_d")]
    values = {"results": results, "samples": [CardSample("a.png", "two dogs", "dogs")], "training": {"seed": "3"}}
    card = make_card(CardFacts("mine", {"model_type": path.stem}, repo_id="me/captioner", **values))
    for said in ("me/captioner", "| CIDEr-D x 100 |", "`metrics:cider_d`", "## Captions as they came", "| seed | 3 |"):
        assert said in card.text, said


def test_there_is_one_for_every_captioner():
    from hf_captioners.modeling.captioner_detector import DETECTORS
    from hf_captioners.pipelines import CAPTIONERS

    assert {path.stem for path in CARDS} == {*CAPTIONERS, *DETECTORS, "captioner"}


def test_what_is_known():
    facts = CardFacts(
        "mine",
        {"model_type": "satic", "group_size": 4},
        repo_id="me/mine",
        base_models=["org/swin"],
        training={"steps": "12"},
        results=[
            CardResults(
                {"cider_d": 0.12345678, "bleu_4": 0.5, "loss": 3.25},
                "After step 12.",
                "metrics:cider_d",
                "my_images",
                "validation",
            )
        ],
        datasets=["org/pictures", "my_images"],
        samples=[CardSample("a|b.png", "<b>two</b>\n dogs_", "[two](dogs)")],
        curves="training.png",
        licence="cc-by-4.0",
        languages=["en"],
        parameters=1234567,
        speed="17 ms a caption",
        emissions={"emissions": 12.5, "source": "CodeCarbon"},
    )
    card = make_card(facts)
    assert card.data.co2_eq_emissions == {"emissions": 12.5, "source": "CodeCarbon"}
    assert card.data.base_model == ["org/swin"] and card.data.metrics == ["bleu_4", "cider_d"]
    assert card.data.datasets == ["org/pictures"]  # a folder is no data set of the Hub
    assert (card.data.license, card.data.language) == ("cc-by-4.0", ["en"])
    results = {result.metric_type: result for result in ModelCard(str(card)).data.eval_results}
    assert set(results) == {"cider_d", "bleu_4"}  # a loss is no score of papers
    found = results["cider_d"]
    assert (found.metric_value, found.metric_name, found.dataset_name) == (0.123457, "CIDEr-D", "my_images")
    assert (found.dataset_split, found.metric_args) == ("validation", {"signature": "metrics:cider_d"})
    lines = [
        *("| parameters | 1,234,567 |", "| time | 17 ms a caption |"),
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
    assert "## Training" not in card.text and "## Evaluation" not in card.text
    assert "VisionEncoderDecoderModel" in card.text
    results = [CardResults({"cider_d": 0.5})]  # of no named data
    scored = make_card(CardFacts("mine", {"model_type": "satic"}, results=results))
    assert scored.data.eval_results is None and "| CIDEr-D x 100 | 50.00 |" in scored.text
    cached = make_card(CardFacts("mine", {"model_type": "satic", "features_only": True}, adapters=True))
    assert cached.data.library_name == "peft" and 'print(captioner({"image_features": features}))' in cached.text


def test_is_written_in_the_place_of_another(tmp_path):
    (tmp_path / "README.md").write_text("trained from scratch on an unknown dataset")
    path = write_card(CardFacts("mine", {"model_type": "dico"}), tmp_path)
    assert path == tmp_path / "README.md" and ModelCard.load(path).data.model_name == "mine"
    assert sorted(Path(tmp_path).iterdir()) == [path, tmp_path / FACTS]


def test_facts_are_kept_beside_the_card(tmp_path):
    results = [CardResults({"cider_d": 0.5}, dataset="mine", split="test")]
    facts = CardFacts("mine", {"model_type": "satic"}, results=results, samples=[CardSample("a", "b", "c")])
    write_card(facts, tmp_path)
    assert str(make_card(read_facts(tmp_path))) == str(make_card(facts))
    (tmp_path / FACTS).write_text('{"name": "mine", "licens": "mit"}')
    with pytest.raises(ValueError, match=r"no facts of a card: unknown field 'licens'"):
        read_facts(tmp_path)
    (tmp_path / FACTS).unlink()
    (tmp_path / "config.json").write_text('{"model_type": "dico", "architectures": ["DiCOForImageCaptioning"]}')
    found = known_facts(tmp_path)
    assert (found.name, found.model_class, found.config["model_type"]) == (
        tmp_path.name, "DiCOForImageCaptioning", "dico",
    )  # fmt: skip


def test_results_are_added_and_what_was_written_by_hand_stays(tmp_path, caplog):
    write_card(CardFacts("mine", {"model_type": "satic"}, training={"seed": "3"}), tmp_path)
    path = tmp_path / "README.md"
    changed = path.read_text().replace("## Limits\n", "## Limits\n\nOnly squares.\n\n## Thanks\n\nTo all.\n")
    path.write_text(changed.replace("model_name: mine", "model_name: mine\nlicense: mit"))
    for score in (0.25, 0.5):  # the second one replaces the first one
        add_results(tmp_path, CardResults({"cider_d": score}, "", "metrics:cider_d", "squares", "test"))
    add_results(tmp_path, CardResults({"cider_d": 0.125}, "", "metrics:cider_d", "squares", "val"))
    card = ModelCard.load(path)
    found = [(one.dataset_split, one.metric_value) for one in card.data.eval_results]
    assert found == [("test", 0.5), ("val", 0.125)] and card.data.license == "mit"
    assert "Only squares." in card.text and "To all." in card.text and card.text.count("## Evaluation") == 1
    assert "squares test:" in card.text and "| CIDEr-D x 100 | 12.50 |" in card.text
    assert not caplog.records
    path.write_text(path.read_text().replace("| seed | 3 |", "| seed | 4 |"))
    facts = CardFacts("mine", {"model_type": "satic"}, training={"seed": "5"})
    assert "| seed | 4 |" in updated_card(tmp_path, facts) and "## Training was changed by hand" in caplog.text
