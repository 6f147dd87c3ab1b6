"""Speed of captioners of transformers at released sizes, with random weights, against transformers' own `generate`.

    python benchmarks/bench_any_captioner.py --threads 1

Prints one Markdown table; every ratio is of two times of this one run, taken in turns, the best of `--repeats` each.

- *caption*: `model.generate(pixel_values)`, and the family's `caption` of the same images, with as many tokens.
- *scst*: the candidates of each image and one pass with gradient over them. As transformers documents it, `generate`
  with `num_return_sequences`, and the model's forward pass with the pixels repeated for every candidate; here the
  frozen vision tower runs once per image.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.utils import logging

from hf_captioners.families import family_of


def blip(args: argparse.Namespace) -> Any:
    """`Salesforce/blip-image-captioning-base`, unless the sizes are others."""
    config: Any = BlipConfig(
        text_config=_sizes(args), vision_config={**_sizes(args), "image_size": args.image_size or 384}
    )
    config.text_config.encoder_hidden_size = config.vision_config.hidden_size
    return BlipForConditionalGeneration(config)


def git(args: argparse.Namespace) -> Any:
    """`microsoft/git-base-coco`, unless the sizes are others."""
    return GitForCausalLM(
        GitConfig(**_sizes(args), vision_config={**_sizes(args), "image_size": args.image_size or 224})
    )


def vit_gpt2(args: argparse.Namespace) -> Any:
    """`nlpconnect/vit-gpt2-image-captioning`, unless the sizes are others."""
    sizes = _sizes(args)
    names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
    text = {names[name]: value for name, value in sizes.items() if name in names}
    decoder = GPT2Config(add_cross_attention=True, **text)
    encoder = ViTConfig(**sizes, image_size=args.image_size or 224)
    model: Any = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    end = model.config.decoder.eos_token_id
    model.generation_config.update(decoder_start_token_id=end, eos_token_id=end, pad_token_id=end, bos_token_id=end)
    return model


def _sizes(args: argparse.Namespace) -> dict[str, Any]:
    if args.width is None:
        return {}
    return {
        "hidden_size": args.width,
        "intermediate_size": args.width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }


MODELS: dict[str, Callable[[argparse.Namespace], Any]] = {"blip": blip, "git": git, "vit-gpt2": vit_gpt2}


def forward_loss(model: Any, pixels: torch.Tensor, sequences: torch.Tensor) -> torch.Tensor:
    """The loss of captions as transformers documents it, with the pixels of each."""
    if isinstance(model, VisionEncoderDecoderModel):
        return model(pixel_values=pixels, decoder_input_ids=sequences[:, :-1], labels=sequences[:, 1:]).loss
    return model(pixel_values=pixels, input_ids=sequences, labels=sequences).loss


def runs_of(model: Any, pixels: torch.Tensor, args: argparse.Namespace) -> dict[str, tuple[Callable, Callable]]:
    """The calls that are timed: by name, transformers' way and ours."""
    family, inputs = family_of(model), {"pixel_values": pixels}
    length = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens}
    sampled = {**length, "do_sample": True, "num_return_sequences": args.candidates}

    def theirs() -> None:
        with torch.no_grad():
            sequences = model.generate(pixel_values=pixels, **sampled)
        forward_loss(model, pixels.repeat_interleave(args.candidates, dim=0), sequences).backward()
        model.zero_grad()

    def ours() -> None:
        with torch.no_grad():
            seen = family.run_backbone(model, inputs)
            sequences = family.generate(model, family.encode(model, seen), **sampled)
        family.log_probs(model, sequences, family.encode(model, seen))[0].sum().backward()
        model.zero_grad()

    runs: dict[str, tuple[Callable, Callable]] = {}
    for beams in (1, args.num_beams):
        options = {**length, "num_beams": beams, "do_sample": False}
        runs[f"caption, {beams} beams" if beams > 1 else "caption, greedy"] = (
            lambda options=options: model.generate(pixel_values=pixels, **options),
            lambda options=options: family.caption(model, inputs, **options),
        )
    return {**runs, f"scst, {args.candidates} candidates": (theirs, ours)}


def in_turns(repeats: int, runs: tuple[Callable, Callable], device: torch.device) -> list[float]:
    """Seconds of the fastest of `repeats` calls of each, after one that does not count."""
    best = [float("inf"), float("inf")]
    for repeat in range(repeats + 1):
        for place, run in enumerate(runs):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat:
                best[place] = min(best[place], time.perf_counter() - start)
    return best


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--candidates", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, help="of small models, in the place of the released ones")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    device = torch.device(args.device)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}, {args.device}")
    print("| model | part | transformers, s | here, s | ratio |\n|---|---|---|---|---|")
    for name in args.only:
        torch.manual_seed(0)
        model = MODELS[name](args).eval().to(device)
        family_of(model).freeze_backbone(model, "none")
        size = model.config.encoder.image_size if name == "vit-gpt2" else model.config.vision_config.image_size
        pixels = torch.randn(args.images, 3, size, size, device=device)
        for part, runs in runs_of(model, pixels, args).items():
            theirs, ours = in_turns(args.repeats, runs, device)
            print(f"| {name} | {part} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
