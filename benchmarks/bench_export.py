"""Exported captioners against torch: the same captions, their score, and time.

    OMP_NUM_THREADS=1 python benchmarks/bench_export.py runs/expansionnet_v2 runs/satic \\
        --annotations flickr8k_mini/dataset_karpathy.json --image-root flickr8k_mini/images

Each captioner is exported to ONNX in float32 and with 8-bit weights, with `--formats onnx openvino` to OpenVINO too,
which computes either in float32 and in bfloat16, and captions the pictures one by one, as torch in float32 does. Times
are CPU seconds of this process, so that other work on the machine counts little; a format's ratio is torch's time
divided by its own, of the encoder and of everything behind the opened picture, with the captioner's own decoding.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.export import ExportedCaptioner
from hf_captioners.export.planning import plan_export
from hf_captioners.export.writing import FORMATS, write_export
from hf_captioners.inference.loading import load_captioners
from hf_captioners.metrics.cider.cider import cider_d

PRECISIONS = {"float32": False, "int8": True}
LOADED: dict[str, dict[str, dict[str, Any]]] = {
    "onnx": {"": {}},
    "openvino": {"": {}, ", in bfloat16": {"config": {"INFERENCE_PRECISION_HINT": "bf16"}}},
}
"""How exports of a format are loaded."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of captioners")
    parser.add_argument("--annotations", required=True, help="JSON in Karpathy's layout")
    parser.add_argument("--image-root", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first pictures")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["onnx"])
    return parser.parse_args()


@torch.inference_mode()
def caption(model: Any, processor: Any, rows: Any) -> tuple[list[str], dict[str, float]]:
    """Captions of pictures, one after the other, and milliseconds per picture: of all, and of the encoder alone."""
    captions, seconds = [], {"encoder": 0.0, "all": 0.0}
    for row in rows:
        inputs = processor.prepare_rows([row])
        start = time.process_time()
        encoded = model.encode_images(**inputs)
        seconds["encoder"] += time.process_time() - start
        ids = model.generate(encoder_outputs=encoded)
        seconds["all"] += time.process_time() - start
        captions += processor.batch_decode(ids, skip_special_tokens=True)
    return captions, {name: 1000 * value / len(captions) for name, value in seconds.items()}


def measure(name: str, rows: Any, formats: list[str]) -> list[list[str]]:
    """The rows of the table of one captioner."""
    model, processor = load_captioners([name], "cpu", "float32")
    references = [row["captions"] for row in rows]
    results = {"torch float32": caption(model, processor, rows)}
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_export(model, processor, "features" if model.config.features_only else "pixels")
        for export_format, precision in itertools.product(formats, PRECISIONS):
            out = Path(folder) / f"{export_format}_{precision}"
            write_export(plan, out, export_format, PRECISIONS[precision])
            for loaded, options in LOADED[export_format].items():
                exported = ExportedCaptioner.from_pretrained(out, **options)
                results[f"{export_format} {precision}{loaded}"] = caption(exported, processor, rows)
    first, times = results["torch float32"]
    table = []
    for way, (captions, milliseconds) in results.items():
        same = sum(one == other for one, other in zip(captions, first, strict=True)) / len(first)
        score = 100 * cider_d(captions, references).corpus["cider_d"]
        faster = [f"{times[part] / milliseconds[part]:.1f}" for part in times]
        table.append([Path(name).name, way, f"{same:.0%}", f"{score:.1f}", f"{milliseconds['all']:.0f}", *faster])
    return table


def main() -> None:
    """Measure all captioners and print the table."""
    args = parse()
    rows = list(load_karpathy(args.annotations, args.image_root, args.split))[: args.limit]
    print(f"{len(rows)} pictures, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    columns = ["captioner", "way", "same captions", "CIDEr-D", "ms a caption", "encoder: times as fast", "all"]
    print("|", " | ".join(columns), "|\n|" + "---|" * len(columns))
    for name in args.models:
        for cells in measure(name, rows, args.formats):
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
