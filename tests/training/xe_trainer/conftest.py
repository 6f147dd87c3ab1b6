"""A trainer of the tiny captioner by cross-entropy, and what it is trained on."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from hf_captioners import ExpansionNetV2Config, ExpansionNetV2ForImageCaptioning, XEConfig, XETrainer

DROPOUTS = [f"{name}_dropout" for name in ("encoder", "decoder", "encoder_input", "decoder_input", "other")]
WORDS = ["a", "red", "circle", "above", "blue", "square", "two", "small", "green", "stars", "large", "star", "left"]


@pytest.fixture(autouse=True)
def one_thread():
    """Sums of several threads differ from run to run in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def processor(tiny_captioner_dir):
    return AutoProcessor.from_pretrained(tiny_captioner_dir)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Sixteen pictures on disk, each with five captions of one to nine words."""
    folder, rng, noise = tmp_path_factory.mktemp("rows"), random.Random(0), np.random.default_rng(0)
    rows = []
    for index in range(16):
        path = folder / f"{index}.png"
        Image.fromarray(noise.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32)).save(path)
        captions = [" ".join(rng.choices(WORDS, k=rng.randint(1, 9))) for _ in range(5)]
        rows.append({"image_id": index, "image": str(path), "captions": captions})
    return rows


@pytest.fixture()
def new_model(tiny_captioner_dir):
    """The tiny captioner with one dropout rate everywhere."""

    def make(dropout=0.0):
        config = ExpansionNetV2Config.from_pretrained(tiny_captioner_dir)
        for name in DROPOUTS:
            setattr(config, name, dropout)
        config.vision_config.drop_path_rate = dropout
        return ExpansionNetV2ForImageCaptioning.from_pretrained(tiny_captioner_dir, config=config)

    return make


@pytest.fixture()
def trainer(tmp_path, rows, processor, new_model):
    """A trainer on the sixteen rows; options of `XEConfig` and of `XETrainer` by name."""

    def make(model=None, train=rows, evaluation=None, folder="run", **options):
        extra = {
            name: options.pop(name)
            for name in ("peft_config", "compute_caption_metrics", "callbacks")
            if name in options
        }
        usual = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "use_cpu": True, "seed": 1}
        args = XEConfig(output_dir=str(tmp_path / folder), **{**usual, **options})
        model = new_model() if model is None else model
        return XETrainer(model, args, train, evaluation, processing_class=processor, **extra)

    return make
