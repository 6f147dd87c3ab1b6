"""Every captioner's way over a Hub on this machine and back: pushed with and without code, loaded by name elsewhere.

What a process may know of the Hub it reads when huggingface_hub is imported: one fresh process pushes, one loads with
the package, and one without it.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contracts import colour_detector, tiny_scdnet
from contracts.loopback_hub import READER, WRITER, LoopbackHub
from contracts.reward_policies import TOKENIZER, tiny_policy, tiny_processor
from contracts.training_commands import XE, tiny_world, write_recipe

from hf_captioners import SaticForImageCaptioning, ScdnetConfig, pipeline, special_token_ids
from hf_captioners.data.drawn.drawing import draw_scene
from hf_captioners.data.drawn.scene import Scene, Thing
from hf_captioners.hub.card import write_card
from hf_captioners.hub.facts import CardFacts, CardResults
from hf_captioners.modeling.captioner_detector import load_detector

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("expansionnet_v2", "satic", "scdnet", "scdnet_cascade", "dico", "clip_gpt2", "regions", "bottom_up")
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
BLOCKS = """
import contextlib, io, json, sys
said = {}
for name, block in json.loads(sys.argv[1]).items():
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block, {})
    said[name] = out.getvalue()
print(json.dumps(said))
"""
OF_TRANSFORMERS = """
import hf_captioners, transformers
print(transformers.pipeline("image-to-text", model="me/satic")("picture.jpg"))
"""
CARD = """
from huggingface_hub import ModelCard
print([(one.metric_value, one.dataset_split, one.metric_args) for one in ModelCard.load("me/satic").data.eval_results])
"""
PINNED = """
from hf_captioners import pipeline
print(pipeline(model="me/satic", revision="{revision}")("picture.jpg"))
"""
REFUSALS = (
    (None, "me/mine", "nobody is logged in; do so with `hf auth login`"),
    ("hf_of_nobody", "me/mine", "the token is not valid (any more); log in again"),
    (READER, "me/mine", "the token may only read"),
    (WRITER, "you/mine", "you/mine: you is none of me"),
    (WRITER, "me/nothing", "me/nothing: there is no such repository"),
    (WRITER, "me/mine", "the Hub (http://127.0.0.1:9) cannot be reached"),
)


def saved(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder


def cascade() -> Any:
    """Both stages, of cached features."""
    sizes = {**tiny_scdnet.SIZES, "vocab_size": len(TOKENIZER), **special_token_ids(TOKENIZER)}
    sizes |= {"feature_size": colour_detector.build()[0].config.feature_size, "features_only": True}
    return tiny_scdnet.small_model(first_stage=ScdnetConfig(**sizes), sees_previous=True, **sizes)


def regions() -> tuple[Any, Any]:
    """A captioner of regions that names its detector."""
    width = colour_detector.build()[0].config.feature_size
    return SaticForImageCaptioning.new(
        ["a red circle above a blue square"], features=width, min_count=1, detector="me/bottom_up", d_model=16,
        encoder_layers=1, decoder_layers=1, num_attention_heads=2, ffn_dim=16, max_position_embeddings=12,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_captioner_dir) -> dict[str, Path]:
    """The folder of each, and beside them a picture and cached features."""
    above = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    parts = {kind: (tiny_policy(kind), tiny_processor(kind)) for kind in ("satic", "scdnet", "dico", "clip_gpt2")}
    parts |= {"scdnet_cascade": (cascade(), tiny_processor("scdnet")), "regions": regions()}
    parts["bottom_up"] = colour_detector.build()
    made = {kind: saved(above / kind, *parts[kind]) for kind in parts}
    made["expansionnet_v2"] = Path(shutil.copytree(tiny_captioner_dir, above / "expansionnet_v2"))
    results = [CardResults({"cider_d": 0.5}, "", "metrics:cider_d", "squares", "test")]
    write_card(CardFacts("satic", {"model_type": "satic"}, results=results, training={"seed": "3"}), made["satic"])
    (made["satic"] / "optimizer.pt").write_text("secret")
    scene = Scene((Thing("star", "red", "small"), Thing("star", "blue", "small")), relation="left of")
    draw_scene(scene, colour_detector.SIDE, random.Random(0)).save(above / "picture.jpg")
    features = np.random.default_rng(0).normal(size=(5, parts["bottom_up"][0].config.feature_size))
    np.save(above / "features.npy", features.astype(np.float32))
    return {kind: made[kind] for kind in KINDS}


def client(code: str, *words: str, env: dict[str, str], cwd: Path) -> Any:
    """What code in a fresh process writes as JSON in its last line."""
    run = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=env, cwd=cwd)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


def blocks(card: bytes) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", card.decode(), re.M | re.S)


@dataclass
class Journey:
    """What was said on the way over the Hub."""

    hub: LoopbackHub
    pushed: dict[str, list]
    proposed: list
    trained: list
    space: list
    refused: list[list]
    with_package: dict[str, str]
    without_package: dict[str, str]
    when_gone: dict[str, str]


@pytest.fixture(scope="module")
def journey(folders, tmp_path_factory) -> Journey:
    home, above = tmp_path_factory.mktemp("home"), folders["satic"].parent
    login = {"HF_TOKEN": WRITER}
    pushes = {kind: ["push", str(folder), f"me/{kind}", "--private"] for kind, folder in folders.items()}
    asked = [[login, [*words, *more]] for words in pushes.values() for more in ([], ["--ship-code"])]
    asked.append([login, ["push", str(folders["satic"]), "me/satic", "--create-pr", "--licence", "mit"]])
    recipe = write_recipe(above, "xe", **XE, **tiny_world(above / "world"), push_to_hub=True, hub_model_id="me/trained")
    asked.append([login, ["train", "xe", "--config", str(recipe), "--eval_strategy", "no"]])
    asked.append([login, ["push", "me/satic", "me/page", "--space"]])
    words = ["push", str(folders["satic"])]
    refused = [[{} if token is None else {"HF_TOKEN": token}, [*words, name]] for token, name, _ in REFUSALS]
    refused[-2][1].append("--create-pr")
    refused[-1][0]["HF_ENDPOINT"] = "http://127.0.0.1:9"
    with LoopbackHub() as hub:
        env = {**hub.environment(home), "PYTHONPATH": str(ROOT)}
        said = client(COMMANDS, json.dumps([*asked, *refused]), env=env, cwd=above)
        cards = {kind: blocks(hub.repositories[f"me/{kind}"].files()["README.md"]) for kind in KINDS}
        first = {kind: card[0] for kind, card in cards.items()} | {"transformers": OF_TRANSFORMERS, "card": CARD}
        first["pinned"] = PINNED.format(revision=list(hub.repositories["me/satic"].commits)[1])
        with_package = client(BLOCKS, json.dumps(first), env=env, cwd=above)
        own = env
        alone = f'import sys\nsys.modules["hf_captioners"] = None\n{BLOCKS}'
        second = {kind: card[1] for kind, card in cards.items()}
        env = hub.environment(tmp_path_factory.mktemp("other_home"))
        without_package = client(alone, json.dumps(second), env=env, cwd=above)
    when_gone = client(BLOCKS, json.dumps({"satic": first["satic"]}), env=own, cwd=above)
    pushed = {kind: said[2 * index : 2 * index + 2] for index, kind in enumerate(KINDS)}
    proposed, trained, space, *refused = said[2 * len(KINDS) :]
    return Journey(hub, pushed, proposed, trained, space, refused, with_package, without_package, when_gone)


@pytest.fixture(scope="module")
def expected(folders) -> dict[str, str]:
    """What is written with the folders, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folders["satic"].parent)
        features = np.load("features.npy")
        looked = {"retrieved": "a sentence that was retrieved for the picture"}
        inputs = {"scdnet_cascade": {"image_features": features, **looked}}
        detector = {"regions": {"detector": str(folders["bottom_up"])}}
        said = {
            kind: pipeline(model=str(folder), **detector.get(kind, {}))(inputs.get(kind, "picture.jpg"))
            for kind, folder in folders.items()
            if kind != "bottom_up"
        }
        alone = pipeline(model=str(folders["regions"]))({"image_features": features})
        model, images = load_detector(folders["bottom_up"])
        found = model(**images("picture.jpg", return_tensors="pt"))
    said["regions alone"] = alone
    said["bottom_up"] = " ".join(map(str, (found.boxes, found.labels, found.scores, found.region_features.shape)))
    return {kind: f"{text}\n" for kind, text in said.items()}


def test_each_is_pushed_with_and_without_code(journey):
    for kind, (without_code, with_code) in journey.pushed.items():
        repository = journey.hub.repositories[f"me/{kind}"]
        assert without_code[0] == with_code[0] == 0, (without_code[2], with_code[2])
        assert repository.private and len(repository.commits) == (4 if kind == "satic" else 3)  # the first is the Hub's
        _, before, after = list(repository.commits)[:3]
        assert without_code[1] == f"{journey.hub.url}/me/{kind}/commit/{before}\n"
        assert "model.safetensors" in without_code[2] and repository.refs["main"] == after
        assert not any(name.endswith(".py") for name in repository.commits[before]), kind
        files = repository.commits[after]
        assert any(name.startswith("modeling_") for name in files) and b"trust_remote_code=True" in files["README.md"]
        assert not any(WRITER.encode() in content for content in files.values())
        assert "optimizer.pt" not in files
    sent = [path for _, path in journey.hub.requests if path.startswith("/lfs/")]
    assert len(sent) == len(set(sent)) == len(KINDS) + 2  # weights once; those and the curves of a training


def test_a_pull_request(journey):
    repository = journey.hub.repositories["me/satic"]
    status, out, err = journey.proposed
    assert (status, out) == (0, f"{journey.hub.url}/me/satic/discussions/1\n"), err
    assert set(repository.refs) == {"main", "refs/pr/1"}
    assert b"license: mit" in repository.commits[repository.refs["refs/pr/1"]]["README.md"]


def test_a_space(journey):
    status, _, err = journey.space
    repository = journey.hub.repositories["me/page"]
    assert (status, len(repository.commits)) == (0, 2), err
    assert {"app.py", "requirements.txt", "README.md", "hf_captioners/demo/page.py"} <= repository.files().keys()
    assert ("POST", "/api/spaces/me/page/commit/main") in journey.hub.requests


def test_a_training_pushes_its_captioner_as_one_commit(journey, folders):
    assert journey.trained[0] == 0, journey.trained[2]
    repository = journey.hub.repositories["me/trained"]
    assert len(repository.commits) == 2  # the first is the Hub's
    run = folders["satic"].parent / "xe"
    written = {path.name for path in run.iterdir() if path.is_file()}
    assert set(repository.files()) - {".gitattributes"} == written - {
        *("trainer_state.json", "training_args.json", "contact_sheet.png")
    }
    assert repository.files()["model.safetensors"] == (run / "model.safetensors").read_bytes()
    card = repository.files()["README.md"].decode()
    assert "| steps | 2 of the optimizer" in card and "(training.png)" in card and 'model="me/trained"' in card
    assert not any(WRITER in path.read_text(errors="replace") for path in run.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", KINDS)
def test_the_blocks_of_the_card_run(journey, expected, kind):
    alone = "regions alone" if kind == "regions" else kind  # the detector is no code of the captioner's repository
    assert journey.with_package[kind] == expected[kind]
    assert journey.without_package[kind] == expected[alone]


def test_what_was_downloaded_is_loaded_when_the_hub_is_gone(journey, expected):
    assert journey.when_gone["satic"] == expected["satic"]


def test_by_name_through_transformers_and_of_a_revision(journey, expected):
    assert journey.with_package["transformers"] == journey.with_package["pinned"] == expected["satic"]
    assert journey.with_package["card"] == "[(0.5, 'test', {'signature': 'metrics:cider_d'})]\n"


def test_refusals_are_a_line(journey):
    for (token, _, message), (status, out, err) in zip(REFUSALS, journey.refused, strict=True):
        assert status == 2 and not out and message in err and err.startswith("hf-captioners push: error: "), err
        assert err.count("\n") == 1 and (token is None or token not in err)
    assert set(journey.hub.repositories) == {f"me/{kind}" for kind in (*KINDS, "trained", "page")}
