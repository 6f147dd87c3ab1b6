"""The notebook: it runs from the first cell to the last; its outputs are those of one run, small and of no machine."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import pytest
from contracts.documents import check_bash

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "captioning_tour.ipynb"
CELLS = [cell for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
LOCAL = re.compile(r"/(home|root|tmp|work|usr|opt|Users|private|var)/|site-packages|[A-Z]:\\\\")


def outputs(cell: dict) -> str:
    return json.dumps(cell["outputs"])


def test_outputs_are_those_of_one_run():
    assert [cell["execution_count"] for cell in CELLS] == list(range(1, len(CELLS) + 1))
    assert [output for cell in CELLS for output in cell["outputs"] if output["output_type"] == "error"] == []


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell["id"])
def test_outputs_are_small_and_name_no_place_of_a_machine(cell):
    text = outputs(cell)
    assert len(text) < 100_000
    images = [output["data"] for output in cell["outputs"] if "image/png" in output.get("data", {})]
    for image in images:  # base64 text may look like a path
        text = text.replace(json.dumps(image["image/png"]), "")
    assert not LOCAL.search(text), LOCAL.search(text)


def test_its_commands_exist():
    code = "\n".join("".join(cell["source"]) for cell in CELLS)
    commands = re.findall(r"^!((?:.*\\\n)*.*)$", code, re.M)
    assert len(commands) == 4
    for command in commands:
        check_bash(command)


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason='nbclient is not installed: pip install -e ".[notebook]"')
    pytest.importorskip("ipykernel", reason='ipykernel is not installed: pip install -e ".[notebook]"')
    import nbformat

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=3600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = {cell["id"]: "".join(output.get("text", "") for output in cell.outputs) for cell in ran}
    assert "100 of 100 captions are the same" in "".join(said.values())
    for file in ("report/index.html", "rewarded/model.safetensors", "to_be_pushed/onnx/decoder.onnx"):
        assert (tmp_path / "tour" / file).exists(), file
    card = (tmp_path / "tour/to_be_pushed/README.md").read_text("utf-8")
    assert "CIDEr-D" in card and str(tmp_path) not in card
