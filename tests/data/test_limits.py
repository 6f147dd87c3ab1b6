"""Small files that would become large ones: refused before they are."""

import gzip
import json
import os
import re
from pathlib import Path

import pytest

from hf_captioners.data import limits
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.captions.predictions import read_references
from hf_captioners.data.limits import LimitError, check_array, limit_of, read_bytes


class TestText:
    @pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda content: gzip.compress(content[:3]) * 2])
    def test_plain_and_packed(self, tmp_path, pack):
        (tmp_path / "x").write_bytes(pack(b"[1]"))
        assert read_bytes(tmp_path / "x", "file").replace(b"][1", b"") == b"[1]"

    def test_a_bomb_is_refused_while_it_is_unpacked(self, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "FREE_BYTES", 2**20)
        path = tmp_path / "dataset.json.gz"
        path.write_bytes(gzip.compress(b" " * 2**24))  # 16 kB
        for read in (read_references, load_karpathy):
            with pytest.raises(ValueError, match=r"dataset\.json\.gz: a gzip file of \d+ bytes, .* limit .*TEXT_BYTES"):
                read(path)

    def test_the_environment_raises_and_lowers_the_limit(self, tmp_path, monkeypatch):
        monkeypatch.setattr(limits, "FREE_BYTES", 1000)
        path = tmp_path / "captions.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"7": ["a" * 10**5]}).encode()))
        with pytest.raises(LimitError):
            read_bytes(path, "file")
        monkeypatch.setenv("HF_CAPTIONERS_MAX_TEXT_BYTES", "200000")
        assert len(read_references(path).captions[7][0]) == 10**5
        monkeypatch.setenv("HF_CAPTIONERS_MAX_TEXT_BYTES", "100")
        with pytest.raises(LimitError, match=r"\d+ bytes; the limit for it is 100 bytes"):
            read_bytes(path, "file")
        monkeypatch.setenv("HF_CAPTIONERS_MAX_TEXT_BYTES", "many")
        with pytest.raises(ValueError, match="HF_CAPTIONERS_MAX_TEXT_BYTES='many' must be a positive integer"):
            read_bytes(path, "file")

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
    def test_a_fifo_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "fifo.json")
        for read in (read_references, load_karpathy):
            with pytest.raises((OSError, ValueError), match=r"fifo\.json: expected .* not a regular file"):
                read(tmp_path / "fifo.json")


def test_every_variable_is_documented():
    root = Path(limits.__file__).parents[2]
    variable = re.compile(r"HF_CAPTIONERS_MAX_[A-Z]+(?:_[A-Z]+)*\b")
    sources = [path.read_text("utf-8") for path in (root / "hf_captioners").rglob("*.py")]
    known = {name for text in sources for name in variable.findall(text)}
    documented = set(variable.findall((root / "docs" / "limits.md").read_text("utf-8")))
    assert documented == known
    assert len(documented) == 6


class TestArrays:
    def test_limits(self):
        assert limit_of("array", 10**9, stored=10) == limits.FREE_BYTES
        assert limit_of("array", 10**9, stored=10**6) == 10**8
        assert limit_of("array", 10**9, stored=10**9) == 10**9
        check_array("x", 10**8, 10**6)
        with pytest.raises(LimitError, match=r"x: declares 100000001 bytes and stores 1000000; .*ARRAY_BYTES"):
            check_array("x", 10**8 + 1, 10**6)
