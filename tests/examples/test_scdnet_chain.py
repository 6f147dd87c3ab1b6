"""The nine steps of SCD-Net's recipe, from the Makefile's own commands, on a drawn world."""

from __future__ import annotations

import json
import runpy
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from hf_captioners.cli.main import main
from hf_captioners.data.captions.distill import read_captions_by_image
from hf_captioners.data.drawn.world import write_sample_world
from hf_captioners.data.features.store import FeatureWriter

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "visual_layers": 1, "semantic_layers": 1,
    "decoder_layers": 1, "time_frequencies": 4, "min_count": 1,
}  # fmt: skip
TRAINING = (
    "--max_steps 2 --per_device_train_batch_size 4 --eval_strategy no --eval_with_generation false "
    "--save_strategy steps --save_steps 1 "
    "--load_best_model_at_end false --report_to none --disable_tqdm true --use_cpu"
)

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chain")
    world = write_sample_world(folder / "world", num_train=8, num_val=2, num_test=1, size=32)
    images = json.loads((world / "dataset_karpathy.json").read_text())["images"]
    with FeatureWriter(folder / "features", dtype=torch.float32) as writer:
        for image in images:
            writer.add(image["imgid"], torch.randn(3, 8, generator=torch.Generator().manual_seed(image["imgid"])))
    captions = {image["imgid"]: image["sentences"][0]["raw"] for image in images}
    for name, known in (("retrieved", captions), ("run/0_teacher", dict(list(captions.items())[:8]))):
        (folder / name).parent.mkdir(exist_ok=True)
        lines = [json.dumps({"image_id": image, "captions": [text]}) + "\n" for image, text in known.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def commands(folder, *more):
    """The commands that are left to do, as words."""
    variables = {
        "DIR": folder / "run", "ANNOTATIONS": folder / "world/dataset_karpathy.json", "FEATURES": folder / "features",
        "RETRIEVED": folder / "retrieved.jsonl", "RECIPE": "flickr8k_", "MORE": TRAINING,
        "NEW": f"--new_captioner '{json.dumps(SIZES)}'",
    }  # fmt: skip
    given = [f"{name}={value}" for name, value in variables.items()]
    makefile = str(ROOT / "examples/recipes/scdnet/Makefile")
    shown = subprocess.run(["make", "-n", "-f", makefile, *given, *more], capture_output=True, text=True, check=True)
    lines = shown.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("make")]


def run(words):
    if words[0] == "mv":
        Path(words[1]).rename(words[2])
    elif words[:3] == ["python", "-m", "hf_captioners"]:
        assert main(words[3:]) == 0
    elif words[0] == "python":
        runpy.run_path(words[1])["main"](words[2:])
    else:
        assert words[:2] == ["mkdir", "-p"]


def test_the_whole_chain(data):
    steps = commands(data)
    assert len([words for words in steps if words[0] == "python"]) == 9
    folder = data / "run"
    done = []
    while steps:
        run(steps[0])
        if steps[0][0] == "python" and "--out" in steps[0] and "caption" in steps[0]:
            run(steps[1])  # what was written gets its name
        done.append(steps[0])
        left = commands(data)
        assert len(left) < len(steps)
        steps = left
    assert len([words for words in done if words[0] == "python"]) == 9
    second = AutoModelForImageTextToText.from_pretrained(folder / "9_scst")
    assert second.config.sees_previous and second.config.hidden_size == 16
    assert read_captions_by_image(folder / "3_xe.jsonl").keys() == set(read_captions_by_image(data / "retrieved.jsonl"))
    teacher, new, merged = (read_captions_by_image(folder / f"{name}.jsonl") for name in
                            ("0_teacher", "7_guides", "8_guides"))  # fmt: skip
    assert merged.keys() == teacher.keys() == new.keys()
    assert all(merged[image][0] in (teacher[image][0], new[image][0]) for image in merged)


def test_guides_of_files(tmp_path, data, capsys):
    images = json.loads((data / "world/dataset_karpathy.json").read_text())["images"][:8]
    right = {image["imgid"]: image["sentences"][0]["raw"] for image in images}
    wrong = dict.fromkeys(right, "a circle")
    first = next(iter(right))
    for name, known in (("old", {**right, first: "a circle"}), ("new", {**wrong, first: right[first]})):
        lines = [json.dumps({"image_id": image, "caption": text}) + "\n" for image, text in known.items()]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    options = ["--model", data / "run/1_xe", "--annotations", data / "world/dataset_karpathy.json"]
    words = ["guides", tmp_path / "old.jsonl", tmp_path / "new.jsonl", *options, "--out", tmp_path / "merged.jsonl"]
    assert main(list(map(str, words))) == 0
    assert json.loads(capsys.readouterr().out)["new"] == 1
    assert {one: texts[0] for one, texts in read_captions_by_image(tmp_path / "merged.jsonl").items()} == right
    words[2] = tmp_path / "old.jsonl"
    (tmp_path / "old.jsonl").write_text((tmp_path / "old.jsonl").read_text() + '{"image_id": 99, "caption": "a"}\n')
    words[2] = tmp_path / "new.jsonl"
    assert main(list(map(str, words))) == 2
    assert "predictions has no sentence of image 99" in capsys.readouterr().err
