"""What 200 pictures of one's own give: to the captioner of `starter/`, and to a new one.

    OMP_NUM_THREADS=1 python benchmarks/train_own_pictures.py --data ../shared/data --starter starter

The pictures are the 202 training photographs of `coco_mini`, of another kind than those that `starter` has learned
from; 57 others are captioned. Both learn by `examples/recipes/expansionnet_v2/own_pictures.yaml` on cached features:
`starter` with the words that it lacks and a fifth of the learning rate, the new one with three times the epochs. Each
step is skipped when its result is there. Prints a table of CIDEr-D with intervals from 10,000 bootstrap samples of
pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from flickr8k import RECIPES, call, options_of
from train_flickr8k_rewards import interval

from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.rows import undecoded
from hf_captioners.inference.caption_files import caption_files
from hf_captioners.inference.loading import load_captioners
from hf_captioners.metrics import cider_d

EPOCHS = 10
LEARN_ON = {"learning_rate": 1e-4, "num_train_epochs": EPOCHS}


def train(args: argparse.Namespace, name: str, **options: Any) -> Path:
    """Train by the recipe where the result is not there."""
    folder = args.out / name
    if not (folder / "trainer_state.json").exists():
        data = {"annotations": args.annotations, "features": args.out / "features", "output_dir": folder}
        words = {"config": RECIPES / "expansionnet_v2/own_pictures.yaml", "use_cpu": "true", **data, **options}
        call(["train", "xe", *options_of(words)], f"{name} could not be trained")
    return folder


def score(args: argparse.Namespace, folder: Path) -> tuple[np.ndarray, list[str]]:
    """CIDEr-D x 100 of each of the other pictures, and the captions."""
    rows = load_karpathy(args.annotations, args.image_root, ("val", "test"))
    model, processor = load_captioners([str(folder)], device="cpu", dtype="float32")
    paths = [image["path"] for image in undecoded(rows)["image"]]
    captions = [str(record["caption"]) for record in caption_files(model, processor, paths, batch_size=20)]
    return 100 * np.asarray(cider_d(captions, list(rows["captions"])).per_image["cider_d"]), captions


def main() -> None:
    """Train both and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with coco_mini/ and vision_backbone/")
    parser.add_argument("--starter", type=Path, default=Path("starter"), help="default: starter")
    parser.add_argument("--out", type=Path, default=Path("runs/own_pictures"), help="default: runs/own_pictures")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    args.annotations, args.image_root = args.data / "coco_mini/dataset_karpathy.json", args.data / "coco_mini/images"
    images = {"annotations": args.annotations, "image-root": args.image_root}
    backbone = args.data / "vision_backbone"
    features = {"model": backbone, **images, "out": args.out / "features"}
    call(["features", *options_of(features)], "the features could not be written")
    captioners = {
        "`starter`, as it is": args.starter,
        "`starter`, trained": train(
            args, "from_starter", model=args.starter, learning_rate=1e-4, num_train_epochs=EPOCHS
        ),
        "a new one": train(args, "from_scratch", backbone=backbone, num_train_epochs=3 * EPOCHS),
    }
    print("| captioner | CIDEr-D x 100 | 95 % interval | first caption |\n|---|---|---|---|")
    for name, folder in captioners.items():
        values, captions = score(args, folder)
        low, high = interval(values)
        print(f"| {name} | {values.mean():.1f} | {low:.1f} to {high:.1f} | {captions[0]} |", flush=True)


if __name__ == "__main__":
    main()
