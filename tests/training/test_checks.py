"""Checks before the first step: the output folder, its disk, rights on the Hub, columns of rewards."""

from __future__ import annotations

import logging
import shutil
from types import SimpleNamespace

import pytest
from contracts.reward_policies import quickly, reward_trainer, tiny_policy, tiny_rows
from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled

from hf_captioners import SCSTConfig
from hf_captioners.training.checks import (
    check_hub_rights,
    check_output_dir,
    checkpoint_bytes,
    checkpoints_at_once,
    warn_of_few_images,
)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return tiny_rows(tmp_path_factory.mktemp("rows"))


def trainer(folder, rows, **options):
    options = {"candidate_strategy": "sample", "baseline": "leave_one_out", **options}
    return reward_trainer(SCSTConfig, folder, rows, **options)


class TestDisk:
    def test_an_estimate_is_what_is_written(self, rows, tmp_path):
        """All but the names, headers and small files of a checkpoint of Adam."""
        with quickly():
            run = trainer(tmp_path, rows, save_strategy="steps", save_steps=1, max_steps=1)
            run.train()
        files = {path.name: path.stat().st_size for path in (tmp_path / "checkpoint-1").iterdir()}
        model, checkpoint = checkpoint_bytes(run.model, run.args)
        assert 0.5 * files["model.safetensors"] < model <= files["model.safetensors"]
        assert 0.5 * files["optimizer.pt"] < checkpoint - model <= files["optimizer.pt"]

    @pytest.mark.parametrize(("optim", "states"), [("sgd", 0), ("adamw_torch", 2), ("radam", 2), ("adafactor", 0)])
    def test_states_of_optimizers(self, optim, states):
        model = tiny_policy("satic").requires_grad_(True)
        saved, checkpoint = checkpoint_bytes(model, SimpleNamespace(optim=optim, save_only_model=False))
        assert checkpoint - saved == states * sum(one.nbytes for one in model.parameters())

    @pytest.mark.parametrize(
        ("options", "number"),
        [
            ({"save_strategy": "no"}, 0),
            ({"save_strategy": "steps", "save_steps": 10}, 10),
            ({"save_strategy": "steps", "save_steps": 30}, 4),
            ({"save_strategy": "steps", "save_steps": 0.5}, 2),
            ({"save_strategy": "steps", "save_steps": 10, "save_total_limit": 2}, 3),
            ({"save_strategy": "epoch"}, 5),
            ({"save_strategy": "best"}, 1),
        ],
    )
    def test_number_of_checkpoints(self, options, number):
        args = SimpleNamespace(**{"save_total_limit": None, "save_steps": 500, **options})
        assert checkpoints_at_once(args, max_steps=100, steps_per_epoch=20) == number

    def test_too_full(self, rows, tmp_path, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
        with pytest.raises(ValueError, match=r"its disk has 100\.0 kB left, and the model and 2 checkpoints need at"):
            trainer(tmp_path / "run", rows, **options).train()
        with quickly():
            trainer(tmp_path / "run", rows, check_disk_space=False, **options).train()
            trainer(tmp_path / "other", rows, save_strategy="no", max_steps=1).train()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"output_dir .*file/run cannot be written: Not a directory"):
        check_output_dir(tmp_path / "file" / "run")


class Hub:
    """Answer of the Hub about the owner of a token."""

    def __init__(self, said):
        self.said = said

    def whoami(self, token):
        if isinstance(self.said, Exception):
            raise self.said
        return self.said


def owner(role, **more):
    return {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": role, **more}}}


class TestHub:
    def check(self, said, **options):
        usual = {"push_to_hub": True, "hub_model_id": None, "hub_token": None}
        check_hub_rights(SimpleNamespace(**{**usual, **options}), Hub(said))

    @pytest.mark.parametrize("name", [None, "model", "me/model", "us/model"])
    def test_may_write(self, name):
        scoped = [{"entity": {"name": "me"}, "permissions": ["repo.content.read", "repo.write"]}]
        for said in (owner("write"), owner("fineGrained", fineGrained={"scoped": scoped})):
            self.check(said, hub_model_id=name)

    @pytest.mark.parametrize(
        ("said", "message"),
        [
            (OfflineModeIsEnabled("no"), "HF_HUB_OFFLINE is set; unset it; or leave push_to_hub out"),
            (LocalTokenNotFoundError("no"), "nobody is logged in; do so with `hf auth login`"),
            (owner("read"), "the token may only read; log in with one that may write"),
            (owner("fineGrained", fineGrained={"scoped": []}), "the token may only read"),
        ],
    )
    def test_may_not(self, said, message):
        with pytest.raises(ValueError, match=message):
            self.check(said)
        self.check(said, push_to_hub=False)

    def test_of_somebody_else(self):
        with pytest.raises(ValueError, match="hub_model_id=you/model: you/model: you is none of me, us"):
            self.check(owner("write"), hub_model_id="you/model")


def test_few_images(rows, caplog):
    with caplog.at_level(logging.WARNING, logger="hf_captioners"):
        warn_of_few_images(rows[:4], ["bleu", "cider_d"])
        warn_of_few_images(rows[:4], ["bleu"])
        warn_of_few_images(rows * 10, ["cider_d"])
    (record,) = caplog.records
    assert record.getMessage().startswith("cider_d of 4 evaluation pictures counts words in the references of these")


def test_a_column_that_a_reward_needs(rows, tmp_path):
    def needy(completions, weights, **kwargs):
        return [1.0 for _ in completions]

    run = trainer(tmp_path, rows, reward=needy)
    with pytest.raises(ValueError, match="the reward 'needy' needs 'weights', but there are only captions, "):
        run.train()
    assert run.state.global_step == 0
