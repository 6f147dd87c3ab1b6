"""`--model a b c`: an ensemble, and what cannot be one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from hf_captioners import CaptionerEnsemble, ExpansionNetV2Config, ExpansionNetV2ForImageCaptioning, SaticConfig
from hf_captioners import SaticForImageCaptioning as Satic
from hf_captioners.cli import main
from hf_captioners.cli.captioners import load_captioners
from hf_captioners.cli.common import UsageError


@pytest.fixture
def second(tiny_captioner_dir: Path, tmp_path: Path) -> Path:
    """Another captioner with the same words: a folder whose files a test may change."""
    folder = tmp_path / "second"
    shutil.copytree(tiny_captioner_dir, folder)
    torch.manual_seed(1)
    model = ExpansionNetV2ForImageCaptioning(ExpansionNetV2Config.from_pretrained(tiny_captioner_dir))
    with torch.no_grad():
        model.vocab_linear.weight.mul_(4.0)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.effect_mandelbrot((50, 50), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(path)
    return path


def load(*folders: Path) -> tuple[Any, Any]:
    return load_captioners([str(folder) for folder in folders], "cpu", "auto", False)


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def test_captions_of_an_ensemble(
    tiny_captioner_dir: Path, second: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [AutoModelForImageTextToText.from_pretrained(folder).eval() for folder in (tiny_captioner_dir, second)]
    processor = AutoProcessor.from_pretrained(second)
    inputs = processor(images=Image.open(picture))
    captions = [processor.decode(model.generate(**inputs)[0]) for model in (CaptionerEnsemble(models), *models)]
    assert len(set(captions)) == 3
    names = [str(tiny_captioner_dir), str(second)]
    assert main.main(["caption", str(picture), "--model", *names]) == 0
    assert json.loads(capsys.readouterr().out)["caption"] == captions[0]
    results = tmp_path / "results.json"
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": picture.name, "captions": ["a red circle"]}))
    dataset = ["--dataset", str(tmp_path), "--metrics", "bleu", "--save-predictions", str(results)]
    assert main.main(["evaluate", "--model", *names, *dataset]) == 0
    assert [row["caption"] for row in json.loads(results.read_text())] == captions[:1]


def test_paths_after_the_models(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["caption", "--model", "captioner", str(picture)]) == 2
    assert "--model takes all words up to the next option, so give paths before it" in capsys.readouterr().err


class TestMistakes:
    def test_another_kind(self, tiny_captioner_dir: Path, second: Path) -> None:
        Satic(SaticConfig(vocab_size=9, d_model=8, num_attention_heads=2, ffn_dim=8, encoder_layers=1, decoder_layers=1,
                          feature_size=8, unk_token_id=8)).save_pretrained(second)  # fmt: skip
        with pytest.raises(UsageError, match=f"--model .* {second}: model 1 is a Satic.*, the first one a Expansion"):
            load(tiny_captioner_dir, second)

    def test_another_vocabulary(self, tiny_captioner_dir: Path, second: Path) -> None:
        edit(second / "tokenizer.json", lambda content: swap(content["model"]["vocab"], "circle", "star"))
        with pytest.raises(
            UsageError, match=f"not an ensemble: {second} has another vocabulary: the id of 'circle' is \\d+, and "
        ):
            load(tiny_captioner_dir, second)

    def test_other_pictures(self, tiny_captioner_dir: Path, second: Path) -> None:
        processor = AutoProcessor.from_pretrained(second)
        processor.image_processor.image_mean = [0.5, 0.5, 0.5]
        processor.save_pretrained(second)
        with pytest.raises(UsageError, match=r"prepares pictures in another way .*: image_mean .0.5, 0.5, 0.5. inst"):
            load(tiny_captioner_dir, second)

    def test_another_precision(self, tiny_captioner_dir: Path, second: Path) -> None:
        AutoModelForImageTextToText.from_pretrained(second).to(torch.bfloat16).save_pretrained(second)
        with pytest.raises(UsageError, match=r"is in torch.bfloat16 and the first one in torch.float32; give dtype"):
            load(tiny_captioner_dir, second)
        load_captioners([str(tiny_captioner_dir), str(second)], "cpu", "float32", False)


def swap(vocabulary: dict[str, int], first: str, second: str) -> None:
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
