"""Reading a feature store in random order: pictures a second and memory, beside a bare memory map of NumPy.

Both hold the same regions and give a copy of each picture's, in the same random order, one thread, from the page cache.
Rates are by the time of the processor, so that other work on the machine does not count; `wall` has those of the clock.

    python benchmarks/bench_feature_store.py --images 2000 --stores 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_captioners.data.features.joined_stores import open_features
from hf_captioners.data.features.store import DTYPES, FeatureWriter


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000, help="pictures (%(default)s)")
    parser.add_argument("--regions", type=int, default=50, help="regions of each (%(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="numbers of a region (%(default)s)")
    parser.add_argument("--stores", type=int, default=1, help="stores that the pictures are spread over (%(default)s)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float16", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="over all pictures; medians are reported (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    return parser.parse_args(words)


def write(folder: Path, run: argparse.Namespace) -> tuple[list[Path], Path]:
    """Write the same features as stores and as one array."""
    shape = (run.images, run.regions, run.width)
    # NumPy has no bfloat16; what is compared is bytes
    kind = np.float32 if run.dtype == "float32" else np.float16
    flat = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=kind, shape=shape)
    rng = np.random.default_rng(0)
    stores = [folder / f"store-{number}" for number in range(run.stores)]
    for number, path in enumerate(stores):
        with FeatureWriter(path, dtype=DTYPES[run.dtype]) as writer:
            for image_id in range(number, run.images, run.stores):
                flat[image_id] = rng.random(shape[1:], dtype=np.float32)
                writer.add(image_id, torch.from_numpy(np.array(flat[image_id])))
    flat.flush()
    return stores, folder / "features.npy"


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def seconds_of(read: Callable[[int], Any], order: list[int]) -> tuple[float, float]:
    """Time of the processor, and that of the clock, of reading pictures in an order."""
    begin, clock = time.process_time(), time.perf_counter()
    for image_id in order:
        read(image_id)
    return time.process_time() - begin, time.perf_counter() - clock


def main(words: list[str] | None = None) -> None:
    """Write, read in turns, and print one JSON object."""
    run = parse_arguments(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=run.folder) as temporary:
        stores, array = write(Path(temporary), run)
        store = open_features([*stores])
        flat = np.load(array, mmap_mode="r")
        order = np.random.default_rng(1).permutation(run.images).tolist()
        readers: dict[str, Callable[[int], Any]] = {
            "store": store.__getitem__,
            "memmap": lambda row: np.array(flat[row]),
        }
        for read in readers.values():  # into the page cache
            seconds_of(read, order)
        before = anonymous_memory()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for _ in range(run.rounds):
            for name, read in readers.items():
                times[name].append(seconds_of(read, order))
        rates, wall = (
            {name: round(run.images / statistics.median(pair[kind] for pair in pairs)) for name, pairs in times.items()}
            for kind in (0, 1)
        )
        ratios = [base[0] / own[0] for base, own in zip(times["memmap"], times["store"], strict=True)]
        result = {
            "images": run.images,
            "bytes_of_an_image": store[0].nbytes,
            "stores": run.stores,
            "images_per_second": rates,
            "wall": wall,
            "ratio": round(statistics.median(ratios), 3),
            "memory_growth_mb": round((anonymous_memory() - before) / 1e6, 1),
        }
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
