"""Speed of SATIC at the released size, with random weights: greedy decoding by group size, and where the time goes.

    python benchmarks/bench_satic.py --threads 1

Prints two Markdown tables. Times are medians of `--repeats` rounds in which all cases take turns, so that a ratio is of
two times of one round's machine. The encoder is not counted.

In the first one all captions are `--tokens` words long. "Layers" and "generator" are the two parts of the decoder,
"memory" is the projection of the pictures' keys and values, "rest" is what `generate` does besides. The floor is the
time of the decoder's matrix products alone, were each call as fast as this machine's best product or, with few rows, as
its reading of the weights. "Again" runs the whole caption so far through the decoder for every group, without any
bookkeeping and with as many calls; "use_cache=False" is `generate` without a cache, which does so for every word.

In the second one captions end at different places, as real ones do. "All stay" keeps those that have ended in the
batch.
"""

from __future__ import annotations

import argparse
import platform
import random
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import torch

from hf_captioners import SaticConfig, SaticForImageCaptioning, optimize_for_inference

WORDS_OF_A_CAPTION = (9.4, 2.0)  # mean of the authors' captions of the COCO test server, and about their deviation
BATCHES = 4


class Clock:
    """Seconds of whole runs, and of watched parts of the model in them."""

    def __init__(self, device: torch.device, cpu_time: bool) -> None:
        self.device = device
        self.read = time.process_time if cpu_time else time.perf_counter
        self.inside: dict[str, float] = {}
        self.calls = 0

    def now(self) -> float:
        """The time after everything so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.read()

    def watch(self, name: str, first: torch.nn.Module, last: torch.nn.Module) -> None:
        """Add up the time from the start of `first` to the end of `last`; both run once in a call."""
        started = 0.0

        def start(*unused: Any) -> None:
            nonlocal started
            started = self.now()

        def stop(*unused: Any) -> None:
            self.inside[name] = self.inside.get(name, 0.0) + self.now() - started
            self.calls += 1

        first.register_forward_pre_hook(start)
        last.register_forward_hook(stop)

    def run(self, call: Callable[[], Any]) -> dict[str, float]:
        """Seconds of a run: `whole`, and of each watched part; and the number of `calls` of all parts together."""
        self.inside, self.calls = {}, 0
        start = self.now()
        call()
        return {"whole": self.now() - start, "calls": self.calls, **self.inside}


def medians(rounds: int, cases: dict[Any, Callable[[], dict[str, float]]]) -> dict[Any, dict[str, float]]:
    """Medians of the cases' times, by key, over rounds in which they take turns; a first round does not count."""
    results: dict[Any, list[dict[str, float]]] = {key: [] for key in cases}
    for count in range(rounds + 1):
        for key, case in cases.items():
            result = case()
            if count:
                results[key].append(result)
    return {
        key: {name: median(times[name] for times in case_times) for name in case_times[0]}
        for key, case_times in results.items()
    }


def prefix_again(model: SaticForImageCaptioning, encoded: Any, words: int) -> None:
    """Greedy decoding without a cache, once through the decoder for every group."""
    size = model.config.group_size
    ids = torch.zeros(encoded.last_hidden_state.shape[0], 1, dtype=torch.long, device=model.device)
    while ids.shape[1] <= words:
        unseen = ids.new_zeros(len(ids), size - 1)  # the other places of the group do not read it
        logits = model(
            encoder_outputs=encoded, decoder_input_ids=torch.cat((ids, unseen), 1), logits_to_keep=size
        ).logits
        ids = torch.cat((ids, logits.argmax(-1)), dim=1)


class Ends:
    """A hook of the generator that makes caption `i` end with its word `ends[i]`, counted from 1."""

    def __init__(self, ends: list[int], size: int) -> None:
        self.ends, self.size = ends, size
        self.rows, self.done = list(range(len(ends))), 0

    def __call__(self, module: torch.nn.Module, inputs: Any, scores: torch.Tensor) -> None:
        if len(scores) < len(self.rows):  # finished captions are no longer in the batch
            self.rows = [row for row in self.rows if self.ends[row] > self.done]
        for place, row in enumerate(self.rows):
            slot = self.ends[row] - 1 - self.done
            if 0 <= slot < self.size:
                scores[place, slot, 0] += 1e4
        self.done += self.size


class Floor:
    """The least time of the decoder's matrix products, from the best that is measured here."""

    def __init__(self, model: SaticForImageCaptioning, clock: Clock) -> None:
        layers = model.model.decoder.layers
        linears = [module for layer in layers for module in layer.modules() if isinstance(module, torch.nn.Linear)]
        projections = [linear for layer in layers for linear in layer.src_attn.linears[1:3]]  # of the memory
        count = [sum(linear.weight.numel() for linear in group) for group in (linears, projections)]
        self.weights = count[0] - count[1] + model.model.generator.proj.weight.numel()
        square = torch.rand(2048, 2048, dtype=model.dtype, device=model.device)
        large = torch.rand(16384, 2048, dtype=model.dtype, device=model.device)  # larger than any cache
        column = large[0].clone()
        times = medians(
            5,
            {"product": lambda: clock.run(lambda: square @ square), "read": lambda: clock.run(lambda: large @ column)},
        )
        self.products_per_second = 2048**3 / times["product"]["whole"]
        self.weights_per_second = large.numel() / times["read"]["whole"]

    def seconds(self, calls: float, rows: int) -> float:
        """Seconds of a number of calls with `rows` rows each."""
        return calls * self.weights * max(rows / self.products_per_second, 1 / self.weights_per_second)


def measure(args: argparse.Namespace, model: SaticForImageCaptioning, clock: Clock) -> Iterator[list[Any]]:
    """The rows of the first table."""
    floor = Floor(model, clock)
    if args.fast:
        optimize_for_inference(model, "exact")
    for batch in args.batch_sizes:
        encoded = model.encode_images(image_features=torch.rand(batch, args.regions, 2048, device=model.device))

        def case(size: int, run: Callable[[], Any]) -> Callable[[], dict[str, float]]:
            def timed() -> dict[str, float]:
                model.config.group_size = size
                return clock.run(run)

            return timed

        def generate(use_cache: bool, encoded: Any = encoded) -> Any:
            return model.generate(encoder_outputs=encoded, max_new_tokens=args.tokens, use_cache=use_cache)

        runs = {
            "cached": lambda: generate(True),
            "memory": lambda encoded=encoded: model.start_cache(encoded),
            "again": lambda encoded=encoded: prefix_again(model, encoded, args.tokens),
            "no cache": lambda: generate(False),
        }
        cases = {(size, name): case(size, run) for size in args.group_sizes for name, run in runs.items()}
        times = medians(args.repeats, cases)
        decoder = {
            size: times[size, "cached"]["layers"] + times[size, "cached"]["generator"] for size in args.group_sizes
        }
        for size in args.group_sizes:
            cached, memory = times[size, "cached"], times[size, "memory"]["whole"]
            whole, calls = cached["whole"], cached["calls"] / 2
            rest = whole - decoder[size] - memory
            shares = [f"{part / whole:.0%}" for part in (cached["layers"], cached["generator"], memory, rest)]
            row = [
                batch,
                size,
                round(calls),
                f"{whole / batch * 1e3:.1f}",
                f"{batch * args.tokens / whole:.0f}",
                *shares,
            ]
            row += [f"{decoder[size] * 1e3:.0f}", f"{floor.seconds(calls, batch * size) * 1e3:.0f}"]
            row += [f"{decoder[args.group_sizes[0]] / decoder[size]:.2f}"]
            yield row + [f"{times[size, name]['whole'] / whole:.2f}" for name in ("again", "no cache")]


def measure_ends(args: argparse.Namespace, model: SaticForImageCaptioning, clock: Clock) -> Iterator[list[Any]]:
    """The rows of the second table; a time is that of `BATCHES` batches of other lengths."""
    draw = random.Random(0)
    for batch in (size for size in args.batch_sizes if size > 1):
        encoded = model.encode_images(image_features=torch.rand(batch, args.regions, 2048, device=model.device))
        words = [[round(draw.gauss(*WORDS_OF_A_CAPTION)) for _ in range(batch)] for _ in range(BATCHES)]
        ends = [[min(max(length, 1) + 1, args.tokens) for length in lengths] for lengths in words]

        def case(size: int, stay: bool, encoded: Any = encoded, ends: Any = ends) -> Callable[[], dict[str, float]]:
            # generate keeps finished captions in the batch where it returns a dict
            options = {"max_new_tokens": args.tokens, "return_dict_in_generate": stay}

            def run() -> None:
                model.config.group_size = size
                for batch_ends in ends:
                    hook = model.model.generator.register_forward_hook(Ends(batch_ends, size))
                    model.generate(encoder_outputs=encoded, **options)
                    hook.remove()

            return lambda: clock.run(run)

        cases = {(size, stay): case(size, stay) for size in args.group_sizes for stay in (True, False)}
        times = medians(args.repeats, cases)
        for size in args.group_sizes:
            stay, leave = (times[size, all_stay]["whole"] / batch / BATCHES * 1e3 for all_stay in (True, False))
            calls = times[size, False]["calls"] / 2 / BATCHES
            yield [batch, size, f"{calls:.1f}", f"{stay:.1f}", f"{leave:.1f}", f"{stay / leave:.2f}"]


def show(columns: list[str], rows: Iterator[list[Any]]) -> None:
    """Print a table as it is measured."""
    for row in (columns, ["---"] * len(columns)):
        print(f"| {' | '.join(row)} |")
    for cells in rows:
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: 1)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"), help="precision")
    parser.add_argument(
        "--batch-sizes", type=int, nargs="+", default=[1, 10], help="pictures at a time (default: 1 10)"
    )
    parser.add_argument("--group-sizes", type=int, nargs="+", default=[1, 2, 4, 6], help="words of a step")
    parser.add_argument("--regions", type=int, default=50, help="regions of a picture (default: 50)")
    parser.add_argument("--tokens", type=int, default=20, help="words to write (default: 20)")
    parser.add_argument("--repeats", type=int, default=3, help="rounds whose median counts (default: 3)")
    parser.add_argument("--fast", action="store_true", help="with packed linear layers, as `caption --fast`")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, on a machine that is busy")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = SaticForImageCaptioning(SaticConfig()).eval().to(device, getattr(torch, args.dtype))
    model.model.generator.proj.bias.data[0] = -100.0  # the end token is never written
    clock = Clock(device, args.cpu_time)
    clock.watch("layers", model.model.tgt_embed[0], model.model.decoder.norm)
    clock.watch("generator", model.model.generator, model.model.generator)
    where = f"{args.device}, {args.dtype}, {args.threads} thread(s), {platform.machine()}"
    print(f"torch {torch.__version__}, {where}, {args.tokens} words, {args.regions} regions\n")
    columns = ["batch", "K", "decoder calls", "ms per caption", "words/s", "layers", "generator", "memory", "rest"]
    ratio = f"K={args.group_sizes[0]} / K"
    columns += ["decoder, ms", "floor, ms", f"decoder, {ratio}", "again / cached", "use_cache=False / cached"]
    with torch.inference_mode():
        show(columns, measure(args, model, clock))
        print()
        columns = ["batch", "K", "decoder calls", "all stay, ms per caption", "ms per caption", "all stay / not"]
        show(columns, measure_ends(args, model, clock))


if __name__ == "__main__":
    main()
