"""Speed of SATIC at the released size, with random weights: greedy decoding by group size, with and without the cache.

    python benchmarks/bench_satic.py --threads 1

Prints one Markdown table; every ratio is of two times of this one run. Times are the best of `--repeats`. All captions
are `--tokens` words long. "Rest" is what `generate` does besides the decoder and the projection of the memory. "Again"
runs the whole caption so far through the decoder for every group, the projection of the memory included, without any
bookkeeping and with as many calls.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from hf_captioners import SaticConfig, SaticForImageCaptioning


class Clock:
    """Seconds of whole runs, and those that were spent inside of some modules during each of them."""

    def __init__(self, device: torch.device, cpu_time: bool) -> None:
        self.device = device
        self.read = time.process_time if cpu_time else time.perf_counter
        self.inside = 0.0
        self.calls = 0

    def now(self) -> float:
        """The time after everything so far is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return self.read()

    @contextmanager
    def watch(self, first: torch.nn.Module, last: torch.nn.Module) -> Iterator[None]:
        """Add up what passes from the start of `first` to the end of `last`; both run once in a call."""
        started = 0.0

        def start(*unused: Any) -> None:
            nonlocal started
            started = self.now()

        def stop(*unused: Any) -> None:
            self.inside += self.now() - started
            self.calls += 1

        hooks = [first.register_forward_pre_hook(start), last.register_forward_hook(stop)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def best_of(self, repeats: int, run: Callable[[], Any]) -> tuple[float, float, int]:
        """Of the fastest of `repeats` runs, after one that does not count: seconds, seconds inside, calls inside."""
        results = []
        for _ in range(repeats + 1):
            self.inside, self.calls = 0.0, 0
            start = self.now()
            run()
            results.append((self.now() - start, self.inside, self.calls))
        return min(results[1:])


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


def measure(args: argparse.Namespace) -> Iterator[str]:
    """The rows of the table."""
    device = torch.device(args.device)
    torch.manual_seed(0)
    model = SaticForImageCaptioning(SaticConfig()).eval().to(device, getattr(torch, args.dtype))
    model.model.generator.proj.bias.data[0] = -100.0  # the end token is never written
    clock = Clock(device, args.cpu_time)
    for batch in args.batch_sizes:
        features = torch.rand(batch, args.regions, 2048, device=device)
        for size in args.group_sizes:
            model.config.group_size = size
            with torch.inference_mode():
                encoded = model.encode_images(image_features=features)
                memory, _, _ = clock.best_of(args.repeats, lambda e=encoded: model.start_cache(e))
                again, _, _ = clock.best_of(args.repeats, lambda e=encoded: prefix_again(model, e, args.tokens))
                with clock.watch(model.model.tgt_embed[0], model.model.generator):
                    whole, decoder, calls = clock.best_of(
                        args.repeats,
                        lambda e=encoded: model.generate(encoder_outputs=e, max_new_tokens=args.tokens),
                    )
            rest = whole - decoder - memory
            cells = [batch, size, calls, f"{whole / batch * 1e3:.1f}", f"{batch * args.tokens / whole:.0f}"]
            cells += [f"{decoder * 1e3:.1f}", f"{memory * 1e3:.1f}", f"{rest * 1e3:.1f}", f"{rest / whole:.0%}"]
            yield " | ".join(map(str, [*cells, f"{again / whole:.2f}"]))


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
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts (default: 3)")
    parser.add_argument("--cpu-time", action="store_true", help="count processor time, on a machine that is busy")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = f"{args.device}, {args.dtype}, {args.threads} thread(s), {platform.machine()}"
    print(
        f"torch {torch.__version__}, {where}, {args.tokens} words, {args.regions} regions; the encoder is not counted\n"
    )
    columns = ["batch", "K", "decoder calls", "ms per caption", "words/s", "decoder, ms", "memory, ms"]
    columns += ["rest, ms", "rest", "again / cached"]
    for row in (" | ".join(columns), " | ".join(["---"] * len(columns))):
        print(f"| {row} |")
    for row in measure(args):
        print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
