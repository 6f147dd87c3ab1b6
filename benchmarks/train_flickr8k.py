"""Train small captioners on real pictures, caption the test pictures, score the captions, and write a report.

    python benchmarks/train_flickr8k.py --data ../shared/data --out runs/flickr8k_mini
    python benchmarks/train_flickr8k.py --data ../shared/data --out runs/flickr8k_mini --systems satic clip_gpt2
    python benchmarks/train_flickr8k.py --data ../shared/data --out runs/flickr8k --all-images --num-train-epochs 8

`--all-images` trains on all 6,000 training pictures instead of 2,600 (`flickr8k_mini` and `flickr8k_train_rest`);
validation and test are the same. Give another output folder then.

Each step is skipped when its result is there: the features of a frozen MobileNetV2 (`hf-captioners features`), the
training of each captioner (its example script and recipe, about 15 minutes on 2 CPU cores), for SATIC with the captions
of its teacher in between (`hf-captioners caption`), and the captions of the 500 test pictures, written from the JPEG
files by the complete captioners. `results.md` in the output folder says how it went; each captioner's folder has
`captions.jsonl`, `loss.png` and `contact_sheet.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForImageTextToText, AutoProcessor

import hf_captioners  # noqa: F401  registers the captioners
from hf_captioners.cli.main import main as hf_captioners_cli
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.features.store import FeatureStore
from hf_captioners.inference.caption_files import caption_files
from hf_captioners.metrics import CaptionMetrics, Evaluation
from hf_captioners.modeling.captioner_trust import load_pretrained
from hf_captioners.reports.contact_sheet import SheetItem, contact_sheet

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples/recipes"
NUM_SHOWN = 20
NUM_TIMED = 50
METRICS = ("bleu", "meteor", "rouge_l", "cider_d", "diversity")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that say which pictures to use and where results go."""
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k_mini/ and vision_backbone/")
    parser.add_argument("--out", type=Path, default=Path("runs/flickr8k_mini"), help="default: runs/flickr8k_mini")
    parser.add_argument("--all-images", action="store_true", help="also train on the pictures of flickr8k_train_rest/")
    parser.add_argument("--num-beams", type=int, default=3, help="beams besides greedy (default: 3)")


def choose_images(args: argparse.Namespace) -> None:
    """Set `args.annotations` and `args.image_root`; with `--all-images` the file of annotations is written."""
    args.out.mkdir(parents=True, exist_ok=True)
    args.image_root = args.data / "flickr8k_mini/images"
    args.annotations = args.data / "flickr8k_mini/dataset_karpathy.json"
    if not args.all_images:
        return
    images = []
    for part in ("flickr8k_mini", "flickr8k_train_rest"):
        entries = json.loads((args.data / part / "dataset_karpathy.json").read_text())["images"]
        images += [{**entry, "filepath": f"{part}/images"} for entry in entries]
    args.image_root, args.annotations = args.data, args.out / "dataset_karpathy.json"
    args.annotations.write_text(json.dumps({"images": images, "dataset": "flickr8k"}))


def write_features(args: argparse.Namespace, tokens: str) -> Path:
    """The features of all pictures: the backbone's grid, or one pooled embedding each."""
    folder = args.out / ("features" if tokens == "grid" else "features_pooled")
    options = ["--model", args.data / "vision_backbone", "--annotations", args.annotations]
    options += ["--image-root", args.image_root, "--out", folder, "--tokens", tokens]
    start = time.perf_counter()
    if hf_captioners_cli(["features", *map(str, options)]):
        raise SystemExit("the features could not be written; see above.")
    print(f"features: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return folder


class Run:
    """A captioner of the table.

    Attributes:
        name (`str`): of the captioner and of its folder.
        recipe (`Path`): its options.
        features (`Path`): its inputs.
    """

    def __init__(self, args: argparse.Namespace, name: str, recipe: str, tokens: str = "grid", **options: Any) -> None:
        self.name, self.recipe, self.folder = name, RECIPES / recipe, args.out / name
        self.features = write_features(args, tokens)
        self.captioner = self.folder / "captioner"
        if not (self.captioner / "trainer_state.json").exists():
            arguments = {
                "config": self.recipe,
                "annotations": args.annotations,
                "features": self.features,
                "output_dir": self.captioner,
                **({"num_train_epochs": args.num_train_epochs} if args.num_train_epochs else {}),
                **options,
            }
            words = [word for key, value in arguments.items() for word in (f"--{key}", str(value))]
            if hf_captioners_cli(["train", "xe", *words]):
                raise SystemExit(f"{name} could not be trained; see above.")
        self.state = json.loads((self.captioner / "trainer_state.json").read_text())

    def load(self) -> tuple[Any, Any]:
        """The captioner and its processor."""
        model = load_pretrained(AutoModelForImageTextToText, self.captioner).eval()
        return model, load_pretrained(AutoProcessor, self.captioner)


def expansionnet_v2(args: argparse.Namespace) -> Iterator[Run]:
    """Train ExpansionNet v2."""
    recipe, backbone = "expansionnet_v2/flickr8k_mini.yaml", args.data / "vision_backbone"
    yield Run(args, "expansionnet_v2", recipe, backbone=backbone)


def satic(args: argparse.Namespace) -> Iterator[Run]:
    """Train a teacher that writes word by word, and SATIC with 2 and 4 words a step on its captions."""
    backbone = args.data / "vision_backbone"
    teacher = Run(args, "satic_teacher", "satic/flickr8k_mini_teacher.yaml", backbone=backbone)
    yield teacher
    captions = teacher.folder / "captions_of_train.jsonl"
    if not captions.exists():
        command = ["caption", "--model", teacher.captioner, "--annotations", args.annotations, "--split", "train"]
        command += ["--features", teacher.features, "--num-beams", 5, "--num-return-sequences", 5, "--batch-size", 50]
        program = [sys.executable, "-m", "hf_captioners", *map(str, command)]
        captions.write_bytes(subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout)
    student = {"model": teacher.captioner, "distilled": captions}
    for size in (2, 4):
        recipe = "satic/flickr8k_mini_student.yaml"
        options = json.dumps({"group_size": size})
        yield Run(args, f"satic_{size}", recipe, model_options=options, **student)


def clip_gpt2(args: argparse.Namespace) -> Iterator[Run]:
    """Train CLIP-GPT2, with MobileNetV2 in the place of CLIP and a small GPT-2 from scratch."""
    backbone = args.data / "vision_backbone"
    recipe = "clip_gpt2/flickr8k_mini.yaml"
    yield Run(args, "clip_gpt2", recipe, tokens="pooled", backbone=backbone)


SYSTEMS = {"expansionnet_v2": expansionnet_v2, "satic": satic, "clip_gpt2": clip_gpt2}


def caption_test_images(args: argparse.Namespace, run: Run) -> list[dict[str, Any]]:
    """Caption every test picture from its file, greedily and with a beam search."""
    model, processor = run.load()
    images = args.data / "flickr8k_mini/images"
    rows = list(load_karpathy(args.annotations, split="test"))
    paths = [images / row["file_name"] for row in rows]
    results = [{"picture": path.name, "references": row["captions"]} for path, row in zip(paths, rows, strict=True)]
    for name, beams in decodings(args):
        records = caption_files(model, processor, paths, batch_size=20, num_beams=beams, max_new_tokens=20)
        for result, record in zip(results, records, strict=True):
            result[name] = record["caption"]
    return results


def decodings(args: argparse.Namespace) -> list[tuple[str, int]]:
    """The ways of decoding and their beams."""
    return [("greedy", 1), (f"beam {args.num_beams}", args.num_beams)]


def measure_speed(args: argparse.Namespace, run: Run) -> dict[str, tuple[float, float]]:
    """Decoder calls and milliseconds per caption of each decoding, with batches of 1, from cached features."""
    model, processor = run.load()
    store = FeatureStore(run.features)
    names = load_karpathy(args.annotations, split="test")["image_id"][:NUM_TIMED]
    inputs = [processor(image_features=store[name][None].float()) for name in names]
    calls = 0

    def count(*unused: Any) -> None:
        nonlocal calls
        calls += 1

    model.get_output_embeddings().register_forward_hook(count)
    measured = {}
    for name, beams in decodings(args):
        for turn in range(2):  # the first is to warm up
            calls, start = 0, time.perf_counter()
            with torch.inference_mode():
                for batch in inputs:
                    model.generate(**batch, num_beams=beams, max_new_tokens=20)
            if turn:
                measured[name] = calls / len(names), (time.perf_counter() - start) / len(names) * 1e3
    return measured


def plot(history: list[dict[str, float]], path: Path) -> None:
    """Plot the loss curves."""
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
    pyplot.close(figure)


def describe_training(run: Run) -> list[str]:
    """Training time, options and validation scores, as Markdown."""
    history = run.state["log_history"]
    runtime = next(row["train_runtime"] for row in history if "train_runtime" in row)
    evaluations = [row for row in history if "eval_loss" in row]
    names = [name for name in ("eval_loss", "eval_bleu_4", "eval_cider_d") if name in evaluations[0]]
    lines = [
        f"Training: {runtime / 60:.1f} min, {run.state['global_step']} steps, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, seed {yaml.safe_load(run.recipe.read_text())['seed']}.",
        "",
        f"| epoch | {' | '.join(name.removeprefix('eval_') for name in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in evaluations:
        lines.append(f"| {row['epoch']:.0f} | " + " | ".join(f"{row[name]:.3f}" for name in names) + " |")
    return [*lines, ""]


def describe_captions(results: list[dict[str, Any]], scores: dict[str, Evaluation]) -> list[str]:
    """Scores and the first captions, as Markdown."""
    tables = {decoding: dict(evaluation.table()) for decoding, evaluation in scores.items()}
    lines = [f"| score | {' | '.join(tables)} |", "|---" * (len(tables) + 1) + "|"]
    for name in next(iter(tables.values())):
        lines.append(f"| {name} | " + " | ".join(table[name] for table in tables.values()) + " |")
    beam = list(scores)[-1]
    lines += ["", f"Signature: `{scores[beam].signature_text}`", ""]
    lines += [f"| picture | {beam} | a reference |", "|---|---|---|"]
    lines += [f"| {row['picture']} | {row[beam]} | {row['references'][0].strip()} |" for row in results[:NUM_SHOWN]]
    return [*lines, ""]


def finish(args: argparse.Namespace, run: Run) -> tuple[list[str], list[str]]:
    """Caption, score and draw; returns the section of a captioner and its lines of the common table."""
    results = caption_test_images(args, run)
    metrics = CaptionMetrics(METRICS)
    references, names = [row["references"] for row in results], [row["picture"] for row in results]
    kinds = [name for name, _ in decodings(args)]
    scores = {decoding: metrics([row[decoding] for row in results], references, names) for decoding in kinds}
    (run.folder / "captions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in results))
    plot(run.state["log_history"], run.folder / "loss.png")
    images = args.data / "flickr8k_mini/images"
    cards = [SheetItem(images / row["picture"], row[kinds[-1]], row["references"][:2]) for row in results[:NUM_SHOWN]]
    sheet = run.folder / "contact_sheet.png"
    contact_sheet(cards, sheet, columns=5, cell_width=200, title=f"{run.name}, Flickr8k mini, test, as they came")
    speed = measure_speed(args, run)
    lines = []
    for decoding in kinds:
        corpus, (calls, milliseconds) = scores[decoding].corpus, speed[decoding]
        numbers = " | ".join(f"{corpus[name] * 100:.1f}" for name in ("cider_d", "bleu_4", "meteor"))
        lines.append(f"| {run.name} | {decoding} | {numbers} | {calls:.1f} | {milliseconds:.1f} |")
    return [f"## {run.name}", "", *describe_training(run), *describe_captions(results, scores)], lines


def main() -> None:
    """Train, caption and score the chosen captioners."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["expansionnet_v2"], help="what to train")
    parser.add_argument("--num-train-epochs", type=int, help="instead of the recipes' number")
    args = parser.parse_args()
    choose_images(args)
    sections: list[str] = []
    table = ["| captioner | decoding | CIDEr-D x 100 | BLEU-4 x 100 | METEOR x 100 | decoder calls | ms per caption |"]
    table.append("|---" * 7 + "|")
    for system in args.systems:
        for run in SYSTEMS[system](args):
            section, lines = finish(args, run)
            sections += section
            table += lines
    text = "\n".join([*table, "", *sections]) + "\n"
    (args.out / "results.md").write_text(text)
    print(text)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
