"""Ways to caption faster on a CPU: what they gain at released sizes, and what a trained captioner loses by them.

    OMP_NUM_THREADS=1 python benchmarks/bench_fast.py speed
    OMP_NUM_THREADS=1 python benchmarks/bench_fast.py words
    OMP_NUM_THREADS=1 python benchmarks/bench_fast.py quality runs/expansionnet_v2 \\
        --annotations flickr8k_mini/dataset_karpathy.json --image-root flickr8k_mini/images

`speed` has random weights and one picture at a time (SATIC: 36 regions), and words of a given number. Every ratio is
of two times of this one run, taken in turns: processor time of this process, the best of `--repeats`. `words` is the
decoder alone, of pictures that are encoded already. `quality` captions the pictures of a split with the captioner's
own decoding in every way: identical captions, their CIDEr-D, milliseconds.
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
EXPANSIONNET = ("expansionnet_v2", {"features_only": True, "feature_size": 1536}, 144)
CLIP_GPT2 = ("clip_gpt2", {"features_only": True, "feature_size": 512}, 1)
DICO = ("dico", {"features_only": True, "feature_size": 1024}, 257)
# what is measured: the captioner, what it differs in from the released one, tokens of a picture; pictures, beams
WORDS: dict[str, tuple[tuple[str, dict[str, Any], int], int, int]] = {
    "ExpansionNet v2, greedy, batch 1": (EXPANSIONNET, 1, 1),
    "ExpansionNet v2, 5 beams, batch 1": (EXPANSIONNET, 1, 5),
    "ExpansionNet v2, 5 beams, batch 4": (EXPANSIONNET, 4, 5),
    "ExpansionNet v2, 5 beams, batch 16": (EXPANSIONNET, 16, 5),
    "CLIP-GPT2, greedy, batch 1": (CLIP_GPT2, 1, 1),
    "CLIP-GPT2, 5 beams, batch 1": (CLIP_GPT2, 1, 5),
    "DiCO, greedy, batch 1": (DICO, 1, 1),
    "DiCO, 5 beams, batch 1": (DICO, 1, 5),
    **{
        f"SATIC, greedy, batch 10, K = {size}": (("satic", {"group_size": size}, REGIONS), 10, 1)
        for size in (1, 2, 4, 6)
    },
}


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


def measure_words(args: argparse.Namespace) -> None:
    """The table of the decoders alone."""
    print(f"torch {torch.__version__}, {platform.machine()}, {torch.get_num_threads()} thread(s), {args.tokens} words")
    print("| case | float32, ms | exact, ms | ratio | int8, ms | ratio |\n|---|---|---|---|---|---|")
    for case, ((kind, settings, tokens), pictures, beams) in WORDS.items():
        if not any(name in case for name in args.cases):
            continue
        models = variants(released(kind, {**settings, **args.sizes}))
        size = models["float32"].config.feature_size
        with torch.inference_mode():
            encoded = models["float32"].encode_images(image_features=torch.randn(pictures, tokens, size))
            options = {"encoder_outputs": encoded, "num_beams": beams, "max_new_tokens": args.tokens}
            length = models["float32"].generate(**options).shape[1]
            if length != 1 + args.tokens:
                raise SystemExit(
                    f"{case}: captions of {length - 1} words and not of {args.tokens}; take another number"
                )
            took = in_turns(models, args.repeats, methodcaller("generate", **options))
        cells = [f"{took['float32']:.1f}"]
        cells += [
            cell for way in ("exact", "int8") for cell in (f"{took[way]:.1f}", f"{took['float32'] / took[way]:.2f}")
        ]
        print(f"| {case} | {' | '.join(cells)} |", flush=True)


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
    speed.set_defaults(run=measure_speed)
    words = parts.add_parser("words", help="the decoder alone, from random encoded pictures")
    words.add_argument("--cases", nargs="+", default=[""], metavar="TEXT", help="cases whose names have one of these")
    words.set_defaults(run=measure_words)
    for one in (speed, words):
        one.add_argument("--sizes", type=json.loads, default={}, metavar="JSON", help="fields of the configuration in "
                         "the place of the released ones")  # fmt: skip
        one.add_argument("--tokens", type=int, default=20, help="words to write (default: 20)")
        one.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts (default: 3)")
    quality = parts.add_parser("quality", help="of trained captioners")
    quality.add_argument("models", nargs="+", help="folders of captioners")
    quality.add_argument("--annotations", required=True, help="JSON in Karpathy's layout")
    quality.add_argument("--image-root", required=True)
    quality.add_argument("--split", default="test")
    quality.add_argument("--limit", type=int, metavar="N", help="only the first pictures")
    quality.add_argument("--batch-size", type=int, default=1, metavar="N", help="pictures at a time (default: 1)")
    quality.set_defaults(run=measure_quality)
    for one in (speed, words, quality):
        one.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run(args)


if __name__ == "__main__":
    main()
