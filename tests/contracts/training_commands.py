"""Parts of the tests of `hf-captioners train`: a drawn world, a tiny captioner's sizes, and a recipe of two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from hf_captioners.cli.main import main
from hf_captioners.data.drawn.world import write_sample_world

TRAINING = {
    "per_device_train_batch_size": 4, "max_steps": 2, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    "use_cpu": True, "seed": 1, "logging_steps": 1,
}  # fmt: skip
VISION = {"model_type": "swin", "image_size": 32, "embed_dim": 8, "depths": [1], "num_heads": [2]}
NEW = {
    "vision_config": VISION, "feature_size": 8, "min_count": 1, "d_model": 16, "num_attention_heads": 2, "ffn_dim": 16,
    "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 20, "group_size": 2,
}  # fmt: skip
XE = {"model_type": "satic", "new_captioner": NEW, "train_backbone": "all"}
REWARDED = {"max_completion_length": 8, "candidate_strategy": "sample", "num_generations": 2}


def tiny_world(folder: Path) -> dict[str, str]:
    """A drawn world of eight training pictures, as options of a recipe."""
    world = write_sample_world(folder, num_train=8, num_val=2, num_test=1, size=32)
    return {"annotations": str(world / "dataset_karpathy.json"), "image_root": str(world / "images")}


def write_recipe(folder: Path, method: str, **options: Any) -> Path:
    """A recipe of two steps whose output folder is that of the method, but for what is given."""
    recipe = folder / f"{method}.yaml"
    recipe.write_text(yaml.safe_dump({**TRAINING, "output_dir": str(folder / method), **options}))
    return recipe


def train(method: str, folder: Path, *words: str, **options: Any) -> int:
    """Run `hf-captioners train` on a recipe; returns the status."""
    return main(["train", method, "--config", str(write_recipe(folder, method, **options)), *words])
