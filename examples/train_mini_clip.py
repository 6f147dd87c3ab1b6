"""Train a small CLIP on a few thousand captioned pictures, to score and to reward captions without any download.

    accelerate launch examples/train_mini_clip.py --config examples/recipes/mini_clip/flickr8k_mini.yaml \
        --annotations dataset_karpathy.json --image_root images --backbone vision_backbone --output_dir runs/mini_clip

The result is a plain `VisionTextDualEncoderModel` in a folder with its tokenizer and its image processor:
`ClipScorer("runs/mini_clip")` opens it. Recall of the test pictures and of their captions goes to stdout as JSON and to
`retrieval.json` in the folder.

Pictures: a pretrained MobileNetV2, of which the last layers may learn. What comes before them never changes, so it runs
once, on each picture and on some random crops of it, and its feature maps are all that training looks at.

Captions: a small CLIP text tower from scratch, with the words of the training captions. A batch has one caption of each
of its pictures, so that none of the others is right too. The loss is that of Radford et al., 2021, "Learning
Transferable Visual Models From Natural Language Supervision", section 2.3.

Every option of the YAML file can be given on the command line too, where it wins. `--help` lists them. The options that
are not of `MiniClipArguments` are those of transformers' `TrainingArguments`.
"""

from __future__ import annotations

from hf_captioners.cli.training.mini_clip import train_mini_clip


def main(argv: list[str] | None = None) -> None:
    """Run the training that the command line describes."""
    train_mini_clip(argv)


if __name__ == "__main__":
    main()
