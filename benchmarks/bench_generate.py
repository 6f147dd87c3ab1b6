"""Speed of ExpansionNet v2 at the released size, with random weights: encoder, and decoding with and without the cache.

    python benchmarks/bench_generate.py --threads 1

Prints one Markdown table; every ratio is of two times of this one run. Times are the best of `--repeats`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch

from hf_captioners import ExpansionNetV2Config, ExpansionNetV2ForImageCaptioning

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def best_of(repeats: int, run: Callable[[], Any], device: torch.device) -> float:
    """Seconds of the fastest of `repeats` calls, after one that does not count."""
    times = []
    for _ in range(repeats + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])


def synchronize(device: torch.device) -> None:
    """Wait for the accelerator, if there is one."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def measure(args: argparse.Namespace) -> dict[tuple, float]:
    """Seconds by (part, precision, batch, cache)."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    config = ExpansionNetV2Config(**args.sizes)
    model = ExpansionNetV2ForImageCaptioning(config).eval().to(device)
    vision: Any = config.vision_config
    side = vision.image_size
    pixels = torch.randn(max(args.batch_sizes), 3, side, side, device=device)
    seconds: dict[tuple, float] = {}
    for name, dtype in DTYPES.items():
        model.to(dtype)
        for batch in args.batch_sizes:
            with torch.inference_mode():
                features = model.extract_image_features(pixels[:batch])
                encoded = model.encode_images(image_features=features)
                runs: dict[tuple[str, bool | None], Callable[[], Any]] = {
                    ("backbone", None): partial(model.extract_image_features, pixels[:batch]),
                    ("encoder", None): partial(model.encode_images, image_features=features),
                }
                for beams, cache in product((1, args.num_beams), (True, False)):
                    length = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens}
                    runs[f"beam {beams}", cache] = partial(
                        model.generate, encoder_outputs=encoded, num_beams=beams, use_cache=cache, **length
                    )
                for (part, cached), run in runs.items():
                    seconds[part, name, batch, cached] = best_of(args.repeats, run, device)
    return seconds


def table(seconds: dict[tuple, float], args: argparse.Namespace) -> str:
    """The measurements as Markdown."""
    lines = ["| part | batch | precision | with cache, s | without, s | ratio |", "|---|---|---|---|---|---|"]
    for part in ("backbone", "encoder"):
        for batch in args.batch_sizes:
            for name in DTYPES:
                ratio = seconds[part, "fp32", batch, None] / seconds[part, name, batch, None]
                lines.append(
                    f"| {part} | {batch} | {name} | {seconds[part, name, batch, None]:.3f} | | {ratio:.2f} of fp32 |"
                )
    for beams in (1, args.num_beams):
        for batch in args.batch_sizes:
            for name in DTYPES:
                cached, plain = (seconds[f"beam {beams}", name, batch, cache] for cache in (True, False))
                part = "greedy" if beams == 1 else f"beam {beams}"
                lines.append(f"| {part} | {batch} | {name} | {cached:.3f} | {plain:.3f} | {plain / cached:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 4], help="pictures at a time (default: 1 4)")
    parser.add_argument("--num-beams", type=int, default=5, help="beams besides greedy (default: 5)")
    parser.add_argument("--tokens", type=int, default=20, help="words to write (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts (default: 3)")
    parser.add_argument(
        "--sizes", type=json.loads, default={}, help="JSON, fields of the configuration (default: released)"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    seconds = measure(args)
    print(
        f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), {platform.machine()}, {args.tokens} words"
    )
    print(table(seconds, args))


if __name__ == "__main__":
    main()
