"""Captioners on a GPU, at released sizes with random weights: milliseconds a caption, and steps of reward training.

    python benchmarks/bench_gpu.py

Every captioner writes captions of a given number of words by beam search, in bfloat16, at a batch of 1 and of 64, as
torch runs it (eager) and with its vision tower and encoder captured in CUDA graphs (`torch.compile`, "reduce-overhead",
whose first calls do not count). Before that, in float32 and without TF32, its captions of a few pictures are compared
with those of the CPU. Then `bench_reward_training.py --device cuda` gives the parts of a step of self-critical training
and of DiCO. Less than four minutes on a GPU of 2023; on a CPU (`--device cpu`, small `--sizes`) it is a smoke run.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from bench_fast import REGIONS, RELEASED

COMPARED = 4  # pictures


def new_model(kind: str, sizes: dict[str, Any]) -> Any:
    """A captioner with random weights."""
    model, config, settings = RELEASED[kind]
    torch.manual_seed(0)
    return model(config(**{**settings, **sizes})).eval()


def inputs_of(model: Any, number: int) -> dict[str, torch.Tensor]:
    """Pictures, or regions of a captioner without a vision tower."""
    torch.manual_seed(number)
    vision = model.config.vision_config
    if vision is None:
        return {"image_features": torch.randn(number, REGIONS, model.config.feature_size)}
    return {"pixel_values": torch.randn(number, 3, vision.image_size, vision.image_size)}


def caption(model: Any, inputs: dict[str, torch.Tensor], args: argparse.Namespace) -> torch.Tensor:
    """Ids of captions, each of as many words."""
    words = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens}
    return model.generate(**inputs, num_beams=args.num_beams, **words)


def on(device: torch.device, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs on a device."""
    return {name: value.to(device) for name, value in inputs.items()}


def count_equal(kind: str, args: argparse.Namespace) -> int:
    """Captions of a few pictures that are the CPU's, in float32."""
    model = new_model(kind, args.sizes)
    inputs = inputs_of(model, COMPARED)
    expected = caption(model, inputs, args)
    found = caption(model.to(args.device), on(args.device, inputs), args).cpu()
    return sum(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def milliseconds(model: Any, inputs: dict[str, torch.Tensor], args: argparse.Namespace) -> float:
    """Milliseconds a caption: the fastest of some batches, after two that do not count."""
    best, number = float("inf"), len(next(iter(inputs.values())))
    for repeat in range(args.repeats + 2):
        _synchronize(args.device)
        start = time.perf_counter()
        caption(model, inputs, args)
        _synchronize(args.device)
        if repeat >= 2:
            best = min(best, time.perf_counter() - start)
    return 1000 * best / number


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", nargs="+", choices=RELEASED, default=list(RELEASED))
    parser.add_argument("--device", type=torch.device, default="cuda")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 64], help="pictures at a time (1 64)")
    parser.add_argument("--num-beams", type=int, default=5, help="beams (default: 5)")
    parser.add_argument("--tokens", type=int, default=20, help="words to write (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="batches of which the fastest counts (default: 3)")
    parser.add_argument("--sizes", type=json.loads, default={}, metavar="JSON", help="fields of the configuration")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="eager alone")
    parser.add_argument("--no-training", action="store_true", help="captions alone")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device; --device cpu with small --sizes tries the script")
    name = torch.cuda.get_device_name(args.device) if args.device.type == "cuda" else args.device.type
    print(f"torch {torch.__version__}, {name}, bfloat16, {args.num_beams} beams, {args.tokens} words")
    heads = ["captioner", "equal to the CPU's", "batch", "eager, ms a caption"]
    heads += ["compiled, ms a caption", "ratio"] if args.compile else []
    print(f"| {' | '.join(heads)} |\n{'|---' * len(heads)}|")
    with torch.inference_mode():
        for kind in args.systems:
            equal = count_equal(kind, args)
            model = new_model(kind, args.sizes).to(args.device, torch.bfloat16)
            for batch in args.batch_sizes:
                inputs = on(args.device, {key: one.bfloat16() for key, one in inputs_of(model, batch).items()})
                eager = milliseconds(model, inputs, args)
                cells = f"{equal} of {COMPARED} | {batch} | {eager:.2f}"
                if args.compile:
                    model.encode_images = torch.compile(model.encode_images, mode="reduce-overhead")
                    compiled = milliseconds(model, inputs, args)
                    del model.encode_images
                    cells += f" | {compiled:.2f} | {eager / compiled:.2f}"
                print(f"| {kind} | {cells} |", flush=True)
    if not args.no_training:
        script = Path(__file__).with_name("bench_reward_training.py")
        subprocess.run([sys.executable, script, "--device", args.device.type], check=True)


if __name__ == "__main__":
    main()
