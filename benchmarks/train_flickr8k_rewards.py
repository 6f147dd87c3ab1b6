"""Train with rewards on real pictures, and report which scores became better or worse.

    python benchmarks/train_flickr8k.py --data ../shared/data --out runs/flickr8k_mini
    python benchmarks/train_flickr8k_rewards.py --data ../shared/data --out runs/flickr8k_mini

Everything starts from the ExpansionNet v2 of the first command, trained with cross-entropy. `scst_cider_d` is
self-critical training on CIDEr-D; `dico_clip` and `scst_clip` are DiCO and self-critical training on the score of a
small CLIP model, `clip`, which is trained first. Each step is skipped when its result is there. `rewards.md` in the
output folder has the scores of the test pictures with intervals from 10,000 bootstrap samples of pictures, and 20
captions of each; `rewards.png` the curves.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import yaml
from flickr8k import (
    NUM_SHOWN,
    Run,
    add_arguments,
    call,
    caption_test_images,
    choose_images,
    decodings,
    options_of,
    train_clip,
    write_features,
)

from hf_captioners.metrics import CaptionMetrics
from hf_captioners.metrics.clip.clip_score import ClipScorer
from hf_captioners.metrics.clip.retrieval import clip_recall

START = "expansionnet_v2"
SAMPLES = 10_000
SHOWN_SCORES = {  # name -> heading
    "cider_d": "CIDEr-D x 100",
    "bleu_4": "BLEU-4 x 100",
    "meteor": "METEOR x 100",
    "clip_s": "CLIP-S x 100",
    "recall_1": "R@1 %",
    "recall_5": "R@5 %",
    "recall_10": "R@10 %",
    "mean_length": "words",
    "repetition_2": "repetition % of 2-grams",
    "vocabulary_size": "vocabulary",
}
FACTORS = {"mean_length": 1.0, "vocabulary_size": 1.0}


class RewardRun(Run):
    """A captioner, before or after reward training.

    Args:
        args (`Namespace`): of the command line.
        name, recipe (`str`): see [`Run`].
        method (`str`): of the training.
        options: of the training.
    """

    def __init__(self, args: argparse.Namespace, name: str, method: str = "", recipe: str = "", **options: Any) -> None:
        self.method, self.options = method, options
        super().__init__(args, name, recipe, write_features(args, "grid"))

    def train(self) -> None:
        """See [`Run`]."""
        if self.is_trained:
            return
        arguments = {
            "config": self.recipe,
            "model": self.args.out / START / "captioner",
            "annotations": self.args.annotations,
            "image_root": self.args.image_root,
            "features": self.features,
            "output_dir": self.captioner,
            **self.options,
        }
        call(["train", self.method, *options_of(arguments)], f"{self.name} could not be trained")


def cross_entropy(args: argparse.Namespace) -> RewardRun:
    """The captioner that all trainings start from."""
    return RewardRun(args, START)


def scst_cider_d(args: argparse.Namespace) -> RewardRun:
    """Self-critical training on CIDEr-D."""
    return RewardRun(args, "scst_cider_d", "scst", "expansionnet_v2/flickr8k_mini_scst.yaml")


def dico_clip(args: argparse.Namespace) -> RewardRun:
    """DiCO on the small CLIP's judgement."""
    recipe, clip = "dico/flickr8k_mini_dico.yaml", train_clip(args)
    return RewardRun(args, "dico_clip", "dico", recipe, clip_model=clip)


def scst_clip(args: argparse.Namespace) -> RewardRun:
    """Self-critical training on the small CLIP's judgement."""
    recipe, clip = "expansionnet_v2/flickr8k_mini_scst_clip.yaml", train_clip(args)
    return RewardRun(args, "scst_clip", "scst", recipe, clip_model=clip)


TRAININGS: dict[str, tuple[str, Callable[[argparse.Namespace], RewardRun]]] = {
    "cross_entropy": ("cross-entropy", cross_entropy),
    "scst_cider_d": ("SCST, CIDEr-D", scst_cider_d),
    "dico_clip": ("DiCO, CLIP", dico_clip),
    "scst_clip": ("SCST, CLIP", scst_clip),
}


def interval(values: np.ndarray) -> tuple[float, float]:
    """A 95 % interval of the mean, from bootstrap samples of the pictures."""
    rng = np.random.default_rng(0)
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(SAMPLES)]
    return float(np.percentile(means, 2.5)), float(np.percentile(means, 97.5))


def score(
    rows: list[dict[str, Any]], decoding: str, image_features: torch.Tensor, scorer: ClipScorer
) -> dict[str, Any]:
    """Numbers of the captions of one way of decoding, and CIDEr-D and CLIP-S per picture."""
    captions, references = [row[decoding] for row in rows], [row["references"] for row in rows]
    evaluation = CaptionMetrics(["bleu", "meteor", "cider_d", "diversity"])(captions, references)
    clip, _ = scorer.score(image_features, captions)
    recall = clip_recall(image_features, captions, scorer=scorer).corpus
    numbers = dict(evaluation.corpus, clip_s=float(clip.mean()))
    numbers.update({f"recall_{k}": recall[f"text_to_image_recall_at_{k}"] for k in (1, 5, 10)})
    return {"numbers": numbers, "cider_d": np.asarray(evaluation.per_image["cider_d"]), "clip_s": clip.double().numpy()}


def describe_clip(rows: list[dict[str, Any]], image_features: torch.Tensor, scorer: ClipScorer) -> list[str]:
    """Shares of pictures whose first reference scores higher than a worse caption, as Markdown."""
    true, rng = [row["references"][0] for row in rows], random.Random(0)
    worse = {
        "that of the next picture": true[1:] + true[:1],
        "its words in another order": [" ".join(rng.sample(caption.split(), len(caption.split()))) for caption in true],
        "itself twice": [f"{caption} {caption}" for caption in true],
    }
    score, _ = scorer.score(image_features, true)
    shares = {
        name: float((score > scorer.score(image_features, captions)[0]).double().mean())
        for name, captions in worse.items()
    }
    text = ", ".join(f"{name} {share * 100:.0f} %" for name, share in shares.items())
    return [f"The CLIP model scores a reference above another caption in so many of the pictures: {text}.", ""]


def describe(decoding: str, scores: dict[str, dict[str, Any]]) -> list[str]:
    """The scores of one way of decoding as Markdown, with the differences to the start."""
    lines = [f"### {decoding}", "", f"| training | {' | '.join(SHOWN_SCORES.values())} |"]
    lines.append("|---" * (len(SHOWN_SCORES) + 1) + "|")
    for name, result in scores.items():
        cells = [f"{result['numbers'][key] * FACTORS.get(key, 100.0):.1f}" for key in SHOWN_SCORES]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Difference to cross-entropy, with a 95 % interval over pictures:", ""]
    lines += ["| training | CIDEr-D x 100 | CLIP-S x 100 |", "|---|---|---|"]
    start = next(iter(scores))
    for name, result in scores.items():
        if name == start:
            continue
        cells = []
        for key in ("cider_d", "clip_s"):
            gains = (result[key] - scores[start][key]) * 100
            low, high = interval(gains)
            cells.append(f"{gains.mean():+.1f} ({low:+.1f} to {high:+.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return [*lines, ""]


def main() -> None:
    """Run the trainings and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--only", choices=TRAININGS, help="train this one and stop, to train several at a time")
    parser.add_argument("--trainings", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="what to report on")
    args = parser.parse_args()
    choose_images(args)
    if args.only is not None:
        TRAININGS[args.only][1](args)
        return
    chosen = dict.fromkeys(("cross_entropy", *args.trainings))  # all are compared with the first
    runs = {TRAININGS[name][0]: TRAININGS[name][1](args) for name in chosen}
    clip = train_clip(args)
    scorer = ClipScorer(clip, prefix="")
    captions = {name: caption_test_images(run) for name, run in runs.items()}
    start_rows = next(iter(captions.values()))
    image_features = scorer.image_features([row["image"] for row in start_rows])
    lines = describe_clip(start_rows, image_features, scorer)
    for decoding in decodings(args):
        lines += describe(
            decoding, {name: score(rows, decoding, image_features, scorer) for name, rows in captions.items()}
        )
    lines += describe_training(runs)
    *_, beam = decodings(args)
    lines += [f"First {NUM_SHOWN} test pictures, {beam}:", "", f"| picture | {' | '.join(runs)} |"]
    lines.append("|---" * (len(runs) + 1) + "|")
    for rows in list(zip(*captions.values(), strict=True))[:NUM_SHOWN]:
        lines.append(f"| {rows[0]['picture']} | {' | '.join(row[beam] for row in rows)} |")
    text = "\n".join(lines) + "\n"
    (args.out / "rewards.md").write_text(text)
    trained = [str(run.captioner) for name, run in runs.items() if name != "cross-entropy"]
    call(["plot", *trained, "--out", str(args.out / "rewards.png")], "the trainings could not be drawn")
    print(text)


def describe_training(runs: dict[str, RewardRun]) -> list[str]:
    """Time, steps and seed of each training, as Markdown."""
    lines = [f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}.", ""]
    lines += ["| training | minutes | steps | seed |", "|---|---|---|---|"]
    for name, run in runs.items():
        if run.recipe.is_file():
            runtime = next(row["train_runtime"] for row in run.state["log_history"] if "train_runtime" in row)
            seed = yaml.safe_load(run.recipe.read_text())["seed"]
            lines.append(f"| {name} | {runtime / 60:.1f} | {run.state['global_step']} | {seed} |")
    return [*lines, ""]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
