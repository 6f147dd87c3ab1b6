"""Fixtures of all tests: a tiny captioner, the parity cases, and the real data where it is present."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests never reach the network; read when huggingface_hub is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other on a busy machine are slow

from contracts.metric import MetricCase, load_case

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = Path(__file__).resolve().parent / "fixtures"
SHARED = ROOT.parent / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--run-slow"):
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.skip(reason="slow: give --run-slow"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real test data (Flickr8k mini, COCO mini, MobileNetV2)."""
    if not (SHARED / "data").is_dir():
        pytest.skip("needs shared/data beside the repository")
    return SHARED / "data"


@pytest.fixture(scope="session")
def shared_parity() -> Path:
    """Folder of the original code's checkpoints and numbers."""
    if not (SHARED / "parity").is_dir():
        pytest.skip("needs shared/parity beside the repository")
    return SHARED / "parity"


@pytest.fixture(scope="session")
def metric_case(shared_parity: Path) -> Callable[[str], MetricCase]:
    """Captions and what the reference tools make of them, by the name of the set."""
    return lambda name: load_case(shared_parity / "metrics" / name)


@pytest.fixture(scope="session", params=["case_a", "case_b"])
def parity_case(request: pytest.FixtureRequest) -> Path:
    """One parity case of ExpansionNet v2: config.json, checkpoints, io.safetensors, text.json."""
    return FIXTURES / "parity" / "expansionnet_v2" / request.param


@pytest.fixture(scope="session")
def tiny_captioner_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved ExpansionNet v2 of a few thousand parameters with random weights, and its processor."""
    import torch

    from hf_captioners import CaptionerImageProcessor, ExpansionNetV2ForImageCaptioning

    torch.manual_seed(0)
    model, processor = ExpansionNetV2ForImageCaptioning.new(
        ["a red circle above a blue square", "two small green stars", "the large star left of a circle"],
        min_count=1,
        image_processor=CaptionerImageProcessor(size={"height": 32, "width": 32}),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        num_attention_heads=4,
        ffn_dim=48,
        encoder_expansion_groups=[4, 8],
        decoder_expansion_size=4,
        max_position_embeddings=20,
        vision_config={
            "model_type": "swin",
            "image_size": 32,
            "patch_size": 4,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
    )
    with torch.no_grad():  # peaked distributions, so that captions depend on the picture
        model.eval().vocab_linear.weight.mul_(4.0)
        model.vocab_linear.bias[model.config.unk_token_id] = -5.0
    model.generation_config.suppress_tokens = None  # the tests' second implementations of decoding do not know it
    folder = tmp_path_factory.mktemp("tiny_captioner")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quickstart_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The folder that `make quickstart` leaves, and the finished command, in the environment that runs the tests.

    It runs once, also with several pytest processes: they share it through a folder above their own.
    """
    above = tmp_path_factory.getbasetemp()
    above = above.parent if "PYTEST_XDIST_WORKER" in os.environ else above
    folder, output = above / "quickstart", above / "quickstart.json"
    with FileLock(above / "quickstart.lock"):
        if not output.exists():
            ready = Path(sys.prefix) / ".ready"  # taken for made: make must not set up the environment once more
            command = ["make", "quickstart", f"VENV={sys.prefix}", f"OUT={folder}", "-o", str(ready)]
            run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
            output.write_text(json.dumps([run.args, run.returncode, run.stdout, run.stderr]))
    finished = subprocess.CompletedProcess(*json.loads(output.read_text()))
    assert finished.returncode == 0, finished.stderr[-3000:]
    return folder, finished
