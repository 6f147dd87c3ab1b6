"""Train CLIP-GPT2 with cross-entropy, on pictures or on cached image embeddings.

    accelerate launch examples/train_clip_gpt2.py --config examples/recipes/clip_gpt2/1_frozen_clip.yaml
    accelerate launch examples/train_clip_gpt2.py --config examples/recipes/clip_gpt2/2_fine_tuned.yaml

The same as `hf-captioners train xe` for recipes of `model_type: clip_gpt2`. Every option of the recipe, a YAML
file, can be given on the command line too, where it wins; `--help` lists them.
"""

from __future__ import annotations

from hf_captioners.cli.train import train_example


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    train_example("xe", argv, model_type="clip_gpt2")


if __name__ == "__main__":
    main()
