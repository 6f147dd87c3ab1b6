"""Speed of captioners of transformers at released sizes, with random weights, against transformers' own `generate`.

    python benchmarks/bench_any_captioner.py --threads 1

Prints one Markdown table; every ratio is of two times of this one run, taken in turns, the best of `--repeats` each: of
processor time, so that other work on the machine counts less, on a GPU of the clock's.

- *caption*: `model.generate` of prepared images, and the family's `caption` of the same, with as many tokens.
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
    Florence2Config,
    Florence2ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
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


def florence2(args: argparse.Namespace) -> Any:
    """`florence-community/Florence-2-base`, unless the sizes are others."""
    width = args.width or 768
    text: dict[str, Any] = {
        "model_type": "bart",
        "vocab_size": 51289,
        "d_model": width,
        "max_position_embeddings": 1024,
    }
    text |= {"encoder_ffn_dim": 4 * width, "decoder_ffn_dim": 4 * width}
    text |= {"max_position_embeddings": 1024, "forced_eos_token_id": None}
    text |= {f"{side}_layers": 6 if args.width is None else 1 for side in ("encoder", "decoder")}
    text |= {f"{side}_attention_heads": 12 if args.width is None else 2 for side in ("encoder", "decoder")}
    small: dict[str, Any] = {
        "embed_dim": [8, 8],
        "depths": [1, 1],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "patch_size": [7, 3],
    }
    small |= {"patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "window_size": 2}
    vision = {"projection_dim": width, **({} if args.width is None else small)}
    config: Any = Florence2Config(text_config=text, vision_config=vision, image_token_id=51288)
    return Florence2ForConditionalGeneration(config)


def smolvlm(args: argparse.Namespace) -> Any:
    """`HuggingFaceTB/SmolVLM-256M-Instruct` with one crop of an image, unless the sizes are others."""
    sizes = _sizes(args)
    text: dict[str, Any] = {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
    }
    text |= {"model_type": "llama", "vocab_size": 49280, "num_key_value_heads": 3, "max_position_embeddings": 8192}
    text |= {**sizes, **({"num_key_value_heads": 2} if sizes else {})}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision |= {**sizes, "patch_size": 16 if args.width is None else 4, "image_size": args.image_size or 512}
    config: Any = SmolVLMConfig(text_config=text, vision_config=vision, scale_factor=4, image_token_id=49190)
    model: Any = SmolVLMForConditionalGeneration(config)
    model.generation_config.update(eos_token_id=2, pad_token_id=2)
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


MODELS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "blip": blip, "git": git, "vit-gpt2": vit_gpt2, "florence-2": florence2, "smolvlm": smolvlm
}  # fmt: skip
NUM_WORDS = 16  # of a prompt


def inputs_of(model: Any, args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """Prepared images, and prompts of models that have one."""
    config: Any = model.config
    if isinstance(model, Florence2ForConditionalGeneration):
        side, stride = args.image_size or 768, 1
        for one in config.vision_config.patch_stride:
            stride *= one
        return {
            "pixel_values": torch.randn(args.images, 3, side, side),
            **_prompt(model, args, (side // stride) ** 2 + 1),
        }
    if isinstance(model, SmolVLMForConditionalGeneration):
        vision, scale = config.vision_config, config.scale_factor
        shape = args.images, 1, vision.image_size, vision.image_size
        pixels = torch.randn(*shape[:2], 3, *shape[2:])
        number = (vision.image_size // vision.patch_size // scale) ** 2
        return {"pixel_values": pixels, "pixel_attention_mask": torch.ones(shape), **_prompt(model, args, number)}
    pair = isinstance(model, VisionEncoderDecoderModel)
    side = config.encoder.image_size if pair else config.vision_config.image_size
    return {"pixel_values": torch.randn(args.images, 3, side, side)}


def _prompt(model: Any, args: argparse.Namespace, image_tokens: int) -> dict[str, torch.Tensor]:
    """Places of images and words behind them."""
    ids = torch.full((args.images, image_tokens + NUM_WORDS), model.config.image_token_id)
    ids[:, image_tokens:] = torch.arange(100, 100 + NUM_WORDS)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def forward_loss(model: Any, inputs: dict[str, torch.Tensor], sequences: torch.Tensor) -> torch.Tensor:
    """The loss of captions as transformers documents it, with the inputs of each."""
    if isinstance(model, VisionEncoderDecoderModel):
        return model(**inputs, decoder_input_ids=sequences[:, :-1], labels=sequences[:, 1:]).loss
    if isinstance(model, Florence2ForConditionalGeneration):
        return model(**inputs, labels=sequences[:, 1:].contiguous()).loss
    labels, inputs = sequences.clone(), {**inputs, "input_ids": sequences}
    if "attention_mask" in inputs:  # of a prompt, which is not counted
        labels[:, : inputs["attention_mask"].shape[1]] = -100
        inputs["attention_mask"] = torch.ones_like(sequences)
    return model(**inputs, labels=labels).loss


def runs_of(
    model: Any, inputs: dict[str, torch.Tensor], args: argparse.Namespace
) -> dict[str, tuple[Callable, Callable]]:
    """The calls that are timed: by name, transformers' way and ours."""
    family = family_of(model)
    length = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens}
    sampled = {**length, "do_sample": True, "num_return_sequences": args.candidates}

    def theirs() -> None:
        with torch.no_grad():
            sequences = model.generate(**inputs, **sampled)
        every = {name: value.repeat_interleave(args.candidates, dim=0) for name, value in inputs.items()}
        forward_loss(model, every, sequences).backward()
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
            lambda options=options: model.generate(**inputs, **options),
            lambda options=options: family.caption(model, inputs, **options),
        )
    return {**runs, f"scst, {args.candidates} candidates": (theirs, ours)}


def now(device: torch.device) -> float:
    """Seconds, of the processor or, when all work is done, of the clock."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(repeats: int, runs: tuple[Callable, Callable], device: torch.device) -> list[float]:
    """Seconds of the fastest of `repeats` calls of each, after one that does not count."""
    best = [float("inf"), float("inf")]
    for repeat in range(repeats + 1):
        for place, run in enumerate(runs):
            start = now(device)
            run()
            if repeat:
                best[place] = min(best[place], now(device) - start)
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
        inputs = {key: value.to(device) for key, value in inputs_of(model, args).items()}
        for part, runs in runs_of(model, inputs, args).items():
            theirs, ours = in_turns(args.repeats, runs, device)
            print(f"| {name} | {part} | {theirs:.3f} | {ours:.3f} | {ours / theirs:.3f} |", flush=True)


if __name__ == "__main__":
    main()
