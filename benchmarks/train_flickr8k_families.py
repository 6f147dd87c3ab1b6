"""Train small captioners of transformers on real pictures, from scratch and then with rewards, and report the scores.

    python benchmarks/train_flickr8k_families.py --data ../shared/data --out runs/families
    python benchmarks/train_flickr8k_families.py --data ../shared/data --out runs/families --systems blip git

Each captioner (a `VisionEncoderDecoderModel` of a ViT and a GPT-2, a BLIP, a GIT; pictures of 96 x 96 pixels in patches
of 16) is made with random weights and a tokenizer of the training captions, and saved as transformers saves it. Then
`examples/train_xe.py` trains it for about 10 minutes of one processor core, and `examples/train_scst.py` for 5 more on
CIDEr-D, by the recipes of `examples/recipes/families/`. Each step is skipped when its result is there. `families.md` in
the output folder has the scores of the test pictures before and after, with the captions of the first of them.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from flickr8k import NUM_SHOWN, ROOT, Run, add_arguments, caption_test_images, choose_images, options_of
from train_flickr8k_rewards import interval
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPImageProcessorPil,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    PreTrainedTokenizerBase,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

from hf_captioners.data.captions.karpathy import load_karpathy
from hf_captioners.metrics import CaptionMetrics

WORDS, LONGEST = 3000, 40  # of the tokenizer; tokens of a caption
IMAGE_SIZE, PATCH_SIZE = 96, 16
SIZES: dict[str, Any] = {
    "hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 4, "initializer_range": 0.02
}  # fmt: skip
VISION: dict[str, Any] = {**SIZES, "num_hidden_layers": 4, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}
TEXT: dict[str, Any] = {**SIZES, "num_hidden_layers": 2, "max_position_embeddings": LONGEST}
SECONDS = "processor_seconds.txt"
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
METRICS = {"cider_d": "CIDEr-D x 100", "bleu_4": "BLEU-4 x 100", "meteor": "METEOR x 100", "mean_length": "words"}


def new_tokenizer(args: argparse.Namespace) -> PreTrainedTokenizerBase:
    """Word pieces of the training captions, as BERT's tokenizer has them."""
    rows = load_karpathy(args.annotations, split=("train", "restval"))
    captions = [caption for row in rows for caption in row["captions"]]
    tokenizer = BertTokenizer().train_new_from_iterator(captions, WORDS, show_progress=False)
    tokenizer.model_max_length = LONGEST
    return tokenizer


def ids_of(tokenizer: PreTrainedTokenizerBase, start: int | None) -> dict[str, Any]:
    """Ids of start, end and padding, as configurations name them."""
    return {"bos_token_id": start, "eos_token_id": tokenizer.sep_token_id, "pad_token_id": tokenizer.pad_token_id}


def new_blip(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, list[Any]]:
    """A BLIP and its processor; its captions begin with `[DEC]`."""
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    ids = ids_of(tokenizer, tokenizer.bos_token_id)
    text = {**TEXT, **ids, "sep_token_id": tokenizer.sep_token_id, "vocab_size": len(tokenizer)}
    text["encoder_hidden_size"] = VISION["hidden_size"]
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=VISION))
    return model, [BlipProcessor(BlipImageProcessorPil(size=SQUARE), tokenizer)]


def new_git(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, list[Any]]:
    """A GIT and its processor."""
    ids = ids_of(tokenizer, tokenizer.cls_token_id)
    config = GitConfig(vision_config=VISION, vocab_size=len(tokenizer), **TEXT, **ids)
    image_processor = CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size=SQUARE)
    return GitForCausalLM(config), [GitProcessor(image_processor, tokenizer)]


def new_vit_gpt2(tokenizer: PreTrainedTokenizerBase) -> tuple[Any, list[Any]]:
    """A ViT with a GPT-2, and an image processor and a tokenizer side by side."""
    ids = ids_of(tokenizer, tokenizer.cls_token_id)
    decoder = GPT2Config(
        vocab_size=len(tokenizer), n_positions=LONGEST, n_embd=TEXT["hidden_size"], n_inner=TEXT["intermediate_size"],
        n_layer=TEXT["num_hidden_layers"], n_head=TEXT["num_attention_heads"], **ids,
    )  # fmt: skip
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**VISION), decoder)
    config.decoder_start_token_id, config.pad_token_id = tokenizer.cls_token_id, tokenizer.pad_token_id
    model = VisionEncoderDecoderModel(config)
    model.generation_config.update(decoder_start_token_id=tokenizer.cls_token_id, **ids)
    return model, [ViTImageProcessorPil(size=SQUARE), tokenizer]


class System(NamedTuple):
    """A captioner of the table.

    Args:
        new (`Callable`): makes it and what prepares its inputs.
        xe_steps, scst_steps (`int`): optimizer steps of 10 and of 5 minutes on one core.
    """

    new: Callable[[PreTrainedTokenizerBase], tuple[Any, list[Any]]]
    xe_steps: int
    scst_steps: int


SYSTEMS = {
    "vit_gpt2": System(new_vit_gpt2, 860, 210),
    "blip": System(new_blip, 700, 250),
    "git": System(new_git, 620, 165),
}


class FamilyRun(Run):
    """A captioner that is trained by an example script.

    Args:
        args (`Namespace`): of the command line.
        name (`str`): of the captioner, one of `SYSTEMS`.
        method (`str`): `"xe"` or `"scst"`.
        start (`Path`): folder of the captioner that the training begins with.
    """

    def __init__(self, args: argparse.Namespace, name: str, method: str, start: Path) -> None:
        self.method, self.start, system = method, start, SYSTEMS[name]
        self.steps = args.max_steps or (system.xe_steps if method == "xe" else system.scst_steps)
        recipe = "families/flickr8k_mini.yaml" if method == "xe" else "families/flickr8k_mini_scst.yaml"
        super().__init__(args, f"{name}_{method}", recipe)

    def train(self) -> None:
        """See [`Run`]."""
        if self.is_trained:
            return
        options = {
            "config": self.recipe,
            "model": self.start,
            "annotations": self.args.annotations,
            "image_root": self.args.image_root,
            "max_steps": self.steps,
            "output_dir": self.captioner,
        }
        command = [sys.executable, str(ROOT / f"examples/train_{self.method}.py"), *options_of(options)]
        before = processor_seconds()
        subprocess.run(command, check=True)
        (self.captioner / SECONDS).write_text(f"{processor_seconds() - before:.1f}\n")

    @property
    def minutes(self) -> str:
        """Of one processor core, if they were counted, for the clock's depend on what else the machine does."""
        counted = self.captioner / SECONDS
        return f"{float(counted.read_text()) / 60:.1f}" if counted.exists() else "not counted"


def processor_seconds() -> float:
    """Those of all programs that were run from here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def new_captioner(args: argparse.Namespace, name: str) -> Path:
    """The folder of a captioner with random weights, as transformers saves it."""
    folder = args.out / "new" / name
    if not (folder / "config.json").exists():
        transformers.set_seed(0)
        model, preparing = SYSTEMS[name].new(new_tokenizer(args))
        for part in preparing:
            part.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def describe(runs: Iterable[tuple[FamilyRun, FamilyRun]]) -> list[str]:
    """Scores of greedy captions before and after the training with rewards, and the first captions, as Markdown."""
    metrics = CaptionMetrics(["bleu", "meteor", "cider_d", "diversity"])
    head = [
        "captioner",
        "parameters",
        "training",
        "steps",
        "minutes of a core",
        *METRICS.values(),
        "different captions %",
    ]
    table, gains = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"], []
    shown, evaluation = [], None
    for pair in runs:
        scores, captions = [], []
        for run in pair:
            rows = caption_test_images(run)
            captions.append([row["greedy"] for row in rows])
            evaluation = metrics(captions[-1], [row["references"] for row in rows])
            numbers, (model, _) = evaluation.corpus, run.load()
            cells = [f"{numbers[key] * (1 if key == 'mean_length' else 100):.1f}" for key in METRICS]
            cells = [f"{model.num_parameters():,}", run.method.upper(), f"{run.steps}", run.minutes, *cells]
            different = len(set(captions[-1])) / len(rows)
            table.append(f"| {run.name.rpartition('_')[0]} | {' | '.join(cells)} | {different * 100:.0f} |")
            scores.append(np.asarray(evaluation.per_image["cider_d"]))
        gain = (scores[1] - scores[0]) * 100
        low, high = interval(gain)
        name = pair[0].name.rpartition("_")[0]
        gains.append(f"| {name} | {gain.mean():+.1f} ({low:+.1f} to {high:+.1f}) |")
        shown += [f"### {name}", "", "| picture | XE | XE, then SCST | a reference |", "|---|---|---|---|"]
        for row, *both in list(zip(rows, *captions, strict=True))[:NUM_SHOWN]:
            shown.append(f"| {row['picture']} | {' | '.join(both)} | {row['references'][0].strip()} |")
        shown.append("")
    signature = [] if evaluation is None else ["", f"Signature: `{evaluation.signature_text}`"]
    difference = ["Difference of CIDEr-D x 100 by SCST, with a 95 % interval over pictures:", ""]
    difference += ["| captioner | difference |", "|---|---|", *gains]
    return [*table, *signature, "", *difference, "", *shown]


def main() -> None:
    """Make, train and score the chosen captioners."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), help="what to train")
    parser.add_argument("--max-steps", type=int, help="of each training, instead of what 10 and 5 minutes have")
    args = parser.parse_args()
    choose_images(args)
    runs = []
    for name in args.systems:
        taught = FamilyRun(args, name, "xe", new_captioner(args, name))
        runs.append((taught, FamilyRun(args, name, "scst", taught.captioner)))
    machine = f"{torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}, greedy decoding."
    text = "\n".join([machine, "", *describe(runs)])
    (args.out / "families.md").write_text(text)
    print(text)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
