"""`hf-captioners convert`: the parser, the report, exit codes, and what is printed where."""

from __future__ import annotations

import errno
import itertools
import json
import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hf_captioners.cli.convert import build_parser
from hf_captioners.cli.main import main
from hf_captioners.conversion import SOURCES, find_command
from hf_captioners.metrics import DocumentFrequencies

SPECIAL = ["--special", "PAD=8", "SOS=9", "EOS=7", "UNK=10"]


def call(*arguments: str | Path) -> int:
    return main(["convert", *map(str, arguments)])


@pytest.fixture()
def sources(parity_case: Path, tmp_path: Path) -> list[Path | str]:
    """Arguments for the end-to-end checkpoint of a case; the output goes to `tmp_path / "out"`."""
    settings = json.loads((parity_case / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings["e2e"]["args"]))
    (tmp_path / "words.json").write_text(json.dumps(settings["vocab"]))
    arguments = ["expansionnet_v2", parity_case / "checkpoint.pth", "--out", tmp_path / "out"]
    return [*arguments, "--vocabulary", tmp_path / "words.json", "--original-config", tmp_path / "config.json"]


def test_converts_and_reports(sources: list[Path | str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*sources, *SPECIAL) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out_dir": str(tmp_path / "out")}
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "tensors converted" in captured.err
    assert "x swin_transf.layers.*.blocks.*.attn.relative_position_index" in captured.err
    assert "special tokens: PAD=8 ('PAD') SOS=9 ('SOS') EOS=7 ('EOS') UNK=10 ('UNK')" in captured.err
    assert "assumed" not in captured.err


def test_options(sources: list[Path | str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*sources) == 0
    assert call(*sources) == 2
    assert "is not empty" in capsys.readouterr().err
    assert call(*sources, "--overwrite", "--features-only") == 0
    assert "x swin_transf.norm.weight" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "config.json").read_text())["features_only"]
    assert call(*sources, "--overwrite", "--backbone", sources[1]) == 2
    assert "has a backbone" in capsys.readouterr().err


def test_assumptions_are_shown(sources: list[Path | str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = json.loads((tmp_path / "config.json").read_text())
    if settings["d_model"] % 8:
        pytest.skip("8 heads do not fit this case")
    (tmp_path / "config.json").write_text(json.dumps({"num_exp_enc_list": settings["num_exp_enc_list"]}))
    assert call(*sources) == 0
    assert "assumed, as released: num_heads=8" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((1, "nothing.pth"), "checkpoint not found: nothing.pth"),
        ((5, "nothing.json"), "JSON file not found: nothing.json"),
        ((7, __file__), "not valid JSON"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    sources: list[Path | str], tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[int, str], message: str
) -> None:
    index, value = change
    assert call(*sources[:index], value, *sources[index + 1 :]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hf-captioners convert: error: ")
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("special", ["PAD", "PAD=x", "PAD=-1", "PAD="])
def test_special_must_be_name_and_id(
    sources: list[Path | str], capsys: pytest.CaptureFixture[str], special: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        call(*sources, "--special", special)
    assert stop.value.code == 2
    assert "is not NAME=ID, such as PAD=78" in capsys.readouterr().err


def test_required_options(sources: list[Path | str], capsys: pytest.CaptureFixture[str]) -> None:
    index = sources.index("--out")
    with pytest.raises(SystemExit):
        call(*sources[:index], *sources[index + 2 :])
    assert "--out" in capsys.readouterr().err
    index = sources.index("--vocabulary")
    with pytest.raises(SystemExit):
        call(*sources[:index], *sources[index + 2 :])
    assert "the following arguments are required: --vocabulary" in capsys.readouterr().err


def test_pac_score(shared_parity: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = shared_parity / "dico" / "case_a" / "pacs.pth"
    assert call("pac_score", checkpoint, "--out", tmp_path / "out") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out_dir": str(tmp_path / "out")}
    assert "assumed, as released: quick_gelu=True" in captured.err
    assert "special tokens" not in captured.err


def test_document_frequencies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = tmp_path / "words.p", tmp_path / "words.safetensors"
    path.write_bytes(pickle.dumps({"document_frequency": {("a",): 2.0, ("a", "dog"): 1.0}, "ref_len": 3}))
    assert call("document_frequency", path, "--out", out) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"out_path": str(out)}
    assert captured.err == "2 n-grams of words in the references of 3 images\n"
    assert DocumentFrequencies.load(out).count("a dog") == 1
    assert call("document_frequency", path, "--out", out) == 2
    assert "words.safetensors: exists" in capsys.readouterr().err
    assert call("document_frequency", path, "--out", out, "--overwrite") == 0
    assert call("document_frequency", path, "--out", tmp_path / "folder") == 2
    assert "expected a name that ends in .safetensors" in capsys.readouterr().err


def test_help_names_the_sources(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call("--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for source in SOURCES:
        assert f"\n    {source}" in text


@pytest.mark.parametrize("source", SOURCES)
def test_help_of_a_source_has_its_options_only(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call(source, "--help")
    assert stop.value.code == 0
    text = capsys.readouterr().out
    shown = {flag.replace("-", "_")[2:] for flag in re.findall(r"^  (--[\w-]+)", text, re.MULTILINE)}
    assert shown == {*find_command(source).options, "out", "overwrite"}
    assert f"hf-captioners convert {source} {find_command(source).example}" in text


@pytest.mark.parametrize("source", SOURCES)
def test_examples_are_read(source: str) -> None:
    """The example of a source gives what its function takes."""
    command = find_command(source)
    read = vars(build_parser(command).parse_args(command.example.split()))
    assert set(read) - {"checkpoint", "out"} <= set(command.options)
    assert all(name in read for name, declaration in command.options.items() if declaration.get("required"))


def test_options_of_other_sources_are_refused(sources: list[Path | str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        call(*sources, "--infos", "infos.pkl")
    assert stop.value.code == 2
    assert "convert expansionnet_v2: error: unrecognized arguments: --infos infos.pkl" in capsys.readouterr().err


def test_the_converter_is_imported_only_when_it_runs() -> None:
    code = (
        "import sys, hf_captioners.cli.convert as c; print([m for m in sys.modules if 'captioners.conversion.' in m])"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


class TestFullDisk:
    """A limit on the size of files stands for the disk: a line, a status of its own, and nothing that is half there."""

    @pytest.fixture()
    def little_space(self) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    def test_a_folder(
        self, sources: list[Path | str], tmp_path: Path, capsys: pytest.CaptureFixture[str], little_space: None
    ) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        assert call(*sources) == 3
        captured = capsys.readouterr()
        line = f"hf-captioners convert: error: [Errno {errno.EFBIG}] File too large: '{tmp_path / 'out'}"
        assert captured.out == "" and captured.err.startswith(line) and captured.err.count("\n") == 1
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    def test_an_earlier_conversion_stays(
        self, sources: list[Path | str], tmp_path: Path, request: pytest.FixtureRequest
    ) -> None:
        assert call(*sources) == 0
        before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
        request.getfixturevalue("little_space")
        assert call(*sources, "--overwrite") == 3
        assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before

    def test_document_frequencies(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
    ) -> None:
        path, out = tmp_path / "words.p", tmp_path / "words.safetensors"
        counts = {(f"w{index}",): 1.0 for index in range(2000)}
        path.write_bytes(pickle.dumps({"document_frequency": counts, "ref_len": 3}))
        request.getfixturevalue("little_space")
        assert call("document_frequency", path, "--out", out) == 3
        assert f"File too large: '{out}'" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["words.p"]


def test_a_place_that_cannot_be_written_is_named_before_the_work(
    sources: list[Path | str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources[sources.index("--out") + 1] = tmp_path / "words.json" / "out"
    sources[1] = "nothing.pth"
    assert call(*sources) == 2
    assert f"Not a directory: '{tmp_path / 'words.json'}'" in capsys.readouterr().err


def test_progress_without_a_terminal(
    sources: list[Path | str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every reading of the clock is six seconds later than the one before."""
    seconds = itertools.count(step=6.0)
    monkeypatch.setattr("tqdm.std.time", lambda: next(seconds))
    assert call(*sources) == 0
    err = capsys.readouterr().err
    assert "reading checkpoint.pth: " in err and "writing out: " in err and "\r" not in err
    assert "shards" not in err  # the bar of transformers, which counts files
