"""Train small captioners on real pictures, caption the test pictures, score the captions, and write a report.

    python benchmarks/train_flickr8k.py --data ../shared/data --out runs/flickr8k_mini
    python benchmarks/train_flickr8k.py --data ../shared/data --out runs/flickr8k_mini --systems satic clip_gpt2
    python benchmarks/train_flickr8k.py --data ../shared/data --out runs/flickr8k --all-images --systems scdnet

`--all-images` trains on all 6,000 training pictures instead of 2,600 (`flickr8k_mini` and `flickr8k_train_rest`);
validation and test are the same. Give another output folder then.

Each step is skipped when its result is there: the features of a frozen MobileNetV2 (`hf-captioners features`), the
training of each captioner (its example script and recipe, about 15 minutes on 2 CPU cores), for SATIC with the captions
of its teacher in between (`hf-captioners caption`), for SCD-Net with sentences that a small CLIP finds and with the
captions of ExpansionNet v2 to guide it. The 500 test pictures are captioned from the JPEG files by the complete
captioners, by SCD-Net from cached features. `results.md` in the output folder says how it went; each captioner's folder
there has `captions.jsonl`, `training.png` and `contact_sheet.png`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import yaml
from flickr8k import (
    NUM_SHOWN,
    Run,
    add_arguments,
    call,
    caption_for_student,
    caption_test_images,
    choose_images,
    options_of,
    write_features,
)
from flickr8k_scdnet import TRAININGS, train_scdnet

from hf_captioners.metrics import CaptionMetrics, Evaluation
from hf_captioners.modeling.processing_captioner import prepare_rows
from hf_captioners.reports.contact_sheet import SheetItem, contact_sheet

NUM_TIMED = 50
METRICS = ("bleu", "meteor", "rouge_l", "cider_d", "diversity")


class TrainedRun(Run):
    """A captioner that is trained with cross-entropy by its recipe.

    Args:
        args (`Namespace`): of the command line.
        name, recipe (`str`): see [`Run`].
        tokens (`str`, defaults to `"grid"`): which features it looks at, see `write_features`.
        options: of the training.
    """

    def __init__(self, args: argparse.Namespace, name: str, recipe: str, tokens: str = "grid", **options: Any) -> None:
        self.options = options
        super().__init__(args, name, recipe, write_features(args, tokens))

    def train(self) -> None:
        """See [`Run`]."""
        if self.is_trained:
            return
        arguments = {
            "config": self.recipe,
            "annotations": self.args.annotations,
            "features": self.features,
            "output_dir": self.captioner,
            **({"num_train_epochs": self.args.num_train_epochs} if self.args.num_train_epochs else {}),
            **self.options,
        }
        call(["train", "xe", *options_of(arguments)], f"{self.name} could not be trained")


def expansionnet_v2(args: argparse.Namespace) -> Iterator[TrainedRun]:
    """Train ExpansionNet v2."""
    recipe, backbone = "expansionnet_v2/flickr8k_mini.yaml", args.data / "vision_backbone"
    yield TrainedRun(args, "expansionnet_v2", recipe, backbone=backbone)


def satic(args: argparse.Namespace) -> Iterator[TrainedRun]:
    """Train a teacher that writes word by word, and SATIC with several words a step on its captions."""
    backbone = args.data / "vision_backbone"
    teacher = TrainedRun(args, "satic_teacher", "satic/flickr8k_mini_teacher.yaml", backbone=backbone)
    yield teacher
    captions = teacher.folder / "captions_of_train.jsonl"
    caption_for_student(teacher.captioner, args.annotations, teacher.features, captions)
    student = {"model": teacher.captioner, "distilled": captions}
    for size in args.group_sizes:
        recipe = "satic/flickr8k_mini_student.yaml"
        options = json.dumps({"group_size": size})
        yield TrainedRun(args, f"satic_{size}", recipe, model_options=options, **student)


def clip_gpt2(args: argparse.Namespace) -> Iterator[TrainedRun]:
    """Train CLIP-GPT2, with MobileNetV2 in the place of CLIP and a small GPT-2 from scratch."""
    backbone = args.data / "vision_backbone"
    recipe = "clip_gpt2/flickr8k_mini.yaml"
    yield TrainedRun(args, "clip_gpt2", recipe, tokens="pooled", backbone=backbone)


def dico(args: argparse.Namespace) -> Iterator[TrainedRun]:
    """Train DiCO's captioner, with MobileNetV2 in the place of CLIP."""
    yield TrainedRun(args, "dico", "dico/flickr8k_mini.yaml", backbone=args.data / "vision_backbone")


def scdnet(args: argparse.Namespace) -> Iterator[Run]:
    """Train both stages of SCD-Net, guided by ExpansionNet v2."""
    (teacher,) = expansionnet_v2(args)
    yield from train_scdnet(args, teacher.captioner)


SYSTEMS: dict[str, Callable[[argparse.Namespace], Iterator[Run]]] = {
    "expansionnet_v2": expansionnet_v2,
    "satic": satic,
    "clip_gpt2": clip_gpt2,
    "dico": dico,
    "scdnet": scdnet,
}


def measure_speed(run: Run, cpu_time: bool) -> dict[str, tuple[float, float]]:
    """Decoder calls and milliseconds per caption of each decoding, with batches of 1, from cached features."""
    model, processor = run.load()
    now = time.process_time if cpu_time else time.perf_counter
    rows = run.test_rows()
    inputs = [
        prepare_rows(processor, [rows[index]]).to(dtype=model.dtype) for index in range(min(NUM_TIMED, len(rows)))
    ]
    calls = 0

    def count(*unused: Any) -> None:
        nonlocal calls
        calls += 1

    model.get_output_embeddings().register_forward_hook(count)
    measured = {}
    for name, options in run.decodings.items():
        for turn in range(2):  # the first is to warm up
            calls, start = 0, now()
            with torch.inference_mode():
                for batch in inputs:
                    model.generate(**batch, **options)
            if turn:
                measured[name] = calls / len(inputs), (now() - start) / len(inputs) * 1e3
    return measured


def describe_training(run: Run) -> list[str]:
    """Training time, options and validation scores, as Markdown."""
    history = run.state["log_history"]
    runtime = next(row["train_runtime"] for row in history if "train_runtime" in row)
    shown = ("eval_loss", "eval_reward", "eval_bleu_4", "eval_cider_d")
    evaluations = [row for row in history if any(name in row for name in shown)]
    names = [name for name in shown if any(name in row for row in evaluations)]
    lines = [
        f"Training: {runtime / 60:.1f} min, {run.state['global_step']} steps, {torch.get_num_threads()} threads, "
        f"{platform.machine()}, torch {torch.__version__}, seed {yaml.safe_load(run.recipe.read_text())['seed']}.",
        "",
        f"| epoch | {' | '.join(name.removeprefix('eval_') for name in names)} |",
        "|---" * (len(names) + 1) + "|",
    ]
    for row in evaluations:
        lines.append(
            f"| {row['epoch']:.0f} | " + " | ".join(f"{row[name]:.3f}" if name in row else "" for name in names) + " |"
        )
    return [*lines, ""]


def describe_captions(run: Run, results: list[dict[str, Any]], scores: dict[str, Evaluation]) -> list[str]:
    """Scores and the first captions, as Markdown."""
    tables = {decoding: dict(evaluation.table()) for decoding, evaluation in scores.items()}
    lines = [f"| score | {' | '.join(tables)} |", "|---" * (len(tables) + 1) + "|"]
    for name in next(iter(tables.values())):
        lines.append(f"| {name} | " + " | ".join(table[name] for table in tables.values()) + " |")
    beam = list(scores)[-1]
    lines += ["", f"Signature: `{scores[beam].signature_text}`", ""]
    columns = ["picture", beam, *run.shown]
    lines += [f"| {' | '.join(columns)} | a reference |", "|---" * (len(columns) + 1) + "|"]
    for row in results[:NUM_SHOWN]:
        lines.append(f"| {' | '.join(row[name] for name in columns)} | {row['references'][0].strip()} |")
    return [*lines, ""]


def finish(args: argparse.Namespace, run: Run) -> tuple[list[str], list[str]]:
    """Caption, score and draw; returns the section of a captioner and its lines of the common table."""
    results = caption_test_images(run)
    metrics = CaptionMetrics(METRICS)
    references, names = [row["references"] for row in results], [row["picture"] for row in results]
    scores = {decoding: metrics([row[decoding] for row in results], references, names) for decoding in run.decodings}
    kept = [{name: value for name, value in row.items() if name != "image"} for row in results]
    (run.folder / "captions.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
    drawn = ["plot", str(run.captioner), "--out", str(run.folder / "training.png")]
    call(drawn, f"the training of {run.name} could not be drawn")
    *_, last = run.decodings
    cards = [SheetItem(row["image"], row[last], row["references"][:2]) for row in results[:NUM_SHOWN]]
    sheet = run.folder / "contact_sheet.png"
    contact_sheet(cards, sheet, columns=5, cell_width=200, title=f"{run.name}, Flickr8k, test, as they came")
    speed = measure_speed(run, args.cpu_time)
    lines = []
    for decoding in run.decodings:
        corpus, (calls, milliseconds) = scores[decoding].corpus, speed[decoding]
        numbers = " | ".join(f"{corpus[name] * 100:.1f}" for name in ("cider_d", "bleu_4", "meteor"))
        lines.append(f"| {run.name} | {decoding} | {numbers} | {calls:.1f} | {milliseconds:.1f} |")
    section = [*describe_training(run), *run.notes(), *describe_captions(run, results, scores)]
    return [f"## {run.name}", "", *section], lines


def main() -> None:
    """Train, caption and score the chosen captioners."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=["expansionnet_v2"], help="what to train")
    parser.add_argument("--num-train-epochs", type=int, help="instead of the recipes' number")
    parser.add_argument(
        "--scdnet-steps", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="trainings of SCD-Net (all)"
    )
    parser.add_argument(
        "--group-sizes", nargs="+", type=int, default=[2, 4], help="words that SATIC writes at once (2 and 4)"
    )
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, on a machine that is busy")
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
