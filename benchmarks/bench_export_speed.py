"""Exported captioners against torch at the released sizes, with random weights: encoder, decoding and whole captions.

    OMP_NUM_THREADS=1 python benchmarks/bench_export_speed.py --captioners satic clip_gpt2 --formats onnx openvino

One picture at a time, 5 beams of 20 words; SCD-Net with its 50 steps. Captioners of regions see 50 of them. Times are
processor seconds of this process, so that other work on the machine counts little; every way takes its turn in every
round, and the median counts. Each ratio is torch's time in float32 divided by that of the export.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_export import PRECISIONS
from PIL import Image

from hf_captioners import CaptionerImageProcessor
from hf_captioners.captioner_table import CAPTIONERS, captioner_classes
from hf_captioners.export import ExportedCaptioner
from hf_captioners.export.planning import plan_export
from hf_captioners.export.writing import FORMATS, write_export

PARTS = ("encoder", "decoding", "whole")
REGIONS, WORDS = 50, 20


class ReleasedSize:
    """Processor of pictures of the released size.

    Args:
        config (`PreTrainedConfig`): of the captioner.
    """

    def __init__(self, config: Any) -> None:
        size = 384 if config.features_only else config.vision_config.image_size
        self.image_processor = CaptionerImageProcessor(size={"height": size, "width": size})

    def save_pretrained(self, folder: Path) -> None:
        """Nothing: captions stay ids here."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captioners", nargs="+", choices=list(CAPTIONERS), default=list(CAPTIONERS))
    parser.add_argument("--formats", nargs="+", choices=list(FORMATS), default=["onnx"])
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median counts (default: 5)")
    parser.add_argument(
        "--sizes", type=json.loads, default={}, help="JSON, fields of the configurations (default: released)"
    )
    return parser.parse_args()


def inputs_of(config: Any, processor: Any) -> dict[str, torch.Tensor]:
    """One picture, or the regions of one, and SCD-Net's sentence."""
    if config.features_only:
        inputs = {"image_features": torch.randn(1, REGIONS, config.feature_size)}
    else:
        inputs = processor.image_processor(images=[Image.effect_noise((500, 375), 60).convert("RGB")])
        inputs = {"pixel_values": torch.as_tensor(inputs["pixel_values"]).float()}
    if config.model_type == "scdnet":
        inputs["retrieved_ids"] = torch.randint(4, config.vocab_size, (1, 12))
    return inputs


def exports(model: Any, processor: Any, formats: list[str], folder: Path) -> dict[str, Any]:
    """The captioner in every way."""
    plan = plan_export(model, processor, "features" if model.config.features_only else "pixels")
    ways: dict[str, Any] = {"torch float32": model}
    for export_format in formats:
        for precision, options in PRECISIONS[export_format].items():
            way = f"{export_format} {precision}"
            write_export(plan, folder / way, export_format, **options)
            ways[way] = ExportedCaptioner.from_pretrained(folder / way)
    return ways


def processor_time(run: Callable[[], Any]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.inference_mode()
def measure(ways: dict[str, Any], inputs: dict[str, torch.Tensor], repeats: int) -> dict[str, dict[str, float]]:
    """Median seconds of every way and part."""
    seconds: dict[str, dict[str, list[float]]] = {way: {part: [] for part in PARTS} for way in ways}
    options: dict[str, Any] = {"num_beams": 5, "min_new_tokens": WORDS, "max_new_tokens": WORDS}
    for round_number in range(repeats + 1):
        for way, model in ways.items():
            settings = {} if model.config.model_type == "scdnet" else options
            encoded = model.encode_images(**inputs)
            runs: dict[str, Callable[[], Any]] = {
                "encoder": lambda model=model: model.encode_images(**inputs),
                "decoding": lambda model=model, encoded=encoded, settings=settings: model.generate(
                    encoder_outputs=encoded, **settings
                ),
            }
            times = {part: processor_time(run) for part, run in runs.items()}
            times["whole"] = times["encoder"] + times["decoding"]
            for part, value in times.items():
                seconds[way][part] += [value] * (round_number > 0)  # the first round warms up
    return {way: {part: median(values) for part, values in parts.items()} for way, parts in seconds.items()}


def main() -> None:
    """Measure all captioners and print the table."""
    args = parse()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}\n")
    columns = ["captioner", "way", "encoder, ms", "decoding, ms", *(f"{part}: times as fast" for part in PARTS)]
    print("|", " | ".join(columns), "|\n|" + "---|" * len(columns))
    for name in args.captioners:
        torch.manual_seed(0)
        config_class, model_class = captioner_classes(name)[:2]
        config = config_class(**args.sizes)
        model, processor = model_class(config).eval(), ReleasedSize(config)
        with tempfile.TemporaryDirectory() as folder:
            seconds = measure(
                exports(model, processor, args.formats, Path(folder)), inputs_of(config, processor), args.repeats
            )
        first = seconds["torch float32"]
        for way, parts in seconds.items():
            cells = [f"{1000 * parts[part]:.0f}" for part in ("encoder", "decoding")]
            cells += [f"{first[part] / parts[part]:.1f}" for part in PARTS]
            print("|", " | ".join([name, way, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
