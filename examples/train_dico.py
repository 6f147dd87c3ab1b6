"""Train the DiCO captioner, on pictures or on cached features: with cross-entropy, then with a CLIP model's judgement.

    accelerate launch --num_processes 2 examples/train_dico.py xe --config examples/recipes/dico/1_xe.yaml
    accelerate launch --num_processes 2 examples/train_dico.py dico --config examples/recipes/dico/2_dico.yaml

The first argument is the phase, a method of `hf-captioners train`; `dico` takes any captioner as `--model`. Every
option of the recipe, a YAML file, can be given on the command line too, where it wins; `train_dico.py xe --help` lists
them.
"""

from __future__ import annotations

import argparse

from hf_captioners.cli.train import add_methods, train_example


def main(argv: list[str] | None = None) -> None:
    """Run the phase that the command line names."""
    parser = argparse.ArgumentParser(description="Train the DiCO captioner, or any captioner by DiCO.")
    add_methods(parser, ("xe", "dico"))
    phase = parser.parse_args(argv)
    train_example(phase.method, phase.words, model_type="dico" if phase.method == "xe" else None)


if __name__ == "__main__":
    main()
