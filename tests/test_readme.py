"""Every code block of the README runs, in the README's order, on what the blocks before it have made.

Hub names are folders with small models here, and so are the files that the README says come from others: the authors'
checkpoint and the detector.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from contracts import colour_detector, tiny_retriever
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, SwinConfig, SwinModel, ViTImageProcessor

from hf_captioners import (
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    ScdnetForImageCaptioning,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.conversion.expansionnet_v2 import original_name
from hf_captioners.inference.build_retriever import build_retriever
from hf_captioners.modeling.captioner_retriever import CaptionRetriever
from hf_captioners.modeling.tokenization_words import SPECIAL_TOKENS

ROOT = Path(__file__).resolve().parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text("utf-8"), re.M | re.S)
SWIN = {"image_size": 32, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory, quickstart_run) -> Path:
    """A clone of the repository after `make quickstart`, with small models under the names of the Hub."""
    folder = tmp_path_factory.mktemp("readme")
    (folder / "quickstart").symlink_to(quickstart_run[0])
    (folder / "examples").symlink_to(ROOT / "examples")
    backbone = folder / "microsoft/swin-tiny-patch4-window7-224"
    SwinModel(SwinConfig(**SWIN)).save_pretrained(backbone)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(backbone)
    for part in colour_detector.build(min_proposal_size=0.0):  # the drawn pictures are small
        part.save_pretrained(folder / "bottom-up")
    write_clip(folder / "openai/clip-vit-base-patch32")
    write_original_checkpoint(folder)
    write_scdnet(folder, backbone)
    return folder


def write_scdnet(folder: Path, backbone: Path) -> None:
    """A small SCD-Net with its retriever, and a photograph."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "time_frequencies": 4}
    captions = [caption for captions in tiny_retriever.CAPTIONS for caption in captions]
    model, processor = ScdnetForImageCaptioning.new(captions, backbone=backbone, min_count=1, **sizes)
    model.generation_config.num_inference_steps = 2
    clip = tiny_retriever.save_clip(folder / "clip")
    build_retriever(tiny_retriever.rows(), clip, folder / "retrieval", device="cpu")
    processor.retriever = CaptionRetriever.from_pretrained(folder / "retrieval")
    for part in (model, processor):
        part.save_pretrained(folder / "your-name/scdnet")
    tiny_retriever.rows()[0]["image"].save(folder / "photo.jpg")


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
    check_results(place)


def run_block(number, language, code, place, monkeypatch, capsys):
    if code.startswith("make quickstart"):  # quickstart_run has run it: the other blocks stand on its result
        assert (place / "quickstart/captioner/model.safetensors").exists()
    elif code.startswith("make "):
        shell(f"make --dry-run {code.split()[1]}", ROOT)
    elif code.startswith("pip install"):  # checked against what is installed; nothing is fetched or changed
        shell(
            code, ROOT, PIP_DRY_RUN="1", PIP_NO_INDEX="1", PIP_NO_BUILD_ISOLATION="0", PIP_DISABLE_PIP_VERSION_CHECK="1"
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


def check_results(place: Path) -> None:
    """The blocks have left captions of all pictures by a captioner and by three, a checkpoint, charts and a report."""
    names = sorted(f"pictures/{path.name}" for path in (place / "pictures").glob("*.png"))
    for file in ("captions.jsonl", "ensemble.jsonl"):
        records = [json.loads(line) for line in (place / file).read_text("utf-8").splitlines()]
        assert [record["image"] for record in records] == names
        assert all(isinstance(record["caption"], str) for record in records)
    pushed = ("to_be_pushed/model.safetensors", "to_be_pushed/README.md")
    for file in (
        "runs/mine/model.safetensors",
        "runs/scst/checkpoint-2",
        "curves.png",
        "regions.png",
        "report",
        *pushed,
    ):
        assert (place / file).exists(), file
