"""Train a stage of SCD-Net with cross-entropy, on pictures, on cached features or on region features.

    accelerate launch examples/train_scdnet.py --config examples/recipes/scdnet/1_xe.yaml
    make -f examples/recipes/scdnet/Makefile DIR=runs/scdnet    # all nine steps of the recipe, or what is left of them

The same as `hf-captioners train xe` for recipes of `model_type: scdnet`. Every option of the recipe, a YAML
file, can be given on the command line too, where it wins; `--help` lists them. Self-critical training is
`examples/train_scst.py`.
"""

from __future__ import annotations

from hf_captioners.cli.train import train_example


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    train_example("xe", argv, model_type="scdnet")


if __name__ == "__main__":
    main()
