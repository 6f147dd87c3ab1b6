"""Pushing: what is staged, and a captioner's way over a Hub on this machine and back, in fresh processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from contracts import colour_detector
from contracts.loopback_hub import READER, WRITER, LoopbackHub
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModel

from hf_captioners import pipeline
from hf_captioners.cli.main import main
from hf_captioners.hub.card import write_card
from hf_captioners.hub.facts import CardFacts, CardResults
from hf_captioners.hub.push import push_captioner
from hf_captioners.hub.staging import StagingError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = """
import contextlib, io, json, os, sys
from huggingface_hub import constants
from hf_captioners.cli.main import main
said = []
for environment, words in json.loads(sys.argv[1]):
    os.environ.pop("HF_TOKEN", None)
    constants.ENDPOINT = environment.pop("HF_ENDPOINT", constants.ENDPOINT)
    os.environ.update(environment)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(words)
    said.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(said))
"""
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


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(path)
    return path


def client(code, *words, env, cwd, package=True):
    """Run code in a fresh process, with the package or without it."""
    environment = {**env, **({"PYTHONPATH": str(ROOT)} if package else {})}
    code = code if package else f'import sys\nsys.modules["hf_captioners"] = None\n{code}'
    command = [sys.executable, "-c", code, *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd)


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


def test_what_others_could_not_load_is_refused(run, tmp_path):
    adapters = tmp_path / "adapters"
    adapters.mkdir()
    (adapters / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(run)}))
    with pytest.raises(StagingError, match="which nobody else has; push that captioner first"):
        push_captioner(adapters, None, "me/mine", dry_run=tmp_path / "staged")
    with pytest.raises(StagingError, match="nowhere: no such folder of a captioner"):
        push_captioner(tmp_path / "nowhere", None, "me/mine", dry_run=tmp_path / "other")
    with pytest.raises(ValueError, match="'me/my mine' is no name of a repository"):
        push_captioner(run, None, "me/my mine", dry_run=tmp_path / "third")


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


WITH_PACKAGE = """
import json, sys
from hf_captioners import pipeline
name, revision, picture = sys.argv[1:]
captioner = pipeline(model=name, revision=revision)
from huggingface_hub import ModelCard
results = [vars(one) for one in ModelCard.load(name).data.eval_results]
print(json.dumps([captioner(picture)[0]["generated_text"], results]))
"""
WITHOUT_PACKAGE = """
import json, sys
from transformers import pipeline
captioner = pipeline("image-to-text", model=sys.argv[1], trust_remote_code=True)
print(json.dumps(captioner(sys.argv[2])[0]["generated_text"]))
"""


def commands(*asked, env, cwd):
    """Run commands one after the other in a fresh process: status, stdout and stderr of each."""
    said = client(COMMANDS, json.dumps(asked), env=env, cwd=cwd)
    assert said.returncode == 0, said.stderr[-3000:]
    return json.loads(said.stdout.splitlines()[-1])


def test_over_the_hub_and_back(run, picture, tmp_path):
    expected = pipeline(model=str(run))(str(picture))[0]["generated_text"]
    with LoopbackHub() as hub:
        env, login = hub.environment(tmp_path / "home"), {"HF_TOKEN": WRITER}
        push = ["push", str(run), "me/mine"]
        first, second, proposed = commands(
            *((login, [*push, *more]) for more in (["--private"], ["--ship-code"], ["--create-pr"])),
            env=env,
            cwd=tmp_path,
        )
        assert (first[0], second[0], proposed[0]) == (0, 0, 0), (first, second, proposed)
        repository = hub.repositories["me/mine"]
        assert repository.private and len(repository.commits) == 4  # one a push, and the Hub's own first one
        _, without_code, with_code, change = repository.commits
        assert set(repository.commits[without_code]) == {*CAPTIONER, "training.png", ".gitattributes"}
        assert first[1] == f"{hub.url}/me/mine/commit/{without_code}\n" and "model.safetensors" in first[2]
        assert sum(path.startswith("/lfs/") for _, path in hub.requests) == 2  # weights and curves were sent once
        files = repository.commits[with_code]
        assert "modeling_expansionnet_v2.py" in files and b"trust_remote_code=True" in files["README.md"]
        assert not any(WRITER.encode() in content for content in files.values())
        assert proposed[1] == f"{hub.url}/me/mine/discussions/1\n"
        assert repository.refs == {"main": with_code, "refs/pr/1": change}

        loaded = client(WITH_PACKAGE, "me/mine", without_code, picture, env=env, cwd=tmp_path)
        assert loaded.returncode == 0, loaded.stderr[-3000:]
        caption, (result,) = json.loads(loaded.stdout.splitlines()[-1])
        assert caption == expected
        assert (result["metric_value"], result["dataset_split"]) == (0.5, "test")
        assert result["metric_args"] == {"signature": "metrics:cider_d"}
        alone = client(WITHOUT_PACKAGE, "me/mine", picture, env=env, cwd=tmp_path, package=False)
        assert alone.returncode == 0, alone.stderr[-3000:]
        assert json.loads(alone.stdout.splitlines()[-1]) == expected


def test_refusals_are_a_line(run, tmp_path):
    cases = (
        (None, "me/mine", "nobody is logged in; do so with `hf auth login`"),
        ("hf_of_nobody", "me/mine", "the token is not valid (any more); log in again"),
        (READER, "me/mine", "the token may only read"),
        (WRITER, "you/mine", "you/mine: you is none of me"),
        (WRITER, "me/nothing", "me/nothing: there is no such repository"),
        (WRITER, "me/mine", "the Hub (http://127.0.0.1:9) cannot be reached"),
    )
    with LoopbackHub() as hub:
        asked = [[{} if token is None else {"HF_TOKEN": token}, ["push", str(run), name]] for token, name, _ in cases]
        asked[-2][1].append("--create-pr")
        asked[-1][0]["HF_ENDPOINT"] = "http://127.0.0.1:9"
        refusals = commands(*asked, env=hub.environment(tmp_path / "home"), cwd=tmp_path)
    for (token, _, message), (status, out, err) in zip(cases, refusals, strict=True):
        assert status == 2 and not out and message in err and err.startswith("hf-captioners push: error: "), err
        assert err.count("\n") == 1 and (token is None or token not in err)
    assert not hub.repositories
