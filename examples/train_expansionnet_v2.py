"""Train ExpansionNet v2 with cross-entropy, on pictures or on cached features.

    accelerate launch examples/train_expansionnet_v2.py --config examples/recipes/expansionnet_v2/own_pictures.yaml

The same as `hf-captioners train xe` for recipes of `model_type: expansionnet_v2`. Every option of the recipe, a YAML
file, can be given on the command line too, where it wins; `--help` lists them.
"""

from __future__ import annotations

from hf_captioners.cli.train import train_example


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    train_example("xe", argv, model_type="expansionnet_v2")


if __name__ == "__main__":
    main()
