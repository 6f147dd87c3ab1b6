"""Time of the parts of a cross-entropy step of ExpansionNet v2 at its released size, on cached features of 144 x 1536.

    python benchmarks/bench_xe_training.py --threads 1

`XETrainer` with the recipe's dropout (.3), label smoothing and optimizer; captions of 6 to 16 made-up words. Prints a
Markdown table with a row for every case "pictures x captions of each": medians of `--repeats` rounds in which all cases
take turns. The floor is the products of matrices of a step, forward and backward, at the rate at which this core
computes one of the step's own sizes.
"""

from __future__ import annotations

import argparse
import logging
import platform
import random
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from bench_reward_training import COMMON, Clock, Times, TrainerStep, image_rows, made_up_words, medians
from torch.utils.flop_counter import FlopCounterMode

from hf_captioners import ExpansionNetV2ForImageCaptioning, XEConfig, XETrainer


def xe_step(args: argparse.Namespace, case: str, words: list[str], clock: Clock) -> tuple[TrainerStep, list[Any]]:
    """The trainer of a case and its rows."""
    pictures, captions = map(int, case.split("x"))
    rows = image_rows(pictures, words, args.grid)
    draw = random.Random(0)
    for row in rows:
        row["captions"] = [" ".join((caption.split() * 2)[: draw.randint(6, 16)]) for caption in row["captions"]]
    model, processor = ExpansionNetV2ForImageCaptioning.new(words, features=1536, min_count=1)
    options = XEConfig(
        output_dir=args.folder,
        captions_per_image=captions,
        optim="radam",
        learning_rate=1e-4,
        per_device_train_batch_size=pictures,
        use_cpu=True,
        **COMMON,
    )
    trainer: Any = XETrainer(model, args=options, train_dataset=rows, processing_class=processor)
    return TrainerStep(trainer, clock, {"compute_loss": "forward"}), rows


def operations(step: TrainerStep, rows: list[Any]) -> float:
    """Multiplications and additions of the matrix products of a step, in thousand millions."""
    with FlopCounterMode(display=False) as counter:
        step(rows)
    return counter.get_total_flops() / 1e9


def rate(clock: Clock) -> float:
    """Thousand millions of operations a second in a product of (1152, 512) and (512, 2048)."""
    a, b = torch.randn(1152, 512), torch.randn(512, 2048)
    times = []
    for _ in range(10):
        start = clock.now()
        torch.mm(a, b)
        times.append(clock.now() - start)
    return 2 * 1152 * 512 * 2048 / min(times) / 1e9


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds whose median counts (default: 3)")
    parser.add_argument("--cases", nargs="+", default=["8x1", "4x5"], help="pictures x captions (default: 8x1 4x5)")
    parser.add_argument("--vocabulary", type=int, default=10_000, help="words that there are (default: 10000)")
    parser.add_argument("--grid", type=int, default=144, help="tokens of a picture (default: 144)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    logging.disable(logging.WARNING)
    clock = Clock(torch.device("cpu"), cpu_time=True)
    words = made_up_words(args.vocabulary - 4)  # and the special ones
    print(f"torch {torch.__version__}, {args.threads} thread(s), {platform.machine()}, processor time\n")
    with tempfile.TemporaryDirectory() as args.folder:
        steps = {case: xe_step(args, case, words, clock) for case in args.cases}
        work = {case: operations(*step) for case, step in steps.items()}

        def turn(case: str) -> Callable[[], Times]:
            step, rows = steps[case]
            return lambda: clock.run(lambda: step(rows))

        times = medians(args.repeats, {case: turn(case) for case in steps})
    speed = rate(clock)
    print("| pictures x captions | forward, s | backward, s | optimizer, s | whole, s | floor, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for case, parts in times.items():
        cells = [f"{parts[name]:.3f}" for name in ("forward", "backward", "optimizer", "whole")]
        print(f"| {case} | {' | '.join(cells)} | {work[case] / speed:.3f} |")


if __name__ == "__main__":
    main()
