"""The command line as a whole: verbs, help, versions, and how it ends."""

import subprocess
import sys
from importlib.metadata import version

import pytest

from hf_captioners.cli import env, main

HEAVY = {"torch", "transformers", "datasets", "numpy", "PIL"}
# help, and a mistake in the words, of every verb in a process of its own; then what it has loaded
LIGHT = f"""
import sys
from hf_captioners.cli.main import VERBS, main
for verb in [[], *([verb.__name__.split(".")[-1]] for verb in VERBS)]:
    for words, status in (["--help"], 0), (["--no-such-option"], 2):
        try:
            main([*verb, *words])
        except SystemExit as end:
            assert end.code == status, (verb, words, end.code)
        heavy = {HEAVY} & set(sys.modules)
        assert not heavy, (verb, words, heavy)
"""


def test_help_names_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for verb in ("caption", "train", "features", "plot", "convert", "env"):
        assert f"\n    {verb} " in text


def test_help_and_mistakes_load_nothing_heavy() -> None:
    run = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: hf-captioners ") == run.stderr.count("usage: hf-captioners ") == 1 + len(main.VERBS)


@pytest.mark.parametrize("arguments", [[], ["no-such-verb"], ["caption"], ["env", "--no-such-option"]])
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "usage: hf-captioners" in output.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("hf-captioners ")


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["env"]) == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert list(lines) == ["python", "platform", *env.PACKAGES, "accelerator"]
    assert lines["python"] == ".".join(map(str, sys.version_info[:3]))
    assert lines["transformers"] == version("transformers")


def test_env_names_what_is_missing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(env, "PACKAGES", ("no-such-package-at-all",))
    assert main.main(["env"]) == 0
    assert "no-such-package-at-all: not installed\n" in capsys.readouterr().out


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "run", interrupt)
    assert main.main(["env"]) == 130
