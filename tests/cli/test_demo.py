"""`hf-captioners demo`: what it loads, and mistakes in the arguments."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
from contracts import colour_detector
from PIL import Image

from hf_captioners.cli.demo import load_exhibition
from hf_captioners.cli.main import build_parser, main


def loaded(*words):
    return load_exhibition(build_parser().parse_args(["demo", *map(str, words)]))


def test_captioners_detectors_and_examples(tiny_captioner_dir, tmp_path):
    for part in colour_detector.build():
        part.save_pretrained(tmp_path / "detector")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "pictures" / "a.png")
    shown = loaded(tiny_captioner_dir, tmp_path / "detector", "--examples", tmp_path / "pictures")
    assert [one.name for one in shown.captioners] == [tiny_captioner_dir.name] and shown.examples.names == ["a.png"]
    assert list(shown.detectors) == ["detector"]
    assert build_parser().parse_args(["demo", "x"]).host == "127.0.0.1"


def test_mistakes(tiny_captioner_dir, tmp_path):
    with pytest.raises(ValueError, match=r"--examples .*: no such folder"):
        loaded(tmp_path / "nowhere", "--examples", tmp_path / "no")
    with pytest.raises(ValueError, match="nowhere"):
        loaded(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="captioners that read regions; none of these does"):
        loaded(tiny_captioner_dir, "--detector", tmp_path)


@pytest.mark.skipif(find_spec("gradio") is not None, reason="Gradio is installed")
def test_without_gradio(tiny_captioner_dir, capsys):
    assert main(["demo", str(tiny_captioner_dir)]) == 2
    assert "gradio is not installed; it is of the extra demo" in capsys.readouterr().err
