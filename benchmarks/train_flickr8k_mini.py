"""Train a small ExpansionNet v2 on real pictures, caption the test pictures, and lay the result out.

    python benchmarks/train_flickr8k_mini.py --data ../shared/data --out runs/flickr8k_mini

Three steps, each skipped when its result is there: the features of a frozen MobileNetV2 (`hf-captioners features`), the
training (`examples/train_expansionnet_v2.py` with its recipe, about 15 minutes on 2 CPU cores), and the captions of the
500 test pictures, written from the JPEG files by the complete captioner. `results.md`, `loss.png` and
`contact_sheet.png` in the output folder say how it went.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

import hf_captioners  # noqa: F401  registers the captioner
from hf_captioners.cli.main import main as hf_captioners_cli
from hf_captioners.data.karpathy import load_karpathy
from hf_captioners.inference.caption_files import caption_files
from hf_captioners.inference.contact_sheet import SheetItem, contact_sheet
from hf_captioners.metrics import CaptionMetrics, Evaluation

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "examples/recipes/expansionnet_v2/flickr8k_mini.yaml"
NUM_SHOWN = 20
METRICS = ("bleu", "meteor", "rouge_l", "cider_d", "diversity")


def train(args: argparse.Namespace, annotations: Path, features: Path) -> dict[str, Any]:
    """Train as the example does; returns its log."""
    sys.path.insert(0, str(ROOT / "examples"))
    from train_expansionnet_v2 import main as train_main

    captioner = args.out / "captioner"
    if not (captioner / "trainer_state.json").exists():
        options = {
            "config": RECIPE,
            "annotations": annotations,
            "features": features,
            "backbone": args.data / "vision_backbone",
            "output_dir": captioner,
        }
        train_main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    return json.loads((captioner / "trainer_state.json").read_text())


def caption_test_pictures(args: argparse.Namespace, annotations: Path) -> list[dict[str, Any]]:
    """Caption every test picture from its file, greedily and with the paper's beam search."""
    model = AutoModelForImageTextToText.from_pretrained(args.out / "captioner").eval()
    processor = AutoProcessor.from_pretrained(args.out / "captioner")
    images = args.data / "flickr8k_mini/images"
    rows = list(load_karpathy(annotations, split="test"))
    paths = [images / row["file_name"] for row in rows]
    results = [{"picture": path.name, "references": row["captions"]} for path, row in zip(paths, rows, strict=True)]
    for name, beams in (("greedy", 1), (f"beam {args.num_beams}", args.num_beams)):
        records = caption_files(model, processor, paths, batch_size=20, num_beams=beams, max_new_tokens=20)
        for result, record in zip(results, records, strict=True):
            result[name] = record["caption"]
    return results


def score(results: list[dict[str, Any]], decodings: list[str]) -> dict[str, Evaluation]:
    """The scores of each way of decoding."""
    metrics = CaptionMetrics(METRICS)
    references = [row["references"] for row in results]
    names = [row["picture"] for row in results]
    return {name: metrics([row[name] for row in results], references, names) for name in decodings}


def plot(history: list[dict[str, float]], path: Path) -> None:
    """The loss curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.4), layout="constrained")
    for name, label in (("loss", "training (with dropout)"), ("eval_loss", "validation")):
        points = [(row["epoch"], row[name]) for row in history if name in row]
        axes.plot(*zip(*points, strict=True), marker="o" if name == "eval_loss" else None, label=label)
    axes.set(xlabel="epoch", ylabel="label-smoothed loss, nats per word")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def report(
    args: argparse.Namespace, state: dict[str, Any], results: list[dict[str, Any]], scores: dict[str, Evaluation]
) -> str:
    """The outcome as Markdown."""
    history = state["log_history"]
    runtime = next(row["train_runtime"] for row in history if "train_runtime" in row)
    lines = [
        f"Training: {runtime / 60:.1f} min, {state['global_step']} steps, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, seed {yaml.safe_load(RECIPE.read_text())['seed']}.",
        "",
        "| epoch | validation loss |",
        "|---|---|",
        *(f"| {row['epoch']:.0f} | {row['eval_loss']:.3f} |" for row in history if "eval_loss" in row),
        "",
    ]
    tables = {decoding: dict(evaluation.table()) for decoding, evaluation in scores.items()}
    lines += [f"| score | {' | '.join(tables)} |", "|---" * (len(tables) + 1) + "|"]
    for name in next(iter(tables.values())):
        lines.append(f"| {name} | " + " | ".join(table[name] for table in tables.values()) + " |")
    signature = next(iter(scores.values())).signature_text
    lines += ["", f"Signature: `{signature}`", ""]
    beam = f"beam {args.num_beams}"
    lines += [f"| picture | {beam} | a reference |", "|---|---|---|"]
    lines += [f"| {row['picture']} | {row[beam]} | {row['references'][0].strip()} |" for row in results[:NUM_SHOWN]]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the three steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k_mini/ and vision_backbone/")
    parser.add_argument("--out", type=Path, default=Path("runs/flickr8k_mini"), help="default: runs/flickr8k_mini")
    parser.add_argument("--num-beams", type=int, default=3, help="beams besides greedy (default: 3)")
    args = parser.parse_args()
    annotations = args.data / "flickr8k_mini/dataset_karpathy.json"
    features = args.out / "features"
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    options = ["--annotations", str(annotations), "--image-root", str(args.data / "flickr8k_mini/images")]
    if hf_captioners_cli(["features", "--model", str(args.data / "vision_backbone"), *options, "--out", str(features)]):
        raise SystemExit("the features could not be written; see above.")
    print(f"features: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    state = train(args, annotations, features)
    results = caption_test_pictures(args, annotations)
    decodings = [name for name in results[0] if name not in ("picture", "references")]
    scores = score(results, decodings)
    (args.out / "captions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in results))
    plot(state["log_history"], args.out / "loss.png")
    images = args.data / "flickr8k_mini/images"
    beam = f"beam {args.num_beams}"
    cards = [SheetItem(images / row["picture"], row[beam], row["references"][:2]) for row in results[:NUM_SHOWN]]
    contact_sheet(
        cards, args.out / "contact_sheet.png", columns=5, cell_width=200, title="Flickr8k mini, test, as they came"
    )
    text = report(args, state, results, scores)
    (args.out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
