"""What the trainings on Flickr8k share: the pictures, their features, a small CLIP, and captioners to be reported.

`train_flickr8k.py`, `train_flickr8k_rewards.py` and `train_flickr8k_families.py` are the commands.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hf_captioners.cli.main import main as hf_captioners_cli
from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.data.features.store import FeatureStore
from hf_captioners.data.rows import FeatureDataset, attach_features, undecoded
from hf_captioners.inference.caption_files import caption_files
from hf_captioners.inference.loading import load_captioners

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "examples/recipes"
NUM_SHOWN = 20


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


def options_of(arguments: Mapping[str, Any]) -> list[str]:
    """Words of a command line."""
    return [word for name, value in arguments.items() for word in (f"--{name}", str(value))]


def call(words: list[str], purpose: str) -> None:
    """Run a verb of `hf-captioners`, or end with what could not be done."""
    if hf_captioners_cli(words):
        raise SystemExit(f"{purpose}; see above.")


def write_features(args: argparse.Namespace, tokens: str) -> Path:
    """The features of all pictures: the backbone's grid, or one pooled embedding each."""
    folder = args.out / ("features" if tokens == "grid" else "features_pooled")
    images = {"annotations": args.annotations, "image-root": args.image_root}
    options = {"model": args.data / "vision_backbone", **images, "out": folder, "tokens": tokens}
    start = time.perf_counter()
    call(["features", *options_of(options)], "the features could not be written")
    print(f"features: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return folder


def caption_for_student(teacher: Path, annotations: Path, features: Path, out: Path) -> None:
    """Write the five beams that a teacher finds for every training picture, where they are not there."""
    if out.exists():
        return
    command = ["caption", "--model", teacher, "--annotations", annotations, "--split", "train", "--features", features]
    command += ["--num-beams", 5, "--num-return-sequences", 5, "--batch-size", 50]
    program = [sys.executable, "-m", "hf_captioners", *map(str, command)]
    out.write_bytes(subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout)


def train_clip(args: argparse.Namespace) -> Path:
    """Train the small CLIP model."""
    folder = args.out / "clip"
    if not (folder / "config.json").exists():
        options = {
            "config": RECIPES / "mini_clip/flickr8k_mini.yaml",
            "annotations": args.annotations,
            "image_root": args.image_root,
            "backbone": args.data / "vision_backbone",
            "output_dir": folder,
        }
        subprocess.run([sys.executable, ROOT / "examples/train_mini_clip.py", *options_of(options)], check=True)
    return folder


def decodings(args: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The ways of decoding word by word, by name, as options of `generate`."""
    beams = {"greedy": 1, f"beam {args.num_beams}": args.num_beams}
    return {name: {"num_beams": number, "max_new_tokens": 20} for name, number in beams.items()}


class Run:
    """A captioner of the table.

    Args:
        args (`Namespace`): of the command line.
        name (`str`): of the captioner and of the folder of its report.
        recipe (`str`): its options, below `examples/recipes`.
        features (`Path`, *optional*): its cached inputs, where it learns from such.
        captioner (`Path`, *optional*): its folder; `captioner` in that of the report by default.

    Attributes:
        decodings (`dict[str, dict[str, Any]]`): ways of decoding by name, as options of `generate`; the last one is
            shown with pictures.
        shown (`tuple[str, ...]`): sentences of a picture that stand beside its caption.
        state (`dict[str, Any]`): what the training logged.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        name: str,
        recipe: str,
        features: Path | None = None,
        captioner: Path | None = None,
    ) -> None:
        self.args, self.name, self.features = args, name, features
        self.recipe, self.folder = RECIPES / recipe, args.out / name
        self.captioner = self.folder / "captioner" if captioner is None else captioner
        self.decodings, self.shown = decodings(args), ()
        self.train()
        self.state: dict[str, Any] = json.loads((self.captioner / "trainer_state.json").read_text())
        self.folder.mkdir(parents=True, exist_ok=True)

    def train(self) -> None:
        """Train where the result is not there."""

    @property
    def is_trained(self) -> bool:
        """Tell whether there is a result."""
        return (self.captioner / "trainer_state.json").exists()

    def load(self) -> tuple[Any, Any]:
        """The captioner and its processor."""
        return load_captioners([str(self.captioner)], device="cpu")

    def test_rows(self) -> FeatureDataset:
        """The test pictures' cached inputs."""
        if self.features is None:
            raise ValueError(f"{self.name} learns from pictures; there are no cached inputs of it.")
        return attach_features(load_karpathy(self.args.annotations, split="test"), FeatureStore(self.features))

    def caption(self, model: Any, processor: Any, options: Mapping[str, Any]) -> Iterator[str]:
        """Caption every test picture, from its file, in the order of the rows."""
        paths = [image["path"] for image in self.images()["image"]]
        records = caption_files(model, processor, paths, batch_size=20, **options)
        return (record["caption"] for record in records)

    def notes(self) -> list[str]:
        """What else there is to say of it, as Markdown."""
        return []

    def images(self) -> Any:
        """The test pictures, closed, with what people said."""
        return undecoded(load_karpathy(self.args.annotations, self.args.image_root, "test"))


def caption_test_images(run: Run) -> list[dict[str, Any]]:
    """Caption every test picture in every way of decoding; with its path, its references and what is shown beside."""
    model, processor = run.load()
    results = [{"image": row["image"]["path"], "references": row["captions"]} for row in run.images()]
    results = [{"picture": Path(row["image"]).name, **row} for row in results]
    if run.shown:
        for result, row in zip(results, run.test_rows().dataset, strict=True):
            result.update({name: row[name][0] for name in run.shown})
    for name, options in run.decodings.items():
        for result, caption in zip(results, run.caption(model, processor, options), strict=True):
            result[name] = caption
    return results
