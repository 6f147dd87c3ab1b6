"""Train the captioner of `starter/`: real photographs, at most 12 MB.

    OMP_NUM_THREADS=1 python benchmarks/train_starter.py --data ../shared/data --out runs/starter --starter starter

The features of a frozen MobileNetV2 of all 6,000 training pictures of Flickr8k, cross-entropy on them, self-critical
training on CIDEr-D, and the result with its backbone in half precision, scored on the 500 test pictures from their
files; about an hour and a half of one processor core. Each step is skipped when its result is there. `--starter` is the
folder to write; its card keeps the scores.

With `--distil` the captioner of `--starter` is a teacher instead, whose five beams are added to the five captions of
every training picture. New captioners learn by cross-entropy, for three epochs each, from both and from people's
captions alone; the first one then goes on by self-critical training.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from flickr8k import RECIPES, call, caption_for_student, choose_images, options_of, write_features
from PIL import Image

from hf_captioners.data.captions.distill import read_teacher_captions

METRICS = ["bleu", "meteor", "rouge_l", "cider_d", "diversity"]


def train(
    args: argparse.Namespace, method: str, recipe: str, features: Path, name: str | None = None, **options: object
) -> Path:
    """Train by a recipe where the result is not there, in a folder that is called as the recipe without a `name`."""
    folder = args.out / (name or Path(recipe).stem)
    if not (folder / "trainer_state.json").exists():
        known = {"config": RECIPES / recipe, "output_dir": folder, "resume_from_checkpoint": "true"}
        data = {"annotations": args.annotations, "features": features}
        call(["train", method, *options_of({**known, **data, **options})], f"{recipe} could not be trained")
    return folder


def distil(args: argparse.Namespace, features: Path) -> None:
    """Train new captioners with a teacher and without."""
    taught, both = args.out / "captions_of_teacher.jsonl", args.out / "flickr8k_distilled.json"
    caption_for_student(args.starter, args.annotations, features, taught)
    if not both.exists():
        content, captions = json.loads(args.annotations.read_text()), read_teacher_captions(taught)
        for image in content["images"]:
            more = captions.get(image["imgid"], [])
            image["sentences"] += [{"raw": caption, "tokens": caption.split()} for caption in more]
        both.write_text(json.dumps(content))
    recipe, backbone = "starter/distilled_xe.yaml", args.data / "vision_backbone"
    train(args, "xe", recipe, features, "people_xe", backbone=backbone)
    options = {"annotations": both, "eval_annotations": args.annotations, "backbone": backbone}
    student = train(args, "xe", recipe, features, **options)
    often = {"eval_steps": 100, "save_steps": 100}
    train(args, "scst", "starter/2_scst.yaml", features, "distilled_scst", model=student, **often)


def _make_smaller(chart: Path) -> None:
    """A chart in fewer pixels and colours."""
    with Image.open(chart) as image:
        small = image.convert("RGB").resize((1000, round(1000 * image.height / image.width)), Image.Resampling.LANCZOS)
    small.quantize(48).save(chart, optimize=True)


def main() -> None:
    """Train, write the folder, and score what is in it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with flickr8k_mini/, flickr8k_train_rest/ and "
                        "vision_backbone/")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("runs/starter"), help="default: runs/starter")
    parser.add_argument("--starter", type=Path, default=Path("starter"), help="default: starter")
    parser.add_argument("--distil", action="store_true", help="make the experiment with a teacher instead")
    args = parser.parse_args()
    args.all_images = True
    choose_images(args)
    args.annotations = args.annotations.rename(args.out / "flickr8k.json")  # the name that cards give the data
    features = write_features(args, "grid")
    if args.distil:
        return distil(args, features)
    first = train(args, "xe", "starter/1_xe.yaml", features, backbone=args.data / "vision_backbone")
    best = train(args, "scst", "starter/2_scst.yaml", features, model=first)
    if not args.starter.exists():
        how = {"dry-run": args.starter, "weights-dtype": "float16", "language": "en"}
        call(["push", str(best), "starter", *options_of(how)], f"{args.starter} could not be written")
        _make_smaller(args.starter / "training.png")
    data = {"dataset": args.annotations, "image-root": args.image_root, "split": "test"}
    words = ["evaluate", *options_of({"model": args.starter, **data, "update-card": args.starter}), "--speed"]
    call([*words, "--metrics", *METRICS], "the captions could not be scored")


if __name__ == "__main__":
    main()
