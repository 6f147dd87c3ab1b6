"""Reading a feature store in random order: pictures a second and memory, beside a bare memory map of NumPy.

Both hold the same regions and give a copy of each picture's, in the same random order, one thread, from the page cache.
`collator` is the whole way to a batch: rows with features and a caption each, collated and padded; `rechecked` is the
same with features that are checked once more, as those that are not of a store are. Rates are by the time of the
processor, so that other work on the machine does not count; `wall` has those of the clock. `written` is a second's
pictures of `FeatureWriter`.

    python benchmarks/bench_feature_store.py --images 2000 --stores 2
    python benchmarks/bench_feature_store.py --images 2000 --regions 144 --width 1536
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
from datasets import Dataset

from hf_captioners import CaptionCollator
from hf_captioners.data.features.joined_stores import open_features
from hf_captioners.data.features.store import DTYPES, FeatureStore, FeatureWriter
from hf_captioners.data.rows import attach_features
from hf_captioners.demo.quickstart import small_captioner


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options of this benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--images", type=int, default=2000, help="pictures (%(default)s)")
    parser.add_argument("--regions", type=int, default=50, help="regions of each (%(default)s)")
    parser.add_argument("--width", type=int, default=2048, help="numbers of a region (%(default)s)")
    parser.add_argument("--stores", type=int, default=1, help="stores that the pictures are spread over (%(default)s)")
    parser.add_argument("--dtype", choices=list(DTYPES), default="float16", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pictures of a collated batch (%(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="over all pictures; medians are reported (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where to write (default: a temporary folder)")
    return parser.parse_args(words)


def write(folder: Path, run: argparse.Namespace) -> tuple[list[Path], Path, float]:
    """Write the same features as stores and as one array; with the processor's time that the stores took."""
    shape = (run.images, run.regions, run.width)
    # NumPy has no bfloat16; what is compared is bytes
    kind = np.float32 if run.dtype == "float32" else np.float16
    flat = np.lib.format.open_memmap(folder / "features.npy", mode="w+", dtype=kind, shape=shape)
    rng = np.random.default_rng(0)
    for image_id in range(run.images):
        flat[image_id] = rng.random(shape[1:], dtype=np.float32)
    flat.flush()
    stores = [folder / f"store-{number}" for number in range(run.stores)]
    begin = time.process_time()
    for number, path in enumerate(stores):
        with FeatureWriter(path, dtype=DTYPES[run.dtype]) as writer:
            for image_id in range(number, run.images, run.stores):
                writer.add(image_id, torch.from_numpy(np.array(flat[image_id])))
    return stores, folder / "features.npy", time.process_time() - begin


def collators(store: FeatureStore, run: argparse.Namespace) -> dict[str, Callable[[list[int]], Any]]:
    """Ways from the numbers of some pictures to their batch."""
    caption = "a red circle above a blue square"
    _, processor = small_captioner([caption] * 2)
    rows = Dataset.from_dict({"image_id": list(range(run.images)), "captions": [[caption]] * run.images})
    pictured, collator = attach_features(rows, store), CaptionCollator(processor)
    return {
        "collator": lambda numbers: collator(pictured.__getitems__(numbers)),
        "rechecked": lambda numbers: collator([dict(row) for row in pictured.__getitems__(numbers)]),
    }


def anonymous_memory() -> int:
    """Bytes of this process that are not pages of files; 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def seconds_of(read: Callable[[Any], Any], order: list[Any]) -> tuple[float, float]:
    """Time of the processor, and that of the clock, of reading pictures, or batches of them, in an order."""
    begin, clock = time.process_time(), time.perf_counter()
    for item in order:
        read(item)
    return time.process_time() - begin, time.perf_counter() - clock


def main(words: list[str] | None = None) -> None:
    """Write, read in turns, and print one JSON object."""
    run = parse_arguments(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=run.folder) as temporary:
        stores, array, writing = write(Path(temporary), run)
        store = open_features([*stores])
        flat = np.load(array, mmap_mode="r")
        order = np.random.default_rng(1).permutation(run.images).tolist()
        batches = [order[start : start + run.batch_size] for start in range(0, run.images, run.batch_size)]
        readers: dict[str, tuple[Callable[[Any], Any], list[Any]]] = {
            "store": (store.__getitem__, order),
            "memmap": (lambda row: np.array(flat[row]), order),
            **{name: (collate, batches) for name, collate in collators(store, run).items()},
        }
        for read, items in readers.values():  # into the page cache
            seconds_of(read, items)
        before = anonymous_memory()
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in readers}
        for _ in range(run.rounds):
            for name, (read, items) in readers.items():
                times[name].append(seconds_of(read, items))
        rates, wall = (
            {name: round(run.images / statistics.median(pair[kind] for pair in pairs)) for name, pairs in times.items()}
            for kind in (0, 1)
        )
        ratios = [base[0] / own[0] for base, own in zip(times["memmap"], times["store"], strict=True)]
        result = {
            "images": run.images,
            "bytes_of_an_image": store[0].nbytes,
            "stores": run.stores,
            "written_per_second": round(run.images / writing),
            "images_per_second": rates,
            "wall": wall,
            "ratio": round(statistics.median(ratios), 3),
            "memory_growth_mb": round((anonymous_memory() - before) / 1e6, 1),
        }
    json.dump(result, sys.stdout)
    print()


if __name__ == "__main__":
    main()
