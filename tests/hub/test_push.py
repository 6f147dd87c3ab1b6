"""What of a captioner is pushed, as a dry run writes it; its way over a Hub and back is in test_over_the_hub."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from contracts import colour_detector
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from hf_captioners import ExpansionNetV2ForImageCaptioning, pipeline
from hf_captioners.cli.main import main
from hf_captioners.hub.card import write_card
from hf_captioners.hub.facts import CardFacts, CardResults, known_facts
from hf_captioners.hub.push import push_captioner
from hf_captioners.hub.space import push_space
from hf_captioners.hub.staging import StagingError
from hf_captioners.modeling.captioner_adapters import AdapterError

CAPTIONER = {
    "config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "README.md", "card_facts.json",
}  # fmt: skip


@pytest.fixture
def run(tiny_captioner_dir, tmp_path):
    """The folder of a training: a captioner with its card, and what is nobody's business."""
    folder = tmp_path / "run"
    shutil.copytree(tiny_captioner_dir, folder)
    results = [CardResults({"cider_d": 0.5}, "", "metrics:cider_d", "squares", "test")]
    facts = {"training": {"seed": "3"}, "curves": "training.png", "contact_sheet": "contact_sheet.png"}
    write_card(CardFacts("run", {"model_type": "expansionnet_v2"}, results=results, **facts), folder)
    Image.new("RGB", (8, 8)).save(folder / "training.png")
    Image.new("RGB", (8, 8)).save(folder / "contact_sheet.png")
    for private in ("checkpoint-2/optimizer.pt", "raw/model.safetensors", "runs/events", "training_args.json", ".env"):
        (folder / private).parent.mkdir(exist_ok=True)
        (folder / private).write_text("secret")
    return folder


def new_adapters(base):
    """Adapters on the captioner of a folder, with weights that make a difference."""
    model = ExpansionNetV2ForImageCaptioning.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(target_modules=model.LORA_TARGET_MODULES, r=2))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_" in name:
                value.normal_()
    return adapted


def test_a_dry_run_has_the_captioner_and_nothing_of_the_run(run, tmp_path):
    pushed = push_captioner(run, None, "me/mine", dry_run=tmp_path / "staged", licence="mit", languages=["en"])
    staged = {path.relative_to(tmp_path / "staged").as_posix() for path in (tmp_path / "staged").rglob("*")}
    assert staged == set(pushed.files) == {*CAPTIONER, "training.png"}
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    assert (card.data.license, card.data.language, card.data.model_name) == ("mit", ["en"], "mine")
    assert 'pipeline(model="me/mine")' in card.text and "contact_sheet.png" not in card.text
    for path in (tmp_path / "staged").glob("*.json"):
        assert str(tmp_path) not in path.read_text() and "tiny_captioner" not in path.read_text(), path.name
    assert push_captioner(run, None, "me/mine", dry_run=tmp_path / "sheet", contact_sheet=True).files[
        "contact_sheet.png"
    ]
    with pytest.raises(StagingError, match="must be a new or an empty folder"):
        push_captioner(run, None, "me/mine", dry_run=tmp_path / "staged")


def test_a_dry_run_that_is_refused_leaves_nothing(run, tmp_path, capsys):
    (tmp_path / "there").mkdir()
    for folder in ("there", "new", "new/one/two"):
        words = ["push", tmp_path / "nowhere", "me/mine", "--dry-run", tmp_path / folder]
        assert main([*map(str, words)]) == 2 and "no such folder of a captioner" in capsys.readouterr().err
        with pytest.raises(StagingError, match="weights_dtype must be one of"):  # behind the model
            push_captioner(run, None, "me/mine", dry_run=tmp_path / folder, weights_dtype="int8")
        with pytest.raises(ValueError, match="examples"):
            push_space("me/mine", "me/demo", dry_run=tmp_path / folder, examples=tmp_path / "nowhere")
    assert list((tmp_path / "there").iterdir()) == [] and not (tmp_path / "new").exists()


def test_another_licence_has_another_name(run, tmp_path):
    write_card(replace(known_facts(run), licence="other", licence_name="research-use", licence_link="https://a.b"), run)
    for licence, data in (("mit", ("mit", None, None)), (None, ("other", "research-use", "https://a.b"))):
        folder = tmp_path / str(licence)
        push_captioner(run, None, "me/mine", dry_run=folder, **({} if licence is None else {"licence": licence}))
        card = ModelCard.load(folder / "README.md").data.to_dict()
        assert tuple(card.get(name) for name in ("license", "license_name", "license_link")) == data


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_loaded_as_they_were_but_rounded(run, tmp_path, dtype):
    name = str(dtype).removeprefix("torch.")
    words = ["push", run, "me/mine", "--dry-run", tmp_path / "half", "--weights-dtype", name]
    assert main(list(map(str, words))) == 0
    whole, half = (AutoModel.from_pretrained(folder) for folder in (run, tmp_path / "half"))
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {dtype}
    assert (
        half.dtype == torch.float32
        and json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float32"
    )
    for key, value in whole.state_dict().items():
        rounded = value.to(dtype).to(value.dtype) if value.is_floating_point() else value
        assert torch.equal(half.state_dict()[key], rounded), key


def test_weights_beyond_half_precision_are_named(run, tmp_path):
    model = ExpansionNetV2ForImageCaptioning.from_pretrained(run)
    with torch.no_grad():
        model.vocab_linear.bias[0] = 1e6
    processor = AutoProcessor.from_pretrained(run)
    with pytest.raises(StagingError, match=r"vocab_linear\.bias: has values beyond float16"):
        push_captioner(model, processor, "me/mine", dry_run=tmp_path / "half", weights_dtype="float16")
    with pytest.raises(StagingError, match="weights_dtype must be one of float32, bfloat16, float16, not 'int8'"):
        push_captioner(model, processor, "me/mine", dry_run=tmp_path / "int8", weights_dtype="int8")
    assert push_captioner(model, processor, "me/mine", dry_run=tmp_path / "bf16", weights_dtype="bfloat16").files


def test_what_others_could_not_load_is_refused(run, tmp_path):
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "me/base"}))
    with pytest.raises(StagingError, match="adapters have no code; push me/base, the captioner that they belong to"):
        push_captioner(adapters, None, "me/mine", ship_code=True, dry_run=tmp_path / "staged")
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path / "gone")}))
    with pytest.raises(AdapterError, match="there is no such folder of a captioner"):
        push_captioner(adapters, None, "me/mine", dry_run=tmp_path / "second")
    with pytest.raises(StagingError, match="nowhere: no such folder of a captioner"):
        push_captioner(tmp_path / "nowhere", None, "me/mine", dry_run=tmp_path / "other")
    with pytest.raises(ValueError, match="'me/my mine' is no name of a repository"):
        push_captioner(run, None, "me/my mine", dry_run=tmp_path / "third")


def test_adapters_name_no_folder_of_this_machine(run, tmp_path):
    adapters = tmp_path / "adapters"
    new_adapters(run).save_pretrained(adapters)
    picture = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    expected = pipeline(model=str(adapters))(picture)
    files = push_captioner(adapters, None, "me/mine", dry_run=tmp_path / "staged").files
    assert {*CAPTIONER, "adapter_config.json", "adapter_model.safetensors"} <= set(files)
    settings = json.loads((tmp_path / "staged" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "me/mine"  # the captioner is in the same repository
    assert not any(str(tmp_path) in path.read_text() for path in (tmp_path / "staged").glob("*.json"))
    assert pipeline(model=str(tmp_path / "staged"))(picture) == expected
    assert ModelCard.load(tmp_path / "staged" / "README.md").data.library_name == "hf_captioners"

    (adapters / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "me/base"}))
    push_captioner(adapters, None, "me/mine", dry_run=tmp_path / "of_the_hub")
    staged = {path.name for path in (tmp_path / "of_the_hub").iterdir()}
    assert staged == {"adapter_config.json", "adapter_model.safetensors", "README.md", "card_facts.json"}
    card = ModelCard.load(tmp_path / "of_the_hub" / "README.md")
    assert card.data.library_name == "peft"


def test_a_detector_with_its_code(tmp_path):
    for part in colour_detector.build():
        part.save_pretrained(tmp_path / "detector")
    words = ["push", str(tmp_path / "detector"), "me/regions", "--dry-run", str(tmp_path / "staged")]
    assert main([*words, "--ship-code", "--licence", "mit"]) == 0
    staged = {path.name for path in (tmp_path / "staged").iterdir()}
    assert staged >= {"config.json", "model.safetensors", "preprocessor_config.json", "README.md", "ops_bottom_up.py"}
    card = ModelCard.load(tmp_path / "staged" / "README.md")
    assert (card.data.pipeline_tag, card.data.license) == ("object-detection", "mit")
    assert 'detector="me/regions"' in card.text and "trust_remote_code" in card.text
    states = [AutoModel.from_pretrained(tmp_path / name).state_dict() for name in ("detector", "staged")]
    assert all(value.equal(states[1][name]) for name, value in states[0].items())
