"""Reading checkpoints, pickles and JSON of others: what is accepted, what is refused, and that nothing runs."""

from __future__ import annotations

import argparse
import copyreg
import datetime
import os
import pickle
import sys
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from hf_captioners.conversion.safe_load import CheckpointError, load_checkpoint, load_json, load_plain_pickle
from hf_captioners.conversion.stand_ins import DEFAULTDICT

STATE = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.zeros(2)}


class RunsACommand:
    """Unpickled without care it would create the file `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.path}",))


class HashedLate:
    """Pickled as a dict of which `key` is a key, which is not hashed for it."""

    def __init__(self, key: Any) -> None:
        self.key = key

    def __reduce__(self) -> Any:
        return dict_of_items, (self.key,)


def dict_of_items(key: Any) -> None:
    """Stands in the pickle; never called."""


def save(tmp_path: Path, content: Any, **kwargs: Any) -> Path:
    torch.save(content, tmp_path / "x.pth", **kwargs)
    return tmp_path / "x.pth"


class TestLoadCheckpoint:
    @pytest.mark.parametrize("key", ["model_state_dict", "model", None])
    @pytest.mark.parametrize("zipped", [True, False])
    def test_finds_the_model_part(self, tmp_path: Path, key: str | None, zipped: bool) -> None:
        content = STATE if key is None else {key: STATE, "optimizer_state_dict": {"step": 3}, "epoch": 1}
        loaded = load_checkpoint(save(tmp_path, content, _use_new_zipfile_serialization=zipped))
        assert list(loaded) == list(STATE)
        assert all(torch.equal(loaded[name], tensor) for name, tensor in STATE.items())

    @pytest.mark.parametrize("key", ["state_dict", "module", "net", "network", "ema", "model_ema", "params"])
    def test_usual_keys(self, tmp_path: Path, key: str) -> None:
        content = {"epoch": 3, key: STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}
        assert list(load_checkpoint(save(tmp_path, content))) == list(STATE)

    def test_keys_in_keys_and_weights_before_their_average(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        other = {"a.weight": torch.ones(1)}
        content = {"ema": other, "model": {"name": "satic", "state_dict": STATE}}
        assert list(load_checkpoint(save(tmp_path, content))) == list(STATE)
        assert "the state dict 'ema' (taken: 'model')" in caplog.text
        assert list(load_checkpoint(save(tmp_path, {"model": "satic", "ema": STATE}))) == list(STATE)
        with pytest.raises(CheckpointError, match=r"no tensors at the top level \(found 'mine'\); expected a state"):
            load_checkpoint(save(tmp_path, {"mine": STATE}))

    def test_safetensors(self, tmp_path: Path) -> None:
        save_file(STATE, tmp_path / "x.safetensors")
        assert set(load_checkpoint(tmp_path / "x.safetensors")) == set(STATE)

    def test_strips_the_prefix_of_distributed_training_only_from_all_names(self, tmp_path: Path) -> None:
        assert list(load_checkpoint(save(tmp_path, {"module.a": STATE["a.bias"]}))) == ["a"]
        mixed = {"module.a": STATE["a.bias"], "b": STATE["a.bias"]}
        assert list(load_checkpoint(save(tmp_path, mixed))) == ["module.a", "b"]

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_two_tensors_of_one_name(self, tmp_path: Path, suffix: str) -> None:
        state = {"a": torch.ones(1), "_orig_mod.a": torch.zeros(1)}
        save_file(state, tmp_path / "x.safetensors")
        save(tmp_path, state)
        with pytest.raises(CheckpointError, match=r"x\..* are both 'a' without the prefixes of wrappers"):
            load_checkpoint(tmp_path / f"x{suffix}")

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_what_lies_beside_the_weights_is_left_unread_and_named(
        self, tmp_path: Path, protocol: int, zipped: bool, caplog: pytest.LogCaptureFixture
    ) -> None:
        beside = {
            "args": argparse.Namespace(lr=1e-4, out=Path("out")),
            "best": np.float32(1.5),
            "history": np.arange(3),
            "state": {np.int64(3): {Path("a"), Path("b")}},
            "when": datetime.datetime(2024, 1, 1),
            "layer": torch.nn.Linear(2, 2),
        }
        content = {**beside, "model": torch.nn.Linear(3, 2).state_dict()}  # an OrderedDict with _metadata
        path = save(tmp_path, content, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
        loaded = load_checkpoint(path)
        assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
            name: tensor.tolist() for name, tensor in content["model"].items()
        }
        for name in ("argparse.Namespace", "pathlib.", "multiarray.scalar", "datetime.datetime", "linear.Linear"):
            assert name in caplog.text

    def test_storages_that_are_shared(self, tmp_path: Path) -> None:
        tied = torch.ones(256)
        path = save(tmp_path, {"a": tied, "b": tied, "c": tied[:10]})
        assert load_checkpoint(path, max_shared_bytes=2000)["b"].tolist() == tied.tolist()
        with pytest.raises(CheckpointError, match=r"have 2088 bytes, but share 1024 in the file; the limit is 1000"):
            load_checkpoint(path, max_shared_bytes=1000)
        many = save(tmp_path, {f"layers.{index}": torch.ones(1).expand(1) for index in range(3)})
        assert len(load_checkpoint(many, max_shared_bytes=0)) == 3  # each has a storage of its own

    def test_a_file_that_claims_gigabytes(self, tmp_path: Path) -> None:
        shared = torch.zeros(1024, 1024, dtype=torch.uint8)
        path = save(tmp_path, {f"layers.{index}": shared for index in range(1000)})
        with pytest.raises(CheckpointError, match="have 1048576000 bytes, but share 1048576"):
            load_checkpoint(path)

    def test_a_pickle_beyond_the_limit(self, tmp_path: Path) -> None:
        for zipped in (True, False):
            path = save(tmp_path, {"a": torch.ones(2), "b" * 5000: 1}, _use_new_zipfile_serialization=zipped)
            with pytest.raises(CheckpointError, match=r"x\.pth"):
                load_checkpoint(path, max_pickle_bytes=1000)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_fifo_is_not_opened(self, tmp_path: Path, suffix: str) -> None:
        os.mkfifo(tmp_path / f"x{suffix}")
        with pytest.raises(CheckpointError, match="not a regular file"):
            load_checkpoint(tmp_path / f"x{suffix}")

    def test_parameters_come_without_gradients(self, tmp_path: Path) -> None:
        loaded = load_checkpoint(save(tmp_path, {"a": torch.nn.Parameter(torch.ones(2))}))
        assert not loaded["a"].requires_grad

    def test_is_memory_mapped(self, tmp_path: Path) -> None:
        if not Path("/proc/self/maps").exists():
            pytest.skip("needs /proc to see what is mapped")
        path = save(tmp_path, STATE)
        loaded = load_checkpoint(path)
        assert str(path) in Path("/proc/self/maps").read_text()
        del loaded
        assert str(path) not in Path("/proc/self/maps").read_text()

    @pytest.mark.parametrize("zipped", [True, False])
    def test_refuses_code_by_name_and_does_not_run_it(self, tmp_path: Path, zipped: bool) -> None:
        content = {"model": STATE, "args": RunsACommand(tmp_path / "ran")}
        path = save(tmp_path, content, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"x\.pth: needs the Python object (posix|nt)\.system"):
            load_checkpoint(path)
        assert not (tmp_path / "ran").exists()

    def test_the_environment_cannot_switch_the_protection_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
        path = save(tmp_path, {"model": STATE, "args": RunsACommand(tmp_path / "ran")})
        with pytest.raises(CheckpointError, match="system"):
            load_checkpoint(path)
        assert not (tmp_path / "ran").exists()

    def test_refuses_a_pickled_module_by_name(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
            load_checkpoint(save(tmp_path, {"model": torch.nn.Linear(2, 2)}))

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html><html>", b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(90)])
    def test_refuses_what_is_no_checkpoint(self, tmp_path: Path, suffix: str, content: bytes) -> None:
        path = tmp_path / f"x{suffix}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\."):
            load_checkpoint(path)

    def test_shows_how_a_wrong_file_begins(self, tmp_path: Path) -> None:
        (tmp_path / "x.pth").write_bytes(b"<!DOCTYPE html><html>")
        with pytest.raises(CheckpointError, match="begins with b'<!DOCTYPE html>") as error:
            load_checkpoint(tmp_path / "x.pth")
        assert "weights_only" not in str(error.value)  # torch's advice to load it unsafely is not passed on

    def test_truncated(self, tmp_path: Path) -> None:
        path = save(tmp_path, {"a": torch.zeros(10000)})
        path.write_bytes(path.read_bytes()[:20000])
        with pytest.raises(CheckpointError, match=r"x\.pth"):
            load_checkpoint(path)

    def test_missing_file_and_folder(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"checkpoint not found: .*nothing\.pth"):
            load_checkpoint(tmp_path / "nothing.pth")
        with pytest.raises(CheckpointError, match="not a regular file"):
            load_checkpoint(tmp_path)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            ({}, "no tensors"),
            ({"model": {}}, "no tensors under 'model'"),
            ({"epoch": 3}, r"no tensors at the top level \(found 'epoch'\)"),
            ([torch.zeros(2)], "holds a list"),
            (torch.zeros(2), "holds a Tensor"),
            ({"model": {"a": torch.zeros(2), "step": 3}}, "'step' under 'model' is a int"),
            ({"a": torch.zeros(2).to_sparse()}, "'a' is a sparse tensor"),
            ({"a": torch.zeros(2, device="meta")}, "'a' is a meta tensor"),
            ({"a": torch.zeros(1).expand(10**6, 10**6)}, "claims shape"),
        ],
    )
    def test_refuses_other_content(self, tmp_path: Path, content: Any, message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(save(tmp_path, content))


class TestLoadPlainPickle:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_reads_plain_values(self, tmp_path: Path, protocol: int) -> None:
        value = {"words": ["a", "é"], "ids": {"a": 0}, "more": (1, 2.5, None, True)}
        (tmp_path / "x.pickle").write_bytes(pickle.dumps(value, protocol))
        assert load_plain_pickle(tmp_path / "x.pickle") == value

    def test_reads_bytes_and_strings_of_python_2(self, tmp_path: Path) -> None:
        (tmp_path / "x.pickle").write_bytes(pickle.dumps([b"a"], 4))
        assert load_plain_pickle(tmp_path / "x.pickle") == [b"a"]
        (tmp_path / "x.pickle").write_bytes(b"U\x02\xc3\xa9.")  # SHORT_BINSTRING
        assert load_plain_pickle(tmp_path / "x.pickle") == "é"

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_refuses_code_by_name_and_does_not_run_it(self, tmp_path: Path, protocol: int) -> None:
        (tmp_path / "x.pickle").write_bytes(pickle.dumps({"a": RunsACommand(tmp_path / "ran")}, protocol))
        with pytest.raises(CheckpointError, match=r"x\.pickle: refers to (posix|nt)\.system"):
            load_plain_pickle(tmp_path / "x.pickle")
        assert not (tmp_path / "ran").exists()

    def test_does_not_even_import_what_is_named(self, tmp_path: Path) -> None:
        sys.modules.pop("this", None)
        (tmp_path / "x.pickle").write_bytes(b"cthis\ns\n.")
        with pytest.raises(CheckpointError, match=r"refers to this\.s"):
            load_plain_pickle(tmp_path / "x.pickle")
        assert "this" not in sys.modules

    @pytest.mark.parametrize("harmless", [print, dict, pickle.UnpicklingError])
    def test_refuses_every_other_global(self, tmp_path: Path, harmless: Any) -> None:
        (tmp_path / "x.pickle").write_bytes(pickle.dumps(harmless))
        with pytest.raises(CheckpointError, match=harmless.__name__):
            load_plain_pickle(tmp_path / "x.pickle")

    def test_refuses_the_extension_registry(self, tmp_path: Path) -> None:
        copyreg.add_extension("os", "system", 240)
        try:
            (tmp_path / "x.pickle").write_bytes(b"\x80\x02\x82\xf0.")
            with pytest.raises(CheckpointError, match="EXT1"):
                load_plain_pickle(tmp_path / "x.pickle")
        finally:
            copyreg.remove_extension("os", "system", 240)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"not a pickle",
            b"\x80\x04]",  # no STOP
            b"\x80\x04a.",  # APPEND on an empty stack
            b"}K\x01b.",  # BUILD on a dict
            b"]R.",  # REDUCE of a list
            b"Pid\n.",  # a persistent id
            b"]r\xff\xff\xff\x7f.",  # a memo index that would allocate gigabytes
            b"\x8d\xff\xff\xff\xff\xff\xff\xff\x00a.",  # a string that claims to be longer than memory
        ],
    )
    def test_refuses_what_is_no_plain_pickle(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.pickle").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.pickle"):
            load_plain_pickle(tmp_path / "x.pickle")

    @pytest.mark.parametrize("make", [list, tuple])
    def test_values_that_share_their_parts(self, tmp_path: Path, make: Any) -> None:
        """Written out, 2^64 values: an error's `repr`, or the hash of a key, would never end."""
        nested = make(["a"])
        for _ in range(64):
            nested = make([nested, nested])
        values: list[Any] = [nested, {"idx2word_list": nested}, [{"a": nested}]]
        values += [HashedLate(nested)] if make is tuple else []
        for value in values:
            (tmp_path / "x.pickle").write_bytes(pickle.dumps(value))
            assert (tmp_path / "x.pickle").stat().st_size < 2000
            with pytest.raises(CheckpointError, match=r"x\.pickle: nests .* that share their parts"):
                load_plain_pickle(tmp_path / "x.pickle")

    def test_nesting_and_containers_in_themselves(self, tmp_path: Path) -> None:
        deep: list[Any] = []
        for _ in range(200):
            deep = [deep]
        round_trip: list[Any] = []
        round_trip.append(round_trip)
        for value, message in ((deep, "deeper than 100"), (round_trip, "contains itself")):
            (tmp_path / "x.pickle").write_bytes(pickle.dumps(value))
            with pytest.raises(CheckpointError, match=message):
                load_plain_pickle(tmp_path / "x.pickle")

    def test_a_fifo_is_not_opened(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "x")
        for load in (load_plain_pickle, load_json):
            with pytest.raises(CheckpointError, match="not a regular file"):
                load(tmp_path / "x")

    def test_size_limit(self, tmp_path: Path) -> None:
        (tmp_path / "x.pickle").write_bytes(pickle.dumps("a" * 100))
        with pytest.raises(CheckpointError, match="larger than the limit of 50 bytes"):
            load_plain_pickle(tmp_path / "x.pickle", max_bytes=50)
        assert load_plain_pickle(tmp_path / "x.pickle") == "a" * 100

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"pickle not found: .*nothing"):
            load_plain_pickle(tmp_path / "nothing")


class TestStandIns:
    """`load_plain_pickle` with an allow-list: what is named there has a stand-in, everything else is still refused."""

    def write(self, tmp_path: Path, content: bytes) -> Path:
        (tmp_path / "x.pickle").write_bytes(content)
        return tmp_path / "x.pickle"

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    @pytest.mark.parametrize("factory", [float, int, None])
    def test_a_defaultdict_is_a_plain_dict(self, tmp_path: Path, factory: Any, protocol: int) -> None:
        value = {"counts": defaultdict(factory, {("a", "b"): 2.0}), "images": 3}
        path = self.write(tmp_path, pickle.dumps(value, protocol))
        loaded = load_plain_pickle(path, stand_ins=DEFAULTDICT)
        assert loaded == value
        assert type(loaded["counts"]) is dict
        with pytest.raises(CheckpointError, match=r"refers to collections\.defaultdict"):
            load_plain_pickle(path)  # by default there are none

    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_everything_else_is_refused(self, tmp_path: Path, protocol: int) -> None:
        for value in (RunsACommand(tmp_path / "ran"), OrderedDict(a=1), eval, list):
            path = self.write(tmp_path, pickle.dumps({"a": defaultdict(float), "b": value}, protocol))
            with pytest.raises(CheckpointError, match=r"x\.pickle: refers to "):
                load_plain_pickle(path, stand_ins=DEFAULTDICT)
        assert not (tmp_path / "ran").exists()

    @pytest.mark.parametrize(
        "content",
        [
            b"c__builtin__\nfloat\n(S'1.5'\ntR.",  # float("1.5")
            b"\x80\x02c__builtin__\nfloat\n)\x81.",  # float.__new__(float)
            b"\x80\x02ccollections\ndefaultdict\n)\x81.",
            b"ccollections\ndefaultdict\n}S'a'\nK\x01sb.",  # sets an attribute of it
            b"\x80\x02ccollections\ndefaultdict\nN}X\x08\x00\x00\x00__call__K\x01s\x86b.",  # by slot state
            b"\x80\x04\x8c\x0bcollections\x8c\x14defaultdict.__class__\x93.",  # an attribute by a dotted name
            b"\x80\x04\x8c\x08builtins\x8c\x0efloat.__init__\x93.",
        ],
    )
    def test_a_stand_in_gives_and_takes_nothing_else(self, tmp_path: Path, content: bytes) -> None:
        with pytest.raises(CheckpointError, match=r"x\.pickle"):
            load_plain_pickle(self.write(tmp_path, content), stand_ins=DEFAULTDICT)
        plain = self.write(tmp_path, pickle.dumps(defaultdict(float, a=1.0)))
        assert load_plain_pickle(plain, stand_ins=DEFAULTDICT) == {"a": 1.0}

    def test_each_load_has_its_own_dict(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, pickle.dumps([defaultdict(float), defaultdict(float)]))
        one, two = load_plain_pickle(path, stand_ins=DEFAULTDICT)
        one["a"] = 1
        assert two == {} and load_plain_pickle(path, stand_ins=DEFAULTDICT) == [{}, {}]


class TestLoadJson:
    def test_reads(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text('{"é": [1, null]}', encoding="utf-8")
        assert load_json(tmp_path / "x.json") == {"é": [1, None]}

    @pytest.mark.parametrize("content", [b"", b"{'a': 1}", b"\xff\xfe", b"[" * 100000])
    def test_refuses_other_content(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"x\.json: not valid JSON"):
            load_json(tmp_path / "x.json")

    def test_limits(self, tmp_path: Path) -> None:
        (tmp_path / "x.json").write_text("[1, 2, 3]")
        with pytest.raises(CheckpointError, match="larger than the limit of 4 bytes"):
            load_json(tmp_path / "x.json", max_bytes=4)
        with pytest.raises(FileNotFoundError, match="JSON file not found"):
            load_json(tmp_path / "nothing.json")
