"""Raise the rewards of any captioner by self-critical training, on pictures or on cached features.

    accelerate launch examples/train_scst.py --config examples/recipes/expansionnet_v2/5_scst_features.yaml
    accelerate launch examples/train_scst.py --model runs/mine --data_dir my_images --output_dir runs/mine_scst \\
        --rewards cider_d repetition --reward_weights 1 0.5

The same as `hf-captioners train scst`. Every option of the recipe, a YAML file, can be given on the command line too,
where it wins; `--help` lists them.
"""

from __future__ import annotations

from hf_captioners.cli.train import train_example


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    train_example("scst", argv)


if __name__ == "__main__":
    main()
