"""A Hub out of reach is asked once, and what is not on this machine is refused at once."""

from __future__ import annotations

import re
import time
from functools import partial

import pytest
from contracts.loopback_hub import LoopbackHub
from huggingface_hub import constants
from transformers import AutoConfig

from hf_captioners.cli.main import main
from hf_captioners.cli.training.captioner_arguments import CaptionerArguments, load_captioner
from hf_captioners.data.captions.captioned import load_named, split_names
from hf_captioners.inference.loading import CaptionerLoadError, load_captioners
from hf_captioners.modeling import captioner_hub
from hf_captioners.modeling.captioner_hub import HubOutOfReachError, at_once

NOWHERE = "http://127.0.0.1:9"
SAID = rf"it is not on this machine, or not whole, and the Hub \({NOWHERE}\) cannot be reached: "


@pytest.fixture
def out_of_reach(monkeypatch):
    """A Hub that refuses connections, and a clock that does not wait for it."""
    captioner_hub._asked.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", NOWHERE)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("it is asked once more"))
    yield
    assert not constants.HF_HUB_OFFLINE
    captioner_hub._asked.cache_clear()


def test_all_loading_by_name_is_refused_at_once(out_of_reach):
    with pytest.raises(CaptionerLoadError, match=f"^no/such: {SAID}"):
        load_captioners(["no/such"])
    with pytest.raises(ValueError, match=f"^--model no/such: {SAID}"):
        load_captioner(CaptionerArguments(model="no/such"))
    with pytest.raises(ValueError, match=f"backbone='no/such': {SAID}"):
        load_captioner(CaptionerArguments(model_type="satic", backbone="no/such"), [{"captions": ["a dog"] * 5}])


def test_data_sets_by_name_are_refused_at_once(out_of_reach, capsys):
    for load in (load_named, partial(load_named, streaming=True), split_names):
        with pytest.raises(ValueError, match=f"^no/such: {SAID}"):
            load("no/such")
    assert main(["caption", "--model", "x", "--dataset", "no/such"]) == 2
    assert re.search(f"no/such: {SAID}", capsys.readouterr().err)


def test_other_errors_and_folders_stay_as_they_are(out_of_reach, tmp_path):
    with pytest.raises(ValueError, match=r"^mine$"), at_once("no/such"):
        raise ValueError("mine")
    for source in (tmp_path, str(tmp_path), {}):
        with pytest.raises(OSError, match=r"^mine$"), at_once(source):
            assert not constants.HF_HUB_OFFLINE
            raise OSError("mine")


def test_a_hub_that_is_there_is_asked_once(out_of_reach, monkeypatch):
    with LoopbackHub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        for _ in range(3):
            with at_once("no/such"):
                assert not constants.HF_HUB_OFFLINE
        assert hub.requests == [("HEAD", "/")]


def test_within_another(out_of_reach):
    with pytest.raises(HubOutOfReachError, match=SAID) as error, at_once("no/such"), at_once("no/such"):
        AutoConfig.from_pretrained("no/such")
    assert str(error.value).count("cannot be reached") == 1
