"""The script of self-critical training from the command line to captioners: rewards, adapters, collapse."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import datasets
import pytest
import torch
from contracts.reward_policies import SIDE, tiny_policy
from safetensors.torch import load_file
from transformers import VisionEncoderDecoderModel, ViTImageProcessorPil

import hf_captioners
from hf_captioners import build_vocabulary, build_word_tokenizer, special_token_ids
from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import write_sample_world

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
OPTIONS = {
    "rewards": "cider_d", "candidate_strategy": "sample", "num_generations": 3, "max_completion_length": 8,
    "per_device_train_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2, "lr_scheduler_type": "constant",
    "logging_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True, "seed": 1,
    "eval_strategy": "no",
}  # fmt: skip
REWARDS = """
def same(completions, **kwargs):
    return [0.5 for _ in completions]

def ending(completion_ids, **kwargs):
    return [sum(ids) % 7 / 7 for ids in completion_ids]
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_sample_world(tmp_path_factory.mktemp("world"), num_train=8, num_val=2, num_test=1, size=32)


@pytest.fixture(scope="module")
def run_script(world):
    """Run a script; the options that are given win over `OPTIONS`."""
    mains = {name: runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"] for name in ("train_scst", "train_dico")}
    data = {"annotations": world / "dataset_karpathy.json", "image_root": world / "images"}

    def run(model, output_dir, *words, script="train_scst", **options):
        given = {"model": model, "output_dir": output_dir, **data, **OPTIONS, **options}
        parts = [
            [f"--{name}", *map(str, value if isinstance(value, list) else [value])] for name, value in given.items()
        ]
        mains[script]([*words, *(word for part in parts for word in part)])
        return Path(output_dir)

    return run


@pytest.fixture()
def own_rewards(tmp_path, monkeypatch):
    """A module of reward functions that Python finds."""
    (tmp_path / "rewards_of_the_test.py").write_text(REWARDS)
    sys.modules.pop("rewards_of_the_test", None)  # of another test
    monkeypatch.syspath_prepend(tmp_path)
    return "rewards_of_the_test"


def captioned(folder, world):
    return hf_captioners.pipeline(model=str(folder))(str(next((world / "images").iterdir())))[0]["generated_text"]


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def test_two_steps(run_script, tiny_captioner_dir, world, tmp_path):
    out = run_script(tiny_captioner_dir, tmp_path / "out", rewards=["cider_d", "length"], max_words=5)
    assert {"rewards/cider_d/mean", "rewards/length/mean", "advantage_std", "baseline"} <= history(out)[0].keys()
    assert isinstance(captioned(out, world), str)
    before, after = (load_file(Path(folder) / "model.safetensors") for folder in (tiny_captioner_dir, out))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and not any(name.startswith("backbone") for name in moved)


def test_going_on_gives_what_one_run_gives(run_script, tiny_captioner_dir, tmp_path, own_rewards):
    options = {"rewards": f"{own_rewards}:ending", "save_strategy": "steps", "save_steps": 1}
    whole = run_script(tiny_captioner_dir, tmp_path / "whole", **options)
    assert "rewards/ending/mean" in history(whole)[0]
    checkpoint = whole / "checkpoint-1"
    again = run_script(tiny_captioner_dir, tmp_path / "again", **options, resume_from_checkpoint=checkpoint)
    one, other = (load_file(folder / "model.safetensors") for folder in (whole, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    start = load_file(checkpoint / "model.safetensors")
    assert any(not torch.equal(one[name], start[name]) for name in one)


def test_adapters_go_on_learning(run_script, tiny_captioner_dir, tmp_path, own_rewards):
    reward = {"rewards": f"{own_rewards}:ending"}
    first = run_script(tiny_captioner_dir, tmp_path / "first", lora_rank=2, **reward)
    assert not (first / "model.safetensors").exists()
    dico = {"script": "train_dico", "num_generations": 2, **reward}
    still = run_script(first, tmp_path / "still", "dico", **dico, learning_rate=0.0)
    second = run_script(first, tmp_path / "second", "dico", **dico, learning_rate=1e-4)
    learned, same, more = (load_file(folder / "adapter_model.safetensors") for folder in (first, still, second))
    assert learned.keys() == same.keys() == more.keys()
    assert all(torch.equal(learned[name], same[name]) for name in learned)
    assert any(value.abs().max() > 1e-3 for name, value in learned.items() if "lora_B" in name)  # new ones are 0
    moved = max(float((learned[name] - more[name]).abs().max()) for name in learned)
    assert 0 < moved < 1e-3  # two steps of Adam, 1e-4 each
    with pytest.raises(SystemExit, match=r"--lora_rank 2: --model .*first has adapters already"):
        run_script(first, tmp_path / "third", lora_rank=2, **reward)


def test_vision_encoder_decoder(run_script, world, tmp_path, capfd):
    captions = [row["raw"] for image in json.loads((world / "dataset_karpathy.json").read_text())["images"]
                for row in image["sentences"]]  # fmt: skip
    base = tmp_path / "base"
    model = tiny_policy("vision-encoder-decoder")
    tokenizer = build_word_tokenizer(build_vocabulary(captions, min_count=1), model_max_length=12)
    model.decoder.resize_token_embeddings(len(tokenizer))
    model.generation_config.update(**special_token_ids(tokenizer), decoder_start_token_id=tokenizer.bos_token_id)
    model.save_pretrained(base)
    tokenizer.save_pretrained(base)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(base)
    out = run_script(base, tmp_path / "out")
    pictures = [str(path) for path in sorted((world / "images").iterdir())[:3]]
    capfd.readouterr()
    assert main(["caption", *pictures, "--model", str(out)]) == 0
    captions = [json.loads(line)["caption"] for line in capfd.readouterr().out.splitlines()]
    known = {word for caption in captions for word in caption.split()}
    assert len(captions) == 3 and known <= set(tokenizer.get_vocab()) - set(tokenizer.all_special_tokens)
    again = hf_captioners.pipeline(model=str(out))(pictures)
    assert [caption[0]["generated_text"] for caption in again] == captions
    again = run_script(out, tmp_path / "again", lora_rank=2, lora_target_modules=["c_attn", "q_attn"])
    before, after = (VisionEncoderDecoderModel.from_pretrained(folder).state_dict() for folder in (base, out))
    assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith("decoder"))
    assert all(torch.equal(before[name], after[name]) for name in before if name.startswith("encoder"))
    assert all("decoder" in name for name in load_file(again / "adapter_model.safetensors"))


def test_collapse_ends_the_run_with_a_diagnosis(run_script, tiny_captioner_dir, tmp_path, own_rewards):
    out = tmp_path / "out"
    with pytest.raises(SystemExit, match=r"training has collapsed: .*\n.*checkpoints from before are in"):
        run_script(tiny_captioner_dir, out, rewards=f"{own_rewards}:same", max_steps=9, collapse_patience=3)
    logs = history(out)
    assert any("collapse" in entry for entry in logs) and max(entry["step"] for entry in logs) < 9
    assert not (out / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rewards": "cidre"}, "--rewards cidre: no such reward; expected one of cider_d"),
        ({"model": "no_such"}, "--model no_such: there is no such file or folder"),
        ({"rewards": "pac_s", "clip_model": "no_such"}, "--clip_model no_such: there is no such file or folder"),
    ],
)
def test_what_is_missing_is_said(run_script, tiny_captioner_dir, tmp_path, options, message):
    with pytest.raises(SystemExit, match=message):
        run_script(**{"model": tiny_captioner_dir, "output_dir": tmp_path / "out", **options})
