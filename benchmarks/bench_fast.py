"""Ways to caption faster on a CPU: what they gain at released sizes, and what a trained captioner loses by them.

    OMP_NUM_THREADS=1 python benchmarks/bench_fast.py speed
    OMP_NUM_THREADS=1 python benchmarks/bench_fast.py quality runs/expansionnet_v2 \\
        --annotations flickr8k_mini/dataset_karpathy.json --image-root flickr8k_mini/images

`speed` has random weights and one picture at a time (SATIC: 36 regions), and words of a given number. Every ratio is of
two times of this one run, taken in turns: processor time of this process, the best of `--repeats`. `quality` captions
the pictures of a split with the captioner's own decoding in every way: identical captions, their CIDEr-D, milliseconds.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from operator import methodcaller
from pathlib import Path
from typing import Any

import torch

from hf_captioners import (
    ClipGpt2Config,
    ClipGpt2ForImageCaptioning,
    DicoCaptionerConfig,
    DicoForImageCaptioning,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    SaticConfig,
    SaticForImageCaptioning,
    load_karpathy,
    optimize_for_inference,
)
from hf_captioners.data.rows import undecoded
from hf_captioners.inference.caption_files import caption_files
from hf_captioners.inference.loading import load_captioners
from hf_captioners.metrics import cider_d

WAYS: dict[str, dict[str, Any]] = {
    "float32": {},
    "exact": {"linear": "exact"},
    "tower bfloat16": {"backbone_dtype": torch.bfloat16},
    "tower bfloat16, exact": {"linear": "exact", "backbone_dtype": torch.bfloat16},
    "int8": {"linear": "int8"},
    "tower bfloat16, int8": {"linear": "int8", "backbone_dtype": torch.bfloat16},
}
RELEASED: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "expansionnet_v2": (ExpansionNetV2ForImageCaptioning, ExpansionNetV2Config, {}),
    "dico": (DicoForImageCaptioning, DicoCaptionerConfig, {}),
    "clip_gpt2": (ClipGpt2ForImageCaptioning, ClipGpt2Config, {}),
    "satic": (SaticForImageCaptioning, SaticConfig, {"features_only": True}),
}
REGIONS = 36


def released(kind: str, sizes: dict[str, Any]) -> Any:
    """A captioner with random weights, of the released size where `sizes` does not say another."""
    torch.manual_seed(0)
    model, config, settings = RELEASED[kind]
    return model(config(**{**settings, **sizes})).eval()


def picture_of(model: Any) -> dict[str, torch.Tensor]:
    """Model inputs of a picture, or of its regions."""
    vision = model.config.vision_config
    if vision is None:
        return {"image_features": torch.randn(1, REGIONS, model.config.feature_size)}
    return {"pixel_values": torch.randn(1, 3, vision.image_size, vision.image_size)}


def variants(model: Any) -> dict[str, Any]:
    """The captioner in every way that it has."""
    ways = {name: way for name, way in WAYS.items() if model.backbone is not None or "backbone_dtype" not in way}
    return {name: optimize_for_inference(copy.deepcopy(model), **way) if way else model for name, way in ways.items()}


def in_turns(models: dict[str, Any], repeats: int, run: Callable[[Any], Any]) -> dict[str, float]:
    """Milliseconds of the fastest call of each, after one that does not count."""
    best = dict.fromkeys(models, float("inf"))
    for repeat in range(repeats + 1):
        for name, model in models.items():
            start = time.process_time()
            run(model)
            if repeat:
                best[name] = min(best[name], 1000 * (time.process_time() - start))
    return best


def measure_speed(args: argparse.Namespace) -> None:
    """The table of times at released sizes."""
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s), {args.tokens} words")
    print(
        "| captioner | way | encoder, ms | ratio | greedy, ms | ratio | 5 beams, ms | ratio |\n|---" + "|---" * 7 + "|"
    )
    words = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens}
    for kind in args.systems:
        models = variants(released(kind, args.sizes))
        inputs = picture_of(models["float32"])
        with torch.inference_mode():
            times = [in_turns(models, args.repeats, methodcaller("encode_images", **inputs))]
            for beams in (1, 5):
                run = methodcaller("generate", num_beams=beams, **words, **inputs)
                times.append(in_turns(models, args.repeats, run))
        for way in models:
            cells = [f"{one[way]:.1f} | {one['float32'] / one[way]:.2f}" for one in times]
            print(f"| {kind} | {way} | {' | '.join(cells)} |", flush=True)


def measure_quality(args: argparse.Namespace) -> None:
    """The table of what a trained captioner loses."""
    rows = load_karpathy(args.annotations, args.image_root, args.split)
    rows = rows.select(range(min(args.limit or len(rows), len(rows))))
    paths, references = [image["path"] for image in undecoded(rows)["image"]], rows["captions"]
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s), {len(rows)} pictures")
    print("| captioner | way | identical captions | CIDEr-D x 100 | ms a picture | ratio |\n|---|---|---|---|---|---|")
    for folder in args.models:
        model, processor = load_captioners([folder], device="cpu", dtype="float32")
        found: dict[str, tuple[list[str], float]] = {}
        for way, variant in variants(model).items():
            start = time.process_time()
            captions = [str(record["caption"]) for record in caption_files(variant, processor, paths, args.batch_size)]
            found[way] = captions, 1000 * (time.process_time() - start) / len(captions)
        plain, usual = found["float32"]
        for way, (captions, took) in found.items():
            same = sum(one == other for one, other in zip(captions, plain, strict=True))
            score = 100 * cider_d(captions, list(references)).corpus["cider_d"]
            cells = f"{same} | {score:.1f} | {took:.1f} | {usual / took:.2f}"
            print(f"| {Path(folder).name} | {way} | {cells} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(required=True)
    speed = parts.add_parser("speed", help="at released sizes, with random weights")
    speed.add_argument("--systems", nargs="+", choices=RELEASED, default=list(RELEASED))
    speed.add_argument("--sizes", type=json.loads, default={}, metavar="JSON", help="fields of the configuration "
                       "in the place of the released ones")  # fmt: skip
    speed.add_argument("--tokens", type=int, default=20, help="words to write (default: 20)")
    speed.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts (default: 3)")
    speed.set_defaults(run=measure_speed)
    quality = parts.add_parser("quality", help="of trained captioners")
    quality.add_argument("models", nargs="+", help="folders of captioners")
    quality.add_argument("--annotations", required=True, help="JSON in Karpathy's layout")
    quality.add_argument("--image-root", required=True)
    quality.add_argument("--split", default="test")
    quality.add_argument("--limit", type=int, metavar="N", help="only the first pictures")
    quality.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    quality.set_defaults(run=measure_quality)
    for one in (speed, quality):
        one.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
