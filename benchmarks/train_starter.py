"""Train the captioner of `starter/`: real photographs, at most 12 MB.

    OMP_NUM_THREADS=1 python benchmarks/train_starter.py --data ../shared/data --out runs/starter --starter starter

The features of a frozen MobileNetV2 of all 6,000 training pictures of Flickr8k, cross-entropy on them and self-critical
training on CIDEr-D: a teacher. A new captioner of the same size learns from people's captions and the teacher's five
beams, by cross-entropy, and then by self-critical training as the teacher did. The result is written with its backbone
in half precision and scored on the 500 test pictures from their files; about two and a half hours of one processor
core. Each step is skipped when its result is there. `--teacher` is a captioner in the place of the one of the first two
steps. `--starter` is the folder to write; its card keeps the scores.
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


def teach(args: argparse.Namespace, features: Path) -> Path:
    """Train the teacher."""
    first = train(args, "xe", "starter/1_xe.yaml", features, backbone=args.data / "vision_backbone")
    return train(args, "scst", "starter/2_scst.yaml", features, model=first)


def distil(args: argparse.Namespace, teacher: Path, features: Path) -> Path:
    """Train a new captioner on what people said and, besides, the five beams of a teacher."""
    taught, both = args.out / "captions_of_teacher.jsonl", args.out / "flickr8k_distilled.json"
    caption_for_student(teacher, args.annotations, features, taught)
    if not both.exists():
        content, captions = json.loads(args.annotations.read_text()), read_teacher_captions(taught)
        for image in content["images"]:
            more = captions.get(image["imgid"], [])
            image["sentences"] += [{"raw": caption, "tokens": caption.split()} for caption in more]
        both.write_text(json.dumps(content))
    options = {"annotations": both, "eval_annotations": args.annotations, "backbone": args.data / "vision_backbone"}
    first = train(args, "xe", "starter/3_distilled_xe.yaml", features, **options)
    return train(args, "scst", "starter/2_scst.yaml", features, "4_distilled_scst", model=first)


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
    parser.add_argument("--teacher", type=Path, help="folder of a captioner; default: it is trained")
    parser.add_argument("--starter", type=Path, default=Path("starter"), help="default: starter")
    args = parser.parse_args()
    args.all_images = True
    choose_images(args)
    args.annotations = args.annotations.rename(args.out / "flickr8k.json")  # the name that cards give the data
    features = write_features(args, "grid")
    best = distil(args, args.teacher or teach(args, features), features)
    if not args.starter.exists():
        how = {"dry-run": args.starter, "weights-dtype": "float16", "language": "en"}
        call(["push", str(best), "starter", *options_of(how)], f"{args.starter} could not be written")
        _make_smaller(args.starter / "training.png")
    data = {"dataset": args.annotations, "image-root": args.image_root, "split": "test"}
    words = ["evaluate", *options_of({"model": args.starter, **data, "update-card": args.starter}), "--speed"]
    call([*words, "--metrics", *METRICS], "the captions could not be scored")


if __name__ == "__main__":
    main()
