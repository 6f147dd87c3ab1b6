"""The script that trains any captioner, on a BLIP of transformers: taught, scored, captioned with, and rewarded."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import datasets
import pytest
from contracts.tiny_families import KINDS, tiny_model

from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.families import family_of
from hf_captioners.families.loading import load_captioner_model
from hf_captioners.families.prompt import PROMPT_FILE

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def words(**options):
    usual = {
        "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "seed": 1, "generation_max_length": 8,
    }  # fmt: skip
    return [word for name, value in {**usual, **options}.items() for word in (f"--{name}", str(value))]


def test_a_blip_from_pictures_to_rewards(tmp_path, capfd):
    world = write_sample_world(tmp_path / "world", num_train=8, num_val=2, num_test=1, size=32)
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}
    tiny_model("blip").save_pretrained(tmp_path / "blip")
    KINDS["blip"].processor().save_pretrained(tmp_path / "blip")
    train = runpy.run_path(str(EXAMPLES / "train_xe.py"))["main"]
    scored = {"eval_strategy": "steps", "eval_steps": 1, "eval_with_generation": True, "max_unknown_words": 1.0}
    train(words(model=tmp_path / "blip", output_dir=tmp_path / "xe", prompt="photo of", **data, **scored))
    log = json.loads((tmp_path / "xe" / "trainer_state.json").read_text())["log_history"]
    assert {"eval_loss", "eval_cider_d", "eval_caption_words"} <= {name for entry in log for name in entry}
    capfd.readouterr()
    images = str(world / "images")
    assert main(["caption", images, "--model", str(tmp_path / "xe"), "--max-new-tokens", "5"]) == 0
    captions = [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()]
    assert len(captions) == 11 and not any("[" in one or one.startswith("photo of") for one in captions)
    scored = ["--split", "test", "--metrics", "bleu", "--max-new-tokens", "5", "--json"]
    references = ["--dataset", str(data["annotations"]), "--image-root", images]
    assert main(["evaluate", "--model", str(tmp_path / "xe"), *references, *scored]) == 0
    assert "bleu_4" in capfd.readouterr().out
    scst = runpy.run_path(str(EXAMPLES / "train_scst.py"))["main"]
    adapters = ["--lora_rank", "2", "--lora_target_modules", "query", "value"]
    rest = {"rewards": "cider_d", "num_generations": 3, "max_completion_length": 6, "candidate_strategy": "sample"}
    scst([*words(model=tmp_path / "xe", output_dir=tmp_path / "scst", eval_strategy="no", **data, **rest), *adapters])
    capfd.readouterr()
    assert main(["caption", images, "--model", str(tmp_path / "scst"), "--max-new-tokens", "5"]) == 0
    assert len(capfd.readouterr().out.splitlines()) == 11


def test_adapters_carry_the_prompt_that_they_were_taught_with(tmp_path, capfd):
    world = write_sample_world(tmp_path / "world", num_train=4, num_val=2, num_test=1, size=32)
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images", "max_steps": 1}
    tiny_model("llava").save_pretrained(tmp_path / "llava")
    KINDS["llava"].processor().save_pretrained(tmp_path / "llava")
    train = runpy.run_path(str(EXAMPLES / "train_xe.py"))["main"]
    options = {"max_unknown_words": 1.0, "report": False, "eval_strategy": "no", **data}
    asked = {"model": tmp_path / "llava", "output_dir": tmp_path / "one", "lora_rank": 2, "prompt": "of a photo"}
    train([*words(**asked, **options), "--lora_target_modules", "q_proj", "v_proj"])
    train(words(model=tmp_path / "one", output_dir=tmp_path / "two", **options))  # the adapters go on learning
    image, found = str(next((world / "images").iterdir())), []
    for adapters in ("one", "two"):
        assert (tmp_path / adapters / PROMPT_FILE).read_text("utf-8") == "of a photo"
        model = load_captioner_model(tmp_path / adapters)
        assert family_of(model).prompt == "of a photo"
        for prompt in ([], ["--prompt", "of a photo"], ["--prompt", "describe this"]):
            capfd.readouterr()
            words_of = ["caption", image, "--model", str(tmp_path / adapters), "--max-new-tokens", "6", *prompt]
            assert main(words_of) == 0
            found.append(json.loads(capfd.readouterr().out)["caption"])
    assert found[0] == found[1] and found[3] == found[4] and len(set(found)) > 1
    (tmp_path / "two" / PROMPT_FILE).write_bytes(b"\xff")
    assert main(["caption", image, "--model", str(tmp_path / "two")]) == 2
    assert "captioning_prompt.txt: the prompt of the adapters is no UTF-8 text" in capfd.readouterr().err
