"""The tables of a benchmark with the packages of two commits."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture()
def module(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("compare_commits")


def test_medians_and_their_ratio(module):
    before = [[["part", "s"], ["whole", value], ["nothing", "0.0"], ["of", "fp32"]] for value in ("3.0", "8.0", "2.0")]
    after = [[["part", "s"], ["whole", value], ["nothing", "0.0"], ["of", "fp32"]] for value in ("1.5", "1.0", "9.0")]
    assert module.compare(before, after) == [
        "| part | s |", "| whole | 3 → 1.5 (2.00) |", "| nothing | 0 → 0 |", "| of | fp32 |",
    ]  # fmt: skip


def test_runs_the_benchmark_with_each_package_in_turns(module, monkeypatch, capsys, tmp_path):
    script = tmp_path / "bench_it.py"
    script.write_text("import sys, hf_captioners\nprint('noise')\nprint('| part | s |')\nprint('| --- | --- |')\n"
                      "print(f'| {sys.argv[1]} | {hf_captioners.SECONDS} |')\n")  # fmt: skip

    def unpacked(commit: str, folder: Path) -> str:
        (folder / "hf_captioners").mkdir()
        (folder / "hf_captioners" / "__init__.py").write_text(f"SECONDS = {commit}")
        return commit

    monkeypatch.setattr(module, "unpack", unpacked)
    monkeypatch.setattr(module, "HERE", tmp_path)
    module.main(["6.0", "4.0", "--rounds", "1", "--", "bench_it.py", "whole"])
    assert "| whole | 6 → 4 (1.50) |" in capsys.readouterr().out.splitlines()
    script.write_text("raise SystemExit('of no use')")
    with pytest.raises(SystemExit, match="of no use"):
        module.measure([script.name], Path(sys.prefix))
