"""Train SATIC with cross-entropy, on pictures, on cached features or on region features: the teacher, then the student.

    accelerate launch examples/train_satic.py --config examples/recipes/satic/1_teacher.yaml
    hf-captioners caption --model runs/satic_teacher --annotations dataset.json --split train --features features \\
        --num-beams 5 --num-return-sequences 5 > teacher_captions.jsonl
    accelerate launch examples/train_satic.py --config examples/recipes/satic/2_student.yaml

The same as `hf-captioners train xe` for recipes of `model_type: satic`. Every option of the recipe, a YAML
file, can be given on the command line too, where it wins; `--help` lists them.
"""

from __future__ import annotations

from hf_captioners.cli.train import train_example


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    train_example("xe", argv, model_type="satic")


if __name__ == "__main__":
    main()
