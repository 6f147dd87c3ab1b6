"""A caption by each captioner of this package, and by others of similar use, beside one by BLIP-base in the same run.

    OMP_NUM_THREADS=1 python benchmarks/bench_rivals.py

Released sizes, random weights, one picture (of SATIC 36 regions). Of this package's captioners also as `--fast` and
`--fast int8` make them. Every caption takes its turn with one of BLIP-base with beams; times are processor time, the
best of `--repeats`, and a ratio is BLIP-base's time divided by that of the caption.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch
import transformers
from bench_any_captioner import MODELS, inputs_of
from bench_fast import RELEASED, WAYS, in_turns, picture_of, released
from transformers.utils import logging

from hf_captioners import optimize_for_inference
from hf_captioners.families import family_of

REFERENCE = "blip"
OWN_WAYS = ("float32", "exact", "int8")


def calls_of(model: Any, inputs: dict[str, Any], args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Captions of a picture: greedy and with beams."""
    length = {"min_new_tokens": args.tokens, "max_new_tokens": args.tokens, "do_sample": False}
    family = family_of(model)

    def call(beams: int) -> Callable[[], Any]:
        return torch.inference_mode()(lambda: family.caption(model, inputs, num_beams=beams, **length))

    return {"greedy": call(1), "beams": call(args.num_beams)}


def others(args: argparse.Namespace) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """The captioners of transformers: name, way, model and inputs."""
    for name in args.others:
        torch.manual_seed(0)
        model = MODELS[name](args).eval()
        yield name, "float32", model, inputs_of(model, args)


def ours(args: argparse.Namespace) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """The captioners of this package in every way."""
    for name in args.systems:
        for way in OWN_WAYS:
            model = released(name, args.sizes)
            yield name, way, optimize_for_inference(model, **WAYS[way]), picture_of(model)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--others", nargs="*", choices=MODELS, default=["git", "vit-gpt2", "florence-2"])
    parser.add_argument("--systems", nargs="*", choices=RELEASED, default=list(RELEASED))
    parser.add_argument("--tokens", type=int, default=12)
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--sizes", type=json.loads, default={}, help="JSON, of small captioners of this package")
    parser.add_argument("--width", type=int, help="of small other models, in the place of the released ones")
    parser.add_argument("--image-size", type=int, help="of these")
    parser.set_defaults(images=1)
    args = parser.parse_args()
    logging.set_verbosity_error()
    torch.manual_seed(0)
    blip = MODELS[REFERENCE](args).eval()
    reference = calls_of(blip, inputs_of(blip, args), args)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {platform.machine()}")
    print(f"{torch.get_num_threads()} thread(s), {args.num_beams} beams, {args.tokens} words")
    print(
        "| captioner | way | greedy, ms | beams, ms | greedy: BLIP / it | beams: BLIP / it |\n|---|---|---|---|---|---|"
    )
    for place, (name, way, model, inputs) in enumerate(itertools.chain(others(args), ours(args))):
        calls = calls_of(model, inputs, args)
        runs = {**{f"BLIP, {part}": call for part, call in reference.items()}, **calls}
        best = in_turns(runs, args.repeats, lambda call: call())
        if place == 0:
            cells = [f"{best[f'BLIP, {part}']:.0f}" for part in calls]
            print("|", " | ".join([REFERENCE, "float32", *cells, "1.00", "1.00"]), "|")
        cells = [f"{best[part]:.0f}" for part in calls]
        cells += [f"{best[f'BLIP, {part}'] / best[part]:.2f}" for part in calls]
        print("|", " | ".join([name, way, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
