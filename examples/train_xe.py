"""Teach any captioner captioned pictures by cross-entropy: one of transformers (BLIP, GIT, ViT-GPT2) or one of ours.

    accelerate launch examples/train_xe.py --model Salesforce/blip-image-captioning-base --data_dir my_images \\
        --output_dir runs/blip --learning_rate 1e-5
    accelerate launch examples/train_xe.py --model microsoft/git-base-coco --data_dir my_images --output_dir runs/git \\
        --lora_rank 8 --lora_target_modules query value

The same as `hf-captioners train xe`. Every option can stand in a recipe, a YAML file (`--config`); `--help` lists them.
"""

from __future__ import annotations

from hf_captioners.cli.train import train_example


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    train_example("xe", argv)


if __name__ == "__main__":
    main()
