"""Threads for the quickstart's training: one against two that spin and two that sleep while they wait, on free and on
busy cores.

    python benchmarks/bench_threads.py

Each way is a process of its own that trains the quickstart's captioner on random pictures, as OpenMP reads its settings
when it starts. The ways take turns, and every ratio is of two times of this one run. On a busy core another process
computes all the time. Prints one Markdown table: seconds a step on the clock and of processor time, and how much longer
a step takes than with one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from statistics import median

SPIN = "while True: pass"
WAYS = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    "2 threads that spin": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "ACTIVE"},
    "2 threads, OpenMP's default": {"OMP_NUM_THREADS": "2"},
    "2 threads that sleep": {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"},
}
CAPTIONS = ["a large red circle above a small blue square", "two small green stars on a dark background"] * 2


def train(steps: int) -> dict[str, float]:
    """Train in this process; seconds a step, on the clock and of processor time."""
    import torch

    from hf_captioners.demo.quickstart import IMAGE_SIZE, small_captioner

    model, processor = small_captioner(CAPTIONS)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    pictures = torch.randn(32, 3, IMAGE_SIZE, IMAGE_SIZE)
    labels = processor(text_target=CAPTIONS[:2] * 32)["labels"]

    def step() -> None:
        model(pixel_values=pictures, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # allocates
    clock, processor_time = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    return {
        "clock": (time.perf_counter() - clock) / steps,
        "processor": (time.process_time() - processor_time) / steps,
    }


def measure(way: str, steps: int) -> dict[str, float]:
    """Train in a process with the settings of a way."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "MKL_"))}
    command = [sys.executable, __file__, "--train", "--steps", str(steps)]
    run = subprocess.run(command, env=environment | WAYS[way], check=True, stdout=subprocess.PIPE, text=True)
    seconds: dict[str, float] = json.loads(run.stdout)
    return seconds


def rounds(args: argparse.Namespace, busy: bool) -> dict[str, dict[str, float]]:
    """The medians of all ways, which take turns, on free cores or on busy ones."""
    neighbours = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(args.cores if busy else 0)]
    try:
        times = [{way: measure(way, args.steps) for way in WAYS} for _ in range(args.repeats)]
    finally:
        for neighbour in neighbours:
            neighbour.kill()
    return {way: {kind: median(turn[way][kind] for turn in times) for kind in ("clock", "processor")} for way in WAYS}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20, help="training steps of a process (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="turns (default: 3)")
    parser.add_argument("--cores", type=int, default=2, help="cores to make busy (default: 2)")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        print(json.dumps(train(args.steps)))
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, {args.steps} steps, median of {args.repeats}\n")
    print("| cores | threads | s a step | processor s a step | times one thread |")
    print("| --- | --- | --- | --- | --- |")
    for busy in (False, True):
        medians = rounds(args, busy)
        for way, seconds in medians.items():
            ratio = seconds["clock"] / medians["1 thread"]["clock"]
            times = f"{seconds['clock']:.3f} | {seconds['processor']:.3f} | {ratio:.2f}"
            print(f"| {'busy' if busy else 'free'} | {way} | {times} |")


if __name__ == "__main__":
    main()
