"""Captioning picture files from end to end: what it costs beside the model, and whether memory stays flat.

    python benchmarks/bench_caption_files.py speed --sizes small released
    python benchmarks/bench_caption_files.py features --sizes small released
    python benchmarks/bench_caption_files.py memory --pictures 36000

`speed` compares what `hf-captioners caption --out` does (find, open, decode and preprocess files, generate, write
records) with the bare loop of `generate` over the same pictures, preprocessed beforehand, in the same batches. Both run
in turn, and each ratio is of two runs that follow each other; 1 would be no cost at all. On a CPU the model and the
opening of files share the cores, and process time tells what is spent in all. `features` is the same for `hf-captioners
features` and the bare loop of the vision tower. `memory` captions so many files and tells
the memory of the process as they go by. Pictures are drawn, weights are random.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import resource
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from hf_captioners import (
    CaptionerImageProcessor,
    ExpansionNetV2Config,
    ExpansionNetV2ForImageCaptioning,
    ExpansionNetV2Processor,
    build_vocabulary,
    build_word_tokenizer,
    special_token_ids,
)
from hf_captioners.demo.quickstart import small_captioner
from hf_captioners.inference.caption_run import CaptionRun
from hf_captioners.inference.captioning import caption_rows
from hf_captioners.inference.extract_features import FeatureExtractor, write_features
from hf_captioners.inference.image_archives import image_rows
from hf_captioners.inference.image_files import find_images
from hf_captioners.modeling.processing_captioner import open_row, prepare_rows

PICTURES = {"small": (64, 64), "released": (500, 375)}
"""Width and height of the pictures: of the quickstart's world, and of COCO's photographs, about."""

DISTINCT = 64  # files; the others are links to these


@dataclass
class Times:
    """Seconds by the clock and of the process, with all its threads."""

    clock: float
    process: float


def captioner(size: str) -> tuple[Any, Any]:
    """A captioner with random weights and its processor: the quickstart's, or one of the released size."""
    torch.manual_seed(0)
    if size == "small":
        model, processor = small_captioner(["a red circle above a blue square", "two small green stars"] * 2)
    else:
        words = build_vocabulary([f"word{number}" for number in range(10_000)], min_count=1)
        tokenizer = build_word_tokenizer(words, model_max_length=74)
        processor = ExpansionNetV2Processor(CaptionerImageProcessor(), tokenizer)
        config = ExpansionNetV2Config(vocab_size=len(tokenizer), **special_token_ids(tokenizer))
        model = ExpansionNetV2ForImageCaptioning(config)
    return model.eval(), processor


def draw(folder: Path, number: int, size: tuple[int, int]) -> None:
    """Pictures with about as much detail as photographs, as JPEG."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    for index in range(min(number, DISTINCT)):
        coarse = Image.fromarray(draws.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse, dtype=np.int16) + draws.integers(-8, 9, (size[1], size[0], 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:07d}.jpg", quality=90)
    for index in range(DISTINCT, number):
        os.link(folder / f"{index % DISTINCT:07d}.jpg", folder / f"{index:07d}.jpg")


def timed(run: Callable[[], Any]) -> Times:
    """Times of a call."""
    clock, process = time.perf_counter(), time.process_time()
    run()
    return Times(time.perf_counter() - clock, time.process_time() - process)


def caption(
    model: Any, processor: Any, folder: Path, out: Path, batch_size: int, options: dict[str, Any]
) -> Iterator[int]:
    """Caption the files of a folder into a file of records; gives the number of records after each."""
    with CaptionRun(out, {}) as run:
        rows = run.remaining((place, 0, row) for place, row in enumerate(image_rows(find_images(folder))))
        for number, record in enumerate(caption_rows(model, processor, rows, batch_size, **options), start=1):
            run.add(record)
            yield number
        run.finish()


def bare_loop(model: Any, batches: list[Any], options: dict[str, Any]) -> None:
    """Generate, and nothing else."""
    with torch.inference_mode():
        for inputs in batches:
            model.generate(**inputs, **options).cpu()


def generation(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `generate`: captions of one length."""
    return {"num_beams": args.num_beams, "min_new_tokens": args.tokens, "max_new_tokens": args.tokens}


def compare_captioning(args: argparse.Namespace, size: str, root: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The bare loop of `generate`, and captioning as a whole."""
    model, processor = captioner(size)
    model.to(args.device)
    folder, options = root / size, generation(args)
    draw(folder, args.pictures, PICTURES[size])
    rows = [open_row(processor, {"image": path}) for path in find_images(folder)]
    chunks = [rows[start : start + args.batch_size] for start in range(0, len(rows), args.batch_size)]
    batches = [prepare_rows(processor, chunk).to(args.device) for chunk in chunks]
    turns = itertools.count()

    def whole() -> None:
        out = root / f"{size}-{next(turns)}.jsonl"
        deque(caption(model, processor, folder, out, args.batch_size, options), maxlen=0)

    return partial(bare_loop, model, batches, options), whole


def compare_features(args: argparse.Namespace, size: str, root: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """The bare loop of the vision tower, and writing features as a whole."""
    model, processor = captioner(size)
    extractor = FeatureExtractor(model.to(args.device), processor.image_processor)
    draw(root / size, args.pictures, PICTURES[size])
    paths = list(find_images(root / size))
    dataset = datasets.Dataset.from_dict({"image_id": range(len(paths)), "image": list(map(str, paths))})
    dataset = dataset.cast_column("image", datasets.Image())
    pixels = prepare_rows(processor, [{"image": path} for path in paths])["pixel_values"]
    turns = itertools.count()

    def bare() -> None:
        for batch in pixels.split(args.batch_size):
            extractor(batch).cpu()

    return bare, lambda: write_features(extractor, dataset, root / f"{size}-{next(turns)}", batch_size=args.batch_size)


def speed(args: argparse.Namespace, root: Path) -> str:
    """The table of `speed` or `features`: each round is a bare run and a whole one; the first does not count."""
    compare, what = {"speed": (compare_captioning, "generate"), "features": (compare_features, "tower")}[args.measure]
    lines = [f"| size | batch | pictures a second | of bare `{what}`, clock | process |", "|---|---|---|---|---|"]
    for size in args.sizes:
        both = compare(args, size, root)
        runs = [tuple(map(timed, both)) for _ in range(args.repeats + 1)][1:]
        clock = median(bare.clock / whole.clock for bare, whole in runs)
        process = median(bare.process / whole.process for bare, whole in runs)
        rate = args.pictures / median(whole.clock for _, whole in runs)
        lines.append(f"| {size} | {args.batch_size} | {rate:.1f} | {clock:.3f} | {process:.3f} |")
    return "\n".join(lines)


def resident_mib() -> float:
    """Memory of the process now, in MiB; its peak where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_mib()
    return pages * resource.getpagesize() / 2**20


def peak_mib() -> float:
    """Largest memory of the process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def memory(args: argparse.Namespace, root: Path) -> str:
    """The table of `memory`."""
    model, processor = captioner("small")
    folder = root / "small"
    draw(folder, args.pictures, PICTURES["small"])
    options = generation(args)
    lines = ["| pictures | memory, MiB | peak, MiB |", "|---|---|---|"]
    every = max(args.pictures // args.rows, 1)
    for number in caption(model.to(args.device), processor, folder, root / "captions.jsonl", args.batch_size, options):
        if number % every == 0:
            lines.append(f"| {number} | {resident_mib():.0f} | {peak_mib():.0f} |")
            if args.live:
                print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measure", choices=("speed", "features", "memory"))
    parser.add_argument(
        "--sizes", nargs="+", choices=PICTURES, default=["small"], help="of the captioner (default: small)"
    )
    parser.add_argument("--pictures", type=int, default=64, help="files (default: 64)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures at a time (default: 8)")
    parser.add_argument("--num-beams", type=int, default=3, help="beams (default: 3)")
    parser.add_argument("--tokens", type=int, default=12, help="words to write (default: 12)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of which the median counts (default: 5)")
    parser.add_argument("--rows", type=int, default=12, help="of the table of memory (default: 12)")
    parser.add_argument("--live", action="store_true", help="print the rows of memory as they come, too")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the model (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"torch {torch.__version__}, {args.device}, {args.threads} thread(s), "
        f"{args.num_beams} beams, {args.tokens} words"
    )
    with tempfile.TemporaryDirectory() as folder:
        print((memory if args.measure == "memory" else speed)(args, Path(folder)))


if __name__ == "__main__":
    main()
