"""Every code block of the README runs, in the README's order."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contracts import colour_detector
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, SwinConfig, SwinModel, ViTImageProcessor

from hf_captioners import (
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.conversion.expansionnet_v2 import original_name
from hf_captioners.modeling.tokenization_words import SPECIAL_TOKENS

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory, quickstart_run) -> Path:
    """A folder in which the README's file names mean something small."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "quickstart").symlink_to(quickstart_run[0])
    (folder / "examples").symlink_to(ROOT / "examples")
    world = quickstart_run[0] / "world"
    rows = json.loads((world / "dataset_karpathy.json").read_text("utf-8"))["images"][:8]
    for name, some in (("train", rows[:6]), ("validation", rows[6:])):
        (folder / "my_images" / name).mkdir(parents=True)
        lines = [
            json.dumps({"file_name": row["filename"], "captions": [s["raw"] for s in row["sentences"]]}) for row in some
        ]
        (folder / "my_images" / name / "metadata.jsonl").write_text("\n".join(lines))
        for row in some:
            shutil.copy(world / "images" / row["filename"], folder / "my_images" / name)
    (folder / "pictures").symlink_to(folder / "my_images/train")
    (folder / "images").symlink_to(world / "images")
    (folder / "dataset.json").write_text(json.dumps({"images": rows, "dataset": "sample"}))
    captions = [{"image_id": row["imgid"], "caption": row["sentences"][0]["raw"]} for row in rows]
    (folder / "captions.json").write_text(json.dumps(captions))
    references = {row["imgid"]: [sentence["raw"] for sentence in row["sentences"][1:]] for row in rows}
    (folder / "references.json").write_text(json.dumps(references))
    backbone = folder / "microsoft/swin-tiny-patch4-window7-224"
    SwinModel(SwinConfig(**SWIN)).save_pretrained(backbone)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(backbone)
    for part in colour_detector.build():
        part.save_pretrained(folder / "bottom-up")
    (folder / "large").mkdir()  # this detector is made for pictures of 224 pixels
    with Image.open(world / "images/sample_003600.png") as image:
        image.resize((224, 224)).save(folder / "large/scene.png")
    write_clip(folder / "openai/clip-vit-base-patch32")
    write_original_checkpoint(folder)
    return folder


def write_clip(folder: Path) -> None:
    """A small CLIP with the words of the drawn world."""
    words = ["a", "red", "green", "blue", "circle", "square", "star", *SPECIAL_TOKENS.values()]
    tokenizer = build_word_tokenizer(words, model_max_length=40)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**size, "vocab_size": len(words), "max_position_embeddings": 40, **special_token_ids(tokenizer)}
    del text["unk_token_id"]
    vision = {**size, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False).save_pretrained(folder)


def write_original_checkpoint(folder: Path) -> None:
    """A small stand-in for the authors' files, with the head count and groups that a checkpoint does not show."""
    import pickle

    words = sorted({"EOS", "PAD", "SOS", "UNK", "a", "dog", "red"})
    config = ExpansionNetV2Config(
        vocab_size=len(words), d_model=16, ffn_dim=16, encoder_layers=1, vision_config={"model_type": "swin", **SWIN},
        eos_token_id=0, pad_token_id=1, bos_token_id=2, unk_token_id=3,
    )  # fmt: skip
    state: dict[str, torch.Tensor] = {}
    for name, value in ExpansionNetV2ForImageCaptioning(config).state_dict().items():
        theirs = original_name(name)
        state[theirs] = torch.cat((state[theirs], value)) if theirs in state else value
    windows = (SWIN["image_size"] // SWIN["patch_size"] // SWIN["window_size"] // 2) ** 2
    state["swin_transf.layers.1.blocks.1.attn_mask"] = torch.zeros(windows, 16, 16)
    torch.save({"model_state_dict": state}, folder / "rf_model.pth")
    vocabulary = {
        "word2idx_dict": {word: index for index, word in enumerate(words)},
        "idx2word_list": words,
        "sos_str": "SOS",
        "eos_str": "EOS",
    }
    (folder / "demo_coco_tokens.pickle").write_bytes(pickle.dumps(vocabulary))


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "ACCELERATE_USE_CPU": "true",
        "HF_HOME": str(folder / ".hf"),
        **environment,
    }
    run = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, f"{command}\n{run.stdout[-2000:]}\n{run.stderr[-3000:]}"
    return run


def test_every_block_runs(place, monkeypatch, capsys, subtests):
    for number, (language, code) in enumerate(BLOCKS):
        with subtests.test(f"block {number}: {code.splitlines()[0]}"):
            run_block(number, language, code, place, monkeypatch, capsys)


def run_block(number, language, code, place, monkeypatch, capsys):
    if code.startswith("make quickstart"):  # quickstart_run has run it: the other blocks stand on its result
        assert (place / "quickstart/captioner/model.safetensors").exists()
    elif code.startswith("make "):
        shell(f"make --dry-run {code.split()[1]}", ROOT)
    elif code.startswith("pip install"):  # checked against what is installed; nothing is fetched or changed
        shell(
            code, ROOT, PIP_DRY_RUN="1", PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1"
        )
    elif "--detector bottom-up" in code:
        shell(
            code.replace("images/sample_003600.png", "large/scene.png").replace("features pictures", "features large"),
            place,
        )
    elif language == "bash":
        shell(code, place)
    elif language == "python":
        monkeypatch.chdir(place)
        exec(compile(code, f"README block {number}", "exec"), {})
        if "print(" in code:
            assert capsys.readouterr().out.strip()
    elif language == "json":
        assert set(json.loads(code)) == {"file_name", "captions"}
    else:  # what the block before prints: the same form; a caption depends on the machine
        assert language == "text"
        assert re.fullmatch(r"\[\{'generated_text': '[a-z ]+'\}\]", code.strip())


def test_the_folder_was_captioned(place):
    lines = shell(
        "hf-captioners caption pictures --model quickstart/captioner --num-beams 3", place
    ).stdout.splitlines()
    assert [sorted(json.loads(line)) for line in lines] == [["caption", "image"]] * 6
