"""`push_to_hub` of the trainers: the captioner with its card in one folder, and what is said where it cannot go."""

from __future__ import annotations

import pytest
from contracts.reward_policies import tiny_policy, tiny_processor, tiny_rows
from huggingface_hub import ModelCard
from transformers import AutoModelForImageTextToText

from hf_captioners import SCSTConfig, SCSTTrainer, XEConfig, XETrainer
from hf_captioners.hub.access import HubError

USUAL = {"report_to": "none", "disable_tqdm": True, "use_cpu": True, "hub_model_id": "me/mine", "seed": 3}


@pytest.fixture(params=["xe", "scst"])
def trainer(request, tmp_path):
    model, processor, rows = tiny_policy("satic"), tiny_processor("satic"), tiny_rows(tmp_path, 4)
    if request.param == "xe":
        return XETrainer(model, XEConfig(str(tmp_path / "run"), **USUAL), rows, None, processor)
    options = {"max_completion_length": 8, "num_generations": 2, "learning_rate": 1e-4}
    args = SCSTConfig(str(tmp_path / "run"), **USUAL, **options)
    reward = lambda completions, **_: [float(len(text)) for text in completions]  # noqa: E731
    return SCSTTrainer(model, args=args, reward_funcs=reward, train_dataset=rows, processing_class=processor)


def test_one_folder_with_the_filled_card(trainer, tmp_path):
    (tmp_path / "run").mkdir(exist_ok=True)
    measured = "run_id,emissions,gpu_model,cpu_model\n1,0.001,,a CPU\n2,0.002,,a CPU\n"  # kilograms of two runs
    (tmp_path / "run" / "emissions.csv").write_text(measured)
    pushed = trainer.push_to_hub(dry_run=tmp_path / "staged", license="mit", language="en", ship_code=True)
    assert {"model.safetensors", "processor_config.json", "README.md", "modeling_satic.py"} <= pushed.files.keys()
    assert not {"training_args.bin", "training_args.json", "trainer_state.json"} & pushed.files.keys()
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    assert (card.data.license, card.data.language, card.data.pipeline_tag) == ("mit", ["en"], "image-to-text")
    assert card.data.co2_eq_emissions == {"emissions": 3.0, "source": "CodeCarbon", "hardware_used": "a CPU"}
    assert "| carbon | 3 g of CO2-equivalents, measured by CodeCarbon |" in card.text and "| parameters | " in card.text
    assert f"| trainer | {type(trainer).__name__} |" in card.text and "| seed | 3 |" in card.text
    assert 'model="me/mine", trust_remote_code=True' in card.text
    states = [trainer.model.state_dict(), AutoModelForImageTextToText.from_pretrained(tmp_path / "staged").state_dict()]
    assert all(value.equal(states[1][name]) for name, value in states[0].items())


def test_what_cannot_be_pushed_is_saved_and_said(trainer, tmp_path):
    with pytest.raises(ValueError, match="leave blocking=False out"):
        trainer.push_to_hub(blocking=False)
    run = tmp_path / "run"
    saved = f" -- {run} has the captioner; push it with: hf-captioners push {run} me/mine"
    with pytest.raises(HubError, match=f"(nobody is logged in|HF_HUB_OFFLINE is set).*{saved}"):
        trainer.push_to_hub()
    assert (run / "model.safetensors").is_file() and (run / "README.md").is_file()
