"""The README and the pages of the site: every block runs, in their order, on what those before it have made.

Blocks whose title begins with "Needs", and those of the results, are not run: their commands are parsed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from contracts.document_place import write_place
from contracts.documents import (
    INLINE,
    ROOT,
    Block,
    blocks,
    check_bash,
    check_extras,
    check_named,
    check_python,
    pages,
    prose,
)

import hf_captioners

LINK = re.compile(r"\]\(([^)\s]+)\)")
DOCUMENTS = [*pages(), "CHANGELOG.md"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, quickstart_run) -> Path:
    folder = tmp_path_factory.mktemp("documents")
    write_place(folder, quickstart_run[0])
    return folder


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    cache = {"ACCELERATE_USE_CPU": "true", "HF_HOME": str(folder / ".hf")}
    environment = {**os.environ, "PATH": path, **cache, **environment}
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{command}\n{run.stdout[-2000:]}\n{run.stderr[-3000:]}"
    return run


def test_every_block_runs(place, monkeypatch, capsys, subtests):
    for block in blocks():
        if block.runs:
            with subtests.test(str(block)):
                run_block(block, place, monkeypatch, capsys)
    check_results(place)


def run_block(block: Block, place: Path, monkeypatch, capsys) -> None:
    code = block.code
    if code.startswith("make quickstart"):  # quickstart_run has run it: the other blocks stand on its result
        assert (place / "quickstart/captioner/model.safetensors").exists()
    elif code.startswith("make "):
        shell(f"make --dry-run {code.split()[1]}", ROOT)
    elif code.startswith("pip install"):  # checked against what is installed; nothing is fetched or changed
        shell(
            code, ROOT, PIP_DRY_RUN="1", PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1"
        )
    elif block.language == "bash":
        shell(code, place)
    elif block.language == "python":
        monkeypatch.chdir(place)
        exec(compile(code, block.page, "exec"), {"__name__": "__main__"})
        if "print(" in code:
            assert capsys.readouterr().out.strip()
    elif block.language == "json":
        assert set(json.loads(code)) == {"file_name", "captions"}
    else:  # what the block before prints: the same form; a caption depends on the machine
        assert block.language == "text"
        assert re.fullmatch(r"\[\{'generated_text': '[a-z ]+'\}\]", code.strip())


def check_results(place: Path) -> None:
    """The blocks have left captions of all pictures by a captioner and by three, a checkpoint, charts and a report."""
    names = sorted(f"pictures/{path.name}" for path in (place / "pictures").glob("*.png"))
    for file in ("captions.jsonl", "ensemble.jsonl"):
        records = [json.loads(line) for line in (place / file).read_text("utf-8").splitlines()]
        assert [record["image"] for record in records] == names
        assert all(isinstance(record["caption"], str) for record in records)
    left = ("runs/mine/model.safetensors", "runs/scst/checkpoint-2", "runs/mine/onnx/decoder.onnx", "curves.png")
    pushed = ("to_be_pushed/model.safetensors", "to_be_pushed/README.md")
    for file in (*left, *pushed, "regions.png", "report"):
        assert (place / file).exists(), file


@pytest.mark.parametrize("block", [block for block in blocks() if not block.runs], ids=str)
def test_blocks_that_do_not_run_are_right_as_far_as_can_be_told(block):
    {"bash": check_bash, "python": check_python}[block.language](block.code)


@pytest.mark.parametrize("page", pages())
def test_commands_in_sentences_exist(page):
    text = prose(page)
    for command in INLINE.findall(text):
        check_named(command)
    check_extras(text)


def slugs(page: Path) -> set[str]:
    """The anchors of a page: those of its headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.M)
    texts = [
        re.sub(r"[^\w\s-]", "", re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading)).strip().lower() for heading in headings
    ]
    return {re.sub(r"[\s-]+", "-", text) for text in texts}


@pytest.mark.parametrize("page", DOCUMENTS)
def test_links_and_pictures_are_there(page):
    """Files, and anchors; those of the site's pages stay inside of it."""
    for target in LINK.findall(prose(page)):
        if re.match(r"https?:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (ROOT / page).parent / name if name else ROOT / page
        assert file.exists(), target
        assert page in ("README.md", "CHANGELOG.md") or file.resolve().is_relative_to(ROOT / "docs"), target
        assert not anchor or anchor in slugs(file), target


def test_every_page_is_in_the_navigation():
    found = {str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")}
    assert found == set(pages()) - {"README.md"}


def test_the_reference_has_every_public_name():
    text = "".join(path.read_text("utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
    described = set(re.findall(r"^::: ([\w.]+)$", text, re.M))
    names = {f"hf_captioners.{name}" for name in hf_captioners.__all__} - {"hf_captioners.__version__"}
    assert names - described == set()


def test_nothing_is_said_twice():
    """A paragraph of the README is in no page of the site, and none of a page is in another."""
    seen: dict[str, str] = {}
    for page in pages():
        for paragraph in re.split(r"\n\s*\n", prose(page)):
            paragraph = " ".join(paragraph.split())
            if len(paragraph) > 80 and not paragraph.startswith(":::"):
                assert seen.setdefault(paragraph, page) == page, paragraph
