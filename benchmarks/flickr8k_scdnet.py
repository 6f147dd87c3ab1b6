"""SCD-Net on Flickr8k: sentences retrieved with the small CLIP, and the steps of its recipe, for `train_flickr8k.py`.

Sentences and captions of all splits are files in the output folder: `retrieved.jsonl`, and those of the recipe's
Makefile in `scdnet/`, whose sub-folders are the captioners. Each is scored as it is used by the next step: the second
stage sees the sentences that the first one wrote before it was trained with rewards (5_xe) or after (6_scst).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flickr8k import RECIPES, Run, call, options_of, train_clip, write_features

from hf_captioners.data.captions.attached import attach_sentences
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.features.store import FeatureStore
from hf_captioners.data.rows import FeatureDataset, attach_features
from hf_captioners.inference.captioning import caption_rows
from hf_captioners.metrics import CaptionMetrics

MAKEFILE = RECIPES / "scdnet/Makefile"
DECODINGS: dict[str, dict[str, Any]] = {"50 steps": {"num_inference_steps": 50}, "fast": {"decoding": "fast"}}
EXPORT_STEPS = 10  # of the captions of all pictures that the second stage learns from
# and sentences of the first stage
TRAININGS = {"1_xe": None, "1_distilled": None, "2_scst": None, "5_xe": "3_xe", "6_scst": "4_scst"}


class ScdnetRun(Run):
    """A step of the recipe, whose captions are written from cached features with their sentences.

    Args:
        args (`Namespace`): of the command line.
        step (`str`): a training of the Makefile.
        retrieved (`Path`): sentences of all pictures.
    """

    def __init__(self, args: argparse.Namespace, step: str, retrieved: Path) -> None:
        folder, previous = args.out / "scdnet", TRAININGS[step]
        self.sentences = {"retrieved": retrieved}
        if previous is not None:
            self.sentences["previous"] = folder / f"{previous}.jsonl"
        super().__init__(args, f"scdnet_{step}", f"scdnet/flickr8k_{step}.yaml", args.out / "features", folder / step)
        self.shown = tuple(self.sentences)
        self.decodings = DECODINGS

    def test_rows(self) -> FeatureDataset:
        """See [`Run`]."""
        rows = load_karpathy(self.args.annotations, split="test")
        for column, file in self.sentences.items():
            rows = attach_sentences(rows, file, column)
        return attach_features(rows, FeatureStore(self.features))

    def caption(self, model: Any, processor: Any, options: Mapping[str, Any]) -> Iterator[str]:
        """See [`Run`]."""
        rows = self.test_rows()
        records = caption_rows(model, processor, (rows[index] for index in range(len(rows))), batch_size=50, **options)
        return (record["caption"] for record in records)

    def notes(self) -> list[str]:
        """The worth of its sentences by themselves, which a captioner that copies them would have.

        Those of training pictures are better than others where the dual encoder has learned these pictures by heart; a
        captioner then learns to rely on them too much.
        """
        splits = ("train", "val", "test")
        lines = [f"| CIDEr-D x 100 of the sentence itself | {' | '.join(splits)} |", "|---" * (len(splits) + 1) + "|"]
        for name, file in self.sentences.items():
            scores = [f"{self._worth(file, name, split) * 100:.1f}" for split in splits]
            lines.append(f"| {name} | {' | '.join(scores)} |")
        return [*lines, ""]

    def _worth(self, file: Path, column: str, split: str) -> float:
        rows = attach_sentences(load_karpathy(self.args.annotations, split=split), file, column)
        return CaptionMetrics(["cider_d"])([row[0] for row in rows[column]], rows["captions"]).corpus["cider_d"]


def look_up_sentences(args: argparse.Namespace) -> Path:
    """Build the retriever of the training captions, and look up the sentences of all pictures."""
    retriever, sentences = args.out / "retrieval", args.out / "retrieved.jsonl"
    images = {"annotations": args.annotations, "image-root": args.image_root}
    if sentences.exists():
        return sentences
    if not retriever.exists():
        options = {**images, "clip": train_clip(args), "out": retriever}
        call(["retrieval", "build", *options_of(options)], "the retriever could not be built")
    options = {"retrieval": retriever, **images, "out": sentences}
    call(["retrieval", "lookup", *options_of(options)], "the sentences could not be looked up")
    return sentences


def train_scdnet(args: argparse.Namespace, teacher: Path) -> Iterator[Run]:
    """Train SCD-Net step by step.

    Args:
        args (`Namespace`): of the command line.
        teacher (`Path`): a captioner that writes word by word, whose captions guide self-critical training.

    Returns:
        `Iterator[Run]`: the trainings of `args.scdnet_steps`; those before them are run where they are not done.
    """
    retrieved, folder = look_up_sentences(args), args.out / "scdnet"
    epochs = f"--num_train_epochs {args.num_train_epochs}" if args.num_train_epochs else ""
    variables = {
        "DIR": folder,
        "ANNOTATIONS": args.annotations,
        "FEATURES": write_features(args, "grid"),
        "RETRIEVED": retrieved,
        "TEACHER": teacher,
        "RECIPE": "flickr8k_",
        "NEW": f"--backbone {args.data / 'vision_backbone'}",
        "MORE": epochs,
        "XE_STEPS": EXPORT_STEPS,
        "SCST_STEPS": EXPORT_STEPS,
        "PYTHON": sys.executable,
    }
    words = [f"{name}={value}" for name, value in variables.items()]
    targets = [f"{folder / step}/raw/config.json" for step in args.scdnet_steps]
    subprocess.run(["make", "-f", MAKEFILE, *words, *targets], stdout=sys.stderr, check=True)
    for step in args.scdnet_steps:
        yield ScdnetRun(args, step, retrieved)
