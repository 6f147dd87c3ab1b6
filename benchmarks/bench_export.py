"""Exported captioners against torch: the same captions, their score, and time.

    OMP_NUM_THREADS=1 python benchmarks/bench_export.py runs/expansionnet_v2 runs/satic \\
        --annotations flickr8k_mini/dataset_karpathy.json --image-root flickr8k_mini/images

Each captioner is exported to ONNX in float32 and with 8-bit weights, with `--formats onnx openvino` to OpenVINO too,
which computes either in float32 and in bfloat16, and captions the pictures one by one, as torch in float32 does. Times
are CPU seconds of this process, so that other work on the machine counts little; a format's ratio is torch's time
divided by its own, of the encoder and of everything behind the opened picture, with the captioner's own decoding.
With `--greedy-graph` decoding is greedy, and one graph from pictures to words (ONNX in float32) takes its turn, too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import onnxruntime
import torch

from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.export import ExportedCaptioner
from hf_captioners.export.greedy_graph import FILE as GREEDY_FILE
from hf_captioners.export.greedy_graph import FORMS
from hf_captioners.export.planning import plan_export
from hf_captioners.export.writing import FORMATS, write_export
from hf_captioners.inference.loading import load_captioners
from hf_captioners.metrics.cider.cider import cider_d

PRECISIONS: dict[str, dict[str, dict[str, Any]]] = {
    "onnx": {"float32": {}, "int8": {"int8": True}},
    "openvino": {
        "float32": {},
        "float32, in bfloat16": {"bf16": True},
        "int8": {"int8": True},
        "int8, in bfloat16": {"int8": True, "bf16": True},
    },
}
"""By format, in which precisions a captioner is exported."""


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of captioners")
    parser.add_argument("--annotations", required=True, help="JSON in Karpathy's layout")
    parser.add_argument("--image-root", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first pictures")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=["onnx"])
    parser.add_argument("--greedy-graph", choices=FORMS, help="decode greedily, and also measure such a graph")
    return parser.parse_args()


Way: TypeAlias = Callable[[Mapping[str, torch.Tensor]], tuple[Any, float]]
"""Ids of the captions of model inputs, and processor seconds of the encoder."""


def in_steps(model: Any, options: dict[str, Any]) -> Way:
    """Encode, and then decode with options of `generate`."""

    @torch.inference_mode()
    def run(inputs: Mapping[str, torch.Tensor]) -> tuple[Any, float]:
        start = time.process_time()
        encoded = model.encode_images(**inputs)
        encoder = time.process_time() - start
        return model.generate(encoder_outputs=encoded, **options), encoder

    return run


def in_one_graph(folder: Path) -> Way:
    """Run the greedy graph of a folder."""
    session = onnxruntime.InferenceSession(folder / GREEDY_FILE, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]

    def run(inputs: Mapping[str, torch.Tensor]) -> tuple[Any, float]:
        return session.run(["sequences"], {name: inputs[name].numpy() for name in names})[0], float("nan")

    return run


def caption(way: Way, processor: Any, rows: Any) -> tuple[list[str], dict[str, float]]:
    """Captions of pictures, one after the other, and milliseconds per picture: of all, and of the encoder alone."""
    captions, seconds = [], {"encoder": 0.0, "all": 0.0}
    for row in rows:
        inputs = processor.prepare_rows([row])
        start = time.process_time()
        ids, encoder = way(inputs)
        seconds["all"] += time.process_time() - start
        seconds["encoder"] += encoder
        captions += processor.batch_decode(ids, skip_special_tokens=True)
    return captions, {name: 1000 * value / len(captions) for name, value in seconds.items()}


def measure(name: str, rows: Any, formats: list[str], greedy: str | None) -> list[list[str]]:
    """The rows of the table of one captioner."""
    decoding = {} if greedy is None else {"num_beams": 1}
    model, processor = load_captioners([name], "cpu", "float32")
    references = [row["captions"] for row in rows]
    results = {"torch float32": caption(in_steps(model, decoding), processor, rows)}
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_export(model, processor, "features" if model.config.features_only else "pixels")
        for export_format, precision in [(one, precision) for one in formats for precision in PRECISIONS[one]]:
            way = f"{export_format} {precision}"
            out, form = Path(folder) / way, greedy if way == "onnx float32" else None
            write_export(plan, out, export_format, greedy=form, **PRECISIONS[export_format][precision])
            exported = ExportedCaptioner.from_pretrained(out)
            results[way] = caption(in_steps(exported, decoding), processor, rows)
            if form is not None:
                results[f"onnx float32, one graph ({form})"] = caption(in_one_graph(out), processor, rows)
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
        for cells in measure(name, rows, args.formats, args.greedy_graph):
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
